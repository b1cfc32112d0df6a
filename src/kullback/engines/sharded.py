"""Rows whose columns lie on several ranks: every rank sums its own, and the sums meet in three small all-reduces.

    stage one    MAX of the maxima, then SUM of Σ exp, of both sides: (2, N) float64 each; none where no side is logits
    stage two    SUM of value, Σ ∂f/∂log p and Σ ∂f/∂log q: (3, N) float64 for each sum of the divergence, and two
                 numbers that tell whether the shards make up the vocabulary; a log affinity needs a MAX of (N,) more.
                 Beside a bucket (5, N): the mass of either side's rest, which every rank adds as one cell
    backward     none: the whole rows' statistics were saved, and every rank writes the gradient of its own columns

The values are the same bits on every rank, and the gradient is that of one loss, whatever the number of ranks. On the
CPU the columns are summed by the C++ engine's stages, elsewhere by `core` in float64, a block of rows at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from kullback._errors import FormError
from kullback.core import coarse, reduction
from kullback.core.normalizer import Normalizer
from kullback.core.readings import LabelsReading, LogitsReading, Reading, Side, Weights
from kullback.core.reduction import GeneratorSum, LogAffinity, Pair, Totals
from kullback.core.sharded import (
    ShardedReading,
    added,
    has_bucket,
    here,
    labels_from,
    largest,
    merged_normalizers,
    normalizer_here,
    process_group,
    shard_of,
    weights_here,
)

from . import cpu, eager
from .call import BYTES_SAVED_PER_ROW, KERNELS, Call, Cost, Rows

NAME = "sharded"
only: str | None = None
"""The one engine that may sum columns, where `engines.use` says so."""


def why_not(call: Call) -> str | None:
    """Why it does not serve a call, or None."""
    return "neither side is Sharded" if shard_of(call.p, call.q) is None else None


def cost(call: Call, p: Side, q: Side) -> Cost:
    """What one sum takes; see `Stages.cost`."""
    return Stages((call,)).cost(p, q)


def prepare(call: Call) -> Rows:
    """The stages of one sum; those of several share their collectives, in `Stages`."""
    return Stages((call,))


def traced_rows(call: Call, p: Side, q: Side) -> Tensor:
    """The value of every row in float64; see `traced`."""
    return traced((call,), p, q)[0]


def traced(calls: tuple[Call, ...], p: Side, q: Side) -> tuple[Tensor, ...]:
    """The value of every row of each sum, in float64; `torch.compile` leaves its graph for it."""
    return _untraced(calls, p, q)


def _untraced(calls: tuple[Call, ...], p: Side, q: Side) -> tuple[Tensor, ...]:
    # Dynamo skips this frame, and is told here to skip those below it
    found: tuple[Tensor, ...] = torch.compiler.disable(lambda: Stages(calls).rows(p, q))()  # type: ignore[no-untyped-call]
    return found


_untraced._torchdynamo_disable = True  # type: ignore[attr-defined]  # torch.compiler.disable, whose import takes seconds


# ---------------------------------------------------------------- the columns here


class Here(Protocol):
    """The columns here of one sum, stage by stage; n rows, float64."""

    def cost(self, p: Side, q: Side) -> Cost:
        """What the stages take."""
        ...

    def normalize(self, p: Side, q: Side) -> tuple[Tensor, Tensor]:
        """(m, Σ exp) of both sides, (2, n) each."""
        ...

    def sums(self, p: Side, q: Side, stats: Tensor) -> Tensor:
        """The state of these columns, (3, n), and beside a bucket the mass of either side's rest, (5, n).

        stats: (n, 2, 3 or more), of which (m, log Σ) are those of whole rows.
        """
        ...

    def gradients(
        self, p: Side, q: Side, values: Tensor, stats: Tensor, upstream: Tensor, factor: float, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """To each tensor of p, then of q."""
        ...


class _Compiled:
    """By the C++ engine."""

    def __init__(self, call: Call) -> None:
        self.call, self.served = call, cpu.Served(call, shard=True)

    def cost(self, p: Side, q: Side) -> Cost:
        return cpu.cost(self.call, p, q)

    def normalize(self, p: Side, q: Side) -> tuple[Tensor, Tensor]:
        return self.served.normalize_shard(p.data[0], q.data[0], p.batch_shape)

    def sums(self, p: Side, q: Side, stats: Tensor) -> Tensor:
        return self.served.sum_shard(p.data[0], q.data[0], p.batch_shape, stats)

    def gradients(
        self, p: Side, q: Side, values: Tensor, stats: Tensor, upstream: Tensor, factor: float, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        (x,), (y,) = p.data, q.data
        return self.served.backward(x, y, values.data_ptr(), stats.data_ptr(), upstream, factor, tuple(wanted))


class _Defined:
    """By `core`, a block of rows at a time; the sides hold readings of these columns."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def cost(self, p: Side, q: Side) -> Cost:
        return eager.cost(self.call, p, q)

    def normalize(self, p: Side, q: Side) -> tuple[Tensor, Tensor]:
        found = [self._normalize(side) for side in (p, q)]
        return torch.stack([m for m, _ in found]), torch.stack([s for _, s in found])

    def _normalize(self, side: Side) -> tuple[Tensor, Tensor]:
        if not isinstance(side.reading, LogitsReading):
            none = torch.zeros(side.batch_shape.numel(), dtype=torch.float64, device=side.data[0].device)
            return none, none
        parts = [normalizer_here(side.reading, one.data) for (one, _), _ in self._blocks(side, side)]
        return torch.cat([m for m, _ in parts]), torch.cat([s for _, s in parts])

    def _blocks(self, p: Side, q: Side, *numbers: Tensor) -> Any:
        return eager.blocks(self.call.num_classes, p, q, *numbers)

    def sums(self, p: Side, q: Side, stats: Tensor) -> Tensor:
        blocks = self._blocks(p, q, *_normalizers(stats))
        return torch.cat([self._state(sides, _pair(sides, found)) for sides, found in blocks], -1)

    def _state(self, sides: tuple[Side, Side], pair: Pair) -> Tensor:
        total, alone = self.call.total, coarse.told_apart(*sides)
        rest: tuple[Tensor, ...] = ()
        if alone is not None:
            seen = [coarse.joined(weights, alone) for weights in pair]
            pair = Pair(*(Weights(w[..., :-1], log_w[..., :-1]) for w, log_w in seen))
            rest = tuple(w[..., -1] for w, _ in seen)
        if not isinstance(total, LogAffinity):
            return torch.stack((*total.of(pair), *rest))
        m, s = (x.squeeze(-1) for x in total.of(pair))
        odd = m.isnan()  # which no maximum would pass on
        return torch.stack((torch.where(odd, -math.inf, m), s, torch.where(odd, math.nan, 0.0), *rest))

    def gradients(
        self, p: Side, q: Side, values: Tensor, stats: Tensor, upstream: Tensor, factor: float, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        numbers = (values, factor * upstream.double().reshape(-1), *stats.flatten(1).unbind(1))
        parts = []
        for sides, given in self._blocks(p, q, *numbers):
            silent = reduction.silenced_rows(*given[:2])
            value, back, *flat = (torch.where(silent, 0.0, x) for x in given)
            (m_p, log_p, x_p, *rest_p), (m_q, log_q, x_q, *rest_q) = flat[: len(flat) // 2], flat[len(flat) // 2 :]
            quiet = reduction.silenced(sides[0], silent), reduction.silenced(sides[1], silent)
            fine = pair = _pair(quiet, (m_p, log_p, m_q, log_q))
            alone = coarse.told_apart(*quiet)
            if alone is not None:
                rests = _rest(rest_p[0]), _rest(rest_q[0])
                pair = Pair(*(_with_rest(coarse.joined(w, alone), rest) for w, rest in zip(fine, rests, strict=True)))
            total = self.call.total
            state: Any = Totals(value, x_p, x_q)
            if isinstance(total, LogAffinity):
                state = Normalizer(value.unsqueeze(-1), torch.ones_like(value).unsqueeze(-1))
            parts.append(reduction.pull_back(total, quiet, pair, state, back, tuple(wanted), fine, alone))
        data = (*p.data, *q.data)
        return tuple(eager.joined(part, x, False) for part, x in zip(zip(*parts, strict=True), data, strict=True))


def _normalizers(stats: Tensor) -> tuple[Tensor, ...]:
    """(m, log Σ) of p, then of q, of every row."""
    return stats[:, 0, 0], stats[:, 0, 1], stats[:, 1, 0], stats[:, 1, 1]


def _pair(sides: Sequence[Side], found: Sequence[Tensor]) -> Pair:
    (p, q), (m_p, log_p, m_q, log_q) = sides, found
    return Pair(weights_here(p.reading, p.data, m_p, log_p), weights_here(q.reading, q.data, m_q, log_q))


def _rest(mass: Tensor) -> Weights:
    """A cell of this mass, (n, 1)."""
    w = mass.unsqueeze(-1)
    return Weights(w, torch.log(w))


def _with_rest(seen: Weights, rest: Weights) -> Weights:
    """The cells with the rest of whole rows in the place of that of the columns here."""
    return Weights(*(torch.cat([x[..., :-1], y], -1) for x, y in zip(seen, rest, strict=True)))


def _inner(reading: Reading) -> Reading:
    return reading.inner if isinstance(reading, ShardedReading) else reading


# ---------------------------------------------------------------- the stages of a divergence

_LAYOUT = 2  # numbers about the shards that go with stage two


class Stages:
    """The sums of a divergence over two sides, of which one at least is sharded."""

    def __init__(self, calls: tuple[Call, ...]) -> None:
        shard = shard_of(calls[0].p, calls[0].q)
        assert shard is not None
        self.calls, self.shard = calls, shard
        for call in calls:
            _check_known(call)
        local = [replace(call, p=_inner(call.p), q=_inner(call.q), num_classes=shard.width) for call in calls]
        self.compiled = (
            only in (None, cpu.NAME)
            and shard.width > 0
            and all(type(reading) in KERNELS for reading in (local[0].p, local[0].q))
            and all(cpu.why_not(call) is None for call in local)
        )
        self.here: list[Here] = [_Compiled(call) if self.compiled else _Defined(call) for call in local]
        self.affinities = [isinstance(call.total, LogAffinity) for call in calls]
        scales = [1.0 / r.temperature if isinstance(r, LogitsReading) else None for r in (local[0].p, local[0].q)]
        self.scales = None if scales == [None, None] else [s or 1.0 for s in scales]
        # a sum that is not flat at p = q asks most of the normalisers
        self.careful = self.here[self.affinities.index(True)] if any(self.affinities) else self.here[0]

    @property
    def collectives(self) -> int:
        """All-reduces of a forward pass."""
        return (0 if self.scales is None else 2) + sum(self.affinities) + 1

    def cost(self, p: Side, q: Side) -> Cost:
        """What summing the columns here takes, and the numbers that meet."""
        shard, n = self.shard, p.batch_shape.numel()
        local = self.here[0].cost(Side(_inner(p.reading), p.data), Side(_inner(q.reading), q.data))
        normalizers = 0 if self.scales is None else 4
        states = 5 if has_bucket(p) or has_bucket(q) else 3
        sent = 8 * (n * (normalizers + sum(self.affinities) + states * len(self.calls)) + _LAYOUT)
        return Cost(
            local.temporary_bytes + sent,
            n * BYTES_SAVED_PER_ROW * len(self.calls),
            f"columns {shard.start} to {shard.start + shard.width} here, {process_group(shard.group).size()} ranks in "
            f"group {shard.group!r}; {self.collectives} all-reduces forward, of {sent} bytes together, none backward; "
            + local.manner,
            local.precision,
        )

    def __call__(self, p: Side, q: Side, factor: float = 1.0, dtype: torch.dtype = torch.float64, /) -> Tensor:
        """factor · value of every row of the one sum, in a dtype. Both sides share their batch shape."""
        return self.rows(p, q, factor, dtype)[0]

    def rows(self, p: Side, q: Side, factor: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """factor · value of every row of each sum; differentiable once."""
        data = (*p.data, *q.data)
        for reading, tensors in ((self.calls[0].p, p.data), (self.calls[0].q, q.data)):
            if not isinstance(reading, ShardedReading) and any(x.requires_grad for x in tensors):
                raise FormError(
                    "Sharded: no gradient flows to the log-probabilities beside a vocabulary that is split over ranks. "
                    "Write TopK(ids, log_probs.detach(), ...)."
                )
        found: tuple[Tensor, ...] = _Rows.apply(self, factor, dtype, len(p.data), *data)  # type: ignore[no-untyped-call]
        return found

    def sides(self, p: tuple[Tensor, ...], q: tuple[Tensor, ...]) -> tuple[Side, Side]:
        """Both sides' columns here."""
        found = []
        for reading, data in ((self.calls[0].p, p), (self.calls[0].q, q)):
            if not isinstance(reading, ShardedReading):
                _check_ids(data[0], self.shard.num_classes)
            if self.compiled and isinstance(reading, LabelsReading):
                found.append(Side(reading, (labels_from(data[0], self.shard.start),)))
            else:
                found.append(here(Side(reading, data), self.shard))
        return found[0], found[1]

    def forward(self, p: Side, q: Side) -> tuple[list[Tensor], list[Tensor]]:
        """The value of every row and (n, 2, 3) statistics, for each sum."""
        n, device, group = p.batch_shape.numel(), p.data[0].device, self.shard.group
        normalizers = torch.zeros((n, 2, 3), dtype=torch.float64, device=device)  # Σ x comes later
        if self.scales is not None:
            m, s = self.careful.normalize(p, q)
            scales = torch.tensor(self.scales, dtype=torch.float64, device=device).unsqueeze(-1)
            m, s = merged_normalizers(m, s, scales, group)
            normalizers[:, :, 0], normalizers[:, :, 1] = m.T, s.T
        states = [here.sums(p, q, normalizers) for here in self.here]
        for state, affinity in zip(states, self.affinities, strict=True):
            if affinity:
                _move(state, largest(state[0].clone(), group))
        sent = torch.cat(
            [_layout(self.shard, device), *(_addends(*one) for one in zip(states, self.affinities, strict=True))]
        )
        found = added(sent, group)
        odd = _check_layout(self.shard, found[:_LAYOUT])
        values, stats = [], []
        for call, state, part in zip(
            self.calls, states, found[_LAYOUT:].view(len(states), len(states[0]), n), strict=True
        ):
            rest, total = part[3:], call.total
            cell = None if len(rest) == 0 else Pair(_rest(rest[0]), _rest(rest[1]))
            if isinstance(total, LogAffinity):
                whole = Normalizer(state[0].unsqueeze(-1), part[1].unsqueeze(-1))
                value = total.value(whole if cell is None else total.merge(whole, total.of(cell))) + part[2]
                orders = torch.tensor((total.order, 1.0 - total.order), dtype=torch.float64, device=device)
                x = orders.unsqueeze(-1).expand(2, n)
            else:
                sums = Totals(*part[:3])
                value, x_p, x_q = sums if cell is None else total.merge(sums, total.of(cell))
                x = torch.stack((x_p, x_q))
            values.append((value if odd is None else value + odd).contiguous())
            kept = (x, rest) if len(rest) else (x,)
            stats.append(torch.cat([normalizers[:, :, :2], *(of_sides.T.unsqueeze(-1) for of_sides in kept)], -1))
        return values, stats


def _check_known(call: Call) -> None:
    """An error for what does not merge over ranks."""
    if not isinstance(call.total, GeneratorSum | LogAffinity):
        raise FormError(
            f"Sharded: {type(call.total).__name__} is a sum of one's own, which nobody can merge over ranks. "
            "Gather the logits, and write Logits(whole)."
        )


def _move(state: Tensor, top: Tensor) -> None:
    """A log affinity's (m, Σ, odd) with Σ at the maximum of all ranks."""
    m, s = state[0], state[1]
    there = (s != 0) & (top.abs() != math.inf)
    state[1] = torch.where(there, s * torch.exp(torch.where(there, m - top, 0.0)), 0.0)
    state[0] = top


def _addends(state: Tensor, affinity: bool) -> Tensor:
    """What of a state adds up over ranks, 3n numbers; a maximum, which is known already, goes as zeros."""
    return torch.cat([torch.zeros_like(state[:1]), state[1:]]).view(-1) if affinity else state.reshape(-1)


def _check_ids(y: Tensor, num_classes: int) -> None:
    """Every rank holds the same ids, so that all say it together."""
    if y.device.type == "cpu" and y.numel() and not (int(y.min()) >= 0 and int(y.max()) < num_classes):
        outside = y[(y < 0) | (y >= num_classes)][0]
        raise IndexError(f"kullback: the class id {int(outside)} is outside of 0 to {num_classes - 1}")


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stages: Stages, factor: float, dtype: torch.dtype, num_p: int, *data: Tensor
    ) -> tuple[Tensor, ...]:
        p, q = stages.sides(data[:num_p], data[num_p:])
        values, stats = stages.forward(p, q)
        ctx.save_for_backward(*data, *values, *stats)
        ctx.asked = stages, factor, num_p
        ctx.set_materialize_grads(False)
        return tuple((factor * value).to(dtype).reshape(p.batch_shape) for value in values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "Sharded: second derivatives (create_graph=True) of a vocabulary that is split over ranks are not "
                "computed. Gather the logits, and write Logits(whole)."
            )
        stages, factor, num_p = ctx.asked
        count = len(ctx.needs_input_grad) - 4
        data, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        values, stats = kept[: len(stages.calls)], kept[len(stages.calls) :]
        p, q = stages.sides(data[:num_p], data[num_p:])
        wanted, found = ctx.needs_input_grad[4:], [None] * count
        for local, value, stat, back in zip(stages.here, values, stats, upstream, strict=True):
            if back is None:
                continue
            made = local.gradients(p, q, value, stat, back, factor, wanted)
            found = [g if sum_ is None else sum_.add_(g) for sum_, g in zip(found, made, strict=True)]
        return None, None, None, None, *found


# ---------------------------------------------------------------- whether the shards make up the vocabulary


def _mark(position: int) -> int:
    """A number below 2^40 that tells a position from all others (SplitMix64), so that sums of them stay exact."""
    x = (position + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return (x ^ x >> 31) >> 24


def _layout(shard: ShardedReading, device: torch.device) -> Tensor:
    """Marks of this shard's end minus its start, which over all ranks leave V's minus 0's, and of V."""
    ends = _mark(shard.start + shard.width) - _mark(shard.start)
    return torch.tensor([ends, _mark(shard.num_classes)], dtype=torch.float64, device=device)


def _check_layout(shard: ShardedReading, found: Tensor) -> Tensor | None:
    """An error on every rank unless the shards are the vocabulary, each class once.

    The numbers came with those that had to be sent anyway. On a GPU, where looking at them would wait for the device,
    they are looked at in the first call alone; later ones give NaN, which is returned to be added to the values.
    """
    ranks = process_group(shard.group).size()
    expected = [_mark(shard.num_classes) - _mark(0), ranks * _mark(shard.num_classes)]
    if found.device.type != "cpu" and shard.place in _looked_at:
        right = (found == torch.tensor(expected, dtype=torch.float64, device=found.device)).all()
        return torch.where(right, 0.0, math.nan)
    if found.tolist() != expected:
        _refuse(shard, ranks, found.device)
    _looked_at.add(shard.place)
    return None


_looked_at: set[tuple[str, int, int, int]] = set()


def _refuse(shard: ShardedReading, ranks: int, device: torch.device) -> None:
    """All ranks come here together, and tell each other what they hold."""
    mine = torch.tensor([shard.start, shard.start + shard.width, shard.num_classes], device=device)
    all_of_them = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(all_of_them, mine, process_group(shard.group))
    rows = [one.tolist() for one in all_of_them]
    held = ", ".join(f"rank {k} {a} to {b} of {v}" for k, (a, b, v) in enumerate(rows))
    width = sum(b - a for a, b, _ in rows)
    raise FormError(
        f"Sharded: the shards are not the vocabulary, each class once: {held} (sizes add up to {width}). "
        "Write num_classes=V, the same on every rank, and start= the number of classes on the ranks before."
    )
