"""Kumaraswamy pairs in a variable in which neither is singular.

Kumaraswamy(a, b) has distribution function 1 - (1 - x^a)^b, so that -b log(1 - x^a) is exponential with rate 1,
whatever a and b. With z = -log(1 - x^a), that of another power is log(-log(1 - x^c)) = λ(log(c/a) + λ(log z)), where
λ(w) = log(-log(1 - exp(-e^w))) is its own inverse. The smaller power of the two gives the variable: it can hold the
smallest x. Divergences do not change under a change of variable.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Kumaraswamy

from kullback.forms.density import Density

from .registry import doubles
from .shapes import together
from .special import log1mexp


def on_the_line(p: Kumaraswamy, q: Kumaraswamy) -> tuple[Density, Density]:
    """The two densities of y = -b log(1 - x^a), a and b those of the smaller power."""
    powers = together(*doubles(p, "concentration1", "concentration0"), *doubles(q, "concentration1", "concentration0"))
    a, b, c, d = powers
    first = a.detach() <= c.detach()
    log_power = torch.log(torch.where(first, a, c).detach())
    log_rate = torch.log(torch.where(first, b, d).detach())
    return _density(a, b, log_power, log_rate), _density(c, d, log_power, log_rate)


def _density(a: Tensor, b: Tensor, log_power: Tensor, log_rate: Tensor) -> Density:
    shift, log_b = torch.log(a) - log_power, torch.log(b)

    def log_prob(y: Tensor) -> Tensor:
        log_y = torch.log(y)
        there, slope = _turn(log_y - log_rate)
        back, slope_back = _turn(there + shift)
        v = back + log_b
        return v - torch.exp(v) + slope + slope_back - log_y

    with torch.no_grad():  # around the point where its own variable is 1
        there, slope = _turn(-log_b)
        center, slope_back = _turn(there - shift)
        around = torch.exp((center + log_rate).clamp(-300.0, 300.0))
        width = around * torch.exp((slope + slope_back).clamp(-30.0, 0.0))
    return Density(log_prob, (0.0, math.inf), a.shape, around, width)


def _turn(w: Tensor) -> tuple[Tensor, Tensor]:
    """λ(w) and log|λ'(w)|: with z = e^w and L = -log(1 - e^-z), λ = log L and |λ'| = z / (e^z - 1) / L."""
    small, large = w < -30.0, w > 3.5  # there L = -w + z/2 and L = e^-z (1 + e^-z/2), to the last digit
    inner = torch.where(small | large, 0.0, w)
    z = torch.exp(inner)
    middle = torch.log(-log1mexp(z))
    slope = inner - torch.log(torch.expm1(z)) - middle
    low = torch.where(small, w, -30.0)
    at_low = torch.log(-low)
    high = torch.exp(torch.where(large, w, 3.5).clamp(max=690.0))
    value = torch.where(small, at_low, torch.where(large, -high, middle))
    return value, torch.where(small, -at_low, torch.where(large, torch.where(large, w, 0.0), slope))
