"""Two counted columns over the same cells, ready for a test: rare cells joined, categories matched by name.

Which categories count by name depends on the pooled counts alone, so that under "no difference", given the pooled
counts, the choice says nothing about who holds them. Choosing by the reference's counts would favour what the reference
happens to hold much of, and flag columns of many rare categories without any drift.

Between quantiles of the reference its counts are fixed, which the permutation law does not know: with few rows a cell
the test would flag too rarely. There cells are joined, by what the reference has alone, until each has 5 rows and lets
5 current rows be expected; its own quantiles leave 20. What fills up where the reference has next to nothing stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bins import OTHER, Bins, Categories, Numbers
from .profiles import Counted
from .statistics import Floats

FEWEST = 10  # pooled rows of a cell, below which it is joined with others
SIDE = 5.0  # of numbers: rows of the reference in a cell, and current rows that it lets one expect


@dataclass(frozen=True)
class Paired:
    """Counts of both sides over the same cells, empty ones left out.

    Args:
        labels: of the cells.
        x, y: counts of reference and current.
        groups: for each cell, the cells of the profile that it joins; of categories, none.
        new, vanished: rows of categories that only one side has, where that can be known, with their names.
        marks: what to know of this column, in words.
    """

    labels: tuple[str, ...]
    x: Floats
    y: Floats
    groups: tuple[tuple[int, ...], ...]
    new: dict[str, int]
    vanished: dict[str, int]
    marks: tuple[str, ...] = ()


def pair(reference: Counted, current: Counted) -> Paired:
    """Match two columns that were counted in the cells of the reference."""
    if isinstance(reference.bins, Categories):
        return _categories(reference, current)
    x, y = np.array(reference.counts, dtype=np.float64), np.array(current.counts, dtype=np.float64)
    labels = reference.bins.labels
    groups = _joined(reference.bins, _weights(x, y) if isinstance(reference.bins, Numbers) else (x + y) / FEWEST, x + y)
    joined = tuple(
        "NaN or null" if {labels[i] for i in g} == {"NaN", "null"} else _span(labels, g, x + y, reference.bins)
        for g in groups
    )
    marks = []
    regular = list(reference.bins.ordered)
    if regular and sum(1 for g in groups if g[0] in regular) < sum(1 for i in regular if x[i] + y[i] > 0):
        marks.append("cells with few rows are joined with their neighbours")
    sums = [(sum(x[i] for i in g), sum(y[i] for i in g)) for g in groups]
    return Paired(
        joined,
        np.array([a for a, _ in sums], dtype=np.float64),
        np.array([b for _, b in sums], dtype=np.float64),
        groups,
        {},
        {},
        tuple(marks),
    )


def _weights(x: Floats, y: Floats) -> Floats:
    """Of cells between quantiles of the reference: from 1 on a cell stands alone."""
    n, m = x.sum(), y.sum()
    ratio = float(m / n) if n else 1.0
    filled_up = (y >= FEWEST) & (y >= 5.0 * (x + 1.0) * ratio)
    weights: Floats = np.where(filled_up, 1.0, x * min(1.0, ratio) / SIDE)
    return weights


def _joined(bins: Bins, enough: Floats, pooled: Floats) -> tuple[tuple[int, ...], ...]:
    """The cells in groups: special cells alone; neighbours together until each group has enough, or two are left; empty
    ones nowhere.
    """
    groups: list[list[int]] = [[i] for i in bins.ordered]
    weights = [float(enough[i]) for i in bins.ordered]
    while len(groups) > 1 and min(weights) < 1.0:
        if len(groups) == 2 and all(pooled[g].any() for g in groups):
            break
        i = weights.index(min(weights))
        # to the poorer neighbour, so that the rich keep their detail
        j = i + 1 if i == 0 or (i + 1 < len(weights) and weights[i + 1] < weights[i - 1]) else i - 1
        a, b = min(i, j), max(i, j)
        groups[a : b + 1] = [groups[a] + groups[b]]
        weights[a : b + 1] = [weights[a] + weights[b]]
    special = [[i] for i in range(len(pooled)) if i not in bins.ordered]
    kept = [g for g in groups + special if pooled[g].sum() > 0]
    return tuple(tuple(g) for g in sorted(kept))


def _span(labels: Sequence[str], group: tuple[int, ...], pooled: Floats, bins: Bins) -> str:
    """The name of neighbouring cells together; of a cell that only empty ones joined, its own."""
    held = tuple(i for i in group if pooled[i] > 0)
    group = held if len(held) == 1 else group
    if len(group) == 1:
        return labels[group[0]]
    first, last = labels[group[0]], labels[group[-1]]
    low = first.partition(" to ")[0].removeprefix("= ")
    high = last.partition(" to ")[2] or last.removeprefix("= ")
    whole = len(group) == len(bins.ordered)
    if whole:
        return "any value"
    if first.startswith(("< ", "before ")):
        return f"< {high}" if bins.kind == "number" else f"up to {high}"
    if last.startswith(("≥ ", "> ")) or last.endswith(" or later"):
        return f"≥ {low}" if bins.kind == "number" else f"{low} or later"
    return f"{low} to {high}"


def _categories(reference: Counted, current: Counted) -> Paired:
    assert isinstance(reference.bins, Categories)
    assert isinstance(current.bins, Categories)
    n, m = sum(reference.counts), sum(current.counts)
    x = dict(zip(reference.bins.names, reference.counts, strict=False))
    y = dict(zip(current.bins.names, current.counts, strict=False))
    marks = []
    new = {k: c for k, c in current.new.items() if k not in x and c}
    known = {k: c for k, c in new.items() if not reference.unnamed_at_most or k in reference.new}
    x |= {k: reference.new.get(k, 0) for k in known}
    y |= known
    # a category without a name on both sides has at most this many rows; below it, which ones have names is chance
    hidden = reference.unnamed_at_most + current.unnamed_at_most
    least = max(FEWEST, hidden + 1)
    kept = [k for k in x if x[k] + y.get(k, 0) >= least]
    rest = (n - reference.nulls - sum(x[k] for k in kept), m - current.nulls - sum(y.get(k, 0) for k in kept))
    if hidden:
        marks.append(f"more categories than are counted by name: those with fewer than {least:,} rows count as other")
    cells = [(k, x[k], y.get(k, 0)) for k in kept]
    cells += [(OTHER, *rest), ("null", reference.nulls, current.nulls)]
    cells = [cell for cell in cells if cell[1] + cell[2] > 0]
    vanished = {k: c for k, c in x.items() if c and not y.get(k, 0)}
    gained = {k: c for k, c in y.items() if c and not x.get(k, 0)}
    return Paired(
        tuple(str(label) for label, _, _ in cells),
        np.array([a for _, a, _ in cells], dtype=np.float64),
        np.array([b for _, _, b in cells], dtype=np.float64),
        (),
        dict(sorted(gained.items(), key=lambda item: -item[1])),
        dict(sorted(vanished.items(), key=lambda item: -item[1])),
        tuple(marks),
    )
