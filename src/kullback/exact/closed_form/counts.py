"""Counts: Poisson, Geometric, negative binomial, binomial, multinomial. Boundary parameters included."""

import math

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Geometric, Multinomial, NegativeBinomial, Poisson

from kullback.divergences import CROSS_ENTROPY, KL, Divergence
from kullback.engines import choice
from kullback.exact.registry import closed_form, doubles, given_as_probs, infinite_where, probabilities
from kullback.exact.shapes import batch_of, together
from kullback.exact.special import relative_entropy
from kullback.exact.summation import log_mass
from kullback.forms.finite import FiniteForm, Logits, Probs

_FINITE = "Cover & Thomas 2006, section 2.3"


def two_point(d: Bernoulli | Binomial | Geometric | NegativeBinomial) -> FiniteForm:
    """The distribution (1 - probs, probs) behind a count."""
    if given_as_probs(d):
        probs, rest = probabilities(d)
        return Probs(torch.stack([rest, probs], -1), validate=False)
    (logits,) = doubles(d, "logits")
    return Logits(torch.stack([torch.zeros_like(logits), logits], -1))


def finite_kl(p: FiniteForm, q: FiniteForm) -> Tensor:
    """KL of two finite forms in float64, through the engine."""
    return of_forms(KL, p, q)


def of_forms(divergence: Divergence, p: FiniteForm, q: FiniteForm) -> Tensor:
    """A divergence of two finite forms in float64."""
    batch, wide = batch_of(p, q), torch.float64
    return choice.measure(divergence, p.to(wide).side(batch), q.to(wide).side(batch), p.num_classes)


def _times(count: Tensor, value: Tensor) -> Tensor:
    """count · value, where 0 · inf = 0 and an infinite value has zero gradient."""
    empty, infinite = count == 0, value == torch.inf
    product = count * torch.where(empty | infinite, 0.0, value)
    return infinite_where(infinite & ~empty, product)


@closed_form(Poisson, Poisson, source="Kullback 1959, table 2.1; relative entropy of the rates")
def poisson_poisson(p: Poisson, q: Poisson) -> Tensor:
    """λp log(λp/λq) - λp + λq; λq at λp = 0; +inf at λq = 0 < λp"""
    (a,), (b,) = doubles(p, "rate"), doubles(q, "rate")
    a, b = together(a, b)
    edge = (a == 0) | (b == 0)
    inside = relative_entropy(torch.where(edge, 1.0, a), torch.where(edge, 1.0, b))
    return infinite_where((b == 0) & (a > 0), torch.where(edge, torch.where(a == 0, b, a), inside))


@closed_form(Geometric, Geometric, source="relative entropy of one trial, times the mean number of trials")
def geometric_geometric(p: Geometric, q: Geometric) -> Tensor:
    """KL(Bernoulli(p)‖Bernoulli(q)) / p"""
    probs, _ = probabilities(p)
    return _times(1.0 / probs, finite_kl(two_point(p), two_point(q)))


def same_total(p: NegativeBinomial | Binomial, q: NegativeBinomial | Binomial) -> bool:
    """Equal counts in every row."""
    return bool((p.total_count == q.total_count).all())


def _total_is_constant(p: NegativeBinomial, q: NegativeBinomial) -> bool:
    free = any(torch.as_tensor(d.total_count).requires_grad for d in (p, q))
    return not free and same_total(p, q)


@closed_form(
    NegativeBinomial,
    NegativeBinomial,
    source="relative entropy of one trial, times the mean number of trials",
    applies=_total_is_constant,
)
def negativebinomial_negativebinomial(p: NegativeBinomial, q: NegativeBinomial) -> Tensor:
    """r KL(Bernoulli(p)‖Bernoulli(q)) / (1 - p), for equal r"""
    (total,), (_, rest) = doubles(p, "total_count"), probabilities(p)
    return _times(total / rest, finite_kl(two_point(p), two_point(q)))


@closed_form(Binomial, Binomial, source=_FINITE, applies=same_total)
def binomial_binomial(p: Binomial, q: Binomial) -> Tensor:
    """n KL(Bernoulli(p)‖Bernoulli(q)), for equal n"""
    (total,) = doubles(p, "total_count")
    return _times(total, finite_kl(two_point(p), two_point(q)))


def categorical(d: Multinomial) -> FiniteForm:
    """The distribution of one draw."""
    c = d._categorical
    return Probs(c.probs, validate=False) if c._param is c.__dict__.get("probs") else Logits(c.logits)


@closed_form(Multinomial, Multinomial, source=_FINITE)
def multinomial_multinomial(p: Multinomial, q: Multinomial) -> Tensor:
    """n KL(Categorical(p)‖Categorical(q)); +inf for different n, whose supports are disjoint"""
    value = finite_kl(categorical(p), categorical(q))
    if p.total_count != q.total_count:
        return torch.full_like(value, torch.inf)
    return _times(torch.full_like(value, p.total_count), value)


@closed_form(Multinomial, quantity="entropy", source="Cover & Thomas 2006, section 2.1, of n trials")
def multinomial_entropy(p: Multinomial) -> Tensor:
    """n H(Categorical(p)) - log n! + Σ_i E log X_i!, X_i binomial"""
    form, n = categorical(p), p.total_count
    one = of_forms(CROSS_ENTROPY, form, form)
    part = Binomial(n, probs=form.reading.weights(form.tensors).w, validate_args=False)
    x = torch.arange(n + 1, dtype=torch.float64)
    spread = (torch.exp(log_mass(part, x)) * torch.lgamma(x + 1.0)).sum((-2, -1))
    return n * one - math.lgamma(n + 1.0) + spread


@closed_form(Bernoulli, Poisson, source=_FINITE)
def bernoulli_poisson(p: Bernoulli, q: Poisson) -> Tensor:
    """(1-p) log(1-p) + p log p - p log λ + λ, as a relative entropy over {0, 1, more}"""
    probs, rest = probabilities(p)
    (rate,) = doubles(q, "rate")
    probs, rest, rate = together(probs, rest, rate)
    none = rate == 0
    zero, one = torch.exp(-rate), rate * torch.exp(-rate)
    # P(X > 1) = e^-λ (e^λ - 1 - λ)
    safe = torch.where(none, 1.0, rate)
    more = torch.where(none, 0.0, -torch.expm1(-safe) - safe * torch.exp(-safe))
    left = Probs(torch.stack([rest, probs, torch.zeros_like(probs)], -1), validate=False)
    return finite_kl(left, Probs(torch.stack([zero, one, more], -1), validate=False))


@closed_form(Poisson, Bernoulli, source="the support of q is bounded")
def poisson_bernoulli(p: Poisson, q: Bernoulli) -> Tensor:
    """+inf; -log(1-q) at λ = 0"""
    return _zero_rate(p, q, torch.ones((), dtype=torch.float64))


@closed_form(Poisson, Binomial, source="the support of q is bounded")
def poisson_binomial(p: Poisson, q: Binomial) -> Tensor:
    """+inf; -n log(1-q) at λ = 0"""
    return _zero_rate(p, q, doubles(q, "total_count")[0])


def _zero_rate(p: Poisson, q: Bernoulli | Binomial, count: Tensor) -> Tensor:
    (rate,), (_, rest) = doubles(p, "rate"), probabilities(q)
    rate, rest, count = together(rate, rest, count)
    finite = (rate == 0) & ((rest > 0) | (count == 0))
    return infinite_where(~finite, -count * torch.log(torch.where(finite & (rest > 0), rest, 1.0)) + 0.0 * rate)
