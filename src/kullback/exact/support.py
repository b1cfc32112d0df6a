"""Where a distribution lives, where its mass is, and its log-density there in float64."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    GeneralizedPareto,
    Laplace,
    MixtureSameFamily,
    StudentT,
    TransformedDistribution,
    VonMises,
    constraints,
)
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from kullback.forms.density import Density

from .log_density import FROM_LOGARITHM, LOG_DENSITY
from .place import Place, Support, back, flat, image, is_exact, place_of, push
from .shapes import together

Measurable: TypeAlias = Distribution | Density


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
    if is_transformed(d) and type(d) not in LOG_DENSITY:
        return _pushed(d)
    try:
        return _of_constraint(d.support)
    except NotImplementedError:
        return None


def is_transformed(d: Any) -> bool:
    """Whether the density of d is that of its base, moved by its transforms."""
    return isinstance(d, TransformedDistribution) and type(d).log_prob is TransformedDistribution.log_prob


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


def _steps(d: Any) -> list[tuple[Any, Support]] | None:
    """The transforms of d in order, each with the support that it acts on."""
    support = support_of(d.base_dist)
    found = []
    for t in flat(d.transforms):
        if support is None or support.integers:
            return None
        found.append((t, support))
        support = image(t, support)
    return None if support is None else [*found, (None, support)]


def _pushed(d: Any) -> Support | None:
    steps = _steps(d)
    return None if steps is None else steps[-1][1]


def ends(d: Measurable, support: Support) -> list[Tensor]:
    """Ends of the support, and of each component of a mixture: where the density may jump."""
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
    return [end for end in found if bool(torch.isfinite(end).any())]


def kinks(d: Measurable) -> list[Tensor]:
    """Points inside of the support where the slope of the density jumps. They move with the parameters."""
    if isinstance(d, Laplace):
        return [d.loc.double()]
    if isinstance(d, MixtureSameFamily):
        return [x for part in kinks(d.component_distribution) for x in part.expand(_components(d)).unbind(-1)]
    if is_transformed(d) and type(d) not in LOG_DENSITY:
        return [_moved(d, kink) for kink in kinks(d.base_dist)]  # type: ignore[union-attr]
    return []


def _moved(d: Any, x: Tensor) -> Tensor:
    for t in flat(d.transforms):
        x = push(t, x)
    return x


def landmarks(d: Measurable) -> tuple[Tensor, Tensor]:
    """Centres and widths (K, ...) of where the mass lies, roughly; without gradient."""
    if isinstance(d, Density):
        c, w = together(_double(d.center).detach(), _double(d.scale).detach())
        return c.unsqueeze(0), w.unsqueeze(0)
    if isinstance(d, MixtureSameFamily):
        centers, widths = landmarks(d.component_distribution)
        shape = _components(d)
        flat_ = (w.expand(w.shape[0], *shape).movedim(-1, 1).flatten(0, 1) for w in (centers, widths))
        return next(flat_), next(flat_)
    if isinstance(d, LogitRelaxedBernoulli):
        c, w = together(d.logits.detach().double() / d.temperature.detach(), 1.0 / d.temperature.detach().double())
        return c.unsqueeze(0), w.unsqueeze(0)
    if is_transformed(d) and type(d) not in LOG_DENSITY:
        return _pushed_landmarks(d)
    names = (("loc", "scale"),) if isinstance(d, StudentT) else ()
    for center, width in (*names, ("mean", "stddev"), ("loc", "scale"), ("mode", "scale"), ("scale", "scale")):
        try:
            c, w = getattr(d, center).detach().double(), getattr(d, width).detach().double()
        except (NotImplementedError, AttributeError, RuntimeError):
            continue
        if bool(torch.isfinite(c).all()) and bool((torch.isfinite(w) & (w > 0)).all()):
            c, w = together(c, w)
            return c.unsqueeze(0), w.unsqueeze(0)
    zero = torch.zeros(d.batch_shape, dtype=torch.float64)
    return zero.unsqueeze(0), zero.unsqueeze(0) + 1.0


def _pushed_landmarks(d: Any) -> tuple[Tensor, Tensor]:
    """Those of the base, where the transforms bring them."""
    with torch.no_grad():
        c, w = landmarks(d.base_dist)
        middle, low, high = (
            _moved(d, x).nan_to_num(0.0, 1e140, -1e140).clamp(-1e140, 1e140) for x in (c, c - w, c + w)
        )
        width = torch.maximum((high - middle).abs(), (middle - low).abs())
        width = torch.where(width > 0, width, 1e-3 * middle.abs() + 1e-9).clamp(1e-290, 1e130)
        return middle, width.expand_as(middle)


def is_sharp(d: Measurable) -> bool:
    """Whether the log-density reads distances to its ends, so that it holds however near they are."""
    if isinstance(d, MixtureSameFamily):
        return is_sharp(d.component_distribution)
    if type(d) in LOG_DENSITY:
        return True
    return is_transformed(d) and is_sharp(d.base_dist) and all(map(is_exact, flat(d.transforms)))  # type: ignore


def is_far(d: Measurable) -> bool:
    """Whether the log-density holds where x itself overflows."""
    return isinstance(d, FROM_LOGARITHM) and type(d) in LOG_DENSITY


def log_density(d: Measurable) -> Callable[[Place], Tensor]:
    """log p of places inside the hull of the support of d; -inf in a gap between components."""
    if isinstance(d, MixtureSameFamily):
        return _mixture(d)
    formula = LOG_DENSITY.get(type(d))
    if formula is not None:
        return formula(d)
    steps = _steps(d) if is_transformed(d) else None
    if steps is None:
        return lambda at: d.log_prob(at.x)
    inner = log_density(d.base_dist)  # type: ignore[union-attr]
    found = steps[-2::-1]

    def read(at: Place) -> Tensor:
        slope = torch.zeros((), dtype=torch.float64)
        for t, support in found:
            at, more = back(t, support, at)
            slope = slope + more
        return inner(at) - slope

    return read


def _mixture(d: Any) -> Callable[[Place], Tensor]:
    part, hull = support_of(d.component_distribution), support_of(d)
    assert part is not None
    assert hull is not None
    inner = log_density(d.component_distribution)
    weights = torch.log_softmax(d.mixture_distribution.logits, -1)
    low, high = part.low == hull.low.unsqueeze(-1), part.high == hull.high.unsqueeze(-1)

    if bool((low & high).all()):

        def whole(at: Place) -> Tensor:
            return torch.logsumexp(weights + inner(Place(*(v.unsqueeze(-1) for v in at))), -1)

        return whole

    middle = landmarks(d.component_distribution)[0][0]

    def read(at: Place) -> Tensor:
        at = Place(*(v.unsqueeze(-1) for v in at))
        inside = (low | (at.x >= part.low.detach())) & (high | (at.x <= part.high.detach()))
        x = torch.where(inside, at.x, middle)
        rough = place_of(x, part)
        above = torch.where(inside & low, at.above, rough.above)
        place = Place(x, above, torch.where(inside & high, at.below, rough.below))
        terms = torch.where(inside, weights + inner(place), -math.inf)
        nothing = (terms == -math.inf).all(-1)
        total = torch.logsumexp(torch.where(nothing.unsqueeze(-1), 0.0, terms), -1)
        return torch.where(nothing, -math.inf, total)

    return read
