"""Nearest neighbours: KL(p‖q) from samples, without a model of either density.

With ρ the distance from a draw x_i of p to its k-th nearest other draw of p, and ν to its k-th nearest draw of q:

    plain          d/n Σ log(ν/ρ) + log(m/(n-1))
    bias-reduced   1/n Σ (ψ(l_i) - ψ(h_i)) + log(m/(n-1)),   l_i, h_i = draws of p, q within max(ρ, ν) of x_i

Source: Wang, Kulkarni & Verdú 2009 (IEEE Trans. Inf. Theory 55:2392), equations (5) and (25); for one sample
against a known density, the entropy estimator of Kozachenko & Leonenko 1987.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback._errors import FormError
from kullback.forms.empirical import Samples

from .draws import draw, log_density, need_generator, one_distribution
from .resample import subsample, subsample_stderr
from .result import Estimate, brief
from .search import search

_WIDE = 0.25  # (k/n)^(1/d), the size of a neighbourhood in units of the whole cloud, above which bias is expected
_SUBSET = 1000  # subsets are at least so large, or half of the samples: smaller ones see too little of the tails


@dataclass(frozen=True)
class NearestNeighbours:
    """k-nearest-neighbour estimate from samples of both, or samples of one and the density of the other.

    Args:
        k: neighbours; larger has less variance and more bias.
        bias_reduced: one radius for both samples at each draw. It counts ties as they are, so that atoms are right.
            Without it a draw whose k-th neighbour is at distance 0 takes its nearest distinct neighbour instead.
        whiten: first map both samples to unit pooled covariance. KL does not change under an invertible linear map,
            but Euclidean neighbours do: without it, the column with the largest unit decides.
        replicates: subsets for the standard error (Politis & Romano 1994); 0 for none, and no generator needed.

    Takes: Samples and Samples; Samples and a distribution; a distribution and Samples (as many draws are taken from
    the distribution as there are samples). The interval covers variance, not bias: read `verdict`.

    >>> from kullback import Samples, estimate
    >>> method = NearestNeighbours(k=1, bias_reduced=False, replicates=0)
    >>> round(estimate.kl(Samples([1.0, 2.0, 4.0]), Samples([1.5, 3.0]), method=method).value, 6)    # -log 2
    -0.693147
    """

    k: int = 5
    bias_reduced: bool = True
    whiten: bool = True
    replicates: int = 100

    def __post_init__(self) -> None:
        if not (isinstance(self.k, int) and self.k >= 1):
            raise FormError(f"NearestNeighbours: k is {self.k!r}, but it must be a whole number >= 1.")
        if not (isinstance(self.replicates, int) and (self.replicates == 0 or self.replicates >= 10)):
            raise FormError(
                f"NearestNeighbours: replicates is {self.replicates!r}; write at least 10, or 0 for no standard error."
            )

    def estimate(
        self, p: Samples | Distribution, q: Samples | Distribution, generator: torch.Generator | None
    ) -> Estimate:
        """See `kullback.estimate.kl`."""
        if isinstance(p, Samples) and isinstance(q, Samples):
            return self._two_samples(p.data.cpu(), q.data.cpu(), generator)
        if isinstance(p, Samples) and isinstance(q, Distribution):
            log_q = _log_density("q", q, p.data.cpu())
            return self._one_sample(p.data.cpu(), None, log_q, generator)
        assert isinstance(p, Distribution)
        assert isinstance(q, Samples)
        y = q.data.cpu()
        _same_space("p", p, y)
        x = draw(p, len(y), need_generator(self, generator))
        return self._one_sample(x.reshape(y.shape).double(), y, log_density(p, x), generator)

    def _two_samples(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Estimate:
        if x.shape[1] != y.shape[1]:
            raise FormError(
                f"estimate.kl: the draws of p have {x.shape[1]} columns but those of q have {y.shape[1]}. Write the "
                "same columns on both sides, such as Samples(x[:, :d])."
            )
        self._enough(len(x) - 1, len(y))
        u, v, _ = _whitened(x, y) if self.whiten else (x, y, 0.0)
        value, apart = self._compare(u, v)
        return self._finish(
            value, (u, v), lambda a, b: self._compare(a, b)[0], generator, m=len(y), ties=_tied(x, y), apart=apart
        )

    def _compare(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """The estimate, and the share of draws of p whose ball must take in half of p to reach q."""
        (n, d), m = x.shape, len(y)
        of_p, of_q, shift = search(x), search(y), math.log(m / (n - 1))
        rho, nu = of_p.kth_distance(x, self.k + 1), of_q.kth_distance(x, self.k)
        if self.bias_reduced:
            radius = torch.maximum(rho, nu)
            own, other = of_p.count_within(x, radius) - 1, of_q.count_within(x, radius)
            terms = torch.digamma(own.double()) - torch.digamma(other.double())
            return float(terms.mean()) + shift, float((2 * own >= n - 1).double().mean())
        k_p, rho = _distinct(x, x, rho, self.k, itself=1)
        k_q, nu = _distinct(x, y, nu, self.k, itself=0)
        terms = d * torch.log(nu / rho) + torch.digamma(k_p) - torch.digamma(k_q)
        return float(terms.mean()) + shift, 0.0

    def _one_sample(
        self, x: Tensor, y: Tensor | None, log_known: Tensor, generator: torch.Generator | None
    ) -> Estimate:
        """Draws x of p, and log_known of one density at them; the other is p's (y is None) or the one that y has."""
        points = x if y is None else y
        itself = 1 if y is None else 0
        self._enough(len(points) - itself, None)
        u, v, log_volume = _whitened(x, points) if self.whiten else (x, points, 0.0)

        def against(a: Tensor, b: Tensor) -> float:
            cloud, known = a[:, :-1], a[:, -1]
            distance = search(b).kth_distance(cloud, self.k + itself)
            k, distance = _distinct(cloud, b, distance, self.k, itself=itself)
            size = torch.tensor(len(b) + 1.0 - itself, dtype=torch.float64)
            d = cloud.shape[1]
            found = torch.digamma(k) - torch.digamma(size) - _log_ball(d) - d * torch.log(distance) + log_volume
            return float((found - known if y is None else known - found).mean())

        packed = torch.cat([u, log_known.unsqueeze(-1)], -1)
        ties = _tied(points, points[:0])
        value = against(packed, v)
        if y is None:
            return self._finish(value, (packed,), lambda a: against(a, a[:, :-1]), generator, m=None, ties=ties)
        return self._finish(value, (packed, v), against, generator, m=len(y), ties=ties)

    def _enough(self, n: int, m: int | None) -> None:
        if n < self.k or (m is not None and m < self.k):
            raise FormError(
                f"estimate.kl: {brief(self)} needs at least {self.k + 1} draws of p and {self.k} of q, and there are "
                "fewer. Write a smaller k, such as NearestNeighbours(k=1), or give more draws."
            )

    def _finish(
        self,
        value: float,
        data: tuple[Tensor, ...],
        statistic: Callable[..., float],
        generator: torch.Generator | None,
        *,
        m: int | None,
        ties: tuple[float, float],
        apart: float = 0.0,
    ) -> Estimate:
        """The estimate with its standard error, from subsets that are the same fraction of every sample."""
        smallest, n = min(len(part) for part in data), len(data[0])
        details, stderr, drift = {"tied_share": ties[0], "shared_share": ties[1]}, math.nan, 0.0
        fraction = min(max(_SUBSET, smallest**0.7) / smallest, 0.5)
        if self.replicates and math.isfinite(value) and fraction * smallest >= 2 * (self.k + 1):
            source = need_generator(self, generator)
            sizes = tuple(math.ceil(fraction * len(part)) for part in data)
            values = subsample(statistic, *data, sizes=sizes, generator=source, replicates=self.replicates)
            stderr = subsample_stderr(values, sizes[0] / n)
            details["value_of_subsets"], details["size_of_subsets"] = float(values.mean()), float(sizes[0])
            drift = float(values.mean()) - value
        d = data[-1].shape[1] - (m is None)
        width = (self.k / smallest) ** (1.0 / d)
        drift = drift / (fraction ** (-1.0 / d) - 1.0)  # what is still to come, if the bias goes like n^(-1/d)
        return Estimate(
            value,
            stderr,
            n,
            bias="unknown sign, grows with dimension",
            method=self,
            m=m,
            verdict=_verdict(value, stderr, ties, apart, drift, width),
            details=details,
        )


def _verdict(value: float, stderr: float, ties: tuple[float, float], apart: float, drift: float, width: float) -> str:
    if value == math.inf:
        return "a draw of p has no density under q, so that KL(p‖q) is +inf"
    reasons = []
    if ties[1] > 0.01 and ties[1] > ties[0]:
        reasons.append(f"{100 * ties[1]:.3g} % of the draws of p are draws of q too: the samples are not independent")
    if ties[0] > 0.01:
        reasons.append(
            f"{100 * ties[0]:.3g} % of the draws are duplicates, which a density does not have: if the values are "
            "categories or rounded, compare Counts"
        )
    if apart > 0.1:
        reasons.append(f"{100 * apart:.0f} % of p lies so far from q that the value only says: about log(m) or more")
    if width > _WIDE:
        reasons.append(
            f"neighbourhoods reach {100 * width:.0f} % of the cloud, too far for the dimension and n: the bias can be "
            "larger than the interval"
        )
    if value < -2.0 * stderr:
        reasons.append("a divergence cannot be negative: this is bias")
    if abs(drift) > stderr:
        reasons.append(f"the value still moves with n as if biased by {-drift:.2g}")
    if math.isnan(stderr):
        reasons.append("no standard error: too few draws to take subsets of, or replicates=0")
    return "; ".join(reasons)


def _distinct(queries: Tensor, points: Tensor, distance: Tensor, k: int, *, itself: int) -> tuple[Tensor, Tensor]:
    """k and the k-th distance of each query; where that is 0, those of the nearest distinct point instead."""
    ks = torch.full_like(distance, float(k))
    tied = (distance == 0).nonzero().squeeze(-1)
    for at in torch.split(tied, 256):
        all_of_them = torch.cdist(queries[at], points, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = torch.where(all_of_them > 0, all_of_them, math.inf).min(-1).values
        if bool(torch.isinf(nearest).any()):
            raise FormError("estimate.kl: all draws of a sample are one point, which has no density. Write Counts.")
        ks[at] = (all_of_them <= nearest.unsqueeze(-1)).sum(-1).double() - itself
        distance = distance.index_copy(0, at, nearest)
    return ks, distance


def _tied(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The shares of the draws x that repeat another of x, and that are among y."""
    rows, index = torch.unique(torch.cat([x, y]), dim=0, return_inverse=True)
    of_x, of_y = (torch.bincount(part, minlength=len(rows)) for part in (index[: len(x)], index[len(x) :]))
    seen = of_x > 0
    return float(of_x[of_x > 1].sum()) / len(x), float(of_x[seen & (of_y > 0)].sum()) / len(x)


def _whitened(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Both samples under the map W that gives their union unit covariance, and log |det W|. Equal rows stay equal."""
    d = x.shape[1]
    if d == 1:
        return x, y, 0.0
    rows, index = torch.unique(torch.cat([x, y]), dim=0, return_inverse=True)
    centred = rows - rows.mean(0)
    scale = centred.abs().amax(0)
    covariance = torch.cov((centred / torch.where(scale > 0, scale, 1.0))[index].T)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed) or bool((factor.diagonal() < 1e-7 * covariance.diagonal().sqrt()).any()):
        raise FormError(
            f"estimate.kl: the {d} columns are linearly dependent (or one is constant), so that there is no density "
            "in all of them. Leave out the dependent columns, or write NearestNeighbours(whiten=False)."
        )
    mapped = torch.linalg.solve_triangular(factor, (centred / scale).T, upper=False).T.contiguous()[index]
    return mapped[: len(x)], mapped[len(x) :], -float(factor.diagonal().log().sum() + scale.log().sum())


def _log_ball(d: int) -> float:
    """log of the volume of the unit ball in d dimensions."""
    return 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1.0)


def _log_density(name: str, distribution: Distribution, x: Tensor) -> Tensor:
    _same_space(name, distribution, x)
    return log_density(distribution, x.reshape(len(x), *distribution.event_shape))


def _same_space(name: str, distribution: Distribution, x: Tensor) -> None:
    one_distribution(name, distribution)
    d = x.shape[1]
    if tuple(distribution.event_shape) not in ((d,), () if d == 1 else (d,)):
        raise FormError(
            f"estimate.kl: {name} is over events of shape {tuple(distribution.event_shape)}, but the samples have {d} "
            "columns. Write a distribution over as many numbers, such as Independent(Normal(mean, std), 1)."
        )
    support = getattr(distribution, "support", None)
    if support is not None and support.is_discrete:
        raise FormError(
            f"estimate.kl: {name} is {type(distribution).__name__}, a distribution over whole numbers, which has no "
            "density. Write Counts of the samples against Probs of the distribution."
        )
