"""Pointwise generators: the formulas, each standing once.

A generator sees one cell of a pair of finite distributions, where both have mass:

    p, q     the two probabilities
    d        log(q / p), finite
    log_q    log q, finite

and returns its term of the sum with its two logarithmic derivatives p·∂f/∂p and q·∂f/∂q. Every term is
*canonical*: it is >= 0 and flat at p = q, because a multiple of (q - p), which sums to zero over two
normalised rows, has been added to the textbook term. The sum is therefore never negative and is insensitive, to first
order, to an error in either normaliser.

Cells where p or q has no mass are not the generator's business: an f-divergence is homogeneous, so its
term there is a constant times the mass that is left (`Divergence.at_p_zero`, `Divergence.at_q_zero`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Cells(NamedTuple):
    """What a generator sees: p, q, log(q/p) and log q, elementwise."""

    p: Tensor
    q: Tensor
    d: Tensor
    log_q: Tensor


class Terms(NamedTuple):
    """What a generator says: its term of the sum, p ∂f/∂p and q ∂f/∂q."""

    value: Tensor
    dlogp: Tensor
    dlogq: Tensor


Generator = Callable[[Cells], Terms]

# e^y - 1 - y = y² (1/2! + y/3! + ...): below 1/8 nine terms leave a relative remainder under 1e-15
_SERIES_BELOW = 0.125
_SERIES = tuple(1.0 / math.factorial(k) for k in range(2, 11))


def growth(w: Tensor, m: Tensor, y: Tensor) -> Tensor:
    """w (e^y - 1), given also m = w e^y: no overflow at large y, no cancellation at small y."""
    near = y.abs() < 1.0
    return torch.where(near, w * torch.expm1(torch.where(near, y, 0.0)), m - w)


def excess(w: Tensor, m: Tensor, y: Tensor) -> Tensor:
    """w (e^y - 1 - y) >= 0, given also m = w e^y."""
    near = y.abs() < _SERIES_BELOW
    t = torch.where(near, y, 0.0)
    series = torch.full_like(t, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        series = series * t + coefficient
    return torch.where(near, w * (t * t * series), m - w - w * y)


def kl(c: Cells) -> Terms:
    """p log(p/q) - p + q = p (e^d - 1 - d)."""
    return Terms(excess(c.p, c.q, c.d), -c.p * c.d, growth(c.p, c.q, c.d))


def reverse_kl(c: Cells) -> Terms:
    """q log(q/p) - q + p."""
    return Terms(excess(c.q, c.p, -c.d), growth(c.q, c.p, -c.d), c.q * c.d)


def jeffreys(c: Cells) -> Terms:
    """(q - p) log(q/p)."""
    g = growth(c.p, c.q, c.d)
    return Terms(g * c.d, -c.p * c.d - g, g + c.q * c.d)


@dataclass(frozen=True)
class js:  # noqa: N801 (a generator with a parameter, named like its siblings)
    """w p log(p/m) + (1-w) q log(q/m), with m = w p + (1-w) q; 0 at its limits w = 0 and w = 1."""

    weight: float

    def __call__(self, c: Cells) -> Terms:
        w, u = self.weight, 1.0 - self.weight
        if w == 0.0 or u == 0.0:
            return nothing(c)
        m = w * c.p + u * c.q
        log_m_p, log_m_q = _log_mix(w, u, c.d), _log_mix(u, w, -c.d)
        value = w * excess(c.p, m, log_m_p) + u * excess(c.q, m, log_m_q)
        return Terms(value, -w * c.p * log_m_p, -u * c.q * log_m_q)  # m is the minimiser: no term through it


def _log_mix(w: float, u: float, y: Tensor) -> Tensor:
    """log(w + u e^y) with w + u = 1, exact at y = 0, without overflow, and with its digits where it is small."""
    # near: -1/2 < u (e^y - 1) < 1
    low = math.log1p(-0.5 / u) if u > 0.5 else -math.inf
    high = math.log1p(1.0 / u) if u > 1e-300 else 700.0
    near = (y > low) & (y < high)
    small = torch.exp(-y.abs())
    far = y.clamp(min=0.0) + torch.log(torch.where(y < 0, w + u * small, u + w * small))
    return torch.where(near, torch.log1p(u * torch.expm1(torch.where(near, y, 0.0))), far)


@dataclass(frozen=True)
class alpha:  # noqa: N801
    """(p^a q^(1-a) - a p - (1-a) q) / (a (a-1)); its limits KL(p‖q) at a = 1 and KL(q‖p) at a = 0."""

    order: float

    def __call__(self, c: Cells) -> Terms:
        if self.order == 1.0:
            return kl(c)
        if self.order == 0.0:
            return reverse_kl(c)
        a, t = self.order, 1.0 - self.order
        if a >= 0.5:
            return Terms(*_alpha_half_up(a, t, c.p, c.q, c.d))
        value, dlogq, dlogp = _alpha_half_up(t, a, c.q, c.p, -c.d)
        return Terms(value, dlogp, dlogq)


def _alpha_half_up(a: float, t: float, p: Tensor, q: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The formula for a = 1 - t >= 1/2, where nothing cancels; t may be too small for 1 - t to show it."""
    m = torch.where(d < 0, p, q) * torch.exp(torch.where(d < 0, t * d, -a * d))  # p^a q^(1-a)
    dlogp = -growth(p, m, t * d) / t
    near = excess(p, q, d) - excess(p, m, t * d) / t
    far = growth(p, q, d) + dlogp
    return torch.where(d.abs() < 1.0, near, far) / a, dlogp, -growth(q, m, -a * d) / a


def tv(c: Cells) -> Terms:
    """|p - q| / 2."""
    g = growth(c.p, c.q, c.d)
    s = torch.where(g.isnan(), g, torch.sign(g))  # torch.sign(NaN) is 0
    return Terms(g.abs() / 2, -s * c.p / 2, s * c.q / 2)


def squared_hellinger(c: Cells) -> Terms:
    """(√p - √q)² / 2."""
    root_p, root_q = _root(c.p), _root(c.q)
    r = growth(root_p, root_q, c.d / 2)
    return Terms(r * r / 2, -root_p * r / 2, root_q * r / 2)


def _root(w: Tensor) -> Tensor:
    """√w, with derivative 0 where w has underflowed to 0."""
    zero = w == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, w)))


def chi2(c: Cells) -> Terms:
    """(p - q)² / q."""
    g = growth(c.p, c.q, c.d)
    return Terms(-g * torch.expm1(-c.d), -2.0 * g * torch.exp(-c.d), g * (1.0 + torch.exp(-c.d)))


def nothing(c: Cells) -> Terms:
    """0: all that counts lies on the edge (Rényi's order 0 is the mass of q where p has none)."""
    zero = 0.0 * c.d
    return Terms(zero, zero, zero)


def cross_entropy(c: Cells) -> Terms:
    """-p log q."""
    return Terms(-c.p * c.log_q, -c.p * c.log_q, -c.p)
