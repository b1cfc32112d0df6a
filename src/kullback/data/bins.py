"""How a column is cut into cells: numbers and times by edges, categories by value, and what is none of these apart.

Edges stand in the order of the axis; a value x lies before the edge e if x < e. The cells of a column are, in order:

    numbers     -inf, then len(edges) + 1 intervals, then +inf, NaN, null
    times       len(edges) + 1 periods, then null
    categories  the names, then every other value, then null
    booleans    false, true, null
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any, ClassVar, Literal

from kullback._errors import BadInput

OTHER = "(other)"
NULL = "null"


@dataclass(frozen=True)
class Numbers:
    """Intervals between edges: [edge, next edge).

    Args:
        edges: ascending, finite.
        whole: the column holds whole numbers, so that a cell is named by the values in it.
        origin: where the edges come from, in words.

    >>> Numbers((0.5, 2.0)).labels
    ('-inf', '< 0.5', '0.5 to 2', '≥ 2', 'inf', 'NaN', 'null')
    """

    edges: tuple[float, ...]
    whole: bool = False
    origin: str = "exact quantiles"
    kind: ClassVar[Literal["number"]] = "number"
    special: ClassVar[int] = 3  # cells at the end that are no interval

    @property
    def labels(self) -> tuple[str, ...]:
        return ("-inf", *_intervals(self.edges, self.whole), "inf", "NaN", NULL)

    @property
    def ordered(self) -> range:
        """The cells that lie side by side on an axis, so that neighbours may be joined."""
        return range(1, len(self.edges) + 2)


@dataclass(frozen=True)
class Times:
    """Periods between edges, in UTC where the column has a time zone.

    >>> Times((datetime(2024, 1, 1), datetime(2024, 2, 1)), "month").labels
    ('before 2024-01', '2024-01', '2024-02 or later', 'null')
    """

    edges: tuple[datetime, ...]
    period: str
    kind: ClassVar[Literal["time"]] = "time"
    special: ClassVar[int] = 1

    @property
    def labels(self) -> tuple[str, ...]:
        names = [_moment(edge, self.period) for edge in self.edges]
        if not names:
            return ("any time", NULL)
        return (f"before {names[0]}", *names[:-1], f"{names[-1]} or later", NULL)

    @property
    def ordered(self) -> range:
        return range(len(self.edges) + 1)


@dataclass(frozen=True)
class Categories:
    """The values that are counted by name.

    >>> Categories(("a", "b")).labels
    ('a', 'b', '(other)', 'null')
    """

    names: tuple[str, ...]
    kind: ClassVar[Literal["category"]] = "category"
    special: ClassVar[int] = 2

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.names, OTHER, NULL)

    @property
    def ordered(self) -> range:
        return range(0)


@dataclass(frozen=True)
class Booleans:
    """False, true, null.

    >>> Booleans().labels
    ('false', 'true', 'null')
    """

    kind: ClassVar[Literal["boolean"]] = "boolean"
    special: ClassVar[int] = 1
    labels: tuple[str, ...] = field(default=("false", "true", NULL), init=False)
    ordered: range = field(default=range(0), init=False)


Bins = Numbers | Times | Categories | Booleans


def number_edges(quantiles: Sequence[float], low: float, *, whole: bool) -> tuple[float, ...]:
    """Edges from quantiles of the reference, at levels 1/B, ..., (B-1)/B, and its smallest value.

    A value that fills two levels or more gets a cell of its own. Any other edge is rounded to as few digits as keep it
    within a twentieth of the way to its neighbours: readable, the same whatever engine found the quantile, and no value
    of a row.

    >>> number_edges([0.1234567, 0.2391, 0.391], 0.0, whole=False)
    (0.123, 0.239, 0.391)
    >>> number_edges([0.0, 0.0, 3.3], 0.0, whole=True)   # zeros apart from what is below and above
    (0.0, 1.0, 4.0)
    """
    points = [low, *quantiles]
    atoms = {b for a, b in pairwise(points) if a == b}
    edges: set[float] = set()
    for i, value in enumerate(points):
        if value in atoms:
            edges |= {value, value + 1.0 if whole else math.nextafter(value, math.inf)}
        elif i:
            gaps = [abs(value - points[j]) for j in (i - 1, i + 1) if j < len(points)]
            edges.add(float(math.ceil(value)) if whole else _rounded(value, min(gaps) / 20.0))
    # below the smallest value nothing needs a cell, unless that value has one and the current table may go below it
    return tuple(sorted(edge for edge in edges if edge > low or low in atoms))


PERIODS = ("minute", "hour", "day", "week", "month", "quarter", "year")
_SECONDS = dict(zip(PERIODS, (60.0, 3600.0, 86400.0, 604800.0, 2629746.0, 7889238.0, 31556952.0), strict=True))
MOST_PERIODS = 60


def time_edges(first: datetime, last: datetime) -> Times:
    """Whole periods from the first to the last moment of the reference, as fine as gives at most 60 of them.

    >>> bins = time_edges(datetime(2024, 1, 5), datetime(2024, 1, 9))
    >>> bins.period, len(bins.edges)
    ('day', 6)
    """
    span = (last - first).total_seconds()
    period = next((p for p in PERIODS if span / _SECONDS[p] <= MOST_PERIODS), "year")
    edges: list[datetime] = []
    edge = floor_time(first, period)
    while edge <= last and len(edges) <= 10 * MOST_PERIODS:
        edges.append(edge)
        edge = next_time(edge, period)
    return Times((*edges, edge), period)


def floor_time(moment: datetime, period: str) -> datetime:
    """The start of the period that holds the moment.

    >>> floor_time(datetime(2024, 5, 17, 10, 30), "quarter")
    datetime.datetime(2024, 4, 1, 0, 0)
    """
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    starts = {
        "minute": moment.replace(second=0, microsecond=0),
        "hour": moment.replace(minute=0, second=0, microsecond=0),
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": day.replace(day=1),
        "quarter": day.replace(day=1, month=3 * ((day.month - 1) // 3) + 1),
        "year": day.replace(day=1, month=1),
    }
    return starts[period]


def next_time(start: datetime, period: str) -> datetime:
    """The start of the period after the one that starts here.

    >>> next_time(datetime(2024, 11, 1), "quarter")
    datetime.datetime(2025, 2, 1, 0, 0)
    """
    if period in ("month", "quarter", "year"):
        months = start.month - 1 + {"month": 1, "quarter": 3, "year": 12}[period]
        return start.replace(year=start.year + months // 12, month=months % 12 + 1)
    return start + timedelta(seconds=_SECONDS[period])


def as_moment(value: date | datetime) -> datetime:
    """A date as its midnight; a moment with a time zone in UTC.

    >>> as_moment(date(2024, 1, 5))
    datetime.datetime(2024, 1, 5, 0, 0)
    """
    if not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day)
    return value.astimezone(timezone.utc) if value.tzinfo else value


def to_json(bins: Bins) -> dict[str, Any]:
    """As a profile writes it.

    >>> to_json(Numbers((1.0,), whole=True))
    {'kind': 'number', 'edges': [1.0], 'whole': True, 'origin': 'exact quantiles'}
    """
    match bins:
        case Numbers():
            return {"kind": "number", "edges": list(bins.edges), "whole": bins.whole, "origin": bins.origin}
        case Times():
            return {"kind": "time", "edges": [edge.isoformat() for edge in bins.edges], "period": bins.period}
        case Categories():
            return {"kind": "category", "names": list(bins.names)}
        case Booleans():
            return {"kind": "boolean"}


def from_json(value: dict[str, Any]) -> Bins:
    """What `to_json` wrote. Raises: BadInput, KeyError, TypeError or ValueError for anything else."""
    match value["kind"]:
        case "number":
            edges = tuple(float(edge) for edge in value["edges"])
            if not all(a < b for a, b in pairwise(edges)) or not all(map(math.isfinite, edges)):
                raise BadInput("edges that do not ascend")
            return Numbers(edges, bool(value["whole"]), str(value["origin"]))
        case "time":
            return Times(tuple(datetime.fromisoformat(edge) for edge in value["edges"]), str(value["period"]))
        case "category":
            names = tuple(str(name) for name in value["names"])
            if len(set(names)) < len(names):
                raise BadInput("a category that stands twice")
            return Categories(names)
        case "boolean":
            return Booleans()
        case other:
            raise BadInput(f"a column of kind {other!r}")


def _rounded(value: float, step: float) -> float:
    """To few digits, less than a step down: up, and rows that share the value would fall below the edge."""
    if not (step > 0.0 and math.isfinite(step)):
        return value
    digits = -math.floor(math.log10(step))
    if abs(digits) >= 300:
        return value
    near = round(value, digits)
    return near if near <= value else round(value - 0.5 * 10.0**-digits, digits)


def _intervals(edges: Sequence[float], whole: bool) -> list[str]:
    if not edges:
        return ["any number"]
    # the edge just above a value that has a cell of its own is written as that value
    shown = [a if not whole and b == math.nextafter(a, math.inf) else b for a, b in pairwise((-math.inf, *edges))]
    inner = [_between(a, b, s, whole) for (a, b), s in zip(pairwise(edges), shown, strict=False)]
    last = f"> {_short(shown[-1])}" if shown[-1] < edges[-1] else f"≥ {_short(edges[-1])}"
    return [f"< {_short(edges[0])}", *inner, last]


def _between(a: float, b: float, shown: float, whole: bool) -> str:
    if b == (a + 1.0 if whole else math.nextafter(a, math.inf)):
        return f"= {_short(a)}"
    return f"{_short(shown)} to {_short(b - 1.0 if whole else b)}"


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.12g}"


def _moment(moment: datetime, period: str) -> str:
    if period == "quarter":
        return f"{moment.year}-Q{(moment.month + 2) // 3}"
    formats = {"minute": "%Y-%m-%d %H:%M", "hour": "%Y-%m-%d %H:%M", "month": "%Y-%m", "year": "%Y"}
    return moment.strftime(formats.get(period, "%Y-%m-%d"))
