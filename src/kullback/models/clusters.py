"""Standard errors of what is measured at tokens, which come in documents and are no independent draws.

A statistic is a smooth function of means over tokens, and moves by Σ u_i / N to first order, where u_i is the influence
of token i (for a mean, x_i less the mean). Two errors of it:

    as if independent    √(Σ u² / N / (N-1)), which is what llama.cpp prints
    by document          √((G-1)/G Σ_g (U_g / (N - n_g))²), U_g = Σ_{i in g} u_i: the jackknife that leaves out one of G
                         documents, of n_g tokens, at a time

The second is the cluster-robust error CR3 of Bell & McCaffrey 2002 for a ratio Σ_g S_g / Σ_g n_g. Intervals are those
of Student's t with N² / Σ_g n_g² - 1 degrees of freedom: G-1 for documents of equal length, fewer where a few hold most
of the tokens (by Kish's effective number; Carter, Schnepel & Steigerwald 2017 describe the problem). They are symmetric
in the logarithm for what is positive and skewed, in the log-odds for shares. bench/clustered.py: of 95 % intervals then
92 to 96 % contain the truth, and 85 to 96 % with G-1 degrees and symmetric ends, fewer the less alike documents are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Statistic:
    """A number with what is known of its error.

    Args:
        name: llama.cpp's, where it has it.
        value: None: it does not exist, since the reference is known in part only.
        iid: its standard error if tokens were independent; None where none is defined.
        clustered: its standard error by document; None where none is defined, and where there is one document only.
        low, high: its interval at `LEVEL` by document; None where there is none.
        unit: "nats", "%" or nothing.
    """

    name: str
    value: float | None
    iid: float | None = None
    clustered: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Which document every token is of.

    Args:
        index: (N,), from 0 to G-1, each of which has tokens.

    >>> clusters = Clusters.of([7, 7, 9])
    >>> clusters.sizes, clusters.effective
    (array([2, 1]), 1.8)
    """

    index: npt.NDArray[np.int64]

    @classmethod
    def of(cls, document: npt.NDArray[Any] | Sequence[int]) -> "Clusters":
        """Any numbers of documents."""
        return cls(np.unique(np.asarray(document), return_inverse=True)[1].astype(np.int64))

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, (G,)."""
        return np.bincount(self.index)

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.index)

    @property
    def count(self) -> int:
        """G."""
        return len(self.sizes)

    @property
    def effective(self) -> float:
        """N² / Σ n²: G for documents of equal length, fewer for others."""
        return float(self.num_tokens**2 / np.sum(self.sizes.astype(float) ** 2)) if self.num_tokens else 0.0

    @property
    def freedom(self) -> float:
        """Degrees of freedom, at least 1."""
        return max(self.effective - 1.0, 1.0)

    @cached_property
    def quantile(self) -> float:
        """Of Student's t: an interval at `LEVEL` is so many errors wide on either side."""
        return float(special.stdtrit(self.freedom, 0.5 + LEVEL / 2))

    def error(self, influence: Floats) -> float | None:
        """By document; None for one document."""
        if self.count < 2:
            return None
        sums = np.bincount(self.index, influence, self.count)
        left = (sums / (self.num_tokens - self.sizes)) ** 2
        return _finite(math.sqrt((self.count - 1) / self.count * float(left.sum())))

    def p_value(self, value: float, error: float | None) -> float | None:
        """Of a value that is 0 by hypothesis, two-sided; None for one document."""
        if error is None:
            return None
        if error == 0.0:
            return 1.0 if value == 0.0 else 0.0
        return float(2.0 * special.stdtr(self.freedom, -abs(value) / error))


def iid_error(influence: Floats) -> float | None:
    """As if tokens were independent; None for one token."""
    n = len(influence)
    return _finite(math.sqrt(float(np.mean(influence**2)) / (n - 1))) if n > 1 else None


def statistic(
    name: str,
    value: float,
    influence: Floats,
    clusters: Clusters,
    *,
    unit: str = "",
    scale: float = 1.0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    symmetric: Literal["itself", "log", "odds"] = "itself",
) -> Statistic:
    """A statistic with both errors, times `scale`, and its interval, which stays in its bounds (before the scale).

    symmetric: in what the interval is as wide below as above: "log" for what is never negative, "odds" for a share.
    """
    if not math.isfinite(value):
        return Statistic(name, value * scale, unit=unit)
    iid, clustered = iid_error(influence), clusters.error(influence)
    low = high = None
    if clustered is not None:
        low, high = _interval(value, clusters.quantile * clustered, symmetric)
        low, high = scale * max(low, bounds[0]), scale * min(high, bounds[1])
    return Statistic(name, value * scale, _times(iid, scale), _times(clustered, scale), low, high, unit)


def _interval(value: float, half: float, symmetric: str) -> tuple[float, float]:
    """Where the half width reaches the end of the range, a logarithm says nothing: then linear, cut at that end."""
    if symmetric == "log":
        if half < value:
            return value * math.exp(-half / value), value * math.exp(half / value)
        return max(value - half, 0.0), value + half
    if symmetric == "odds":
        if half < min(value, 1.0 - value):
            odds, factor = value / (1.0 - value), math.exp(half / (value * (1.0 - value)))
            return odds / (odds + factor), 1.0 - 1.0 / (1.0 + odds * factor)
        return max(value - half, 0.0), min(value + half, 1.0)
    return value - half, value + half


def mean(name: str, x: Floats, clusters: Clusters, **settings: Any) -> Statistic:
    """The mean over tokens; see `statistic`.

    >>> found = mean("x", np.array([0.0, 1.0, 3.0]), Clusters.of([0, 0, 1]))
    >>> found.value, round(found.iid, 4), round(found.clustered, 4)
    (1.3333333333333333, 0.8819, 1.3176)
    """
    if not len(x):
        return Statistic(name, None, unit=settings.get("unit", ""))
    value = float(np.mean(x))
    return statistic(name, value, x - value if math.isfinite(value) else x, clusters, **settings)


def _times(x: float | None, scale: float) -> float | None:
    return None if x is None else x * scale


def exp(x: float) -> float:
    """e^x, +inf where that is beyond a double."""
    return math.exp(x) if x < 709.0 else math.inf


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
