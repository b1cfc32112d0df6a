"""How the terms of a divergence grow where the two weights part: what an infinite sum or integral must be told."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback._errors import NoExactMethod
from kullback.core.reduction import GeneratorSum, LogAffinity, Sum


class Growth(NamedTuple):
    """A term is at most multiple (p + q) plus what is named here, each of it where it applies.

    p_log, q_log   p log(p/q), q log(q/p)
    cross          -p log q
    order          p^a q^(1-a), an order outside [0, 1]
    """

    multiple: float = 1.0
    p_log: bool = False
    q_log: bool = False
    cross: bool = False
    order: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether a multiple of p + q is all: then a sum or an integral of it is finite."""
        return not (self.p_log or self.q_log or self.cross) and self.order is None


def growth_of(total: Sum[Any]) -> Growth:
    """Raises NoExactMethod for a generator that does not say."""
    order = None if total.power is None else total.power.order
    outside = order if order is not None and not 0.0 <= order <= 1.0 else None
    if isinstance(total, LogAffinity):
        return Growth(order=outside)
    tail = total.generator.tail if isinstance(total, GeneratorSum) else None
    if tail is None:
        raise NoExactMethod(
            f"nothing is known of how {total} grows where q/p or p/q does, so that an infinite sum or integral of it "
            "has no error bound. Give its Generator a tail=Tail(...)."
        )
    cross = isinstance(total, GeneratorSum) and total.generator.log_q_slope
    return Growth(tail.multiple, tail.p_log and not cross, tail.q_log, cross, outside)


def log_size(growth: Growth, log_p: Tensor, log_q: Tensor, log_slope: Tensor) -> Tensor | None:
    """The logarithm of what may go beyond a multiple of p + q; None where nothing can.

    log_p, log_q: weights per unit of t, -inf outside of the support; log_slope: log dx/dt.
    """
    if growth.bounded:
        return None
    one_sided = torch.isinf(log_p) | torch.isinf(log_q)
    d = torch.where(one_sided, 0.0, log_q - log_p)
    parts = []
    if growth.order is not None:
        power = growth.order * log_p + (1.0 - growth.order) * log_q
        parts.append(torch.where(one_sided, -math.inf, power))
    if growth.p_log or growth.q_log:
        far = torch.log(d.abs().clamp(min=1.0))
        if growth.p_log:
            parts.append(log_p + torch.where(d < 0.0, far, 0.0))
        if growth.q_log:
            parts.append(log_q + torch.where(d > 0.0, far, 0.0))
    if growth.cross:
        raw = torch.where(torch.isinf(log_q), 0.0, log_q - log_slope).abs()
        parts.append(log_p + torch.log(raw.clamp(min=1.0)))
    size = parts[0]
    for part in parts[1:]:
        size = torch.maximum(size, part)
    return size
