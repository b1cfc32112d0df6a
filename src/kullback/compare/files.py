"""What a file holds: samples, counts, or a probability vector; in CSV, Parquet or npy."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from kullback._errors import FormError
from kullback.forms.empirical import Counts, Samples
from kullback.forms.finite import Probs

Kind: TypeAlias = Literal["samples", "counts", "probs"]
Held: TypeAlias = Samples | Counts | Probs

_COUNT_NAMES = {"count", "counts", "n", "freq", "frequency"}
_PROB_NAMES = {"prob", "probs", "probability", "probabilities", "p", "share"}


@dataclass(frozen=True)
class Content:
    """A form, and the names of its categories (Counts, Probs) or of its columns (Samples)."""

    source: str
    held: Held
    names: tuple[str, ...]
    named: bool = True
    """Whether the file gives the names; else they are positions."""

    @property
    def kind(self) -> Kind:
        return "samples" if isinstance(self.held, Samples) else "counts" if isinstance(self.held, Counts) else "probs"

    def __str__(self) -> str:
        if isinstance(self.held, Samples):
            n, d = self.held.data.shape
            return f"{self.source}: {n} samples of {d} column{'s' if d > 1 else ''}"
        if isinstance(self.held, Counts):
            return f"{self.source}: {self.held.total} observations in {len(self.names)} categories"
        return f"{self.source}: probabilities of {len(self.names)} categories"


def read(path: str, kind: Kind | None = None, columns: Sequence[str] = ()) -> Content:
    """Read a file.

    Args:
        path: .csv (with or without a header), .parquet, .npy.
        kind: what it holds. If None: text in one column is counted; a column of names beside a column of numbers, or a
            column headed count or probability, is counts (whole numbers) or probabilities (summing to 1); one
            unnamed column of non-negative numbers summing to 1 is probabilities; all else is samples.
        columns: use these columns only.

    Raises: FormError: with the path, what was found and what to write.
    """
    place = Path(path)
    if not place.is_file():
        raise FormError(
            f"{path}: there is no such file. Write the path of a .csv, .parquet or .npy file, or a distribution "
            "such as 'Normal(0, 1)'."
        )
    suffix = place.suffix.lower()
    try:
        if suffix == ".npy":
            return _from_array(path, _load_npy(place), kind)
        if suffix in (".csv", ".txt", ".parquet"):
            return _from_table(path, *_table(place, suffix, columns), kind)
    except FormError as error:
        message = str(error)
        raise FormError(message if message.startswith(path) else f"{path}: {message}") from None
    raise FormError(f"{path}: {suffix or 'no suffix'} is not a known format. Write .csv, .parquet or .npy.")


def _load_npy(place: Path) -> Any:
    try:
        array = np.load(place, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise FormError("this is not an .npy file of numbers.") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        raise FormError("an .npy file must hold one array of real numbers with one or two axes.")
    return array.astype(np.float64)


def _from_array(path: str, array: Any, kind: Kind | None) -> Content:
    if array.ndim == 2 and kind in ("counts", "probs"):
        raise FormError(f"the array has shape {array.shape}; counts or probabilities are one row: write --as samples.")
    if kind is None:
        kind = "probs" if array.ndim == 1 and _is_probability(array) else "samples"
    width = array.shape[1] if array.ndim == 2 else 1
    names = [str(i) for i in range(width if kind == "samples" else len(array))]
    return _content(path, array, names, kind, named=False)


def _table(place: Path, suffix: str, columns: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Column names and columns; a missing value is None."""
    try:
        import polars as pl
    except ModuleNotFoundError:
        raise FormError("reading tables needs polars. Write: pip install 'kullback[distill]'.") from None
    try:
        if suffix == ".parquet":
            frame = pl.read_parquet(place)
        else:
            frame = pl.read_csv(place, has_header=_has_header(place), infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise FormError(f"cannot be read as {suffix[1:]}: {str(error).split(chr(10))[0]}") from None
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise FormError(f"there is no column {missing[0]!r}; the columns are {', '.join(frame.columns)}.")
    frame = frame.select(columns) if columns else frame
    if frame.height == 0 or frame.width == 0:
        raise FormError("the file holds no rows.")
    return list(frame.columns), [frame[name].to_list() for name in frame.columns]


def _has_header(place: Path) -> bool:
    with place.open(newline="", encoding="utf-8", errors="replace") as lines:
        first = next(csv.reader(lines), [])
    return not all(_is_number(cell) for cell in first)


def _from_table(path: str, names: list[str], columns: list[list[Any]], kind: Kind | None) -> Content:
    for name, column in zip(names, columns, strict=True):
        if None in column:
            raise FormError(f"row {column.index(None)} has no value in column {name!r}. Leave such rows out.")
    text = [_is_text(name, column) for name, column in zip(names, columns, strict=True)]
    if text == [True]:
        return _counted(path, columns[0], kind)
    heading = names[-1].strip().lower()
    headed: Kind | None = "counts" if heading in _COUNT_NAMES else "probs" if heading in _PROB_NAMES else None
    asked = kind in ("counts", "probs")
    if len(columns) == 2 and not text[1] and (text[0] or headed or asked):
        labels, values = [str(cell) for cell in columns[0]], _floats(names[1], columns[1])
        repeated = len(labels) - len(set(labels))
        if repeated:
            raise FormError(f"column {names[0]!r} names {repeated} categories twice. Add their counts up first.")
        return _content(path, values, labels, kind or headed or _kind_of_values(values, names[1]))
    if any(text):
        bad = names[text.index(True)]
        raise FormError(f"column {bad!r} holds text. Write --columns with the names of columns of numbers.")
    table = np.stack([_floats(name, column) for name, column in zip(names, columns, strict=True)], -1)
    if table.shape[1] == 1:
        values = table[:, 0]
        found = kind or headed or ("probs" if _is_probability(values) else "samples")
        positions = [str(i) for i in range(len(values))]
        return _content(path, values, names if found == "samples" else positions, found, named=False)
    if asked:
        raise FormError(
            f"{kind} are one column of numbers, or names and numbers; this file has {table.shape[1]} columns. Write "
            "--columns."
        )
    return _content(path, table, names, "samples")


def _counted(path: str, labels: list[Any], kind: Kind | None) -> Content:
    if kind not in (None, "counts"):
        raise FormError(f"one column of text is counted by category; it cannot be {kind}.")
    names = sorted({str(label) for label in labels})
    at = {name: i for i, name in enumerate(names)}
    values = np.bincount([at[str(label)] for label in labels], minlength=len(names))
    return _content(path, values, names, "counts")


def _content(path: str, values: Any, names: Sequence[str], kind: Kind, *, named: bool = True) -> Content:
    data = torch.from_numpy(np.ascontiguousarray(values))
    if kind == "probs":
        off = abs(float(data.sum()) - 1.0)
        # files hold few digits: what is within 1e-6 of one is rescaled, and is still a probability vector
        held: Held = Probs(data / data.sum() if off < 1e-6 else data)
    else:
        held = Samples(data) if kind == "samples" else Counts(data)
    return Content(path, held, tuple(names), named)


def _kind_of_values(values: Any, name: str) -> Kind:
    if _is_probability(values):
        return "probs"
    if bool((values == np.round(values)).all()):
        return "counts"
    raise FormError(
        f"column {name!r} holds neither whole numbers (counts) nor numbers that sum to 1 (probabilities): the sum is "
        f"{float(values.sum()):g}. Write --as samples with --columns {name} if these are draws."
    )


def _is_probability(values: Any) -> bool:
    return len(values) > 1 and bool((values >= 0).all()) and abs(float(values.sum()) - 1.0) < 1e-6


def _floats(name: str, column: list[Any]) -> Any:
    try:
        return np.array([float(cell) for cell in column])
    except (TypeError, ValueError):
        raise FormError(f"column {name!r} does not hold numbers. Write --columns with columns that do.") from None


def _is_text(name: str, column: list[Any]) -> bool:
    """Whether a column is of names; one that is mostly numbers is refused, with the row that is not one."""
    odd = [i for i, cell in enumerate(column) if isinstance(cell, str) and not _is_number(cell)]
    if 0 < len(odd) <= len(column) // 2:
        raise FormError(f"row {odd[0]} has {column[odd[0]]!r} in column {name!r}, which is not a number.")
    return bool(odd)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def aligned(p: Content, q: Content) -> tuple[Content, Content]:
    """Both over the union of their categories, with 0 where one has no row."""
    if p.names == q.names:
        return p, q
    if not (p.named and q.named):
        raise FormError(
            f"{p.source} has {len(p.names)} categories and {q.source} has {len(q.names)}, and not both name them, so "
            "that they cannot be matched. Write two columns, names and numbers, in both files."
        )
    if not set(p.names) & set(q.names):
        raise FormError(f"{p.source} and {q.source} share no category: {p.names[0]!r}, ... and {q.names[0]!r}, ...")
    names = list(dict.fromkeys([*p.names, *q.names]))

    def spread(content: Content) -> Content:
        at = {name: i for i, name in enumerate(content.names)}
        data = content.held.data
        values = torch.stack([data[at[name]] if name in at else data.new_zeros(()) for name in names])
        return _content(content.source, values.numpy(), names, content.kind)

    return spread(p), spread(q)
