"""Log-affinities log ∫ p^a q^(1-a) of exponential families, through their KL.

With m the density proportional to p^a q^(1-a), which in natural parameters is a p + (1-a) q,

    log ∫ p^a q^(1-a) = -a KL(m‖p) - (1-a) KL(m‖q)     0 < a < 1
                      = KL(p‖m) + (a-1) KL(p‖q)        a > 1
                      = KL(q‖m) - a KL(q‖p)            a < 0

so that every term has one sign, and keeps its digits near equality. Where m leaves the family, the integral diverges.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Binomial,
    Dirichlet,
    Exponential,
    Gamma,
    InverseGamma,
    LKJCholesky,
    Multinomial,
    Poisson,
    Wishart,
)

from kullback.divergences import renyi
from kullback.exact.registry import closed_form, doubles, infinite_where
from kullback.exact.shapes import batch_of, together
from kullback.exact.special import log_ratio, rise
from kullback.forms.finite import FiniteForm

from .counts import categorical, of_forms, same_total, two_point
from .gamma import beta_parameters, dirichlet, gamma, lkj_parameters, same_components, same_order, shape_rate
from .multivariate import same_matrices, scale_tril, wishart

_SOURCE = "Nielsen & Nock 2011; van Erven & Harremoës 2014, theorem 30"


Point = tuple[Tensor, ...]


def _affinity(p: Point, q: Point, order: float, inside: Callable[[Point], Tensor], kl: Callable[..., Tensor]) -> Tensor:
    """From natural parameters (up to a linear map), where they are inside, and kl(x, y, y - x)."""
    gap = tuple(y - x for x, y in zip(p, q, strict=True))
    m = tuple(x + (1.0 - order) * g for x, g in zip(p, gap, strict=True))
    outside = ~inside(m)

    def scaled(factor: float) -> Point:
        return tuple(factor * g for g in gap)

    def safe(x: Point, otherwise: Point) -> Point:
        return tuple(
            torch.where(outside.reshape(outside.shape + (1,) * (u.dim() - outside.dim())), v, u)
            for u, v in zip(x, otherwise, strict=True)
        )

    zero = tuple(torch.zeros_like(g) for g in gap)
    if order > 1.0:
        value = kl(p, safe(m, p), safe(scaled(1.0 - order), zero)) + (order - 1.0) * kl(p, q, gap)
    elif order < 0.0:
        value = kl(q, safe(m, q), safe(scaled(-order), zero)) - order * kl(q, p, scaled(-1.0))
    else:
        value = -order * kl(m, p, scaled(order - 1.0)) - (1.0 - order) * kl(m, q, scaled(order))
    return infinite_where(outside, value)


@closed_form(Gamma, Gamma, quantity="log_affinity", source=_SOURCE)
@closed_form(InverseGamma, InverseGamma, quantity="log_affinity", source=_SOURCE)
@closed_form(Exponential, Exponential, quantity="log_affinity", source=_SOURCE)
@closed_form(Gamma, Exponential, quantity="log_affinity", source=_SOURCE)
@closed_form(Exponential, Gamma, quantity="log_affinity", source=_SOURCE)
def gamma_affinity(
    p: Gamma | InverseGamma | Exponential, q: Gamma | InverseGamma | Exponential, order: float
) -> Tensor:
    """log Γ(c) - a log Γ(αp) - (1-a) log Γ(αq) + a αp log βp + (1-a) αq log βq - c log r, c and r between by a"""
    a, r, b, s = together(*shape_rate(p), *shape_rate(q))

    def kl(x: Point, y: Point, gap: Point) -> Tensor:
        return gamma(x[0], y[0], log_ratio(y[1], x[1], gap[1]) - log_ratio(y[0], x[0], gap[0]), gap[0])

    return _affinity((a, r), (b, s), order, lambda m: (m[0] > 0.0) & (m[1] > 0.0), kl)


def _simplex(a: Tensor, b: Tensor, order: float) -> Tensor:
    """Of two Dirichlet, (..., K) → (...)."""
    a, b = together(a, b)
    return _affinity((a,), (b,), order, lambda m: (m[0] > 0.0).all(-1), lambda x, y, gap: dirichlet(x[0], y[0], gap[0]))


@closed_form(Dirichlet, Dirichlet, quantity="log_affinity", source=_SOURCE)
def dirichlet_affinity(p: Dirichlet, q: Dirichlet, order: float) -> Tensor:
    """log B(a α + (1-a) β) - a log B(α) - (1-a) log B(β); +inf where a α + (1-a) β <= 0"""
    same_components(p, q)
    (a,), (b,) = doubles(p, "concentration"), doubles(q, "concentration")
    return _simplex(a, b, order)


@closed_form(Beta, Beta, quantity="log_affinity", source=_SOURCE)
def beta_affinity(p: Beta, q: Beta, order: float) -> Tensor:
    """as Dirichlet‖Dirichlet"""
    return _simplex(beta_parameters(p), beta_parameters(q), order)


@closed_form(LKJCholesky, LKJCholesky, quantity="log_affinity", source=_SOURCE)
def lkj_affinity(p: LKJCholesky, q: LKJCholesky, order: float) -> Tensor:
    """the sum of its Beta variables"""
    same_order(p, q)
    x, y = lkj_parameters(p), lkj_parameters(q)
    c = order * x[..., 0] + (1.0 - order) * y[..., 0]
    outside = (c <= 0.0).any(-1)
    safe = [torch.where(outside.unsqueeze(-1).unsqueeze(-1), 1.0, z) for z in together(x, y)]
    return infinite_where(outside, _simplex(safe[0], safe[1], order).sum(-1))


@closed_form(Poisson, Poisson, quantity="log_affinity", source=_SOURCE)
def poisson_affinity(p: Poisson, q: Poisson, order: float) -> Tensor:
    """λp^a λq^(1-a) - a λp - (1-a) λq"""
    (a,), (b,) = doubles(p, "rate"), doubles(q, "rate")
    a, b = together(a, b)
    edge = (a == 0) | (b == 0)
    x, y = torch.where(edge, 1.0, a), torch.where(edge, 1.0, b)
    log = log_ratio(x, y)
    # as y (e^(a log) - 1 - a (e^log - 1)), which is y (rise(a log) - a rise(log))
    inside = y * (rise(order * log) - order * rise(log))
    power = a if order > 1.0 else b if order < 0.0 else None  # the rate with the positive exponent
    infinite = torch.zeros_like(edge) if power is None else (power > 0) & ((b if order > 1.0 else a) == 0)
    empty = torch.where(infinite, 0.0, -order * a - (1.0 - order) * b)
    return infinite_where(infinite, torch.where(edge, empty, inside))


def _trials(count: Tensor | int, p: FiniteForm, q: FiniteForm, order: float) -> Tensor:
    """count times the log-affinity of one trial, which the finite engine gives as a Rényi divergence."""
    a, (x, y) = (order, (p, q)) if order > 0.0 else (1.0 - order, (q, p))
    value = (a - 1.0) * of_forms(renyi(a), x, y)
    return torch.where(torch.as_tensor(count) == 0, 0.0, count * value)


@closed_form(Multinomial, Multinomial, quantity="log_affinity", source="independent trials")
def multinomial_affinity(p: Multinomial, q: Multinomial, order: float) -> Tensor:
    """n times that of Categorical(p)‖Categorical(q), for equal n"""
    if p.total_count != q.total_count:
        away = torch.full(batch_of(p, q), torch.inf, dtype=torch.float64)
        return away if not 0.0 <= order <= 1.0 else -away
    return _trials(p.total_count, categorical(p), categorical(q), order)


@closed_form(Binomial, Binomial, quantity="log_affinity", source="independent trials", applies=same_total)
def binomial_affinity(p: Binomial, q: Binomial, order: float) -> Tensor:
    """n times that of Bernoulli(p)‖Bernoulli(q), for equal n"""
    return _trials(doubles(p, "total_count")[0], two_point(p), two_point(q), order)


@closed_form(Wishart, Wishart, quantity="log_affinity", source=_SOURCE)
def wishart_affinity(p: Wishart, q: Wishart, order: float) -> Tensor:
    """-a KL(m‖p) - (1-a) KL(m‖q), m with df a np + (1-a) nq and scale (a Vp⁻¹ + (1-a) Vq⁻¹)⁻¹; +inf where m is none"""
    same_matrices(p, q)
    (a,), (b,) = doubles(p, "df"), doubles(q, "df")
    lp, lq = together(scale_tril(p), scale_tril(q))
    a, b = together(a, b)
    size = lp.shape[-1]
    ratio = torch.linalg.solve_triangular(lq, lp, upper=False)
    eye = torch.eye(size, dtype=lp.dtype, device=lp.device).expand_as(ratio)

    def inside(m: Point) -> Tensor:
        definite: Tensor = torch.linalg.cholesky_ex(m[1].detach())[1] == 0
        return definite & (m[0] > size - 1)

    def root(precision: Tensor) -> Tensor:
        factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)))
        return factor

    def kl(x: Point, y: Point, gap: Point) -> Tensor:
        return wishart(x[0], root(x[1]), y[0], root(y[1]))

    return _affinity((a, torch.cholesky_inverse(ratio)), (b, eye), order, inside, kl)
