"""The C++ engine: `core`, transcribed to loops over rows that stay in cache (csrc/), behind a PyTorch operator.

Forward saves three numbers per row and side, (max, log Σ exp, Σ ∂f/∂log w); backward recomputes the terms and writes
each requested gradient once. No temporary is larger than a few blocks per thread. A second derivative goes through the
eager definition. The operator, not the extension, is what PyTorch sees: it has a fake kernel for `torch.compile`.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kullback.core import generators
from kullback.core.readings import LabelsReading, LogitsReading, Reading
from kullback.core.reduction import Sum

from . import encoding
from .encoding import DTYPES, LABELS, STATS

try:
    from kullback import _cpu
except ImportError as error:  # built without a C++ compiler
    _cpu = None  # type: ignore[assignment]
    ABSENT: str | None = f"the C++ extension kullback._cpu is not installed ({error})"
else:
    ABSENT = None


# An error δ in log Z costs a divergence δ²/2, but a distance δ: these take their normalisers in double. Elsewhere the
# exponentials are single and their sum is double: δ <= 2e-7. Two rows of logits near p = q have most of it in common;
# where only one side has a normaliser, a short row, which has few cells for δ to average over, takes it in double.
_DISTANCES = (generators.tv, generators.squared_hellinger)
_SHORT = 512


def temporary_bytes(num_classes: int) -> int:
    """At most this much: blocks on each thread's stack, and what is kept of a row between the two stages."""
    kept = max(1 << 20, 8 * num_classes + (8 << 10))
    return torch.get_num_threads() * (kept + (160 << 10))


def instruction_set() -> str:
    """Which build of the kernels this processor runs."""
    return _cpu.instruction_set()


def instruction_sets() -> list[str]:
    """Every build of the kernels that this processor can run, best first."""
    return _cpu.instruction_sets() if ABSENT is None else []


def use_instruction_set(name: str) -> None:
    """Run another build of the kernels from now on; for tests and benchmarks."""
    _cpu.use_instruction_set(name)


def rows(total: Sum, left: Reading, right: Reading, x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """One float64 number per row of x and y, which already share their batch shape; differentiable twice."""
    codes, numbers = encoding.encode(total, left, right)
    keep = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    values: Tensor = torch.ops.kullback.rows(x, y, codes, numbers, num_classes, keep)[0]
    return values


@lru_cache(maxsize=256)
def _settings(
    codes: tuple[int, ...], numbers: tuple[float, ...], num_classes: int
) -> tuple[tuple[int, bool, list[float]], tuple[list[float], list[float]]]:
    """What the extension needs of a sum and of both readings."""
    _, left, right = encoding.decode(codes, numbers, num_classes)
    in_common = isinstance(left, LogitsReading) and left == right
    exact_normalizer = encoding.FORMULAS[codes[0]] in _DISTANCES or (num_classes <= _SHORT and not in_common)
    return (codes[0], exact_normalizer, list(numbers[:8])), (_reading_numbers(left), _reading_numbers(right))


def _reading_numbers(reading: Reading) -> list[float]:
    on, off = reading.on_off if isinstance(reading, LabelsReading) else (0.0, 0.0)
    return [1.0 / reading.temperature if isinstance(reading, LogitsReading) else 1.0, on, off]


# ---------------------------------------------------------------- the operators

_library = encoding.define()


def _rows(
    x: Tensor, y: Tensor, codes: list[int], numbers: list[float], num_classes: int, keep: bool
) -> tuple[Tensor, Tensor]:
    batch = x.shape if codes[1] == LABELS else x.shape[:-1]
    values = torch.empty(batch, dtype=torch.float64)
    stats = torch.empty((*batch, STATS) if keep else (0,), dtype=torch.float64)
    if values.numel():
        total, numbers_of = _settings(tuple(codes), tuple(numbers), num_classes)
        shape, (p, q) = _lay_out(batch, (x, y), (codes[1], codes[3]))
        _cpu.forward(
            total,
            shape,
            num_classes,
            _side(p, codes[1], numbers_of[0]),
            _side(q, codes[3], numbers_of[1]),
            values.data_ptr(),
            stats.data_ptr() if keep else 0,
            torch.get_num_threads(),
        )
    return values, stats


def _row_gradients(
    x: Tensor,
    y: Tensor,
    values: Tensor,
    stats: Tensor,
    upstream: Tensor,
    codes: list[int],
    numbers: list[float],
    num_classes: int,
    to_x: bool,
    to_y: bool,
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty(x.shape if to_x else (0,), dtype=x.dtype)
    grad_y = torch.empty(y.shape if to_y else (0,), dtype=y.dtype)
    if values.numel():
        total, numbers_of = _settings(tuple(codes), tuple(numbers), num_classes)
        shape, (p, q, u) = _lay_out(values.shape, (x, y, upstream), (codes[1], codes[3], LABELS))
        values, stats = values.contiguous(), stats.contiguous()
        _cpu.backward(
            total,
            shape,
            num_classes,
            _side(p, codes[1], numbers_of[0]),
            _side(q, codes[3], numbers_of[1]),
            values.data_ptr(),
            stats.data_ptr(),
            u[0].data_ptr(),
            u[1],
            grad_x.data_ptr() if to_x else 0,
            grad_y.data_ptr() if to_y else 0,
            torch.get_num_threads(),
        )
    return grad_x, grad_y


_Rows = tuple[Tensor, Sequence[int]]


def _lay_out(batch: torch.Size, sides: Sequence[Tensor], kinds: Sequence[int]) -> tuple[Sequence[int], list[_Rows]]:
    """Batch axes and, for every side, its tensor and its strides along them; copied only where no strides will do.

    A side of kind "labels" has one number a row; it is int64, or the upstream gradient.
    """
    ready = []
    for data, kind in zip(sides, kinds, strict=True):
        one_number = kind == LABELS
        if one_number and not data.is_floating_point():
            data = data.to(torch.int64)
        if data.is_neg() or not (one_number or data.shape[-1] == 1 or data.stride(-1) == 1) or len(batch) > 16:
            data = data.resolve_neg().contiguous()
        ready.append((data, one_number))
    if all(data.is_contiguous() for data, _ in ready):
        return [batch.numel()], [(data, [1 if one_number else data.shape[-1]]) for data, one_number in ready]
    if not batch:
        return [1], [(data, [0]) for data, _ in ready]
    return list(batch), [(data, data.stride()[: len(batch)]) for data, _ in ready]


def _side(rows: _Rows, kind: int, numbers: list[float]) -> tuple[int, int, int, Sequence[int], list[float]]:
    data, strides = rows
    return kind, DTYPES.get(data.dtype, 0), data.data_ptr(), strides, numbers


_library.impl("rows", _rows, "CPU")  # type: ignore[no-untyped-call]
_library.impl("row_gradients", _row_gradients, "CPU")  # type: ignore[no-untyped-call]
