"""Normals with covariance D + W Wᵀ, W (d, r) with r far below d: nothing here is (d, d).

Σ⁻¹ = D⁻¹ - F Fᵀ by Woodbury's identity. Far apart, KL is the sum of trace, log-determinants and distance, whose error
is some 1e-16 of their size. Close by, the covariance part is ∫₀¹ s tr(Σq⁻¹ E C_s⁻¹ E) ds, with E = Σp - Σq and
C_s = Σq + s E, by Gauss-Legendre; E is made of Wp - Wq and Dp - Dq, so that it keeps its digits.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal

from kullback.exact.registry import doubles
from kullback.exact.shapes import is_traced
from kullback.exact.special import LOG_2PI_E, log_ratio, rise

LARGE = 128
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


class LowRank(NamedTuple):
    """Mean (..., d), W (..., d, r) and D (..., d)."""

    loc: Tensor
    w: Tensor
    diagonal: Tensor


class Structured(NamedTuple):
    """diag(t) + left rightᵀ."""

    t: Tensor
    left: Tensor
    right: Tensor


def low_rank(d: Any) -> LowRank | None:
    """The parts of a distribution whose covariance is diagonal plus low rank, else None."""
    if isinstance(d, LowRankMultivariateNormal):
        (loc,) = doubles(d, "loc")
        return LowRank(loc, d._unbroadcasted_cov_factor.double(), d._unbroadcasted_cov_diag.double())
    if isinstance(d, Independent):
        loc, scale = doubles(d.base_dist, "loc", "scale")
        return LowRank(loc, scale.new_zeros(*scale.shape, 0), scale**2)
    return None


def pays(*parts: LowRank) -> bool:
    """Whether the structure is worth its overhead against a dense Cholesky factor."""
    dimension = parts[0].loc.shape[-1]
    return dimension >= LARGE and 4 * sum(part.w.shape[-1] for part in parts) <= dimension


def entropy(p: LowRank) -> Tensor:
    """½ (d log(2πe) + log det Σ)."""
    return 0.5 * (p.loc.shape[-1] * LOG_2PI_E + torch.log(p.diagonal).sum(-1) + _log_det(_capacitance(p)))


def kl(p: LowRank, q: LowRank) -> Tensor:
    """½ [tr(Σq⁻¹ Σp) - d - log det(Σq⁻¹ Σp) + Δᵀ Σq⁻¹ Δ]."""
    root = _capacitance(q)
    distance = _distance(q, root, (p.loc - q.loc).unsqueeze(-1)).sum(-1)
    ratio = log_ratio(p.diagonal, q.diagonal)
    leverage = (torch.linalg.solve_triangular(root, q.w.mT, upper=False) ** 2).sum(-2) / q.diagonal
    rest = -(p.diagonal / q.diagonal * leverage).sum(-1) + _distance(q, root, p.w).sum(-1)
    growth = _log_det(root) - _log_det(_capacitance(p))
    far = rise(ratio).sum(-1) + rest + growth
    # both sides of the choice have their digits: far is good to 1e-16 of its terms, and the integral to rounding
    size = rise(ratio).sum(-1) + leverage.sum(-1) + growth.abs() + 1.0
    near = far.detach() < torch.clamp(1e-6 * size.detach(), max=0.1)
    covariance = torch.where(near, _close(p, q), far) if is_traced(far) or bool(near.any()) else far
    return 0.5 * (covariance + distance)


def _capacitance(d: LowRank) -> Tensor:
    """Cholesky factor of I + Wᵀ D⁻¹ W."""
    eye = torch.eye(d.w.shape[-1], dtype=d.w.dtype, device=d.w.device)
    factor: Tensor = torch.linalg.cholesky(eye + d.w.mT @ (d.w / d.diagonal.unsqueeze(-1)))
    return factor


def _log_det(root: Tensor) -> Tensor:
    return 2.0 * torch.log(root.diagonal(dim1=-2, dim2=-1)).sum(-1)


def _distance(q: LowRank, root: Tensor, x: Tensor) -> Tensor:
    """xᵀ Σ⁻¹ x for every column of x, as min over z of |x - W z|² (in D) + |z|²: two terms >= 0."""
    weighted = x / q.diagonal.unsqueeze(-1)
    z = torch.cholesky_solve(q.w.mT @ weighted, root) if q.w.shape[-1] else x.new_zeros(*x.shape[:-2], 0, x.shape[-1])
    left = x - q.w @ z
    return (left**2 / q.diagonal.unsqueeze(-1)).sum(-2) + (z**2).sum(-2)


def _inverse(d: LowRank) -> Structured:
    scaled = d.w / d.diagonal.unsqueeze(-1)
    f = torch.linalg.solve_triangular(_capacitance(d), scaled.mT, upper=False).mT
    return Structured(1.0 / d.diagonal, -f, f)


def _times(x: Structured, y: Structured) -> Structured:
    left = x.t.unsqueeze(-1) * y.left + x.left @ (x.right.mT @ y.left)
    return Structured(
        x.t * y.t,
        torch.cat(_but_last(left, x.left), -1),
        torch.cat(_but_last(y.right, y.t.unsqueeze(-1) * x.right), -1),
    )


def _but_last(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Expanded to a common shape, but for the last axis."""
    shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])  # type: ignore[no-untyped-call]
    return x.expand(*shape, x.shape[-1]), y.expand(*shape, y.shape[-1])


def _trace(x: Structured, y: Structured) -> Tensor:
    """Of the product."""
    crossed = (x.right.mT @ y.left) * (y.right.mT @ x.left).mT
    one = (x.t * (y.left * y.right).sum(-1)).sum(-1) + (y.t * (x.left * x.right).sum(-1)).sum(-1)
    return (x.t * y.t).sum(-1) + one + crossed.sum((-2, -1))


def _close(p: LowRank, q: LowRank) -> Tensor:
    """∫₀¹ s tr(Σq⁻¹ E C_s⁻¹ E) ds."""
    u, v = _but_last(p.w, q.w)
    more = u.shape[-1] - v.shape[-1]
    u, v = (torch.nn.functional.pad(x, (0, max(0, n))) for x, n in ((u, -more), (v, more)))
    gap, total = u - v, u + v
    e = Structured(p.diagonal - q.diagonal, torch.cat([0.5 * gap, 0.5 * total], -1), torch.cat([total, gap], -1))
    outer = _times(_inverse(q), e)
    value = torch.zeros((), dtype=torch.float64, device=u.device)
    for node, weight in zip((_NODES + 1.0) / 2.0, _WEIGHTS / 2.0, strict=True):
        s = float(node)
        mixed = torch.cat([math.sqrt(1.0 - s) * v, math.sqrt(s) * u], -1)
        middle = LowRank(p.loc, mixed, q.diagonal + s * e.t)
        value = value + float(weight) * s * _trace(outer, _times(_inverse(middle), e))
    return value
