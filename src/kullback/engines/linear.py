"""Scores that are made of hidden states a chunk of rows at a time, and given to another engine.

A matrix product (`Product`) writes the scores of a chunk into scratch; the other engine reads them as `Logits`; where
a gradient is wanted it overwrites them, and two more products make of it those of hidden states and weight. Every
distinct (hidden, weight, bias) is multiplied once a chunk, however many terms read it, and rows that do not count
reach no product. Weights' gradients that are made in parts add up in float32, unless the memory given forbids it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import reduction
from kullback.core.dtypes import result_dtype
from kullback.core.readings import LinearReading, Reading, Side
from kullback.core.sharded import shard_of

from . import cpu, eager, operators, triton
from .call import Call, Cost, Engine

NAME = "linear"
MEMORY = 256 << 20  # bytes for scores, unless said otherwise
ROWS = 256  # in a chunk, where memory has room: enough for a matrix product to be fast
LEAST = 64  # in a chunk that fast products need
TILE = 4 << 20  # bytes of a product that is added to a sum in float32
HALF = (torch.bfloat16, torch.float16)
Index = slice | Tensor  # of rows

# ---------------------------------------------------------------- readings


def linear_in(reading: Reading) -> LinearReading | None:
    """The linear reading that a reading is, or wraps as its `inner`."""
    if isinstance(reading, LinearReading):
        return reading
    inner = getattr(reading, "inner", None)
    return None if inner is None else linear_in(inner)


def over_scores(reading: Reading) -> Reading:
    """The same reading of scores that have been made: scale and softcap are in them."""
    if isinstance(reading, LinearReading):
        return reading.of_scores
    inner = getattr(reading, "inner", None)
    return reading if inner is None else replace(reading, inner=over_scores(inner))  # type: ignore[type-var]


def flat(call: Call) -> Call | None:
    """The call that is made for every chunk, or None if no side is made of hidden states."""
    if linear_in(call.p) is None and linear_in(call.q) is None:
        return None
    count = len(call.p.event_dims)
    dtypes = (*_flat_dtypes(call.p, call.dtypes[:count]), *_flat_dtypes(call.q, call.dtypes[count:]))
    return replace(call, p=over_scores(call.p), q=over_scores(call.q), dtypes=dtypes)


def _flat_dtypes(reading: Reading, dtypes: tuple[torch.dtype, ...]) -> tuple[torch.dtype, ...]:
    return dtypes if linear_in(reading) is None else dtypes[:1]


# ---------------------------------------------------------------- matrix products


@dataclass(frozen=True, eq=False)
class Product:
    """The scores of hidden states (N, H), and the way back for their gradient."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    origin: tuple[Tensor, ...]
    """hidden, weight and bias as the side holds them."""
    classes: int
    """As many as memory is planned for: those of the weight, or of one rank where ranks share them out evenly. Chunks
    are the same on every rank, for the ranks talk about each."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for sides that may share their scores."""
        return (*map(id, self.origin), self.scale, self.softcap)

    def make(self, rows: Index, scratch: Tensor) -> Tensor:
        """The scores of some rows, in scratch."""
        h = self.hidden[rows]
        z = scratch[: h.shape[0]]
        if self.bias is None:
            torch.mm(h, self.weight.T, out=z)
        else:
            torch.addmm(self.bias, h, self.weight.T, out=z)
        if self.softcap is not None:
            z.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        elif self.scale != 1.0:
            z.mul_(self.scale)
        return z

    def before(self, scores: Tensor, gradient: Tensor) -> Tensor:
        """The gradient to h Wᵀ + b of that to the scores; both are overwritten."""
        if self.softcap is not None:
            gradient.mul_(scores.div_(self.softcap).square_().neg_().add_(1.0))
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def _share(reading: Reading, num_classes: int) -> int:
    shard = shard_of(reading)
    return num_classes if shard is None else shard.share


def products_of(sides: Sequence[Side]) -> list[Product | None]:
    """The product behind each side, one object for all sides that share it."""
    found: dict[tuple[object, ...], Product] = {}
    result: list[Product | None] = []
    for side in sides:
        reading = linear_in(side.reading)
        if reading is None:
            result.append(None)
            continue
        hidden, weight, *bias = side.data
        product = Product(
            hidden.reshape(-1, hidden.shape[-1]),
            weight,
            bias[0] if bias else None,
            reading.scale,
            reading.softcap,
            side.data,
            _share(side.reading, weight.shape[0]),
        )
        result.append(found.setdefault(product.key, product))
    return result


class Gradient:
    """The gradient to one tensor, made in parts; `finish` gives it whole."""

    def __init__(self, like: Tensor, out: Tensor | None, wide: bool) -> None:
        """wide: add what comes in half precision up in float32."""
        self.made = torch.empty_like(like, memory_format=torch.contiguous_format) if out is None else out
        self.begun = False
        half = wide and like.dtype in HALF
        self.sum = torch.zeros(like.shape, dtype=torch.float32, device=like.device) if half else None

    def rows(self, count: int) -> Tensor:
        """(count, ...): all zeros until something is added."""
        if not self.begun:
            self.made.zero_()
            self.begun = True
        return self.made.view(count, -1)

    def add_product(self, g: Tensor, h: Tensor) -> None:
        """Adds gᵀ h, (V, H)."""
        if self.sum is not None:
            step = max(1, TILE // (h.shape[1] * h.element_size()))
            for start in range(0, g.shape[1], step):
                self.sum[start : start + step].add_(torch.mm(g[:, start : start + step].T, h))
        elif self.begun:
            self.made.addmm_(g.T, h)
        else:
            torch.mm(g.T, h, out=self.made)
        self.begun = True

    def add(self, part: Tensor) -> None:
        """Adds a part of the tensor's own shape, in any dtype."""
        if self.sum is not None:
            self.sum.add_(part)
        elif self.begun:
            self.made.add_(part)
        else:
            self.made.copy_(part)
        self.begun = True

    def finish(self) -> Tensor:
        """The gradient, in the tensor's dtype; zeros where nothing was added."""
        if not self.begun:
            self.made.zero_()
        elif self.sum is not None:
            self.made.copy_(self.sum)
        self.sum = None
        return self.made


# ---------------------------------------------------------------- how many rows go together


class Plan(NamedTuple):
    """chunk   rows whose scores are made and read together
    block   rows whose scores stay, as gradients, until one product makes the weight's gradient of them all
    wide    weights' gradients are added up in float32 beside the half precision that they will have
    bytes   of scratch
    """

    chunk: int
    block: int
    wide: bool
    bytes: int


class Need(NamedTuple):
    """What one product asks of memory.

    scores   bytes of a row's scores
    stays    they stay for a block: a weight's gradient in half precision is to be rounded as rarely as possible
    more     bytes that a row of a chunk takes besides
    sums     bytes of its parameters' gradients in float32, if `stays`
    free     bytes of its weight's gradient, if `stays`: idle until the first block is done
    """

    scores: int
    stays: bool
    more: int
    sums: int
    free: int


def plan(needs: Sequence[Need], others: int, num_rows: int, memory: int | None) -> Plan:
    """The most rows that fit, up to `ROWS` in a chunk; others: bytes that a row of a chunk takes beside the products.

    In half precision a weight's gradient is made by one product of all rows, which rounds once, if their scores fit;
    else by few of blocks as large as fit, and added up in float32. Those sums come on top of the memory for scores
    unless that was given as a number: then they take half of it at most, or are done without.
    """
    room, n = MEMORY if memory is None else memory, max(num_rows, 1)
    stay = sum(need.scores for need in needs if need.stays)
    passing = [need.scores for need in needs if not need.stays]
    rest = others + sum(need.more for need in needs) + sum(passing)
    lent, free = max(passing, default=0), max((need.free for need in needs), default=0)
    if stay and n * stay <= room:
        rows = min(n, ROWS, (room - n * stay) // rest if rest else n)
        over_gradient = (
            min(n, ROWS, free // lent, (room - n * stay) // (rest - lent) if rest > lent else n) if lent else 0
        )
        if max(rows, over_gradient) >= min(n, LEAST):
            borrows = over_gradient > rows
            rows = max(rows, over_gradient)
            return Plan(rows, n, False, n * stay + rows * (rest - lent if borrows else rest))
    sums = sum(need.sums for need in needs)
    wide = stay > 0 and (memory is None or 2 * sums <= memory)
    left = room - sums if wide and memory is not None else room
    rows = max(1, min(n, ROWS, left // (stay + rest)))
    block = max(rows, (left - rows * rest) // stay // rows * rows) if stay else rows
    block = min(block, n)
    wide &= block < n
    return Plan(rows, block, wide, block * stay + rows * rest + (sums if wide else 0))


# ---------------------------------------------------------------- chunk by chunk

Run = Callable[[list[Side], Index, list[Tensor], list[Tensor | None]], Sequence[Tensor]]
"""(sides of a chunk, its rows, tensors among theirs, buffers) -> the gradient to each of these tensors, written into
its buffer unless that is None."""


class Chunks:
    """The sides of a call, or of all terms of a total, to be walked with every distinct product made once a chunk."""

    def __init__(self, sides: Sequence[Side], wanted: Sequence[Tensor], overwrite: bool) -> None:
        """wanted: tensors of sides that get gradients; overwrite: `run` can write those of scores over them."""
        self.sides, self.wanted, self.overwrite = sides, wanted, overwrite
        self.num_rows = sides[0].batch_shape.numel()
        self.products = products_of(sides)
        self.distinct = list({id(p): p for p in self.products if p is not None}.values())
        self.ids = {id(x) for x in wanted}
        self.memory = _least([r.memory for side in sides if (r := linear_in(side.reading)) is not None])

    def plan(self, num_rows: int, gathers: bool) -> Plan:
        """How `num_rows` rows are walked; gathers: they do not lie together."""
        needs = []
        for product in self.distinct:
            row = product.classes * product.weight.element_size()
            sends = self.sends(product)
            apart = row if sends and not (self.overwrite and product.softcap is None) else 0
            sums = sum(4 * product.classes * x.shape[1:].numel() for x in product.origin[1:] if id(x) in self.ids)
            free = row * product.weight.shape[1] if id(product.origin[1]) in self.ids else 0
            stays = self.stays(product)
            needs.append(Need(row, stays, apart, sums if stays else 0, free if stays else 0))
        others = 0
        for side, made in zip(self.sides, self.products, strict=True):
            if made is None:
                for x, dims in zip(side.data, side.reading.event_dims, strict=True):
                    cells = x.shape[x.dim() - dims :].numel() if dims is not None else 0
                    event = (cells if shard_of(side.reading) is None else _share(side.reading, 0)) * x.element_size()
                    others += (event if gathers else 0) + (event if id(x) in self.ids and gathers else 0)
        return plan(needs, others, num_rows, self.memory)

    def sends(self, product: Product) -> bool:
        """Whether any gradient comes from its scores."""
        return any(id(x) in self.ids for x in product.origin)

    def stays(self, product: Product) -> bool:
        """Whether the weight's gradient, in half precision, waits for the rows of a block."""
        return product.weight.dtype in HALF and any(id(x) in self.ids for x in product.origin[1:])

    def walk(self, run: Run, keep: Tensor | None, out: dict[int, Tensor]) -> list[Tensor]:
        """Run every chunk of the rows that count; the gradient to each wanted tensor, into `out` where that has it.

        keep: (N,) bool, or None for all rows.
        """
        kept = None if keep is None or bool(keep.all()) else keep.nonzero().squeeze(-1)
        count = self.num_rows if kept is None else kept.numel()
        how = self.plan(count, kept is not None)
        gradients = {id(x): Gradient(x, out.get(id(x)), how.wide and self._shared(x)) for x in self.wanted}
        scratch = self._scratch(how, count, gradients)
        for block in _cut(0, count, how.block):
            for part in _cut(block.start, block.stop, how.chunk):
                rows: Index = part if kept is None else kept[part]
                self._chunk(run, rows, slice(part.start - block.start, part.stop - block.start), scratch, gradients)
            rows = block if kept is None else kept[block]
            for product in self.distinct:
                if self.stays(product):
                    self._send(product, rows, scratch[id(product)][: block.stop - block.start], gradients)
        return [gradients[id(x)].finish() for x in self.wanted]

    def _shared(self, x: Tensor) -> bool:
        return any(x is parameter for product in self.distinct for parameter in product.origin[1:])

    def _scratch(self, how: Plan, num_rows: int, gradients: dict[int, Gradient]) -> dict[int, Tensor]:
        """A buffer of scores for each product; one whose scores do not stay may lie in a gradient not yet begun."""
        free = None
        for product in self.distinct:
            if not how.wide and how.block >= num_rows and self.stays(product) and id(product.origin[1]) in self.ids:
                free = gradients[id(product.origin[1])].made
        found = {}
        passing = [product for product in self.distinct if not self.stays(product)]
        for product in sorted(self.distinct, key=lambda product: -product.weight.shape[0]):
            like, width = product.weight, product.weight.shape[0]
            size = (how.block if self.stays(product) else how.chunk) * width
            if product in passing and free is not None and free.dtype == like.dtype and free.numel() >= size:
                flat_, free = free.view(-1)[:size], None
            else:
                flat_ = like.new_empty(size)
            found[id(product)] = flat_.view(-1, width)
        return found

    def _chunk(
        self, run: Run, rows: Index, at: slice, scratch: dict[int, Tensor], gradients: dict[int, Gradient]
    ) -> None:
        length = at.stop - at.start
        made: dict[int, Tensor] = {}  # by product
        for product in self.distinct:
            room = scratch[id(product)]
            made[id(product)] = product.make(rows, room[at] if self.stays(product) else room[:length])
        cut: dict[int, Tensor] = {}  # by the tensor that it is cut from
        sides = []
        for side, behind in zip(self.sides, self.products, strict=True):
            if behind is not None:
                sides.append(Side(over_scores(side.reading), (made[id(behind)],)))
                continue
            data = []
            for x, dims in zip(side.data, side.reading.event_dims, strict=True):
                if id(x) not in cut:
                    cut[id(x)] = x if dims is None else _rows_of(x, x.shape[: x.dim() - dims], rows)
                data.append(cut[id(x)])
            sides.append(Side(side.reading, tuple(data)))
        senders = [product for product in self.distinct if self.sends(product)]
        others = [x for x in self.wanted if id(x) in cut]
        leaves = [*(made[id(product)] for product in senders), *(cut[id(x)] for x in others)]
        over = [made[id(p)] if self.overwrite and p.softcap is None else None for p in senders]
        found = run(sides, rows, leaves, [*over, *(None for _ in others)])
        for product, scores, gradient in zip(senders, leaves, found, strict=False):
            gradient = product.before(scores, gradient)
            if not self.stays(product):
                self._send(product, rows, gradient, gradients)
            elif gradient is not scores:
                scores.copy_(gradient)
        for x, gradient in zip(others, found[len(senders) :], strict=True):
            to = gradients[id(x)]
            if cut[id(x)] is x:
                to.add(gradient)
            else:
                to.rows(self.num_rows)[rows] += gradient.reshape(length, -1)

    def _send(self, product: Product, rows: Index, g: Tensor, gradients: dict[int, Gradient]) -> None:
        """From the gradient of a block's scores to those of hidden states, weight and bias."""
        hidden, weight, *bias = product.origin
        if id(hidden) in self.ids:
            gradients[id(hidden)].rows(self.num_rows)[rows] += torch.mm(g, product.weight)
        if id(weight) in self.ids:
            gradients[id(weight)].add_product(g, product.hidden[rows])
        for b in bias:
            if id(b) in self.ids:
                gradients[id(b)].add(g.sum(0, dtype=result_dtype(g.dtype)))


def _rows_of(x: Tensor, batch: torch.Size, rows: Index) -> Tensor:
    """Some rows of a tensor; where they lie so that no view has one axis of them, these alone are copied."""
    try:
        return x.view(batch.numel(), *x.shape[len(batch) :])[rows]
    except RuntimeError:
        numbers = torch.arange(rows.start, rows.stop, device=x.device) if isinstance(rows, slice) else rows
        return x[torch.unravel_index(numbers, batch)]


def _least(given: Sequence[int | None]) -> int | None:
    return min((memory for memory in given if memory is not None), default=None)


def _cut(start: int, stop: int, step: int) -> Iterator[slice]:
    for at in range(start, stop, step):
        yield slice(at, min(at + step, stop))


# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class Linear:
    """The engine: `inner` computes, chunk by chunk, what hidden states are first made into scores for."""

    inner: Engine
    NAME: str = NAME

    def why_not(self, call: Call) -> str | None:
        """Why it cannot serve a call, or None."""
        made = flat(call)
        if made is None:
            return "no side is made of hidden states"
        return self.inner.why_not(made)

    def cost(self, call: Call, p: Side, q: Side) -> Cost:
        """Scratch for scores, and what the inner engine needs for a chunk."""
        made = flat(call)
        assert made is not None
        wanted = [x for side in (p, q) for x in side.data if x.requires_grad]
        chunks = Chunks((p, q), _unique(wanted), False)
        how = chunks.plan(chunks.num_rows, False)
        inner = self.inner.cost(made, _head(p, how.chunk), _head(q, how.chunk))
        sums = ", weights' gradients added up in float32" if how.wide else ""
        stay = f", their gradients kept for {how.block}" if how.block > how.chunk else ""
        return Cost(
            how.bytes + inner.temporary_bytes,
            0,
            f"scores of {how.chunk} of {chunks.num_rows} rows at a time{stay}{sums}; then {self.inner.NAME}: "
            + inner.manner,
            inner.precision,
        )

    def prepare(self, call: Call) -> "Prepared":
        """The inner engine's plan of a chunk."""
        return Prepared(call, self.inner)

    def traced_rows(self, call: Call, p: Side, q: Side) -> Tensor:
        """The value of every row in float64, as an operator that tracers see."""
        values: Tensor = torch.ops.kullback.linear_rows(*operators.ask(call, p, q), False)[0]
        return values


class Prepared:
    """A call, and the inner engine's plan of a chunk of it."""

    __slots__ = ("call", "inner")

    def __init__(self, call: Call, inner: Engine) -> None:
        made = flat(call)
        assert made is not None
        self.call, self.inner = call, inner.prepare(made)

    def __call__(self, p: Side, q: Side, factor: float = 1.0, dtype: torch.dtype = torch.float64, /) -> Tensor:
        """factor · value of every row, in a dtype; differentiable twice. Both sides share their batch shape."""
        result: Tensor = _Rows.apply(self, factor, dtype, len(p.data), *p.data, *q.data)  # type: ignore[no-untyped-call]
        return result

    def forward(self, p: Side, q: Side, factor: float, dtype: torch.dtype) -> Tensor:
        values = torch.empty(p.batch_shape, dtype=dtype, device=p.data[0].device)
        flat_values = values.view(-1)

        def run(sides: list[Side], rows: Index, _: list[Tensor], __: list[Tensor | None]) -> Sequence[Tensor]:
            flat_values[rows] = self.inner(sides[0], sides[1], factor, dtype)
            return ()

        with torch.no_grad():
            Chunks((p, q), (), False).walk(run, None, {})
        return values

    def backward(self, p: Side, q: Side, upstream: Tensor, factor: float, wanted: Sequence[Tensor]) -> list[Tensor]:
        """The gradient to each wanted tensor; rows whose upstream gradient is 0 are not looked at."""
        flat_upstream = upstream.reshape(-1)

        def run(sides: list[Side], rows: Index, leaves: list[Tensor], _: list[Tensor | None]) -> Sequence[Tensor]:
            free = {id(x): x.detach().requires_grad_() for x in leaves}
            p, q = (Side(side.reading, tuple(free.get(id(x), x) for x in side.data)) for side in sides)
            with torch.enable_grad():
                value = self.inner(p, q, factor, upstream.dtype)
            return torch.autograd.grad(value, list(free.values()), flat_upstream[rows])

        with torch.no_grad():
            return Chunks((p, q), wanted, False).walk(run, flat_upstream != 0, {})


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prepared: Prepared, factor: float, dtype: torch.dtype, num_p: int, *data: Tensor) -> Tensor:
        ctx.save_for_backward(*data)
        ctx.asked = prepared, factor, num_p
        call = prepared.call
        return prepared.forward(Side(call.p, data[:num_p]), Side(call.q, data[num_p:]), factor, dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        data, (prepared, factor, num_p) = ctx.saved_tensors, ctx.asked
        call, needs = prepared.call, ctx.needs_input_grad[4:]
        p, q = Side(call.p, data[:num_p]), Side(call.q, data[num_p:])
        if torch.is_grad_enabled():  # create_graph: the eager definition, differentiable again
            with torch.no_grad():
                value = prepared.forward(p, q, 1.0, torch.float64)
            found: Any = reduction.gradients(call.total, p, q, value, factor * upstream.double(), needs)
            return None, None, None, None, *found
        wanted = _unique([x for x, need in zip(data, needs, strict=True) if need])
        gradients = prepared.backward(p, q, upstream, factor, wanted)
        made = {id(x): g for x, g in zip(wanted, gradients, strict=True)}
        return None, None, None, None, *once(data, needs, made)


def once(data: Sequence[Tensor], needs: Sequence[bool], made: dict[int, Tensor]) -> list[Tensor | None]:
    """Each gradient for the first of the places where its tensor stands; autograd adds the others up."""
    return [made.pop(id(x), None) if need else None for x, need in zip(data, needs, strict=True)]


def _unique(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({id(x): x for x in tensors}.values())


def _head(side: Side, rows: int) -> Side:
    """What a chunk's side looks like, without its values."""
    reading = over_scores(side.reading)
    if linear_in(side.reading) is None:
        data = tuple(
            x if dims is None else x.reshape(-1, *x.shape[x.dim() - dims :])[:rows]
            for x, dims in zip(side.data, reading.event_dims, strict=True)
        )
        return Side(reading, data)
    hidden, weight = side.data[:2]
    return Side(reading, (hidden.new_empty((), dtype=hidden.dtype).expand(rows, weight.shape[0]),))


# ---------------------------------------------------------------- as tracers see it


def _engine(call: Call) -> Linear:
    made = flat(call)
    assert made is not None
    engines: tuple[Engine, ...] = (cpu, eager) if call.device == "cpu" else (triton, eager)
    return Linear(next(engine for engine in engines if engine.why_not(made) is None))


def _forward(call: Call, p: Side, q: Side, keep: bool) -> tuple[Tensor, Tensor]:
    values = _engine(call).prepare(call).forward(p, q, 1.0, torch.float64)
    return values, values.new_empty((*values.shape, 0) if keep else 0)


def _backward(
    call: Call, p: Side, q: Side, values: Tensor, stats: Tensor, upstream: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor, ...]:
    data = (*p.data, *q.data)
    asked = _unique([x for x, want in zip(data, wanted, strict=True) if want])
    made = _engine(call).prepare(call).backward(p, q, upstream, 1.0, asked)
    by_tensor = {id(x): g for x, g in zip(asked, made, strict=True)}
    found = once(data, wanted, by_tensor)
    return tuple(
        x.new_zeros(x.shape if want else 0) if g is None else g for g, x, want in zip(found, data, wanted, strict=True)
    )


_library = operators.define("linear_", ("CPU", "CUDA"), _forward, _backward, stats=0)
