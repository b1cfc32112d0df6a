"""Densities on the line, given by their logarithm."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback._errors import FormError

from .finite import FiniteForm


@dataclass(frozen=True, eq=False)
class Density:
    """A normalised density on an interval: p(x) = exp(log_prob(x)).

    Args:
        log_prob: takes a float64 tensor (nodes..., *batch_shape) of points inside the support and returns log p(x) of
            the same shape. Gradients flow to the tensors it closes over.
        support: (low, high), numbers or tensors of batch_shape, infinities allowed; the density counts as zero outside.
        batch_shape: one density (the default), or a batch of them.
        center, scale: roughly where the mass lies, and how wide, numbers or tensors of batch_shape; they guide the
            quadrature, not the value, and no gradient flows to them.

    Raises:
        FormError: an empty support, a scale that is not positive. A density that does not integrate to one is refused
            when it is measured, with the integral that was found.

    >>> import math, torch
    >>> from kullback import Density, kl
    >>> triangle = Density(lambda x: torch.log(2 * x), support=(0.0, 1.0))
    >>> kl(triangle, torch.distributions.Uniform(0.0, 1.0))  # log 2 - 1/2
    tensor(0.1931)
    """

    log_prob: Callable[[Tensor], Tensor]
    support: tuple[float | Tensor, float | Tensor] = (-math.inf, math.inf)
    batch_shape: Sequence[int] = ()
    center: float | Tensor = 0.0
    scale: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if not callable(self.log_prob):
            raise FormError(
                "Density: log_prob must be a function of points; write Density(lambda x: ..., support=...)."
            )
        low, high = (torch.as_tensor(end, dtype=torch.float64) for end in self.support)
        if not bool((low < high).all()):
            raise FormError(f"Density: the support {self.support} is empty; write (low, high) with low < high.")
        width = torch.as_tensor(self.scale, dtype=torch.float64)
        if not bool(((width > 0) & torch.isfinite(width)).all()):
            raise FormError(f"Density: scale is {self.scale}, but it must be a finite number above 0.")
        object.__setattr__(self, "batch_shape", torch.Size(self.batch_shape))


Measured: TypeAlias = FiniteForm | Density | Distribution
"""What a verb takes: a form, a density, or a `torch.distributions` object."""
