"""Exact values for distributions and densities: closed form → exact sum → quadrature, or `NoExactMethod`.

The first rung that serves a pair is taken; it depends on types and on which parameters are equal. Before the rungs
stand the reductions that keep every f-divergence: finite distributions go to the finite engine, equal invertible
transforms are taken off, independent components add up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Distribution,
    ExponentialFamily,
    Independent,
    Kumaraswamy,
    OneHotCategorical,
    TransformedDistribution,
)

from kullback import divergences
from kullback._errors import FormError, NoExactMethod
from kullback.core import generators
from kullback.core.reduction import GeneratorSum, LogAffinity
from kullback.divergences import Divergence
from kullback.engines import eager
from kullback.forms.density import Density
from kullback.forms.finite import FiniteForm, Logits, Probs

from . import closed_form as _fill_the_registry
from . import quadrature, summation
from .closed_form.moments import moments
from .doubled import doubled
from .kumaraswamy import on_the_line
from .registry import CLOSED_FORMS, doubles, given_as_probs
from .shapes import batch_of
from .support import Measurable, support_of

assert _fill_the_registry


@dataclass(frozen=True)
class Route:
    """How a pair is served: the method's name, its error bound, and the function that does it."""

    method: str
    error: str
    value: Callable[[], Tensor]


def is_measurable(d: Any) -> TypeGuard[Measurable]:
    """Whether an argument of a verb is a distribution or density, and not a form."""
    return isinstance(d, Distribution | Density)


def as_form(d: Any) -> Any:
    """Bernoulli, Categorical and OneHotCategorical as finite forms; everything else as it is."""
    if isinstance(d, Bernoulli):
        if given_as_probs(d):
            (probs,) = doubles(d, "probs")
            return Probs(torch.stack([1.0 - probs, probs], -1), validate=False)
        return Logits(torch.stack([torch.zeros_like(d.logits), d.logits], -1))
    if isinstance(d, Categorical | OneHotCategorical):
        inner = d._categorical if isinstance(d, OneHotCategorical) else d
        if given_as_probs(inner):
            probs = inner.probs.double()
            return Probs(probs, validate=False)
        return Logits(inner.logits)
    return d


def measure(divergence: Divergence, verb: str, p: Any, q: Any) -> Tensor:
    """The value for a pair of which at least one side is no finite form; (...) in nats, float64 if a parameter is."""
    check(verb, p, q)
    value = route(divergence, p, q).value()
    return value.to(result_dtype(p, q))


def route(divergence: Divergence, p: Any, q: Any) -> Route:
    """The first method that serves the pair."""
    for rung in (_finite, _structural, _closed, _outside, _summed, _integrated):
        found = rung(divergence, p, q)
        if found is not None:
            return found
    name = divergence.name.partition("(")[0]
    raise NoExactMethod(
        f"{name}: no closed form is known for {name_of(p)}‖{name_of(q)}, and it is not on the line or the integers, "
        f"where a sum or an integral would serve. Write estimate.{name}(p, q, method=MonteCarlo(n), generator=g)."
    )


def _finite(divergence: Divergence, p: Any, q: Any) -> Route | None:
    if isinstance(p, OneHotCategorical) != isinstance(q, OneHotCategorical) and is_measurable(p) and is_measurable(q):
        return None  # a vector against a number
    left, right = as_form(p), as_form(q)
    if not (isinstance(left, FiniteForm) and isinstance(right, FiniteForm)) or left.num_classes != right.num_classes:
        return None

    def value() -> Tensor:
        batch = batch_of(left, right)
        x, y = left.expand(batch), right.expand(batch)
        sums = [eager.rows(total, left.reading, right.reading, x, y, left.num_classes) for total in divergence.sums]
        return divergence.finish(*sums)

    return Route("exact sum over the classes, canonical terms, float64", "rounding of float64", value)


def _structural(divergence: Divergence, p: Any, q: Any) -> Route | None:
    if isinstance(p, Independent) and isinstance(q, Independent):
        return _product(divergence, p, q)
    plain = TransformedDistribution.log_prob
    if (
        isinstance(p, TransformedDistribution)
        and isinstance(q, TransformedDistribution)
        and type(p).log_prob is plain
        and type(q).log_prob is plain
        and CLOSED_FORMS.find("kl", p, q) is None
        and divergence is not divergences.CROSS_ENTROPY
        and _same_transforms(p, q)
    ):
        inner = route(divergence, p.base_dist, q.base_dist)
        return Route(f"equal transforms taken off, then {inner.method}", inner.error, inner.value)
    return None


def _same_transforms(p: TransformedDistribution, q: TransformedDistribution) -> bool:
    """Equal, invertible, and without a gradient that taking them off would lose."""
    if p.event_shape != q.event_shape or not all(t.bijective for t in [*p.transforms, *q.transforms]):
        return False
    if p.transforms != q.transforms:
        return False
    tensors = [[v for t in d.transforms for v in vars(t).values() if isinstance(v, Tensor)] for d in (p, q)]
    return all(a is b or not (a.requires_grad or b.requires_grad) for a, b in zip(*tensors, strict=True))


def _product(divergence: Divergence, p: Any, q: Any) -> Route | None:
    """Independent components: KL, Jeffreys, cross-entropy and log-affinities add up."""
    dims = p.reinterpreted_batch_ndims
    if dims != q.reinterpreted_batch_ndims or p.event_shape != q.event_shape:
        return None
    axes = tuple(range(-dims, 0))
    order = _power(divergence)
    if divergence in (divergences.KL, divergences.JEFFREYS, divergences.CROSS_ENTROPY) or order in (0.0, 1.0):
        inner = route(divergence, p.base_dist, q.base_dist)
        return Route(
            f"sum over {dims} independent axes of: {inner.method}",
            inner.error,
            lambda: inner.value().sum(axes) if dims else inner.value(),
        )
    if order is None:
        return None
    inner = route(divergences.renyi(order) if order > 0 else divergences.renyi(1.0 - order), *_turned(order, p, q))

    def value() -> Tensor:
        total = inner.value().sum(axes) if dims else inner.value()
        return _from_log_affinity(divergence, order, (max(order, 1.0 - order if order < 0 else order) - 1.0) * total)

    return Route(f"product over {dims} independent axes of: {inner.method}", inner.error, value)


def _turned(order: float, p: Any, q: Any) -> tuple[Any, Any]:
    return (p.base_dist, q.base_dist) if order > 0 else (q.base_dist, p.base_dist)


def _power(divergence: Divergence) -> float | None:
    """a where the divergence is a function of ∫ p^a q^(1-a)."""
    for total in divergence.sums:
        if isinstance(total, LogAffinity):
            return total.order
    first = divergence.sums[0]
    generator = first.generator if isinstance(first, GeneratorSum) else None
    if isinstance(generator, generators.alpha):
        return generator.order
    return 0.5 if generator is generators.squared_hellinger else 2.0 if generator is generators.chi2 else None


def _from_log_affinity(divergence: Divergence, order: float, log_sum: Tensor) -> Tensor:
    """The divergence from log ∫ p^a q^(1-a)."""
    if any(isinstance(total, LogAffinity) for total in divergence.sums):
        return log_sum / (order - 1.0)
    if divergence is divergences.HELLINGER:
        return divergence.finish(-torch.expm1(log_sum))
    grown = torch.expm1(log_sum)
    return grown if divergence is divergences.CHI2 else grown / (order * (order - 1.0))


def _closed(divergence: Divergence, p: Any, q: Any) -> Route | None:
    order = _power(divergence)
    if divergence.sums == divergences.KL.sums:
        entry = CLOSED_FORMS.find("kl", p, q)
        if entry is not None:
            formula = entry.formula
            return _formula(entry.name, lambda: formula(p, q))
    elif divergence is divergences.JEFFREYS:
        there, back = CLOSED_FORMS.find("kl", p, q), CLOSED_FORMS.find("kl", q, p)
        if there is not None and back is not None:
            one, other = there.formula, back.formula
            return _formula(f"{there.name} and back", lambda: one(p, q) + other(q, p))
    elif divergence is divergences.CROSS_ENTROPY:
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
            return _formula(name, lambda: _from_log_affinity(divergence, order, formula(p, q, order)))
    return None


def _formula(name: str, value: Callable[[], Tensor]) -> Route:
    return Route(f"closed form, {name}", "rounding of float64", value)


_OWN_ENTROPY = [
    "Beta",
    "Chi2",
    "ContinuousBernoulli",
    "Exponential",
    "Gamma",
    "Gumbel",
    "Laplace",
    "LogNormal",
    "Normal",
    "Pareto",
    "StudentT",
    "Uniform",
]


def _entropy(p: Any) -> Callable[[], Tensor] | None:
    """Differential entropy in closed form; counts are summed instead."""
    if type(p).__name__ in _OWN_ENTROPY and type(p).__module__.startswith("torch.distributions"):
        return lambda: moments(p).entropy
    entry = CLOSED_FORMS.find("entropy", p)
    if entry is not None:
        formula = entry.formula
        return lambda: formula(p)
    support = _support_if_any(p)
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


def _outside(divergence: Divergence, p: Any, q: Any) -> Route | None:
    """KL of a p that leaves q's support in every row: no integral is needed."""
    if divergence.sums[0] is not divergences.KL.sums[0] or not (is_measurable(p) and is_measurable(q)):
        return None
    left, right = support_of(p), support_of(q)
    if left is None or right is None or left.integers or right.integers:
        return None
    leaves = ((left.low < right.low) | (left.high > right.high)).detach()
    batch = batch_of(p, q)
    if not bool(leaves.all()):
        return None
    return Route(
        "support: p has mass where q has none", "none", lambda: torch.full(batch, math.inf).double() + silent(p, q)
    )


def silent(*distributions: Any) -> Tensor:
    """A zero that is connected to every parameter."""
    total = torch.zeros((), dtype=torch.float64)
    for d in distributions:
        for value in vars(d).values():
            if isinstance(value, Tensor) and value.requires_grad:
                total = total + 0.0 * value.double().sum()
    return total


def _summed(divergence: Divergence, p: Any, q: Any) -> Route | None:
    left, right = _counts(p), _counts(q)
    if left is None or right is None:
        return None
    return Route(
        "exact sum over the counts, to a proven bound on the tail",
        "the tail left out is below 1e-14 of the value",
        lambda: divergence.finish(*summation.add_up(divergence.sums, left, right)),
    )


def _counts(d: Any) -> Distribution | None:
    if not isinstance(d, Distribution):
        return None
    support = support_of(d)
    return d if support is not None and support.integers and bool((support.low == 0).all()) else None


def _integrated(divergence: Divergence, p: Any, q: Any) -> Route | None:
    if not (is_measurable(p) and is_measurable(q)):
        return None
    left, right = support_of(p), support_of(q)
    if left is None or right is None or left.integers or right.integers:
        return None
    if type(p) is Kumaraswamy and type(q) is Kumaraswamy:
        if divergence is divergences.CROSS_ENTROPY:
            entropy, inner = _entropy(p), route(divergences.KL, p, q)
            assert entropy is not None
            return Route(f"entropy + {inner.method}", inner.error, lambda: entropy() + inner.value())
        p, q = on_the_line(p, q)
    return Route(
        "quadrature, adaptive Gauss-Kronrod over the line",
        f"estimated relative error below {quadrature.RELATIVE_TOLERANCE:g}, or ToleranceError",
        lambda: divergence.finish(*quadrature.integrate(divergence.sums, p, q)),
    )


def check(verb: str, p: Any, q: Any) -> None:
    """Raise for what is no distribution, for batch shapes that do not broadcast, for counts against reals."""
    for name, d in (("p", p), ("q", q)):
        if not (is_measurable(d) or isinstance(d, FiniteForm)):
            raise FormError(
                f"{verb}: {name} is a bare {type(d).__name__}, which does not say what it holds. Write a "
                f"torch.distributions object, Density(log_prob, support=...), or a form such as Logits({name})."
            )
    try:
        batch_of(p, q)
    except RuntimeError:
        raise FormError(
            f"{verb}: p has batch shape {tuple(p.batch_shape)} but q has {tuple(q.batch_shape)}, which do not "
            "broadcast."
        ) from None
    kinds = [s.integers for s in map(_support_if_any, (p, q)) if s is not None]
    if len(set(kinds)) == 2:
        raise FormError(
            f"{verb}: one of {name_of(p)} and {name_of(q)} lives on the integers and the other on the line."
        )


def _support_if_any(d: Any) -> Any:
    return support_of(d) if is_measurable(d) else None


def result_dtype(p: Any, q: Any) -> torch.dtype:
    """float64 if a parameter on either side is, else float32."""
    return torch.float64 if torch.float64 in (_dtype(p), _dtype(q)) else torch.float32


def _dtype(d: Any) -> torch.dtype:
    """float64 if any parameter is; a Density counts for nothing."""
    if isinstance(d, FiniteForm):
        return d.data.dtype
    found = torch.float32
    for value in vars(d).values() if isinstance(d, Distribution) else ():
        if (isinstance(value, Tensor) and value.dtype == torch.float64) or (
            isinstance(value, Distribution) and _dtype(value) == torch.float64
        ):
            found = torch.float64
    return found


def name_of(d: Any) -> str:
    """As messages and plans call it."""
    if isinstance(d, Independent):
        return f"Independent({name_of(d.base_dist)}, {d.reinterpreted_batch_ndims})"
    return type(d).__name__
