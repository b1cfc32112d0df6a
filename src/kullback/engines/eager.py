"""The PyTorch engine: `core` as an autograd function, a block of rows at a time.

Forward saves the inputs and one number per row; backward recomputes. Temporaries are float64 and a block large, never
N·V, so they stay in cache; inside `torch.compile` the whole tensor goes at once and the compiler fuses it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kullback.core import reduction
from kullback.core.readings import LabelsReading, Reading
from kullback.core.reduction import Sum

BLOCK_CELLS = 1 << 17


def block_rows(num_classes: int) -> int:
    """How many rows go together."""
    return max(1, BLOCK_CELLS // max(num_classes, 1))


def rows(total: Sum, left: Reading, right: Reading, x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """One float64 number per row of x and y, which already share their batch shape; differentiable twice."""
    function = _Rows if torch.compiler.is_compiling() else _RowsBothModes
    result: Tensor = function.apply(x, y, total, left, right, num_classes)  # type: ignore[no-untyped-call]
    return result


class _Rows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, total: Sum, left: Reading, right: Reading, num_classes: int) -> Tensor:
        if torch.compiler.is_compiling():
            return reduction.rows(total, left, right, x, y)
        batch = _batch_shape(x, left)
        blocks = [reduction.rows(total, left, right, a, b) for a, b in _blocks(num_classes, (x, left), (y, right))]
        return torch.cat(blocks).reshape(batch) if len(blocks) != 1 else blocks[0].reshape(batch)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, y, ctx.total, ctx.left, ctx.right, ctx.num_classes = inputs
        ctx.save_for_backward(x, y, output)
        ctx.save_for_forward(x, y, output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, value = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # create_graph: keep it differentiable
            to_x, to_y = reduction.gradients(ctx.total, ctx.left, ctx.right, x, y, value, upstream, wanted)
            return to_x, to_y, None, None, None, None
        sides = _blocks(ctx.num_classes, (x, ctx.left), (y, ctx.right), (value, None), (upstream, None))
        parts = [reduction.gradients(ctx.total, ctx.left, ctx.right, a, b, v, g, wanted) for a, b, v, g in sides]
        to_x, to_y = (torch.cat(side) if side[0] is not None else None for side in zip(*parts, strict=True))
        return (
            None if to_x is None else to_x.reshape(x.shape),
            None if to_y is None else to_y.reshape(y.shape),
            *(None,) * 4,
        )


class _RowsBothModes(_Rows):
    """With forward mode as well, for `torch.func.jvp` and `hessian`; Dynamo traces no function that has it."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, y, value = ctx.saved_tensors
        moving = tangents[0] is not None, tangents[1] is not None
        one = torch.ones_like(value)
        slopes = reduction.gradients(ctx.total, ctx.left, ctx.right, x, y, value, one, moving)
        change = torch.zeros_like(value)
        for slope, tangent in zip(slopes, tangents, strict=False):
            if slope is not None and tangent is not None:
                change = change + (slope.double() * tangent.double()).sum(-1)
        return change


def _batch_shape(x: Tensor, reading: Reading) -> torch.Size:
    return x.shape if isinstance(reading, LabelsReading) else x.shape[:-1]


def _blocks(num_classes: int, *sides: tuple[Tensor, Reading | None]) -> Iterator[tuple[Tensor, ...]]:
    """Rows of every side, block by block; a side without a reading, or of labels, has one number a row."""
    flat = [
        x.reshape(-1) if reading is None or isinstance(reading, LabelsReading) else x.reshape(-1, num_classes)
        for x, reading in sides
    ]
    step = block_rows(num_classes)
    for start in range(0, max(flat[0].shape[0], 1), step):
        yield tuple(x[start : start + step] for x in flat)
