"""Variational autoencoders: the negative evidence lower bound and its pieces."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import readable

from .average import average
from .base import LossOfParts
from .gaussian import DiagonalGaussian, FullGaussian, Gaussian, gaussian_kl, gaussian_kl_per_dimension
from .inputs import Rows, a_tensor, emptied, flag, not_negative, one_of, positive, tensors, wide


class VAEParts(NamedTuple):
    """The loss and its terms, each in nats per example: -log p(x|z); KL(posterior‖prior) before free bits; and the KL
    term that the loss holds, after free bits and before β."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    penalised_kl: Tensor


class VAELoss(LossOfParts):
    """The negative ELBO, summed over pixels and over latent coordinates, averaged over the batch.

    L = mean over examples of ( -log p(x|z) + β KL(q(z|x) ‖ p(z)) )

    Args:
        likelihood: "bernoulli": the decoder returns logits and targets lie in [0, 1]; "gaussian": it returns means, and
            the log-density has its constant, so that the loss is in nats.
        scale: σ of the Gaussian likelihood.
        beta: β of the β-VAE; a number, which a call may override (annealing, see `schedules`).
        free_bits: λ >= 0 nats. Below it, the KL of a group costs λ and sends no gradient.
        free_bits_over: what is compared with λ: "batch", the batch mean of each latent coordinate (the source), or
            "example", each coordinate of each example (many copies; a larger term). A full Gaussian posterior or prior
            has one group, all coordinates together.
        validate: check that Bernoulli targets lie in [0, 1] (on a GPU the check waits for the device).

    Call with keywords only:
        decoded: (batch, ...) the decoder's output, shaped like `target`.
        target: (batch, ...) the data.
        posterior: `DiagonalGaussian(mu, logvar)` or `FullGaussian(mu, scale_tril)`, with mu (batch, D).
        prior: a Gaussian, (D,) or (batch, D); None is N(0, I). For a prior without a closed form give `kl` instead.
        kl: (batch,) or (batch, D), in place of the posterior: for example the one-sample estimate
            `posterior.log_prob(z) - prior.log_prob(z)` for a mixture or a flow.
        beta: β of this step.
        mask: (batch,) bool, True keeps the example; dropped ones may hold NaN.
        num_items: kept examples in the whole step, for accumulation; not with free bits over the batch.

    Returns:
        A scalar; `parts(...)` takes the same arguments and returns it with its terms. With every example dropped a zero
        connected to the graph.

    Raises:
        FormError: settings out of range, shapes that do not fit, Bernoulli targets outside [0, 1].

    Gradients: to decoded, posterior and prior.

    Where copies differ: `reduction="mean"` divides the reconstruction by the number of pixels, and a mean over latent
    coordinates divides the KL by D: both are another β. A squared error without 1/(2σ²) is σ² = ½ without the constant.
    Bernoulli with grey values is no normalised density; its minimum is above 0.

    Source: Kingma & Welling 2014, arXiv 1312.6114, equation 10; Higgins et al. 2017 (β); Kingma et al. 2016,
    arXiv 1606.04934, equation 15 (free bits).

    >>> import torch
    >>> posterior = DiagonalGaussian(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    >>> VAELoss()(decoded=torch.zeros(1, 3), target=torch.ones(1, 3), posterior=posterior)
    tensor(2.5794)
    """

    def __init__(
        self,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        *,
        scale: float = 1.0,
        beta: float = 1.0,
        free_bits: float = 0.0,
        free_bits_over: Literal["batch", "example"] = "batch",
        validate: bool = True,
    ) -> None:
        super().__init__()
        one_of("VAELoss", "likelihood", likelihood, ("bernoulli", "gaussian"))
        one_of("VAELoss", "free_bits_over", free_bits_over, ("batch", "example"))
        self.likelihood = likelihood
        self.scale = positive("VAELoss", "scale", scale)
        self.beta = not_negative("VAELoss", "beta", beta)
        self.free_bits = not_negative("VAELoss", "free_bits", free_bits)
        self.free_bits_over = free_bits_over
        self.validate = flag("VAELoss", "validate", validate)

    def parts(
        self,
        *,
        decoded: Tensor,
        target: Tensor,
        posterior: Gaussian | None = None,
        prior: Gaussian | None = None,
        kl: Tensor | None = None,
        beta: float | None = None,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> VAEParts:
        """The loss with its terms; the arguments are those of the call."""
        weight = self.beta if beta is None else not_negative("VAELoss", "beta", beta)
        rows = _examples("VAELoss", decoded, target)
        keep = rows.mask(mask)
        nll = average(
            reconstruction_nll(decoded, target, self.likelihood, scale=self.scale, mask=keep, validate=self.validate),
            mask=keep,
            num_items=num_items,
        )
        per_group = _kl_groups(rows, posterior, prior, kl, keep)
        rate = average(per_group.sum(-1), mask=keep, num_items=num_items)
        penalised = self._with_free_bits(per_group, rate, keep, num_items)
        return VAEParts(nll + weight * penalised, nll, rate, penalised)

    def _with_free_bits(
        self, per_group: Tensor, rate: Tensor, keep: Tensor | None, num_items: int | Tensor | None
    ) -> Tensor:
        if self.free_bits == 0.0:
            return rate
        if self.free_bits_over == "example":
            return average(per_group.clamp(min=self.free_bits).sum(-1), mask=keep, num_items=num_items)
        if num_items is not None:
            raise FormError(
                "VAELoss: free bits over the batch need the whole batch at once, so num_items cannot be honoured. "
                "Write free_bits_over='example', or give whole batches without num_items."
            )
        groups = [average(column, mask=keep) for column in per_group.unbind(-1)]
        whole = torch.stack(groups).clamp(min=self.free_bits).sum()
        nothing = per_group.shape[0] == 0 if keep is None else ~keep.any()
        return torch.where(torch.as_tensor(nothing, device=whole.device), rate, whole)


def reconstruction_nll(
    decoded: Tensor,
    target: Tensor,
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
    *,
    scale: float = 1.0,
    mask: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """-log p(target | decoded) of every example, in nats, summed over all axes but the first: (batch,).

    "bernoulli": decoded holds logits a, each entry costs softplus(a) - x a. "gaussian": decoded holds means, each
    entry costs ½ ((x - mean)²/σ² + log 2πσ²). Masked examples (mask False) cost 0.

    Raises: FormError: different shapes, a mask that is not (batch,), Bernoulli targets outside [0, 1].

    >>> import torch
    >>> reconstruction_nll(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    tensor([1.3863])
    """
    one_of("reconstruction_nll", "likelihood", likelihood, ("bernoulli", "gaussian"))
    mask = _examples("reconstruction_nll", decoded, target).mask(mask)
    mean_or_logits, data = wide(emptied(decoded, mask)), wide(emptied(target, mask))
    if likelihood == "bernoulli":
        if validate and readable(data) and bool(((data < 0) | (data > 1)).any()):
            raise FormError(
                "reconstruction_nll: a Bernoulli target lies outside [0, 1]. Scale the data, or write "
                "likelihood='gaussian'."
            )
        per_entry = F.binary_cross_entropy_with_logits(mean_or_logits, data.to(mean_or_logits.dtype), reduction="none")
    else:
        error = (data - mean_or_logits) / scale
        per_entry = 0.5 * (error * error + math.log(2.0 * math.pi * scale * scale))
    return emptied(per_entry.flatten(1).sum(1) if per_entry.dim() > 1 else per_entry, mask)


def _examples(owner: str, decoded: Tensor, target: Tensor) -> Rows:
    """The examples of a batch: the first axis of `decoded`, which has the shape of `target`."""
    whole = tensors(owner, decoded=decoded, target=target)
    if not whole.shape:
        raise FormError(f"{owner}: decoded is a single number, but (batch, ...) is needed. Write decoded.unsqueeze(0).")
    return Rows(owner, "decoded", whole.shape[:1], whole.device)


def _kl_groups(
    rows: Rows, posterior: Gaussian | None, prior: Gaussian | None, kl: Tensor | None, keep: Tensor | None
) -> Tensor:
    """(batch, groups): a group for every coordinate where they are independent, else one."""
    if (posterior is None) == (kl is None):
        raise FormError("VAELoss: write posterior= (with prior= if it is not standard), or kl=, and not both.")
    for name, given in (("posterior", posterior), ("prior", prior)):
        if given is not None and not isinstance(given, DiagonalGaussian | FullGaussian):
            raise FormError(
                f"VAELoss: {name} is a {type(given).__name__}. Write DiagonalGaussian(mu, logvar) or "
                "FullGaussian(mu, scale_tril); for anything else give kl=."
            )
    if posterior is None:
        assert kl is not None
        a_tensor("VAELoss", "kl", kl)
        rows.fit(kl=kl if kl.dim() < 2 else kl[..., 0])
        return emptied(kl if kl.dim() > 1 else kl.unsqueeze(-1), keep)
    rows.fit(**{"posterior's mu[..., 0]": posterior.mu[..., 0]})
    if keep is not None:
        posterior = posterior.emptied(keep)
        prior = prior if prior is None or prior.mu.dim() == 1 else prior.emptied(keep)
    if isinstance(posterior, DiagonalGaussian) and (prior is None or isinstance(prior, DiagonalGaussian)):
        return gaussian_kl_per_dimension(posterior, prior)
    return gaussian_kl(posterior, prior).unsqueeze(-1)
