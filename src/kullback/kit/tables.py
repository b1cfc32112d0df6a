"""Tables and arrays of numbers from files that others wrote: recognised, or refused by name.

A table is CSV (commas, semicolons, tabs or bars; UTF-8, or UTF-16 and UTF-32 with their mark; any line ends) or
Parquet; an array is npy. What a file is, its first bytes say. Every error is `BadInput`, and names the file, the row
and the column. Rows count from 0, the first row under the heading.
"""

import csv
import io
import re
import stat
import sys
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kullback._errors import BadInput

from .ending import near, of_system
from .extras import extra

Floats: TypeAlias = npt.NDArray[np.float64]
Column: TypeAlias = Floats | list[str]

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".npy")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_NOTHING = {"", "na", "n/a", "null", "none", "nan", "missing"}
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (.xlsx, .npz and .zip are such)",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\x89HDF": "HDF5",
    b"ARROW1": "Arrow IPC (Feather)",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word document",
    b"%PDF": "PDF",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"SQLite": "an SQLite database",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What a file held when it was read, all at once."""

    name: str
    data: bytes
    is_array: bool = False
    is_parquet: bool = False


@dataclass(frozen=True)
class Table:
    """Columns of equal length >= 1, of numbers (float64) or of text; `names` is None where the file gives none."""

    names: tuple[str, ...] | None
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return len(self.columns[0])


def open_source(path: str) -> Source:
    """Read a file, a pipe, or standard input for "-".

    Raises: BadInput: no such file, a kind of file that is not read.
    """
    if path == "-":
        return _known(Source("standard input", sys.stdin.buffer.read()))
    place = Path(path)
    try:
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            raise BadInput(f"{path}: is a folder; write the path of a file in it")
        if stat.S_ISREG(mode) and place.suffix.lower() not in SUFFIXES:
            raise BadInput(
                f"{path}: {place.suffix or 'no suffix'} is not a known format; write {' or '.join(SUFFIXES)}"
            )
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise BadInput(f"{path}: is a device, not a file")
        return _known(Source(path, place.read_bytes()))
    except FileNotFoundError:
        reason = "there is no such file"
    except OSError as error:
        reason = of_system(OSError(error.errno, error.strerror))
    except BadInput:
        raise
    except ValueError:  # a name that no file can have
        reason = "there is no such file"
    raise BadInput(f"{shortened(path)}: {reason}")


def _known(source: Source) -> Source:
    start = source.data[:8]
    for mark, what in _FOREIGN.items():
        if start.startswith(mark):
            raise BadInput(f"{source.name}: is {what}; convert it to CSV, Parquet or npy")
    return replace(source, is_array=start.startswith(b"\x93NUMPY"), is_parquet=start.startswith(b"PAR1"))


def read_array(source: Source) -> npt.NDArray[Any]:
    """The array of an npy file, of real numbers, in the dtype that it has.

    Raises: BadInput: a header that lies, another kind of values, more than two axes, nothing in it.
    """
    file = io.BytesIO(source.data)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # files that Python 2 wrote are as good as others
            shape, _, dtype = header(file)
    except (ValueError, SyntaxError, TypeError, KeyError, EOFError, OverflowError, tokenize.TokenError, RecursionError):
        raise BadInput(f"{source.name}: is not an .npy file of numbers (its header cannot be read)") from None
    if dtype.kind not in "iuf":
        kinds = {"c": "complex numbers", "b": "truth values", "O": "objects", "U": "text", "S": "text", "M": "dates"}
        what = kinds.get(dtype.kind, f"values of type {dtype}")
        raise BadInput(f"{source.name}: is not an .npy file of numbers: it holds {what}, and real numbers are needed")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size != len(source.data) - file.tell():
        raise BadInput(
            f"{source.name}: its header promises {shape} numbers, {size} bytes, but {len(source.data) - file.tell()} "
            "follow; check that the file is whole"
        )
    if len(shape) not in (1, 2) or size == 0:
        raise BadInput(
            f"{source.name}: holds an array of shape {shape}; one or two axes with something in them are needed"
        )
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def read_table(source: Source, select: Sequence[str] = (), header: bool | None = None, *, of: str) -> Table:
    """The columns of a CSV or Parquet file.

    Args:
        select: these columns only, in this order: by name, or by number from 1 in a file without names.
        header: whether the first line of CSV names the columns; None to tell from what it holds.
        of: the extra to name where polars is missing (for Parquet).

    Raises: BadInput: a missing or a half-numeric value, lines of unequal length, a column that is not there, ...
    """
    if source.is_parquet:
        return _parquet(source, select, of)
    return _csv(source, select, header)


def is_number(cell: str) -> bool:
    """Whether a cell is a plain number, as 1, -2.5e3, inf or nan are; "1,5", "1_000" and "12 %" are not.

    >>> [is_number(cell) for cell in ("1", " -2.5e3", "nan", "1,5", "1_000", "")]
    [True, True, True, False, False, False]
    """
    return _NUMBER.fullmatch(cell.strip()) is not None


def shortened(text: str, longest: int = 80) -> str:
    """A text of any length as it fits into a line.

    >>> shortened("a" * 100, 10)
    'aaaaaaa...'
    """
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 4 * longest].split()))
    return line if len(line) <= longest else line[: longest - 3] + "..."


def _parquet(source: Source, select: Sequence[str], of: str) -> Table:
    pl = extra("polars", of=of)
    try:
        frame = pl.read_parquet(io.BytesIO(source.data))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        reason = shortened((str(error).strip() or type(error).__name__).splitlines()[0], 120)
        raise BadInput(f"{source.name}: cannot be read as Parquet ({reason}); check that the file is whole") from None
    names = _chosen(source.name, tuple(frame.columns), select)
    if frame.height == 0 or not names:
        raise BadInput(f"{source.name}: holds no rows")
    return Table(names, tuple(_of_parquet(source.name, frame[name], pl) for name in names))


def _of_parquet(file: str, series: Any, pl: Any) -> Column:
    if series.null_count():
        row = int(series.is_null().arg_max())
        raise BadInput(f"{file}: row {row} has no value in column {series.name!r}; leave such rows out")
    if series.dtype.is_numeric():
        numbers: Floats = series.cast(pl.Float64).to_numpy()
        return numbers
    if series.dtype == pl.Boolean or isinstance(series.dtype, pl.String | pl.Categorical | pl.Enum):
        return [str(value) for value in series.to_list()]
    raise BadInput(
        f"{file}: column {series.name!r} holds {series.dtype}, but numbers or text are needed; choose with --columns"
    )


def _csv(source: Source, select: Sequence[str], header: bool | None) -> Table:
    text, notes = _decoded(source)
    separator = _separator(text)
    if separator != ",":
        notes.append(f"separated by {dict(zip(';|', ('semicolons', 'bars'), strict=True)).get(separator, 'tabs')}")
    rows = _rows(source.name, text, separator)
    first = next(rows, None)
    if first is None:
        raise BadInput(f"{source.name}: cannot be read as CSV: it is empty")
    second = next(rows, None)
    named = _is_heading(source.name, text, separator, first, second) if header is None else header
    names = tuple(cell.strip() for cell in first) if named else None
    if names is not None and second is None:
        raise BadInput(f"{source.name}: has a heading and no rows")
    _check_names(source.name, names, select)
    at = _chosen_places(source.name, names, len(first), select)
    columns = _fast(text, separator, at, named) or _slow(source.name, text, separator, at, names)
    return Table(None if names is None else tuple(names[i] for i in at), columns, tuple(notes))


def _decoded(source: Source) -> tuple[str, list[str]]:
    """The text with \\n at its line ends, and what is worth saying about its encoding."""
    data = source.data
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    notes = [] if encoding.startswith("utf-8") else [encoding.upper()]
    if not notes and b"\0" in data:
        raise BadInput(
            f"{source.name}: holds NUL bytes, as binary files do, and UTF-16 without its mark; save it as CSV in UTF-8"
        )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = data[error.start : error.start + 1].hex() or "none"
        raise BadInput(
            f"{source.name}: line {line} is not {encoding.upper()} (byte 0x{byte}); save it as CSV in UTF-8"
        ) from None
    if "\0" in text:
        raise BadInput(f"{source.name}: holds NUL characters, as binary files do; save it as CSV in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n"), notes


def _separator(text: str) -> str:
    """The first of tab, semicolon, bar and comma that stands equally often, and at least once, in the first lines."""
    lines = [re.sub(r'"[^"]*"', "", line) for line in text[:65536].split("\n")[:20]]
    lines = lines[:-1] if len(text) > 65536 and len(lines) > 1 else lines
    for each in "\t;|,":
        counts = {line.count(each) for line in lines}
        if len(counts) == 1 and counts != {0}:
            return each
    present = [each for each in "\t;|," if lines[0].count(each)]
    return present[0] if present else ","


def _rows(file: str, text: str, separator: str) -> Iterator[list[str]]:
    """Cells, line by line, as many in each as in the first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    width = None
    try:
        for row in reader:
            if not row:
                raise BadInput(f"{file}: line {reader.line_num} is blank; leave blank lines out")
            width = width or len(row)
            if len(row) != width:
                raise BadInput(
                    f"{file}: line {reader.line_num} has {len(row)} cells but the first line {width}; each line needs "
                    "as many"
                )
            yield row
    except csv.Error as error:
        what = "a cell is longer than any number or name" if "field larger" in str(error) else f"its quotes: {error}"
        raise BadInput(f"{file}: line {reader.line_num} cannot be read as CSV ({what})") from None


def _is_heading(file: str, text: str, separator: str, first: list[str], second: list[str] | None) -> bool:
    """Whether the first line names the columns: it is text above numbers, or above text that it does not come again in.

    Raises: BadInput: it could be either.
    """
    numbers = list(map(is_number, first))
    if not any(numbers):
        if len(first) > 1 or second is None or is_number(second[0]):
            return True
        return first[0].strip() not in {row[0].strip() for i, row in enumerate(_rows(file, text, separator)) if i}
    if all(numbers) and [cell.strip() for cell in first] != [str(i) for i in range(len(first))]:
        return False
    if len(first) == 1:
        return False
    if second is not None and any(is_number(b) and not a for a, b in zip(numbers, second, strict=True)):
        return True
    raise BadInput(
        f"{file}: the first line, {shortened(separator.join(first), 40)}, may name the columns or be the first row; "
        "write --header or --no-header"
    )


def _check_names(file: str, names: tuple[str, ...] | None, select: Sequence[str]) -> None:
    if names is None:
        return
    wanted = [name for name in names if name in select] if select else list(names)
    if "" in wanted:
        some = ",".join(name for name in names if name) or "x"
        raise BadInput(
            f"{file}: column {names.index('') + 1} has no name, as saved row numbers have none; say which to use, "
            f"such as --columns {shortened(some, 40)}"
        )
    twice = next((name for i, name in enumerate(wanted) if name in wanted[:i]), None)
    if twice is not None:
        raise BadInput(f"{file}: two columns have the name {shortened(twice)!r}; give each its own")


def _chosen(file: str, names: tuple[str, ...], select: Sequence[str]) -> tuple[str, ...]:
    return tuple(names[i] for i in _chosen_places(file, names, len(names), select))


def _chosen_places(file: str, names: tuple[str, ...] | None, width: int, select: Sequence[str]) -> list[int]:
    """Where the selected columns stand."""
    if not select:
        return list(range(width))
    known = names or tuple(str(i + 1) for i in range(width))
    for name in select:
        if name not in known:
            what = "the columns are" if names else "the columns have no names, but numbers:"
            raise BadInput(f"{file}: there is no column {shortened(name)!r}; {what} {near(name, known)}")
    return [known.index(name) for name in select]


def _fast(text: str, separator: str, at: list[int], named: bool) -> tuple[Column, ...] | None:
    """The columns, if every cell that is wanted is a number; else None, and `_slow` finds out why."""
    try:
        table = np.loadtxt(
            io.StringIO(text),
            delimiter=separator,
            comments=None,
            skiprows=int(named),
            usecols=at,
            ndmin=2,
            quotechar='"',
        )
    except ValueError:
        return None
    if text.count("\n") + 1 - int(named) != len(table):
        return None
    return tuple(np.ascontiguousarray(table[:, i]) for i in range(len(at)))


def _slow(file: str, text: str, separator: str, at: list[int], names: tuple[str, ...] | None) -> tuple[Column, ...]:
    rows = _rows(file, text, separator)
    if names is not None:
        next(rows)
    cells = zip(*([row[i] for i in at] for row in rows), strict=True)
    labels = [names[i] if names else str(i + 1) for i in at]
    return tuple(_column(file, name, column) for name, column in zip(labels, cells, strict=True))


def _column(file: str, name: str, cells: Sequence[str]) -> Column:
    """Numbers or text; one that is mostly numbers is refused, with the row that is not one."""
    stripped = [cell.strip() for cell in cells]
    if "" in stripped:
        raise BadInput(
            f"{file}: row {stripped.index('')} has no value in column {shortened(name)!r}; leave such rows out"
        )
    odd = [i for i, cell in enumerate(stripped) if not is_number(cell)]
    if not odd:
        return np.array([float(cell) for cell in stripped])
    numbers = len(stripped) - len(odd)
    nothing = [i for i in odd if numbers and stripped[i].lower() in _NOTHING]
    if nothing or len(odd) <= numbers:
        row = (nothing or odd)[0]
        raise BadInput(
            f"{file}: row {row} has {shortened(stripped[row], 40)!r} in column {shortened(name)!r}, which is not a "
            "number"
        )
    return stripped


def nearly_numbers(column: list[str]) -> str | None:
    """A cell of text that only its way of writing keeps from being a number, or numbers: "1,5", "12 %", "1.0 2.0"."""

    def nearly(cell: str) -> bool:
        parts = re.split(r"[\s;,]+", cell.strip())
        return is_number(re.sub(r"[\s,;'_%$€£]", "", cell)) or (len(parts) > 1 and all(map(is_number, parts)))

    return next((cell for cell in column if nearly(cell)), None)
