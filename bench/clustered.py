"""Do the 95 % intervals by document contain the truth 95 % of the time, and the paired test err 5 %? Prints a table.

python bench/clustered.py            2,000 repetitions a setting (about three minutes of one core)
python bench/clustered.py --quick    200

A document has a level of its own, tokens next to each other are alike (an autoregression), and both are log-normal, as
KLD is. Lengths are equal, or log-normal with the σ that the table names; with σ = 1 a tenth of the documents has half
of the tokens. Beside our intervals stand those of the same error with G-1 degrees of freedom and symmetric ("plain"),
and those of independent tokens, as llama.cpp's error would give them.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.signal import lfilter

from kullback.models.clusters import Clusters, Statistic, mean
from kullback.models.pairs import paired
from kullback.models.statistics import RATIO, percentile, perplexity

Floats = npt.NDArray[np.float64]
TOKENS = 60  # of the median document
ALIKE = 0.5  # of neighbouring tokens: the autoregression's coefficient


@dataclass(frozen=True)
class Setting:
    documents: int
    lengths: float  # σ of log length; 0: all equal
    level: float  # σ of a document's log KLD

    def __str__(self) -> str:
        return f"| {self.documents} | {self.lengths:g} | {self.level:g} |"


SETTINGS = [
    Setting(documents, lengths, level)
    for documents in (10, 30, 100)
    for lengths in (0.0, 0.6, 1.0)
    for level in (0.25, 0.5)
]


@dataclass(frozen=True)
class Found:
    """Shares of repetitions: intervals that contain the truth (ours, plain, of independent tokens), for the mean KLD,
    the perplexity ratio and the share of tokens with the same likeliest token; intervals of the 90 % percentile of KLD
    that contain it, of those that are given, and the share of these; and paired tests with p < 5 %.
    """

    kld: tuple[float, float, float]
    ratio: tuple[float, float, float]
    same: tuple[float, float, float]
    percentile: float
    given: float
    size: float

    def __str__(self) -> str:
        cells = [*self.kld, *self.ratio, *self.same, self.percentile, self.given, self.size]
        return " ".join(f"{100 * each:.1f} |" for each in cells)


def documents(setting: Setting, g: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which document every token is of."""
    lengths = TOKENS * np.exp(setting.lengths * g.standard_normal(setting.documents))
    return np.repeat(np.arange(setting.documents), np.maximum(2, np.rint(lengths)).astype(np.int64))


def normals(document: npt.NDArray[np.int64], level: float, g: np.random.Generator) -> Floats:
    """A level for each document, σ `level`, plus an autoregression of variance 1 along the tokens."""
    noise = lfilter([math.sqrt(1 - ALIKE**2)], [1.0, -ALIKE], g.standard_normal(len(document) + 50))[50:]
    return level * g.standard_normal(document[-1] + 1)[document] + noise


def contains(found: Statistic, clusters: Clusters, truth: float) -> tuple[bool, bool, bool]:
    """Our interval, the plain one and that of independent tokens."""
    assert found.low is not None
    assert found.high is not None
    assert found.clustered is not None
    assert found.iid is not None
    scale = 100.0 if found.unit == "%" else 1.0
    off = abs(found.value - scale * truth)
    t = special.stdtrit(clusters.count - 1, 0.975)
    return found.low <= scale * truth <= found.high, off <= t * found.clustered, off <= 1.96 * found.iid


def once(setting: Setting, g: np.random.Generator) -> Iterator[tuple[bool, ...]]:
    """What happened to the mean KLD, the perplexity ratio, the same top token, the percentile; and the paired test."""
    document = documents(setting, g)
    clusters, level = Clusters.of(document), setting.level
    variance = 1.0 + level**2
    kl = np.exp(normals(document, level, g) - variance / 2)  # of mean 1
    yield contains(mean("Mean KLD", kl, clusters, unit="nats", symmetric="log"), clusters, 1.0)
    base = 3.0 + normals(document, level, g)
    nll = base + 0.05 + 0.2 * normals(document, level, g)
    ratio = next(each for each in perplexity(-base, -nll, clusters) if each.name == RATIO)
    yield contains(ratio, clusters, math.exp(0.05))
    same = normals(document, level, g) < math.sqrt(variance) * 1.2816
    found = mean("Same top p", same.astype(float), clusters, unit="%", scale=100.0, symmetric="odds")
    yield contains(found, clusters, special.ndtr(1.2816))
    high = percentile("90.0% KLD", kl, np.sort(kl), 0.9, clusters)
    truth = math.exp(1.2816 * math.sqrt(variance) - variance / 2)
    given = high.low is not None and high.high is not None
    yield (high.low is not None and high.high is not None and high.low <= truth <= high.high), given
    other = np.exp(normals(document, level, g) - variance / 2)
    columns = {"document": document, "position": document, "token": document}
    p = paired(columns | {"kl": kl}, columns | {"kl": other}).p
    assert p is not None
    yield (p < 0.05,)


def measure(setting: Setting, repetitions: int, seed: int = 0) -> Found:
    """All of a setting, from its own seed."""
    g = np.random.default_rng([seed, setting.documents, round(100 * setting.lengths), round(100 * setting.level)])
    each = zip(*(tuple(once(setting, g)) for _ in range(repetitions)), strict=True)
    kld, ratio, same, high, size = (tuple(float(np.mean(x)) for x in zip(*one, strict=True)) for one in each)
    return Found(kld[:3], ratio[:3], same[:3], high[0] / max(high[1], 1e-9), high[1], size[0])  # type: ignore[arg-type]


def main() -> None:
    repetitions = 200 if "--quick" in sys.argv else 2000
    print(
        f"{repetitions:,} repetitions; documents of {TOKENS} tokens in the median. In %: 95 % intervals that contain "
        "the truth (by document, plain, tokens independent), and paired tests of no difference with p < 0.05.\n"
    )
    of = " | ".join(
        f"{name}{kind}" for name in ("KLD", "PPL ratio", "same top p") for kind in ("", ", plain", ", tokens")
    )
    print(f"| documents | σ of log length | σ of a document's level | {of} | 90 % KLD | where given | paired test |")
    print("| ---: " * 15 + "|")
    for setting in SETTINGS:
        print(setting, measure(setting, repetitions), flush=True)


if __name__ == "__main__":
    main()
