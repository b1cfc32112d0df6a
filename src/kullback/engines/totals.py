"""Σ over terms and rows of weight · divergence: one number with its gradients, in one pass where an engine can.

Weights are known before the forward pass, so that gradients are made in it, a tensor that appears in several terms is
read once, and rows of weight 0 are skipped. Where no engine can (a transform, a tracer, a divergence that is no sum),
every term's rows are measured, weighted and added: the same value, in more passes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from kullback.core.dtypes import result_dtype
from kullback.core.readings import Side
from kullback.divergences import Divergence

from . import choice, cpu, linear


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
    work = _work(terms, num_classes)
    if work is None:
        if out:
            raise NotImplementedError("a buffer for a gradient needs terms that one pass of an engine serves")
        values = torch.stack([_weighted(term, num_classes) for term in terms])
        return values.sum(), values.detach()
    floats = {id(x): x for term in terms for x in (*term.p.data, *term.q.data) if x.is_floating_point()}
    dtype = result_dtype(*(x.dtype for x in floats.values()))
    buffers = {id(x): buffer for x, buffer in out}
    wanted = [x for x in floats.values() if id(x) in buffers or (x.requires_grad and torch.is_grad_enabled())]
    if not wanted:
        with torch.no_grad():
            sums = work(1.0, (), ())[0].to(dtype)
        return sums.sum(), sums
    result: tuple[Tensor, Tensor] = _Total.apply(_Asked(work, terms, wanted, num_classes, buffers, dtype), *wanted)  # type: ignore[no-untyped-call]
    return result


def rows(terms: Sequence[Weighed], num_classes: int) -> Tensor:
    """weights · divergence of every row of every term, (K, ...); float32 or float64, 0 where the weight is 0."""
    tensors = [x for term in terms for x in (*term.p.data, *term.q.data)]
    moving = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    work = None if moving else _work(terms, num_classes)
    if work is None:
        return torch.stack([_weighted_rows(term, num_classes) for term in terms])
    batch = terms[0].p.batch_shape
    found = torch.zeros(len(terms), batch.numel(), dtype=torch.float64, device=tensors[0].device)
    with torch.no_grad():
        work(1.0, (), (), found)
    return found.to(result_dtype(*(x.dtype for x in tensors))).reshape(len(terms), *batch)


class _Work(Protocol):
    """Who makes a total in one pass."""

    def __call__(
        self, scale: float, wanted: Sequence[Tensor], out: Sequence[Tensor | None], rows: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Each term's sum, (K,) in float64, and scale · the gradient of all to each wanted tensor, in its buffer.

        rows: (K, number of rows) zeros in float64, for weight · divergence of each row.
        """
        ...


def _work(terms: Sequence[Weighed], num_classes: int) -> _Work | None:
    if torch.compiler.is_compiling() or choice.traced():
        return None
    sides = [side for term in terms for side in (term.p, term.q)]
    if any(linear.linear_in(side.reading) is not None for side in sides):
        if any(not choice.ordinary(side.data) for side in sides):
            return None
        engines = [choice.kept_decision(term.divergence, term.p, term.q, num_classes) for term in terms]
        if any(e.factor is None for e in engines):
            return None
        return _Chunked(terms, num_classes, all(cpu in (e.engine, getattr(e.engine, "inner", None)) for e in engines))
    parts = _served(terms, num_classes)
    return None if parts is None else _Compiled(parts)


# ---------------------------------------------------------------- whole, by the C++ engine


class _Compiled(NamedTuple):
    parts: list[cpu.Part]

    def __call__(
        self, scale: float, wanted: Sequence[Tensor], out: Sequence[Tensor | None], rows: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        made = [torch.empty(x.shape, dtype=x.dtype) if to is None else to for x, to in zip(wanted, out, strict=True)]
        parts = self.parts if scale == 1.0 else [part._replace(weights=scale * part.weights) for part in self.parts]
        return cpu.total(parts, wanted, made, rows), made


def _served(
    terms: Sequence[Weighed], num_classes: int, wanted: Sequence[Tensor] | None = None
) -> list[cpu.Part] | None:
    """The terms as the C++ engine takes them, or None where it does not; `wanted`: what gets a gradient, if known."""
    moving = None if wanted is None else {id(x) for x in wanted}
    if len(terms) > cpu.MAX_TERMS:
        return None
    parts = []
    for term in terms:
        if not choice.ordinary((*term.p.data, *term.q.data)):
            return None
        decision = choice.kept_decision(term.divergence, term.p, term.q, num_classes)
        served = decision.prepared[0]
        if decision.factor is None or not isinstance(served, cpu.Served):
            return None
        listed = [x for side in (term.p, term.q) if len(side.data) > 1 for x in side.data]
        if any(x.requires_grad if moving is None else id(x) in moving for x in listed):
            return None  # these get their gradient by rows
        parts.append(cpu.Part(served, *cpu.as_read(term.p, term.q), _scaled(term.weights, decision.factor)))
    return parts


def _scaled(weights: Tensor | float, factor: float) -> Tensor:
    if isinstance(weights, Tensor):
        return weights if factor == 1.0 else factor * weights
    return torch.tensor(factor * weights, dtype=torch.float64)


# ---------------------------------------------------------------- chunk by chunk, of hidden states


class _Chunked(NamedTuple):
    terms: Sequence[Weighed]
    num_classes: int
    overwrite: bool

    def __call__(
        self, scale: float, wanted: Sequence[Tensor], out: Sequence[Tensor | None], rows: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        sums = torch.zeros(len(self.terms), dtype=torch.float64, device=self.terms[0].p.data[0].device)
        weights = [_per_row(term.weights) for term in self.terms]

        def run(
            sides: list[Side], at: linear.Index, leaves: list[Tensor], out: list[Tensor | None]
        ) -> Sequence[Tensor]:
            chunk = [
                Weighed(term.divergence, p, q, w[at] if isinstance(w, Tensor) else w)
                for term, p, q, w in zip(self.terms, sides[::2], sides[1::2], weights, strict=True)
            ]
            here = None if rows is None else rows.new_zeros(len(chunk), sides[0].batch_shape.numel())
            values, gradients = _chunk(chunk, self.num_classes, scale, leaves, out, here)
            sums.add_(values)
            if rows is not None:
                rows[:, at] = cast(Tensor, here)
            return gradients

        sides = [side for term in self.terms for side in (term.p, term.q)]
        overwrite = self.overwrite and len({x.dtype == torch.float64 for x in wanted}) <= 1
        buffers = {id(x): to for x, to in zip(wanted, out, strict=True) if to is not None}
        made = linear.Chunks(sides, wanted, overwrite).walk(run, _counted(weights), buffers)
        return sums, made


def _per_row(weights: Tensor | float) -> Tensor | float:
    if isinstance(weights, Tensor):
        return weights.reshape(-1) if weights.dim() else weights.item()
    return weights


def _counted(weights: Sequence[Tensor | float]) -> Tensor | None:
    """The rows that any term counts; None: all."""
    found = None
    for w in weights:
        if isinstance(w, Tensor):
            found = w != 0 if found is None else found | (w != 0)
        elif w != 0.0:
            return None
    return found


def _chunk(
    terms: Sequence[Weighed],
    num_classes: int,
    scale: float,
    wanted: Sequence[Tensor],
    out: Sequence[Tensor | None],
    rows: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Each term's sum over a chunk, (K,), and scale · the gradient of all to each wanted tensor."""
    parts = _served(terms, num_classes, wanted)
    if parts is not None:
        return _Compiled(parts)(scale, wanted, out, rows)
    if rows is not None:
        rows.copy_(torch.stack([_weighted_rows(term, num_classes).reshape(-1) for term in terms]))
        return rows.sum(-1), ()
    free = {id(x): x.detach().requires_grad_() for x in wanted}
    with torch.enable_grad():
        values = torch.stack(
            [
                _weighted(
                    term._replace(
                        p=Side(term.p.reading, tuple(free.get(id(x), x) for x in term.p.data)),
                        q=Side(term.q.reading, tuple(free.get(id(x), x) for x in term.q.data)),
                    ),
                    num_classes,
                ).double()
                for term in terms
            ]
        )
        if not free:
            return values.detach(), ()
        found = torch.autograd.grad(scale * values.sum(), list(free.values()), materialize_grads=True)
    return values.detach(), found


# ---------------------------------------------------------------- by rows


def _weighted(term: Weighed, num_classes: int) -> Tensor:
    """One term through its rows."""
    rows = choice.measure(term.divergence, term.p, term.q, num_classes)
    weights = term.weights
    if not isinstance(weights, Tensor) and weights != 0.0:
        return rows.sum() * weights
    return _counted_rows(rows, weights).sum()


def _weighted_rows(term: Weighed, num_classes: int) -> Tensor:
    return _counted_rows(choice.measure(term.divergence, term.p, term.q, num_classes), term.weights)


def _counted_rows(rows: Tensor, weights: Tensor | float) -> Tensor:
    """A row of weight 0 counts for nothing, whatever it holds."""
    if isinstance(weights, Tensor):
        return torch.where(weights != 0, rows, 0.0) * weights.to(rows.dtype)
    return rows * weights if weights != 0.0 else torch.where(torch.zeros_like(rows) > 0, rows, 0.0)


# ---------------------------------------------------------------- as autograd sees it


class _Asked(NamedTuple):
    """A total, and what is to come of it."""

    work: _Work
    terms: Sequence[Weighed]
    wanted: Sequence[Tensor]
    num_classes: int
    buffers: dict[int, Tensor]
    dtype: torch.dtype

    def values(self) -> Tensor:
        return self.work(1.0, (), ())[0]

    def gradients(self, scale: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        return self.work(scale, self.wanted, [self.buffers.get(id(x)) for x in self.wanted])

    def again(self, saved: Sequence[Tensor]) -> Tensor:
        """The sum through the rows, differentiable as often as one likes; `saved` are both sides of every term."""
        left, terms = list(saved), []
        for term in self.terms:
            p = Side(term.p.reading, tuple(left.pop(0) for _ in term.p.data))
            q = Side(term.q.reading, tuple(left.pop(0) for _ in term.q.data))
            terms.append(term._replace(p=p, q=q))
        return torch.stack([_weighted(term, self.num_classes) for term in terms]).sum()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, asked: _Asked, *wanted: Tensor) -> tuple[Tensor, Tensor]:
        # float16 has no room for 1/(number of rows): such gradients wait for the scale that a loss comes back with
        late = any(x.dtype == torch.float16 for x in wanted) and not asked.buffers
        values, made = (asked.values(), None) if late else asked.gradients()
        ctx.made, ctx.asked = made, asked
        ctx.save_for_backward(*wanted, *(x for term in asked.terms for x in (*term.p.data, *term.q.data)))
        sums = values.to(asked.dtype)
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        return sums.sum() if len(asked.terms) > 1 else sums[0].clone(), sums

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.needs_input_grad) - 1
        if upstream is None:
            return (None,) * (count + 1)
        saved = ctx.saved_tensors
        wanted, sides = saved[:count], saved[count:]
        if torch.is_grad_enabled():  # create_graph: through the rows, whose gradients are differentiable
            value = ctx.asked.again(sides)
            return None, *torch.autograd.grad(value, wanted, upstream.to(value.dtype), create_graph=True)
        made, ctx.made = ctx.made, None
        if made is None:  # a second time over the same graph, or late
            return None, *ctx.asked.gradients(upstream.item())[1]
        if upstream.device.type == "cpu":
            scale: Any = upstream.item()
            if scale == 1.0:
                return None, *made
        else:
            scale = upstream  # never wait for a device
        return None, *(gradient.mul_(scale) for gradient in made)
