"""What a file holds: samples, counts, probabilities or logits, and why it is taken for that."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kullback._errors import BadInput
from kullback.forms.empirical import Counts, Samples
from kullback.forms.finite import Logits, Probs
from kullback.kit.tables import (
    Column,
    Floats,
    Source,
    Table,
    nearly_numbers,
    open_source,
    read_array,
    read_table,
    shortened,
)

Kind: TypeAlias = Literal["samples", "counts", "probs", "logits"]
Held: TypeAlias = Samples | Counts | Probs | Logits

COUNT_HEADINGS = {"count", "counts", "n", "freq", "frequency"}
PROB_HEADINGS = {"prob", "probs", "probability", "probabilities", "p", "share"}
NEAR_ONE = 0.05  # a sum this close to 1 may be that of rounded probabilities, or chance
ROUNDED = 1e-6  # a sum this close to 1 is that of probabilities with the digits that files have
LARGEST_COUNT = 2.0**53


@dataclass(frozen=True)
class Wanted:
    """What the command line says about a file.

    Args:
        kind: what it holds; None to tell from what it looks like.
        columns: use these only.
        header: whether its first line names the columns; None to tell.
        rescale: divide probabilities by their sum.
    """

    kind: Kind | None = None
    columns: tuple[str, ...] = ()
    header: bool | None = None
    rescale: bool = False


@dataclass(frozen=True)
class Content:
    """What was read.

    Args:
        source: where from.
        kind: what it is taken for.
        values: float64: samples (n, d), counts (B,), probabilities or logits (B,) or (rows, B).
        names: of the columns of samples, else of the categories; None where the file has none.
        because: why it is taken for `kind`; empty where the command line says so.
        notes: what else was noticed.
    """

    source: str
    kind: Kind
    values: Tensor
    names: tuple[str, ...] | None
    because: str = ""
    notes: tuple[str, ...] = ()

    @property
    def held(self) -> Held:
        """As the form that says it."""
        forms: dict[Kind, Callable[[Tensor], Held]] = {
            "samples": Samples,
            "counts": Counts,
            "probs": Probs,
            "logits": Logits,
        }
        return forms[self.kind](self.values)

    @property
    def num_rows(self) -> int | None:
        """How many distributions; None for one that is not in a batch."""
        return len(self.values) if self.kind in ("probs", "logits") and self.values.dim() == 2 else None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names, or numbers from 0 in their place."""
        return self.names or tuple(str(i) for i in range(self.values.shape[-1]))

    def __str__(self) -> str:
        width = self.values.shape[-1]
        categories = f"{width} categor{'y' if width == 1 else 'ies'}"
        if self.kind == "samples":
            named = f" ({shortened(', '.join(self.names), 40)})" if self.names else ""
            what = f"{len(self.values)} samples of {width} column{'s' if width > 1 else ''}{named}"
        elif self.kind == "counts":
            what = f"{self.values.sum():.0f} observations in {categories}"
        else:
            rows = "" if self.num_rows is None else f"{self.num_rows} rows of "
            what = f"{rows}{'probabilities' if self.kind == 'probs' else 'logits'} of {categories}"
        because = f"; taken for {self.kind}: {self.because}" if self.because else ""
        return f"{shortened(self.source)}: {what}{because}{''.join(f'; {note}' for note in self.notes)}"


def read(path: str, wanted: Wanted, *, of: str = "distill") -> Content:
    """Read a file, or standard input for "-".

    Raises: BadInput: it cannot be read, cannot hold what it is said to, or could mean more than one thing.
    """
    source = open_source(path)
    if source.is_array:
        return _of_array(source, wanted)
    table = read_table(source, wanted.columns, wanted.header, of=of)
    found = _of_table(source.name, table, wanted)
    return replace(found, notes=(*table.notes, *found.notes))


def _of_array(source: Source, wanted: Wanted) -> Content:
    array = read_array(source)
    values: Floats = array.astype(np.float64)
    if wanted.columns:
        width = values.shape[1] if values.ndim == 2 else 1
        numbers = {str(i + 1): i for i in range(width)}
        bad = next((name for name in wanted.columns if name not in numbers), None)
        if bad is not None:
            raise BadInput(f"{source.name}: there is no column {shortened(bad)!r}; an array has columns 1 to {width}")
        values = values.reshape(-1, width)[:, [numbers[name] for name in wanted.columns]]
    return _of_numbers(source.name, values, None, wanted, max(ROUNDED, _digits(array)))


def _digits(array: Any) -> float:
    """How far from 1 the sum of probabilities with these digits may be: √eps of the dtype, as the forms take it; of
    float32 for numbers in float64 that are all rounded to float32.
    """
    if array.dtype.kind != "f":
        return 0.0
    with np.errstate(over="ignore"):
        rounded = array.dtype.itemsize > 4 and bool((array == array.astype(np.float32)).all())
    return float(np.sqrt(np.finfo(np.float32 if rounded else array.dtype).eps))


def _of_table(file: str, table: Table, wanted: Wanted) -> Content:
    texts = [isinstance(column, list) for column in table.columns]
    heading = "" if table.names is None else table.names[-1].strip().lower()
    headed: Kind | None = "counts" if heading in COUNT_HEADINGS else "probs" if heading in PROB_HEADINGS else None
    if texts == [True]:
        return _counted(file, table, wanted)
    if len(texts) == 2 and (any(texts) or headed or wanted.kind in ("counts", "probs")):
        labels, numbers = (1, 0) if texts == [False, True] else (0, 1)
        batch = wanted.kind == "probs" and not any(texts) and not headed and _looks(_stacked(table), ROUNDED) == "exact"
        if not batch:
            return _labelled(file, table, labels, numbers, headed, wanted)
    if any(texts):
        at = texts.index(True)
        column = table.columns[at]
        assert isinstance(column, list)
        _refuse_text(file, _name(table, at), column)
    values = _stacked(table)
    if len(texts) == 1 and headed and wanted.kind is None:
        because = f"the heading {shortened(heading)!r} says so"
        return _checked(file, headed, values[:, 0], None, because, wanted.rescale, ROUNDED)
    return _of_numbers(file, values, table.names, wanted, ROUNDED)


def _of_numbers(file: str, values: Floats, names: tuple[str, ...] | None, wanted: Wanted, digits: float) -> Content:
    """Numbers without the names of categories beside them: one column, or several."""
    line = values.reshape(-1) if values.ndim == 1 or values.shape[1] == 1 else None
    kind, because = (wanted.kind, "") if wanted.kind else _guess(file, values if line is None else line, names, digits)
    if kind == "samples":
        return _checked(file, kind, values.reshape(len(values), -1), names, because)
    if line is not None:
        return _checked(file, kind, line, None, because, wanted.rescale, digits)
    if kind == "counts":
        raise BadInput(
            f"{file}: holds {values.shape[0]} rows of {values.shape[1]} numbers, but counts are one row of names and "
            "numbers, or of numbers; choose with --columns, or write --as samples"
        )
    return _checked(file, kind, values[0] if len(values) == 1 else values, names, because, wanted.rescale, digits)


def _guess(file: str, values: Floats, names: tuple[str, ...] | None, digits: float) -> tuple[Kind, str]:
    """What numbers without a word beside them are.

    Raises: BadInput: they look like two things.
    """
    sums = _looks(values, digits)
    whole = values.size > 1 and bool(((values >= 0) & (values == np.round(values))).all())
    what = "each row" if values.ndim == 2 and len(values) > 1 else "the numbers"
    if whole and (names is None or sums):
        raise _unclear(file, "all numbers are whole", "samples, counts")
    if not sums and values.ndim == 2 and len(values) > 1 and _looks(values.T, digits) == "exact":
        raise BadInput(
            f"{file}: each column sums to 1, as distributions in columns do; choose one with --columns, or write "
            "--as samples"
        )
    if sums == "near":
        total = float(_sum(np.atleast_2d(values), -1).flat[0])
        raise _unclear(
            file, f"no number is below 0 and their sum, {total:g}, is near 1", "probs --rescale, samples, counts"
        )
    if sums == "exact":
        return "probs", f"{what} sum{'s' if what == 'each row' else ''} to 1 and none is below 0"
    return "samples", "columns under names" if names else "the numbers are not all whole, and do not sum to 1"


def _sum(values: Floats, axis: int | None = None, *, keepdims: bool = False) -> Any:
    """The sum; infinite, without a warning, where numbers are as large as numbers get."""
    with np.errstate(over="ignore"):
        return values.sum(axis, keepdims=keepdims)


def _looks(values: Floats, digits: float) -> str:
    """Whether each row could be probabilities: "exact", "near" or ""."""
    rows = np.atleast_2d(values)
    if rows.shape[1] < 2 or not bool((rows >= 0).all()):
        return ""
    off = float(np.abs(_sum(rows, -1) - 1.0).max())
    return "exact" if off <= digits else "near" if off <= NEAR_ONE else ""


def _unclear(file: str, seen: str, kinds: str) -> BadInput:
    choices = " or ".join(f"--as {kind}" for kind in kinds.split(", "))
    return BadInput(f"{file}: {seen}, which does not tell what they are; write {choices}")


def _labelled(file: str, table: Table, labels_at: int, numbers_at: int, headed: Kind | None, wanted: Wanted) -> Content:
    """A column of names beside a column of numbers."""
    labels = _as_text(table.columns[labels_at])
    numbers = table.columns[numbers_at]
    if isinstance(numbers, list):
        _refuse_text(file, _name(table, numbers_at), numbers)
    repeated = len(labels) - len(set(labels))
    if repeated:
        raise BadInput(f"{file}: column {_name(table, labels_at)} names {repeated} categories twice; add them up first")
    if wanted.kind == "samples":
        raise BadInput(
            f"{file}: column {_name(table, labels_at)} names categories; for samples, choose columns of numbers with "
            "--columns"
        )
    kind: Kind
    if wanted.kind:
        kind, because = wanted.kind, ""
    elif headed:
        kind, because = headed, f"the heading {_name(table, numbers_at)} says so"
    else:
        kind, because = _beside_names(file, numbers, _name(table, numbers_at))
    return _checked(file, kind, numbers, tuple(labels), because, wanted.rescale, ROUNDED)


def _beside_names(file: str, numbers: Floats, column: str) -> tuple[Kind, str]:
    sums = _looks(numbers, ROUNDED)
    whole = bool(((numbers >= 0) & (numbers == np.round(numbers))).all())
    if whole and not sums:
        return "counts", "whole numbers beside names"
    if whole:
        raise _unclear(file, f"the numbers of column {column} are whole and sum to 1", "counts, probs")
    if sums == "exact":
        return "probs", "numbers beside names, none below 0, that sum to 1"
    if sums == "near":
        raise _unclear(file, f"the numbers of column {column} sum to {_sum(numbers):g}, near 1", "probs --rescale")
    raise BadInput(
        f"{file}: column {column} holds neither whole numbers (counts) nor numbers that sum to 1 (probabilities): the "
        f"sum is {_sum(numbers):g}; write --as probs --rescale for weights, or --as logits"
    )


def _counted(file: str, table: Table, wanted: Wanted) -> Content:
    column = table.columns[0]
    assert isinstance(column, list)
    if wanted.kind not in (None, "counts") or nearly_numbers(column) is not None:
        _refuse_text(file, _name(table, 0), column)
    names = sorted(set(column))
    at = {name: i for i, name in enumerate(names)}
    values = np.bincount([at[name] for name in column], minlength=len(names)).astype(np.float64)
    heading = "without a heading" if table.names is None else f"under the heading {shortened(table.names[0], 40)!r}"
    because = "" if wanted.kind else f"one column of text, {heading}, is counted"
    return _checked(file, "counts", values, tuple(names), because)


def _checked(
    file: str,
    kind: Kind,
    values: Floats,
    names: tuple[str, ...] | None,
    because: str,
    rescale: bool = False,
    digits: float = 0.0,
) -> Content:
    """The content, if the values can be what they are taken for."""
    notes: tuple[str, ...] = ()
    bad = np.isnan(values) | (values == math.inf) if kind == "logits" else ~np.isfinite(values)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        column = f" in column {shortened(names[at[1]])!r}" if names and len(at) == 2 else ""
        raise BadInput(f"{file}: row {at[0]} holds {values[at]}{column}; {kind} are finite numbers")
    if kind in ("counts", "probs") and bool((values < 0).any()):
        raise BadInput(
            f"{file}: holds {values[values < 0][0]:g}, but {kind} are not below 0; write --as samples or --as logits"
        )
    if kind == "counts":
        if bool((values != np.round(values)).any()):
            odd = values[values != np.round(values)][0]
            raise BadInput(
                f"{file}: holds {odd:g}, but counts are whole numbers; write --as probs, --as samples or --as logits"
            )
        if not 0.0 < _sum(values) < LARGEST_COUNT:
            raise BadInput(
                f"{file}: the counts sum to {_sum(values):g}; at least 1 and fewer than 2^53 observations are needed"
            )
    if kind == "probs":
        values, notes = _summing_to_one(file, values, rescale, digits)
    elif rescale:
        raise BadInput(f"{file}: is taken for {kind}, and --rescale is for probabilities; write --as probs with it")
    if kind == "logits" and bool((values == -math.inf).all(-1).any()):
        raise BadInput(f"{file}: has a row of -inf only; logits need a finite number in each row")
    return Content(file, kind, torch.from_numpy(np.require(values, requirements=("C", "W"))), names, because, notes)


def _summing_to_one(file: str, values: Floats, rescale: bool, digits: float) -> tuple[Floats, tuple[str, ...]]:
    sums = _sum(values, -1, keepdims=True)
    worst = float(sums.flat[np.abs(sums - 1.0).argmax()])
    if worst == 1.0:
        return values, ()
    if abs(worst - 1.0) > digits and not rescale:
        raise BadInput(
            f"{file}: sums to {worst:.10g}, but probabilities sum to 1; write --rescale to divide by the sum"
        )
    if not bool(((sums > 0) & np.isfinite(sums)).all()):
        raise BadInput(f"{file}: has a row that sums to {sums.min():g}, which cannot be rescaled to 1")
    scaled: Floats = values / sums
    if abs(worst - 1.0) < 1e-14 * values.shape[-1] and not rescale:
        return scaled, ()
    why = (
        "as asked"
        if rescale
        else "for files hold few digits"
        if digits <= ROUNDED
        else "for they are rounded to float32"
    )
    if values.ndim == 1:
        return scaled, (f"the numbers were divided by their sum, {worst:.10g}, {why}",)
    return scaled, (f"each row was divided by its sum, {worst:.10g} where that is farthest from 1, {why}",)


def _stacked(table: Table) -> Floats:
    columns = [column for column in table.columns if not isinstance(column, list)]
    stacked: Floats = np.stack(columns, -1)
    return stacked


def _as_text(column: Column) -> list[str]:
    if isinstance(column, list):
        return column
    return [str(int(x)) if math.isfinite(x) and x == round(x) else repr(float(x)) for x in column]


def _name(table: Table, at: int) -> str:
    return str(at + 1) if table.names is None else repr(shortened(table.names[at]))


def _refuse_text(file: str, column: str, cells: list[str]) -> NoReturn:
    nearly = nearly_numbers(cells)
    if nearly is not None:
        raise BadInput(
            f"{file}: column {column} has {shortened(nearly, 40)!r}, nearly a number; write numbers as 1234.5, and "
            "separate columns by commas, semicolons or tabs"
        )
    raise BadInput(
        f"{file}: column {column} holds text, such as {shortened(cells[0], 40)!r}; choose others with --columns"
    )
