"""How tensors are read as rows of a finite distribution, and how a gradient goes back to each of them.

A side of a comparison is a reading and the tensors that it reads. A reading turns these into `Weights(w, log_w)`,
float64, (..., V), and pulls a divergence's partial derivatives back through that map. It is frozen and hashable and
holds no tensor.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .normalizer import Normalizer, finite_or_zero


class Weights(NamedTuple):
    """Probabilities and their logarithms, -inf where there is no mass."""

    w: Tensor
    log_w: Tensor


def of_probabilities(w: Tensor) -> Weights:
    """Weights of probabilities in float64; the gradient of log w is 0 where there is no mass."""
    zero = w == 0
    return Weights(w, torch.where(zero, -math.inf, torch.log(torch.where(zero, 1.0, w))))


class Partial(NamedTuple):
    """One side's derivatives of a divergence, in the coordinates that readings need.

    dlog    (..., V)  w ∂f/∂w of the canonical sum
    total   (..., 1)  Σ_v dlog over all columns, also those that another chunk, shard or rank holds
    plain   dlog - plain·w is the derivative of the textbook sum, which is what unnormalised coordinates see
    slope   ∂f/∂w of the textbook sum where w = 0 and the other side has mass; 0 where that limit is infinite
    """

    dlog: Tensor
    total: Tensor
    plain: float
    slope: Tensor | float


class Reading(Protocol):
    """A map from tensors to weights, and the way back for derivatives.

    A reading that knows some classes only together says by a method `alone(data)` which it does know: (..., V) bool.
    """

    @property
    def event_dims(self) -> tuple[int | None, ...]:
        """For each tensor, how many trailing axes describe one row; None: all rows share the whole tensor."""
        ...

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        """The distributions that the tensors hold, (..., V) in float64."""
        ...

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Σ_rows upstream · ∂(divergence)/∂x for every tensor x, shaped like it, in float64; None for integers.

        upstream: (..., 1), zero in rows that send nothing back.
        """
        ...


class Side(NamedTuple):
    """What a form yields: tensors, expanded to one batch shape, and how to read them."""

    reading: Reading
    data: tuple[Tensor, ...]

    @property
    def batch_shape(self) -> torch.Size:
        return batch_shape(self.reading, self.data)

    def weights(self) -> Weights:
        return self.reading.weights(self.data)

    def alone(self) -> Tensor | None:
        """(..., V) bool: the classes that are told apart from all others; None: every one."""
        mark = getattr(self.reading, "alone", None)
        found: Tensor | None = None if mark is None else mark(self.data)
        return found


def batch_shape(reading: Reading, data: tuple[Tensor, ...]) -> torch.Size:
    """The axes of the first tensor that count rows."""
    x, dims = data[0], reading.event_dims[0]
    assert dims is not None, "the first tensor of a side has rows"
    return x.shape[: x.dim() - dims]


@dataclass(frozen=True)
class LogitsReading:
    """w = softmax(x / temperature)."""

    temperature: float = 1.0
    event_dims: ClassVar[tuple[int | None, ...]] = (1,)

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        (x,) = data
        wide = x.double()
        # the maximum leaves before the temperature comes, so that no finite row overflows
        top = finite_or_zero(wide.detach().amax(-1, keepdim=True))
        scores = (wide - top) / self.temperature
        log_w = Normalizer.of(scores).log_probs(scores)
        return Weights(torch.exp(log_w), log_w)

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (upstream * ((partial.dlog - weights.w * partial.total) / self.temperature),)


@dataclass(frozen=True)
class LinearReading:
    """w = softmax(s / temperature), s = softcap·tanh(z / softcap) or z itself, z = scale (h Wᵀ + b), of (h, W[, b]).

    All rows share W (V, H) and b (V,). `memory`: bytes that an engine may use for scores; None: its own choice.
    """

    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    memory: int | None = None

    @property
    def event_dims(self) -> tuple[int | None, ...]:
        return (1, None, None) if self.bias else (1, None)

    @property
    def of_scores(self) -> LogitsReading:
        """How `scores` are read."""
        return LogitsReading(self.temperature)

    def scores(self, data: tuple[Tensor, ...]) -> Tensor:
        """s, (..., V) in float64."""
        h, weight, *bias = (x.double() for x in data)
        z = self.scale * torch.nn.functional.linear(h, weight, *bias)
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        return self.of_scores.weights((self.scores(data),))

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        s = self.scores(data)
        (back,) = self.of_scores.pull_back((s,), weights, partial, upstream)
        assert back is not None
        if self.softcap is not None:
            back = back * (1.0 - (s / self.softcap) ** 2)
        back = self.scale * back
        h, weight = data[0].double(), data[1].double()
        rows = back.flatten(0, -2)
        to_weight = rows.T @ h.flatten(0, -2)
        return (back @ weight, to_weight, rows.sum(0)) if self.bias else (back @ weight, to_weight)


@dataclass(frozen=True)
class LogProbsReading:
    """w = exp(x)."""

    event_dims: ClassVar[tuple[int | None, ...]] = (1,)

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        (x,) = data
        log_w = x.double()
        return Weights(torch.exp(log_w), log_w)

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (upstream * (partial.dlog - partial.plain * weights.w),)


@dataclass(frozen=True)
class ProbsReading:
    """w = x."""

    event_dims: ClassVar[tuple[int | None, ...]] = (1,)

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        (x,) = data
        return of_probabilities(x.double())

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        zero = weights.w == 0
        inside = partial.dlog / torch.where(zero, 1.0, weights.w) - partial.plain
        return (upstream * torch.where(zero, partial.slope, inside),)


@dataclass(frozen=True)
class LabelsReading:
    """w_v = 1 - smoothing at the label, and smoothing spread evenly over all V columns or over the other V-1."""

    num_classes: int
    smoothing: float = 0.0
    spread: Literal["all", "others"] = "all"
    event_dims: ClassVar[tuple[int | None, ...]] = (0,)

    @property
    def on_off(self) -> tuple[float, float]:
        """(weight at the label, weight at every other class)."""
        if self.spread == "all":
            off = self.smoothing / self.num_classes
            return 1.0 - self.smoothing + off, off
        return 1.0 - self.smoothing, self.smoothing / max(self.num_classes - 1, 1)

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        (x,) = data
        on, off = self.on_off
        hit = x.unsqueeze(-1) == torch.arange(self.num_classes, device=x.device)
        w = torch.where(hit, _double(on, x), _double(off, x))
        return Weights(w, torch.where(hit, _double(_log(on), x), _double(_log(off), x)))

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (None,)  # class labels are integers


@dataclass(frozen=True)
class TopKReading:
    """w = e^log_p at k classes by id, and of the other V-k: "even" shares of the leftover 1 - Σ w; "renormalize" 0, and
    w is divided by its sum; "bucket" known only together, so that any refinement, even shares, stands for all.

    tensors      ids (..., k), log_p (..., k)
    temperature  w^(1/temperature), normalised; a bucket has none
    """

    num_classes: int
    tail: Literal["bucket", "even", "renormalize"]
    temperature: float = 1.0
    event_dims: ClassVar[tuple[int | None, ...]] = (1, 1)

    def logs(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """log w of the k classes, (..., k), and of each of the others, (..., 1)."""
        x = log_p.double()
        others = self.num_classes - x.shape[-1]
        nothing = torch.full_like(x[..., :1], -math.inf)
        if self.tail == "renormalize":
            # the maximum leaves before the temperature comes, so that no finite row overflows
            scores = (x - finite_or_zero(x.detach().amax(-1, keepdim=True))) / self.temperature
            return Normalizer.of(scores).log_probs(scores), nothing
        left = leftover(x)
        gone = left == 0
        each = nothing if others == 0 else torch.where(gone, -math.inf, _log_each(left, gone, others))
        if self.temperature == 1.0:
            return x, each
        scores, tail = x / self.temperature, each / self.temperature
        z = Normalizer.of(torch.cat([scores, tail + math.log(max(others, 1))], -1))
        return z.log_probs(scores), z.log_probs(tail)

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        ids, log_p = data
        mine, each = self.logs(log_p)
        log_w = each.expand(*each.shape[:-1], self.num_classes).scatter(-1, ids.long(), mine)
        return Weights(torch.exp(log_w), log_w)

    def alone(self, data: tuple[Tensor, ...]) -> Tensor | None:
        """The k classes, of a bucket that holds any others."""
        ids = data[0].long()
        if self.tail != "bucket" or ids.shape[-1] == self.num_classes:
            return None
        none = ids.new_zeros((*ids.shape[:-1], self.num_classes), dtype=torch.bool)
        return none.scatter(-1, ids, torch.ones_like(ids, dtype=torch.bool))

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        ids, log_p = data[0].long(), data[1].double()
        w, dlog = weights.w.gather(-1, ids), partial.dlog.gather(-1, ids)
        if self.tail == "renormalize":
            return None, upstream * ((dlog - w * partial.total) / self.temperature)
        left = leftover(log_p)
        gone = (left == 0) | (ids.shape[-1] == self.num_classes)
        # of the leftover, which the k classes are taken from: nothing flows through one that is 0
        share = torch.where(gone, 0.0, torch.exp(log_p) / torch.where(gone, 1.0, left))
        rest = partial.dlog.scatter(-1, ids, 0.0).sum(-1, keepdim=True)
        if self.temperature == 1.0:
            return None, upstream * (dlog - torch.where(gone, partial.plain * w, 0.0) - share * rest)
        rest = rest - weights.w.scatter(-1, ids, 0.0).sum(-1, keepdim=True) * partial.total
        return None, upstream * ((dlog - w * partial.total - share * rest) / self.temperature)


@dataclass(frozen=True)
class DrawnReading:
    """w = how often a class was drawn, over the number of draws.

    tensors   ids (..., n), which may repeat, and counts (..., n), integers
    """

    num_classes: int
    event_dims: ClassVar[tuple[int | None, ...]] = (1, 1)

    def weights(self, data: tuple[Tensor, ...]) -> Weights:
        ids, counts = data[0], data[1].double()
        shares = counts / counts.sum(-1, keepdim=True)
        return of_probabilities(
            shares.new_zeros((*shares.shape[:-1], self.num_classes)).scatter_add(-1, ids.long(), shares)
        )

    def pull_back(
        self, data: tuple[Tensor, ...], weights: Weights, partial: Partial, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        return None, None  # counts are integers


def leftover(log_p: Tensor) -> Tensor:
    """1 - Σ e^log_p over the last axis, (..., 1), 0 where rounding makes it negative.

    As (1 - largest) - Σ of the others: beside a class that is all but sure it keeps its digits.
    """
    top = log_p.detach().argmax(-1, keepdim=True)
    others = torch.exp(log_p).scatter(-1, top, 0.0).sum(-1, keepdim=True)
    left = -torch.expm1(log_p.gather(-1, top)) - others
    return torch.where(left <= 0, 0.0, left)  # NaN stays


def _log_each(left: Tensor, gone: Tensor, others: int) -> Tensor:
    return torch.log(torch.where(gone, 1.0, left)) - math.log(others)


def _double(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device=like.device)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
