"""Wasserstein distances: on the line by quantiles, of Gaussians in closed form, else by optimal transport."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Distribution,
    HalfCauchy,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from kullback._errors import FormError, NoExactMethod, ToleranceError
from kullback.core.dtypes import result_dtype as wider
from kullback.forms.finite import FiniteForm
from kullback.forms.points import Points

from .arguments import as_form, check, name_of, result_dtype, silent
from .closed_form.multivariate import factor
from .doubled import doubled
from .quadrature import G7, K15, nodes, rule
from .registry import doubles, infinite_where
from .shapes import batch_of

_VECTORS = (MultivariateNormal, LowRankMultivariateNormal, Independent)


def wasserstein(
    p: Any,
    q: Any,
    /,
    order: float = 1.0,
    *,
    positions: Tensor | tuple[Tensor, Tensor] | None = None,
    cost: Tensor | None = None,
    regularization: float | None = None,
) -> Tensor:
    """Wasserstein distance (min over couplings of E |x - y|^order)^(1/order).

    Args:
        p, q: two `Points` (or one-column `Samples`); two forms over V classes, with `positions` or `cost`; two
            multivariate Normals (order 2); two distributions on the line with an `icdf`.
        order: >= 1.
        positions: where the classes lie: (V,) on the line or (V, d), or a pair of such for p and q.
        cost: (V, W) distances between p's and q's classes, instead of positions. Needs `kullback[transport]` (POT), as
            positions in several dimensions do; one pair at a time.
        regularization: entropic regularisation of Sinkhorn's algorithm, for `cost`; None is exact. The result is the
            cost of the regularised coupling, which is above the exact one.

    Returns: Tensor (...), >= 0, in the unit of the positions; +inf where a tail is too heavy.
    Gradients: to points, weights, parameters and costs; 0 where the two agree, where the distance has its corner.
    Raises: FormError, NoExactMethod, ToleranceError.
    Source: Villani 2009, chapter 6; Peyré & Cuturi 2019; Gaussians: Dowson & Landau 1982.

    >>> wasserstein(torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(3.0, 5.0), order=2)
    tensor(5.)
    >>> wasserstein(Probs([0.5, 0.5, 0.0]), Probs([0.0, 0.5, 0.5]), positions=torch.tensor([0.0, 1.0, 2.0]))
    tensor(1.)
    """
    order = float(order)
    if not 1.0 <= order < math.inf:
        raise FormError(f"wasserstein: order is {order:g}, but it must be a finite number >= 1.")
    left, right = as_form(p), as_form(q)
    if isinstance(left, FiniteForm) and isinstance(right, FiniteForm):
        value = _finite(left, right, order, positions, cost, regularization)
        return value.to(result_dtype(left, right))
    if positions is not None or cost is not None or regularization is not None:
        raise FormError("wasserstein: positions, cost and regularization belong to forms over classes; leave them out.")
    if _is_points(p) and _is_points(q):
        left, right = _points(p), _points(q)
        dtype = wider(*(torch.as_tensor(d.x).dtype for d in (p, q)))
        return _root(_line(*left.pair(), *right.pair(), order), order).to(dtype)
    check("wasserstein", p, q)
    return _root(_distributions(p, q, order), order).to(result_dtype(p, q))


def _root(power: Tensor, order: float) -> Tensor:
    """x^(1/order), with derivative 0 at 0 and at +inf."""
    if order == 1.0:
        return power
    edge = (power == 0) | torch.isinf(power)
    return torch.where(edge, power, torch.where(edge, 1.0, power) ** (1.0 / order))


def _is_points(d: Any) -> bool:
    return isinstance(d, Points) or type(d).__name__ == "Samples"


def _points(d: Any) -> Points:
    if isinstance(d, Points):
        return d
    if d.data.shape[-1] != 1:
        raise NoExactMethod(
            f"wasserstein: the samples have {d.data.shape[-1]} columns. Write wasserstein(Probs(p), Probs(q), "
            "positions=(x, y)) with equal weights for exact transport in several dimensions."
        )
    given = d.x if isinstance(d.x, Tensor) and d.x.is_floating_point() else d.data  # Samples hold no gradient
    return Points(given.reshape(-1))


def _line(x: Tensor, v: Tensor, y: Tensor, w: Tensor, order: float) -> Tensor:
    """∫ |F⁻¹(u) - G⁻¹(u)|^order du of two weighted point sets: both quantile functions are steps."""
    batch = torch.Size(torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]))  # type: ignore[no-untyped-call]
    x, v, y, w = (t.expand(*batch, t.shape[-1]) for t in (x, v, y, w))
    (x, at_x), (y, at_y) = x.sort(-1), y.sort(-1)
    steps_x, steps_y = v.gather(-1, at_x).cumsum(-1), w.gather(-1, at_y).cumsum(-1)
    steps, _ = torch.cat([torch.zeros_like(x[..., :1]), steps_x, steps_y], -1).sort(-1)
    middle = (0.5 * (steps[..., 1:] + steps[..., :-1])).detach().contiguous()
    i = torch.searchsorted(steps_x.detach().contiguous(), middle).clamp(max=x.shape[-1] - 1)
    j = torch.searchsorted(steps_y.detach().contiguous(), middle).clamp(max=y.shape[-1] - 1)
    gap = (x.gather(-1, i) - y.gather(-1, j)).abs()
    return ((steps[..., 1:] - steps[..., :-1]) * gap**order).sum(-1)


def _finite(
    p: FiniteForm,
    q: FiniteForm,
    order: float,
    positions: Tensor | tuple[Tensor, Tensor] | None,
    cost: Tensor | None,
    regularization: float | None,
) -> Tensor:
    if (positions is None) == (cost is None):
        raise FormError(
            "wasserstein: classes have no distance of their own. Write one of positions=(V,) or (V, d) and cost=(V, W)."
        )
    v = p.probabilities()
    w = q.probabilities()
    if positions is not None:
        x, y = positions if isinstance(positions, tuple) else (positions, positions)
        x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
        if x.shape[0] != p.num_classes or y.shape[0] != q.num_classes:
            raise FormError(
                f"wasserstein: {x.shape[0]} and {y.shape[0]} positions, but p has V={p.num_classes} and q has "
                f"V={q.num_classes}."
            )
        if x.dim() == 1 and regularization is None:
            return _root(_line(x, v, y, w, order), order)
        cost = torch.cdist(x.reshape(len(x), -1), y.reshape(len(y), -1))
    assert cost is not None
    if tuple(cost.shape) != (p.num_classes, q.num_classes) or v.dim() != 1 or w.dim() != 1:
        raise FormError(
            f"wasserstein: cost has shape {tuple(cost.shape)}, p {tuple(v.shape)} and q {tuple(w.shape)}; write "
            "cost=(V, W) and one pair of rows at a time."
        )
    return _root(_transport(v / v.sum(), w / w.sum(), cost.double() ** order, regularization), order)


def _transport(v: Tensor, w: Tensor, cost: Tensor, regularization: float | None) -> Tensor:
    try:
        import ot  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise NoExactMethod(
            "wasserstein: transport over a cost matrix needs POT. Write pip install 'kullback[transport]'."
        ) from None
    if regularization is None:
        value: Tensor = ot.emd2(v, w, cost, numItermax=10_000_000)
        return value.clamp(min=0.0)  # the solver's rounding
    if not 0.0 < regularization < math.inf:
        raise FormError(f"wasserstein: regularization is {regularization}, but it must be a finite number above 0.")
    loss: Tensor = ot.sinkhorn2(v, w, cost, regularization, method="sinkhorn_log", numItermax=100_000, stopThr=1e-12)
    return loss


def _distributions(p: Distribution, q: Distribution, order: float) -> Tensor:
    if isinstance(p, Normal) and isinstance(q, Normal) and order in (1.0, 2.0):
        (m, s), (n, t) = doubles(p, "loc", "scale"), doubles(q, "loc", "scale")
        shift, spread = m - n, s - t
        if order == 2.0:
            return shift**2 + spread**2
        flat = spread == 0
        size = torch.where(flat, 1.0, spread.abs())
        z = shift / size
        folded = size * (math.sqrt(2.0 / math.pi) * torch.exp(-0.5 * z * z) + z * torch.erf(z / math.sqrt(2.0)))
        return torch.where(flat, shift.abs(), folded)
    if isinstance(p, _VECTORS) and isinstance(q, _VECTORS):
        for d in (p, q):
            vector = not isinstance(d, Independent) or (isinstance(d.base_dist, Normal) and len(d.event_shape) == 1)
            if order != 2.0 or not vector:
                raise NoExactMethod(
                    f"wasserstein: order {order:g} of {name_of(p)} and {name_of(q)}; only order=2 of Gaussians is "
                    "closed."
                )
        return _gaussians(p, q)
    if isinstance(p, Cauchy | HalfCauchy) or isinstance(q, Cauchy | HalfCauchy):
        known = _without_mean(p, q, order)
        if known is not None:
            return known
    if isinstance(p, Distribution) and isinstance(q, Distribution) and not (p.event_shape or q.event_shape):
        return _quantiles(p, q, order)
    raise NoExactMethod(f"wasserstein: no exact method for {name_of(p)} and {name_of(q)}; write Points of samples.")


def _without_mean(p: Distribution, q: Distribution, order: float) -> Tensor | None:
    """Cauchy has no mean: two of one scale are a shift apart, a partner with a lighter tail is infinitely far."""
    batch = batch_of(p, q)
    if isinstance(p, Cauchy) and isinstance(q, Cauchy):
        (m, s), (n, t) = doubles(p, "loc", "scale"), doubles(q, "loc", "scale")
        return infinite_where((s != t).expand(batch), ((m - n).abs() ** order + 0.0 * (s + t)).expand(batch))
    if isinstance(p, HalfCauchy) and isinstance(q, HalfCauchy):
        (s,), (t,) = doubles(p, "scale"), doubles(q, "scale")
        return infinite_where((s != t).expand(batch), (0.0 * (s + t)).expand(batch))
    other = q if isinstance(p, Cauchy | HalfCauchy) else p
    if isinstance(other, Cauchy | HalfCauchy):  # one of each: only one has mass far below 0
        return torch.full(batch, math.inf, dtype=torch.float64) + silent(p, q)
    try:
        light = bool(torch.isfinite(other.mean).all()) and not other.event_shape
    except NotImplementedError:
        return None
    return torch.full(batch, math.inf, dtype=torch.float64) + silent(p, q) if light else None


def _gaussians(p: Any, q: Any) -> Tensor:
    """|μp - μq|² + |Lp - Lq R|², R the rotation that brings the factors closest (Bures); no cancellation.

    R = U Vᵀ from the singular vectors of Lqᵀ Lp is the minimiser, so that its own derivative drops out.
    """
    (m, lp), (n, lq) = factor(p), factor(q)
    with torch.no_grad():
        u, _, vh = torch.linalg.svd(lq.mT @ lp)
        rotation = u @ vh
    value: Tensor = ((m - n) ** 2).sum(-1) + ((lp - lq @ rotation) ** 2).sum((-2, -1))
    return value


_REACH = 34.0  # u = σ(t) is within 2e-15 of the ends


def _quantiles(p: Distribution, q: Distribution, order: float) -> Tensor:
    """∫ |F⁻¹(u) - G⁻¹(u)|^order du, u = σ(t), adaptive Gauss-Kronrod in t."""
    left, right = doubled(p), doubled(q)
    batch = batch_of(p, q)

    def integrand(t: Tensor) -> Tensor:
        u = torch.sigmoid(t)
        try:
            gap = left.icdf(u) - right.icdf(u)
        except NotImplementedError:
            raise NoExactMethod(
                f"wasserstein: {name_of(p)} or {name_of(q)} has no quantile function (icdf). Write Points of "
                "samples of both."
            ) from None
        value: Tensor = gap.abs() ** order * u * torch.sigmoid(-t)
        return value

    with torch.no_grad():
        edges = (
            torch.linspace(-_REACH, _REACH, 69, dtype=torch.float64).reshape(-1, *(1,) * len(batch)).expand(-1, *batch)
        )
        start, stop = edges[:-1].contiguous(), edges[1:].contiguous()
        for _ in range(60):
            t, half = nodes(start, stop)
            f = integrand(t).unsqueeze(0)
            value, error = (rule(K15, f) * half)[0], ((rule(K15, f) - rule(G7, f)).abs() * half)[0]
            total = value.sum(0)
            if bool((error.sum(0) <= 1e-10 * total + 1e-300).all()) or start.shape[0] > 2000:
                break
            worst = error.topk(8, dim=0).indices
            a, b = start.gather(0, worst), stop.gather(0, worst)
            start = torch.cat([start, 0.5 * (a + b)])
            stop = torch.cat([stop.scatter(0, worst, 0.5 * (a + b)), b])
        ends = torch.tensor([_REACH, _REACH - 2.0, -_REACH, -_REACH + 2.0], dtype=torch.float64)
        f = integrand(ends.reshape(-1, *(1,) * len(batch)).expand(-1, *batch))
        last, before = torch.maximum(f[0], f[2]), torch.maximum(f[1], f[3])
        infinite = (last >= before) & (last > 1e-13 * total)
        unresolved = ((last > 1e-9 * total) | (error.sum(0) > 1e-8 * total + 1e-300)) & ~infinite
        if bool(unresolved.any()):
            raise ToleranceError("wasserstein: the tails are too heavy for float64. Write Points of samples.")
    t, half = nodes(start, stop)
    value = (rule(K15, integrand(t).unsqueeze(0)) * half)[0].sum(0)
    return torch.where(infinite, math.inf, value)
