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


def significant(value: float | None, digits: int = 3) -> str:
    """A number to a few digits, with an exponent where it is small or large; – for none.

    >>> [significant(x) for x in (0.0, 0.012345, 2.5e-5, -1234.5, 1e7, math.inf, None)]
    ['0', '0.0123', '2.50e-05', '-1,234', '1.00e+07', '∞', '–']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0.0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def with_error(value: float | None, error: float | None) -> str:
    """value ± error, to two digits of the error.

    >>> with_error(0.0024631, 2.2e-5), with_error(1.2003e-5, 1.1e-7), with_error(0.5, None), with_error(0.0, 0.0)
    ('0.002463 ± 0.000022', '1.200e-05 ± 1.1e-07', '0.500', '0 ± 0')
    """
    if value is None or error is None or not math.isfinite(value) or not error > 0.0 or math.isinf(error):
        return significant(value) + (" ± 0" if error == 0.0 else "")
    size = math.floor(math.log10(error))
    if value != 0.0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{min(max(math.floor(math.log10(abs(value))) - size + 1, 1), 8)}e} ± {error:.1e}"
    if error < 1e-9 or error >= 1e6:
        return f"{significant(value)} ± {error:.1e}"
    return f"{value:,.{max(0, 1 - size)}f} ± {error:,.{max(0, 1 - size)}f}"
