"""Mixtures: bounds of KL and two approximations without a draw, from the KL between components.

With p = Σ π_a f_a, q = Σ ω_b g_b:

    convexity      KL <= min over joint weights φ_ab, ψ_ab of Σ φ log(φ/ψ) + Σ φ_ab KL(f_a‖g_b),
                   Σ_b φ_ab = π_a, Σ_a ψ_ab = ω_b
    variational    KL ≈ Σ π_a log( Σ_c π_c e^-KL(f_a‖f_c) / Σ_b ω_b e^-KL(f_a‖g_b) )
    product        KL ≈ Σ π_a log( Σ_c π_c ∫ f_a f_c / Σ_b ω_b ∫ f_a g_b )
    lower          KL >= Σ π_a ( log Σ_c π_c e^-KL(f_a‖f_c) - H(f_a) - log Σ_b ω_b ∫ f_a g_b )

The product approximation bounds E log p and E log q from above, so that their difference bounds nothing; for two
Normals of one covariance it is half of KL.

Source: Hershey & Olsen 2007, "Approximating the Kullback Leibler divergence between Gaussian mixture models",
sections 5 to 8; the lower bound: Durrieu, Thiran & Kelly 2012.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, MultivariateNormal, Normal

from kullback import verbs
from kullback._errors import FormError, NoExactMethod
from kullback.exact.registry import given_as_probs

from .draws import one_distribution
from .result import Estimate


@dataclass(frozen=True)
class MixtureBound:
    """A bound of KL between mixtures, or an approximation.

    Args:
        side: "upper" (convexity, optimised weights), "lower" (Normal components only), "approximation" (variational; no
            bound), or "product" (Normal components only; no bound, and may be negative).
        iterations: of the alternating minimisation of the upper bound; it never increases.

    Takes: two distributions, `MixtureSameFamily` or a single component, whose components `kullback.kl` can measure.

    >>> from kullback import estimate
    >>> from torch.distributions import Categorical, MixtureSameFamily, Normal
    >>> p = MixtureSameFamily(Categorical(torch.tensor([0.5, 0.5])), Normal(torch.tensor([-1.0, 1.0]), torch.ones(2)))
    >>> [round(estimate.kl(p, Normal(0.0, 1.0), method=MixtureBound(side)).raw, 3) for side in ("lower", "upper")]
    [-0.47, 0.5]
    """

    side: Literal["upper", "lower", "approximation", "product"] = "upper"
    iterations: int = 200

    def __post_init__(self) -> None:
        if self.side not in ("upper", "lower", "approximation", "product"):
            raise FormError(
                f"MixtureBound: side is {self.side!r}; write 'upper', 'lower', 'approximation' or 'product'."
            )

    def estimate(self, p: Distribution, q: Distribution, generator: torch.Generator | None = None) -> Estimate:
        """See `kullback.estimate.kl`. Nothing is drawn."""
        one_distribution("p", p)
        one_distribution("q", q)
        with torch.no_grad():
            (pi, f), (omega, g) = _parts(p), _parts(q)
            if self.side == "upper":
                value = _upper(pi, omega, _pairs(_component_kl, f, g), self.iterations)
            else:
                value = float((pi * self._terms(pi, f, omega, g)).sum())
        approximate = self.side in ("approximation", "product")
        return Estimate(
            value,
            math.nan if approximate else 0.0,
            0,
            bias="an approximation, either sign" if approximate else f"{self.side} bound",
            method=self,
            covers="both" if approximate else ("lower" if self.side == "lower" else "upper"),
        )

    def _terms(self, pi: Tensor, f: Distribution, omega: Tensor, g: Distribution) -> Tensor:
        """What each component of p contributes, (A,)."""
        if self.side == "approximation":
            within = torch.logsumexp(pi.log() - _pairs(_component_kl, f, f), -1)
            return within - torch.logsumexp(omega.log() - _pairs(_component_kl, f, g), -1)
        overlap = torch.logsumexp(omega.log() + _pairs(_log_overlap, f, g), -1)
        if self.side == "product":
            return torch.logsumexp(pi.log() + _pairs(_log_overlap, f, f), -1) - overlap
        within = torch.logsumexp(pi.log() - _pairs(_component_kl, f, f), -1)
        return within - verbs.entropy(f).double() - overlap


def _parts(distribution: Distribution) -> tuple[Tensor, Distribution]:
    """Weights (A,) and the components as one distribution of batch shape (A,)."""
    if isinstance(distribution, MixtureSameFamily):
        return distribution.mixture_distribution.probs.double(), distribution.component_distribution
    return torch.ones(1, dtype=torch.float64), distribution.expand(torch.Size((1,)))


def _pairs(of_pair: Callable[[Any, Any], Tensor], f: Distribution, g: Distribution) -> Tensor:
    """A number for every pair of components, (A, B)."""
    (a,), (b,) = f.batch_shape, g.batch_shape
    left = _indexed(f, torch.arange(a).repeat_interleave(b))
    right = _indexed(g, torch.arange(b).repeat(a))
    return of_pair(left, right).double().reshape(a, b)


def _indexed(distribution: Distribution, at: Tensor) -> Distribution:
    """The components at these positions, as a batch."""
    if isinstance(distribution, Independent):
        return Independent(_indexed(distribution.base_dist, at), distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, MultivariateNormal):
        return MultivariateNormal(distribution.loc[at], scale_tril=distribution.scale_tril[at])
    names = [name for name in distribution.arg_constraints if name in distribution.__dict__]
    if {"probs", "logits"} <= set(names):  # one was given, the other cached beside it
        names.remove("logits" if given_as_probs(distribution) else "probs")
    return type(distribution)(**{name: getattr(distribution, name)[at] for name in names})


def _component_kl(f: Distribution, g: Distribution) -> Tensor:
    try:
        return verbs.kl(f, g)
    except NoExactMethod:
        raise FormError(
            f"MixtureBound: there is no exact KL between {type(f).__name__} and {type(g).__name__}, of which the "
            "bounds are made. Write MonteCarlo()."
        ) from None


def _log_overlap(f: Distribution, g: Distribution) -> Tensor:
    """log ∫ f g for Normals: the density of their sum's law at the difference of the means."""
    if isinstance(f, MultivariateNormal) and isinstance(g, MultivariateNormal):
        return _at(MultivariateNormal(f.loc, f.covariance_matrix + g.covariance_matrix), g.loc)
    ndims = 0
    if isinstance(f, Independent) and isinstance(g, Independent):
        ndims, f, g = f.reinterpreted_batch_ndims, f.base_dist, g.base_dist
    if isinstance(f, Normal) and isinstance(g, Normal):
        log_overlap = _at(Normal(f.loc, torch.sqrt(f.scale**2 + g.scale**2)), g.loc)
        return log_overlap.sum(tuple(range(-ndims, 0))) if ndims else log_overlap
    raise FormError(
        "MixtureBound: 'lower' and 'product' need Normal components on both sides, and these are "
        f"{type(f).__name__} and {type(g).__name__}. Write MonteCarlo()."
    )


def _at(distribution: Distribution, x: Tensor) -> Tensor:
    log_density: Tensor = distribution.log_prob(x)
    return log_density


def _upper(pi: Tensor, omega: Tensor, across: Tensor, iterations: int) -> float:
    """Alternate the best φ for ψ and the best ψ for φ, from φ = ψ = π ω; +inf where a component reaches none of q's."""
    used = pi > 0
    pi, across = pi[used], across[used]
    reached = (torch.isfinite(across).any(0)) & (omega > 0)
    if not bool(torch.isfinite(across[:, omega > 0]).any(-1).all()):
        return math.inf
    # mass of q's components that no component of p may use goes to ψ alone, and costs nothing more
    omega, across = omega[reached], across[:, reached]
    log_phi = pi.log().unsqueeze(-1) + omega.log()
    for _ in range(iterations):
        log_psi = omega.log() + log_phi - torch.logsumexp(log_phi, 0)
        log_phi = log_psi - across
        log_phi = pi.log().unsqueeze(-1) + log_phi - torch.logsumexp(log_phi, 1, keepdim=True)
    log_psi = omega.log() + log_phi - torch.logsumexp(log_phi, 0)
    phi = log_phi.exp()
    terms = torch.where(phi > 0, phi * (log_phi - log_psi + across), 0.0)
    return float(terms.sum())
