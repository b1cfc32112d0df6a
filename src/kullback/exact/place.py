"""Points of the line that know how far they are from the ends of a support, and transforms between lines.

Near an end, a float64 x says nothing: 1 - 1e-20 is 1, and 1e-400 is 0. A `Place` therefore carries the logarithms of
its distances to both ends, which hold any scale, and densities that are singular at an end read those. A transform of
`torch.distributions` carries places back to its base exactly: below a sigmoid, y is log x - log(1 - x).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import transforms
from torch.distributions.transforms import ComposeTransform, ExpTransform, Transform
from torch.nn.functional import logsigmoid

from .shapes import together
from .special import LOG_2, log1pexp, log_expm1, log_log1p, log_log1p_minus


@dataclass(frozen=True)
class Support:
    """An interval [low, high] of reals or of integers, per row; ends may be infinite."""

    low: Tensor
    high: Tensor
    integers: bool


class Place(NamedTuple):
    """x, log(x - low) and log(high - x) for the ends of one support; +inf for an end that is infinite."""

    x: Tensor
    above: Tensor
    below: Tensor


def place_of(x: Tensor, support: Support) -> Place:
    """A place whose distances are the rounded ones; 1 stands for a distance that is not positive."""
    return Place(x, _distance(x, support.low, 1.0), _distance(x, support.high, -1.0))


def _distance(x: Tensor, end: Tensor, sign: float) -> Tensor:
    if end.dim() == 0 and bool(torch.isinf(end)):
        return torch.full((), math.inf, dtype=x.dtype)
    return log_gap(sign * (x - end))


def log_gap(gap: Tensor) -> Tensor:
    """log of a positive number, 0 otherwise."""
    positive = gap > 0
    return torch.where(positive, torch.log(torch.where(positive, gap, 1.0)), 0.0)


class _Line(NamedTuple):
    """A monotone map y ↦ x: where an end goes, and how a place comes back, with log|dx/dy|.

    `back` takes the transform, the support of y, and a place of x measured from the ends of that support's image.
    """

    image: Callable[[Any, Tensor], Tensor]
    back: Callable[[Any, Support, Place], tuple[Place, Tensor]]


def _exp(t: Any, s: Support, at: Place) -> tuple[Place, Tensor]:
    free = torch.isinf(s.low)
    y = torch.where(free, at.above, log_gap(at.x))
    low, high = _finite(s.low), _finite(s.high)
    above = torch.where(free, torch.inf, log_log1p(at.above - low))
    return Place(y, above, torch.where(torch.isinf(s.high), torch.inf, log_log1p_minus(at.below - high))), y


def _log(t: Any, s: Support, at: Place) -> tuple[Place, Tensor]:
    y = torch.exp(at.x)
    zero = s.low == 0
    low = torch.where(zero, 1.0, s.low)
    above = torch.where(zero, at.x, torch.log(low) + log_expm1(torch.where(zero, 0.0, at.above)))
    return Place(y, above, log_gap(s.high - y)), -at.x


def _sigmoid(t: Any, s: Support, at: Place) -> tuple[Place, Tensor]:
    log_x = torch.where(torch.isinf(s.low), at.above, log_gap(at.x))
    log_rest = torch.where(torch.isinf(s.high), at.below, log_gap(1.0 - at.x))
    y = log_x - log_rest
    return place_of(y, s), log_x + log_rest


def _logit(t: Any, s: Support, at: Place) -> tuple[Place, Tensor]:
    y, log_y, log_rest = torch.sigmoid(at.x), logsigmoid(at.x), logsigmoid(-at.x)
    rough = place_of(y, s)
    place = Place(y, torch.where(s.low == 0, log_y, rough.above), torch.where(s.high == 1, log_rest, rough.below))
    return place, -(log_y + log_rest)


def _tanh(t: Any, s: Support, at: Place) -> tuple[Place, Tensor]:
    up = torch.where(torch.isinf(s.low), at.above, log_gap(1.0 + at.x))
    down = torch.where(torch.isinf(s.high), at.below, log_gap(1.0 - at.x))
    return place_of(0.5 * (up - down), s), up + down


def _atanh(t: Any, s: Support, at: Place) -> tuple[Place, Tensor]:
    y, up, down = torch.tanh(at.x), LOG_2 + logsigmoid(2.0 * at.x), LOG_2 + logsigmoid(-2.0 * at.x)
    rough = place_of(y, s)
    place = Place(y, torch.where(s.low == -1, up, rough.above), torch.where(s.high == 1, down, rough.below))
    return place, -(up + down)


def _affine(t: Any, s: Support, at: Place) -> tuple[Place, Tensor]:
    scale = torch.as_tensor(t.scale).double()
    size, rising = torch.log(scale.abs()), scale > 0
    above, below = at.above - size, at.below - size
    place = Place((at.x - t.loc) / scale, torch.where(rising, above, below), torch.where(rising, below, above))
    return place, size


def _power(t: Any, s: Support, at: Place) -> tuple[Place, Tensor]:
    exponent = torch.as_tensor(t.exponent).double()
    whole = (s.low == 0) & torch.isinf(s.high)
    log_y = torch.where(whole, at.above, log_gap(at.x)) / exponent
    y = torch.exp(log_y)
    rough = place_of(y, s)
    slope = torch.log(exponent.abs()) + (exponent - 1.0) * log_y
    return Place(y, torch.where(whole, log_y, rough.above), rough.below), slope


def _softplus(t: Any, s: Support, at: Place) -> tuple[Place, Tensor]:
    log_x = torch.where(torch.isinf(s.low), at.above, log_gap(at.x))
    y = log_expm1(log_x)
    return place_of(y, s), logsigmoid(y)


def _any(t: Transform, s: Support, at: Place) -> tuple[Place, Tensor]:
    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        y = t.inv(x)
        return y, t.log_abs_det_jacobian(y, x)  # type: ignore[no-untyped-call]

    y, slope = read(at.x)
    lost = ~(torch.isfinite(y) & torch.isfinite(slope))
    ends = image(t, s) if bool(lost.any()) else None
    if ends is not None:  # nearer to an end than the inverse tells apart from it: as at the next place that it does
        low, high = ends.low.detach(), ends.high.detach()
        gap = torch.where(torch.isfinite(high - low), high - low, 1.0) * torch.finfo(torch.float64).eps
        y, slope = read(torch.where(lost, torch.minimum(torch.maximum(at.x, low + gap), high - gap), at.x))
    return place_of(y, s), slope


_INVERSE = type(ExpTransform().inv)
_KNOWN: dict[tuple[type, bool], _Line] = {
    (transforms.ExpTransform, False): _Line(lambda t, y: torch.exp(y), _exp),
    (transforms.ExpTransform, True): _Line(lambda t, y: torch.log(y), _log),
    (transforms.SigmoidTransform, False): _Line(lambda t, y: torch.sigmoid(y), _sigmoid),
    (transforms.SigmoidTransform, True): _Line(lambda t, y: torch.logit(y), _logit),
    (transforms.TanhTransform, False): _Line(lambda t, y: torch.tanh(y), _tanh),
    (transforms.TanhTransform, True): _Line(lambda t, y: torch.atanh(y), _atanh),
    (transforms.AffineTransform, False): _Line(lambda t, y: t.loc + t.scale * y, _affine),
    (transforms.PowerTransform, False): _Line(lambda t, y: y**t.exponent, _power),
    (transforms.SoftplusTransform, False): _Line(lambda t, y: log1pexp(y), _softplus),
}


def _line(t: Transform) -> _Line | None:
    inverted = isinstance(t, _INVERSE)
    return _KNOWN.get((type(t.inv) if inverted else type(t), inverted))


def is_exact(t: Transform) -> bool:
    """Whether places keep their distances on the way back."""
    return _line(t) is not None


def push(t: Transform, y: Tensor) -> Tensor:
    """x = t(y), ends and infinities included; torch's own sigmoid and logit are clamped."""
    known = _line(t)
    return (t(y) if known is None else known.image(t, y)).to(torch.float64)


def image(t: Transform, s: Support) -> Support | None:
    """The support of t(y) for y on `s`, or None where it is no interval."""
    if not t.bijective or t.domain.event_dim or t.codomain.event_dim:
        return None
    ends = together(*(_end(t, end) for end in (s.low, s.high)))
    return Support(torch.minimum(*ends), torch.maximum(*ends), False)


def _end(t: Transform, end: Tensor) -> Tensor:
    """Where an end goes. One of the whole domain goes to an end of the codomain, for a transform of one's own."""
    if _line(t) is not None:
        return push(t, torch.where(torch.isinf(end), end.detach(), end))
    domain, codomain = (
        (getattr(c, "lower_bound", -torch.inf), getattr(c, "upper_bound", torch.inf)) for c in (t.domain, t.codomain)
    )
    rising = torch.as_tensor(t.sign) > 0
    at_low, at_high = end == torch.as_tensor(domain[0]), end == torch.as_tensor(domain[1])
    bounds = [torch.as_tensor(c).double() for c in codomain]
    inner = t(torch.where(at_low | at_high, 0.5, end)).double()
    edge = torch.where(at_low == rising, bounds[0], bounds[1])
    return torch.where(at_low | at_high, edge, inner)


def back(t: Transform, s: Support, at: Place) -> tuple[Place, Tensor]:
    """The place y with t(y) = x on the support `s` of y, and log|dx/dy|."""
    known = _line(t)
    return _any(t, s, at) if known is None else known.back(t, s, at)


def flat(given: Iterable[Transform]) -> list[Transform]:
    """Transforms in the order in which they are applied, compositions opened."""
    parts: list[Transform] = []
    for t in given:
        parts += flat(t.parts) if isinstance(t, ComposeTransform) else [t]
    return parts


def _finite(end: Tensor) -> Tensor:
    return torch.where(torch.isinf(end), 0.0, end)
