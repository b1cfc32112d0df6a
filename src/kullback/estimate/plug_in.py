"""Counts: KL between observed frequencies, with priors, corrections, and what to do where q saw nothing."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.divergences import Divergence
from kullback.forms.empirical import Counts
from kullback.forms.finite import Probs
from kullback.verbs import kl, measure

from .result import Estimate

Observed: TypeAlias = Counts | Probs


@dataclass(frozen=True)
class DirichletPrior:
    """Add α to every category's count: the posterior mean under a symmetric Dirichlet(α) prior.

    Named cases: `JEFFREYS_PRIOR` and `KRICHEVSKY_TROFIMOV_PRIOR` (both α = 1/2), `LAPLACE_PRIOR` (α = 1).

    >>> from kullback import Counts, estimate
    >>> method = PlugIn(prior=DirichletPrior(0.5))
    >>> round(estimate.kl(Counts([9, 1]), Counts([10, 0]), method=method).value, 4)   # of 9.5:1.5 and 10.5:0.5
    0.0634
    """

    alpha: float

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 2.0**53:
            raise FormError(
                f"DirichletPrior: alpha is {self.alpha!r}; write a number above 0 and below 2^53, such as 0.5."
            )


JEFFREYS_PRIOR = DirichletPrior(0.5)
"""Jeffreys' prior of a multinomial (Jeffreys 1946)."""
KRICHEVSKY_TROFIMOV_PRIOR = DirichletPrior(0.5)
"""The estimator of Krichevsky & Trofimov 1981: the same ½, from universal coding."""
LAPLACE_PRIOR = DirichletPrior(1.0)
"""The rule of succession: a uniform prior over all distributions."""


@dataclass(frozen=True)
class MillerMadow:
    """Subtract the bias of order 1/n and 1/m: (K-1)/(2n) + (Σ p̂/q̂ - 1)/(2m), over the K categories that p has seen.

    Source: Miller 1955 for the entropy of p; the second term is the same expansion of -Σ p log q̂.

    >>> from kullback import Counts, Probs, estimate
    >>> method = PlugIn(correction=MillerMadow())
    >>> round(estimate.kl(Counts([5, 5]), Probs([0.5, 0.5]), method=method).raw, 4)   # 0 - (2 - 1)/(2·10)
    -0.05
    """


@dataclass(frozen=True)
class Jackknife:
    """Subtract the bias that leaving out one observation shows, of p and of q in turn. Source: Quenouille 1956.

    Needs two counts of q wherever p has one: else a left-out observation makes the value infinite.

    >>> from kullback import Counts, Probs, estimate
    >>> method = PlugIn(correction=Jackknife())
    >>> round(estimate.kl(Counts([5, 5]), Probs([0.5, 0.5]), method=method).raw, 4)
    -0.0557
    """


@dataclass(frozen=True)
class PlugIn:
    """KL of the observed frequencies: Σ p̂ log(p̂/q̂).

    Args:
        prior: added to every count on the sides that are Counts; then no correction.
        correction: `MillerMadow()` or `Jackknife()`.
        unseen: a category that p has seen and q has not makes the value "infinite"; or "drop" such categories: the
            value is then KL(p given the others ‖ q), and details["mass_unseen_by_q"] is the share of p left out.

    Takes: Counts and Counts, or one of them Probs (V,), which then counts as exact.
    The variance at a divergence of θ is (B-1) c²/2 + rθ with c = 1/n + 1/m: that of the χ² law for p = q, and
    growing to the delta method's. The interval is that of the score test, in which the variance is the one at the truth
    that is tested (Wilson 1927): it is right at p = q too.

    >>> from kullback import Counts, estimate
    >>> estimate.kl(Counts([5, 5]), Counts([10, 0]), method=PlugIn()).value
    inf
    >>> found = estimate.kl(Counts([5, 5]), Counts([10, 0]), method=PlugIn(unseen="drop"))
    >>> found.value, found.details["mass_unseen_by_q"]
    (0.0, 0.5)
    """

    prior: DirichletPrior | None = None
    correction: MillerMadow | Jackknife | None = None
    unseen: Literal["infinite", "drop"] = "infinite"

    def __post_init__(self) -> None:
        if self.unseen not in ("infinite", "drop"):
            raise FormError(f"PlugIn: unseen is {self.unseen!r}; write 'infinite' or 'drop'.")
        if self.prior is not None and self.correction is not None:
            raise FormError("PlugIn: a correction is for raw frequencies. Write either prior= or correction=.")

    def estimate(self, p: Observed, q: Observed, generator: torch.Generator | None = None) -> Estimate:
        """See `kullback.estimate.kl`. Nothing is drawn."""
        x, y = paired("estimate.kl", p, q)
        x, y = self._smoothed(p, x), self._smoothed(q, y)
        missed = (x > 0) & (y == 0)
        mass, categories = float(x[missed].sum() / x.sum()), int(missed.sum())
        details = {"mass_unseen_by_q": mass}
        n, m = size(p), size(q)
        if categories and self.unseen == "infinite":
            return Estimate(
                math.inf,
                math.nan,
                int(n) if n < math.inf else int(m),
                bias="none can be stated",
                method=self,
                m=int(m) if max(n, m) < math.inf else None,
                verdict=f"{_categories(categories)} with {mass:.3g} of p unseen by q: of the frequencies KL is +inf. "
                "Write PlugIn(prior=JEFFREYS_PRIOR), or unseen='drop', or merge categories",
                details=details,
            )
        if categories:
            if mass == 1.0:
                raise FormError("estimate.kl: p and q share no category, so that unseen='drop' would leave nothing.")
            x = torch.where(missed, 0.0, x)
            n = float(x.sum()) if isinstance(p, Counts) else n
        value = frequencies_kl(x, y)
        known = miller_madow(x, y, n, m)
        corrected = value - (_left_out(x, y, n, m) if isinstance(self.correction, Jackknife) else self._less(known))
        least, slope = _variance(x / x.sum(), y / y.sum(), n, m, value)
        stderr = math.sqrt(least + slope * max(value - known, 0.0))
        verdict = [] if not categories else [f"{_categories(categories)} with {mass:.3g} of p, unseen by q, left out"]
        few, of = _rare(p, q)
        if 5 * few > of:
            verdict.append(f"{few} of {of} categories have fewer than 5 counts: too few for the interval")
        if self.correction is None and known > 0.5 * stderr:
            verdict.append(f"too high by about {known:.2g}: write PlugIn(correction=MillerMadow())")
        return Estimate(
            corrected,
            stderr,
            int(n) if n < math.inf else int(m),
            bias=self._bias_in_words(),
            method=self,
            m=int(m) if max(n, m) < math.inf else None,
            verdict="; ".join(verdict),
            slope=slope,
            details=details | {"uncorrected": value},
        )

    def _smoothed(self, form: Observed, x: Tensor) -> Tensor:
        return x + self.prior.alpha if self.prior is not None and isinstance(form, Counts) else x

    def _less(self, known: float) -> float:
        return known if isinstance(self.correction, MillerMadow) else 0.0

    def _bias_in_words(self) -> str:
        if self.prior is not None:
            return f"towards the prior Dirichlet({self.prior.alpha:g})"
        return "upward, O(1/n)" if self.correction is None else "O(1/n²)"


def bootstrap_divergence(
    divergence: Divergence,
    p: Observed,
    q: Observed,
    *,
    generator: torch.Generator,
    replicates: int = 1000,
) -> Estimate:
    """Any row of the table between observed frequencies, with the bootstrap's standard error.

    Args: divergence: such as `divergences.TV`.  p, q: Counts, or Probs (V,) that count as exact.
    Returns: the plug-in value, which is biased upward; details["bootstrap_bias"] says by about how much.
    Source: Efron 1979 (the multinomial bootstrap).

    >>> from kullback import Counts, divergences
    >>> g = torch.Generator().manual_seed(0)
    >>> round(bootstrap_divergence(divergences.TV, Counts([50, 50]), Counts([75, 25]), generator=g).value, 2)
    0.25
    """
    x, y = paired(divergence.name, p, q)
    value = float(measure(divergence, Probs(x / x.sum()), Probs(y / y.sum())))
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    source = np.random.default_rng(seed)

    def again(form: Observed, weights: Tensor) -> Tensor:
        share = (weights / weights.sum()).numpy()
        if not isinstance(form, Counts):
            return torch.from_numpy(np.tile(share, (replicates, 1)))
        return torch.from_numpy(source.multinomial(form.total, share / share.sum(), size=replicates)) / form.total

    values = measure(divergence, Probs(again(p, x)), Probs(again(q, y)))
    n, m = size(p), size(q)
    bias = float(values.mean()) - value
    stderr = float(values.std()) if bool(torch.isfinite(values).all()) and math.isfinite(value) else math.nan
    verdict = ""
    if math.isnan(stderr):
        verdict = "infinite, or infinite in some resamples: categories are empty"
    elif bias > stderr:
        verdict = f"the bias, about {bias:.3g} upward, is larger than the standard error"
    return Estimate(
        value,
        stderr,
        int(n) if n < math.inf else int(m),
        bias="upward, O(1/n)",
        method=f"PlugIn, bootstrap({replicates})",
        m=int(m) if max(n, m) < math.inf else None,
        verdict=verdict,
        details={"bootstrap_bias": bias},
    )


def paired(verb: str, p: Observed, q: Observed) -> tuple[Tensor, Tensor]:
    """Both as weights over the same categories."""
    for name, form in (("p", p), ("q", q)):
        if isinstance(form, Probs) and form.data.dim() != 1:
            raise FormError(
                f"{verb}: {name} holds Probs of shape {tuple(form.data.shape)}, but beside Counts it is one row. "
                f"Write Probs(x[0])."
            )
    x, y = p.data.detach().double().cpu(), q.data.detach().double().cpu()
    if len(x) != len(y):
        raise FormError(
            f"{verb}: p has {len(x)} categories but q has {len(y)}. Give both the same list of categories, with 0 "
            "where one has seen nothing: torch.bincount(labels, minlength=B)."
        )
    return x, y


def size(form: Observed) -> float:
    """How many observations there are; +inf for what is known."""
    return form.total if isinstance(form, Counts) else math.inf


def frequencies_kl(x: Tensor, y: Tensor) -> float:
    """KL between the frequencies of two rows of counts."""
    return float(kl(Probs(x / x.sum()), Probs(y / y.sum())))


def _variance(p: Tensor, q: Tensor, n: float, m: float, value: float) -> tuple[float, float]:
    """Of the plug-in value: what is left of it at p = q, and its slope in the divergence.

    χ²(B-1) c/2 with c = 1/n + 1/m at p = q. Far from it Var_p(log p/q)/n + Var_q(p/q)/m, which is 2c times the
    divergence near p = q, and is taken to be proportional to it on the way there.
    """
    seen, categories = p > 0, int(((p > 0) | (q > 0)).sum())
    p, q, c = p[seen], q[seen], 1.0 / n + 1.0 / m
    log_ratio = torch.log(p / q)
    of_p = float((p * (log_ratio - float((p * log_ratio).sum())) ** 2).sum())
    of_q = max(float((p * p / q).sum()) - 1.0, 0.0)
    slope = (of_p / n + of_q / m) / value if value > 1e-9 * c else 2.0 * c
    return 0.5 * (categories - 1) * c * c, slope


def miller_madow(x: Tensor, y: Tensor, n: float, m: float) -> float:
    """How much the plug-in value is expected to be too high, to order 1/n and 1/m."""
    seen = x > 0
    ratio = (x[seen] / x.sum()) / (y[seen] / y.sum())
    return (len(ratio) - 1) / (2.0 * n) + (float(ratio.sum()) - 1.0) / (2.0 * m)


def _left_out(x: Tensor, y: Tensor, n: float, m: float) -> float:
    """How much the plug-in value is too high, from leaving out one observation of p, and one of q."""
    seen = x > 0
    x, y, p = x[seen], y[seen], x[seen] / x.sum()
    return (_left_out_of_p(x, y, n) if n < math.inf else 0.0) + (_left_out_of_q(p, y, m) if m < math.inf else 0.0)


def _left_out_of_p(x: Tensor, y: Tensor, n: float) -> float:
    """(n-1)(mean of KL with one observation of p left out - KL); y up to a factor, which drops out."""
    if n < 2:
        raise FormError("estimate.kl: Jackknife leaves one observation of p out, and p has only one.")
    whole = x * torch.log(x / y)
    less = torch.xlogy(x - 1.0, (x - 1.0) / y)
    left_out = (whole.sum() - whole + less) / (n - 1.0) - math.log(n - 1.0)
    return (n - 1.0) * float((x / n * left_out).sum() - (whole.sum() / n - math.log(n)))


def _left_out_of_q(p: Tensor, y: Tensor, m: float) -> float:
    """(m-1)(mean of KL with one observation of q left out - KL)."""
    if bool((y < 2).any()):
        raise FormError(
            "estimate.kl: Jackknife leaves one observation of q out, and q has a single one in a category that p has "
            "seen, so that the value would be infinite. Write MillerMadow(), a prior, or merge categories."
        )
    change = p * torch.log(y / (y - 1.0)) + math.log((m - 1.0) / m)
    # observations in categories that p has not seen change the total alone
    elsewhere = 1.0 - float(y.sum()) / m
    return (m - 1.0) * (float((y / m * change).sum()) + elsewhere * math.log((m - 1.0) / m))


def _rare(p: Observed, q: Observed) -> tuple[int, int]:
    """How many categories have fewer than 5 counts on a side that is counted, and how many were seen at all."""
    sides = [form.data.cpu() for form in (p, q) if isinstance(form, Counts)]
    seen = torch.stack(sides).sum(0) > 0
    few = torch.stack([side < 5 for side in sides]).any(0)
    return int((few & seen).sum()), int(seen.sum())


def _categories(count: int) -> str:
    return "1 category" if count == 1 else f"{count} categories"
