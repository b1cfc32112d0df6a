"""What an estimator answers with: a value, how sure it is, and what is wrong with it."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor

from kullback._errors import FormError

from .number import Number


class Interval(NamedTuple):
    """A confidence interval.

    >>> from kullback.estimate import Estimate
    >>> low, high = Estimate(0.5, 0.1, 100, bias="none", method="by hand").interval(level=0.9)
    >>> round(low, 3), round(high, 3)
    (0.336, 0.664)
    """

    low: float
    high: float


class Corrected(NamedTuple):
    """A second estimate, with less bias and more variance: the interval covers a truth anywhere between both.

    >>> from kullback.estimate import Estimate
    >>> low, high = Estimate(0.5, 0.1, 100, "none", "by hand", corrected=Corrected(0.6, 0.1)).interval()
    >>> round(low, 2), round(high, 2)
    (0.33, 0.77)
    """

    value: float
    stderr: float


@dataclass(frozen=True, repr=False, eq=False)
class Estimate(Number):
    """An estimated divergence. It holds numbers, not tensors: no gradient flows through an estimate.

    As a number it is its `value`: `float(e)`, `f"{e:.3f}"`, `e > 0.1`, `round(e, 3)` and arithmetic. What arithmetic
    gives is a bare number without an error; only `to` changes the unit and keeps the error.

    Args:
        raw: the number that the method gives. An unbiased estimate of a small divergence is negative now and then;
            `value`, which a divergence can have, is raw or 0 if that is larger. Average `raw`, not `value`.
        stderr: the standard error of raw; NaN where the data cannot give one (one draw, an infinite value).
        n: draws from p, or from the distribution that took its place; 0 for a bound without draws.
        bias: in words: "none", "lower bound", "O(1/n)", ...
        method: the method, as the value that was passed or chosen.
        m: draws from q, where the method used some.
        verdict: "" if nothing speaks against the number; else why it cannot be trusted.
        unit: "nats", "bits", or "base b".
        covers: what the interval covers: "both" sides, or for a bound only the side that it proves.
        df: degrees of freedom of the Student t law of (value - truth) / stderr; +inf for the normal law.
        corrected: raw less the bias that was seen, and the standard error of this; the interval covers both.
        slope: by how much the variance grows with the truth: the interval is then that of the score test.
        details: further numbers by name (effective sample size, excluded mass, ...).

    >>> from kullback.estimate import Estimate
    >>> found = Estimate(0.5, 0.1, 100, bias="none", method="by hand")
    >>> print(found)
    0.5 nats ± 0.1 (95 %: 0.304 to 0.696), by hand, n=100
    >>> found, found > 0.4, f"{found:.3f}", found / 2
    (Estimate(0.5 ± 0.1 nats), True, '0.500', 0.25)
    """

    raw: float
    stderr: float
    n: int
    bias: str
    method: Any
    m: int | None = None
    verdict: str = ""
    unit: str = "nats"
    covers: Literal["both", "lower", "upper"] = "both"
    df: float = math.inf
    corrected: Corrected | None = None
    slope: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The estimate of a number that is never negative: raw, or 0 if raw is below."""
        return 0.0 if self.raw < 0.0 else self.raw

    def interval(self, level: float = 0.95) -> Interval:
        """The confidence interval, cut at 0; [low, inf] for a lower bound, [0, high] for an upper one.

        value ± t·stderr; with `corrected`, for a truth anywhere between raw and it (the interval of Imbens & Manski
        2004 for a set); with `slope`, the score interval (Wilson 1927). Without a standard error it is [0, inf], which
        is all that is known. docs/estimators.md tabulates how often the intervals of each method contain the truth.

        Args: level: the nominal coverage, between 0 and 1.
        Raises: FormError: a level outside (0, 1).
        """
        if not 0.0 < level < 1.0:
            raise FormError(f"Estimate.interval: level is {level!r}; write a number between 0 and 1, such as 0.95.")
        tail = (1.0 - level) / (2.0 if self.covers == "both" else 1.0)
        sides = [Corrected(self.raw, self.stderr), *([self.corrected] if self.corrected else [])]
        if not all(math.isfinite(number) for side in sides for number in side):
            return Interval(0.0, math.inf)
        # the truth is >= 0, and so is the centre: an interval about a negative one could shrink to nothing
        centres, stderr = [max(0.0, side.value) for side in sides], max(side.stderr for side in sides)
        apart = max(centres) - min(centres)
        t = set_quantile(tail, apart / stderr) if apart and stderr else student_quantile(1.0 - tail, self.df)
        middles = [centre + 0.5 * t * t * self.slope for centre in centres]
        reaches = [t * math.hypot(0.5 * t * self.slope, side.stderr) for side in sides]
        low = min(middle - reach for middle, reach in zip(middles, reaches, strict=True))
        high = max(middle + reach for middle, reach in zip(middles, reaches, strict=True))
        return Interval(0.0 if self.covers == "upper" else max(0.0, low), math.inf if self.covers == "lower" else high)

    def to(self, base: float) -> "Estimate":
        """The same estimate, held in nats, with logarithms to another base."""
        if not (isinstance(base, int | float) and 1.0 < base < math.inf):
            raise FormError(f"base is {base!r}; leave it out for nats, write base=2 for bits.")
        if base == math.e:
            return self
        per = math.log(base)
        return replace(
            self,
            raw=self.raw / per,
            stderr=self.stderr / per,
            unit="bits" if base == 2 else f"base {base:g}",
            corrected=None if self.corrected is None else Corrected(*(one / per for one in self.corrected)),
            slope=self.slope / per,
        )

    def __float__(self) -> float:
        return float(self.value)

    def __eq__(self, other: object) -> Any:
        """Estimates are equal in everything; a number is compared with the value."""
        if isinstance(other, Estimate):
            return all(getattr(self, one.name) == getattr(other, one.name) for one in fields(self))
        return self.value == other

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        caution = f"; caution: {self.verdict}" if self.verdict else ""
        return f"Estimate({self.value:.6g}{self._spread()} {self.unit}{caution})"

    def __str__(self) -> str:
        low, high = self.interval()
        size = f", n={self.n}" + ("" if self.m is None else f", m={self.m}") if self.n else ""
        words = "" if self.bias == "none" else f"; bias: {self.bias}"
        caution = f"; caution: {self.verdict}" if self.verdict else ""
        number = f"{self.value:.6g} {self.unit}{self._spread()} (95 %: {low:.4g} to {high:.4g})"
        return f"{number}, {brief(self.method)}{size}{words}{caution}"

    def _spread(self) -> str:
        return f" ± {self.stderr:.3g}" if math.isfinite(self.stderr) and self.n else ""


@dataclass(frozen=True, eq=False)
class Estimates:
    """A divergence estimated in every row, each with its standard error; tensors, through which no gradient flows.

    Args:
        raw: (...), the number that the method gives, unbiased, and below 0 now and then. Average these.
        stderr: (...), the standard error of raw; NaN where a row cannot give one (one draw, an infinite value).
        n: (...), draws of each row.
        bias, method, unit: as of `Estimate`.

    >>> import torch
    >>> Estimates(torch.tensor([0.5, -0.1]), torch.tensor([0.1, 0.1]), torch.tensor([9, 9]), "none", "by hand").mean()
    Estimate(0.2 ± 0.0707 nats)
    """

    raw: Tensor
    stderr: Tensor
    n: Tensor
    bias: str
    method: str
    unit: str = "nats"

    @property
    def value(self) -> Tensor:
        """raw, or 0 where raw is below, as a divergence is."""
        return self.raw.clamp(min=0.0)

    def mean(self) -> Estimate:
        """The mean of all rows; their draws are independent."""
        rows = self.raw.numel()
        if rows == 0:
            raise FormError("Estimates.mean: there are no rows.")
        stderr = math.sqrt(float((self.stderr**2).sum())) / rows
        return Estimate(float(self.raw.mean()), stderr, int(self.n.sum()), self.bias, self.method, unit=self.unit)

    def to(self, base: float) -> "Estimates":
        """The same estimates, held in nats, with logarithms to another base."""
        of_one = Estimate(1.0, 0.0, 1, self.bias, self.method).to(base)
        return replace(self, raw=self.raw * of_one.raw, stderr=self.stderr * of_one.raw, unit=of_one.unit)


def brief(method: Any) -> str:
    """A method as one would write it: without the arguments that have their default."""
    if isinstance(method, str) or not is_dataclass(method):
        return str(method)
    changed = []
    for one in fields(method):
        value = getattr(method, one.name)
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if value != default:
            changed.append(f"{one.name}={brief(value) if is_dataclass(value) else repr(value)}")
    return f"{type(method).__name__}({', '.join(changed)})"


def student_quantile(probability: float, df: float) -> float:
    """The quantile of Student's t, of the normal law for df = inf."""
    from scipy import special  # type: ignore[import-untyped]

    return float(special.ndtri(probability) if math.isinf(df) else special.stdtrit(df, probability))


def set_quantile(tail: float, width: float) -> float:
    """How many standard errors beyond both ends of a set of that many cover a truth anywhere in it.

    c with Φ(c + width) - Φ(-c) = 1 - 2·tail: the two-sided quantile for a point, the one-sided one for a wide set.
    """
    from scipy import special

    low, high = student_quantile(1.0 - 2.0 * tail, math.inf), student_quantile(1.0 - tail, math.inf)
    for _ in range(50):
        middle = 0.5 * (low + high)
        enough = special.ndtr(middle + width) - special.ndtr(-middle) >= 1.0 - 2.0 * tail
        low, high = (low, middle) if enough else (middle, high)
    return high
