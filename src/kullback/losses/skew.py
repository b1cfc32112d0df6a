"""Skew divergence KL(p ‖ a p + (1-a) q): finite wherever a > 0, and a generator like the others."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.core.generators import Cells, Terms, _log_mix, excess, growth
from kullback.core.reduction import GeneratorSum
from kullback.engines import choice
from kullback.forms.finite import FiniteForm
from kullback.plan import check_pair
from kullback.verbs import kl

from .inputs import share


@dataclass(frozen=True)
class _Skew:
    """p log(p/m) - p + m, m = a p + (1-a) q, for 0 < a < 1."""

    weight: float

    def __call__(self, c: Cells) -> Terms:
        a, u = self.weight, 1.0 - self.weight
        m = a * c.p + u * c.q
        y = _log_mix(a, u, c.d)  # log(m/p)
        back = torch.exp(-y)  # p/m, at most 1/a
        from_p, from_q = growth(c.p, c.p * back, -y), growth(c.q, c.q * back, -y)
        return Terms(excess(c.p, m, y), -c.p * y - a * from_p, -u * from_q)


def skew_kl(p: FiniteForm, q: FiniteForm, /, weight: float = 0.1) -> Tensor:
    """Skew divergence KL(p ‖ a p + (1-a) q), in nats, one number per row.

    Args:
        p: the reference. Form over V classes.
        q: the approximation, smoothed by p itself. Form over the same V.
        weight: a in [0, 1]; 0 is KL(p‖q), 1 gives 0.

    Returns: Tensor (...), from 0 to log(1/a); finite for a > 0 whatever the supports.
    Gradients: to p and q, once and twice.
    Raises: FormError, as the verbs do.
    Source: Lee 1999 (with α = 1 - a); Ko et al. 2024, arXiv 2402.03898, section 3.1.

    >>> from kullback import Probs
    >>> skew_kl(Probs([1.0, 0.0]), Probs([0.0, 1.0]), weight=0.5)
    tensor(0.6931)
    """
    a = share("skew_kl", "weight", weight)
    if a == 0.0:
        return kl(p, q)
    batch_shape = check_pair("skew_kl", p, q)
    x, y = p.expand(batch_shape), q.expand(batch_shape)
    value = choice.rows(_sum(a), p.reading, q.reading, x, y, p.num_classes)
    return value.to(torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32)


def _sum(a: float) -> GeneratorSum:
    u = 1.0 - a
    return GeneratorSum(_Skew(a), at_p_zero=u, at_q_zero=-math.log(a) - u, plain=(-u, u), slopes=(0.0, -u / a))
