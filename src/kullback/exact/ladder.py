"""Exact values for distributions and densities: closed form → exact sum → quadrature, or `NoExactMethod`.

The first rung that serves a pair is taken; it depends on types and on which parameters are equal. Before the rungs
stand the reductions that keep every f-divergence: finite distributions go to the finite engine, equal invertible
transforms are taken off, independent components add up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    ContinuousBernoulli,
    Distribution,
    ExponentialFamily,
    Independent,
    Multinomial,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
)

from kullback import divergences
from kullback._errors import FormError, NoExactMethod
from kullback.core.reduction import LogAffinity
from kullback.divergences import Divergence
from kullback.engines import choice
from kullback.forms.finite import FiniteForm

from . import closed_form as _fill_the_registry
from . import quadrature, summation
from .arguments import as_form, check, is_measurable, name_of, result_dtype, silent, support_if_any
from .closed_form.multivariate import factor, is_normal_vector
from .doubled import doubled
from .registry import CLOSED_FORMS
from .shapes import batch_of
from .support import support_of

assert _fill_the_registry


@dataclass(frozen=True)
class Decision:
    """What will be done for a pair: the method's name, its error bound, and the function that does it."""

    method: str
    error: str
    value: Callable[[], Tensor]


def measure(divergence: Divergence, verb: str, p: Any, q: Any) -> Tensor:
    """The value for a pair of which at least one side is no finite form; (...) in nats, float64 if a parameter is."""
    check(verb, p, q)
    value = decide(divergence, p, q, verb=verb).value()
    return value.to(result_dtype(p, q))


def decide(divergence: Divergence, p: Any, q: Any, *, verb: str | None = None) -> Decision:
    """The first method that serves the pair; `measure` does what it says, `explain` prints it."""
    _check_order(divergence, verb)
    for rung in (_finite, _turned_round, _structural, _closed, _shifted, _outside, _summed, _enumerated, _integrated):
        found = rung(divergence, p, q)
        if found is not None:
            return found
    name = verb or divergence.family  # entropy is the cross-entropy of p with itself
    vectors = any(len(getattr(d, "event_shape", ())) > 0 for d in (p, q))
    why = (
        "vectors are served by closed forms alone; no sum or integral over several dimensions is exact here"
        if vectors
        else "it is not on the line or the integers, where a sum or an integral would serve"
    )
    raise NoExactMethod(
        f"{name}: no closed form is known for {name_of(p)}‖{name_of(q)}, and {why}. {estimator(divergence, p, q)}"
    )


_LARGEST_ORDER = 1e12


def _check_order(divergence: Divergence, verb: str | None) -> None:
    order = _power(divergence)
    if order is not None and abs(order) > _LARGEST_ORDER:
        raise FormError(
            f"{verb or divergence.family}: of distributions, orders up to {_LARGEST_ORDER:g} keep their digits in "
            f"double precision, and {order:g} was given. By {_LARGEST_ORDER:g} a value has come to its limit, or "
            "grows in proportion: write a smaller order."
        )


# the mean over x drawn from p, with r = q(x)/p(x), of which a divergence is made; w and a its parameter
_MEANS = {
    "js": "(w * -(w + (1 - w) * r).log() + (1 - w) * r * (r / (w + (1 - w) * r)).log()).mean()",
    "skew": "-(w + (1 - w) * r).log().mean()",
    "tv": "(1 - r).clamp(min=0).mean()",
    "hellinger": "(1 - r.sqrt()).mean().sqrt()",
    "triangular": "((1 - r) ** 2 / (1 + r)).mean()",
    "chi2": "((1 - r) ** 2 / r).mean()",
    "alpha": "(r ** (1 - a) - 1).mean() / (a * (a - 1))",
    "tsallis": "(r ** (1 - a) - 1).mean() / (a - 1)",
    "renyi": "(r ** (1 - a)).mean().log() / (a - 1)",
    "cross_entropy": "-q.log_prob(x).mean()",
}


def estimator(divergence: Divergence, p: Any, q: Any) -> str:
    """What to write instead."""
    forms = [isinstance(as_form(d), FiniteForm) for d in (p, q)]
    if forms[0] != forms[1]:
        return "One is over classes and the other is not: give both as forms over the same classes, or neither."
    one, other = (tuple(getattr(d, "event_shape", ())) for d in (p, q))
    if one != other:
        return f"Their draws have shapes {one} and {other}: give both the same."
    call = "estimate.kl({}, {}, method=MonteCarlo(n), generator=g)"
    if divergence.linear == divergences.KL.linear:
        return f"Write {call.format('p', 'q')}."
    if divergence.linear == divergences.JEFFREYS.linear:
        return f"Write {call.format('p', 'q')} and {call.format('q', 'p')}, and add."
    if divergence.linear == divergences.alpha(0.0).linear:
        return f"Write {call.format('q', 'p')}."
    mean = _MEANS.get(divergence.family)
    if mean is None:
        return f"KL can be estimated: write {call.format('p', 'q')}."
    given = "" if divergence.parameter is None else f"{'w' if 'w' in mean else 'a'} = {divergence.parameter:g}; "
    ratio = "r = (q.log_prob(x) - p.log_prob(x)).exp(); " if "_prob" not in mean else ""
    return f"To estimate it from draws, write {given}x = p.sample((n,)); {ratio}{mean}"


def _finite(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    if isinstance(p, OneHotCategorical) != isinstance(q, OneHotCategorical) and is_measurable(p) and is_measurable(q):
        return None  # a vector against a number
    left, right = as_form(p), as_form(q)
    if not (isinstance(left, FiniteForm) and isinstance(right, FiniteForm)) or left.num_classes != right.num_classes:
        return None

    def value() -> Tensor:
        batch = batch_of(left, right)
        p_side, q_side = (form.to(torch.float64).side(batch) for form in (left, right))
        return choice.measure(divergence, p_side, q_side, left.num_classes)

    return Decision("exact sum over the classes, canonical terms, float64", "rounding of float64", value)


def _turned_round(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    """Order 0 of α, which is KL(q‖p)."""
    if divergence.linear != divergences.alpha(0.0).linear:
        return None
    inner = decide(divergences.KL, q, p)
    return Decision(f"KL from q: {inner.method}", inner.error, inner.value)


def _structural(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    if isinstance(p, Independent) and isinstance(q, Independent):
        return _product(divergence, p, q)
    plain = TransformedDistribution.log_prob
    if (
        isinstance(p, TransformedDistribution)
        and isinstance(q, TransformedDistribution)
        and type(p).log_prob is plain
        and type(q).log_prob is plain
        and CLOSED_FORMS.find("kl", p, q) is None
        and divergence != divergences.CROSS_ENTROPY
        and _same_transforms(p, q)
    ):
        inner = decide(divergence, p.base_dist, q.base_dist)
        return Decision(f"equal transforms taken off, then {inner.method}", inner.error, inner.value)
    return None


def _same_transforms(p: TransformedDistribution, q: TransformedDistribution) -> bool:
    """Equal, invertible, and without a gradient that taking them off would lose."""
    if p.event_shape != q.event_shape or not all(t.bijective for t in [*p.transforms, *q.transforms]):
        return False
    if p.transforms != q.transforms:
        return False
    tensors = [[v for t in d.transforms for v in vars(t).values() if isinstance(v, Tensor)] for d in (p, q)]
    return all(a is b or not (a.requires_grad or b.requires_grad) for a, b in zip(*tensors, strict=True))


def _product(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    """Independent components: KL, Jeffreys, cross-entropy and log-affinities add up."""
    dims = p.reinterpreted_batch_ndims
    if dims != q.reinterpreted_batch_ndims or p.event_shape != q.event_shape:
        return None
    axes = tuple(range(-dims, 0))
    order = _power(divergence)
    if _adds_up(divergence):
        inner = decide(divergence, p.base_dist, q.base_dist)
        return Decision(
            f"sum over {dims} independent axes of: {inner.method}",
            inner.error,
            lambda: inner.value().sum(axes) if dims else inner.value(),
        )
    if order is None:
        return None
    inner = decide(divergences.renyi(order) if order > 0 else divergences.renyi(1.0 - order), *_turned(order, p, q))

    def value() -> Tensor:
        total = inner.value().sum(axes) if dims else inner.value()
        return _from_log_affinity(divergence, (max(order, 1.0 - order if order < 0 else order) - 1.0) * total)

    return Decision(f"product over {dims} independent axes of: {inner.method}", inner.error, value)


def _turned(order: float, p: Any, q: Any) -> tuple[Any, Any]:
    return (p.base_dist, q.base_dist) if order > 0 else (q.base_dist, p.base_dist)


def _adds_up(divergence: Divergence) -> bool:
    """Whether the divergence of independent components is the sum of theirs."""
    linear = divergence.linear
    rows = (divergences.KL, divergences.alpha(0.0), divergences.JEFFREYS, divergences.CROSS_ENTROPY)
    return linear is not None and linear in [row.linear for row in rows]


def _power(divergence: Divergence) -> float | None:
    """a where the divergence is a function of ∫ p^a q^(1-a)."""
    powers = {total.power.order for total in divergence.sums if total.power is not None}
    return powers.pop() if len(powers) == 1 else None


def _from_log_affinity(divergence: Divergence, log_sum: Tensor) -> Tensor:
    """The divergence from log ∫ p^a q^(1-a)."""
    sums = []
    for total in divergence.sums:
        power = total.power
        assert power is not None
        sums.append(log_sum if isinstance(total, LogAffinity) else power.scale * torch.expm1(log_sum))
    return divergence.finish(*sums)


def _closed(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    order = _power(divergence)
    if divergence.linear == divergences.KL.linear:
        entry = CLOSED_FORMS.find("kl", p, q)
        if entry is not None:
            formula = entry.formula
            return _formula(entry.name, lambda: formula(p, q))
    elif divergence.linear == divergences.JEFFREYS.linear:
        there, back = CLOSED_FORMS.find("kl", p, q), CLOSED_FORMS.find("kl", q, p)
        if there is not None and back is not None:
            one, other = there.formula, back.formula
            return _formula(f"{there.name} and back", lambda: one(p, q) + other(q, p))
    elif divergence.linear == divergences.CROSS_ENTROPY.linear:
        entropy, cross = _entropy(p), CLOSED_FORMS.find("kl", p, q)
        if entropy is not None and p is q:
            return _formula(f"entropy of {name_of(p)}", entropy)
        if entropy is not None and cross is not None:
            formula = cross.formula
            return _formula(f"entropy + {cross.name}", lambda: entropy() + formula(p, q))
    elif order is not None and order not in (0.0, 1.0):
        entry = CLOSED_FORMS.find("log_affinity", p, q)
        if entry is not None:
            formula, name = entry.formula, f"log-affinity of {entry.name}"
            return _formula(name, lambda: _from_log_affinity(divergence, formula(p, q, order)))
    return None


def _shifted(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    """Normal vectors of one covariance: every f-divergence is that of N(0, 1) and N(δ, 1), δ Mahalanobis' distance."""
    if divergence == divergences.CROSS_ENTROPY or not is_normal_vector(p) or not is_normal_vector(q):
        return None
    if p.event_shape != q.event_shape:
        return None
    (m, lp), (n, lq) = factor(p), factor(q)
    if lp.requires_grad or lq.requires_grad or not bool((lp == lq).all()):
        return None
    gap = torch.linalg.solve_triangular(lq, (m - n).unsqueeze(-1), upper=False).squeeze(-1)
    square = (gap**2).sum(-1)
    same = square == 0  # where the slope of δ has no limit, and that of the divergence is 0
    distance = torch.where(same, 0.0, torch.sqrt(torch.where(same, 1.0, square)))
    zero = torch.zeros_like(distance.detach())
    unit = Normal(zero, zero + 1.0, validate_args=False), Normal(distance, zero + 1.0, validate_args=False)
    inner = decide(divergence, *unit)
    return Decision(f"equal covariances, one axis remains: {inner.method}", inner.error, inner.value)


def _formula(name: str, value: Callable[[], Tensor]) -> Decision:
    return Decision(f"closed form, {name}", "rounding of float64", value)


def _entropy(p: Any) -> Callable[[], Tensor] | None:
    """Differential entropy in closed form; counts are summed instead."""
    entry = CLOSED_FORMS.find("entropy", p)
    if entry is not None:
        formula = entry.formula
        return lambda: formula(p)
    support = support_if_any(p)
    if not isinstance(p, Distribution) or (support is not None and support.integers):
        return None
    if type(p).entropy in (Distribution.entropy, ExponentialFamily.entropy) or isinstance(p, ContinuousBernoulli):
        return None
    if isinstance(p, Independent | TransformedDistribution) and type(p) in (Independent, TransformedDistribution):
        return None

    def value() -> Tensor:
        result: Tensor = doubled(p).entropy()
        return result

    return value


def _outside(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    """KL of a p that leaves q's support in every row: no integral is needed."""
    if divergence.linear != divergences.KL.linear or not (is_measurable(p) and is_measurable(q)):
        return None
    left, right = support_of(p), support_of(q)
    if left is None or right is None or left.integers or right.integers:
        return None
    leaves = ((left.low < right.low) | (left.high > right.high)).detach()
    batch = batch_of(p, q)
    if not bool(leaves.all()):
        return None
    return Decision(
        "support: p has mass where q has none", "none", lambda: torch.full(batch, math.inf).double() + silent(p, q)
    )


def _summed(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    left, right = _counts(p), _counts(q)
    if left is None or right is None:
        return None
    return Decision(
        "exact sum over the counts, to a proven bound on the tail",
        "the tail left out is below 1e-14 of the value",
        lambda: divergence.finish(*summation.add_up(divergence.sums, left, right)),
    )


_OUTCOMES = 2_000_000


def _enumerated(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    """Two Multinomials: their outcomes are finitely many."""
    if not (isinstance(p, Multinomial) and isinstance(q, Multinomial)) or p.event_shape != q.event_shape:
        return None
    columns = p.event_shape[0]
    totals = sorted({p.total_count, q.total_count})
    outcomes = sum(math.comb(n + columns - 1, columns - 1) for n in totals)
    if outcomes * max(batch_of(p, q).numel(), 1) > _OUTCOMES:
        return None
    return Decision(
        f"exact sum over the {outcomes} outcomes",
        "rounding of float64",
        lambda: divergence.finish(*summation.over_outcomes(divergence.sums, p, q)),
    )


def _counts(d: Any) -> Distribution | None:
    if not isinstance(d, Distribution):
        return None
    support = support_of(d)
    return d if support is not None and support.integers and bool((support.low == 0).all()) else None


def _integrated(divergence: Divergence, p: Any, q: Any) -> Decision | None:
    if not (is_measurable(p) and is_measurable(q)):
        return None
    left, right = support_of(p), support_of(q)
    if left is None or right is None or left.integers or right.integers:
        return None
    return Decision(
        "quadrature, adaptive Gauss-Kronrod over the line",
        f"estimated relative error below {quadrature.RELATIVE_TOLERANCE:g}, or ToleranceError",
        lambda: _at_most_its_bound(divergence, divergence.finish(*quadrature.integrate(divergence.sums, p, q))),
    )


def _at_most_its_bound(divergence: Divergence, value: Tensor) -> Tensor:
    """An integral may round to just above the largest value; the slope is left."""
    if math.isinf(divergence.upper):
        return value
    return value - (value.detach() - divergence.upper).clamp(min=0.0)
