"""Mean of many values that come in groups, with a standard error that does not take the values of a group for
independent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Clustered:
    """A mean over all values, and its standard error over groups."""

    mean: float
    stderr: float | None  # None for a single group
    groups: int
    count: int  # values in all groups


def clustered_mean(sums: Sequence[float], counts: Sequence[int]) -> Clustered:
    """m = Σ_g S_g / N over groups of n_g values with sum S_g, N = Σ n_g; se² = G/(G-1) · Σ_g (S_g - n_g m)² / N².

    The standard error of a ratio of means: groups are independent of each other, the values in one need not be.

    Args: sums, counts: one a group; a group without values adds nothing and is not counted.
    Raises: ValueError where there is no value at all.
    Source: Cochran, Sampling Techniques, 1977, 6.3; Liang & Zeger 1986.

    >>> clustered_mean([1.0, 2.0, 6.0], [1, 1, 1])
    Clustered(mean=3.0, stderr=1.5275..., groups=3, count=3)
    >>> clustered_mean([10.0, 20.0], [10, 10]).stderr, clustered_mean([10.0], [10]).stderr
    (0.5, None)
    """
    s, n = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    s, n = s[n > 0], n[n > 0]
    total = float(n.sum())
    if not total:
        raise ValueError("there are no values to take a mean of")
    mean = math.fsum(s) / total if np.isfinite(s).all() else float(s.sum()) / total
    many, stderr = len(n), None
    if many > 1 and math.isfinite(mean):
        stderr = math.sqrt(many / (many - 1) * math.fsum((s - n * mean) ** 2)) / total
    return Clustered(mean, stderr, many, round(total))


def sums_by_group(
    values: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Sum and count of the values of each group, groups in ascending order.

    >>> sums_by_group(np.array([1.0, 2.0, 4.0]), np.array([7, 7, 9]))
    (array([3., 4.]), array([2, 1]))
    """
    _, place = np.unique(groups, return_inverse=True)
    return np.bincount(place, weights=values).astype(np.float64), np.bincount(place)
