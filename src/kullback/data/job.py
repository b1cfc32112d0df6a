"""`drift`: two tables, or a profile and a table, compared column by column."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import kullback
from kullback._errors import BadInput

from .bins import Bins, Categories, Numbers
from .clusters import Clustered, clustered
from .engines import Kind, Place, Source, open_source
from .joint import Joint, joint
from .pairing import Paired, pair
from .profiles import Counted, Profile, group_name, known, make, make_groups, same_cells
from .statistics import ADJUST, MEASURES, Comparison, Effect, Test, cell_contributions, compare

BINS, CATEGORIES = 10, 200
GROUPS = 100  # of --by, at most
Data = Any  # a path, a table's name, a query, a frame, or a Profile
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Rule:
    """When a column has drifted: its adjusted p-value is at most alpha, and its effect at least the smallest.

    Args:
        alpha: the false alarms that are accepted: over all columns with "holm", as a share of alarms with "bh".
        adjust: "holm", "bh" or "none".
        measure: of the effect: "kl" is KL(reference‖current), "kl_reverse", "js" or "psi".
        smallest: the smallest effect that matters, in nats. KL = 0.005 is a Normal variable shifted by 0.1 σ.
        level: of the intervals.
    """

    alpha: float = 0.05
    adjust: str = "holm"
    measure: str = "kl"
    smallest: float = 0.005
    level: float = 0.95

    def check(self) -> None:
        """Raises: BadInput."""
        for name, value in (("alpha", self.alpha), ("level", self.level)):
            if not 0.0 < value < 1.0:
                raise BadInput(f"--{name} is {value:g}; write a number between 0 and 1")
        if self.adjust not in ADJUST:
            raise BadInput(f"--adjust is {self.adjust!r}; write {', '.join(ADJUST)}")
        if self.measure not in MEASURES:
            raise BadInput(f"--measure is {self.measure!r}; write {', '.join(MEASURES)}")
        if not 0.0 <= self.smallest < math.inf:
            raise BadInput(f"--smallest is {self.smallest:g}; write an effect in nats, 0 or more")


@dataclass(frozen=True)
class Cell:
    """One cell of a column: its rows on both sides, and what it adds to KL(reference‖current), in nats."""

    label: str
    reference: int
    current: int
    contribution: float


@dataclass
class ColumnDrift:
    """What was found in one column (of one group).

    Args:
        effects: by measure; empty if the column could not be compared.
        drift: significant, and large enough.
        marks: what to know of it, in words; the reason if it could not be compared.
    """

    name: str
    kind: str
    group: str | None
    rows: tuple[int, int]
    cells: tuple[Cell, ...]
    test: Test | None = None
    effects: Mapping[str, Effect] = field(default_factory=dict)
    p_adjusted: float = math.nan
    drift: bool = False
    new: Mapping[str, int] = field(default_factory=dict)
    vanished: Mapping[str, int] = field(default_factory=dict)
    marks: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return self.name if self.group is None else f"{self.name} · {self.group}"


@dataclass
class Drift:
    """What `drift` found, the columns that drifted first, then by effect."""

    reference: str
    current: str
    rows: tuple[int, int]
    rule: Rule
    columns: list[ColumnDrift]
    skipped: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    joint: Joint | None = None
    by: str | None = None
    cluster: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def drifted(self) -> list[ColumnDrift]:
        return [one for one in self.columns if one.drift]

    def __getitem__(self, name: str) -> ColumnDrift:
        """The column of this name, or "name · group"."""
        for one in self.columns:
            if name in (one.title, one.name):
                return one
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """The document of `--json`. What is infinite or unknown is null."""
        return {
            "drift": bool(self.drifted),
            "kullback": kullback.__version__,
            "reference": {"source": self.reference, "rows": self.rows[0]},
            "current": {"source": self.current, "rows": self.rows[1]},
            "rule": asdict(self.rule),
            "unit": "nats",
            "by": self.by,
            "cluster": self.cluster,
            "groups": {name: {"reference": a, "current": b} for name, (a, b) in self.groups.items()},
            "columns": [_document(one) for one in self.columns],
            "skipped": dict(self.skipped),
            "joint": self.joint and self.joint.to_json(),
            "notes": list(self.notes),
        }


def drift(
    reference: Data,
    current: Data,
    *,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    by: str | None = None,
    cluster: str | None = None,
    joint_of: Sequence[str] = (),
    bins: int = BINS,
    categories: int = CATEGORIES,
    rule: Rule | None = None,
    seed: int = 0,
    database: str | None = None,
    spark: str | None = None,
    progress: Progress | None = None,
) -> Drift:
    """Compare two tables column by column: which have drifted, by how much, and where.

    Args:
        reference, current: paths of CSV or Parquet files or folders, names of tables or queries (with `database` or
            `spark`), frames of pandas, polars, pyarrow, DuckDB or PySpark; the reference may be a `Profile`, or the
            path of one (.json), and then so may the current side, if it was made `like` it.
        columns, drop: compare these only; leave these out.
        by: compare within each value of this column.
        cluster: rows with the same value here belong together (a session, a patient): the test permutes whole clusters.
        joint_of: columns whose joint KL is split by the chain rule.
        bins: cells of a column of numbers, at quantiles of the reference.
        categories: values of a column of text that are counted by name.
        rule: when a column has drifted.
        seed: of the permutation laws.
    Returns: `Drift`.
    Raises: BadInput, MissingExtra.

    >>> import polars as pl
    >>> before = pl.DataFrame({"age": [20 + i % 50 for i in range(2000)], "site": ["a", "b"] * 1000})
    >>> after = before.with_columns(pl.col("age") + 5)
    >>> found = drift(before, after)
    >>> [one.name for one in found.drifted]
    ['age']
    >>> found["site"].effects["kl"].low, found["site"].drift
    (0.0, False)
    """
    rule = rule or Rule()
    rule.check()
    _check(bins, categories, by, cluster, joint_of)
    tell: Progress = progress or (lambda done, total, what: None)
    place = Place(database, spark)
    try:
        used = [*columns, *(name for name in (by, cluster) if name)] if columns else ()
        left, right = without(drop, *(opened(side, place, used, drop) for side in (reference, current)))
        _fits(left, right, cluster=cluster, joint=joint_of, by=by)
        _comparable(left, right)
        tell(0, 4, "reading the reference")
        if isinstance(left, Profile):
            references: dict[Any, Profile] = {None: left}
        else:
            references = make_groups(left, bins=bins, categories=categories, by=by, limit=GROUPS)
        tell(1, 4, "reading the current table")
        whole = next(iter(references.values()))
        if isinstance(right, Profile):
            currents: dict[Any, Profile] = {None: right}
        else:
            shape = Profile(0, {k: v for k, v in whole.columns.items() if k in right.columns})
            if by:
                shape = Profile(0, {**shape.columns, by: _placeholder(right, by)})
            currents = make_groups(right, bins=bins, categories=categories, like=shape, by=by, limit=GROUPS)
        for side, counted in ((left, references), (right, currents)):
            if sum(one.rows for one in counted.values()) == 0:
                raise BadInput(f"{_label(side)}: holds no rows")
        if by is None and isinstance(left, Source):
            references = {None: known(left, references[None], currents[None])}
        tell(2, 4, "comparing")
        result = _compared(left, right, references, currents, rule, seed, by, cluster, joint_of)
        for side in (left, right):
            if isinstance(side, Source):
                side.check_unchanged()
        return result
    finally:
        place.close()


def profile(
    data: Data,
    *,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    bins: int = BINS,
    categories: int = CATEGORIES,
    like: Profile | None = None,
    min_count: int = 0,
    database: str | None = None,
    spark: str | None = None,
) -> Profile:
    """Count a table once, to compare others with it later without its rows.

    Args:
        data, columns, drop, bins, categories, database, spark: as for `drift`.
        like: take the cells of this profile, so that the two merge.
        min_count: categories with fewer rows lose their name, and count as other.

    >>> import polars as pl
    >>> march = profile(pl.DataFrame({"age": [20 + i % 50 for i in range(2000)]}), bins=4)
    >>> march.columns["age"].counts
    (0, 480, 520, 480, 520, 0, 0, 0)
    """
    _check(bins, categories, None, None, ())
    place = Place(database, spark)
    try:
        source = open_source(data, place, columns or (list(like.columns) if like else ()), drop)
        without(drop, source)
        if like is not None:
            like = _cut(like, [name for name in columns or like.columns if name not in drop])
            countable(source, like, list(like.columns))
        made = make(source, bins=bins, categories=categories, like=like)
    finally:
        place.close()
    if made.rows == 0:
        raise BadInput(f"{source.label}: holds no rows")
    return made.folded(min_count) if min_count > 1 else made


def _compared(
    left: Source | Profile,
    right: Source | Profile,
    references: Mapping[Any, Profile],
    currents: Mapping[Any, Profile],
    rule: Rule,
    seed: int,
    by: str | None,
    cluster: str | None,
    joint_of: Sequence[str],
) -> Drift:
    shared = [key for key in references if key in currents]
    names = [name for name in references[shared[0]].columns if name != cluster] if shared else []
    tests = len(shared) * len(names)
    found: list[ColumnDrift] = []
    clusters = [0, 0]
    for key in shared:
        a, b = references[key], currents[key]
        together = None
        if cluster is not None:
            sides = [side if by is None else side.only(by, key) for side in (left, right) if isinstance(side, Source)]
            together = clustered(sides[0], sides[1], cluster, {name: a.columns[name].bins for name in names})
            clusters = [sum(pair) for pair in zip(clusters, together.sizes, strict=True)]
        group = None if by is None else group_name(key)
        found += [_one(group, name, a.columns[name], b.columns[name], rule, seed, together, tests) for name in names]
    tested = [one for one in found if one.test is not None]
    if not tested:
        reason = found[0].marks[0] if found and found[0].marks else "the two share no column"
        name = f" (column {found[0].name!r})" if found else ""
        raise BadInput(f"no column can be compared: {reason}{name}")
    adjusted = ADJUST[rule.adjust]([one.test.p_value for one in tested if one.test is not None])
    for one, p in zip(tested, adjusted, strict=True):
        one.p_adjusted = p
        one.drift = p <= rule.alpha and one.effects[rule.measure].value >= rule.smallest
    key = lambda one: (not one.drift, -one.effects[rule.measure].value if one.effects else math.inf)  # noqa: E731
    groups = {
        group_name(k): (references[k].rows if k in references else 0, currents[k].rows if k in currents else 0)
        for k in dict.fromkeys([*references, *currents])
    }
    skipped = {
        **(left.skipped if isinstance(left, Source) else {}),
        **(right.skipped if isinstance(right, Source) else {}),
    }
    split = None
    if joint_of:
        assert isinstance(left, Source)
        assert isinstance(right, Source)
        split = joint(left, right, joint_of, seed=seed)
    total = (sum(a for a, _ in groups.values()), sum(b for _, b in groups.values()))
    return Drift(
        _label(left), _label(right), total, rule, sorted(found, key=key), skipped,
        groups if by is not None else {}, split, by, cluster, _notes(found, groups if by else {}, rule, clusters),
    )  # fmt: skip


def _one(
    group: str | None,
    name: str,
    a: Counted,
    b: Counted,
    rule: Rule,
    seed: int,
    together: Clustered | None,
    tests: int,
) -> ColumnDrift:
    paired = pair(a, b)
    n, m = int(paired.x.sum()), int(paired.y.sum())
    marks = list(paired.marks)
    comparison: Comparison | None = None
    if len(paired.x) < 2:
        only = paired.labels[0] if len(paired.labels) else "nothing"
        marks.insert(0, f"one cell holds every row ({only}), so that there is nothing to compare")
    elif min(n, m) < 10:
        marks.insert(0, f"{n:,} against {m:,} rows: fewer than 10 on a side say nothing")
    else:
        clusters = together.counts(name, paired) if together is not None else None
        comparison = compare(
            paired.x,
            paired.y,
            # a column keeps its draws whatever stands beside it
            seed=seed + zlib.crc32(f"{name}\0{group}".encode()),
            level=rule.level,
            smallest_p=rule.alpha / (1 if rule.adjust == "none" else tests),
            clusters=clusters,
        )
        low = min(n, m)
        if low < 5 * len(paired.x):
            marks.append("fewer than five rows a cell: the intervals are rough; ask for fewer cells")
    parts = cell_contributions(paired.x, paired.y).tolist() if len(paired.x) else []
    cells = tuple(
        Cell(label, int(u), int(v), c) for label, u, v, c in zip(paired.labels, paired.x, paired.y, parts, strict=True)
    )
    marks += _remarks(a.bins, a, b, paired, n, m)
    return ColumnDrift(
        name,
        a.bins.kind,
        group,
        (n, m),
        cells,
        comparison.test if comparison else None,
        comparison.effects if comparison else {},
        new=paired.new,
        vanished=paired.vanished,
        marks=tuple(marks),
    )


def _remarks(bins: Bins, a: Counted, b: Counted, paired: Paired, n: int, m: int) -> list[str]:
    said = []
    if isinstance(bins, Numbers) and "; " in bins.origin:
        said.append(bins.origin.partition("; ")[2])
    for what, side, total, categories in (
        ("new", "current", m, paired.new),
        ("vanished", "reference", n, paired.vanished),
    ):
        if categories:
            mass = sum(categories.values()) / total
            many = f"{len(categories)} {what} categor{'y' if len(categories) == 1 else 'ies'}"
            said.append(f"{many} with {100 * mass:.3g} % of the {side} rows")
    if len(paired.x) and (paired.x > 0).sum() == 1 and len(paired.x) > 1:
        said.append("constant in the reference")
    if len(paired.y) and (paired.y > 0).sum() == 1 and len(paired.y) > 1:
        said.append("constant in the current table")
    if n and m:
        for label, i in (("null", -1), ("NaN", -2)):
            if bins.labels[i] == label and (a.counts[i] or b.counts[i]):
                said.append(f"{label}: {100 * a.counts[i] / n:.3g} % against {100 * b.counts[i] / m:.3g} %")
        if bins.kind == "number":
            u, v = a.counts[0] + a.counts[-3], b.counts[0] + b.counts[-3]
            if u or v:
                said.append(f"infinite: {u:,} against {v:,} rows")
    return said


def _notes(
    found: Sequence[ColumnDrift], groups: Mapping[str, tuple[int, int]], rule: Rule, clusters: Sequence[int]
) -> tuple[str, ...]:
    notes = []
    draws = [one.test.draws for one in found if one.test is not None and one.test.draws]
    if rule.adjust != "none" and draws and 0.5 / (min(draws) + 1) * len(found) > rule.alpha:
        notes.append("so many columns that the permutation law cannot reach the level that the adjustment asks for")
    for name, (a, b) in groups.items():
        if not a or not b:
            notes.append(f"group {name} has {b or a:,} rows, all in the {'current' if b else 'reference'} table")
    if any(clusters):
        within = " within groups" if groups else ""
        notes.append(f"{clusters[0]:,} against {clusters[1]:,} clusters, permuted as wholes{within}")
    return tuple(notes)


def opened(data: Data, place: Place, columns: Sequence[str], drop: Sequence[str]) -> Source | Profile:
    """A table ready to be counted, or a profile, from which nothing is dropped yet; of it the columns asked for."""
    if isinstance(data, Profile):
        return _cut(data, columns)
    if isinstance(data, str | Path) and str(data).lower().endswith(".json"):
        if not Path(data).is_file():
            raise BadInput(f"{data}: there is no such file")
        return _cut(Profile.read(Path(data)), columns)
    return open_source(data, place, columns, drop)


def _cut(one: Profile, columns: Sequence[str]) -> Profile:
    for name in columns:
        if name not in one.columns:
            raise BadInput(f"{one.source}: the profile has no column {name!r}")
    return replace(one, columns={name: one.columns[name] for name in columns or one.columns})


def without(drop: Sequence[str], *sides: Source | Profile) -> list[Source | Profile]:
    """The sides, their profiles without these columns; tables were opened without them.

    Raises: BadInput: a column that no side has.
    """
    for name in drop:
        if not any(name in _names(side) for side in sides):
            labels = " or ".join(dict.fromkeys(map(_label, sides)))
            raise BadInput(f"--drop {_quoted(name)}: there is no such column in {labels}")
    return [
        replace(side, columns={k: v for k, v in side.columns.items() if k not in drop})
        if isinstance(side, Profile)
        else side
        for side in sides
    ]


def _names(side: Source | Profile) -> tuple[str, ...]:
    return tuple(side.columns) if isinstance(side, Profile) else side.names


def _comparable(left: Source | Profile, right: Source | Profile) -> None:
    """Raises: BadInput: columns that only one side has, or that hold something else there; no columns."""
    for one, other in ((left, right), (right, left)):
        missing = [name for name in one.columns if name not in other.columns]
        elsewhere = other.skipped if isinstance(other, Source) else {}
        if missing:
            name = missing[0]
            holds = f"holds {elsewhere[name]} there" if name in elsewhere else "is missing there"
            more = f" ({len(missing)} such columns)" if len(missing) > 1 else ""
            raise BadInput(
                f"{_label(other)}: column {name!r} of {_label(one)} {holds}{more}; write --drop {_quoted(name)}, or "
                "--columns with those to compare"
            )
    if not left.columns:
        raise BadInput(f"{_label(left)}: has no column that can be compared")
    for name in left.columns:
        a, b = _kind(left, name), _kind(right, name)
        if a != b and not any(
            isinstance(side, Source) and side.recast(name, kind) for side, kind in ((left, b), (right, a))
        ):
            same_kind(name, a, b, _label(left), _label(right))


def _fits(left: Source | Profile, right: Source | Profile, **needs_rows: Any) -> None:
    """Raises: BadInput: a profile where rows are needed, or two profiles of other cells."""
    for side in (left, right):
        for option, value in needs_rows.items():
            if value and isinstance(side, Profile):
                raise BadInput(f"--{option} needs the rows of both sides, and {side.source} is a profile")
    if isinstance(right, Profile):
        if not isinstance(left, Profile):
            raise BadInput(
                f"the current side is a profile and the reference, {left.label}, a table, whose cells are others; "
                "profile the table --like that profile, and compare the two profiles"
            )
        for name, one in left.columns.items():
            if not isinstance(one.bins, Categories) and not same_cells(one.bins, right.columns[name].bins):
                raise BadInput(
                    f"column {name!r} has other cells in the profile of {right.source} than in that of {left.source}; "
                    "make one of them --like the other"
                )


def countable(source: Source, like: Profile, names: Sequence[str]) -> None:
    """Raises: BadInput: a column that the cells of a profile do not fit."""
    for name in names:
        if name not in source.columns:
            raise BadInput(
                f"{source.label}: column {name!r} holds {source.skipped[name]}; write --drop {_quoted(name)}"
            )
        same_kind(name, like.columns[name].bins.kind, source.columns[name].kind, like.source, source.label)


def same_kind(name: str, a: str, b: str, left: str, right: str) -> None:
    """Raises: BadInput: a column holds another kind of value on the other side."""
    if a != b:
        words = {"number": "numbers", "category": "text", "boolean": "booleans", "time": "times"}
        raise BadInput(
            f"column {name!r} holds {words[a]} in {left} and {words[b]} in {right}; cast one of them, or write "
            f"--drop {_quoted(name)}"
        )


def _kind(side: Source | Profile, name: str) -> Kind:
    return side.columns[name].bins.kind if isinstance(side, Profile) else side.columns[name].kind


def _label(side: Source | Profile) -> str:
    return side.source if isinstance(side, Profile) else side.label


def _quoted(name: str) -> str:
    return name if name.isidentifier() else f"'{name}'"


def _placeholder(source: Source, name: str) -> Counted:
    return Counted(Categories(()), (0, 0))


def _check(bins: int, categories: int, by: str | None, cluster: str | None, joint_of: Sequence[str]) -> None:
    if not 2 <= bins <= 1000:
        raise BadInput(f"--bins is {bins}; write a number from 2 to 1000")
    if not 1 <= categories <= 10_000:
        raise BadInput(f"--categories is {categories}; write a number from 1 to 10000")
    if by is not None and by == cluster:
        raise BadInput(f"--by and --cluster are both {by!r}; each group would be one cluster")
    if len(joint_of) == 1:
        raise BadInput("--joint needs at least two columns")


def _document(one: ColumnDrift) -> dict[str, Any]:
    return {
        "column": one.name,
        "group": one.group,
        "kind": one.kind,
        "rows": {"reference": one.rows[0], "current": one.rows[1]},
        "drift": one.drift,
        "effects": {
            name: {"value": e.value, "low": e.low, "high": e.high if math.isfinite(e.high) else None, "raw": e.raw}
            for name, e in one.effects.items()
        },
        "test": one.test and {**asdict(one.test), "p_adjusted": one.p_adjusted},
        "new": dict(one.new),
        "vanished": dict(one.vanished),
        "marks": list(one.marks),
        "cells": [asdict(cell) for cell in one.cells],
    }
