"""Rows of features with a class, and which of them are for what."""

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


@dataclass(frozen=True)
class Table:
    """Features (N, F) in float64, classes (N,) as indices into `class_names`."""

    name: str
    features: Floats
    classes: Ints
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int] | None = None  # when a row is a grey picture

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
    names = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
    classes = np.asarray(bunch.target, dtype=np.int64)
    return Table("scikit-learn digits", features, classes, names, tuple(map(str, range(10))), (8, 8))


def read_table(path: Path, target: str | None, drop: tuple[str, ...] = ()) -> Table:
    """A CSV (with a header line) or Parquet file; every column but `target` and `drop` is a feature.

    Raises: BadInput for a missing file or column, missing values or NaN, text among the features, one class, a class
    with too few rows. Rows count from 0, the first row under the header.
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
    feature_names = tuple(name for name in columns if name != target and name not in drop)
    if not feature_names:
        raise BadInput(f"{path}: has no feature columns beside --target {target!r}; at least one is needed")
    features = _numeric(frame, feature_names, str(path))
    classes, class_names = _classes(frame[target], str(path), target)
    return Table(str(path), features, classes, feature_names, class_names)


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


def _numeric(frame: Any, names: tuple[str, ...], path: str) -> Floats:
    pl = extra("polars")
    text = [name for name in names if not (frame[name].dtype.is_numeric() or frame[name].dtype == pl.Boolean)]
    if text:
        first, value = text[0], ""
        cast = frame[first].cast(pl.Float64, strict=False) if frame[first].dtype == pl.String else None
        if cast is not None and (bad := (cast.is_null() & frame[first].is_not_null()).arg_true()).len():
            value = f" (for example {first!r} holds {frame[first][bad[0]]!r} in row {bad[0]})"
        drops = " ".join(f"--drop {name}" for name in text[:4]) + (" ..." if len(text) > 4 else "")
        raise BadInput(
            f"{path}: columns that are not numeric: {_some(text)}{value}; turn them into numbers, or leave them out "
            f"with {drops}"
        )
    columns = [frame[name].cast(pl.Float64).to_numpy() for name in names]  # a missing value becomes NaN
    features = np.column_stack(columns).astype(np.float64)
    wrong = np.argwhere(~np.isfinite(features))
    if len(wrong):
        row, column = wrong[0]
        missing = frame[names[column]].is_null()[int(row)]
        found = "a missing value" if missing else f"{features[row, column]:g}".replace("nan", "NaN")
        raise BadInput(
            f"{path}: column {names[column]!r} holds {found} in row {row} ({len(np.unique(wrong[:, 0]))} such rows in "
            f"all); fill in or remove these rows, or leave the column out with --drop {names[column]}"
        )
    return features


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
