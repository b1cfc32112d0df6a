"""The C++ engine: `core`, transcribed to loops over rows that stay in cache (csrc/), behind autograd and an operator.

Forward saves seven numbers per row, its value and, of either side, (max, log Σ exp, Σ ∂f/∂log w); backward recomputes
the terms and writes each requested gradient once. No temporary is larger than a few blocks per thread. A second
derivative goes through the eager definition. Ordinary calls go straight to the extension; whoever traces sees an
operator with a fake kernel instead (`torch.compile`, export, `make_fx`, `jit.trace`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import generators, reduction
from kullback.core.readings import (
    LabelsReading,
    LogitsReading,
    LogProbsReading,
    ProbsReading,
    Reading,
    Side,
    TopKReading,
)
from kullback.core.reduction import GeneratorSum

from . import eager, listed, operators
from .call import BYTES_SAVED_PER_ROW, DTYPES, STATS, Call, Cost, name_of_sum, why_no_kernel
from .listed import LISTED, is_coarse, is_listed

NAME = "cpu"

_LISTED_HEAD = 2  # what a listed row says before its ids
ABSENT: str | None = None
try:
    from kullback import _cpu
except ImportError as error:  # built without a C++ compiler
    _cpu = None  # type: ignore[assignment]
    ABSENT = f"the C++ extension kullback._cpu is not installed ({error})"
else:
    if {*_cpu.formulas()} != {*generators.NAMED, "log_affinity"} or getattr(_cpu, "listed_head", 0) != _LISTED_HEAD:
        ABSENT = "the C++ extension kullback._cpu was built from other sources; install kullback anew"

# Normalisers are single exponentials summed in double, which leaves an error δ in log Z. It costs a canonical sum δ²/2
# where both sides sum to one, but δ where a generator has a corner at p = q, or where the other side comes normalised,
# up to its rounding: then the exponentials are double. So they are in a short row, which has few cells for δ to average
# over, unless both sides are logits, which have most of δ in common near p = q.
SHORT = 512


def instruction_set() -> str:
    """Which build of the kernels this processor runs."""
    return _cpu.instruction_set()


def instruction_sets() -> list[str]:
    """Every build of the kernels that this processor can run, best first."""
    return _cpu.instruction_sets() if ABSENT is None else []


def use_instruction_set(name: str) -> None:
    """Run another build of the kernels from now on; for tests and benchmarks."""
    _cpu.use_instruction_set(name)


def why_not(call: Call) -> str | None:
    """Why the C++ engine cannot serve a call, or None."""
    if ABSENT is not None:
        return ABSENT
    if call.device != "cpu":
        return f"the tensors are on {call.device}"
    return why_no_kernel(call, LISTED) or listed.why_not(call)


def cost(call: Call, p: Side, q: Side) -> Cost:
    """Blocks on each thread's stack, and what is kept of a row between the two stages."""
    threads = torch.get_num_threads()
    kept = max(1 << 20, 8 * call.num_classes + (8 << 10))
    return Cost(
        threads * (kept + (160 << 10)),
        p.batch_shape.numel() * BYTES_SAVED_PER_ROW + sum(_listed_bytes(side) for side in (p, q)),
        f"C++, {instruction_set()}, up to {threads} threads, rows in blocks that stay in cache"
        + (", k + 1 cells in float64" if is_coarse(p.reading) or is_coarse(q.reading) else ""),
        "float32 with float64 normalisers and sums",
    )


# ---------------------------------------------------------------- calls as the extension takes them


class Served:
    """A call with the extension's plan of it. Labels and listed sides get no gradient from it."""

    __slots__ = ("call", "labels", "plan", "whole")

    def __call__(self, p: Side, q: Side, factor: float = 1.0, dtype: torch.dtype = torch.float64, /) -> Tensor:
        """factor · value of every row, in a dtype; differentiable twice. Both sides share their batch shape."""
        x, y = p[1][0], q[1][0]
        if (x.requires_grad or y.requires_grad) and torch.is_grad_enabled():
            result: Tensor = _Rows.apply(x, y, self, factor, dtype)  # type: ignore[no-untyped-call]
            return result
        return self.forward(x, y, factor, dtype, False)[0]

    def __init__(self, call: Call, shard: bool = False) -> None:
        """shard: other ranks hold the rest of every row's columns, and labels may lie outside of those here."""
        total = name_of_sum(call.total)
        x, y = call.dtypes[0], call.dtypes[len(call.p.event_dims)]
        assert total is not None
        in_common = isinstance(call.p, LogitsReading) and call.p == call.q
        given = any(isinstance(r, LogProbsReading | ProbsReading | TopKReading) for r in (call.p, call.q))
        f = call.total.generator if isinstance(call.total, GeneratorSum) else generators.nothing(0.0)
        edges = (f.at_p_zero, f.at_q_zero, *f.plain, *f.slopes, f.log_q_slope)
        exact = f.corner or given or (call.num_classes <= SHORT and not in_common)
        self.call = call
        self.labels = isinstance(call.p, LabelsReading), isinstance(call.q, LabelsReading)
        self.whole = _row_length(call.p, call.num_classes), _row_length(call.q, call.num_classes)
        sides = (_side(call.p, x), _side(call.q, y))
        self.plan = _cpu.Call(total.name, total.number, edges, exact, *sides, call.num_classes, shard)

    def forward(self, x: Tensor, y: Tensor, factor: float, dtype: torch.dtype, keep: bool) -> tuple[Tensor, Tensor]:
        """factor · value in a dtype, and what backward needs: n values, then n times `STATS` numbers."""
        out = torch.empty(x.shape if self.labels[0] else x.shape[:-1], dtype=dtype)
        n = out.numel()
        kept = torch.empty((1 + STATS) * n if keep else 0, dtype=torch.float64)
        if n:
            at = kept.data_ptr() if keep else 0
            shape, (a, a_strides), (b, b_strides) = self._rows(out.shape, x, y)
            self.plan.forward(
                shape, a.data_ptr(), a_strides, b.data_ptr(), b_strides, at, at and at + 8 * n,
                out.data_ptr(), dtype == torch.float64, factor, torch.get_num_threads(),
            )  # fmt: skip
        return out, kept

    def backward(
        self, x: Tensor, y: Tensor, values: int, stats: int, upstream: Tensor, factor: float, wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The wanted gradients, contiguous; `values` and `stats` are addresses of what forward kept."""
        to_x = torch.empty(x.shape, dtype=x.dtype) if wanted[0] else None
        to_y = torch.empty(y.shape, dtype=y.dtype) if wanted[1] else None
        if upstream.numel():
            if upstream.dtype not in (torch.float32, torch.float64) or upstream.is_neg():
                upstream = upstream.double().resolve_neg()
            batch = upstream.shape
            shape, (a, a_strides), (b, b_strides) = self._rows(batch, x, y)
            if len(shape) == 1:
                upstream = upstream if len(batch) == 1 else upstream.reshape(-1)
                u_strides: Sequence[int] = [upstream.stride(0)]
            else:
                u_strides = upstream.stride()
            self.plan.backward(
                shape, a.data_ptr(), a_strides, b.data_ptr(), b_strides, values, stats,
                upstream.data_ptr(), u_strides, upstream.dtype == torch.float64, factor,
                0 if to_x is None else to_x.data_ptr(), 0 if to_y is None else to_y.data_ptr(),
                torch.get_num_threads(),
            )  # fmt: skip
        return to_x, to_y

    def normalize_shard(self, x: Tensor, y: Tensor, batch: torch.Size) -> tuple[Tensor, Tensor]:
        """(m, Σ exp) of the columns here of both sides, (2, n) each."""
        m, s = torch.empty((2, 2, batch.numel()), dtype=torch.float64)
        if m.numel():
            shape, (a, a_strides), (b, b_strides) = self._rows(batch, x, y)
            self.plan.normalize_shard(
                shape, a.data_ptr(), a_strides, b.data_ptr(), b_strides, m.data_ptr(), s.data_ptr(),
                torch.get_num_threads(),
            )  # fmt: skip
        return m, s

    def sum_shard(self, x: Tensor, y: Tensor, batch: torch.Size, stats: Tensor) -> Tensor:
        """The state of the columns here, (3, n), given the normalisers of whole rows."""
        states = torch.empty((3, batch.numel()), dtype=torch.float64)
        if states.numel():
            shape, (a, a_strides), (b, b_strides) = self._rows(batch, x, y)
            self.plan.sum_shard(
                shape, a.data_ptr(), a_strides, b.data_ptr(), b_strides, stats.data_ptr(), states.data_ptr(),
                torch.get_num_threads(),
            )  # fmt: skip
        return states

    def _rows(
        self, batch: torch.Size, x: Tensor, y: Tensor
    ) -> tuple[Sequence[int], tuple[Tensor, Sequence[int]], tuple[Tensor, Sequence[int]]]:
        """Batch axes and, for either side, its tensor and its strides along them; copied only where none will do."""
        x, y = lie(x, self.labels[0], batch), lie(y, self.labels[1], batch)
        if x.is_contiguous() and y.is_contiguous():
            return [batch.numel()], (x, self.whole[0] or [x.shape[-1]]), (y, self.whole[1] or [y.shape[-1]])
        if not batch:
            return [1], (x, [0]), (y, [0])
        dims = len(batch)
        return list(batch), (x, x.stride()[:dims]), (y, y.stride()[:dims])


class Listed(Served):
    """A call of which a side, or both, are listed classes: two tensors, which the extension reads as one."""

    __slots__ = ()

    def __call__(self, p: Side, q: Side, factor: float = 1.0, dtype: torch.dtype = torch.float64, /) -> Tensor:
        """See `Served`."""
        data = (*p.data, *q.data)
        if torch.is_grad_enabled() and any(x.requires_grad for x in data):
            result: Tensor = _ListedRows.apply(self, factor, dtype, len(p.data), *data)  # type: ignore[no-untyped-call]
            return result
        return self.forward(*as_read(p, q), factor, dtype, False)[0]


def as_read(p: Side, q: Side) -> tuple[Tensor, Tensor]:
    """The one tensor of either side that the extension reads."""
    x, y = (listed_rows(side) if is_listed(side.reading) else side.data[0] for side in (p, q))
    return x, y


def listed_rows(side: Side) -> Tensor:
    """Rows of int64: how many, for how many there is room, the ids in ascending order, log w of each, and of each other
    class, or of all others together; the logarithms are float64 in the same eight bytes.
    """
    count, ids, mine, rest = listed.parts(side)
    room = torch.full_like(count, ids.shape[-1])
    return torch.cat([count, room, ids, torch.cat([mine, rest], -1).view(torch.int64)], -1)


def _listed_bytes(side: Side) -> int:
    x = side.data[0]
    return (16 * x.shape[-1] + 24) * side.batch_shape.numel() if is_listed(side.reading) else 0


def _row_length(reading: Reading, num_classes: int) -> list[int]:
    """What a row takes, in elements; nothing where each call has its own."""
    return [] if is_listed(reading) else [1 if isinstance(reading, LabelsReading) else num_classes]


def lie(data: Tensor, labels: bool, batch: torch.Size) -> Tensor:
    """`data` where rows can be found by strides: as it lies, or a copy."""
    if labels and data.dtype != torch.int64:
        data = data.to(torch.int64)
    columns_apart = not labels and data.shape[-1] != 1 and data.stride(-1) != 1
    if columns_apart or data.is_neg() or len(batch) > 16:
        data = data.resolve_neg().contiguous()
    return data


def _side(reading: Reading, dtype: torch.dtype) -> tuple[str, str, float, float, float]:
    if isinstance(reading, LabelsReading):
        return "labels", "", 1.0, *reading.on_off
    if isinstance(reading, LogitsReading):
        return "logits", DTYPES[dtype], reading.temperature, 0.0, 0.0
    if is_listed(reading):
        return "coarse" if is_coarse(reading) else "even", "", 1.0, 0.0, 0.0
    return "log_probs" if isinstance(reading, LogProbsReading) else "probs", DTYPES[dtype], 1.0, 0.0, 0.0


_prepared: dict[Call, Served] = {}


def prepare(call: Call) -> Served:
    """The extension's plan of a call, made once and kept."""
    found = _prepared.get(call)
    if found is None:
        if len(_prepared) > 4096:
            _prepared.clear()
        two = is_listed(call.p) or is_listed(call.q)
        found = _prepared[call] = Listed(call) if two else Served(call)
    return found


# ---------------------------------------------------------------- as autograd and tracers see it


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, served: Served, factor: float, dtype: torch.dtype) -> Tensor:
        out, kept = served.forward(x, y, factor, dtype, True)
        ctx.save_for_backward(x, y, kept)
        ctx.served, ctx.factor = served, factor
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, kept = ctx.saved_tensors
        served, n = ctx.served, upstream.numel()
        if torch.is_grad_enabled():  # create_graph: the eager definition, differentiable again
            p, q = Side(served.call.p, (x,)), Side(served.call.q, (y,))
            values, scaled = kept[:n].reshape(upstream.shape), ctx.factor * upstream.double()
            found = reduction.gradients(served.call.total, p, q, values, scaled, ctx.needs_input_grad[:2])
        else:
            at = kept.data_ptr()
            found = served.backward(x, y, at, at + 8 * n, upstream, ctx.factor, ctx.needs_input_grad)
        return (*found, None, None, None)


class _ListedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, served: Listed, factor: float, dtype: torch.dtype, num_p: int, *data: Tensor) -> Tensor:
        p, q = Side(served.call.p, data[:num_p]), Side(served.call.q, data[num_p:])
        out, kept = served.forward(*as_read(p, q), factor, dtype, True)
        ctx.save_for_backward(*data, kept)
        ctx.served, ctx.factor, ctx.num_p = served, factor, num_p
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        *data, kept = ctx.saved_tensors
        served, n, wanted = ctx.served, upstream.numel(), ctx.needs_input_grad[4:]
        p, q = Side(served.call.p, tuple(data[: ctx.num_p])), Side(served.call.q, tuple(data[ctx.num_p :]))
        values, scaled = kept[:n].reshape(upstream.shape), ctx.factor * upstream.double()
        if torch.is_grad_enabled():  # create_graph: the eager definition, differentiable again
            return None, None, None, None, *reduction.gradients(served.call.total, p, q, values, scaled, wanted)
        return None, None, None, None, *_listed_gradients(served, p, q, values, kept[n:], scaled, wanted)


def _listed_gradients(
    served: Served, p: Side, q: Side, values: Tensor, stats: Tensor, upstream: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The wanted gradients to every tensor: of listed classes, which are few, by the eager definition."""
    x, y = as_read(p, q)
    dense = [not is_listed(side.reading) for side in (p, q)]
    asked = (dense[0] and wanted[0], dense[1] and wanted[len(p.data)])
    found: list[Tensor | None] = [None] * len(wanted)
    if any(asked):
        made = served.backward(x, y, values.data_ptr(), stats.data_ptr(), upstream, 1.0, asked)
        found[0], found[len(p.data)] = made
    left = [want and g is None for want, g in zip(wanted, found, strict=True)]
    if any(left):
        by_core = eager.gradients(served.call, p, q, values, upstream, left)
        found = [g if more is None else more for g, more in zip(found, by_core, strict=True)]
    return found


# ---------------------------------------------------------------- weighted sums over the rows of several terms


class Part(NamedTuple):
    """One term of a total: Σ_rows weights · value; weights in float64, of the batch shape or one number."""

    served: Served
    x: Tensor
    y: Tensor
    weights: Tensor


def total(parts: Sequence[Part], wanted: Sequence[Tensor], out: Sequence[Tensor], rows: Tensor | None = None) -> Tensor:
    """Every part's sum, (K,) in float64; the gradient of their sum to each `wanted` tensor goes to its buffer in `out`,
    weight · divergence of every row to `rows`, (K, number of rows) in float64.

    The parts share their batch shape and number of classes. A row whose weight is 0 is not looked at.
    """
    first, values = parts[0], torch.empty(len(parts), dtype=torch.float64)
    batch = first.x.shape if first.served.labels[0] else first.x.shape[:-1]
    laid = [
        (lie(part.x, part.served.labels[0], batch), lie(part.y, part.served.labels[1], batch), part.weights)
        for part in parts
    ]
    whole = all(x.is_contiguous() and y.is_contiguous() and w.is_contiguous() for x, y, w in laid)
    shape = [batch.numel()] if whole else list(batch) or [1]
    places = {id(x): k for k, x in enumerate(wanted)}
    codes = []
    for part, (x, y, w) in zip(parts, laid, strict=True):
        one_weight = w.dim() == 0
        if whole:
            lengths = (one or [t.shape[-1]] for one, t in zip(part.served.whole, (x, y), strict=True))
            strides = (*lengths, [0] if one_weight else [1])
        else:
            found = [list(t.stride()[: len(batch)]) or [0] for t in (x, y, w)]
            strides = found[0], found[1], [0] * len(shape) if one_weight else found[2]
        codes.append(
            (
                part.served.plan, x.data_ptr(), strides[0], y.data_ptr(), strides[1], w.data_ptr(), strides[2],
                places.get(id(part.x), -1), places.get(id(part.y), -1),
            )
        )  # fmt: skip
    outputs = [(DTYPES[to.dtype], to.data_ptr()) for to in out]
    kept = 0 if rows is None else rows.data_ptr()
    _cpu.total(shape, codes, outputs, values.data_ptr(), torch.get_num_threads(), kept)
    return values


MAX_TERMS = 0 if _cpu is None else _cpu.max_terms


def traced_rows(call: Call, p: Side, q: Side) -> Tensor:
    """The value of every row in float64, as an operator that tracers see."""
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (*p.data, *q.data))
    values: Tensor = torch.ops.kullback.rows(*operators.ask(call, p, q), keep)[0]
    return values


def _forward(call: Call, p: Side, q: Side, keep: bool) -> tuple[Tensor, Tensor]:
    values, kept = prepare(call).forward(*as_read(p, q), 1.0, torch.float64, keep)
    return values, kept[values.numel() :].reshape(*values.shape, STATS).clone() if keep else kept


def _backward(
    call: Call, p: Side, q: Side, values: Tensor, stats: Tensor, upstream: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor, ...]:
    found = _listed_gradients(prepare(call), p, q, values.contiguous(), stats.contiguous(), upstream, wanted)
    return tuple(x.new_empty(0) if g is None else g for g, x in zip(found, (*p.data, *q.data), strict=True))


_library = operators.define("", ("CPU",), _forward, _backward)
