"""How heavy is a tail? The shape of a generalised Pareto law fitted to the largest of n numbers."""

import math

import torch
from torch import Tensor

HEAVY = 0.5  # the shape from which on a law has no variance, so that a standard error means nothing
_FEWEST = 20  # numbers in the tail, below which no shape is fitted


def pareto_shape(x: Tensor) -> float:
    """The shape k of the tail of |x - mean|: moments of order 1/k and above do not exist. -inf where there is no tail.

    Fitted to the largest min(n/5, 3√n) of them.

    Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling", for the use; Zhang &
    Stephens 2009 (Technometrics 51:316), equations (7) to (9), for the fit.

    >>> import torch
    >>> u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> round(pareto_shape(u**-0.7), 1), pareto_shape(u) < 0.0     # Pareto of shape 0.7; bounded
    (0.7, True)
    """
    size = (x.double() - x.double().mean()).abs().sort().values
    m = int(min(len(size) / 5, 3.0 * math.sqrt(len(size))))
    if m < _FEWEST or not bool(torch.isfinite(size[-1])) or bool(size[-m - 1] == size[-1]):
        return -math.inf
    return _shape(size[-m:] - size[-m - 1])


def _shape(excess: Tensor) -> float:
    """The posterior mean of Zhang & Stephens; excess is ascending, and >= 0."""
    m, grid = len(excess), 30 + math.isqrt(len(excess))
    step = 1.0 - torch.sqrt(grid / (torch.arange(1, grid + 1, dtype=torch.float64) - 0.5))
    quartile = excess[int(m / 4 + 0.5) - 1].clamp(min=float(excess[-1]) * 1e-12)
    theta = 1.0 / excess[-1] + step / (3.0 * quartile)
    k = torch.log1p(-theta.unsqueeze(-1) * excess).mean(-1)
    likelihood = m * (torch.log(-theta / k) - k - 1.0)
    best = (torch.softmax(likelihood, 0) * theta).sum()
    return float(torch.log1p(-best * excess).mean())
