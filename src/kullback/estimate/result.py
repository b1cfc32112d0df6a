"""What an estimator answers with: a value, how sure it is, and what is wrong with it."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple

from kullback._errors import FormError


class Interval(NamedTuple):
    """A confidence interval.

    >>> from kullback.estimate import Estimate
    >>> low, high = Estimate(0.5, 0.1, 100, bias="none", method="by hand").interval(level=0.9)
    >>> round(low, 3), round(high, 3)
    (0.336, 0.664)
    """

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """An estimated divergence. It holds numbers, not tensors: no gradient flows through an estimate.

    Args:
        value: the estimate. It is not clipped: an unbiased estimate of a small divergence can be negative.
        stderr: its standard error; NaN where the data cannot give one (one draw, an infinite value).
        n: draws from p, or from the distribution that took its place; 0 for a bound without draws.
        bias: in words: "none", "lower bound", "O(1/n)", ...
        method: the method, as the value that was passed or chosen.
        m: draws from q, where the method used some.
        verdict: "" if nothing speaks against the number; else why it cannot be trusted.
        unit: "nats", "bits", or "base b".
        covers: what the interval covers: "both" sides, or for a bound only the side that it proves.
        df: degrees of freedom of the Student t law of (value - truth) / stderr; +inf for the normal law.
        details: further numbers by name (effective sample size, excluded mass, ...).

    >>> from kullback.estimate import Estimate
    >>> print(Estimate(0.5, 0.1, 100, bias="none", method="by hand"))
    0.5 nats ± 0.1 (95 %: 0.304 to 0.696), by hand, n=100
    """

    value: float
    stderr: float
    n: int
    bias: str
    method: Any
    m: int | None = None
    verdict: str = ""
    unit: str = "nats"
    covers: Literal["both", "lower", "upper"] = "both"
    df: float = math.inf
    details: Mapping[str, float] = field(default_factory=dict)

    def interval(self, level: float = 0.95) -> Interval:
        """The confidence interval: value ± t·stderr, two-sided; [value - t·stderr, inf] for a lower bound.

        Without a standard error it is [0, inf], which is all that is known. docs/estimators.md tabulates how often
        the intervals of each method contain the truth.

        Args: level: the nominal coverage, between 0 and 1.
        Raises: FormError: a level outside (0, 1).
        """
        if not 0.0 < level < 1.0:
            raise FormError(f"Estimate.interval: level is {level!r}; write a number between 0 and 1, such as 0.95.")
        if not (math.isfinite(self.stderr) and math.isfinite(self.value)):
            return Interval(0.0, math.inf)
        tail = (1.0 - level) / (2.0 if self.covers == "both" else 1.0)
        reach = student_quantile(1.0 - tail, self.df) * self.stderr if self.stderr > 0.0 else 0.0
        return Interval(
            0.0 if self.covers == "upper" else self.value - reach,
            math.inf if self.covers == "lower" else self.value + reach,
        )

    def to(self, base: float) -> "Estimate":
        """The same estimate, held in nats, with logarithms to another base."""
        if not (isinstance(base, int | float) and 1.0 < base < math.inf):
            raise FormError(f"base is {base!r}; leave it out for nats, write base=2 for bits.")
        if base == math.e:
            return self
        per = math.log(base)
        unit = "bits" if base == 2 else f"base {base:g}"
        return replace(self, value=self.value / per, stderr=self.stderr / per, unit=unit)

    def __str__(self) -> str:
        low, high = self.interval()
        size = f", n={self.n}" + ("" if self.m is None else f", m={self.m}") if self.n else ""
        words = "" if self.bias == "none" else f"; bias: {self.bias}"
        caution = f"; caution: {self.verdict}" if self.verdict else ""
        spread = f" ± {self.stderr:.3g}" if math.isfinite(self.stderr) and self.n else ""
        number = f"{self.value:.6g} {self.unit}{spread} (95 %: {low:.4g} to {high:.4g})"
        return f"{number}, {brief(self.method)}{size}{words}{caution}"


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
