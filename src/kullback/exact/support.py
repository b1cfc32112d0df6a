"""Where a distribution lives, where its mass is, and its log-density there in float64."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    GeneralizedPareto,
    InverseGamma,
    Kumaraswamy,
    MixtureSameFamily,
    TransformedDistribution,
    VonMises,
    Weibull,
    constraints,
)
from torch.distributions.transforms import AbsTransform, ComposeTransform, Transform

from kullback.forms.density import Density

from .shapes import together

Measurable: TypeAlias = Distribution | Density


@dataclass(frozen=True)
class Support:
    """An interval [low, high] of reals or of integers, per row; ends may be infinite."""

    low: Tensor
    high: Tensor
    integers: bool


def support_of(d: Measurable) -> Support | None:
    """The support, or None if it is not one interval of the line or of the integers."""
    if isinstance(d, Density):
        return _interval(*d.support)
    if len(d.event_shape) > 0:
        return None
    if isinstance(d, VonMises):
        return _interval(-math.pi, math.pi)
    if isinstance(d, GeneralizedPareto):
        loc, scale, shape = d.loc.double(), d.scale.double(), d.concentration.double()
        bounded = shape < 0
        return Support(loc, torch.where(bounded, loc - scale / torch.where(bounded, shape, 1.0), math.inf), False)
    if isinstance(d, MixtureSameFamily):
        part = support_of(d.component_distribution)
        if part is None:
            return None
        size = _components(d)
        return Support(part.low.expand(size).amin(-1), part.high.expand(size).amax(-1), part.integers)
    if isinstance(d, TransformedDistribution) and type(d) is TransformedDistribution:
        return _pushed(d)
    try:
        return _of_constraint(d.support)
    except NotImplementedError:
        return None


def _components(d: MixtureSameFamily) -> torch.Size:
    return d.component_distribution.batch_shape


def _interval(low: Any, high: Any, integers: bool = False) -> Support:
    return Support(_double(low), _double(high), integers)


def _double(value: Any) -> Tensor:
    return value.double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _of_constraint(c: Any) -> Support | None:
    inner = getattr(c, "base_constraint", None)
    if inner is not None:
        return _of_constraint(inner) if getattr(c, "reinterpreted_batch_ndims", 0) == 0 else None
    if c is constraints.boolean:
        return _interval(0.0, 1.0, True)
    if c is constraints.real:
        return _interval(-math.inf, math.inf)
    low, high = getattr(c, "lower_bound", None), getattr(c, "upper_bound", None)
    if low is None and high is None:
        return None
    integers = bool(getattr(c, "is_discrete", False))
    return _interval(-math.inf if low is None else low, math.inf if high is None else high, integers)


def _pushed(d: TransformedDistribution) -> Support | None:
    base = support_of(d.base_dist)
    if base is None or base.integers:
        return None
    low, high = base.low, base.high
    for transform in _flat(d.transforms):
        if isinstance(transform, AbsTransform):
            inside = (low <= 0) & (high >= 0)
            a, b = low.abs(), high.abs()
            low, high = torch.where(inside, 0.0, torch.minimum(a, b)), torch.maximum(a, b)
        elif transform.bijective and transform.domain.event_dim == 0:
            a, b = transform(low), transform(high)
            low, high = torch.minimum(a, b), torch.maximum(a, b)
        else:
            return None
    return Support(low, high, False)


def _flat(transforms: Any) -> list[Transform]:
    parts: list[Transform] = []
    for t in transforms:
        parts += _flat(t.parts) if isinstance(t, ComposeTransform) else [t]
    return parts


def ends(d: Measurable, support: Support) -> list[Tensor]:
    """Finite ends of the support, and of each component of a mixture: where the density may jump."""
    if isinstance(d, MixtureSameFamily):
        part = support_of(d.component_distribution)
        assert part is not None
        found: list[Tensor] = []
        for side in (part.low, part.high):
            if side.dim() == 0 or bool((side.amin(-1) == side.amax(-1)).all()):
                found.append(side if side.dim() == 0 else side[..., 0])
            else:
                found += list(side.expand(_components(d)).unbind(-1))
    else:
        found = [support.low, support.high]
    return [end for end in found if bool(torch.isfinite(end).all())]


def landmarks(d: Measurable) -> tuple[Tensor, Tensor]:
    """Centres and widths (K, ...) of where the mass lies, roughly; without gradient."""
    if isinstance(d, Density):
        c, w = together(_double(d.center).detach(), _double(d.scale).detach())
        return c.unsqueeze(0), w.unsqueeze(0)
    if isinstance(d, MixtureSameFamily):
        centers, widths = landmarks(d.component_distribution)
        shape = _components(d)
        flat = (w.expand(w.shape[0], *shape).movedim(-1, 1).flatten(0, 1) for w in (centers, widths))
        return next(flat), next(flat)
    for center, width in (("mean", "stddev"), ("loc", "scale"), ("mode", "scale"), ("scale", "scale")):
        try:
            c, w = getattr(d, center).detach().double(), getattr(d, width).detach().double()
        except (NotImplementedError, AttributeError, RuntimeError):
            continue
        if bool(torch.isfinite(c).all()) and bool((torch.isfinite(w) & (w > 0)).all()):
            c, w = together(c, w)
            return c.unsqueeze(0), w.unsqueeze(0)
    zero = torch.zeros(d.batch_shape, dtype=torch.float64)
    return zero.unsqueeze(0), zero.unsqueeze(0) + 1.0


def log_density(d: Measurable, x: Tensor) -> Tensor:
    """log p(x) at points inside the hull of the support; -inf in a gap between components."""
    if isinstance(d, MixtureSameFamily):
        part = support_of(d.component_distribution)
        assert part is not None
        x = x.unsqueeze(-1)
        inside = (x >= part.low.detach()) & (x <= part.high.detach())
        middle = landmarks(d.component_distribution)[0][0]
        terms = torch.log_softmax(d.mixture_distribution.logits, -1) + log_density(
            d.component_distribution, torch.where(inside, x, middle)
        )
        terms = torch.where(inside, terms, -math.inf)
        nothing = (terms == -math.inf).all(-1)
        total = torch.logsumexp(torch.where(nothing.unsqueeze(-1), 0.0, terms), -1)
        return torch.where(nothing, -math.inf, total)
    own = _OWN.get(type(d))
    value: Tensor = d.log_prob(x) if own is None else own(d, x)
    return value


def _vonmises(d: Any, x: Tensor) -> Any:
    k = d.concentration
    return k * (torch.cos(x - d.loc) - 1.0) - math.log(2.0 * math.pi) - torch.log(torch.special.i0e(k))


def _kumaraswamy(d: Any, x: Tensor) -> Any:
    a, b = d.concentration1, d.concentration0
    return (
        torch.log(a) + torch.log(b) + (a - 1.0) * torch.log(x) + (b - 1.0) * torch.log(-torch.expm1(a * torch.log(x)))
    )


def _inverse_gamma(d: Any, x: Tensor) -> Any:
    a, b = d.concentration, d.rate
    return a * torch.log(b) - torch.lgamma(a) - (a + 1.0) * torch.log(x) - b / x


def _weibull(d: Any, x: Tensor) -> Any:
    k, z = d.concentration, torch.log(x) - torch.log(d.scale)
    return torch.log(k) - torch.log(d.scale) + (k - 1.0) * z - torch.exp(k * z)


def _generalized_pareto(d: Any, x: Tensor) -> Any:
    z, shape = (x - d.loc) / d.scale, d.concentration
    none = shape == 0
    safe = torch.where(none, 1.0, shape)
    return torch.where(none, -z, -(1.0 / safe + 1.0) * torch.log1p(safe * z)) - torch.log(d.scale)


# PyTorch's own log_prob of these loses digits (VonMises: 1e-8), overflows far out, or takes no float64
_OWN: dict[type, Any] = {
    VonMises: _vonmises,
    Kumaraswamy: _kumaraswamy,
    InverseGamma: _inverse_gamma,
    Weibull: _weibull,
    GeneralizedPareto: _generalized_pareto,
}
