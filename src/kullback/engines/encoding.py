"""What a compiled engine's operators take: a sum and two readings as numbers, and what PyTorch asks of the operators.

Every compiled engine has two operators of the same signatures, which differ in name and in kernels alone:

    rows            values (...), float64, and the `STATS` numbers a row that backward needs, or none
    row_gradients   each wanted gradient, contiguous and in its tensor's dtype; an empty tensor for the others

A second derivative goes through the eager definition.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kullback.core import generators, reduction
from kullback.core.generators import Generator
from kullback.core.readings import LabelsReading, LogitsReading, LogProbsReading, ProbsReading, Reading
from kullback.core.reduction import GeneratorSum, LogAffinity, Sum

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
STATS = 6  # per row: (max, log Σ exp, Σ ∂f/∂log w) of p, then of q
BYTES_SAVED_PER_ROW = 8 + 8 * STATS

# the order of csrc/job.hpp, which is that of core/generators.py
FORMULAS = (
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
READINGS = (LogitsReading, LogProbsReading, ProbsReading, LabelsReading)
LABELS = READINGS.index(LabelsReading)


def why_not(part: Sum | Reading) -> str | None:
    """Why no kernel knows this sum or reading, or None."""
    if isinstance(part, LogAffinity) or type(part) in READINGS:
        return None
    if not isinstance(part, GeneratorSum):
        return f"{type(part).__name__} has no kernel"
    generator = part.generator
    if isinstance(generator, (generators.js, generators.alpha)) or any(generator is known for known in FORMULAS):
        return None
    return f"the generator {getattr(generator, '__name__', type(generator).__name__)} has no kernel"


def encode(total: Sum, left: Reading, right: Reading) -> tuple[list[int], list[float]]:
    """A sum and two readings, each of which `why_not` lets pass, as an operator's `codes` and `numbers`."""
    formula, numbers = _encode_sum(total)
    codes = [formula]
    for reading in (left, right):
        codes += [
            READINGS.index(type(reading)),
            int(isinstance(reading, LabelsReading) and reading.spread == "others"),
        ]
        numbers = [*numbers, _number_of(reading)]
    return codes, numbers


def _encode_sum(total: Sum) -> tuple[int, list[float]]:
    if isinstance(total, LogAffinity):
        return FORMULAS.index(LogAffinity), [total.order, *[0.0] * 7]
    assert isinstance(total, GeneratorSum)
    generator, parameter = total.generator, 0.0
    if isinstance(generator, generators.js):
        formula, parameter = FORMULAS.index(generators.js), generator.weight
    elif isinstance(generator, generators.alpha):
        formula, parameter = FORMULAS.index(generators.alpha), generator.order
    else:
        formula = FORMULAS.index(generator)
    edges = [total.at_p_zero, total.at_q_zero, *total.plain, *total.slopes, float(total.log_q_slope)]
    return formula, [parameter, *edges]


def _number_of(reading: Reading) -> float:
    if isinstance(reading, LogitsReading):
        return reading.temperature
    return reading.smoothing if isinstance(reading, LabelsReading) else 0.0


def decode(codes: Sequence[int], numbers: Sequence[float], num_classes: int) -> tuple[Sum, Reading, Reading]:
    """What `encode` was given."""
    parameter, at_p_zero, at_q_zero, plain_p, plain_q, slope_p, slope_q, log_q_slope, of_left, of_right = numbers
    formula = FORMULAS[codes[0]]
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
    if kind == LABELS:
        return LabelsReading(num_classes, number, "others" if spread else "all")
    return LogProbsReading() if kind == 1 else ProbsReading()


# ---------------------------------------------------------------- the operators


def define(prefix: str = "") -> torch.library.Library:
    """Define `kullback::{prefix}rows` and `kullback::{prefix}row_gradients`; the caller adds their kernels.

    The library must be kept: the operators live as long as it does.
    """
    library = torch.library.Library("kullback", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(  # type: ignore[no-untyped-call]
        f"{prefix}rows(Tensor x, Tensor y, int[] codes, float[] numbers, SymInt num_classes, bool keep)"
        " -> (Tensor, Tensor)"
    )
    library.define(  # type: ignore[no-untyped-call]
        f"{prefix}row_gradients(Tensor x, Tensor y, Tensor values, Tensor stats, Tensor upstream, int[] codes, "
        "float[] numbers, SymInt num_classes, bool to_x, bool to_y) -> (Tensor, Tensor)"
    )

    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, y, values, stats = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        to_x: Tensor | None = None
        to_y: Tensor | None = None
        if upstream is not None and torch.is_grad_enabled():  # create_graph: the eager definition, differentiable again
            total, left, right = decode(ctx.codes, ctx.numbers, ctx.num_classes)
            to_x, to_y = reduction.gradients(total, left, right, x, y, values, upstream, wanted)
        elif upstream is not None:
            row_gradients = getattr(torch.ops.kullback, f"{prefix}row_gradients")
            grads = row_gradients(x, y, values, stats, upstream, ctx.codes, ctx.numbers, ctx.num_classes, *wanted)
            to_x, to_y = grads[0] if wanted[0] else None, grads[1] if wanted[1] else None
        return to_x, to_y, None, None, None, None

    torch.library.register_fake(f"kullback::{prefix}rows", _fake_rows, lib=library)
    torch.library.register_fake(f"kullback::{prefix}row_gradients", _fake_row_gradients, lib=library)
    torch.library.register_autograd(f"kullback::{prefix}rows", backward, setup_context=_setup_context, lib=library)
    return library


def _fake_rows(
    x: Tensor, y: Tensor, codes: list[int], numbers: list[float], num_classes: int, keep: bool
) -> tuple[Tensor, Tensor]:
    batch = x.shape if codes[1] == LABELS else x.shape[:-1]
    return x.new_empty(batch, dtype=torch.float64), x.new_empty((*batch, STATS) if keep else (0,), dtype=torch.float64)


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
