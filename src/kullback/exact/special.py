"""Small differences, written so that they keep their digits.

Divergences between two members of a family are built from a few non-negative functions that vanish to second order when
their arguments agree: `rise`, and the Bregman divergences of -log x, x log x, log Γ and x^-m. Written as differences of
large terms they lose everything near equality; here each is a sum of non-negative terms that are themselves small.
All arguments are float64 tensors.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kullback.core.generators import excess

LOG_2 = math.log(2.0)
LOG_2PI_E = math.log(2.0 * math.pi * math.e)
EULER = 0.57721566490153286060651209008240243

# log Γ(x) = (x - 1/2) log x - x + log(2π)/2 + Σ_k STIRLING[k] x^-(2k+1); from x = 10 on the remainder is below 1e-16
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
# ψ(x) = log x - 1/(2x) - Σ_k DIGAMMA[k] x^-(2k+2)
DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)
LARGE_DF = 60.0
# log Γ(t + 1/2) - log Γ(t) = ½ log t + Σ_k c_k t^-(2k+1)
HALF_STEP = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336, -31 / 18432, 691 / 180224)
_LARGE = 10
_ENTROPY_LARGE = 16.0


def rise(y: Tensor) -> Tensor:
    """e^y - 1 - y >= 0."""
    return excess(torch.ones_like(y), torch.exp(y), y)


def log_ratio(a: Tensor, b: Tensor, difference: Tensor | None = None) -> Tensor:
    """log(a / b) for a, b > 0, given also a - b where that is known better than it can be computed."""
    delta = a - b if difference is None else difference
    near = delta.abs() < 0.5 * b
    close = torch.log1p(torch.where(near, delta, 0.0) / torch.where(near, b, 1.0))
    return torch.where(near, close, torch.log(a) - torch.log(b))


def relative_entropy(x: Tensor, y: Tensor, difference: Tensor | None = None) -> Tensor:
    """x log(x/y) - x + y >= 0 for x, y > 0, given also x - y: the Bregman divergence of x log x."""
    return excess(x, y, log_ratio(y, x, None if difference is None else -difference))


def bregman_power(x: Tensor, y: Tensor, m: int, difference: Tensor) -> Tensor:
    """Bregman divergence of x^-m from y to x, x^-m - y^-m + m (x - y) y^(-m-1), in terms that are all positive."""
    r = y / x
    tail = torch.zeros_like(r)
    for j in range(m - 2, -1, -1):
        tail = tail * r + (m - 1 - j)
    return (difference / x) ** 2 * (m / r + tail) * y**-m


def bregman_phi(x: Tensor, y: Tensor, difference: Tensor | None = None) -> Tensor:
    """Bregman divergence of φ(x) = log Γ(x) - x log x + x from y to x, >= 0 because φ'' = ψ' - 1/x > 0.

    From 10 on by Stirling's series, of which the first part -½ log x gives ½ rise(log(x/y)); below by
    log Γ(x) = log Γ(x + 10) - Σ_i log(x + i), each term of which gives a `rise`.
    """
    delta = x - y if difference is None else difference
    large = torch.minimum(x, y) >= _LARGE
    direct = _stirling(torch.where(large, x, _LARGE), torch.where(large, y, _LARGE), torch.where(large, delta, 0.0))
    u, v = torch.where(large, 1.0, x), torch.where(large, 1.0, y)
    gap = torch.where(large, 0.0, delta)
    steps = torch.arange(_LARGE, dtype=x.dtype, device=x.device)
    ladder = rise(log_ratio(u.unsqueeze(-1) + steps, v.unsqueeze(-1) + steps, gap.unsqueeze(-1))).sum(-1)
    shifted = relative_entropy(u + _LARGE, v + _LARGE, gap) - relative_entropy(u, v, gap)
    return torch.where(large, direct, ladder + shifted + _stirling(u + _LARGE, v + _LARGE, gap))


def bregman_lgamma(x: Tensor, y: Tensor, difference: Tensor | None = None) -> Tensor:
    """log Γ(x) - log Γ(y) - (x - y) ψ(y) >= 0."""
    return relative_entropy(x, y, difference) + bregman_phi(x, y, difference)


def _stirling(x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    total = 0.5 * rise(log_ratio(x, y, delta))
    for k, coefficient in enumerate(STIRLING):
        total = total + coefficient * bregman_power(x, y, 2 * k + 1, delta)
    return total


def gamma_entropy_rest(x: Tensor) -> Tensor:
    """h(x) = [log Γ(x) - (x - 1) ψ(x)] - [½ log(2πe x) - x] = -1/(3x) - ...; -h is the negentropy of Gamma(x)."""
    large = x >= _ENTROPY_LARGE
    u = torch.where(large, x, _ENTROPY_LARGE)
    s, t = sum(c * u ** -(2 * k + 1) for k, c in enumerate(STIRLING)), _digamma_tail(u)
    v = torch.where(large, 1.0, x)
    small = torch.lgamma(v) - (v - 1.0) * torch.digamma(v) - 0.5 * torch.log(v) + v - 0.5 * LOG_2PI_E
    return torch.where(large, s + (u - 1.0) * t - 0.5 / u, small)


def digamma_minus_log(x: Tensor) -> Tensor:
    """ψ(x) - log x."""
    large = x >= _ENTROPY_LARGE
    u, v = torch.where(large, x, _ENTROPY_LARGE), torch.where(large, 1.0, x)
    return torch.where(large, -0.5 / u - _digamma_tail(u), torch.digamma(v) - torch.log(v))


def _digamma_tail(u: Tensor) -> Tensor:
    total = torch.zeros_like(u)
    for k, c in enumerate(DIGAMMA):
        total = total + c * u ** -(2 * k + 2)
    return total


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^-x) for x > 0."""
    small = x < math.log(2.0)
    return torch.where(
        small,
        torch.log(-torch.expm1(-torch.where(small, x, 1.0))),
        torch.log1p(-torch.exp(-torch.where(small, 1.0, x))),
    )


def log_expm1(v: Tensor) -> Tensor:
    """log(e^x - 1) for x = e^v."""
    small, large = v < -36.0, v > 3.7
    middle = torch.log(torch.expm1(torch.exp(torch.where(small | large, 0.0, v))))
    return torch.where(small, v, torch.where(large, torch.exp(torch.where(large, v, 0.0)), middle))


def log1pexp(v: Tensor) -> Tensor:
    """log(1 + e^v); torch's softplus drops e^-v from 20 on."""
    return -logsigmoid(-v)


def log_log1p(v: Tensor) -> Tensor:
    """log(log(1 + e^v))."""
    small = v < -36.0
    return torch.where(small, v, torch.log(log1pexp(torch.where(small, 0.0, v))))


def log_log1p_minus(v: Tensor) -> Tensor:
    """log(-log(1 - e^v)) for v < 0."""
    small = v < -36.0
    return torch.where(small, v, torch.log(-torch.log1p(-torch.exp(torch.where(small, -1.0, v.clamp(max=-1e-300))))))


def log1mexp_log(v: Tensor) -> Tensor:
    """log(1 - e^-x) for x = e^v."""
    small = v < -36.0
    return torch.where(small, v, log1mexp(torch.exp(torch.where(small, 0.0, v))))


# log(sinh(x)/x) = Σ_k c_k x^2k; below 1/2 ten terms leave 1e-16
_SINHC = (
    *(1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575, -3617 / 2605132530000),
    *(43867 / 350813659321125, -174611 / 15313294652906250),
)


def log_sinhc(x: Tensor) -> Tensor:
    """log(sinh(x) / x) >= 0, even in x."""
    small = x.abs() < 0.5
    t = torch.where(small, x, 0.0) ** 2
    series = torch.zeros_like(t)
    for c in reversed(_SINHC):
        series = (series + c) * t
    u = torch.where(small, 1.0, x.abs())
    return torch.where(small, series, u + log1mexp(2.0 * u) - torch.log(2.0 * u))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def bregman_integral(second: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Bregman divergence ∫_0^1 (1-t) (x-y)² A''(y + t (x-y)) dt by Gauss-Legendre, for x close to y.

    Every term is positive, so nothing cancels; 20 nodes are exact to rounding when A'' is analytic within a distance
    |x - y| of the segment.
    """
    delta = (x - y).unsqueeze(-1)
    t = torch.as_tensor((_NODES + 1.0) / 2.0, dtype=x.dtype, device=x.device)
    w = torch.as_tensor(_WEIGHTS / 2.0, dtype=x.dtype, device=x.device)
    return (w * (1.0 - t) * delta**2 * second(y.unsqueeze(-1) + t * delta)).sum(-1)
