"""Rows of features with a class, and which of them are for what."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kullback._errors import BadInput
from kullback.kit.ending import near

from .extras import extra

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MIN_ROWS_PER_CLASS = 2  # one to train on, one held out
MOST_VALUES = 100  # of a column of text that is taken as categories, each on at least five rows on average


@dataclass(frozen=True)
class Column:
    """A column of the data that is not the class: numbers, or text with few different values."""

    name: str
    values: tuple[str, ...] | None = None  # each of them becomes a feature of zeros and ones

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features that it becomes.

        >>> Column("age").feature_names, Column("city", ("Oslo", "Rome")).feature_names
        (('age',), ('city=Oslo', 'city=Rome'))
        """
        return (self.name,) if self.values is None else tuple(f"{self.name}={value}" for value in self.values)


def feature_names(columns: tuple[Column, ...]) -> tuple[str, ...]:
    """Of all the columns, in order."""
    return tuple(name for column in columns for name in column.feature_names)


@dataclass(frozen=True)
class Table:
    """Features (N, F) in float64, classes (N,) as indices into `class_names`."""

    name: str
    features: Floats
    classes: Ints
    columns: tuple[Column, ...]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int] | None = None  # when a row is a grey picture

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One a column of `features`."""
        return feature_names(self.columns)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was made of columns that hold no numbers."""
        text = [f"{column.name} ({len(column.values)})" for column in self.columns if column.values is not None]
        return (f"Columns of text, taken as categories (with how many values): {_some(text)}",) if text else ()

    def fingerprint(self) -> str:
        """The same for the same rows and names, and for no others."""
        digest = hashlib.sha256(repr((self.columns, self.class_names, self.features.shape)).encode())
        for array in (self.features, self.classes):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def num_rows(self) -> int:
        return len(self.classes)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Split:
    """Row indices: to train on, and held out; each class has at least one row in both."""

    train: Ints
    held_out: Ints


def digits() -> Table:
    """scikit-learn's digits: 1797 pictures of 8 × 8 grey values. Source: UCI, Alpaydin & Kaynak 1998, CC BY 4.0."""
    bunch = extra("sklearn.datasets").load_digits()
    features = np.asarray(bunch.data, dtype=np.float64)
    names = tuple(Column(f"pixel_{row}_{column}") for row in range(8) for column in range(8))
    classes = np.asarray(bunch.target, dtype=np.int64)
    return Table("scikit-learn digits", features, classes, names, tuple(map(str, range(10))), (8, 8))


def read_table(path: Path, target: str | None, drop: tuple[str, ...] = ()) -> Table:
    """A CSV (with a header line) or Parquet file; every column but `target` and `drop` is a feature.

    A column of text with few different values, none of them a number, becomes one feature of zeros and ones a value.

    Raises: BadInput for a missing file or column, missing values or NaN, other text among the features, one class, a
    class with too few rows. Rows count from 0, the first row under the header.
    """
    frame = read_frame(path)
    columns = list(frame.columns)
    if target is None:
        raise BadInput(f"{path}: write --target COLUMN to say which column is the class; columns are {_some(columns)}")
    for option, name in (("--target", target), *(("--drop", name) for name in drop)):
        if name not in columns:
            raise BadInput(
                f"{path}: {option} {name!r} is not a column; did you mean {near(name, columns)}? "
                f"Columns are {_some(columns)}"
            )
    if target in drop:
        raise BadInput(f"--drop {target!r} would drop the target; leave it out")
    if frame.height == 0:
        raise BadInput(f"{path}: has a header but no rows; at least {MIN_ROWS_PER_CLASS} rows per class are needed")
    names = [name for name in columns if name != target and name not in drop]
    if not names:
        raise BadInput(f"{path}: has no feature columns beside --target {target!r}; at least one is needed")
    kinds = _columns(frame, names, str(path))
    features = encode(frame, kinds, str(path))
    classes, class_names = _classes(frame[target], str(path), target)
    return Table(str(path), features, classes, kinds, class_names)


def read_frame(path: Path) -> Any:
    """A polars frame of a CSV or Parquet file. Raises: BadInput."""
    pl = extra("polars")
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet", ".pq"):
        raise BadInput(f"{path}: is not a .csv or .parquet file; convert it to one of them")
    if not path.is_file():
        raise BadInput(f"{path}: is a folder, not a file" if path.is_dir() else f"{path}: no such file; check the path")
    try:
        return pl.read_csv(path, infer_schema_length=None) if suffix == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise BadInput(f"{path}: cannot be read as {suffix[1:]} ({reason}); check that the file is whole") from None


def stratified(classes: Ints, count: int, leave: int, rng: np.random.Generator) -> Ints:
    """`count` row indices, sorted: each class in proportion, with at least one row taken and `leave` rows left.

    Shares are rounded by largest remainder. The caller guarantees that the two bounds can be met.

    >>> rows = stratified(np.array([0] * 8 + [1] * 2), 5, 1, np.random.default_rng(0))
    >>> len(rows), (rows >= 8).sum().item()
    (5, 1)
    """
    sizes = np.bincount(classes)
    low, high = np.ones_like(sizes), sizes - leave
    exact = sizes * (count / sizes.sum())
    take = np.clip(np.floor(exact).astype(np.int64), low, high)
    while take.sum() != count:
        step = 1 if take.sum() < count else -1
        allowed = take < high if step > 0 else take > low
        take[np.argmax(np.where(allowed, step * (exact - take), -np.inf))] += step
    parts = [rng.permutation(np.flatnonzero(classes == c))[:n] for c, n in enumerate(take)]
    return np.sort(np.concatenate(parts))


def split_rows(table: Table, test_size: float, seed: int) -> Split:
    """Hold out a stratified share of the rows. Raises: BadInput when a class would miss from one side."""
    wanted = round(test_size * table.num_rows)
    count = min(max(wanted, table.num_classes), table.num_rows - table.num_classes)
    held_out = stratified(table.classes, count, 1, np.random.default_rng([seed, 0]))
    train = np.setdiff1d(np.arange(table.num_rows), held_out)
    return Split(train, held_out)


def default_labels(table: Table, split: Split) -> int:
    """Ten per class, but at most half of the training rows, and at least one per class."""
    return max(table.num_classes, min(10 * table.num_classes, len(split.train) // 2))


def choose_labelled(table: Table, split: Split, labels: int, seed: int) -> Ints:
    """The training rows whose label the student may see: stratified, at least one per class. Raises: BadInput."""
    if not table.num_classes <= labels <= len(split.train):
        raise BadInput(
            f"--labels is {labels}, but {table.name} has {table.num_classes} classes and {len(split.train)} training "
            f"rows; write a number from {table.num_classes} to {len(split.train)}"
        )
    return split.train[stratified(table.classes[split.train], labels, 0, np.random.default_rng([seed, 1]))]


def encode(frame: Any, columns: tuple[Column, ...], name: str) -> Floats:
    """The features (N, F) of a polars frame that has these columns.

    Args: name: of the data, for errors.
    Raises: BadInput: a missing column, a missing value, NaN, an infinity, a value that is not among the column's.
    """
    pl = extra("polars")
    features = np.empty((frame.height, len(feature_names(columns))))
    at, bad = 0, np.zeros(frame.height, dtype=bool)
    first: tuple[int, str, str] | None = None  # the first bad row of all, its column, and what is there
    for column in columns:
        if column.name not in frame.columns:
            raise BadInput(f"{name}: has no column {column.name!r}; columns are {_some(list(frame.columns))}")
        series = frame[column.name]
        if column.values is None:
            try:
                values = series.cast(pl.Float64).to_numpy()  # a missing value becomes NaN
            except pl.exceptions.PolarsError:
                raise BadInput(f"{name}: column {column.name!r} holds text, but numbers are needed") from None
            wrong = ~np.isfinite(values)
            features[:, at] = values
        else:
            text = series.cast(pl.String)
            for i, value in enumerate(column.values):
                features[:, at + i] = (text == value).fill_null(False).to_numpy()
            wrong = features[:, at : at + len(column.values)].sum(1) == 0.0
        if wrong.any():
            row = int(wrong.argmax())
            if first is None or row < first[0]:
                first = row, column.name, _found(series, row, column.values is None)
            bad |= wrong
        at += len(column.feature_names)
    if first is not None:
        row, column_name, found = first
        raise BadInput(
            f"{name}: column {column_name!r} holds {found} in row {row} ({bad.sum()} such rows in all); fill in or "
            f"remove these rows, or leave the column out with --drop {column_name}"
        )
    return features


def _found(series: Any, row: int, number: bool) -> str:
    if series.is_null()[row]:
        return "a missing value"
    return f"{series[row]:g}".replace("nan", "NaN") if number else f"{series[row]!r}, which is not among its values,"


def _columns(frame: Any, names: list[str], path: str) -> tuple[Column, ...]:
    """What each column is. Raises: BadInput for text that is no set of categories."""
    pl = extra("polars")
    result, refused = [], []
    most = min(MOST_VALUES, frame.height // 5)
    for name in names:
        series = frame[name]
        if series.dtype.is_numeric() or series.dtype == pl.Boolean:
            result.append(Column(name))
            continue
        values = []
        if series.dtype in (pl.String, pl.Categorical, pl.Enum):
            different = series.cast(pl.String).drop_nulls().unique()
            if different.len() <= most and different.cast(pl.Float64, strict=False).is_null().all():
                values = sorted(different)
        if values:
            result.append(Column(name, tuple(values)))
        else:
            refused.append(name)
    if refused:
        name, value = refused[0], ""
        cast = frame[name].cast(pl.Float64, strict=False) if frame[name].dtype == pl.String else None
        if cast is not None and (bad := (cast.is_null() & frame[name].is_not_null()).arg_true()).len():
            value = f" (for example {name!r} holds {frame[name][bad[0]]!r} in row {bad[0]})"
        drops = " ".join(f"--drop {each}" for each in refused[:4]) + (" ..." if len(refused) > 4 else "")
        raise BadInput(
            f"{path}: columns that are not numeric: {_some(refused)}{value}; text is taken as categories only where it "
            f"has at most {most} different values here and none of them is a number. Turn them into numbers, or leave "
            f"them out with {drops}"
        )
    return tuple(result)


def _classes(column: Any, path: str, target: str) -> tuple[Ints, tuple[str, ...]]:
    pl = extra("polars")
    missing = column.is_null()
    if column.dtype.is_float():
        missing = missing | column.is_nan().fill_null(False)
    if missing.any():
        row = missing.arg_true()[0]
        raise BadInput(f"{path}: the class column {target!r} is missing in row {row}; fill in or remove such rows")
    if column.dtype.is_float():
        fraction = (column != column.round()).arg_true()
        if fraction.len():
            row = fraction[0]
            raise BadInput(
                f"{path}: --target {target!r} holds {column[row]:g} in row {row}, a quantity and not a class; name a "
                "column of class names or whole numbers"
            )
        column = column.cast(pl.Int64)
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)):
        raise BadInput(f"{path}: --target {target!r} has type {column.dtype}; name a column of text or whole numbers")
    values = column.cast(pl.String).to_numpy() if not column.dtype.is_integer() else column.to_numpy()
    names, classes, counts = np.unique(
        values.astype(str if values.dtype == object else values.dtype), return_inverse=True, return_counts=True
    )
    if len(names) < 2:
        raise BadInput(f"{path}: --target {target!r} holds one class only, {names[0]!s}; at least two are needed")
    if counts.min() < MIN_ROWS_PER_CLASS:
        rare = [f"{name!s} ({count})" for name, count in zip(names, counts, strict=True) if count < MIN_ROWS_PER_CLASS]
        raise BadInput(
            f"{path}: too few rows in {len(rare)} of {len(names)} classes of {target!r}: {_some(rare)}; each class "
            f"needs at least {MIN_ROWS_PER_CLASS}, so remove or merge them"
        )
    return classes.astype(np.int64), tuple(str(name) for name in names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
