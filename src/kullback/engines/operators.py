"""The operators of the compiled engines, as PyTorch sees them: for `torch.compile`, export and tracing.

Every compiled engine has two operators of the same signatures, which differ in name and in kernels alone. A side is a
list of tensors with the name of its reading and that reading's numbers (a temperature, a smoothing); a sum is its
generator's name and parameter:

    rows            values (...), float64, and the `STATS` numbers a row that backward needs, or none
    row_gradients   each wanted gradient, contiguous and in its tensor's dtype; an empty tensor for the others

They check what they are given, since anyone may call `torch.ops.kullback.rows`. A second derivative goes through the
eager definition.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kullback.core import reduction
from kullback.core.readings import DrawnReading, LinearReading, Side, TopKReading

from .call import DTYPES, STATS, Call, name_of_reading, name_of_sum, reading_of, sum_of

_SIDE = "Tensor[] {0}, str {0}_reading, float[] {0}_numbers"
_ASKED = f"str sum, float parameter, {_SIDE.format('p')}, {_SIDE.format('q')}, SymInt num_classes"
_FLAT = 9  # arguments in _ASKED


def define(
    prefix: str,
    device: tuple[str, ...],
    forward: Callable[[Call, Side, Side, bool], tuple[Tensor, Tensor]],
    backward: Callable[[Call, Side, Side, Tensor, Tensor, Tensor, tuple[bool, ...]], tuple[Tensor, ...]],
    stats: int = STATS,
) -> torch.library.Library:
    """Define `kullback::{prefix}rows` and `kullback::{prefix}row_gradients` with their kernels for `device`s.

    stats: how many numbers a row the forward pass keeps.
    The library must be kept: the operators live as long as it does.
    """
    num_stats = stats
    library = torch.library.Library("kullback", "FRAGMENT")  # type: ignore[no-untyped-call]
    rows_name, gradients_name = f"{prefix}rows", f"{prefix}row_gradients"
    library.define(f"{rows_name}({_ASKED}, bool keep) -> (Tensor, Tensor)")  # type: ignore[no-untyped-call]
    library.define(  # type: ignore[no-untyped-call]
        f"{gradients_name}({_ASKED}, Tensor values, Tensor stats, Tensor upstream, bool[] wanted) -> Tensor[]"
    )

    def rows(*arguments: Any) -> tuple[Tensor, Tensor]:
        call, p, q = _checked(arguments[:_FLAT])
        return forward(call, p, q, arguments[_FLAT])

    def row_gradients(*arguments: Any) -> list[Tensor]:
        call, p, q = _checked(arguments[:_FLAT])
        values, stats, upstream, wanted = arguments[_FLAT:]
        _check_rows(p, values, stats, upstream, wanted, len(p.data) + len(q.data), num_stats)
        return list(backward(call, p, q, values, stats, upstream, tuple(wanted)))

    def fake_rows(*arguments: Any) -> tuple[Tensor, Tensor]:
        x, batch = arguments[2][0], _batch(arguments)
        stats = (*batch, num_stats) if arguments[_FLAT] else (0,)
        return x.new_empty(batch, dtype=torch.float64), x.new_empty(stats, dtype=torch.float64)

    def fake_row_gradients(*arguments: Any) -> list[Tensor]:
        wanted = arguments[-1]
        sides = (*arguments[2], *arguments[5])
        return [x.new_empty(x.shape if want else (0,)) for x, want in zip(sides, wanted, strict=True)]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        p, q = inputs[2], inputs[5]
        ctx.keep, ctx.num_p = inputs[_FLAT], len(p)
        ctx.asked = tuple(None if k in (2, 5) else value for k, value in enumerate(inputs[:_FLAT]))
        ctx.save_for_backward(*p, *q, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        *data, values, stats = ctx.saved_tensors
        wanted = (*ctx.needs_input_grad[2], *ctx.needs_input_grad[5])
        p, q = data[: ctx.num_p], data[ctx.num_p :]
        asked = (*ctx.asked[:2], p, *ctx.asked[3:5], q, *ctx.asked[6:])
        found: list[Tensor | None] = [None] * len(data)
        if upstream is not None and torch.is_grad_enabled():  # create_graph: the eager definition, differentiable again
            total, left, right = _sides(asked)
            found = list(reduction.gradients(total, left, right, values, upstream, wanted))
        elif upstream is not None:
            if not ctx.keep:  # an exported graph did not know that a gradient would be asked for
                stats = getattr(torch.ops.kullback, rows_name)(*asked, True)[1]
            gradients = getattr(torch.ops.kullback, gradients_name)(*asked, values, stats, upstream, list(wanted))
            found = [g if want else None for g, want in zip(gradients, wanted, strict=True)]
        empty: list[Any] = [None] * (_FLAT + 1)
        empty[2], empty[5] = found[: ctx.num_p], found[ctx.num_p :]
        for k in (4, 7):  # PyTorch takes an empty list of numbers for one of tensors
            empty[k] = None if ctx.asked[k] else []
        return tuple(empty)

    for key in device:
        library.impl(rows_name, rows, key)  # type: ignore[no-untyped-call]
        library.impl(gradients_name, row_gradients, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"kullback::{rows_name}", fake_rows, lib=library)
    torch.library.register_fake(f"kullback::{gradients_name}", fake_row_gradients, lib=library)
    torch.library.register_autograd(f"kullback::{rows_name}", differentiate, setup_context=setup_context, lib=library)
    return library


def ask(call: Call, p: Side, q: Side) -> tuple[Any, ...]:
    """A call that compiled engines know, as the operators' first arguments."""
    total, left, right = name_of_sum(call.total), name_of_reading(call.p), name_of_reading(call.q)
    assert total is not None
    assert left is not None
    assert right is not None
    return (
        total.name, total.number, list(p.data), left.name, list(left.numbers), list(q.data), right.name,
        list(right.numbers), call.num_classes,
    )  # fmt: skip


def _sides(asked: Sequence[Any]) -> tuple[Any, Side, Side]:
    total, parameter, p, p_reading, p_numbers, q, q_reading, q_numbers, num_classes = asked
    left, right = reading_of(p_reading, p_numbers, num_classes), reading_of(q_reading, q_numbers, num_classes)
    return sum_of(total, parameter), Side(left, tuple(p)), Side(right, tuple(q))


def _batch(asked: Sequence[Any]) -> torch.Size:
    x: Tensor = asked[2][0]
    return x.shape if asked[3].startswith("labels") else x.shape[:-1]


def _checked(asked: Sequence[Any]) -> tuple[Call, Side, Side]:
    """The call, if the tensors are what it says they are; a RuntimeError or ValueError otherwise."""
    num_classes = asked[-1]
    if num_classes < 1:
        raise RuntimeError(f"kullback: num_classes is {num_classes}, but a distribution has at least one class.")
    total, p, q = _sides(asked)
    for name, side in (("p", p), ("q", q)):
        if len(side.data) != len(side.reading.event_dims):
            raise RuntimeError(f"kullback: {name} has {len(side.data)} tensors, not {len(side.reading.event_dims)}.")
        _check_tensors(name, side, num_classes)
    if p.batch_shape != q.batch_shape:
        raise RuntimeError(f"kullback: p has rows {tuple(p.batch_shape)} but q has {tuple(q.batch_shape)}.")
    dtypes = tuple(x.dtype for side in (p, q) for x in side.data)
    return Call(total, p.reading, q.reading, dtypes, p.data[0].device.type, num_classes), p, q


def _check_tensors(name: str, side: Side, num_classes: int) -> None:
    floats = [x for x, dims in zip(side.data, side.reading.event_dims, strict=True) if dims != 0]
    if isinstance(side.reading, LinearReading):
        hidden, weight, *bias = side.data
        shapes = [tuple(x.shape) for x in side.data]
        fits = hidden.dim() > 0 and weight.shape == (num_classes, hidden.shape[-1])
        if not fits or any(b.shape != (num_classes,) for b in bias):
            raise RuntimeError(f"kullback: {name} has shapes {shapes}, but num_classes is {num_classes}.")
        if len({x.dtype for x in side.data}) > 1:
            raise RuntimeError(f"kullback: {name} has tensors of different dtypes.")
    elif isinstance(side.reading, TopKReading | DrawnReading):
        ids, of_ids = side.data
        if ids.shape != of_ids.shape or ids.dim() == 0 or not ids.shape[-1] >= 1:
            raise RuntimeError(f"kullback: {name} has shapes {tuple(ids.shape)} and {tuple(of_ids.shape)}.")
        if isinstance(side.reading, TopKReading) and ids.shape[-1] > num_classes:
            raise RuntimeError(f"kullback: {name} lists {ids.shape[-1]} classes, but num_classes is {num_classes}.")
        floating = (False, isinstance(side.reading, TopKReading))
        for x, is_floating in zip(side.data, floating, strict=True):
            if x.is_floating_point() != is_floating or x.is_complex() or x.dtype == torch.bool:
                raise RuntimeError(f"kullback: {name} has dtype {x.dtype}, which its reading does not take.")
            if is_floating and x.dtype not in DTYPES:
                raise RuntimeError(f"kullback: {name} has dtype {x.dtype}, which has no kernel.")
        return
    else:
        for x in floats:
            if x.dim() == 0 or x.shape[-1] != num_classes:
                raise RuntimeError(f"kullback: {name} has shape {tuple(x.shape)}, but num_classes is {num_classes}.")
    for x, dims in zip(side.data, side.reading.event_dims, strict=True):
        if x.is_floating_point() == (dims == 0) or x.is_complex() or x.dtype == torch.bool:
            raise RuntimeError(f"kullback: {name} has dtype {x.dtype}, which its reading does not take.")
        if dims != 0 and x.dtype not in DTYPES:
            raise RuntimeError(f"kullback: {name} has dtype {x.dtype}, which has no kernel.")


def _check_rows(
    p: Side, values: Tensor, stats: Tensor, upstream: Tensor, wanted: Sequence[bool], tensors: int, num_stats: int
) -> None:
    batch = tuple(p.batch_shape)
    given = (("values", values, batch), ("stats", stats, (*batch, num_stats)), ("upstream", upstream, batch))
    for name, x, shape in given:
        if tuple(x.shape) != shape or x.dtype != torch.float64:
            raise RuntimeError(
                f"kullback: {name} has shape {tuple(x.shape)} and dtype {x.dtype}, but the forward pass gave "
                f"{shape} in float64 (call rows with keep=True)."
            )
    if len(wanted) != tensors:
        raise RuntimeError(f"kullback: wanted has {len(wanted)} entries for {tensors} tensors.")
