"""Is the difference between two histograms more than chance, and how large is it?

The test. T = 2n KL(p‖r) + 2m KL(q‖r) with r the pooled frequencies, that is 2(n+m) times the Jensen-Shannon divergence
of weight n/(n+m). Near p = q it is 2nm/(n+m)·KL(p‖q), to first order, and has the same χ² law with B-1 degrees; but it
stays finite where a cell is empty on one side, and follows the law at smaller counts (bench/drift.py compares the two).
Where a cell expects fewer than 50 counts the law is replaced by its permutation law given the pooled counts, drawn as
multivariate hypergeometric counts; where rows come in clusters, by permutations of whole clusters.

The effects. KL(p‖q), KL(q‖p), JS and PSI of the frequencies with Jeffreys' ½ a cell, less what chance alone would show
(the mean of the same effect under the null law). Intervals invert a noncentral χ² whose scale is the delta method's:
they reach 0 exactly when the data are compatible with no difference, and are Normal for large effects.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kullback.estimate import JEFFREYS_PRIOR, Interval
from kullback.forms.finite import Probs
from kullback.verbs import contributions, jeffreys, js, kl

Floats = npt.NDArray[np.float64]
EXPECTED = 50.0  # counts a cell must expect for the χ² law: then 5 % is between 4.6 and 5.6 % at up to 200 cells
DRAWS, MOST_DRAWS = 1999, 50_000
FIRST_DRAWS, ENOUGH = 500, 50
BLOCK = 2_000_000  # numbers held at a time

MEASURES: dict[str, tuple[Callable[..., torch.Tensor], float]] = {
    # the verb, and its curvature f''(1)
    "kl": (lambda p, q: kl(p, q), 1.0),
    "kl_reverse": (lambda p, q: kl(q, p), 1.0),
    "js": (lambda p, q: js(p, q), 0.25),
    "psi": (lambda p, q: jeffreys(p, q), 2.0),
}
"""KL(reference‖current), KL(current‖reference), JS with weight ½, and PSI (Jeffreys' divergence), in nats."""


@dataclass(frozen=True)
class Effect:
    """A divergence between reference and current, in nats.

    Args:
        value: what is left of the frequencies' divergence after what chance alone would show is taken off.
        low, high: its interval.
        raw: before that was taken off.
    """

    value: float
    low: float
    high: float
    raw: float


@dataclass(frozen=True)
class Test:
    """Whether two rows of counts differ by more than chance.

    Args:
        statistic: T, in nats; 2(n+m)·JS of weight n/(n+m).
        p_value: two-sided by nature; of the permutation law the mid-p value.
        df: degrees of freedom of χ², or the mean of T under the permutation law.
        law: "chi2", "permutation" or "clusters".
        draws: of the permutation law; 0 for χ².
    """

    __test__ = False  # not one of pytest's

    statistic: float
    p_value: float
    df: float
    law: str
    draws: int = 0


@dataclass(frozen=True)
class Comparison:
    """What two rows of counts say: the test, and the effects by name."""

    test: Test
    effects: dict[str, Effect]


def statistic(x: Floats, y: Floats) -> Floats:
    """T of rows of counts (..., B); 0 for a side without counts.

    >>> round(float(statistic(np.array([90.0, 110.0]), np.array([110.0, 90.0]))), 4)   # χ² of the table: 4.0
    4.0067
    """
    n, m = x.sum(-1), y.sum(-1)
    total = n + m
    safe_n, safe_m = np.maximum(n, 1.0)[..., None], np.maximum(m, 1.0)[..., None]
    pooled = (x + y) / np.maximum(total, 1.0)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        # canonical terms, each ≥ 0: p log(p/c) - p + c
        left = np.where(x > 0, x * np.log(x / safe_n / pooled), 0.0) - x + safe_n * pooled
        right = np.where(y > 0, y * np.log(y / safe_m / pooled), 0.0) - y + safe_m * pooled
    value = 2.0 * (np.maximum(left, 0.0).sum(-1) + np.maximum(right, 0.0).sum(-1))
    result: Floats = np.where((n > 0) & (m > 0), value, 0.0)
    return result


def compare(
    x: Floats,
    y: Floats,
    *,
    seed: int,
    level: float = 0.95,
    smallest_p: float = 0.01,
    clusters: tuple[Floats, Floats] | None = None,
) -> Comparison:
    """Compare two rows of counts (B,), B ≥ 2, none of whose columns is empty on both sides.

    Args:
        seed: of the permutation law.
        level: of the intervals.
        smallest_p: the smallest p-value that must be told from 0; more draws are taken for it.
        clusters: the counts of each cluster, (C, B) for each side, where rows come in clusters.
    """
    found, null = homogeneity(x, y, seed=seed, smallest_p=smallest_p, clusters=clusters)
    return Comparison(found, effects(x, y, level=level, null=null, clusters=clusters))


def homogeneity(
    x: Floats,
    y: Floats,
    *,
    seed: int,
    smallest_p: float = 0.01,
    clusters: tuple[Floats, Floats] | None = None,
) -> "tuple[Test, Pair | None]":
    """The test alone, and the draws of its permutation law; None for χ².

    Draws stop early once 50 of them have reached the observed T, for then p is known to a seventh of itself.
    Source: Besag & Clifford 1991.
    """
    n, m, cells = x.sum(), y.sum(), len(x)
    observed = float(statistic(x, y))
    if clusters is None and float((x + y).min() * min(n, m) / (n + m)) >= EXPECTED:
        return Test(observed, _chi2_tail(cells - 1, observed), float(cells - 1), "chi2"), None
    most = min(max(DRAWS, math.ceil(20.0 / smallest_p) - 1), MOST_DRAWS)
    rng = np.random.default_rng([seed, int(n) & 0xFFFFFFFF, int(m) & 0xFFFFFFFF, cells])
    drawn: list[Pair] = []
    values: Floats = np.zeros(0)
    while len(values) < most and (values >= observed).sum() < ENOUGH:
        block = min(max(FIRST_DRAWS, len(values)), most - len(values), max(50, BLOCK // cells))
        drawn.append(relabelled_rows(x, y, block, rng) if clusters is None else _relabelled(*clusters, block, rng))
        values = np.concatenate([values, statistic(*drawn[-1])])
    law = "permutation" if clusters is None else "clusters"
    few = [np.concatenate(side)[:DRAWS] for side in zip(*drawn, strict=True)]
    return Test(observed, mid_p(values, observed), float(values.mean()), law, len(values)), (few[0], few[1])


Pair = tuple[Floats, Floats]


def mid_p(null: Floats, observed: float) -> float:
    """(draws above + half of those equal, the observed one among them) / (draws + 1).

    >>> mid_p(np.array([0.0, 1.0, 1.0, 2.0]), 1.0)
    0.5
    """
    slack = 1e-9 * abs(observed)  # equal up to rounding
    above, equal = int((null > observed + slack).sum()), int((abs(null - observed) <= slack).sum())
    return (above + 0.5 * (equal + 1)) / (len(null) + 1)


def effects(
    x: Floats,
    y: Floats,
    *,
    level: float = 0.95,
    null: Pair | None = None,
    clusters: tuple[Floats, Floats] | None = None,
) -> dict[str, Effect]:
    """Every measure with its interval.

    Args: null: rows of counts as they are under "no difference"; without, the χ² law says what chance shows.
    """
    n, m, cells = float(x.sum()), float(y.sum()), len(x)
    p, q = (torch.from_numpy(smoothed(side)).requires_grad_() for side in (x, y))
    chance = {}
    if null is not None:
        sides = [Probs(torch.from_numpy(smoothed(side))) for side in null]
        chance = {name: verb(*sides).numpy() for name, (verb, _) in MEASURES.items()}
    found = {}
    for name, (verb, curvature) in MEASURES.items():
        value = verb(Probs(p), Probs(q))
        of_p, of_q = (g.numpy() for g in torch.autograd.grad(value, (p, q)))
        raw = value.item()
        variance = _variance(x, of_p, clusters and clusters[0]) + _variance(y, of_q, clusters and clusters[1])
        scale = 0.5 * curvature * (1.0 / n + 1.0 / m)
        bias = float(chance[name].mean()) if null is not None else scale * (cells - 1)
        if null is not None:
            scale = float(chance[name].var()) / (2.0 * bias) if bias > 0.0 else scale
        found[name] = Effect(raw - bias, *_interval(raw, bias, scale, variance, level), raw)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: reject where ≤ α, and the chance of any false rejection is ≤ α. Source: Holm 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, reached = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = reached
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: reject where ≤ α, and of the rejections at most a share α is false, on average.

    Source: Benjamini & Hochberg 1995, for independent or positively dependent columns.

    >>> benjamini_hochberg([0.01, 0.04, 0.03])
    [0.03, 0.04, 0.04]
    """
    adjusted, reached = [1.0] * len(p_values), 1.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank in range(len(order), 0, -1):
        reached = min(reached, p_values[order[rank - 1]] * len(order) / rank)
        adjusted[order[rank - 1]] = reached
    return adjusted


ADJUST: dict[str, Callable[[Sequence[float]], list[float]]] = {"holm": holm, "bh": benjamini_hochberg, "none": list}


def cell_contributions(x: Floats, y: Floats) -> Floats:
    """What each cell adds to KL(p‖q) of the smoothed frequencies, in nats; each ≥ 0.

    >>> parts = cell_contributions(np.array([50.0, 30.0, 20.0]), np.array([30.0, 60.0, 10.0]))
    >>> raw = effects(np.array([50.0, 30.0, 20.0]), np.array([30.0, 60.0, 10.0]))["kl"].raw
    >>> bool((parts >= 0).all()), bool(abs(parts.sum() - raw) < 1e-12)
    (True, True)
    """
    p, q = (Probs(torch.from_numpy(smoothed(side))) for side in (x, y))
    parts: Floats = contributions(p, q).numpy()
    return parts


def smoothed(x: Floats) -> Floats:
    """Frequencies with Jeffreys' prior."""
    smoothed = x + JEFFREYS_PRIOR.alpha
    result: Floats = smoothed / smoothed.sum(-1, keepdims=True)
    return result


def _variance(x: Floats, gradient: Floats, clusters: Floats | None) -> float:
    """Of a smooth function of the frequencies of x, to first order; from the spread over clusters if there are some."""
    n = float(x.sum())
    centred = gradient - float(x @ gradient) / n
    if clusters is None:
        return float(x @ centred**2) / n**2
    return float(((clusters @ centred) ** 2).sum()) / n**2


def _interval(raw: float, bias: float, scale: float, variance: float, level: float) -> Interval:
    """All D for which raw = a χ²'(df, D/a), a noncentral χ² with a·df = bias, is no surprise.

    a is the scale under "no difference", or variance / 4D if the delta method says more or less for large D.
    """
    effect = max(raw - bias, 0.0)
    if not (scale > 0.0 and math.isfinite(raw)):
        return Interval(0.0, math.inf)
    # by how much the delta method's variance exceeds that of a χ² of this scale, 4 a D, where D is not small
    weight = effect / (effect + bias) if effect > 0.0 else 0.0
    if effect > 0.0 and variance > 0.0:
        scale *= (variance / (4.0 * scale * raw)) ** weight
    df, t = bias / scale, raw / scale
    tail = (1.0 - level) / 2.0
    # data that agree better than chance would have it say no more than data that agree as well as chance would
    return Interval(scale * _noncentrality(t, df, 1.0 - tail), scale * _noncentrality(max(t, df), df, tail))


def _noncentrality(t: float, df: float, probability: float) -> float:
    """The λ ≥ 0 at which P(χ²'(df, λ) ≤ t) is the probability; 0 if no λ brings it up to that."""
    from scipy import special  # type: ignore[import-untyped]

    if t > 1e4:  # far out: Normal with variance 2(df + 2λ), solved for λ
        z = -float(special.ndtri(probability))
        excess = t - df
        return max(excess + 2.0 * z * z + z * math.sqrt(max(4.0 * z * z + 4.0 * excess + 2.0 * df, 0.0)), 0.0)
    if float(special.chndtr(t, df, 0.0)) <= probability:
        return 0.0
    low, high = 0.0, max(2.0 * t, 10.0)
    while float(special.chndtr(t, df, high)) > probability:
        high *= 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(special.chndtr(t, df, middle)) > probability else (low, middle)
    return 0.5 * (low + high)


def relabelled_rows(x: Floats, y: Floats, draws: int, rng: np.random.Generator) -> Pair:
    """Counts after n of the pooled rows, without replacement, went to the one side and the others to the other."""
    pooled, n, m = (x + y).astype(np.int64), int(x.sum()), int(y.sum())
    drawn = _without_replacement(pooled, min(n, m), draws, rng).astype(np.float64)
    rest = pooled - drawn
    return (drawn, rest) if n <= m else (rest, drawn)


def _without_replacement(
    pooled: npt.NDArray[np.int64], size: int, draws: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Multivariate hypergeometric counts (draws, B).

    NumPy's take totals below 1e9. Beyond, each cell is shared out on its own, which lets the size of a side vary by its
    square root, and T divides by the size.
    """
    total = int(pooled.sum())
    if total < 1_000_000_000:
        drawn: npt.NDArray[np.int64] = rng.multivariate_hypergeometric(pooled, size, size=draws, method="marginals")
    else:
        drawn = rng.binomial(pooled, size / total, size=(draws, len(pooled)))
    return drawn


def _relabelled(x: Floats, y: Floats, draws: int, rng: np.random.Generator) -> Pair:
    """Clusters dealt anew to the two sides, as many to each as there were: sums of their counts."""
    pooled, first = np.concatenate([x, y]), len(x)
    total = pooled.sum(0)
    step = max(1, 4 * BLOCK // len(pooled))
    sums = []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        # the clusters of the first side: those with its smallest random numbers
        numbers = rng.random((count, len(pooled)), dtype=np.float32)
        chosen = np.argpartition(numbers, first - 1, axis=1)[:, :first]
        labels = np.zeros((count, len(pooled)), dtype=np.float64)
        np.put_along_axis(labels, chosen, 1.0, axis=1)
        sums.append(labels @ pooled)
    drawn = np.concatenate(sums)
    return drawn, total - drawn


def _chi2_tail(df: int, x: float) -> float:
    from scipy import special

    return float(special.chdtrc(df, x))
