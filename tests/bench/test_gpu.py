"""bench/gpu.py without a GPU: its clear message, its table, its byte counts, and what its checks would catch."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_gpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_gpu"]


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


@pytest.mark.parametrize("name", ["kl", "js"])
def test_errors_are_seen(gpu, name):
    p, q = gpu.inputs(20, 50, torch.float32, "cpu")
    truth = gpu.Truth.of(name, p, q)
    for compute in (gpu.ours(name), gpu.plain if name == "kl" else gpu.plain_js):
        y = q.clone().requires_grad_()
        value = compute(p, y)
        value.backward()
        value_error, gradient_error = truth.errors(value, y.grad)
        assert value_error < 1e-5
        assert gradient_error < 1e-5
        value_error, gradient_error = truth.errors(1.01 * value, 0.99 * y.grad)
        assert value_error == pytest.approx(0.01, rel=1e-2)
        assert gradient_error == pytest.approx(0.01, rel=1e-2)


def test_peers_that_are_absent_are_rows(gpu):
    if importlib.util.find_spec("liger_kernel") is not None:
        pytest.skip("Liger is installed")
    p, q = gpu.inputs(2, 3, torch.float32, "cpu")
    row = gpu.time_one("Liger", gpu.liger("kl"), "kl", p, q, gpu.Truth.of("kl", p, q), 1.0)
    assert row.note.startswith("absent")
    assert row.forward_ms is None


def test_the_check_passes_here_and_catches_a_wrong_formula(gpu, monkeypatch):
    # here `use("triton")` falls back to eager unless Triton interprets; what is tested is the comparison itself
    monkeypatch.setattr(gpu, "measure", _half_wrong(gpu))
    wrong = []
    p, q = gpu._edges(9, "cpu")
    gpu._compare(wrong, "kl", gpu.KL, gpu.Logits(p.float()), gpu.Logits(q.float()))
    assert any("value" in line for line in wrong)
    monkeypatch.undo()
    right = []
    with gpu.engines.use("eager"):
        gpu._compare(right, "kl", gpu.KL, gpu.Logits(p.double()), gpu.Logits(q.double()))
    assert right == []


def _half_wrong(gpu):
    true, calls = gpu.measure, []

    def measure(divergence, p, q):
        calls.append(1)
        return true(divergence, p, q) * (1.0 + 1e-4 * (len(calls) == 1))

    return measure
