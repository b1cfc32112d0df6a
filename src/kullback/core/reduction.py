"""Stage two: the sum over columns, its derivatives, and the meaning of cells without mass. The specification.

Every engine transcribes `rows` and `gradients`, and is tested against them. All arithmetic is float64.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .generators import Cells, Generator, Terms
from .normalizer import Normalizer
from .readings import Partial, Reading, Weights


class Pair(NamedTuple):
    """Both sides of a comparison, row by row; log weights are -inf where there is no mass."""

    p: Weights
    q: Weights


class Sum(Protocol):
    """A quantity of one number per row with its two partial derivatives."""

    def rows(self, pair: Pair) -> Tensor:
        """The value of every row, (...)."""
        ...

    def partials(self, pair: Pair) -> tuple[Partial, Partial]:
        """The derivatives with respect to p and to q, (..., V)."""
        ...


@dataclass(frozen=True)
class GeneratorSum:
    """Σ_v f(p_v, q_v), f homogeneous of degree one (or, like cross-entropy, with its own edge slope).

    at_p_zero, at_q_zero   f(0, q) / q and f(p, 0) / p, possibly inf: f(0) and f'(∞) of the f-divergence
    plain                  canonical sum = textbook sum + plain[0] Σp + plain[1] Σq
    slopes                 ∂f/∂p at p = 0 < q and ∂f/∂q at q = 0 < p of the textbook sum, 0 for an infinite one
    log_q_slope            ∂f/∂p at p = 0 is -log q instead (cross-entropy is linear in p)
    """

    generator: Generator
    at_p_zero: float
    at_q_zero: float
    plain: tuple[float, float] = (0.0, 0.0)
    slopes: tuple[float, float] = (0.0, 0.0)
    log_q_slope: bool = False

    def _terms(self, pair: Pair) -> Terms:
        (p, log_p), (q, log_q) = pair
        no_p, no_q = _no_mass(pair)
        edge = no_p | no_q
        # the edge's own branch is discarded: p = q = 1 there keeps NaN out of its derivatives too
        inside = self.generator(
            Cells(
                torch.where(edge, 1.0, p),
                torch.where(edge, 1.0, q),
                torch.where(edge, 0.0, log_q - log_p),
                torch.where(edge, 0.0, log_q),
            )
        )
        p_gone, q_gone = _mass_times(self.at_p_zero, q, no_p & ~no_q), _mass_times(self.at_q_zero, p, no_q & ~no_p)
        return Terms(
            torch.where(edge, p_gone + q_gone, inside.value),
            torch.where(edge, _finite_or_zero(q_gone), inside.dlogp),
            torch.where(edge, _finite_or_zero(p_gone), inside.dlogq),
        )

    def rows(self, pair: Pair) -> Tensor:
        return self._terms(pair).value.sum(-1)

    def partials(self, pair: Pair) -> tuple[Partial, Partial]:
        terms = self._terms(pair)
        no_p, no_q = _no_mass(pair)
        slope_p = torch.where(no_q, 0.0, -pair.q.log_w if self.log_q_slope else self.slopes[0])
        slope_q = torch.where(no_p, 0.0, torch.full_like(pair.p.w, self.slopes[1]))
        return Partial(terms.dlogp, self.plain[0], slope_p), Partial(terms.dlogq, self.plain[1], slope_q)


@dataclass(frozen=True)
class LogAffinity:
    """log Σ_v p_v^a q_v^(1-a), in the log domain: right where the sum itself would over- or underflow."""

    order: float

    def _scores(self, pair: Pair) -> Tensor:
        no_p, no_q = _no_mass(pair)
        a = self.order
        p_gone = -math.inf if a >= 0 else math.inf
        q_gone = -math.inf if a <= 1 else math.inf
        edge = torch.where(no_p & no_q, -math.inf, torch.where(no_p, p_gone, q_gone))
        log_p, log_q = torch.where(no_p, 0.0, pair.p.log_w), torch.where(no_q, 0.0, pair.q.log_w)
        return torch.where(no_p | no_q, edge, a * log_p + (1.0 - a) * log_q)

    def rows(self, pair: Pair) -> Tensor:
        m, s = Normalizer.of(self._scores(pair))
        return torch.where(m.abs() == math.inf, m, m + torch.log(s)).squeeze(-1)

    def partials(self, pair: Pair) -> tuple[Partial, Partial]:
        scores = self._scores(pair)
        # an infinite row is a silent one; 0 keeps its unused shares finite
        scores = torch.where(scores.amax(-1, keepdim=True).abs() == math.inf, 0.0, scores)
        share = torch.exp(Normalizer.of(scores).log_probs(scores))
        return Partial(self.order * share, 0.0, 0.0), Partial((1.0 - self.order) * share, 0.0, 0.0)


def pair_of(left: Reading, right: Reading, x: Tensor, y: Tensor) -> Pair:
    """Both sides, read."""
    return Pair(left.weights(x), right.weights(y))


def rows(total: Sum, left: Reading, right: Reading, x: Tensor, y: Tensor) -> Tensor:
    """The value of every row, float64."""
    return total.rows(pair_of(left, right, x, y))


def gradients(
    total: Sum,
    left: Reading,
    right: Reading,
    x: Tensor,
    y: Tensor,
    value: Tensor,
    upstream: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of Σ_rows upstream · value to x and to y, in their own dtypes.

    A row whose value is +inf has no direction of descent and sends back zeros; so does a row that holds
    NaN and whose upstream gradient is zero, which is how a mask drops it.
    """
    silent = (value.abs() == math.inf) | (value.isnan() & (upstream == 0))
    factor = torch.where(silent, 0.0, upstream).unsqueeze(-1)
    # silenced before the arithmetic, not after it: 0·inf would come back as NaN, here or in a second derivative
    pair = pair_of(left, right, _silenced(x, silent), _silenced(y, silent))
    to_p, to_q = total.partials(pair)
    return (
        (factor * left.pull_back(pair.p, to_p)).to(x.dtype) if wanted[0] else None,
        (factor * right.pull_back(pair.q, to_q)).to(y.dtype) if wanted[1] else None,
    )


def _silenced(data: Tensor, silent: Tensor) -> Tensor:
    """`data` with harmless zeros in the silent rows; class labels are harmless as they are."""
    return torch.where(silent.unsqueeze(-1), 0.0, data) if data.is_floating_point() else data


def _no_mass(pair: Pair) -> tuple[Tensor, Tensor]:
    """Where p, and where q, is exactly zero; NaN is not zero, so it reaches the value."""
    return pair.p.log_w == -math.inf, pair.q.log_w == -math.inf


def _mass_times(coefficient: float, mass: Tensor, where: Tensor) -> Tensor:
    """coefficient · mass on `where`, 0 elsewhere; an infinite coefficient counts even where mass underflows."""
    filled = torch.full_like(mass, math.inf) if coefficient == math.inf else coefficient * mass
    return torch.where(where, filled, 0.0)


def _finite_or_zero(edge: Tensor) -> Tensor:
    return torch.where(edge == math.inf, 0.0, edge)
