"""From tensors to kernels: layouts, tile sizes, and which arithmetic a sum needs. Allocates results, nothing else."""

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from kullback.core import generators as core
from kullback.core.readings import LabelsReading, LogitsReading, LogProbsReading, ProbsReading, Reading
from kullback.core.reduction import GeneratorSum, LogAffinity
from kullback.engines.call import STATS, Call

from . import generators, kernels

SHORT = 512  # a short row has its normaliser in float64: there are few cells for its error to average over
# the numbers that kernels know readings by
READINGS = (LogitsReading, LogProbsReading, ProbsReading, LabelsReading)


class Tile(NamedTuple):
    """What one program holds at once: rows x columns; `span` blocks of columns for a backward program; its warps.

    Four warps of at most 128 registers leave room for four programs on every NVIDIA multiprocessor from sm_80 on; left
    to itself, the assembler aims at fewer still and spills in some kernels (bench/triton_compile.py shows it).
    """

    rows: int
    columns: int
    span: int = 8
    warps: int = 4
    registers: int = 128

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        warps = {"num_warps": self.warps}
        return warps if torch.version.hip else warps | {"maxnreg": self.registers}


def tile(num_classes: int, setting: dict[str, Any], *dtypes: torch.dtype) -> Tile:
    """Cells a thread: 2 in float64, 8 of logits of 16 bits at one temperature, else 4; 1 where short rows share a tile.

    These are the largest that spill no register; 8 cells of 16 bits are one load of 16 bytes, and so are 4 of float32.
    Each thread holds the float64 numbers of every row that it sees, hence one row a thread at most.
    """
    half = all(dtype in (torch.bfloat16, torch.float16) for dtype in dtypes)
    cells = 256 if setting["T"] == tl.float64 else 1024 if half and setting["SAME"] else 512
    columns = min(power_of_two(num_classes), cells)
    return Tile(max(1, 128 // columns), columns)


def check_device(x: Tensor) -> None:
    """Refuse a tensor of the CPU where the kernels are compiled for a GPU."""
    if not x.is_cuda and isinstance(kernels.forward, JITFunction):
        raise RuntimeError(
            f"kullback's Triton kernels were given a tensor on {x.device}, but they run on GPUs. Move it with .cuda(), "
            "or set TRITON_INTERPRET=1 before Triton is imported, to interpret them."
        )


def forward(call: Call, x: Tensor, y: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Values (...), float64, and the numbers that backward needs, (..., 6) or none."""
    left, right, num_classes = call.p, call.q, call.num_classes
    batch = x.shape if isinstance(left, LabelsReading) else x.shape[:-1]
    values = x.new_empty(batch, dtype=torch.float64)
    stats = x.new_empty((*batch, STATS) if keep else (0,), dtype=torch.float64)
    n = values.numel()
    if n:
        (a, a_stride), (b, b_stride) = as_rows(x, left, num_classes), as_rows(y, right, num_classes)
        setting = settings(call)
        size = tile(num_classes, setting, x.dtype, y.dtype)
        with on_device(x):
            kernels.forward[(blocks_for(n, size.rows),)](
                a, b, values, stats, n, num_classes, a_stride, b_stride, *scalars(left), *scalars(right),
                KEEP=keep, ROWS=size.rows, BLOCK=size.columns, **size.options,
                **{name: setting[name] for name in FORWARD},
            )  # fmt: skip
    return values, stats


def backward(
    call: Call, x: Tensor, y: Tensor, values: Tensor, stats: Tensor, upstream: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor]:
    """Gradients to x and to y, contiguous and in their dtypes; an empty tensor for one that is not wanted."""
    left, right, num_classes = call.p, call.q, call.num_classes
    to_x = torch.empty(x.shape if wanted[0] else (0,), dtype=x.dtype, device=x.device)
    to_y = torch.empty(y.shape if wanted[1] else (0,), dtype=y.dtype, device=y.device)
    n = values.numel()
    if n and any(wanted):
        (a, a_stride), (b, b_stride) = as_rows(x, left, num_classes), as_rows(y, right, num_classes)
        u = upstream.reshape(-1)
        setting = settings(call)
        size = tile(num_classes, setting, x.dtype, y.dtype)
        grid = (blocks_for(n, size.rows), blocks_for(num_classes, size.columns * size.span))
        with on_device(x):
            kernels.backward[grid](
                a, b, values.contiguous(), stats.contiguous(), u, to_x, to_y,
                n, num_classes, a_stride, b_stride, u.stride(0), *scalars(left), *scalars(right),
                TO_X=wanted[0], TO_Y=wanted[1], ROWS=size.rows, BLOCK=size.columns, SPAN=size.span,
                **size.options, **{name: setting[name] for name in BACKWARD},
            )  # fmt: skip
    return to_x, to_y


FORWARD = (
    "GENERATOR", "PARAMETER", "AT_P_ZERO", "AT_Q_ZERO", "AFFINITY", "LEFT", "RIGHT", "UNIT_P", "UNIT_Q", "SAME", "T",
    "NORMALIZER",
)  # fmt: skip
BACKWARD = (*FORWARD[:-1], "PLAIN_P", "PLAIN_Q", "SLOPE_P", "SLOPE_Q", "LOG_Q_SLOPE")


def settings(call: Call) -> dict[str, Any]:
    """What is compiled into the kernels: the sum, the readings, the arithmetic."""
    total, left, right = call.total, call.p, call.q
    if isinstance(total, LogAffinity):
        f, affinity, parameter = core.nothing(0.0), True, total.order
    else:
        assert isinstance(total, GeneratorSum)
        f, affinity, parameter = total.generator, False, total.generator.parameter
    wide = affinity or torch.float64 in call.dtypes or not _narrow_enough(f)
    # probabilities may be subnormal, and 1/p or a zero that was none would show in their gradients
    kinds: set[type] = {type(left), type(right)}
    wide |= ProbsReading in kinds or kinds == {LabelsReading}
    # see engines/cpu.py on what an error of a normaliser costs
    exact = call.num_classes <= SHORT or f.corner or LogProbsReading in kinds
    unit_p, unit_q = (not isinstance(side, LogitsReading) or side.temperature == 1.0 for side in (left, right))
    return {
        "AFFINITY": affinity,
        "GENERATOR": getattr(generators, f.name),
        "PARAMETER": parameter,
        "AT_P_ZERO": f.at_p_zero,
        "AT_Q_ZERO": f.at_q_zero,
        "PLAIN_P": f.plain[0],
        "PLAIN_Q": f.plain[1],
        "SLOPE_P": f.slopes[0],
        "SLOPE_Q": f.slopes[1],
        "LOG_Q_SLOPE": f.log_q_slope,
        "LEFT": READINGS.index(type(left)),
        "RIGHT": READINGS.index(type(right)),
        "UNIT_P": unit_p,
        "UNIT_Q": unit_q,
        "SAME": isinstance(left, LogitsReading) and left == right,
        "T": tl.float64 if wide else tl.float32,
        "NORMALIZER": tl.float64 if wide or exact else tl.float32,
    }


def _narrow_enough(f: core.Generator) -> bool:
    """Whether float32 holds every intermediate: (p/q)^a, a > 1, leaves its range; weights near 0 or 1 its precision."""
    if f.power is not None and f.power.order not in (0.0, 1.0):
        return 1e-6 < f.power.order < 1.0 - 1e-6
    return f.parameter == 0.0 or f.name == "nothing" or 1e-6 < f.parameter < 1.0 - 1e-6


def scalars(reading: Reading) -> tuple[float, float, float, float, float]:
    """(1 / temperature, weight at the label, weight elsewhere, and their logarithms, 0 where there is no mass)."""
    if isinstance(reading, LabelsReading):
        on, off = reading.on_off
        return 1.0, on, off, math.log(on) if on > 0 else 0.0, math.log(off) if off > 0 else 0.0
    return 1.0 / reading.temperature if isinstance(reading, LogitsReading) else 1.0, 0.0, 0.0, 0.0, 0.0


def as_rows(data: Tensor, reading: Reading, num_classes: int) -> tuple[Tensor, int]:
    """The data as one axis of rows, and their stride; copied only where no stride will do."""
    if isinstance(reading, LabelsReading):
        flat = data.reshape(-1).to(torch.int64)
        return flat, flat.stride(0)
    flat = data.resolve_neg().reshape(-1, num_classes)
    if num_classes > 1 and flat.stride(1) != 1:
        flat = flat.contiguous()
    return flat, flat.stride(0)


def on_device(x: Tensor) -> Any:
    """Where kernels of this tensor are launched."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def blocks_for(n: int, size: int) -> int:
    """How many blocks of a size cover n."""
    return -(-n // size)


def power_of_two(n: int) -> int:
    """The smallest that is >= n."""
    return 1 << max(n - 1, 0).bit_length()
