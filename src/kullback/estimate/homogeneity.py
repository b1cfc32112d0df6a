"""Is a divergence between counts more than chance? The χ² law of KL under "p and q are the same"."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Multinomial

from kullback._errors import FormError
from kullback.forms.empirical import Counts
from kullback.forms.finite import Probs

from .draws import draw
from .plug_in import frequencies_kl, paired, size
from .resample import permutation_test


@dataclass(frozen=True)
class KLTest:
    """The outcome of `homogeneity_test`; `critical_value` is on the scale of `value`.

    >>> from kullback import Counts, estimate
    >>> found = estimate.homogeneity_test(Counts([90, 110]), Counts([110, 90]))
    >>> found.df, found.value > found.critical_value(0.95), found.value > found.critical_value(0.99)
    (1, True, False)
    """

    value: float
    """KL of the observed frequencies, in nats."""
    statistic: float
    """2nm/(n+m) · KL, or 2n · KL against a known distribution."""
    df: int
    p_value: float
    law: str
    """"chi2", or "permutation"."""
    n: int
    m: int | None
    verdict: str = ""
    _scale: float = field(default=1.0, repr=False)

    def critical_value(self, level: float = 0.95) -> float:
        """The KL that χ² exceeds with probability 1 - level if p and q are the same."""
        return _chi2_quantile(self.df, level) / self._scale


def critical_value(n: int, m: float, categories: int, *, level: float = 0.95, curvature: float = 1.0) -> float:
    """The value that a divergence between two samples of one distribution exceeds with probability 1 - level.

    curvature · ½ (1/n + 1/m) χ²(B-1; level)

    Args:
        n, m: observations of p and of q; m = inf for a known q.
        categories: B, those that can occur.
        curvature: f''(1) of the divergence: 1 for KL, 2 for Jeffreys (PSI) and χ², 1/4 for JS and squared Hellinger.

    Source: Kullback 1959, chapter 6; Yurdakul & Naranjo 2020 for PSI.

    >>> round(critical_value(1000, 1000, 10), 6), round(critical_value(1000, 1000, 10, curvature=2), 6)
    (0.016919, 0.033838)
    """
    if not (n >= 1 and m >= 1 and categories >= 2 and curvature > 0):
        raise FormError(
            f"critical_value: n={n}, m={m}, categories={categories}, curvature={curvature}; at least one observation "
            "of each, two categories and a curvature above 0 are needed."
        )
    return curvature * 0.5 * (1.0 / n + 1.0 / m) * _chi2_quantile(categories - 1, level)


def homogeneity_test(
    p: Counts, q: Counts | Probs, *, generator: torch.Generator | None = None, permutations: int = 999
) -> KLTest:
    """Do p and q come from one distribution? Tests KL(p‖q) of the observed frequencies.

    Under "the same", 2nm/(n+m) · KL is χ² with B-1 degrees, B the categories seen at all, once expected counts are
    about 5. With a generator the p-value is that of a permutation test (against known q: of simulation), which
    is right at any counts.

    Args: p: Counts.  q: Counts, or Probs (V,) that count as known.  generator, permutations: for the permutation law.
    Raises: FormError: without a generator, a category that only p has seen, where χ² has no answer; one category.

    >>> round(homogeneity_test(Counts([90, 110]), Counts([110, 90])).p_value, 3)
    0.045
    """
    if not isinstance(p, Counts) or not isinstance(q, Counts | Probs):
        raise FormError(
            f"homogeneity_test: p is {type(p).__name__} and q {type(q).__name__}; p must be Counts, and q Counts or "
            "Probs. For samples, write permutation_test with a statistic of yours."
        )
    x, y = paired("homogeneity_test", p, q)
    kept = (x > 0) | (y > 0)
    x, y, df = x[kept], y[kept], int(kept.sum()) - 1
    if df < 1:
        raise FormError("homogeneity_test: only one category was seen; a comparison needs at least two.")
    n, m = size(p), size(q)
    scale = 2.0 / (1.0 / n + 1.0 / m)
    value = frequencies_kl(x, y)
    expected = float((x + y).min() / (n + m) * min(n, m)) if m < math.inf else float((y / y.sum() * n).min())
    verdict = ""
    if generator is not None:
        p_value, law = _simulated(x, y, q, generator, permutations), "permutation"
    elif math.isinf(value):
        raise FormError(
            f"homogeneity_test: {int(((x > 0) & (y == 0)).sum())} categories were seen by p and not by q, so that KL "
            "is +inf and χ² has no answer. Write generator=torch.Generator().manual_seed(0) for a permutation test, "
            "or merge categories."
        )
    else:
        p_value, law = _chi2_tail(df, scale * value), "chi2"
        if expected < 5.0:
            verdict = f"the smallest expected count is {expected:.2g}: below 5 χ² is not accurate, pass a generator"
    return KLTest(
        value, scale * value, df, p_value, law, int(n), int(m) if m < math.inf else None, verdict, _scale=scale
    )


def _simulated(x: Tensor, y: Tensor, q: Counts | Probs, generator: torch.Generator, permutations: int) -> float:
    categories = len(x)
    if isinstance(q, Counts):

        def statistic(a: Tensor, b: Tensor) -> float:
            return frequencies_kl(*(torch.bincount(side, minlength=categories).double() for side in (a, b)))

        labels = [torch.repeat_interleave(torch.arange(categories), side.long()) for side in (x, y)]
        return permutation_test(statistic, *labels, generator=generator, permutations=permutations).p_value
    n, observed = int(x.sum()), frequencies_kl(x, y)
    again = draw(Multinomial(n, probs=y / y.sum()), permutations, generator)
    reach = observed - 1e-12 * observed if math.isfinite(observed) else observed
    return (1 + sum(frequencies_kl(row, y) >= reach for row in again)) / (1 + permutations)


def _chi2_quantile(df: int, level: float) -> float:
    from scipy import special  # type: ignore[import-untyped]

    if not 0.0 < level < 1.0:
        raise FormError(f"critical_value: level is {level!r}; write a number between 0 and 1, such as 0.95.")
    return float(special.chdtri(df, 1.0 - level))


def _chi2_tail(df: int, x: float) -> float:
    from scipy import special

    return float(special.chdtrc(df, x))
