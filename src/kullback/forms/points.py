"""Weighted points on the line."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kullback._errors import FormError

from .finite import Array, floating_tensor


@dataclass(frozen=True, eq=False)
class Points:
    """A distribution of n points on the line: mass weights[i] / Σ weights at x[i].

    Args:
        x: (..., n), finite. Gradients flow to it.
        weights: (..., n), >= 0, not all zero, or None for equal masses. Gradients flow to them.

    Raises:
        FormError: no points, infinite ones, negative weights, a row without mass.

    >>> from kullback import Points, wasserstein
    >>> wasserstein(Points([0.0, 1.0, 3.0]), Points([5.0, 6.0, 8.0]))
    tensor(5.)
    """

    x: Array
    weights: Array | None = None
    data: Tensor = field(init=False, repr=False)
    mass: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        data = floating_tensor("Points", self.x)
        if not bool(torch.isfinite(data.detach()).all()):
            raise FormError("Points: x holds NaN or an infinity, but points are finite. Write Points(x[x.isfinite()]).")
        mass = None if self.weights is None else floating_tensor("Points", self.weights)
        if mass is not None:
            seen = mass.detach()
            if not bool((seen >= 0).all() & (seen.sum(-1) > 0).all()):
                raise FormError(
                    "Points: weights must be >= 0 with a positive sum in every row; leave them out for equal ones."
                )
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "mass", mass)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Points and normalised masses, in float64."""
        x = self.data.double()
        if self.mass is None:
            return x, torch.full_like(x, 1.0 / x.shape[-1])
        mass = self.mass.double()
        return x, (mass / mass.sum(-1, keepdim=True)).expand(torch.broadcast_shapes(mass.shape, x.shape))  # type: ignore[no-untyped-call]
