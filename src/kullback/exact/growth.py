"""How the terms of a divergence grow where the two weights part: what an infinite sum or integral must be asked."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from kullback._errors import NoExactMethod
from kullback.core import generators
from kullback.core.reduction import GeneratorSum, LogAffinity, Sum

Growth: TypeAlias = Literal["bounded", "kl", "reverse", "both", "cross"] | float
"""A term is at most a multiple of p + q and, beyond it, p log(p/q), q log(q/p), both, -p log q, or p^a q^(1-a)."""


def power_of(total: Sum) -> float | None:
    """a where the sum is an affine function of ∫ p^a q^(1-a)."""
    if isinstance(total, LogAffinity):
        return total.order
    generator = total.generator if isinstance(total, GeneratorSum) else None
    if isinstance(generator, generators.alpha):
        return generator.order
    return 0.5 if generator is generators.squared_hellinger else 2.0 if generator is generators.chi2 else None


def needed(total: Sum) -> Growth:
    """Raises NoExactMethod where the generator does not say."""
    power = power_of(total)
    if power is not None and power not in (0.0, 1.0):
        return "bounded" if 0.0 <= power <= 1.0 else power
    if isinstance(total, LogAffinity):
        return "bounded"
    generator = total.generator if isinstance(total, GeneratorSum) else None
    if generator is generators.kl or power == 1.0:
        return "kl"
    if generator is generators.reverse_kl or power == 0.0:
        return "reverse"
    if generator is generators.jeffreys:
        return "both"
    if generator is generators.cross_entropy:
        return "cross"
    if isinstance(generator, generators.js) or generator in (generators.tv, generators.nothing):
        return "bounded"
    raise NoExactMethod("unknown growth")


def log_size(growth: Growth, log_p: Tensor, log_q: Tensor, log_slope: Tensor | None = None) -> Tensor | None:
    """The logarithm of that further part, -inf where there is none; log_slope: log dx/dt, if weights are per unit of t."""
    if growth == "bounded":
        return None
    one_sided = torch.isinf(log_p) | torch.isinf(log_q)
    d = torch.where(one_sided, 0.0, log_q - log_p)
    if isinstance(growth, float):
        value = growth * log_p + (1.0 - growth) * log_q
        return torch.where(one_sided, -math.inf, value)
    if growth == "cross":
        raw = torch.where(torch.isinf(log_q), 0.0, log_q if log_slope is None else log_q - log_slope).abs()
        return torch.where(raw > 1.0, log_p + torch.log(raw.clamp(min=1.0)), -math.inf)
    far = torch.log(d.abs().clamp(min=1.0))
    there = torch.where(d < -1.0, log_p + far, -math.inf)
    back = torch.where(d > 1.0, log_q + far, -math.inf)
    return there if growth == "kl" else back if growth == "reverse" else torch.maximum(there, back)
