"""The PyTorch engine: `core` as an autograd function, a block of rows at a time.

Forward saves the inputs and one number per row; backward recomputes. Temporaries are float64 and a block large, never
N·V, so they stay in cache; inside `torch.compile` the whole tensor goes at once and the compiler fuses it. It serves
every sum and every reading, of any number of tensors.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kullback.core import reduction
from kullback.core.readings import Side

from .call import Call, Cost, Rows

NAME = "eager"
BLOCK_CELLS = 1 << 17
_TENSORS = 6  # of both sides together: an autograd function that Dynamo traces has a fixed number of arguments
_TEMPORARIES = 32  # float64 values per cell alive at once: at most 29 measured (js, forward)


def why_not(call: Call) -> str | None:
    """None: it serves everything."""
    return None


def cost(call: Call, p: Side, q: Side) -> Cost:
    """A block of temporaries."""
    num_rows = p.batch_shape.numel()
    rows_at_once = min(block_rows(call.num_classes), max(num_rows, 1))
    return Cost(
        _TEMPORARIES * 8 * rows_at_once * call.num_classes,
        8 * num_rows,
        f"PyTorch, {rows_at_once} of {num_rows} rows at a time (inside torch.compile: all, fused)",
        "float64",
    )


def block_rows(num_classes: int) -> int:
    """How many rows go together."""
    return max(1, BLOCK_CELLS // max(num_classes, 1))


def prepare(call: Call) -> Rows:
    """Nothing is to be prepared."""
    return partial(rows, call)


def rows(call: Call, p: Side, q: Side, factor: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """factor · value of every row, in a dtype; differentiable twice. Both sides share their batch shape."""
    function = _Rows if torch.compiler.is_compiling() else _RowsBothModes
    data = (*p.data, *q.data)
    padded = (*data, *(None,) * (_TENSORS - len(data)))
    values: Tensor = function.apply(*padded, call, len(p.data))  # type: ignore[no-untyped-call]
    return (values if factor == 1.0 else factor * values).to(dtype)


def gradients(
    call: Call, p: Side, q: Side, value: Tensor, upstream: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """`reduction.gradients`, a block of rows at a time."""
    cut = blocks(call.num_classes, p, q, value, upstream)
    parts = [reduction.gradients(call.total, *sides, v, g, tuple(wanted)) for sides, (v, g) in cut]
    dims = (*p.reading.event_dims, *q.reading.event_dims)
    pairs = zip(zip(*parts, strict=True), (*p.data, *q.data), dims, strict=True)
    return tuple(joined(part, x, shared is None) for part, x, shared in pairs)


def traced_rows(call: Call, p: Side, q: Side) -> Tensor:
    """The value of every row in float64."""
    return rows(call, p, q)


def _sides(call: Call, num_p: int, padded: Sequence[Tensor | None]) -> tuple[Side, Side]:
    data = tuple(x for x in padded if x is not None)
    return Side(call.p, data[:num_p]), Side(call.q, data[num_p:])


class _Rows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        a: Tensor | None,
        b: Tensor | None,
        c: Tensor | None,
        d: Tensor | None,
        e: Tensor | None,
        f: Tensor | None,
        call: Call,
        num_p: int,
    ) -> Tensor:
        p, q = _sides(call, num_p, (a, b, c, d, e, f))
        if torch.compiler.is_compiling():
            return reduction.rows(call.total, p, q)
        parts = [reduction.rows(call.total, *sides) for sides, _ in blocks(call.num_classes, p, q)]
        return (torch.cat(parts) if len(parts) != 1 else parts[0]).reshape(p.batch_shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *padded, ctx.call, ctx.num_p = inputs
        data = [x for x in padded if x is not None]
        ctx.save_for_backward(*data, output)
        ctx.save_for_forward(*data, output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        *data, value = ctx.saved_tensors
        total, none = ctx.call.total, (None,) * (_TENSORS + 2 - len(data))
        wanted = ctx.needs_input_grad[: len(data)]
        p, q = _sides(ctx.call, ctx.num_p, data)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # create_graph: keep it differentiable
            return *reduction.gradients(total, p, q, value, upstream, wanted), *none
        return *gradients(ctx.call, p, q, value, upstream, wanted), *none


class _RowsBothModes(_Rows):
    """With forward mode as well, for `torch.func.jvp` and `hessian`; Dynamo traces no function that has it."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        *data, value = ctx.saved_tensors
        moving = tuple(tangent is not None for tangent in tangents[: len(data)])
        p, q = _sides(ctx.call, ctx.num_p, data)
        if any(dims is None for dims in (*p.reading.event_dims, *q.reading.event_dims)):
            raise NotImplementedError("forward mode needs readings whose tensors all have rows")
        slopes = reduction.gradients(ctx.call.total, p, q, value, torch.ones_like(value), moving)
        change = torch.zeros_like(value)
        for slope, tangent in zip(slopes, tangents, strict=False):
            if slope is not None and tangent is not None:
                moved = slope.double() * tangent.double()
                change = change + moved.reshape(*value.shape, -1).sum(-1)
        return change


def blocks(
    num_classes: int, p: Side, q: Side, *numbers: Tensor
) -> Iterator[tuple[tuple[Side, Side], tuple[Tensor, ...]]]:
    """Both sides and some numbers per row, block by block of rows; tensors that all rows share go along whole."""
    flat = [_flat(side) for side in (p, q)]
    per_row = [x.reshape(-1) for x in numbers]
    count, step = p.batch_shape.numel(), block_rows(num_classes)
    for start in range(0, max(count, 1), step):
        cut = slice(start, start + step)
        sides = tuple(
            Side(side.reading, tuple(x if whole else x[cut] for x, whole in data))
            for side, data in zip((p, q), flat, strict=True)
        )
        yield (sides[0], sides[1]), tuple(x[cut] for x in per_row)


def _flat(side: Side) -> list[tuple[Tensor, bool]]:
    """Every tensor with one axis of rows, and whether all rows share it instead."""
    found = []
    for x, dims in zip(side.data, side.reading.event_dims, strict=True):
        event = x.shape[x.dim() - (dims or 0) :]
        found.append((x, True) if dims is None else (x.reshape(side.batch_shape.numel(), *event), False))
    return found


def joined(parts: tuple[Tensor | None, ...], x: Tensor, shared: bool) -> Tensor | None:
    """The gradient to a tensor from those of blocks: side by side, or added up where all rows share it."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    return torch.stack(found).sum(0) if shared else torch.cat(found).reshape(x.shape)
