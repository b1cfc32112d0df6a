"""Vocabularies split over ranks: what one rank knows of a row, and how the ranks' parts merge. The specification.

Every rank holds the same rows and some of their columns. `Normalizer.merge` and `Sum.merge` say what becomes of the
parts; here they are one MAX and one SUM over a process group, which give every rank the same bits.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from kullback._errors import FormError

from .normalizer import finite_or_zero
from .readings import LabelsReading, LinearReading, LogitsReading, Partial, Reading, Side, Weights


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
class LabelsHere:
    """The columns [0, width) of class labels that count from a shard's first column: most hit none of them."""

    labels: LabelsReading
    width: int
    event_dims: ClassVar[tuple[int | None, ...]] = (0,)

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        (x,) = data
        hit = x.unsqueeze(-1) == torch.arange(self.width, device=x.device)
        on, off = (torch.tensor(w, dtype=torch.float64, device=x.device) for w in self.labels.on_off)
        w = torch.where(hit, on, off)
        return Weights(w, torch.where(hit, torch.log(on), torch.log(off)))

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (None,)


def shard_of(*readings: Reading) -> ShardedReading | None:
    """The first of the readings that is sharded, or None."""
    return next((reading for reading in readings if isinstance(reading, ShardedReading)), None)


def beside(side: Side, shard: ShardedReading) -> Side:
    """What a side holds of the columns of a shard: class labels are counted from its first."""
    if isinstance(side.reading, LabelsReading):
        return Side(LabelsHere(side.reading, shard.width), (labels_from(side.data[0], shard.start),))
    return side


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
    if not isinstance(side.reading, ShardedReading):
        return beside(side, shard).weights()
    reading, data = side.reading.inner, side.data
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


def process_group(name: str) -> dist.ProcessGroup:
    """The group of a name. Readings hold the name alone, so that no kept decision keeps a group alive."""
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type]
