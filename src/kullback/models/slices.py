"""Where a candidate differs: by the reference's confidence, by position, by the kind of token; and the worst tokens."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .clusters import Clusters, Floats, Statistic, mean
from .statistics import MEAN_KLD, Table

CONFIDENCE = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
POSITION = (0, 8, 32, 128, 512, 2048, 8192, 32768)
CLASSES = ("word", "number", "punctuation", "space", "special", "other")


EDGES = tuple(float(each) for each in 10.0 ** (np.arange(-60, 13) / 6))
"""Of a histogram: six bins a decade, from 1e-10 to 100 nats."""


@dataclass(frozen=True)
class Histogram:
    """How many tokens have which KLD.

    Args:
        zeros: exactly 0.
        below, above: above 0 and below the first edge; at the last edge or above it, +inf too.
        edges, counts: B + 1 and B of them; a bin has its lower edge.
    """

    zeros: int
    below: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    above: int


@dataclass(frozen=True)
class Slice:
    """Some of the tokens.

    Args:
        label: which.
        tokens, documents: how many there are, and in how many documents.
        share: of all tokens, in %.
        mean: their mean KLD.
        of_total: what they have of the sum of KLD over all tokens, in %; None where that is 0 or infinite.
    """

    label: str
    tokens: int
    documents: int
    share: float
    mean: Statistic
    of_total: float | None


def by_confidence(columns: Table, edges: Sequence[float] = CONFIDENCE) -> tuple[Slice, ...]:
    """KLD by the reference's largest probability; an edge belongs to the bin above it, and the last bin ends at 1."""
    labels = [f"{a:g}-{b:g}" for a, b in zip(edges, [*edges[1:], 1], strict=True)]
    return by_group(columns, _binned(columns["confidence"], edges), labels)


def by_position(columns: Table, edges: Sequence[int] = POSITION) -> tuple[Slice, ...]:
    """KLD by the place of the predicted token in its document."""
    labels = [f"{a}-{b - 1}" for a, b in itertools.pairwise(edges)]
    return by_group(columns, _binned(columns["position"], edges), [*labels, f"{edges[-1]} and more"])


def by_class(columns: Table, class_of: Callable[[int], str]) -> tuple[Slice, ...]:
    """KLD by the kind of the token that came; `class_of` is asked once for every id.

    With a tokenizer: lambda i: token_class(tokenizer.decode([i]), i in tokenizer.all_special_ids).
    """
    ids, which = np.unique(columns["token"], return_inverse=True)
    kinds = [class_of(int(i)) for i in ids]
    labels = [*(each for each in CLASSES if each in kinds), *sorted({*kinds} - {*CLASSES})]
    return by_group(columns, np.array([labels.index(kind) for kind in kinds], np.int64)[which], labels)


def by_group(columns: Table, group: npt.NDArray[np.int64], labels: Sequence[str]) -> tuple[Slice, ...]:
    """KLD of the tokens of each group, (N,) indices of labels, negative for tokens of none. Empty groups are left out.

    The error by document is that of a ratio: how many tokens of a group a document has is part of what varies.
    """
    kl, document = columns["kl"], columns["document"]
    total, found = float(np.sum(kl)), []
    for k, label in enumerate(labels):
        here = group == k
        n = int(np.count_nonzero(here))
        if not n:
            continue
        clusters = Clusters.of(document[here])
        found.append(
            Slice(
                label,
                n,
                clusters.count,
                100.0 * n / len(kl),
                mean(MEAN_KLD, kl[here], clusters, unit="nats", symmetric="log"),
                100.0 * float(np.sum(kl[here])) / total if 0.0 < total < np.inf else None,
            )
        )
    return tuple(found)


def histogram(kl: Floats, edges: Sequence[float] = EDGES) -> Histogram:
    """Counts in bins that are the same whatever the candidate. NaN is in none.

    >>> histogram(np.array([0.0, 0.5, 1.0, 7.0, np.inf]), [0.1, 1.0, 10.0])
    Histogram(zeros=1, below=0, edges=(0.1, 1.0, 10.0), counts=(1, 2), above=1)
    """
    positive = kl[kl > 0.0]
    found = np.bincount(np.searchsorted(np.asarray(edges), positive, side="right"), minlength=len(edges) + 1)
    below, *counts, above = (int(each) for each in found)
    return Histogram(int(np.count_nonzero(kl == 0.0)), below, tuple(float(x) for x in edges), tuple(counts), above)


def token_class(text: str, special: bool = False) -> str:
    """What kind of token a text is: one of `CLASSES`.

    special: whether the tokenizer says so (BOS, end of text, ...); a text cannot.

    A token of letters, digits and _ is a number if it starts with a digit, else a word; a leading space does not count.
    "other" has both words and punctuation, or bytes that are no character by themselves.

    >>> [token_class(x) for x in (" the", "42", "):", "\\n        ", "n't", "\\ufffd")]
    ['word', 'number', 'punctuation', 'space', 'other', 'other']
    """
    if special:
        return "special"
    core = text.strip()
    if not core:
        return "space"
    if "\ufffd" in core:
        return "other"
    wordly = [c.isalnum() or c == "_" for c in core]
    if not any(wordly):
        return "punctuation"
    if not all(wordly):
        return "other"
    return "number" if core[0].isnumeric() else "word"


def worst(kl: Floats, count: int) -> npt.NDArray[np.int64]:
    """Where the `count` largest are, largest first; of equal ones the first. NaN is none.

    >>> worst(np.array([1.0, 3.0, 0.5, 3.0]), 3)
    array([1, 3, 0])
    """
    order = np.where(np.isnan(kl), np.inf, -kl)
    count = min(count, int(np.count_nonzero(~np.isnan(kl))))
    if not count:
        return np.empty(0, np.int64)
    bound = np.partition(order, count - 1)[count - 1]
    candidates = np.flatnonzero(order <= bound)
    return candidates[np.argsort(order[candidates], kind="stable")][:count].astype(np.int64)


def _binned(x: npt.NDArray[Any], edges: Sequence[float]) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = np.searchsorted(np.asarray(edges), x, side="right") - 1
    return found
