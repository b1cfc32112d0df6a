"""Reference profiles: the cells of every column and their counts. No row, a few kB, and they add up."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kullback._errors import BadInput
from kullback.kit.files import dump_json, write_bytes

from .bins import Bins, Booleans, Categories, Numbers, as_moment, from_json, number_edges, time_edges, to_json
from .counting import Tally, frequencies, most_frequent, tally
from .engines import Source, collect, quantiles, sampled, speaking

SCHEMA = 1
FEWEST = 20  # rows of the reference in a cell between its own quantiles
FORMAT = "kullback drift profile"


@dataclass(frozen=True)
class Counted:
    """One column of a profile.

    Args:
        bins: its cells.  counts: how many rows lie in each.
        unnamed_at_most: no category without a name has more rows than this; 0 if every value has a name.
        new: categories that the profile whose cells these are had no name for, the most frequent ones.
    """

    bins: Bins
    counts: tuple[int, ...]
    unnamed_at_most: int = 0
    new: Mapping[str, int] = field(default_factory=dict)

    @property
    def nulls(self) -> int:
        return self.counts[-1]


@dataclass(frozen=True)
class Profile:
    """What is kept of a table: rows, and cells with counts of each column.

    >>> import polars as pl
    >>> from kullback.data import profile
    >>> one = profile(pl.DataFrame({"x": [1.0, 2.0, 3.0, None], "kind": ["a", "b", "a", "a"]}), bins=2)
    >>> one.columns["x"].bins.labels
    ('-inf', '< 2', '≥ 2', 'inf', 'NaN', 'null')
    >>> one.columns["x"].counts, one.columns["kind"].counts
    ((0, 1, 2, 0, 0, 1), (3, 1, 0, 0))
    >>> Profile.loads(one.dumps()) == one
    True
    """

    rows: int
    columns: Mapping[str, Counted]
    source: str = ""
    engine: str = ""

    def dumps(self) -> str:
        """As JSON, on few lines: one a column."""
        head = {"format": FORMAT, "schema": SCHEMA, "rows": self.rows, "source": self.source, "engine": self.engine}
        lines = [f"  {json.dumps(name, ensure_ascii=False)}: {_line(one)}" for name, one in self.columns.items()]
        opened = dump_json(head)[:-2].replace("\n  ", "\n ")
        return f'{opened},\n "columns": {{\n' + ",\n".join(lines) + "\n }\n}\n"

    @staticmethod
    def loads(text: str, label: str = "profile") -> "Profile":
        """What `dumps` wrote. Raises: BadInput: not a profile, of another schema version, or contradicting itself."""
        try:
            document = json.loads(text)
        except ValueError:
            raise BadInput(f"{label}: is not JSON") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise BadInput(f"{label}: is not a profile; write one with kullback drift profile DATA --out FILE")
        if document.get("schema") != SCHEMA:
            raise BadInput(
                f"{label}: has schema version {document.get('schema')!r}, and this kullback reads version {SCHEMA}; "
                "make the profile anew, or use the version of kullback that wrote it"
            )
        try:
            rows = _count(document["rows"])
            columns = {str(name): _column(value, rows) for name, value in document["columns"].items()}
            return Profile(rows, columns, str(document["source"]), str(document["engine"]))
        except BadInput as error:
            raise BadInput(f"{label}: holds {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{label}: is damaged ({type(error).__name__}: {error})") from None

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        write_bytes(path, self.dumps().encode())

    @staticmethod
    def read(path: Path) -> "Profile":
        """Raises: BadInput, OSError."""
        try:
            return Profile.loads(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError:
            raise BadInput(f"{path}: is not a profile; it is no UTF-8 text") from None

    def folded(self, min_count: int) -> "Profile":
        """Without the names of categories that fewer than `min_count` rows have; their rows count as other."""
        return replace(self, columns={name: _folded(one, min_count) for name, one in self.columns.items()})


def merge(profiles: Sequence[Profile]) -> Profile:
    """The profile of all the rows of several: days into months.

    Their cells must be the same, which those have that were made with `like=` one first profile. The counts are then
    those of the merged tables, made with the same `like`.

    Raises: BadInput: other columns or other cells.

    >>> import polars as pl
    >>> from kullback.data import profile
    >>> monday = profile(pl.DataFrame({"x": [1.0, 2.0, 3.0, 4.0]}), bins=2)
    >>> tuesday = profile(pl.DataFrame({"x": [1.0, 9.0]}), like=monday)
    >>> merge([monday, tuesday]).columns["x"].counts
    (0, 3, 3, 0, 0, 0)
    """
    if not profiles:
        raise BadInput("there is no profile to merge")
    first, *others = profiles
    for other in others:
        if set(other.columns) != set(first.columns):
            names = sorted(set(other.columns) ^ set(first.columns))
            raise BadInput(f"the profiles of {first.source} and {other.source} differ in column {names[0]!r}")
        for name, one in first.columns.items():
            if not same_cells(one.bins, other.columns[name].bins):
                raise BadInput(
                    f"column {name!r} has other cells in the profile of {other.source} than in that of {first.source}; "
                    "make all but the first profile with --like FIRST"
                )
    columns = {name: _sum([one.columns[name] for one in profiles]) for name in first.columns}
    sources = list(dict.fromkeys(one.source for one in profiles))
    label = sources[0] if len(sources) == 1 else f"{len(profiles)} profiles, {sources[0]} to {sources[-1]}"
    return Profile(sum(one.rows for one in profiles), columns, label, first.engine)


def design(source: Source, *, bins: int, categories: int) -> tuple[dict[str, Bins], dict[str, int]]:
    """The cells for a reference: edges at its quantiles, its most frequent values, periods of its time.

    Returns: the cells of each column, and for categories the rows of the most frequent value without a name.
    """
    import narwhals as nw

    columns = source.columns.values()
    numbers = [c for c in columns if c.kind == "number"]
    times = [c for c in columns if c.kind == "time"]
    ends = [nw.col(c.alias).min().alias(f"{c.alias}_lo") for c in times]
    ends += [nw.col(c.alias).max().alias(f"{c.alias}_hi") for c in times]
    with speaking(source.label):
        found = collect(source.frame.select(nw.len().alias("n"), *ends))
        rows = int(found["n"][0])
        many = max(2, min(bins, rows // FEWEST))
        levels = [0.0, *(i / many for i in range(1, many))]
        cuts = quantiles(source, numbers, levels, rows)
    origin = "quantiles of a sample" if sampled(source, rows) else "exact quantiles"
    if many < bins:
        origin += f"; {rows:,} rows are enough for {many} cells, not {bins}"
    made: dict[str, Bins] = {}
    unnamed: dict[str, int] = {}
    for column in columns:
        if column.kind == "number":
            low, *rest = cuts[column.name] or [0.0]
            edges = number_edges(rest, low, whole=column.whole) if cuts[column.name] else ()
            made[column.name] = Numbers(edges, column.whole, origin)
        elif column.kind == "time":
            low, high = found[f"{column.alias}_lo"][0], found[f"{column.alias}_hi"][0]
            empty = low is None or high is None or low != low
            made[column.name] = _NO_TIME if empty else time_edges(as_moment(low), as_moment(high))
        elif column.kind == "boolean":
            made[column.name] = Booleans()
        else:
            names, complete = most_frequent(source, column, categories)
            made[column.name] = Categories(tuple(names))
            unnamed[column.name] = 0 if complete else min(names.values())
    return made, unnamed


def make(source: Source, *, bins: int, categories: int, like: Profile | None = None) -> Profile:
    """Count a table: in cells of its own, or in those of another profile."""
    (one,) = make_groups(source, bins=bins, categories=categories, like=like).values()
    return one


def make_groups(
    source: Source,
    *,
    bins: int,
    categories: int,
    like: Profile | None = None,
    by: str | None = None,
    limit: int = 100,
) -> dict[Any, Profile]:
    """One profile a value of the column `by`, all with the same cells; a single one, under None, without."""
    key = None if by is None else source.key(by, "group")
    unnamed: dict[str, int]
    if like is None:
        cells, unnamed = design(source, bins=bins, categories=categories)
        news: dict[str, dict[str, int]] = {}
    else:
        cells = {name: like.columns[name].bins for name in source.columns}
        unnamed, news = _strangers(source, cells, categories)
    cells = {name: one for name, one in cells.items() if name != by}
    counted = tally(source, cells, key, None if by is None else limit)
    source.check_unchanged()
    return {key: _profile(source, cells, counted, i, unnamed, news) for i, key in enumerate(counted.keys)}


def known(source: Source, reference: Profile, current: Profile) -> Profile:
    """The reference with counts of the categories that only the current table has names for."""
    columns = dict(reference.columns)
    for name, one in current.columns.items():
        mine = columns.get(name)
        if mine is None or not isinstance(mine.bins, Categories) or not mine.unnamed_at_most or not one.new:
            continue
        more = {k: n for k, n in frequencies(source, source.columns[name], list(one.new)).items() if n}
        columns[name] = replace(mine, new=more)
    return replace(reference, columns=columns)


def _strangers(
    source: Source, cells: Mapping[str, Bins], categories: int
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Frequent categories that the given cells do not name, and the most rows of any that stays without a name."""
    unnamed, news = {}, {}
    for name, one in cells.items():
        if isinstance(one, Categories):
            names, complete = most_frequent(source, source.columns[name], categories)
            news[name] = {k: n for k, n in names.items() if k not in set(one.names)}
            unnamed[name] = 0 if complete else min(names.values())
    return unnamed, news


def _profile(
    source: Source,
    cells: Mapping[str, Bins],
    counted: Tally,
    i: int,
    unnamed: Mapping[str, int],
    news: Mapping[str, dict[str, int]],
) -> Profile:
    alone = len(counted.keys) == 1  # what is new was counted over all groups together
    columns = {
        name: Counted(
            one, tuple(counted.cells[name][i].tolist()), unnamed.get(name, 0), news.get(name, {}) if alone else {}
        )
        for name, one in cells.items()
    }
    return Profile(int(counted.rows[i]), columns, source.label, source.engine)


def group_name(key: Any) -> str:
    """A value of the column of groups, in words."""
    return "(null)" if key is None else str(key)


def same_cells(a: Bins, b: Bins) -> bool:
    """Whether counts of the two mean the same; where edges come from does not matter."""
    return {**to_json(a), "origin": ""} == {**to_json(b), "origin": ""}


def _sum(parts: Sequence[Counted]) -> Counted:
    counts = tuple(map(sum, zip(*(part.counts for part in parts), strict=True)))
    new: dict[str, int] = {}
    for part in parts:
        for name, n in part.new.items():
            new[name] = new.get(name, 0) + n
    return Counted(parts[0].bins, counts, sum(part.unnamed_at_most for part in parts), new)


def _folded(one: Counted, min_count: int) -> Counted:
    if not isinstance(one.bins, Categories):
        return one
    kept = [i for i, n in enumerate(one.counts[:-2]) if n >= min_count]
    dropped = len(kept) < len(one.bins.names) or any(n < min_count for n in one.new.values())
    names = tuple(one.bins.names[i] for i in kept)
    counts = tuple(one.counts[i] for i in kept)
    other = sum(one.counts[:-1]) - sum(counts)
    return Counted(
        Categories(names),
        (*counts, other, one.nulls),
        max(one.unnamed_at_most, min_count - 1) if dropped else one.unnamed_at_most,
        {name: n for name, n in one.new.items() if n >= min_count},
    )


def _line(one: Counted) -> str:
    value: dict[str, Any] = {**to_json(one.bins), "counts": list(one.counts)}
    if one.unnamed_at_most:
        value["unnamed_at_most"] = one.unnamed_at_most
    if one.new:
        value["new"] = dict(one.new)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _column(value: dict[str, Any], rows: int) -> Counted:
    bins = from_json(value)
    counts = tuple(_count(n) for n in value["counts"])
    if len(counts) != len(bins.labels) or sum(counts) != rows:
        raise BadInput("counts that do not fit its cells and rows")
    new = {str(name): _count(n) for name, n in value.get("new", {}).items()}
    return Counted(bins, counts, _count(value.get("unnamed_at_most", 0)), new)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadInput(f"{value!r} for a count")
    return value


_NO_TIME = from_json({"kind": "time", "edges": [], "period": "day"})
