"""Gaussians as posteriors, priors and variational families, and their relative entropy in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.core.dtypes import result_dtype
from kullback.core.generators import excess
from kullback.forms.finite import readable

_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """N(mu, diag(exp(logvar))): what an encoder's `mu, logvar` mean.

    Args:
        mu: (..., D) means.
        logvar: (..., D) log-variances, or (D,) shared by all rows.

    Raises: FormError: other shapes, tensors that are not floating.

    >>> import torch
    >>> gaussian_kl(DiagonalGaussian(torch.tensor([1.0, 0.0]), torch.zeros(2)))
    tensor(0.5000)
    """

    mu: Tensor
    logvar: Tensor

    def __post_init__(self) -> None:
        _check_floating("DiagonalGaussian", mu=self.mu, logvar=self.logvar)
        if self.logvar.shape not in (self.mu.shape, self.mu.shape[-1:]):
            raise FormError(
                f"DiagonalGaussian: mu has shape {tuple(self.mu.shape)} but logvar has {tuple(self.logvar.shape)}. "
                "Both are (..., D), or logvar is (D,); if an encoder returned them together, write "
                "mu, logvar = h.chunk(2, -1), and for one number a row logvar.expand_as(mu)."
            )
        object.__setattr__(self, "logvar", self.logvar.expand_as(self.mu))

    def rsample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised draws mu + exp(logvar/2) ε, (*sample_shape, ..., D)."""
        return self.mu + torch.exp(self.logvar / 2) * _noise(self.mu, sample_shape, generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at z (*sample_shape, ..., D): (*sample_shape, ...)."""
        _check_point("DiagonalGaussian", self.mu, z)
        scaled = (z - self.mu) * torch.exp(-self.logvar / 2)
        return -0.5 * (scaled * scaled + self.logvar + _LOG_2PI).sum(-1)

    def detach(self) -> "DiagonalGaussian":
        """The same distribution, through which no gradient flows."""
        return DiagonalGaussian(self.mu.detach(), self.logvar.detach())

    def emptied(self, keep: Tensor) -> "DiagonalGaussian":
        """Standard in the rows where `keep` is False, so that what they held reaches no gradient."""
        rows = keep.unsqueeze(-1)
        return DiagonalGaussian(torch.where(rows, self.mu, 0.0), torch.where(rows, self.logvar, 0.0))

    def full(self) -> "FullGaussian":
        """The same distribution, with its (diagonal) factor written out."""
        return FullGaussian(self.mu, torch.diag_embed(torch.exp(self.logvar.double() / 2)), validate=False)


@dataclass(frozen=True, eq=False)
class FullGaussian:
    """N(mu, L Lᵀ), with the Cholesky factor L.

    Args:
        mu: (..., D) means.
        scale_tril: (..., D, D), or (D, D) shared by all rows: lower triangular with a positive diagonal;
            torch.linalg.cholesky(covariance).
        validate: check that (not inside `torch.compile` or `vmap`).

    Raises: FormError: shapes that do not fit, a diagonal entry that is not positive, entries above the diagonal.

    >>> import torch
    >>> covariance = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    >>> prior = FullGaussian(torch.zeros(2), torch.linalg.cholesky(covariance))
    >>> gaussian_kl(DiagonalGaussian(torch.zeros(2), torch.zeros(2)), prior)
    tensor(0.5000)
    """

    mu: Tensor
    scale_tril: Tensor
    validate: bool = True

    def __post_init__(self) -> None:
        _check_floating("FullGaussian", mu=self.mu, scale_tril=self.scale_tril)
        d = self.mu.shape[-1]
        if self.scale_tril.shape not in ((*self.mu.shape, d), (d, d)):
            raise FormError(
                f"FullGaussian: mu has shape {tuple(self.mu.shape)} but scale_tril has "
                f"{tuple(self.scale_tril.shape)}; (..., D) needs (..., D, D), or (D, D) for all rows."
            )
        if self.validate and readable(self.scale_tril):
            seen = self.scale_tril.detach()
            if bool((seen.diagonal(dim1=-2, dim2=-1) <= 0).any()) or bool((seen.triu(1) != 0).any()):
                raise FormError(
                    "FullGaussian: scale_tril is no Cholesky factor: it needs a positive diagonal and zeros above it. "
                    "Write torch.linalg.cholesky(covariance), or tril() of an output with exp() on its diagonal."
                )

    def rsample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised draws mu + L ε, (*sample_shape, ..., D)."""
        noise = _noise(self.mu, sample_shape, generator)
        return self.mu + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at z (*sample_shape, ..., D): (*sample_shape, ...)."""
        _check_point("FullGaussian", self.mu, z)
        whitened = _solve(self.scale_tril, (z - self.mu).unsqueeze(-1)).squeeze(-1)
        log_diagonal = torch.log(self.scale_tril.diagonal(dim1=-2, dim2=-1))
        return -0.5 * (whitened * whitened + _LOG_2PI).sum(-1) - log_diagonal.sum(-1)

    def detach(self) -> "FullGaussian":
        """The same distribution, through which no gradient flows."""
        return FullGaussian(self.mu.detach(), self.scale_tril.detach(), validate=False)

    def emptied(self, keep: Tensor) -> "FullGaussian":
        """Standard in the rows where `keep` is False, so that what they held reaches no gradient."""
        eye = torch.eye(self.mu.shape[-1], dtype=self.scale_tril.dtype, device=self.scale_tril.device)
        return FullGaussian(
            torch.where(keep.unsqueeze(-1), self.mu, 0.0),
            torch.where(keep[..., None, None], self.scale_tril, eye),
            validate=False,
        )

    def full(self) -> "FullGaussian":
        """Itself."""
        return self


Gaussian = DiagonalGaussian | FullGaussian


def gaussian_kl_per_dimension(q: DiagonalGaussian, p: DiagonalGaussian | None = None) -> Tensor:
    """KL(q‖p) of every coordinate, (..., D): ½ ((μ - m)²/v + (e^y - 1 - y)), y = logvar of q less that of p.

    p has the rows of q, or is one for all of them: (D,); None is N(0, I). Both terms are >= 0 and lose no digits near
    p = q: e^y - 1 - y goes by its series there.

    >>> import torch
    >>> gaussian_kl_per_dimension(DiagonalGaussian(torch.tensor([2.0, 0.0]), torch.zeros(2)))
    tensor([2., 0.])
    """
    _check_prior("gaussian_kl_per_dimension", q, p)
    mu, logvar = q.mu.double(), q.logvar.double()
    if p is not None:
        mu, logvar = (mu - p.mu.double()) * torch.exp(-p.logvar.double() / 2), logvar - p.logvar.double()
    spread = excess(torch.ones_like(logvar), torch.exp(logvar), logvar)
    return (0.5 * (mu * mu + spread)).to(_dtype_of(q, p))


def gaussian_kl(q: Gaussian, p: Gaussian | None = None) -> Tensor:
    """KL(q‖p) of two Gaussians, in nats, summed over the D coordinates: (...).

    Args:
        q: the posterior, `DiagonalGaussian` or `FullGaussian`.
        p: the prior, either kind, with the rows of q or one for all of them, (D,); None is N(0, I).

    Returns: Tensor (...), >= 0, 0 for equal arguments; arithmetic in float64.
    Gradients: to every tensor of q and p.
    Raises: FormError: different D, other rows.

    With A = M⁻¹L and a = M⁻¹(μ - m) it is ½ (|a|² + Σ_{i>j} A_ij² + Σ_i (A_ii² - 1 - log A_ii²)), computed from
    M⁻¹(L - M), so that nearly equal Gaussians keep their digits.
    Source: Kingma & Welling 2014, appendix B; Kullback 1959, chapter 9.

    >>> import torch
    >>> q = DiagonalGaussian(torch.zeros(1), torch.zeros(1))
    >>> gaussian_kl(q, DiagonalGaussian(torch.ones(1), torch.tensor([4.0]).log()))
    tensor(0.4431)
    """
    _check_prior("gaussian_kl", q, p)
    if isinstance(q, DiagonalGaussian) and (p is None or isinstance(p, DiagonalGaussian)):
        return gaussian_kl_per_dimension(q, p).sum(-1)
    left = q.full()
    mu, factor = left.mu.double(), left.scale_tril.double()
    if p is None:
        change = factor - torch.eye(mu.shape[-1], dtype=torch.float64, device=mu.device)
        shift = mu
    else:
        right = p.full()
        base = right.scale_tril.double()
        change = _solve(base, factor - base)
        shift = _solve(base, (mu - right.mu.double()).unsqueeze(-1)).squeeze(-1)
    log_variance = 2.0 * torch.log1p(change.diagonal(dim1=-2, dim2=-1))
    spread = excess(torch.ones_like(log_variance), torch.exp(log_variance), log_variance)
    below = change.tril(-1)
    total = 0.5 * ((shift * shift).sum(-1) + (below * below).sum((-2, -1)) + spread.sum(-1))
    return total.to(_dtype_of(q, p))


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(lower, right, upper=False)
    return solution


def _noise(mu: Tensor, sample_shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    shape = (*sample_shape, *mu.shape)
    return torch.randn(shape, dtype=mu.dtype, device=mu.device, generator=generator)


def _dtype_of(q: Gaussian, p: Gaussian | None) -> torch.dtype:
    return result_dtype(*(side.mu.dtype for side in (q, p) if side is not None))


def _check_point(owner: str, mu: Tensor, z: Tensor) -> None:
    if z.shape[max(z.dim() - mu.dim(), 0) :] != mu.shape:
        raise FormError(
            f"{owner}: mu has shape {tuple(mu.shape)} but z has {tuple(z.shape)}; z is (*sample_shape, ..., D), and "
            "nothing is broadcast. Expand z, or mu."
        )


def _check_prior(owner: str, q: Gaussian, p: Gaussian | None) -> None:
    if p is None or p.mu.shape in (q.mu.shape, q.mu.shape[-1:]):
        return
    if q.mu.shape[-1] != p.mu.shape[-1]:
        raise FormError(f"{owner}: q has D={q.mu.shape[-1]} but p has D={p.mu.shape[-1]}.")
    raise FormError(
        f"{owner}: q has mu of shape {tuple(q.mu.shape)} but p has {tuple(p.mu.shape)}; p has the same, or "
        f"{tuple(q.mu.shape[-1:])} for all rows. Expand one of them."
    )


def _check_floating(owner: str, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise FormError(f"{owner}: {name} must be a floating tensor. Write torch.as_tensor({name}).float().")
        if x.dim() == 0:
            raise FormError(f"{owner}: {name} is a single number, but (..., D) is needed. Write {name}.unsqueeze(-1).")
