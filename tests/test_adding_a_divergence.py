"""A divergence is one row of data: six files by hand, and laws, oracles, gradients and every engine run on it unasked.

A copy of the sources gains Σ (p - q)² / max(p, q), a symmetric relative of χ², is built, and runs the suite's own tests
for the new row. A file more than these six would be a place that had to be told, and was not.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "csrc").exists() or shutil.which("g++") is None, reason="needs csrc/ and g++"),
]

# file -> (the line that marks the place, what is written before it)
BY_HAND = {
    "src/kullback/core/generators.py": [
        (
            "def _nothing(c: Cells, _: float) -> Terms:",
            '''def _larger_chi2(c: Cells, _: float) -> Terms:
    """(p - q)² / max(p, q)."""
    g, up = growth(c.p, c.q, c.d), c.d > 0
    t = torch.where(up, -torch.expm1(-c.d.clamp(min=0.0)), torch.expm1(c.d.clamp(max=0.0)))  # (q - p) / max(p, q)
    return Terms(g * t, -c.p * torch.where(up, 2.0 * t, t * (2.0 + t)), c.q * torch.where(up, t * (2.0 - t), 2.0 * t))


''',
        ),
        (
            "cross_entropy = Generator(",
            'larger_chi2 = Generator("larger_chi2", _larger_chi2, 0.0, 1.0, 1.0, slopes=(-2.0, -2.0), tail=Tail())\n\n',
        ),
        ('    "nothing": nothing,', '    "larger_chi2": lambda _: larger_chi2,\n'),
    ],
    "src/kullback/divergences.py": [
        (
            "CROSS_ENTROPY = Divergence(",
            """LARGER_CHI2 = Divergence(
    "larger_chi2",
    None,
    "Σ (p - q)² / max(p, q)",
    (GeneratorSum(generators.larger_chi2),),
    Scaled(),
    2.0,
    True,
    "this test",
    logarithmic=False,
)

""",
        ),
        ('    "cross_entropy": CROSS_ENTROPY,', '    "larger_chi2": LARGER_CHI2,\n'),
        ("    CROSS_ENTROPY,\n)", "    LARGER_CHI2,\n"),
    ],
    "src/kullback/verbs.py": [
        ('    "measure",', '    "larger_chi2",\n'),
        (
            "def chi2(p: Measured",
            '''def larger_chi2(p: Measured, q: Measured, /) -> Tensor:
    """Σ_v (p_v - q_v)² / max(p_v, q_v).

    Args: p, q: forms over the same V.
    Returns: Tensor (...), from 0 to 2, symmetric.
    Gradients: to p and q. Source: a test.

    >>> larger_chi2(Probs([0.5, 0.5]), Probs([0.75, 0.25]))
    tensor(0.2083)
    """
    return measure(divergences.LARGER_CHI2, p, q)


''',
        ),
    ],
    "csrc/generators.hpp": [
        ("  X(nothing) ", "  X(larger_chi2) \\\n"),
        (
            "struct nothing {",
            """struct larger_chi2 {
  explicit larger_chi2(double) {}
  static constexpr double reach = kReach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const larger_chi2&, Cells<T> c) {
    const T g = growth(c.p, c.q, c.d), most = c.p > c.q ? c.p : c.q;
    const bool up = c.d > T(0);
    const T t = most > T(0) ? g / most : most;
    return {g * t, -c.p * (up ? T(2) * t : t * (T(2) + t)), c.q * (up ? t * (T(2) - t) : T(2) * t)};
  }
};

""",
        ),
    ],
    "src/kullback/engines/triton/generators.py": [
        (
            "@triton.jit\ndef nothing(",
            """@triton.jit
def larger_chi2(p, q, d, log_q, parameter: tl.constexpr):
    g, most = growth(p, q, d), tl.maximum(p, q)
    t = tl.where(most > 0.0, g / tl.where(most > 0.0, most, 1.0), most)
    up = d > 0.0
    return g * t, -p * tl.where(up, 2.0 * t, t * (2.0 + t)), q * tl.where(up, t * (2.0 - t), 2.0 * t)


""",
        ),
    ],
    "tests/oracles/make_finite.py": [
        (
            "def tv(p, q):",
            """def larger_chi2(p, q):
    return _sum(lambda a, b: (a - b) ** 2 / max(a, b) if a + b > 0 else mp.mpf(0), p, q)


""",
        ),
        ("hellinger, triangular, chi2, cross_entropy", "larger_chi2, "),
    ],
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    root = tmp_path_factory.mktemp("divergence").resolve()
    for name in ("src", "csrc", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "conftest.py", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    for file, edits in BY_HAND.items():
        text = (root / file).read_text()
        for mark, written in edits:
            assert text.count(mark) == 1, f"{file}: {mark!r} stands there {text.count(mark)} times"
            text = text.replace(mark, written + mark)
        (root / file).write_text(text)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(root / "site"), str(root)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run(root, "tests/oracles/make_finite.py")
    return root


def run(root, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(root / "site"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    # an editable install's finder would come before PYTHONPATH
    start = (
        "import runpy, sys; from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder; "
        "sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]; import kullback; "
        f"assert kullback.__file__.startswith({str(root)!r}), kullback.__file__; sys.argv = sys.argv[1:]; "
    )
    how = "runpy.run_path(sys.argv[0], run_name='__main__')"
    if arguments[0] == "-m":
        arguments, how = arguments[1:], "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", start + how, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def test_six_files_are_written_by_hand():
    assert len(BY_HAND) == 6


@pytest.mark.parametrize(
    "tests",
    [
        "tests/laws/test_table.py",
        "tests/oracles/test_finite.py",
        "tests/gradients/test_gradients.py",
        "tests/gradients/test_autograd.py",
        "tests/engines/test_fuzz.py",
        "tests/engines/triton/test_equality.py",
        "tests/transforms",
        "tests/test_public_api.py",
    ],
)
def test_the_suite_runs_on_the_new_row_unasked(scratch, tests):
    out = run(
        scratch, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", tests, "-k", "larger_chi2"
    )
    assert " passed" in out


def test_every_engine_serves_it_and_the_command_offers_it(scratch):
    (scratch / "try.py").write_text(
        "import torch\n"
        "from kullback import Logits, explain, larger_chi2, divergences\n"
        "from kullback.engines.call import name_of_sum\n"
        "p, q = Logits(torch.randn(3, 7)), Logits(torch.randn(3, 7))\n"
        "print(explain(p, q, divergence=divergences.LARGER_CHI2).engine, larger_chi2(p, q).shape)\n"
        "from kullback.kl_command.choices import choose\n"
        "print(choose('larger_chi2'))\n"
    )
    out = run(scratch, "try.py")
    assert out.startswith("cpu torch.Size([3])")
    assert "larger_chi2" in out.splitlines()[1]
