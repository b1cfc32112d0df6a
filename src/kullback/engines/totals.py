"""Σ over terms and rows of weight · divergence: one number with its gradients, in one pass where an engine can.

Weights are known before the forward pass, so that an engine may make gradients in it, reads a tensor that appears in
several terms once, and skips rows of weight 0. Where none can (another engine, a transform, a tracer, a divergence
that is no sum), every term's rows are measured, weighted and added: the same value, in more passes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core.readings import Side
from kullback.divergences import Divergence

from . import choice, cpu


class Weighed(NamedTuple):
    """One term: Σ_rows weights · divergence(p‖q); both sides and the weights share their batch shape."""

    divergence: Divergence
    p: Side
    q: Side
    weights: Tensor | float
    """float64 without a gradient, of the batch shape; or one number for every row."""


def total(
    terms: Sequence[Weighed], num_classes: int, out: Sequence[tuple[Tensor, Tensor]] = ()
) -> tuple[Tensor, Tensor]:
    """The sum of all terms, differentiable, and each term's own, (K,) and without gradient; float32 or float64.

    out: (tensor, buffer) pairs: the gradient of the sum to this tensor is written into this buffer.
    """
    parts = _served(terms, num_classes)
    if parts is None:
        if out:
            raise NotImplementedError("a buffer for a gradient needs terms that the C++ engine serves in one pass")
        values = torch.stack([_weighted(term, num_classes) for term in terms])
        return values.sum(), values.detach()
    floats = {id(x): x for part in parts for x in (part.x, part.y) if x.is_floating_point()}
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in floats.values()) else torch.float32
    buffers = {id(x): buffer for x, buffer in out}
    wanted = [x for x in floats.values() if id(x) in buffers or (x.requires_grad and torch.is_grad_enabled())]
    if not wanted:
        sums = cpu.total(parts, (), ()).to(dtype)
        return sums.sum(), sums
    result: tuple[Tensor, Tensor] = _Total.apply(_Work(parts, terms, num_classes, buffers, dtype), *wanted)  # type: ignore[no-untyped-call]
    return result


def _served(terms: Sequence[Weighed], num_classes: int) -> list[cpu.Part] | None:
    """The terms as the C++ engine takes them, or None where it does not."""
    if len(terms) > cpu.MAX_TERMS or torch.compiler.is_compiling() or choice.traced():
        return None
    parts = []
    for term in terms:
        if len(term.p.data) != 1 or len(term.q.data) != 1 or not choice.ordinary((*term.p.data, *term.q.data)):
            return None
        decision = choice.kept_decision(term.divergence, term.p, term.q, num_classes)
        served = decision.prepared[0]
        if decision.factor is None or not isinstance(served, cpu.Served):
            return None
        parts.append(cpu.Part(served, term.p.data[0], term.q.data[0], _scaled(term.weights, decision.factor)))
    return parts


def _scaled(weights: Tensor | float, factor: float) -> Tensor:
    if isinstance(weights, Tensor):
        return weights if factor == 1.0 else factor * weights
    return torch.tensor(factor * weights, dtype=torch.float64)


def _weighted(term: Weighed, num_classes: int) -> Tensor:
    """One term through its rows; a row of weight 0 counts for nothing, whatever it holds."""
    rows, weights = choice.measure(term.divergence, term.p, term.q, num_classes), term.weights
    if isinstance(weights, Tensor):
        kept = torch.where(weights != 0, rows, 0.0)
        return (kept * weights.to(rows.dtype)).sum()
    return rows.sum() * weights if weights != 0.0 else torch.where(torch.zeros_like(rows) > 0, rows, 0.0).sum()


class _Work:
    """What one total is made of."""

    __slots__ = ("buffers", "dtype", "num_classes", "parts", "terms")

    def __init__(
        self,
        parts: list[cpu.Part],
        terms: Sequence[Weighed],
        num_classes: int,
        buffers: dict[int, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.parts, self.terms, self.num_classes, self.buffers, self.dtype = parts, terms, num_classes, buffers, dtype

    def forward(self, wanted: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        out = [self.buffers.get(id(x)) for x in wanted]
        made = [torch.empty(x.shape, dtype=x.dtype) if to is None else to for x, to in zip(wanted, out, strict=True)]
        return cpu.total(self.parts, wanted, made), made

    def again(self, saved: Sequence[Tensor]) -> Tensor:
        """The sum through the rows, differentiable as often as one likes; `saved` are both sides of every term."""
        pairs = zip(saved[::2], saved[1::2], strict=True)
        terms = [
            term._replace(p=Side(term.p.reading, (x,)), q=Side(term.q.reading, (y,)))
            for term, (x, y) in zip(self.terms, pairs, strict=True)
        ]
        return torch.stack([_weighted(term, self.num_classes) for term in terms]).sum()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, *wanted: Tensor) -> tuple[Tensor, Tensor]:
        values, ctx.made = work.forward(wanted)
        ctx.work = work
        ctx.save_for_backward(*wanted, *(x for part in work.parts for x in (part.x, part.y)))
        sums = values.to(work.dtype)
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        return sums.sum() if len(work.parts) > 1 else sums[0].clone(), sums

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.needs_input_grad) - 1
        if upstream is None:
            return (None,) * (count + 1)
        saved = ctx.saved_tensors
        wanted, sides = saved[:count], saved[count:]
        if torch.is_grad_enabled():  # create_graph: through the rows, whose gradients are differentiable
            value = ctx.work.again(sides)
            return None, *torch.autograd.grad(value, wanted, upstream.to(value.dtype), create_graph=True)
        made, ctx.made = ctx.made, None
        if made is None:  # a second time over the same graph
            _, made = ctx.work.forward(wanted)
        scale = upstream.item()
        if scale != 1.0:
            made = [gradient.mul_(scale) for gradient in made]
        return None, *made
