"""Candidates against each other on the same tokens, and against what the reference differs from itself."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kullback._errors import BadInput

from .clusters import Clusters, Statistic, mean
from .statistics import MEAN_KLD, Table


@dataclass(frozen=True)
class Paired:
    """Which of two candidates is nearer to the reference.

    Args:
        one, other: their names.
        difference: mean KLD of `one` less that of `other`; negative where `one` is nearer. Its value is None where both
            are infinite.
        p: of no difference, two-sided, by document; None for one document.
        better, worse, equal: the share of tokens at which `one` has the smaller, the larger, the same KLD.
        adjusted: p for all pairs that were tested together (Holm 1979).
    """

    one: str
    other: str
    difference: Statistic
    p: float | None
    better: Statistic
    worse: Statistic
    equal: Statistic
    adjusted: float | None = None


@dataclass(frozen=True)
class Floor:
    """A candidate's mean KLD beside that of the reference against itself, run otherwise.

    Args:
        mean: the floor: what another batch size, thread count or dtype makes of the reference.
        times: the candidate's mean KLD over it; None where the floor is 0.
        excess: the candidate's mean KLD less the floor's, on the same tokens.
        above: whether the whole interval of the excess is above 0; None for one document.
    """

    mean: Statistic
    times: float | None
    excess: Paired
    above: bool | None


def paired(one: Table, other: Table, names: tuple[str, str] = ("one", "other")) -> Paired:
    """Compare the KLD of two candidates token by token; the error is that of the difference, by document.

    Raises: BadInput: their tokens are not the same.

    >>> table = {"document": np.array([0, 0, 1, 1]), "position": np.arange(4), "token": np.arange(4)}
    >>> found = paired(table | {"kl": np.array([1.0, 2.0, 3.0, 4.0])}, table | {"kl": np.array([2.0, 3.5, 4.0, 5.5])})
    >>> found.difference.value, found.difference.clustered, found.p, found.better.value
    (-1.25, 0.0, 0.0, 100.0)
    """
    clusters = _same_tokens(one, other, names)
    a, b = one["kl"], other["kl"]
    with np.errstate(invalid="ignore"):
        difference = a - b
    name = f"{MEAN_KLD}: {names[0]} - {names[1]}"
    if np.isnan(difference).any():
        found, p = Statistic(name, None, unit="nats"), None
    else:
        found = mean(name, difference, clusters, unit="nats")
        p = None if found.value is None else clusters.p_value(found.value, found.clustered)
    better, worse, equal = (
        mean(label, which.astype(float), clusters, unit="%", scale=100.0, symmetric="odds")
        for label, which in (("Better", a < b), ("Worse", a > b), ("Equal", a == b))
    )
    return Paired(*names, found, p, better, worse, equal)


def every_pair(candidates: Mapping[str, Table]) -> list[Paired]:
    """Every two candidates, with p adjusted for their number."""
    found = [paired(candidates[a], candidates[b], (a, b)) for a, b in itertools.combinations(candidates, 2)]
    tested = [k for k, each in enumerate(found) if each.p is not None]
    for k, p in zip(tested, holm([found[k].p or 0.0 for k in tested]), strict=True):
        found[k] = replace(found[k], adjusted=p)
    return found


def holm(p: Sequence[float]) -> list[float]:
    """p-values times how many are not smaller, made monotone: the share of families with a false claim stays below.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(raised, 1.0)
    return [float(each) for each in found]


def beside_floor(candidate: Table, floor: Table, names: tuple[str, str] = ("candidate", "floor")) -> Floor:
    """A candidate's mean KLD beside its noise floor, measured at the same tokens.

    Raises: BadInput: their tokens are not the same.
    """
    excess = paired(candidate, floor, names)
    of_floor = mean(MEAN_KLD, floor["kl"], Clusters.of(floor["document"]), unit="nats", symmetric="log")
    times = float(np.mean(candidate["kl"])) / of_floor.value if of_floor.value else None
    low = excess.difference.low
    return Floor(of_floor, times, excess, None if low is None else low > 0.0)


def _same_tokens(one: Table, other: Table, names: tuple[str, str]) -> Clusters:
    for column in ("document", "position", "token"):
        a, b = one[column], other[column]
        if len(a) != len(b):
            raise BadInput(f"{names[0]} has {len(a)} tokens and {names[1]} has {len(b)}; a pair is of the same tokens")
        if not np.array_equal(a, b):
            row = int(np.argmax(a != b))
            raise BadInput(
                f"row {row} is {column} {a[row]} of {names[0]} and {b[row]} of {names[1]}; a pair is of the same tokens"
            )
    return Clusters.of(one["document"])
