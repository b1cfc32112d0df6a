"""Draws from a distribution with a generator, and log-densities that say -inf outside the support."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback._errors import FormError


def source_of(generator: torch.Generator | None) -> torch.Generator:
    """The generator that was given, or PyTorch's own, which `torch.manual_seed` seeds."""
    return torch.default_generator if generator is None else generator


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """A random order of n things, on the CPU."""
    return torch.randperm(n, generator=generator, device=generator.device).cpu()


def draw(distribution: Distribution, n: int, generator: torch.Generator) -> Tensor:
    """n draws. PyTorch's distributions draw from the global state: it is seeded from `generator`, and restored."""
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return distribution.sample(torch.Size((n,)))


def log_density(distribution: Distribution, x: Tensor) -> Tensor:
    """log p(x) in float64, -inf outside the support, where PyTorch raises or answers with a number."""
    with torch.no_grad():
        try:
            support: Any = distribution.support
        except NotImplementedError:
            support = None
        inside = torch.ones(x.shape[:1], dtype=torch.bool) if support is None else support.check(x)
        inside = inside.reshape(x.shape[0], -1).all(-1)
        log_p = torch.full(x.shape[:1], -math.inf, dtype=torch.float64)
        if bool(inside.any()):
            log_p[inside] = distribution.log_prob(x[inside]).double()
    return log_p


def one_distribution(name: str, distribution: Distribution) -> None:
    """Refuse a batch: an estimate is one number."""
    if distribution.batch_shape.numel() != 1 or len(distribution.batch_shape) > 0:
        raise FormError(
            f"estimate.kl: {name} is a batch of distributions of shape {tuple(distribution.batch_shape)}, but an "
            "Estimate is one number. Write one call a distribution, or torch.distributions.Independent for a joint one."
        )
