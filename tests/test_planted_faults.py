"""The suite can fail: each one-line fault, planted in a copy of the package, is caught by a small part of the tests.

The first run has no fault and must pass, so that a failure below comes from the fault.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import kullback

PACKAGE = Path(kullback.__file__).parent
TESTS = Path(__file__).parent


class Fault(NamedTuple):
    """`old`, which stands in `file` exactly once, becomes `new`; `tests` (a file, a -k expression) must notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, str]


LAWS = "laws/test_table.py"
TEXTBOOK = ("gradients/test_gradients.py", "textbook_formula and kl and 1.0")
VALUE = "oracles/test_finite.py"
FAULTS = {
    "p and q swapped": Fault(
        "core/reduction.py",
        "return total.rows(cells(p, q)[0])",
        "return total.rows(cells(q, p)[0])",
        ("oracles/test_published.py", "test_kl"),
    ),
    "no maximum in the normaliser": Fault(
        "core/normalizer.py",
        "m = scores.amax(-1, keepdim=True)",
        "m = 0.0 * scores.amax(-1, keepdim=True)",
        ("laws/test_normalizer.py", "wherever_the_scores_lie"),
    ),
    "a merge that forgets to rescale": Fault(
        "core/normalizer.py",
        "self.sum * torch.exp(self.max - base) +",
        "self.sum +",
        ("laws/test_normalizer.py", "cut_anywhere"),
    ),
    "no mask for cells without mass": Fault(
        "core/reduction.py", "edge = no_p | no_q\n", "edge = (no_p | no_q) & False\n", (LAWS, "nor_nan and eager-kl")
    ),
    "mass in p alone is not infinite": Fault(
        "core/generators.py",
        'kl = Generator("kl", _kl, 0.0, 1.0, _UNBOUNDED,',
        'kl = Generator("kl", _kl, 0.0, 1.0, 1.0,',
        (VALUE, "test_value and eager-kl"),
    ),
    "mass in q alone is forgotten": Fault(
        "core/generators.py",
        'kl = Generator("kl", _kl, 0.0, 1.0, _UNBOUNDED,',
        'kl = Generator("kl", _kl, 0.0, 0.0, _UNBOUNDED,',
        (VALUE, "test_value and eager-kl"),
    ),
    "no series near equality": Fault(
        "core/generators.py",
        "near = y.abs() < _SERIES_BELOW",
        "near = y.abs() < 0.0",
        (VALUE, "test_value and eager-kl"),
    ),
    "a wrong coefficient of the series": Fault(
        "core/generators.py",
        "1.0 / math.factorial(k)",
        "1.0 / math.factorial(k) + 1e-4 * (k == 3)",
        (VALUE, "test_value and eager-kl"),
    ),
    "a wrong sign in a gradient": Fault(
        "core/generators.py",
        "Terms(excess(c.p, c.q, c.d), -c.p * c.d,",
        "Terms(excess(c.p, c.q, c.d), c.p * c.d,",
        TEXTBOOK,
    ),
    "a value that ignores temperature": Fault(
        "core/readings.py",
        "scores = (wide - top) / self.temperature",
        "scores = wide - top",
        ("laws/test_relations.py", "temperature"),
    ),
    "a gradient without 1/temperature": Fault(
        "core/readings.py",
        "((partial.dlog - weights.w * partial.total) / self.temperature)",
        "(partial.dlog - weights.w * partial.total)",
        ("gradients/test_gradients.py", "temperature"),
    ),
    "a gradient of scores that leaves the simplex": Fault(
        "core/readings.py",
        "((partial.dlog - weights.w * partial.total) / self.temperature)",
        "(partial.dlog / self.temperature)",
        ("gradients/test_gradients.py", "gradcheck_of_logits and random and js"),
    ),
    "the canonical constant leaks to Probs": Fault(
        "core/readings.py",
        "torch.where(zero, 1.0, weights.w) - partial.plain",
        "torch.where(zero, 1.0, weights.w)",
        TEXTBOOK,
    ),
    "the canonical constant leaks to LogProbs": Fault(
        "core/readings.py", "upstream * (partial.dlog - partial.plain * weights.w)", "upstream * partial.dlog", TEXTBOOK
    ),
    "accumulation in float32": Fault(
        "core/readings.py",
        "wide = x.double()\n        # the maximum",
        "wide = x.float().log_softmax(-1).double()\n        # the maximum",
        (VALUE, "test_value and eager-kl"),
    ),
    "an epsilon": Fault(
        "core/readings.py",
        "torch.log(torch.where(zero, 1.0, w))",
        "torch.log(torch.where(zero, 1.0, w) + 1e-10)",
        (VALUE, "test_value and eager-kl"),
    ),
    "smoothing over the other classes counts the label": Fault(
        "core/readings.py",
        "self.smoothing / max(self.num_classes - 1, 1)",
        "self.smoothing / self.num_classes",
        ("forms/test_inputs.py", "other_classes"),
    ),
    "js jumps at the end of its weight": Fault(
        "core/generators.py",
        "    if weight in (0.0, 1.0):\n        return nothing(0.0)",
        "    if weight in (0.0, 1.0):\n        return kl",
        ("laws/test_relations.py", "js"),
    ),
    "Rényi without its series at one": Fault(
        "divergences.py",
        "near = log_sum.abs() < 0.5",
        "near = log_sum.abs() < 0.0",
        ("laws/test_relations.py", "no_digit_is_lost"),
    ),
    "a lost block of rows": Fault(
        "engines/eager.py",
        "cut = slice(start, start + step)",
        "cut = slice(0, step)",
        ("engines/test_engines.py", "size_of_a_block and eager-kl"),
    ),
}


# Imports what is slow to import once, then forks for every line "folder<tab>file<tab>expression" that it reads.
SERVER = """
import os, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
import mpmath, numpy, pytest, torch
for line in sys.stdin:
    folder, file, expression = line.rstrip(chr(10)).split(chr(9))
    child = os.fork()
    if child == 0:
        out = os.open(os.path.join(folder, "output.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]  # not an editable install's own
        sys.path.insert(0, folder)
        import kullback
        assert kullback.__file__.startswith(folder)
        options = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
        code = pytest.main([*options, file, "-k", expression])
        sys.stdout.flush()
        os._exit(int(code))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package, which the server's children find before the installed one."""
    root = tmp_path_factory.mktemp("planted").resolve()
    shutil.copytree(PACKAGE, root / "kullback", ignore=shutil.ignore_patterns("__pycache__", "distill", "cli.py"))
    return root


@pytest.fixture(scope="module")
def run(copy):
    """run(tests) -> (exit code of pytest, its output), on the copy as it stands."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=TESTS.parent,
    ) as server:

        def ask(tests: tuple[str, str]) -> tuple[int, str]:
            server.stdin.write("\t".join((str(copy), str(TESTS / tests[0]), tests[1])) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline()), (copy / "output.txt").read_text()[-2000:]

        yield ask


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({fault.tests for fault in FAULTS.values()}), ids=" -k ".join)
def test_without_a_fault_the_tests_pass(run, tests):
    code, output = run(tests)
    assert code == 0, output
    assert " passed" in output


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(copy, run, name):
    fault = FAULTS[name]
    path = copy / "kullback" / fault.file
    sound = path.read_text()
    assert sound.count(fault.old) == 1, f"{fault.file} changed: plant this fault anew"
    path.write_text(sound.replace(fault.old, fault.new))
    try:
        code, output = run(fault.tests)
    finally:
        path.write_text(sound)
    assert code == 1, f"not caught:\n{output}"
    assert " failed" in output, f"not run:\n{output}"
