"""Stage two: the sum over columns, its derivatives, and the meaning of cells without mass. The specification.

Every engine transcribes `rows` and `gradients`, and is tested against them. All arithmetic is float64.
"""

import math
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import coarse
from .generators import Cells, Generator, Power, Terms
from .normalizer import Normalizer
from .readings import Partial, Side, Weights


class Pair(NamedTuple):
    """Both sides of a comparison, row by row; log weights are -inf where there is no mass."""

    p: Weights
    q: Weights


State = TypeVar("State")


class Sum(Generic[State]):
    """A quantity of one number per row, as a state that merges over columns, with its two partial derivatives.

    `merge` makes states a commutative monoid: the columns may be cut into chunks, threads, shards or ranks anywhere.
    """

    def of(self, pair: Pair) -> State:
        """The state of the columns in `pair`."""
        raise NotImplementedError

    def merge(self, one: State, other: State) -> State:
        """The state of both sets of columns."""
        raise NotImplementedError

    def value(self, state: State) -> Tensor:
        """The value of every row, (...)."""
        raise NotImplementedError

    def partials(self, pair: Pair, state: State) -> tuple[Partial, Partial]:
        """The derivatives with respect to p and to q in these columns, (..., V), given the state of all columns."""
        raise NotImplementedError

    def rows(self, pair: Pair) -> Tensor:
        """The value of every row of a pair that holds all columns."""
        return self.value(self.of(pair))

    @property
    def power(self) -> Power | None:
        """Set where the value is an affine function of Σ p^a q^(1-a), or its logarithm."""
        raise NotImplementedError


class Totals(NamedTuple):
    """Σ f, Σ p ∂f/∂p and Σ q ∂f/∂q of the columns seen so far; they add."""

    value: Tensor
    dlogp: Tensor
    dlogq: Tensor


@dataclass(frozen=True)
class GeneratorSum(Sum[Totals]):
    """Σ_v f(p_v, q_v)."""

    generator: Generator

    def terms(self, pair: Pair) -> Terms:
        """f and its logarithmic derivatives, cell by cell."""
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
        f = self.generator
        p_gone, q_gone = _mass_times(f.at_p_zero, q, no_p & ~no_q), _mass_times(f.at_q_zero, p, no_q & ~no_p)
        return Terms(
            torch.where(edge, p_gone + q_gone, inside.value),
            torch.where(edge, _finite_or_zero(q_gone), inside.dlogp),
            torch.where(edge, _finite_or_zero(p_gone), inside.dlogq),
        )

    def of(self, pair: Pair) -> Totals:
        return Totals(*(part.sum(-1) for part in self.terms(pair)))

    def merge(self, one: Totals, other: Totals) -> Totals:
        return Totals(*(a + b for a, b in zip(one, other, strict=True)))

    def value(self, state: Totals) -> Tensor:
        return state.value

    def partials(self, pair: Pair, state: Totals) -> tuple[Partial, Partial]:
        terms, f = self.terms(pair), self.generator
        no_p, no_q = _no_mass(pair)
        slope_p = torch.where(no_q, 0.0, -pair.q.log_w if f.log_q_slope else f.slopes[0])
        slope_q = torch.where(no_p, 0.0, torch.full_like(pair.p.w, f.slopes[1]))
        return (
            Partial(terms.dlogp, state.dlogp.unsqueeze(-1), f.plain[0], slope_p),
            Partial(terms.dlogq, state.dlogq.unsqueeze(-1), f.plain[1], slope_q),
        )

    @property
    def power(self) -> Power | None:
        return self.generator.power

    def __str__(self) -> str:
        return str(self.generator)


@dataclass(frozen=True)
class LogAffinity(Sum[Normalizer]):
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

    def of(self, pair: Pair) -> Normalizer:
        return Normalizer.of(self._scores(pair))

    def merge(self, one: Normalizer, other: Normalizer) -> Normalizer:
        return one.merge(other)

    def value(self, state: Normalizer) -> Tensor:
        m, s = state
        return torch.where(m.abs() == math.inf, m, m + torch.log(s)).squeeze(-1)

    def partials(self, pair: Pair, state: Normalizer) -> tuple[Partial, Partial]:
        # an infinite row is a silent one; 0 keeps its unused shares finite
        silent = state.max.abs() == math.inf
        scores = torch.where(silent, 0.0, self._scores(pair))
        m, s = torch.where(silent, 0.0, state.max), torch.where(silent, 1.0, state.sum)
        share = torch.exp(Normalizer(m, s).log_probs(scores))
        one = torch.ones_like(m)
        a, b = self.order, 1.0 - self.order
        return Partial(a * share, a * one, 0.0, 0.0), Partial(b * share, b * one, 0.0, 0.0)

    @property
    def power(self) -> Power:
        return Power(self.order, 1.0)

    def __str__(self) -> str:
        return f"log_affinity({self.order:g})"


def cells(p: Side, q: Side) -> tuple[Pair, Tensor | None]:
    """What sums see of two sides, and which of V classes stand alone in it: the rest is one cell more. None: all do."""
    pair, alone = Pair(p.weights(), q.weights()), coarse.told_apart(p, q)
    return (pair if alone is None else Pair(*(coarse.joined(w, alone) for w in pair))), alone


def rows(total: Sum[State], p: Side, q: Side) -> Tensor:
    """The value of every row, float64."""
    return total.rows(cells(p, q)[0])


def gradients(
    total: Sum[State], p: Side, q: Side, value: Tensor, upstream: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of Σ_rows upstream · value to each tensor of p, then of q, that is `wanted`, in its own dtype.

    A row whose value is +inf has no direction of descent and sends back zeros; so does a row that holds
    NaN and whose upstream gradient is zero, which is how a mask drops it.
    """
    silent = silenced_rows(value, upstream)
    factor = torch.where(silent, 0.0, upstream)
    # silenced before the arithmetic, not after it: 0·inf would come back as NaN, here or in a second derivative
    sides = silenced(p, silent), silenced(q, silent)
    pair, alone = cells(*sides)
    fine = pair if alone is None else Pair(*(side.weights() for side in sides))
    return pull_back(total, sides, pair, total.of(pair), factor, wanted, fine, alone)


def pull_back(
    total: Sum[State],
    sides: tuple[Side, Side],
    pair: Pair,
    state: State,
    factor: Tensor,
    wanted: tuple[bool, ...],
    fine: Pair,
    alone: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """`gradients`, of rows among which none is silent, given their weights, their `cells` and the state of all."""
    partials = total.partials(pair, state)
    factor = factor.unsqueeze(-1)
    found: list[Tensor | None] = []
    for side, seen, weights, partial in zip(sides, pair, fine, partials, strict=True):
        sent = partial if alone is None else coarse.refined(partial, weights, seen, alone)
        back = side.reading.pull_back(side.data, weights, sent, factor)
        found += [None if g is None else g.to(x.dtype) for g, x in zip(back, side.data, strict=True)]
    return tuple(g if want else None for g, want in zip(found, wanted, strict=True))


def silenced_rows(value: Tensor, upstream: Tensor) -> Tensor:
    """Rows that send back zeros: infinite ones, and those with NaN that a mask drops."""
    return (value.abs() == math.inf) | (value.isnan() & (upstream == 0))


def silenced(side: Side, silent: Tensor) -> Side:
    """`side` with harmless zeros in the silent rows; class labels are harmless as they are."""
    data = (
        torch.where(silent.reshape(silent.shape + (1,) * dims), 0.0, x)
        if dims is not None and x.is_floating_point()
        else x
        for x, dims in zip(side.data, side.reading.event_dims, strict=True)
    )
    return Side(side.reading, tuple(data))


def _no_mass(pair: Pair) -> tuple[Tensor, Tensor]:
    """Where p, and where q, is exactly zero; NaN is not zero, so it reaches the value."""
    return pair.p.log_w == -math.inf, pair.q.log_w == -math.inf


def _mass_times(coefficient: float, mass: Tensor, where: Tensor) -> Tensor:
    """coefficient · mass on `where`, 0 elsewhere; an infinite coefficient counts even where mass underflows."""
    filled = torch.full_like(mass, math.inf) if coefficient == math.inf else coefficient * mass
    return torch.where(where, filled, 0.0)


def _finite_or_zero(edge: Tensor) -> Tensor:
    return torch.where(edge == math.inf, 0.0, edge)
