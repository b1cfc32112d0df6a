"""Check the Triton engine on this GPU, then time it beside eager PyTorch, `torch.compile` and Liger.

    python bench/gpu.py                everything, under 10 minutes on one GPU; writes bench/results/gpu-*.json
    python bench/gpu.py --markdown     also print the table for docs/performance-gpu.md
    python bench/gpu.py --tune         try other tile sizes at the first shape instead
    python bench/gpu.py --budget 120   stop starting new rows after that many seconds

Correctness comes first: nothing is timed if a value or a gradient is off. Bytes are those of the three-sweep design:
forward reads both inputs twice, backward reads them once and writes one gradient (to q); the share is those bytes per
second over the measured bandwidth of a device-to-device copy. A peer that is not installed, or that runs out of memory,
is a row that says so.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from kullback import Labels, Logits, LogProbs, Probs, engines
from kullback.core import reduction
from kullback.divergences import KL, TABLE, js
from kullback.verbs import measure

SHAPES = ((8192, 128_256), (8192, 32_000), (2048, 151_936), (65_536, 1_000))
DTYPES = (torch.bfloat16, torch.float32)
SAMPLE_ROWS = 8  # rows whose gradient is compared with float64
CHECK_ROWS = 4


@dataclass(frozen=True)
class Timing:
    """One row of the table; `note` says why numbers are missing."""

    divergence: str
    shape: tuple[int, int]
    dtype: str
    who: str
    forward_ms: float | None = None
    both_ms: float | None = None
    peak_bytes: int | None = None
    forward_share: float | None = None
    both_share: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None
    note: str = ""


# ------------------------------------------------------------------ who computes


def plain(p: Tensor, q: Tensor) -> Tensor:
    """What people write: sum over columns of F.kl_div on log_softmax, mean over rows."""
    log_p, log_q = F.log_softmax(p.float(), -1), F.log_softmax(q.float(), -1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def plain_js(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(p.float(), -1), F.log_softmax(q.float(), -1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    halves = [F.kl_div(log_m, side, reduction="batchmean", log_target=True) for side in (log_p, log_q)]
    return (halves[0] + halves[1]) / 2


def ours(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    divergence = KL if name == "kl" else js(0.5)
    return lambda p, q: measure(divergence, Logits(p), Logits(q)).mean()


def liger(name: str) -> Callable[[Tensor, Tensor], Tensor] | str:
    """Liger's loss as a function of logits, or why there is none."""
    try:
        from liger_kernel.transformers import LigerJSD, LigerKLDIVLoss
    except Exception as error:  # absent, or not importable beside this PyTorch
        return f"absent ({type(error).__name__})"
    if name == "kl":
        loss = LigerKLDIVLoss(reduction="batchmean", log_target=True)
        return lambda p, q: loss(F.log_softmax(q.float(), -1), F.log_softmax(p.float(), -1))
    loss = LigerJSD(beta=0.5)
    return lambda p, q: loss(F.log_softmax(q.float(), -1), F.log_softmax(p.float(), -1))


def contestants(name: str) -> dict[str, Callable[[Tensor, Tensor], Tensor] | str]:
    reference = plain if name == "kl" else plain_js
    return {
        "kullback triton": ours(name),
        "PyTorch eager": reference,
        "torch.compile": torch.compile(reference, dynamic=False),
        "Liger": liger(name),
    }


# ------------------------------------------------------------------ inputs, truth, errors


def inputs(rows: int, columns: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    g = torch.Generator(device).manual_seed(0)
    p = torch.randn(rows, columns, generator=g, device=device, dtype=torch.float32).mul_(2.0)
    q = torch.randn(rows, columns, generator=g, device=device, dtype=torch.float32).mul_(0.5).add_(p)
    return p.to(dtype), q.to(dtype)


@dataclass(frozen=True)
class Truth:
    """In float64: the mean over all rows, and its gradient to the first rows of q."""

    value: float
    gradient: Tensor

    @classmethod
    def of(cls, name: str, p: Tensor, q: Tensor) -> "Truth":
        total, reading = (KL if name == "kl" else js(0.5)).sums[0], Logits(p).reading
        block = max(1, (1 << 23) // p.shape[1])
        pieces = zip(p.split(block), q.split(block), strict=True)
        value = torch.cat([reduction.rows(total, reading, reading, a, b) for a, b in pieces]).mean().item()
        p, q = p[:SAMPLE_ROWS], q[:SAMPLE_ROWS].double()
        rows = reduction.rows(total, reading, reading, p, q)
        upstream = torch.full_like(rows, 1.0)
        _, gradient = reduction.gradients(total, reading, reading, p, q, rows, upstream, (False, True))
        assert gradient is not None
        return cls(value, gradient)

    def errors(self, value: Tensor, gradient: Tensor) -> tuple[float, float]:
        """Relative errors of a mean over rows and of its gradient (2-norm)."""
        mine = gradient[:SAMPLE_ROWS].double() * len(gradient)
        return abs(value.item() / self.value - 1.0), ((mine - self.gradient).norm() / self.gradient.norm()).item()


# ------------------------------------------------------------------ correctness


def check(device: str, widths: tuple[int, ...] = (1, 2, 3, 33, 1000, 1025, 32_000)) -> list[str]:
    """Every divergence, dtype, reading and some edges against the specification in float64; what is wrong, in words."""
    wrong: list[str] = []
    for divergence in TABLE:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for columns in widths if divergence is KL else (33, 1025):
                p, q = (s.to(dtype) for s in _edges(columns, device))
                _compare(wrong, f"{divergence.name} {dtype} V={columns}", divergence, Logits(p), Logits(q))
    p, q = _edges(1025, device)
    labels = torch.arange(CHECK_ROWS, device=device)
    pairs = {
        "two temperatures": (Logits(p.float(), 2.5), Logits(q.float(), 0.7)),
        "one temperature": (Logits(p.float(), 3.0), Logits(q.float(), 3.0)),
        "LogProbs": (LogProbs(torch.log_softmax(p, -1).float(), validate=False), Logits(q.float())),
        "Probs": (
            Probs(torch.softmax(p, -1).float(), validate=False),
            Probs(torch.softmax(q, -1).float(), validate=False),
        ),
        "Labels": (Labels(labels, 1025, 0.1, validate=False), Logits(q.float())),
        "one-hot Labels": (Labels(labels, 1025, validate=False), Logits(q.float())),
        "offset": (Logits((p + 1000.0).float()), Logits((q - 1000.0).float())),
    }
    for name, (left, right) in pairs.items():
        _compare(wrong, f"kl, {name}", KL, left, right)
    for step in (1e-2, 1e-3, 4.5e-5):  # true values down to 1e-9
        near = (p.nan_to_num(neginf=-3.0) + 0.0).float()
        also = (near.double() + step * torch.randn(near.shape, device=device, dtype=torch.float64)).float()
        for columns in (3, 1025):
            _compare(
                wrong, f"kl at step {step:g}, V={columns}", KL, Logits(near[:, :columns]), Logits(also[:, :columns])
            )
            _compare(
                wrong,
                f"kl at step {step:g}, V={columns}, T=3",
                KL,
                Logits(near[:, :columns], 3.0),
                Logits(also[:, :columns], 3.0),
            )
    far = torch.randn(70_000, 5, device=device)
    _compare(wrong, "kl, 70000 rows", KL, Logits(far), Logits(far.flip(0)))
    if device == "cuda":
        _check_graph(wrong)
        _check_long_offsets(wrong)
    return wrong


def _check_graph(wrong: list[str]) -> None:
    """Captured once, replayed on other data: nothing in the call waits for the device or looks at values."""
    p, q = inputs(64, 1000, torch.bfloat16, "cuda")
    expected = measure(KL, Logits(q), Logits(p))
    x, y = p.clone(), q.clone()
    measure(KL, Logits(x), Logits(y))
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = measure(KL, Logits(x), Logits(y))
        x.copy_(q)
        y.copy_(p)
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        wrong.append(f"CUDA graph: {str(error).splitlines()[0]}")
        return
    if not torch.equal(captured, expected):
        wrong.append("CUDA graph: a replay gives other values than a call")


def _check_long_offsets(wrong: list[str]) -> None:
    """More than 2^31 cells: the last rows equal the same rows alone, value and gradient."""
    rows, columns = 17_000, 131_072
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        print("skipped: more than 2^31 cells (needs 20 GiB of free memory)", flush=True)
        return
    p = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
    q = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16).requires_grad_()
    value = measure(KL, Logits(p), Logits(q))
    (gradient,) = torch.autograd.grad(value.sum(), q)
    last = q[-2:].detach().clone().requires_grad_()
    alone = measure(KL, Logits(p[-2:]), Logits(last))
    (expected,) = torch.autograd.grad(alone.sum(), last)
    if not (torch.equal(value[-2:], alone) and torch.equal(gradient[-2:], expected)):
        wrong.append("more than 2^31 cells: the last rows differ from the same rows alone")


def _edges(columns: int, device: str) -> tuple[Tensor, Tensor]:
    """Rows: ordinary, a hole in p, holes in both, far apart."""
    g = torch.Generator(device).manual_seed(columns)
    p, q = torch.randn(2, CHECK_ROWS, columns, generator=g, device=device, dtype=torch.float64)
    if columns > 2:
        p[1, 0] = p[2, 1] = q[2, 1] = -math.inf
    p[3] *= 8.0
    return p, q


def _compare(wrong: list[str], what: str, divergence: Any, p: Any, q: Any) -> None:
    results = []
    for name in (None, "eager"):
        leaves = [side.data.detach().requires_grad_(side.data.is_floating_point()) for side in (p, q)]
        sides = [_with_data(side, leaf) for side, leaf in zip((p, q), leaves, strict=True)]
        with engines.use(name) if name else engines.use("triton"):
            value = measure(divergence, *sides)
            value.sum().backward()
        results.append([value.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)])
    narrow = any(side.data.dtype in (torch.bfloat16, torch.float16) for side in (p, q))
    for kind, mine, truth in zip(("value", "gradient", "gradient"), *results, strict=False):
        same = (mine == truth) | (mine.isnan() & truth.isnan())
        size = truth.abs().nan_to_num(posinf=0.0)
        if kind == "value":
            room = 1e-5 * size + 1e-15
        else:
            room = (2**-7 if narrow else 1e-4) * size.amax(-1, keepdim=True) + 4e-6
        off = ~(same | ((mine - truth).abs() <= room))
        if off.any():
            wrong.append(f"{what}: {kind} {mine[off][0].item():.9g}, float64 says {truth[off][0].item():.9g}")


def _with_data(side: Any, data: Tensor) -> Any:
    if isinstance(side, Logits):
        return Logits(data, side.temperature)
    if isinstance(side, Labels):
        return side
    return type(side)(data, validate=False)


# ------------------------------------------------------------------ time


def milliseconds(act: Callable[[], Any], seconds: float = 0.4, at_most: int = 50) -> float:
    """Median over runs timed by events on the device, after two runs that warm up."""
    for _ in range(2):
        act()
    torch.cuda.synchronize()
    times, started = [], time.monotonic()
    while len(times) < 3 or (time.monotonic() - started < seconds and len(times) < at_most):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        act()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def copy_bandwidth() -> float:
    """Bytes per second that a copy within the device's memory reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source)) * 1e-3)


def sweep_bytes(rows: int, columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the design: forward alone, and forward with backward to q."""
    one = rows * columns * torch.finfo(dtype).bits // 8
    return 4 * one, 7 * one


def time_one(who: str, compute: Any, name: str, p: Tensor, q: Tensor, truth: Truth, bandwidth: float) -> Timing:
    shape = (p.shape[0], p.shape[1])
    row: dict[str, Any] = {"divergence": name, "shape": shape, "dtype": str(p.dtype).removeprefix("torch."), "who": who}
    if isinstance(compute, str):
        return Timing(**row, note=compute)
    torch.cuda.empty_cache()
    try:
        with torch.no_grad():
            forward = milliseconds(lambda: compute(p, q))
        y = q.detach().requires_grad_()

        def both() -> Tensor:
            y.grad = None
            value: Tensor = compute(p, y)
            value.backward()
            return value

        both()
        y.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value_error, gradient_error = truth.errors(both(), y.grad)
        peak = torch.cuda.max_memory_allocated() - before
        whole = milliseconds(both)
    except torch.cuda.OutOfMemoryError:
        return Timing(**row, note="out of memory")
    except Exception as error:
        return Timing(**row, note=f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
    forward_bytes, both_bytes = sweep_bytes(*shape, p.dtype)
    return Timing(
        **row,
        forward_ms=forward,
        both_ms=whole,
        peak_bytes=peak,
        forward_share=forward_bytes / (forward * 1e-3) / bandwidth,
        both_share=both_bytes / (whole * 1e-3) / bandwidth,
        value_error=value_error,
        gradient_error=gradient_error,
    )


def tune(bandwidth: float) -> None:
    """Other tiles at the first shape, KL; the fastest should become `launch.tile`."""
    from kullback.engines.triton import launch

    shape = SHAPES[0]
    for dtype in DTYPES:
        p, q = inputs(*shape, dtype, "cuda")
        truth = Truth.of("kl", p, q)
        for columns in (512, 1024, 2048, 4096):
            for warps in (2, 4, 8, 16):
                for registers in (64, 96, 128, 168):
                    size = launch.Tile(1, columns, 8, warps, registers)
                    if not 2 <= columns // (32 * warps) <= 16:
                        continue
                    original, launch.tile = launch.tile, lambda *_, size=size: size
                    try:
                        found = time_one("kullback triton", ours("kl"), "kl", p, q, truth, bandwidth)
                    finally:
                        launch.tile = original
                    print(f"{dtype} {size} {found.forward_ms} ms {found.both_ms} ms {found.note}", flush=True)


# ------------------------------------------------------------------ the table


def table(found: list[Timing]) -> str:
    """Markdown, one row per measurement; a dash where there is no number."""
    head = (
        "divergence", "shape", "dtype", "who", "forward ms", "forward+backward ms", "peak MiB",
        "share of copy bandwidth", "value error", "gradient error", "note",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for t in found:
        share = "-" if t.forward_share is None else f"{t.forward_share:.0%} / {t.both_share:.0%}"
        lines.append(
            f"| {t.divergence} | {t.shape[0]} x {t.shape[1]} | {t.dtype} | {t.who} | {_number(t.forward_ms, '.3f')} | "
            f"{_number(t.both_ms, '.3f')} | {_number(None if t.peak_bytes is None else t.peak_bytes / 2**20, '.0f')} | "
            f"{share} | {_number(t.value_error, '.1e')} | {_number(t.gradient_error, '.1e')} | {t.note} |"
        )
    return "\n".join(lines)


def _number(x: float | None, form: str) -> str:
    return "-" if x is None else format(x, form)


def machine() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip),
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "command": "python " + " ".join(sys.argv),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which no new row is started")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "bench/gpu.py: no GPU that PyTorch can use, so nothing was checked and nothing was measured.",
            file=sys.stderr,
        )
        return 2
    started = time.monotonic()
    wrong = check("cuda")
    print(f"correctness: {len(wrong)} differences from float64, {time.monotonic() - started:.0f} s", flush=True)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth()
    print(f"copy bandwidth: {bandwidth / 1e12:.2f} TB/s", flush=True)
    if options.tune:
        tune(bandwidth)
        return 0
    found: list[Timing] = []
    for name in ("kl", "js"):
        for shape in SHAPES:
            for dtype in DTYPES:
                late = time.monotonic() - started > options.budget
                p, q = inputs(*((1, 1) if late else shape), dtype, "cuda")
                truth = Truth.of(name, p, q)
                for who, compute in contestants(name).items():
                    if time.monotonic() - started > options.budget:
                        found.append(Timing(name, shape, str(dtype)[6:], who, note="not reached within the budget"))
                    else:
                        found.append(time_one(who, compute, name, p, q, truth, bandwidth))
                    print(table(found[-1:]).splitlines()[-1], flush=True)
                torch.compiler.reset()
    report = {"machine": machine(), "copy_bytes_per_second": bandwidth, "rows": [asdict(t) for t in found]}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"gpu-{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {file}")
    if options.markdown:
        print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
