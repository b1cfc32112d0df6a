"""Gamma and what is built of it: Exponential, χ², inverse Gamma, Beta, Dirichlet, Wishart, LKJ."""

import math

import torch
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Exponential, Gamma, InverseGamma, LKJCholesky

from kullback._errors import FormError
from kullback.core.generators import excess
from kullback.exact.registry import closed_form, doubles
from kullback.exact.shapes import together
from kullback.exact.special import bregman_phi, log_ratio, rise


def gamma(a: Tensor, b: Tensor, log_mean_ratio: Tensor, difference: Tensor | None = None) -> Tensor:
    """KL of Gamma shape a to shape b, given log(mean of p / mean of q) and, where better known, b - a.

    Shape and mean are orthogonal: KL = B_φ(b, a) + b rise(log(mean_p/mean_q)), both >= 0, where B_φ is the Bregman
    divergence of log Γ(x) - x log x + x. Nothing cancels, whatever the direction of a small difference.
    """
    return bregman_phi(b, a, difference) + b * rise(log_mean_ratio)


def shape_rate(d: Gamma | InverseGamma | Exponential) -> tuple[Tensor, Tensor]:
    """In float64; 1 and the rate of an Exponential."""
    if isinstance(d, Exponential):
        (rate,) = doubles(d, "rate")
        return torch.ones_like(rate), rate
    concentration, rate = doubles(d, "concentration", "rate")
    return concentration, rate


def _gamma(p: Gamma | InverseGamma | Exponential, q: Gamma | InverseGamma | Exponential) -> Tensor:
    a, r, b, s = together(*shape_rate(p), *shape_rate(q))
    return gamma(a, b, log_ratio(s, r) - log_ratio(b, a))


@closed_form(Gamma, Gamma, source="Gil, Alajaji & Linder 2013")
def gamma_gamma(p: Gamma, q: Gamma) -> Tensor:
    """log Γ(αq)/Γ(αp) + (αp - αq) ψ(αp) + αq log(βp/βq) + αp (βq - βp)/βp"""
    return _gamma(p, q)


@closed_form(InverseGamma, InverseGamma, source="Gil, Alajaji & Linder 2013, by x → 1/x")
def inversegamma_inversegamma(p: InverseGamma, q: InverseGamma) -> Tensor:
    """as Gamma‖Gamma"""
    return _gamma(p, q)


@closed_form(Gamma, Exponential, source="Gil, Alajaji & Linder 2013, αq = 1")
def gamma_exponential(p: Gamma, q: Exponential) -> Tensor:
    """as Gamma‖Gamma with αq = 1"""
    return _gamma(p, q)


@closed_form(Exponential, Gamma, source="Gil, Alajaji & Linder 2013, αp = 1")
def exponential_gamma(p: Exponential, q: Gamma) -> Tensor:
    """as Gamma‖Gamma with αp = 1"""
    return _gamma(p, q)


@closed_form(Exponential, Exponential, source="Gil, Alajaji & Linder 2013")
def exponential_exponential(p: Exponential, q: Exponential) -> Tensor:
    """rise(log(λq/λp)) = λq/λp - 1 - log(λq/λp)"""
    (r,), (s,) = doubles(p, "rate"), doubles(q, "rate")
    return rise(log_ratio(s, r))


def dirichlet(a: Tensor, b: Tensor, difference: Tensor | None = None) -> Tensor:
    """KL of Dirichlet(a) to Dirichlet(b), (..., K) → (...), given also b - a where that is better known.

    Σ_i b_i log((b_i/Σb)/(a_i/Σa)) + Σ_i B_φ(b_i, a_i) - B_φ(Σb, Σa): the x log x part of log Γ groups into a finite
    relative entropy.
    """
    a, b = together(a, b)
    gap = b - a if difference is None else difference
    s, t, total_gap = a.sum(-1, keepdim=True), b.sum(-1, keepdim=True), gap.sum(-1, keepdim=True)
    y = log_ratio(a, b, -gap) - log_ratio(s, t, -total_gap)
    grouped = excess(b, a * (t / s), y).sum(-1)
    return grouped + bregman_phi(b, a, gap).sum(-1) - bregman_phi(t, s, total_gap).squeeze(-1)


def beta_parameters(d: Beta) -> Tensor:
    """(..., 2) in float64."""
    return torch.stack(together(*doubles(d, "concentration1", "concentration0")), -1)


@closed_form(Beta, Beta, source="Gil, Alajaji & Linder 2013")
def beta_beta(p: Beta, q: Beta) -> Tensor:
    """log B(q)/B(p) + (ap - aq) ψ(ap) + (bp - bq) ψ(bp) - (ap + bp - aq - bq) ψ(ap + bp)"""
    return dirichlet(beta_parameters(p), beta_parameters(q))


def same_components(p: Dirichlet, q: Dirichlet) -> None:
    """Raise FormError unless p and q are over equally many."""
    if p.event_shape != q.event_shape:
        raise FormError(f"p is over {p.event_shape[-1]} components but q over {q.event_shape[-1]}.")


@closed_form(Dirichlet, Dirichlet, source="Penny 2001")
def dirichlet_dirichlet(p: Dirichlet, q: Dirichlet) -> Tensor:
    """log B(β)/B(α) + Σ_i (α_i - β_i)(ψ(α_i) - ψ(Σα))"""
    same_components(p, q)
    (a,), (b,) = doubles(p, "concentration"), doubles(q, "concentration")
    return dirichlet(a, b)


def same_order(p: LKJCholesky, q: LKJCholesky) -> None:
    """Raise FormError unless p and q are over matrices of the same order."""
    if p.dim != q.dim:
        raise FormError(f"p is over {p.dim}×{p.dim} matrices but q over {q.dim}×{q.dim}.")


def lkj_parameters(d: LKJCholesky) -> Tensor:
    """(..., d-1, 2): the Beta parameters of the squared diagonal of its rows, from the second on."""
    (eta,) = doubles(d, "concentration")
    row = torch.arange(2, d.dim + 1, dtype=eta.dtype, device=eta.device)
    first = eta.unsqueeze(-1) + (d.dim - row) / 2.0
    return torch.stack([first, ((row - 1.0) / 2.0).expand_as(first)], -1)


@closed_form(LKJCholesky, LKJCholesky, source="Lewandowski, Kurowicka & Joe 2009; its diagonal is of Beta variables")
def lkj_lkj(p: LKJCholesky, q: LKJCholesky) -> Tensor:
    """Σ_i KL of Beta(ηp + (d-i)/2, (i-1)/2) to Beta(ηq + (d-i)/2, (i-1)/2), i = 2..d"""
    same_order(p, q)
    return dirichlet(lkj_parameters(p), lkj_parameters(q)).sum(-1)


@closed_form(LKJCholesky, quantity="entropy", source="its rows fill unit balls; their diagonal is of Beta variables")
def lkj_entropy(p: LKJCholesky) -> Tensor:
    """Σ_i b log π + log Γ(a) - log Γ(a+b) - (a-1)(ψ(a) - ψ(a+b)), a = η + (d-i)/2, b = (i-1)/2, below the diagonal"""
    a, b = lkj_parameters(p).unbind(-1)
    log_volume = b * math.log(math.pi) + torch.lgamma(a) - torch.lgamma(a + b)
    return (log_volume - (a - 1.0) * (torch.digamma(a) - torch.digamma(a + b))).sum(-1)
