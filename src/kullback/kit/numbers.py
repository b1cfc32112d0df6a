"""Mean and standard error of a few values, and how they are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean and standard error over repetitions (seeds, say), with the values that they summarise."""

    mean: float
    stderr: float | None  # None for a single value
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        """mean, s/√n with s² = Σ(x - mean)²/(n - 1).

        >>> Summary.of([1.0, 3.0])
        Summary(mean=2.0, stderr=1.0, values=(1.0, 3.0))
        """
        n = len(values)
        mean = math.fsum(values) / n if all(map(math.isfinite, values)) else sum(values) / n
        if n == 1 or not math.isfinite(mean):
            return cls(mean, None, tuple(values))
        variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
        return cls(mean, math.sqrt(variance / n), tuple(values))

    def text(self, form: str) -> str:
        """mean ± standard error in a number format; the mean alone where there is no error, - where it is NaN.

        >>> Summary.of([1.0, 3.0]).text("+.2f"), Summary.of([1.0]).text(".2f")
        ('+2.00 ± 1.00', '1.00')
        """
        if math.isnan(self.mean):
            return "-"
        error = "" if self.stderr is None else f" ± {self.stderr:{form.lstrip('+')}}"
        return f"{self.mean:{form}}{error}"


def finite(value: float | None) -> float | None:
    """The number for a JSON document, which has neither infinities nor NaN: null for those.

    >>> finite(math.inf) is None
    True
    """
    return float(value) if value is not None and math.isfinite(value) else None
