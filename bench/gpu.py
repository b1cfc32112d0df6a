"""Check the Triton engine on this GPU, then time it beside eager PyTorch, `torch.compile` and Liger.

    python bench/gpu.py                everything, under 10 minutes on one GPU; writes bench/results/gpu-*.json
    python bench/gpu.py --markdown     also print the table for docs/performance-gpu.md
    python bench/gpu.py --tune         try other tile sizes at the first shape instead
    python bench/gpu.py --budget 120   stop starting new rows after that many seconds

Correctness comes first (gpu_check.py): every difference from float64 is printed and stands in the report, and the exit
status is 1 if there is one. Bytes are those of the three-sweep design: forward reads both inputs twice, backward reads
them once and writes one gradient (to q); the share is those bytes per second over the measured bandwidth of a copy
within the device. A peer that is not installed, or that runs out of memory, is a row that says so.
"""

import argparse
import itertools
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent))

from gpu_check import check

from kullback import Logits
from kullback.core import reduction
from kullback.core.readings import Side
from kullback.divergences import KL, js
from kullback.verbs import measure

DEVICE = "cuda"
SHAPES = ((8192, 128_256), (8192, 32_000), (2048, 151_936), (65_536, 1_000))
DTYPES = (torch.bfloat16, torch.float32)
COPIED = 1 << 30  # bytes
SAMPLE_ROWS = 8  # rows whose gradient is compared with float64
DIVERGENCES = {"kl": KL, "js": js(0.5)}


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
    return lambda p, q: measure(DIVERGENCES[name], Logits(p), Logits(q)).mean()


def liger(name: str) -> Callable[[Tensor, Tensor], Tensor] | str:
    """Liger's loss as a function of logits, or why there is none."""
    try:
        from liger_kernel.transformers import LigerJSD, LigerKLDIVLoss
    except Exception as error:  # absent, or not importable beside this PyTorch
        return f"absent ({type(error).__name__})"
    loss = LigerKLDIVLoss(reduction="batchmean", log_target=True) if name == "kl" else LigerJSD(beta=0.5)
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


def inputs(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    g = torch.Generator(DEVICE).manual_seed(0)
    p = torch.randn(rows, columns, generator=g, device=DEVICE, dtype=torch.float32).mul_(2.0)
    q = torch.randn(rows, columns, generator=g, device=DEVICE, dtype=torch.float32).mul_(0.5).add_(p)
    return p.to(dtype), q.to(dtype)


@dataclass(frozen=True)
class Truth:
    """In float64: the mean over all rows, and its gradient to the first rows of q."""

    value: float
    gradient: Tensor

    @classmethod
    def of(cls, name: str, p: Tensor, q: Tensor) -> "Truth":
        total = DIVERGENCES[name].sums[0]

        def sides(a: Tensor, b: Tensor) -> tuple[Side, Side]:
            return Logits(a).side(a.shape[:-1]), Logits(b).side(b.shape[:-1])

        block = max(1, (1 << 23) // p.shape[1])
        pieces = zip(p.split(block), q.split(block), strict=True)
        value = torch.cat([reduction.rows(total, *sides(a, b)) for a, b in pieces]).mean().item()
        left, right = sides(p[:SAMPLE_ROWS], q[:SAMPLE_ROWS].double())
        rows = reduction.rows(total, left, right)
        _, gradient = reduction.gradients(total, left, right, rows, torch.ones_like(rows), (False, True))
        assert gradient is not None
        return cls(value, gradient)

    def errors(self, value: Tensor, gradient: Tensor) -> tuple[float, float]:
        """Relative errors of a mean over rows and of its gradient (2-norm)."""
        mine = gradient[:SAMPLE_ROWS].double() * len(gradient)
        return abs(value.item() / self.value - 1.0), ((mine - self.gradient).norm() / self.gradient.norm()).item()


# ------------------------------------------------------------------ time


def milliseconds(act: Callable[[], Any], seconds: float = 0.4, at_most: int = 50) -> float:
    """Median over runs timed by events on the device, after two runs that warm up.

    All runs are queued before any is waited for, so that the processor's own time shows only where it is the longer.
    """
    for _ in range(2):
        act()
    torch.cuda.synchronize()
    started = time.monotonic()
    act()
    torch.cuda.synchronize()
    runs = max(3, min(at_most, int(seconds / (time.monotonic() - started + 1e-9))))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for begin, end in events:
        begin.record()
        act()
        end.record()
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) for begin, end in events)[runs // 2]


def copy_bandwidth() -> float:
    """Bytes per second that a copy within the device's memory reads and writes."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=DEVICE)
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
        return Timing(**row, note=f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}")
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

    original = launch.tile
    for dtype in DTYPES:
        p, q = inputs(*SHAPES[0], dtype)
        truth = Truth.of("kl", p, q)
        for columns, warps, registers in itertools.product((512, 1024, 2048, 4096), (2, 4, 8, 16), (64, 96, 128, 168)):
            if not 2 <= columns // (32 * warps) <= 16:
                continue
            size = launch.Tile(1, columns, 8, warps, registers)
            launch.tile = lambda *_, size=size: size
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
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        commit = ""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "command": "python " + " ".join(sys.argv),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def measurements(bandwidth: float, late: Callable[[], bool]) -> Iterator[Timing]:
    """Every row of the table, as it is found."""
    for name in DIVERGENCES:
        for shape in SHAPES:
            for dtype in DTYPES:
                if late():
                    yield Timing(name, shape, str(dtype).removeprefix("torch."), "all", note="not reached in time")
                    continue
                p, q = inputs(*shape, dtype)
                truth = Truth.of(name, p, q)
                for who, compute in contestants(name).items():
                    yield time_one(who, compute, name, p, q, truth, bandwidth)
                torch.compiler.reset()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds after which no new shape is started")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            "bench/gpu.py: no GPU that PyTorch can use, so nothing was checked and nothing was measured.",
            file=sys.stderr,
        )
        return 2
    started = time.monotonic()
    wrong = check(DEVICE)
    print(f"correctness: {len(wrong)} differences from float64, {time.monotonic() - started:.0f} s", flush=True)
    print("\n".join(wrong), flush=True)
    bandwidth = copy_bandwidth()
    print(f"copy bandwidth: {bandwidth / 1e12:.2f} TB/s", flush=True)
    if options.tune:
        tune(bandwidth)
        return bool(wrong)
    report = {"machine": machine(), "differences": wrong, "copy_bytes_per_second": bandwidth, "rows": []}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"gpu-{time.strftime('%Y%m%d-%H%M%S')}.json"
    found: list[Timing] = []
    for row in measurements(bandwidth, lambda: time.monotonic() - started > options.budget):
        found.append(row)
        print(table([row]).splitlines()[-1], flush=True)
        report["rows"] = [asdict(t) for t in found]
        file.write_text(json.dumps(report, indent=1) + "\n")  # after every row: a run that is cut short keeps them
    print(f"wrote {file}")
    if options.markdown:
        print(table(found))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
