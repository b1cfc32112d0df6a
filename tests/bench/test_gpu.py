"""bench/gpu.py without a GPU: its clear message, its table, its byte counts, and what its checks would catch."""

import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("gpu")
        for name in ("gpu", "gpu_check"):
            sys.modules.pop(name, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no GPU that PyTorch can use" in done.stderr
    assert done.stdout == ""


def test_the_table_has_a_dash_where_nothing_was_measured(gpu):
    full = gpu.Timing("kl", (8, 16), "float32", "kullback triton", 1.5, 2.25, 3 << 20, 0.61, 0.62, 1e-7, 2e-6)
    absent = gpu.Timing("js", (8, 16), "float32", "Liger", note="absent (ImportError)")
    head, rule, first, second = gpu.table([full, absent]).splitlines()
    assert head.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first == "| kl | 8 x 16 | float32 | kullback triton | 1.500 | 2.250 | 3 | 61% / 62% | 1.0e-07 | 2.0e-06 |  |"
    assert second == "| js | 8 x 16 | float32 | Liger | - | - | - | - | - | - | absent (ImportError) |"


def test_bytes_of_the_three_sweeps(gpu):
    # both inputs twice; then both once more, and one gradient written
    assert gpu.sweep_bytes(10, 100, torch.bfloat16) == (4 * 2000, 7 * 2000)
    assert gpu.sweep_bytes(10, 100, torch.float32) == (4 * 4000, 7 * 4000)


@pytest.fixture
def here(gpu, monkeypatch):
    """A CPU in the place of the GPU, with a clock and a memory that say little; PyTorch's compiler stands aside."""
    cuda = {
        "is_available": lambda: True,
        "get_device_name": lambda: "none",
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1 << 20,
        "max_memory_allocated": lambda: 3 << 20,
        "Event": Event,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    settings = {"DEVICE": "cpu", "SHAPES": ((20, 50), (3, 7)), "COPIED": 1 << 10}
    for name, value in settings.items():
        monkeypatch.setattr(gpu, name, value)
    return gpu


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.monotonic()

    def elapsed_time(self, end):
        return max(1e3 * (end.at - self.at), 1e-6)


@pytest.mark.parametrize("name", ["kl", "js"])
def test_errors_are_seen(here, name):
    p, q = here.inputs(20, 50, torch.float32)
    truth = here.Truth.of(name, p, q)
    for compute in (here.ours(name), here.plain if name == "kl" else here.plain_js):
        y = q.clone().requires_grad_()
        value = compute(p, y)
        value.backward()
        value_error, gradient_error = truth.errors(value, y.grad)
        assert value_error < 1e-5
        assert gradient_error < 1e-5
        value_error, gradient_error = truth.errors(1.01 * value, 0.99 * y.grad)
        assert value_error == pytest.approx(0.01, rel=1e-2)
        assert gradient_error == pytest.approx(0.01, rel=1e-2)


def test_peers_that_are_absent_or_fail_are_rows(here):
    p, q = here.inputs(2, 3, torch.float32)
    truth = here.Truth.of("kl", p, q)
    if importlib.util.find_spec("liger_kernel") is None:
        row = here.time_one("Liger", here.liger("kl"), "kl", p, q, truth, 1.0)
        assert row.note.startswith("absent")
        assert row.forward_ms is None
    for error in (RuntimeError(), torch.cuda.OutOfMemoryError("no more")):
        row = here.time_one("x", _raises(error), "kl", p, q, truth, 1.0)
        assert row.note in ("failed: RuntimeError: ", "out of memory")
        assert row.both_ms is None


def _raises(error):
    def compute(p, q):
        raise error

    return compute


@pytest.mark.parametrize("wrong", [[], ["kl: value 2, float64 says 1"]])
def test_the_whole_run(here, wrong, monkeypatch, tmp_path, capsys):
    """Everything but the check and the device: rows are written as they are found, differences are the exit status."""
    monkeypatch.setattr(here, "check", lambda device: wrong)
    assert here.main(["--markdown", "--out", str(tmp_path)]) == len(wrong)
    (file,) = tmp_path.iterdir()
    report = json.loads(file.read_text())
    assert report["differences"] == wrong
    assert report["machine"]["torch"] == torch.__version__
    rows = report["rows"]
    assert [(r["divergence"], tuple(r["shape"]), r["dtype"], r["who"]) for r in rows] == list(
        itertools.product(
            ("kl", "js"),
            ((20, 50), (3, 7)),
            ("bfloat16", "float32"),
            ("kullback triton", "PyTorch eager", "torch.compile", "Liger"),
        )
    )
    for row in rows:
        if row["note"]:
            assert row["who"] == "Liger"
        else:
            assert row["forward_ms"] > 0
            assert row["peak_bytes"] == 2 << 20
            assert row["value_error"] < 1e-4  # F.kl_div, in the worst case here
            assert row["gradient_error"] < (1e-2 if row["dtype"] == "bfloat16" else 1e-5)
    assert capsys.readouterr().out.count("| kl | 20 x 50 | float32 | kullback triton |") == 2


def test_what_the_budget_leaves_out_is_a_row(here, monkeypatch, tmp_path):
    monkeypatch.setattr(here, "check", lambda device: [])
    here.main(["--budget", "-1", "--out", str(tmp_path)])
    (file,) = tmp_path.iterdir()
    rows = json.loads(file.read_text())["rows"]
    assert {row["note"] for row in rows} == {"not reached in time"}
    assert len(rows) == 8


def test_the_check_says_that_another_engine_serves(gpu):
    with gpu_check(gpu).engines.use("eager"):
        (said,) = gpu.check("cpu")
    assert said.startswith("the Triton engine does not serve cpu: eager")


def test_the_check_goes_on_after_what_fails(gpu):
    wrong = []
    gpu_check(gpu).attempt(wrong, "this", lambda: _raises(ValueError("said\nmore"))(None, None))
    gpu_check(gpu).attempt(wrong, "that", lambda: None)
    assert wrong == ["this: ValueError: said"]


def test_a_wrong_formula_is_caught(gpu, monkeypatch):
    checking = gpu_check(gpu)
    p, q = (checking.Logits(s.float()) for s in checking.edges(9, "cpu"))
    assert checking.compare(checking.KL, p, q) is None  # without an interpreter "triton" is eager here
    true, calls = checking.measure, itertools.count()

    def measure(divergence, p, q):
        return true(divergence, p, q) * (1.0 + 1e-4 * (next(calls) == 0))

    monkeypatch.setattr(checking, "measure", measure)
    assert checking.compare(checking.KL, p, q).startswith("value")


def gpu_check(gpu):
    return sys.modules[gpu.check.__module__]


@pytest.mark.slow
def test_the_check_itself_is_clean_under_the_interpreter():
    """What the device will be asked first, on Triton's interpreter, in a process of its own."""
    pytest.importorskip("triton")
    code = (
        "import sys, warnings\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "warnings.simplefilter('ignore')\n"
        "import gpu_check\n"
        "from kullback import engines\n"
        "with engines.use('triton'):\n"
        "    print(gpu_check.check('cpu', widths=(1, 2, 33, 70), many_rows=300))\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
