"""Fitting a distribution to another one that is known only up to a factor: by reverse and by forward KL."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kullback._errors import FormError

from .average import average
from .base import Loss, LossOfParts
from .inputs import emptied, flag, integer, tensors, wide


class Family(Protocol):
    """What is fitted: draws with gradients, and a log-density. `DiagonalGaussian`, `FullGaussian` and the
    reparameterised distributions of `torch.distributions` are such."""

    def log_prob(self, z: Any) -> Any:
        """Log-density of z."""
        ...

    def rsample(self, sample_shape: Any = ()) -> Any:
        """Draws through which gradients flow."""
        ...


class ReverseKL(Loss):
    """Fit q to an unnormalised p by the negative ELBO: mode-seeking, q avoids what p excludes.

    L = E_{z~q}[ log q(z) - log p̃(z) ] = KL(q‖p) - log Z,  p = p̃/Z

    a mean over reparameterised draws.

    Args:
        num_samples: draws per call.
        path_gradient: drop the term whose expectation is zero ("sticking the landing"): log q is evaluated with its
            parameters held fixed, so that the variance vanishes as q reaches p. Needs a q with `detach()`.

    Call with:
        q: a family, see `Family`.
        log_p: z ↦ log p̃(z), for z (num_samples, ..., D); returns the shape of q.log_prob(z).
        generator: for the draws, if q takes one (`torch.distributions` use the global state).

    Returns: a scalar. Gradients: to q's parameters, and to log_p's.
    Raises: FormError: shapes that do not fit, a q that cannot do what is asked.

    Source: Jordan et al. 1999; Kingma & Welling 2014; Roeder, Wu & Duvenaud 2017, arXiv 1703.09194 (path gradient).

    >>> import torch
    >>> from kullback.losses import DiagonalGaussian
    >>> q = DiagonalGaussian(torch.zeros(1), torch.zeros(1))
    >>> loss = ReverseKL(num_samples=4)
    >>> loss(q, lambda z: q.log_prob(z) + 3.0, generator=torch.Generator().manual_seed(0))  # p is q, log Z is 3
    tensor(-3.)
    """

    def __init__(self, num_samples: int = 1, *, path_gradient: bool = False) -> None:
        super().__init__()
        self.num_samples = integer("ReverseKL", "num_samples", num_samples, at_least=1)
        self.path_gradient = flag("ReverseKL", "path_gradient", path_gradient)

    def forward(
        self, q: Family, log_p: Callable[[Tensor], Tensor], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss; see the class."""
        z = _draw(q, self.num_samples, generator)
        if self.path_gradient:
            if not hasattr(q, "detach"):
                raise FormError(
                    f"ReverseKL: {type(q).__name__} has no detach(). Write path_gradient=False, or a DiagonalGaussian."
                )
            log_q = q.detach().log_prob(z)
        else:
            log_q = q.log_prob(z)
        log_target = log_p(z)
        tensors("ReverseKL", **{"q.log_prob(z)": log_q, "log_p(z)": log_target})
        return average(wide(log_q) - wide(log_target))


class ForwardFit(NamedTuple):
    """The loss; the effective sample size 1/Σw² of the weights, averaged over the batch; the estimate of log Z (None
    without weights, where nothing tells it)."""

    loss: Tensor
    effective_sample_size: Tensor
    log_z: Tensor | None


class ForwardKL(LossOfParts):
    """Fit q to p by maximum likelihood on draws of p: mass-covering, q reaches wherever p is.

    L = -Σ_i w_i log q(z_i) = KL(p‖q) + H(p) in expectation

    with w_i = 1/n for draws of p itself, or, for draws of a proposal r, the self-normalised importance weights
    w_i ∝ p̃(z_i)/r(z_i): consistent, with a bias of order 1/n. Weights take no gradient.

    Call with keywords only:
        log_q: (S, ...) log q(z_i) of the family being fitted, with its gradient.
        log_weights: (S, ...) log p̃(z_i) - log r(z_i); None for draws of p. r may be q itself:
            give its log_prob detached.
        mask: (S, ...) bool, True keeps the draw; dropped ones may hold NaN.

    Returns:
        A scalar, the mean over the batch axes; `parts(...)` returns a `ForwardFit` with the effective sample size: a
        value near 1 says that one draw carries all the weight, and that the loss is not to be trusted.

    Raises: FormError: shapes that differ.

    Source: Bornschein & Bengio 2015, arXiv 1406.2751 (reweighted wake-sleep); Kong 1992 (effective sample size).

    >>> import torch
    >>> loss = ForwardKL()
    >>> loss(log_q=torch.tensor([-1.0, -3.0]), log_weights=torch.tensor([3.0, 1.0]).log())
    tensor(1.5000)
    >>> loss.parts(log_q=torch.tensor([-1.0, -3.0]), log_weights=torch.tensor([3.0, 1.0]).log()).effective_sample_size
    tensor(1.6000)
    """

    def parts(self, *, log_q: Tensor, log_weights: Tensor | None = None, mask: Tensor | None = None) -> ForwardFit:
        """The loss with what tells whether to trust it."""
        rows = tensors("ForwardKL", log_q=log_q, log_weights=log_weights)
        if not rows.shape:
            raise FormError("ForwardKL: log_q is a single number, but (S, ...) is needed. Write log_q.unsqueeze(0).")
        keep = rows.mask(mask)
        log_q, log_weights = wide(log_q), None if log_weights is None else wide(log_weights)
        scores = torch.zeros_like(log_q) if log_weights is None else log_weights.detach()
        if keep is not None:
            scores = torch.where(keep, scores, -math.inf)
        empty = (scores == -math.inf).all(0)
        scores = torch.where(empty, 0.0, scores)
        weights = torch.where(empty, 0.0, torch.softmax(scores, 0))
        # a draw without weight counts for nothing, even where q gives it no density either
        per_column = torch.where(weights > 0, -weights * emptied(log_q, weights > 0), 0.0).sum(0)
        size = 1.0 / (weights * weights).sum(0)
        loss = average(per_column, mask=~empty)
        log_z = None
        if log_weights is not None:
            count = log_q.shape[0] if keep is None else keep.sum(0)
            log_z = average(
                torch.logsumexp(scores, 0) - torch.log(torch.as_tensor(count, dtype=scores.dtype)), mask=~empty
            )
        return ForwardFit(loss, average(size, mask=~empty), log_z)


def _draw(q: Family, num_samples: int, generator: torch.Generator | None) -> Tensor:
    if not hasattr(q, "rsample") or not getattr(q, "has_rsample", True):
        raise FormError(
            f"ReverseKL: {type(q).__name__} has no reparameterised draws, so no gradient would reach its parameters."
        )
    options: dict[str, Any] = {} if generator is None else {"generator": generator}
    if options and "generator" not in inspect.signature(q.rsample).parameters:
        raise FormError(
            f"ReverseKL: {type(q).__name__}.rsample takes no generator. Leave generator= out and seed the global state "
            "with torch.manual_seed, or write a DiagonalGaussian."
        )
    draws: Tensor = q.rsample((num_samples,), **options)
    return draws
