"""The numbers of a comparison: llama.cpp's three blocks by its names and definitions, and those that it has not.

Of means over tokens, and of smooth functions of such means by the delta method, two standard errors are given: the one
that llama.cpp prints, and the one by document (`clusters`). Where llama.cpp prints 0 for its error, with ten tokens or
fewer, it is here what the formula gives.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .clusters import Clusters, Floats, Statistic, exp, mean, statistic
from .scores import LIKELIEST

PERPLEXITY = "Perplexity statistics"
DIVERGENCE = "KL divergence statistics"
PROBABILITY = "Token probability statistics"
OTHERS = "Other divergences"
KLD_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
PROBABILITY_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)
FEWEST = 8  # documents on either side of a percentile for its interval to be given; from fewer it covers too rarely
RATIO = "Mean PPL(Q)/PPL(base)"
MEAN_KLD = "Mean KLD"

Table = Mapping[str, npt.NDArray[Any]]
"""Columns of `Scores` by name: a dictionary, `Scores.columns()`, or a file's `Columns`, which reads what is asked."""


@dataclass(frozen=True)
class Summary:
    """All statistics of one candidate.

    Args:
        tokens, documents: N and G. With one document there is no error by document, and nothing is put in its place.
        blocks: title -> statistics in llama.cpp's order; its three and `OTHERS`.
    """

    tokens: int
    documents: int
    blocks: dict[str, tuple[Statistic, ...]]

    def __getitem__(self, name: str) -> Statistic:
        """By its name, in whatever block."""
        return next(each for block in self.blocks.values() for each in block if each.name == name)


def summarize(columns: Table) -> Summary:
    """Every statistic of one candidate's tokens.

    What does not exist, since the reference is known in part only (NaN in a column), has the value None.
    A divergence that is infinite at a token makes its mean infinite, without an error.

    >>> import torch
    >>> from kullback import Logits
    >>> from kullback.models.scores import score
    >>> x, y = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))
    >>> found = summarize(score(Logits(x), Logits(x + 0.1 * y), [0] * 6, document=[0, 0, 0, 1, 1, 1]).columns())
    >>> kld = found["Mean KLD"]
    >>> f"{kld.value:.5f} ± {kld.iid:.5f} (tokens) ± {kld.clustered:.5f} (documents)"
    '0.00589 ± 0.00055 (tokens) ± 0.00024 (documents)'
    """
    clusters = Clusters.of(columns["document"])
    return Summary(
        clusters.num_tokens,
        clusters.count,
        {
            PERPLEXITY: perplexity(columns["log_p"], columns["log_q"], clusters),
            DIVERGENCE: divergence(columns["kl"], clusters),
            PROBABILITY: probability(columns, clusters),
            OTHERS: others(columns, clusters),
        },
    )


def perplexity(log_p: Floats, log_q: Floats, clusters: Clusters) -> tuple[Statistic, ...]:
    """Block 1: of the candidate (Q) and the reference (base)."""
    nll, base = -log_q, -log_p
    found = [_perplexity("Mean PPL(Q)", nll, clusters)]
    names = (
        "Mean PPL(base)", "Cor(ln(PPL(Q)), ln(PPL(base)))", "Mean ln(PPL(Q)/PPL(base))", RATIO, "Mean PPL(Q)-PPL(base)"
    )  # fmt: skip
    if np.isnan(base).any():
        return (*found, *(Statistic(name, None) for name in names))
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = float(np.mean(nll)), float(np.mean(base))
        da, db = nll - a, base - b
        spread = math.sqrt(float(np.mean(da**2)) * float(np.mean(db**2)))
        correlation = float(np.mean(da * db)) / spread if spread > 0.0 else math.nan
        ratio, ppl, ppl_base = exp(a - b), exp(a), exp(b)
        found += [
            _perplexity(names[0], base, clusters),
            Statistic(names[1], 100.0 * correlation if math.isfinite(correlation) else None, unit="%"),
            mean(names[2], nll - base, clusters),
            statistic(names[3], ratio, ratio * (da - db), clusters, symmetric="log"),
            statistic(names[4], ppl - ppl_base, ppl * da - ppl_base * db, clusters),
        ]
    return tuple(found)


def divergence(kl: Floats, clusters: Clusters) -> tuple[Statistic, ...]:
    """Block 2: KL(reference‖candidate), in nats."""
    return (
        mean(MEAN_KLD, kl, clusters, unit="nats", symmetric="log"),
        *_percentiles("KLD", kl, KLD_PERCENTILES, clusters, unit="nats"),
    )


def probability(columns: Table, clusters: Clusters) -> tuple[Statistic, ...]:
    """Block 3: Δp, the candidate's probability of the token that came less the reference's, and the likeliest token."""
    same = (columns["top_p"] == columns["top_q"]).astype(float)
    same_top = mean("Same top p", same, clusters, unit="%", scale=100.0, symmetric="odds")
    delta = np.exp(columns["log_q"]) - np.exp(columns["log_p"])
    if np.isnan(delta).any():
        names = ("Mean Δp", *_names("Δp", PROBABILITY_PERCENTILES), "RMS Δp")
        return (*(Statistic(name, None, unit="%") for name in names), same_top)
    square = delta**2
    rms = math.sqrt(float(np.mean(square)))
    influence = (square - rms**2) / (2.0 * rms) if rms > 0.0 else square
    return (
        mean("Mean Δp", delta, clusters, unit="%", scale=100.0, bounds=(-1.0, 1.0)),
        *_percentiles("Δp", delta, PROBABILITY_PERCENTILES, clusters, unit="%", scale=100.0),
        statistic("RMS Δp", rms, influence, clusters, unit="%", scale=100.0, symmetric="log", bounds=(0.0, 1.0)),
        same_top,
    )


def others(columns: Table, clusters: Clusters) -> tuple[Statistic, ...]:
    """What llama.cpp does not print."""
    overlap = columns["overlap"]
    agreement = f"Top-{LIKELIEST} agreement"
    return (
        mean("Mean KL(Q‖base)", columns["reverse"], clusters, unit="nats", symmetric="log"),
        mean("Mean JS", columns["js"], clusters, unit="nats", symmetric="log", bounds=(0.0, math.log(2.0))),
        mean("Mean total variation", columns["tv"], clusters, symmetric="log", bounds=(0.0, 1.0)),
        Statistic(agreement, None, unit="%")
        if (overlap < 0).any()
        else mean(agreement, overlap / LIKELIEST, clusters, unit="%", scale=100.0, symmetric="odds"),
        mean("Mean entropy(base)", columns["entropy"], clusters, unit="nats", symmetric="log"),
    )


# ---------------------------------------------------------------- pieces


def _perplexity(name: str, nll: Floats, clusters: Clusters) -> Statistic:
    a = float(np.mean(nll))
    return statistic(name, exp(a), exp(a) * (nll - a) if math.isfinite(a) else nll, clusters, symmetric="log")


def _names(of: str, percentiles: tuple[float, ...]) -> list[str]:
    middle = [f"Median {of}" if each == 50.0 else f"{each:.1f}% {of}" for each in percentiles]
    return [f"Maximum {of}", *middle, f"Minimum {of}"]


def _percentiles(
    of: str, x: Floats, percentiles: tuple[float, ...], clusters: Clusters, *, unit: str, scale: float = 1.0
) -> list[Statistic]:
    """Maximum, percentiles from above, minimum."""
    ordered, shares = np.sort(x), (100.0, *percentiles, 0.0)
    return [
        percentile(name, x, ordered, each / 100.0, clusters, unit=unit, scale=scale)
        for name, each in zip(_names(of, percentiles), shares, strict=True)
    ]


def percentile(
    name: str, x: Floats, ordered: Floats, share: float, clusters: Clusters, *, unit: str = "", scale: float = 1.0
) -> Statistic:
    """A quantile of x, which is also given in ascending order.

    Its interval is Woodruff's (1952): the quantiles at the ends of the interval of the share of tokens that lie below
    it. None where those ends are beyond the smallest or the largest, or fewer than `FEWEST` documents have tokens on
    either side of it; and of the smallest and the largest themselves.
    """
    value, low, high = quantile(ordered, share), None, None
    if 0.0 < share < 1.0 and math.isfinite(value):
        below = (x <= value).astype(float)
        error = clusters.error(below - float(np.mean(below)))
        if error is not None:
            ends = share - clusters.quantile * error, share + clusters.quantile * error
            held = np.bincount(clusters.index, below, clusters.count)
            sides = min(np.count_nonzero(held), np.count_nonzero(held < clusters.sizes))
            if ends[0] >= 0.0 and ends[1] <= 1.0 and sides >= FEWEST:
                low, high = (scale * quantile(ordered, end) for end in ends)
    return Statistic(name, scale * value, low=low, high=high, unit=unit)


def quantile(ordered: Floats, share: float) -> float:
    """Between the two nearest of sorted values, linearly in the rank, as llama.cpp and NumPy do.

    >>> quantile(np.array([0.0, 1.0, 10.0]), 0.75)
    5.5
    """
    rank = share * (len(ordered) - 1)
    at = min(int(rank), len(ordered) - 1)
    low, high = float(ordered[at]), float(ordered[min(at + 1, len(ordered) - 1)])
    return low if low == high else low + (rank - at) * (high - low)
