"""Nearest neighbours: KL(p‖q) from samples, without a model of either density.

With ρ_l the distance from a draw x_i of p to its l-th nearest other draw of p, and ν_h to its h-th nearest draw of q:

    plain          d/n Σ log(ν_k/ρ_k) + log(m/(n-1))
    bias-reduced   d/n Σ log(ν_h/ρ_l) + 1/n Σ (ψ(l) - ψ(h)) + log(m/(n-1)),
                   l and h the draws of p and of q within max(ρ_k, ν_k) of x_i

Where densities are constant within the radius both have no bias, at any k. Where they are not, the bias goes like a
power of the radius, and so of k: what is seen between k and 4k, carried on to radius 0, corrects the interval.

Source: Wang, Kulkarni & Verdú 2009 (IEEE Trans. Inf. Theory 55:2392), equations (5), and (25) with (29), a case of
(17); for one sample against a known density, the entropy estimator of Kozachenko & Leonenko 1987; for intervals about
a corrected value with the standard error of the corrected value, Calonico, Cattaneo & Titiunik 2014.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback._errors import FormError
from kullback.forms.empirical import Samples

from .draws import draw, log_density, one_distribution, source_of
from .resample import subsample, subsample_stderr
from .result import Corrected, Estimate, brief
from .search import Search, search

_WIDE = 0.25  # (k/n)^(1/d), the size of a neighbourhood in units of the whole cloud, above which bias is expected
_SUBSET = 1000  # subsets are at least so large, or half of the samples: smaller ones see too little of the tails
_WIDER = 4  # neighbourhoods of k and of _WIDER·k neighbours show the bias
_SHOWN, _LARGE = 2.5, 0.3  # a bias is named when it is so many of its standard errors, and such a part of the value
_STEEP = 3.0  # q's mass around a draw of p grows so many times faster than r^d: the draw lies outside q's cloud


@dataclass(frozen=True)
class NearestNeighbours:
    """k-nearest-neighbour estimate from samples of both, or samples of one and the density of the other.

    Args:
        k: neighbours; larger has less variance and more bias.
        bias_reduced: one radius for both samples at each draw (equation 29). It counts ties as they are, so that atoms
            are right. Without it (equation 5) a draw whose k-th neighbour is at distance 0 takes its nearest distinct
            neighbour instead.
        whiten: first map both samples to unit pooled covariance. KL does not change under an invertible linear map,
            but Euclidean neighbours do: without it, the column with the largest unit decides.
        replicates: subsets for the standard error (Politis & Romano 1994); 0 for none, and nothing is drawn.

    Takes: Samples and Samples; Samples and a distribution; a distribution and Samples (as many draws are taken from
    the distribution as there are samples). The value is the method's; the interval allows for the bias that shows
    between k and 4k neighbours, where there are draws enough. What it does not show, `verdict` names.

    >>> from kullback import Samples, estimate
    >>> method = NearestNeighbours(k=1, bias_reduced=False, replicates=0)
    >>> round(estimate.kl(Samples([1.0, 2.0, 4.0]), Samples([1.5, 3.0]), method=method).raw, 6)    # -log 2
    -0.693147
    """

    k: int = 5
    bias_reduced: bool = True
    whiten: bool = True
    replicates: int = 50

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
        x = draw(p, len(y), source_of(generator))
        return self._one_sample(x.reshape(y.shape).double(), y, log_density(p, x), generator)

    def _two_samples(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Estimate:
        if x.shape[1] != y.shape[1]:
            raise FormError(
                f"estimate.kl: the draws of p have {x.shape[1]} columns but those of q have {y.shape[1]}. Write the "
                "same columns on both sides, such as Samples(x[:, :d])."
            )
        self._enough(len(x) - 1, len(y))
        u, v, _ = _whitened(x, y) if self.whiten else (x, y, 0.0)
        ks = self._ks(min(len(x) - 1, len(y)))
        values, shares = self._compare(u, v, ks)
        return self._finish(
            values,
            (u, v),
            lambda a, b: self._compare(a, b, ks)[0],
            generator,
            m=len(y),
            ties=_tied(x, y),
            shares=shares,
        )

    def _ks(self, smallest: int) -> tuple[int, ...]:
        """The neighbours to look at: k, and 4k if all subsets have so many."""
        wider = _WIDER * self.k
        return (self.k, wider) if wider <= math.floor(_fraction(smallest) * smallest) - 1 else (self.k,)

    def _compare(self, x: Tensor, y: Tensor, ks: tuple[int, ...]) -> tuple[Tensor, "_Shares"]:
        """The estimate for each of ks, and where the draws of p lie."""
        (n, d), m = x.shape, len(y)
        of_p, of_q, shift = search(x), search(y), math.log(m / (n - 1))
        rhos, nus = of_p.kth_distances(x, tuple(k + 1 for k in ks)), of_q.kth_distances(x, ks)
        values: list[Tensor] = []
        apart = 0.0
        for k, rho, nu in zip(ks, rhos.T.contiguous(), nus.T.contiguous(), strict=True):
            if self.bias_reduced:
                radius = torch.maximum(rho, nu)
                own, inner = _within(of_p, x, radius, rho, itself=1)
                other, outer = _within(of_q, x, radius, nu, itself=0)
                terms = torch.digamma(own) - torch.digamma(other) + d * (outer - inner)
                apart = apart if values else float((2 * own >= n - 1).double().mean())
            else:
                k_p, rho = _distinct(x, x, rho, k, itself=1)
                k_q, nu = _distinct(x, y, nu, k, itself=0)
                terms = d * torch.log(nu / rho) + torch.digamma(k_p) - torch.digamma(k_q)
            values.append(terms.mean() + shift)
        return torch.stack(values), _Shares(apart, _outside(rhos[:, 0], nus, ks, d))

    def _one_sample(
        self, x: Tensor, y: Tensor | None, log_known: Tensor, generator: torch.Generator | None
    ) -> Estimate:
        """Draws x of p, and log_known of one density at them; the other is p's (y is None) or the one that y has."""
        points = x if y is None else y
        itself = 1 if y is None else 0
        self._enough(len(points) - itself, None)
        u, v, log_volume = _whitened(x, points) if self.whiten else (x, points, 0.0)
        ks = self._ks(len(points) - itself)

        def against(a: Tensor, b: Tensor) -> Tensor:
            cloud, known = a[:, :-1].contiguous(), a[:, -1]
            distances = search(b).kth_distances(cloud, tuple(k + itself for k in ks))
            size, d = torch.tensor(len(b) + 1.0 - itself, dtype=torch.float64), cloud.shape[1]
            values = []
            for k, distance in zip(ks, distances.T.contiguous(), strict=True):
                k_here, reach = _distinct(cloud, b, distance, k, itself=itself)
                found = torch.digamma(k_here) - torch.digamma(size) - _log_ball(d) - d * torch.log(reach) + log_volume
                values.append((found - known if y is None else known - found).mean())
            return torch.stack(values)

        packed = torch.cat([u, log_known.unsqueeze(-1)], -1)
        ties, values = _tied(points, points[:0]), against(packed, v)
        if y is None:
            return self._finish(
                values, (packed,), lambda a: against(a, a[:, :-1].contiguous()), generator, m=None, ties=ties
            )
        outside = 0.0
        if len(ks) > 1:
            of_p, of_q = search(u).kth_distances(u, (self.k + 1,)), search(v).kth_distances(u, ks)
            outside = _outside(of_p[:, 0], of_q, ks, u.shape[1])
        shares = _Shares(0.0, outside)
        return self._finish(values, (packed, v), against, generator, m=len(y), ties=ties, shares=shares)

    def _enough(self, n: int, m: int | None) -> None:
        if n < self.k or (m is not None and m < self.k):
            raise FormError(
                f"estimate.kl: {brief(self)} needs at least {self.k + 1} draws of p and {self.k} of q, and there are "
                "fewer. Write a smaller k, such as NearestNeighbours(k=1), or give more draws."
            )

    def _finish(
        self,
        values: Tensor,
        data: tuple[Tensor, ...],
        statistic: Callable[..., Tensor],
        generator: torch.Generator | None,
        *,
        m: int | None,
        ties: tuple[float, float],
        shares: "_Shares | None" = None,
    ) -> Estimate:
        """The estimate with its standard error, from subsets that are the same fraction of every sample."""
        smallest, n, value = min(len(part) for part in data), len(data[0]), float(values[0])
        d = data[-1].shape[1] - (m is None)
        details, stderr, corrected, shown = {"tied_share": ties[0], "shared_share": ties[1]}, math.nan, None, None
        fraction = _fraction(smallest)
        if self.replicates and math.isfinite(value) and fraction * smallest >= 2 * (self.k + 1):
            sizes = tuple(math.ceil(fraction * len(part)) for part in data)
            found = subsample(statistic, *data, sizes=sizes, generator=source_of(generator), replicates=self.replicates)
            share = sizes[0] / n
            stderr = subsample_stderr(found[:, 0], share)
            if len(values) > 1:
                bias, biases = _bias(values, d), _bias(found, d)
                corrected = Corrected(value - float(bias), subsample_stderr(found[:, 0] - biases, share))
                details["bias_seen"] = float(bias)
                known = abs(float(bias)) > _SHOWN * subsample_stderr(biases, share)
                if known and abs(float(bias)) > _LARGE * max(value, corrected.value):
                    shown = float(bias)
        if shares is not None:
            details["outside_share"] = shares.outside
        return Estimate(
            value,
            stderr,
            n,
            bias="unknown sign, grows with dimension",
            method=self,
            m=m,
            verdict=_verdict(value, stderr, ties, shares or _Shares(), shown, (self.k / smallest) ** (1.0 / d)),
            corrected=corrected,
            details=details,
        )


class _Shares(NamedTuple):
    """Shares of the draws of p: whose ball must take in half of p to reach q; that lie outside q's cloud."""

    apart: float = 0.0
    outside: float = 0.0


def _within(points: Search, x: Tensor, radius: Tensor, kth: Tensor, *, itself: int) -> tuple[Tensor, Tensor]:
    """How many points lie within the radius, and log(distance of the farthest of them / radius) times one."""
    counts = points.count_within(x, radius)
    inside = (kth < radius).nonzero().squeeze(-1)
    log_share = torch.zeros_like(radius)
    if len(inside):
        farthest = points.farthest_within(x[inside], radius[inside], counts[inside])
        log_share[inside] = torch.log(farthest / radius[inside])
    number = (counts - itself).double()
    # only ties within, at distance 0: the mean of that logarithm for so many points stands in
    return number, torch.where(torch.isinf(log_share), -1.0 / (number * x.shape[1]), log_share)


def _outside(rho: Tensor, nus: Tensor, ks: tuple[int, ...], d: int) -> float:
    """The share of draws that are farther from q than from p, and around which q's mass grows far faster than r^d.

    Of draws inside the cloud a few seem to: (ν_k/ν_4k)^d is Beta(k, 3k). Their share is taken off.
    """
    from scipy import special  # type: ignore[import-untyped]

    if len(ks) < 2:
        return 0.0
    steps = float(special.digamma(ks[1]) - special.digamma(ks[0])) / _STEEP
    steep = d * torch.log(nus[:, 1] / nus[:, 0]) < steps
    by_chance = float(special.betainc(ks[1] - ks[0], ks[0], 1.0 - math.exp(-steps)))
    far = nus[:, 0] > rho
    return max(0.0, float((far & steep).double().mean()) - by_chance * float(far.double().mean()))


def _bias(values: Tensor, d: int) -> Tensor:
    """The bias of the first of values (..., 2), for k and _WIDER·k neighbours, if it goes like their radius.

    On the line like its root instead: there it comes from edges and tails, and not from the middle.
    """
    growth: float = _WIDER ** (1.0 / max(d, 2))
    return (values[..., 1] - values[..., 0]) / (growth - 1.0)


def _fraction(smallest: int) -> float:
    """What part of the samples a subset holds."""
    size: float = max(_SUBSET, smallest**0.7)
    return min(size / smallest, 0.5)


def _verdict(
    value: float, stderr: float, ties: tuple[float, float], shares: _Shares, bias: float | None, width: float
) -> str:
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
    if shares.apart > 0.1:
        reasons.append(
            f"{100 * shares.apart:.0f} % of p lies so far from q that the value only says: about log(m) or more"
        )
    elif shares.outside * math.log(_WIDER) > stderr:
        reasons.append(
            f"{100 * shares.outside:.2g} % of the draws of p lie outside q's cloud, where nothing tells how small q's "
            "density is: the truth can be far above the interval"
        )
    if width > _WIDE:
        reasons.append(
            f"neighbourhoods reach {100 * width:.0f} % of the cloud, too far for the dimension and n: the bias can be "
            "larger than the interval"
        )
    if value < -2.0 * stderr:
        reasons.append("a divergence cannot be negative: this is bias")
    if bias is not None:
        reasons.append(f"between {_WIDER} times the neighbours and these the value moves as if biased by {bias:.2g}")
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


def same_draws(p: Samples, q: Samples) -> bool:
    """Whether both hold the same rows, in whatever order."""
    if p.data.shape != q.data.shape or not torch.equal(p.data.amax(0), q.data.amax(0)):
        return False
    (x, of_x), (y, of_y) = (torch.unique(side.data.cpu(), dim=0, return_counts=True) for side in (p, q))
    return torch.equal(x, y) and torch.equal(of_x, of_y)


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
