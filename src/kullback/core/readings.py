"""How a tensor is read as rows of a finite distribution, and how a gradient goes back to that tensor.

A reading turns data into `Weights(w, log_w)`, float64, (..., V), and pulls a divergence's partial
derivatives back through that map. It is frozen and hashable and holds no tensor.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .normalizer import Normalizer


class Weights(NamedTuple):
    """Probabilities and their logarithms, -inf where there is no mass."""

    w: Tensor
    log_w: Tensor


class Partial(NamedTuple):
    """One side's derivatives of a divergence, in the two coordinates that readings need.

    dlog    (..., V)  w ∂f/∂w of the canonical sum
    plain   dlog - plain·w is the derivative of the textbook sum, which is what unnormalised coordinates see
    slope   ∂f/∂w of the textbook sum where w = 0 and the other side has mass; 0 where that limit is infinite
    """

    dlog: Tensor
    plain: float
    slope: Tensor | float


class Reading(Protocol):
    """A map from data to weights, and the way back for derivatives."""

    def weights(self, x: Tensor) -> Weights:
        """The distributions that `x` holds, (..., V) in float64."""
        ...

    def pull_back(self, weights: Weights, partial: Partial) -> Tensor:
        """∂(divergence)/∂x, shaped like `x`, in float64."""
        ...


@dataclass(frozen=True)
class LogitsReading:
    """w = softmax(x / temperature)."""

    temperature: float = 1.0

    def weights(self, x: Tensor) -> Weights:
        scores = x.double() / self.temperature
        log_w = Normalizer.of(scores).log_probs(scores)
        return Weights(torch.exp(log_w), log_w)

    def pull_back(self, weights: Weights, partial: Partial) -> Tensor:
        return (partial.dlog - weights.w * partial.dlog.sum(-1, keepdim=True)) / self.temperature


@dataclass(frozen=True)
class LogProbsReading:
    """w = exp(x)."""

    def weights(self, x: Tensor) -> Weights:
        log_w = x.double()
        return Weights(torch.exp(log_w), log_w)

    def pull_back(self, weights: Weights, partial: Partial) -> Tensor:
        return partial.dlog - partial.plain * weights.w


@dataclass(frozen=True)
class ProbsReading:
    """w = x."""

    def weights(self, x: Tensor) -> Weights:
        w = x.double()
        zero = w == 0
        return Weights(w, torch.where(zero, -math.inf, torch.log(torch.where(zero, 1.0, w))))

    def pull_back(self, weights: Weights, partial: Partial) -> Tensor:
        zero = weights.w == 0
        inside = partial.dlog / torch.where(zero, 1.0, weights.w) - partial.plain
        return torch.where(zero, partial.slope, inside)


@dataclass(frozen=True)
class LabelsReading:
    """w_v = 1 - smoothing at the label, and smoothing spread evenly over all V columns or over the other V-1."""

    num_classes: int
    smoothing: float = 0.0
    spread: Literal["all", "others"] = "all"

    @property
    def on_off(self) -> tuple[float, float]:
        """(weight at the label, weight at every other class)."""
        if self.spread == "all":
            off = self.smoothing / self.num_classes
            return 1.0 - self.smoothing + off, off
        return 1.0 - self.smoothing, self.smoothing / max(self.num_classes - 1, 1)

    def weights(self, x: Tensor) -> Weights:
        on, off = self.on_off
        hit = x.unsqueeze(-1) == torch.arange(self.num_classes, device=x.device)
        w = torch.where(hit, _double(on, x), _double(off, x))
        return Weights(w, torch.where(hit, _double(_log(on), x), _double(_log(off), x)))

    def pull_back(self, weights: Weights, partial: Partial) -> Tensor:
        raise AssertionError("class labels are integers and take no gradient")


def _double(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device=like.device)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
