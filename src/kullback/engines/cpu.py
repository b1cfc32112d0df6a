"""The C++ engine: `core`, transcribed to loops over rows that stay in cache (csrc/), behind a PyTorch operator.

Forward saves three numbers per row and side, (max, log Σ exp, Σ ∂f/∂log w); backward recomputes the terms and writes
each requested gradient once. No temporary is larger than a few blocks per thread. A second derivative goes through the
eager definition. The operator, not the extension, is what PyTorch sees: it has a fake kernel for `torch.compile`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kullback.core import generators, reduction
from kullback.core.generators import Generator
from kullback.core.readings import LabelsReading, LogitsReading, LogProbsReading, ProbsReading, Reading
from kullback.core.reduction import GeneratorSum, LogAffinity, Sum

try:
    from kullback import _cpu
except ImportError as error:  # built without a C++ compiler
    _cpu = None  # type: ignore[assignment]
    ABSENT: str | None = f"the C++ extension kullback._cpu is not installed ({error})"
else:
    ABSENT = None

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
BYTES_SAVED_PER_ROW = 8 + 2 * 3 * 8
BYTES_PER_THREAD = 64 << 10

# the order of csrc/job.hpp, which is that of core/generators.py
_FORMULAS = (
    generators.kl,
    generators.reverse_kl,
    generators.jeffreys,
    generators.js,
    generators.alpha,
    generators.tv,
    generators.squared_hellinger,
    generators.chi2,
    generators.nothing,
    generators.cross_entropy,
    LogAffinity,
)
# An error δ in log Z costs a divergence δ²/2, but a distance δ: these take their normalisers in double. Elsewhere the
# exponentials are single (their sum is double), δ ~ 3e-8 at worst, except in short rows, where double costs nothing.
_DISTANCES = (generators.tv, generators.squared_hellinger)
_EXACT_NORMALIZER_UP_TO = 512

_READINGS = (LogitsReading, LogProbsReading, ProbsReading, LabelsReading)
_SPREADS = ("all", "others")


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
    codes, numbers = _encode(total, left, right)
    keep = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    values: Tensor = torch.ops.kullback.rows(x, y, codes, numbers, num_classes, keep)[0]
    return values


# ---------------------------------------------------------------- sums and readings as the numbers an operator takes


def _encode(total: Sum, left: Reading, right: Reading) -> tuple[list[int], list[float]]:
    formula, numbers = _encode_sum(total)
    codes = [formula]
    for reading in (left, right):
        codes += [
            _READINGS.index(type(reading)),
            int(isinstance(reading, LabelsReading) and reading.spread == "others"),
        ]
        numbers = [*numbers, _number_of(reading)]
    return codes, numbers


def _encode_sum(total: Sum) -> tuple[int, list[float]]:
    if isinstance(total, LogAffinity):
        return _FORMULAS.index(LogAffinity), [total.order, *[0.0] * 7]
    assert isinstance(total, GeneratorSum)
    generator, parameter = total.generator, 0.0
    if isinstance(generator, generators.js):
        formula, parameter = _FORMULAS.index(generators.js), generator.weight
    elif isinstance(generator, generators.alpha):
        formula, parameter = _FORMULAS.index(generators.alpha), generator.order
    else:
        formula = _FORMULAS.index(generator)
    edges = [total.at_p_zero, total.at_q_zero, *total.plain, *total.slopes, float(total.log_q_slope)]
    return formula, [parameter, *edges]


def _number_of(reading: Reading) -> float:
    if isinstance(reading, LogitsReading):
        return reading.temperature
    return reading.smoothing if isinstance(reading, LabelsReading) else 0.0


def _decode(codes: Sequence[int], numbers: Sequence[float], num_classes: int) -> tuple[Sum, Reading, Reading]:
    parameter, at_p_zero, at_q_zero, plain_p, plain_q, slope_p, slope_q, log_q_slope, of_left, of_right = numbers
    formula = _FORMULAS[codes[0]]
    total: Sum
    if formula is LogAffinity:
        total = LogAffinity(parameter)
    else:
        takes_parameter = formula in (generators.js, generators.alpha)
        generator: Generator = formula(parameter) if takes_parameter else formula  # type: ignore[assignment, arg-type]
        total = GeneratorSum(generator, at_p_zero, at_q_zero, (plain_p, plain_q), (slope_p, slope_q), bool(log_q_slope))
    left = _decode_reading(codes[1], codes[2], of_left, num_classes)
    return total, left, _decode_reading(codes[3], codes[4], of_right, num_classes)


def _decode_reading(kind: int, spread: int, number: float, num_classes: int) -> Reading:
    if kind == 0:
        return LogitsReading(number)
    if kind == 3:
        return LabelsReading(num_classes, number, "others" if spread else "all")
    return LogProbsReading() if kind == 1 else ProbsReading()


@lru_cache(maxsize=256)
def _settings(
    codes: tuple[int, ...], numbers: tuple[float, ...], num_classes: int
) -> tuple[tuple[int, bool, list[float]], tuple[list[float], list[float]]]:
    """What the extension needs of a sum and of both readings."""
    _, left, right = _decode(codes, numbers, num_classes)
    exact_normalizer = _FORMULAS[codes[0]] in _DISTANCES or num_classes <= _EXACT_NORMALIZER_UP_TO
    return (codes[0], exact_normalizer, list(numbers[:8])), (_reading_numbers(left), _reading_numbers(right))


def _reading_numbers(reading: Reading) -> list[float]:
    on, off = reading.on_off if isinstance(reading, LabelsReading) else (0.0, 0.0)
    return [1.0 / reading.temperature if isinstance(reading, LogitsReading) else 1.0, on, off]


# ---------------------------------------------------------------- the operators

_library = torch.library.Library("kullback", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "rows(Tensor x, Tensor y, int[] codes, float[] numbers, SymInt num_classes, bool keep) -> (Tensor, Tensor)"
)
_library.define(  # type: ignore[no-untyped-call]
    "row_gradients(Tensor x, Tensor y, Tensor values, Tensor stats, Tensor upstream, int[] codes, float[] numbers, "
    "SymInt num_classes, bool to_x, bool to_y) -> (Tensor, Tensor)"
)

_LABELS = _READINGS.index(LabelsReading)


def _rows(
    x: Tensor, y: Tensor, codes: list[int], numbers: list[float], num_classes: int, keep: bool
) -> tuple[Tensor, Tensor]:
    batch = x.shape if codes[1] == _LABELS else x.shape[:-1]
    values = torch.empty(batch, dtype=torch.float64)
    stats = torch.empty((*batch, 6) if keep else (0,), dtype=torch.float64)
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
        shape, (p, q, u) = _lay_out(values.shape, (x, y, upstream), (codes[1], codes[3], _LABELS))
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
        one_number = kind == _LABELS
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


def _fake_rows(
    x: Tensor, y: Tensor, codes: list[int], numbers: list[float], num_classes: int, keep: bool
) -> tuple[Tensor, Tensor]:
    batch = x.shape if codes[1] == _LABELS else x.shape[:-1]
    return x.new_empty(batch, dtype=torch.float64), x.new_empty((*batch, 6) if keep else (0,), dtype=torch.float64)


def _fake_row_gradients(
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
    return x.new_empty(x.shape if to_x else (0,)), y.new_empty(y.shape if to_y else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, y, ctx.codes, ctx.numbers, ctx.num_classes, _ = inputs
    ctx.save_for_backward(x, y, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, y, values, stats = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    to_x: Tensor | None = None
    to_y: Tensor | None = None
    if upstream is not None and torch.is_grad_enabled():  # create_graph: the eager definition, differentiable again
        total, left, right = _decode(ctx.codes, ctx.numbers, ctx.num_classes)
        to_x, to_y = reduction.gradients(total, left, right, x, y, values, upstream, wanted)
    elif upstream is not None:
        grads = torch.ops.kullback.row_gradients(
            x, y, values, stats, upstream, ctx.codes, ctx.numbers, ctx.num_classes, *wanted
        )
        to_x, to_y = grads[0] if wanted[0] else None, grads[1] if wanted[1] else None
    return to_x, to_y, None, None, None, None


_library.impl("rows", _rows, "CPU")  # type: ignore[no-untyped-call]
_library.impl("row_gradients", _row_gradients, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("kullback::rows", _fake_rows, lib=_library)
torch.library.register_fake("kullback::row_gradients", _fake_row_gradients, lib=_library)
torch.library.register_autograd("kullback::rows", _backward, setup_context=_setup_context, lib=_library)
