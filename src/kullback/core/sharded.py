"""Vocabularies split over ranks: what one rank knows of a row, and how the ranks' parts merge. The specification.

Every rank holds the same rows and some of their columns. `Normalizer.merge` and `Sum.merge` say what becomes of the
parts; here they are one MAX and one SUM over a process group, which give every rank the same bits.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kullback._errors import FormError

from .normalizer import finite_or_zero
from .readings import (
    DrawnReading,
    LabelsReading,
    LinearReading,
    LogitsReading,
    Partial,
    Reading,
    Side,
    TopKReading,
    Weights,
    of_probabilities,
)


@dataclass(frozen=True)
class ShardedReading:
    """Columns [start, start + width) of `num_classes`, as `inner` reads them; other ranks of a process group, which is
    known by its name, hold the rest.
    """

    inner: Reading
    group: str
    num_classes: int
    start: int
    width: int

    @property
    def event_dims(self) -> tuple[int | None, ...]:
        return self.inner.event_dims

    @property
    def place(self) -> tuple[str, int, int, int]:
        """(group, num_classes, start, width): which columns of what these are."""
        return self.group, self.num_classes, self.start, self.width

    @property
    def share(self) -> int:
        """The classes of a rank, were they shared out evenly: the same number on every rank."""
        return -(-self.num_classes // process_group(self.group).size())

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        """Nobody's: an error. `weights_of_columns` has those of the columns here."""
        raise FormError(
            f"Sharded: this needs whole distributions, of which this rank holds columns {self.start} to "
            f"{self.start + self.width} of {self.num_classes}. Gather the logits, and write Logits(whole)."
        )

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        return self.inner.pull_back(data, weights, partial, upstream)


@dataclass(frozen=True)
class Here:
    """The columns of a shard, of a side that says its classes by id: every rank has it whole, and no gradient flows
    to it.
    """

    whole: LabelsReading | TopKReading | DrawnReading
    start: int
    width: int

    @property
    def event_dims(self) -> tuple[int | None, ...]:
        return self.whole.event_dims

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        """(..., width), float64."""
        whole = self.whole
        if isinstance(whole, LabelsReading):
            x = labels_from(data[0], self.start).unsqueeze(-1)
            hit = x == torch.arange(self.width, device=x.device)
            on, off = (torch.tensor(w, dtype=torch.float64, device=x.device) for w in whole.on_off)
            w = torch.where(hit, on, off)
            return Weights(w, torch.where(hit, torch.log(on), torch.log(off)))
        if isinstance(whole, TopKReading):
            mine, each = whole.logs(data[1])
            log_w = self._placed(each, data[0], mine)
            return Weights(torch.exp(log_w), log_w)
        counts = data[1].double()
        shares = counts / counts.sum(-1, keepdim=True)
        none = shares.new_zeros((*shares.shape[:-1], self.width + 1))
        return of_probabilities(none.scatter_add(-1, self._columns(data[0]), shares)[..., :-1])

    def alone(self, data: tuple[Tensor, ...]) -> Tensor | None:
        """The classes here that are told apart from all others; None: every one."""
        ids = data[0]
        if not has_bucket(Side(self.whole, data)):
            return None
        yes = torch.ones_like(ids, dtype=torch.bool)
        return self._placed(torch.zeros_like(yes[..., :1]), ids, yes)

    def _columns(self, ids: Tensor) -> Tensor:
        """The columns of the ids; that of classes elsewhere is one more, behind them."""
        x = ids.long() - self.start
        return torch.where((x >= 0) & (x < self.width), x, self.width)

    def _placed(self, elsewhere: Tensor, ids: Tensor, there: Tensor) -> Tensor:
        columns = elsewhere.expand(*elsewhere.shape[:-1], self.width + 1)
        return columns.scatter(-1, self._columns(ids), there)[..., :-1]

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (None,) * len(self.event_dims)


def shard_of(*readings: Reading) -> ShardedReading | None:
    """The first of the readings that is sharded, or None."""
    return next((reading for reading in readings if isinstance(reading, ShardedReading)), None)


def here(side: Side, shard: ShardedReading) -> Side:
    """A side's columns in a shard."""
    if isinstance(side.reading, ShardedReading):
        return Side(side.reading.inner, side.data)
    assert isinstance(side.reading, LabelsReading | TopKReading | DrawnReading)
    return Side(Here(side.reading, shard.start, shard.width), side.data)


def has_bucket(side: Side) -> bool:
    """Whether it knows some classes only together."""
    reading = side.reading
    return (
        isinstance(reading, TopKReading) and reading.tail == "bucket" and side.data[0].shape[-1] != reading.num_classes
    )


def labels_from(labels: Tensor, start: int) -> Tensor:
    """Labels by global id as labels of a shard, negative or too large where it does not hold them."""
    return labels.long() - start


# ---------------------------------------------------------------- one side's stages


def normalizer_here(reading: LogitsReading, data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(m, Σ exp((x - m) / temperature)) of the columns here, (...) each: (-inf, 0) without mass. NaN is in Σ alone."""
    (x,) = data
    wide = x.double()
    if x.shape[-1] == 0:
        zero = wide.sum(-1)
        return zero - math.inf, zero
    m = torch.where(wide.isnan(), -math.inf, wide).amax(-1)
    below = (wide - finite_or_zero(m).unsqueeze(-1)) / reading.temperature
    return m, torch.exp(below).sum(-1)


def weights_here(reading: Reading, data: tuple[Tensor, ...], m: Tensor, log_sum: Tensor) -> Weights:
    """The columns here, given (m, log Σ) of whole rows, which logits need."""
    if not isinstance(reading, LogitsReading):
        return reading.weights(data)
    (x,) = data
    log_w = (x.double() - m.unsqueeze(-1)) / reading.temperature - log_sum.unsqueeze(-1)
    return Weights(torch.exp(log_w), log_w)


def weights_of_columns(side: Side, shard: ShardedReading) -> Weights:
    """The columns of a shard, (..., width), of whole rows' distributions; all ranks of the group ask together."""
    reading, data = here(side, shard)
    if isinstance(reading, LinearReading):
        data = (reading.scores(data),)
        reading = reading.of_scores
    if not isinstance(reading, LogitsReading):
        return reading.weights(data)
    m, s = normalizer_here(reading, data)
    return weights_here(reading, data, *merged_normalizers(m, s, 1.0 / reading.temperature, shard.group))


# ---------------------------------------------------------------- what the ranks do together


def merged_normalizers(m: Tensor, s: Tensor, scale: Tensor | float, group: str) -> tuple[Tensor, Tensor]:
    """(m, log Σ) of whole rows from the parts of all ranks: a MAX and a SUM. scale: what x - m is multiplied by."""
    top = largest(m.clone(), group)
    moved = torch.where(s == 0, 0.0, s * torch.exp((m - top) * scale))
    return top, torch.where(top.abs() == math.inf, math.nan, torch.log(added(moved, group)))


def largest(x: Tensor, group: str) -> Tensor:
    """The maximum over all ranks, in place."""
    dist.all_reduce(x, dist.ReduceOp.MAX, process_group(group))
    return x


def added(x: Tensor, group: str) -> Tensor:
    """The sum over all ranks, in place."""
    dist.all_reduce(x, dist.ReduceOp.SUM, process_group(group))
    return x


class _Replicated(torch.autograd.Function):
    """A tensor that every rank holds whole and uses for its own columns: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return added(upstream.clone(memory_format=torch.contiguous_format), ctx.group), None


def replicated(x: Tensor, group: str) -> Tensor:
    """`x`, whose gradient is added up over all ranks: one all-reduce in the backward pass."""
    result: Tensor = _Replicated.apply(x, group)  # type: ignore[no-untyped-call]
    return result


def process_group(name: str) -> dist.ProcessGroup:
    """The group of a name. Readings hold the name alone, so that no kept decision keeps a group alive."""
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type]
