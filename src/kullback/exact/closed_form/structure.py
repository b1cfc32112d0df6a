"""User-defined exponential families, by their own log-normaliser."""

import numpy as np
import torch
from torch import Tensor
from torch.distributions import ExponentialFamily

from kullback.exact.doubled import doubled
from kullback.exact.registry import closed_form
from kullback.exact.shapes import batch_of

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def _same_type(p: object, q: object) -> bool:
    return type(p) is type(q)


@closed_form(ExponentialFamily, ExponentialFamily, source="Nielsen & Nock 2010", applies=_same_type)
def family_family(p: ExponentialFamily, q: ExponentialFamily) -> Tensor:
    """A(θq) - A(θp) - ⟨θq - θp, ∇A(θp)⟩ for the log-normaliser A of any one exponential family

    Close parameters go through ∫ (1-t) d²/dt² A(θp + t (θq - θp)) dt by Gauss-Legendre, which does not cancel.
    """
    left, right = doubled(p), doubled(q)
    start = [x.unsqueeze(0) for x in left._natural_params]
    step = [y.unsqueeze(0) - x for x, y in zip(start, right._natural_params, strict=True)]

    def at(t: Tensor) -> Tensor:
        shaped = [t.reshape(*t.shape, *(1,) * (d.dim() - t.dim())) for d in step]
        value: Tensor = left._log_normalizer(*[x + u * d for x, u, d in zip(start, shaped, step, strict=True)])
        return value

    def derivative(value: Tensor, t: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(value.sum(), t, create_graph=True)
        return slope

    with torch.enable_grad():
        batch = batch_of(p, q)
        size = (-1, *(1,) * len(batch))
        t = torch.as_tensor((_NODES + 1.0) / 2.0).reshape(size).expand(-1, *batch).clone().requires_grad_()
        curvature = derivative(derivative(at(t), t), t)
        weights = torch.as_tensor(_WEIGHTS / 2.0).reshape(size)
        close = (weights * (1.0 - t.detach()) * curvature).sum(0)
        zero = torch.zeros(1, *batch, dtype=torch.float64).requires_grad_()
        base = at(zero)
        rise, slope = (at(torch.ones_like(zero)) - base)[0], derivative(base, zero)[0]
    far = rise - slope
    return torch.where(far.abs() < 1e-3 * (rise.abs() + slope.abs()), close, far)
