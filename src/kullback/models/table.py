"""Scores on disk: Parquet, a row a token, that grows a batch at a time and outlives an interruption.

While a run lasts its rows go to a journal beside the file, an Arrow stream, of which every whole batch can be read
whatever ended the run. When the writer is closed, by the end or by an error, the journal becomes the Parquet file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from kullback._errors import BadInput
from kullback.kit.extras import extra

from .scores import CHOICES, Scores

ROW_GROUP = 1 << 17
ABOUT = b"kullback"  # where the file's metadata says what a run says of itself
_TYPES = {
    "document": "int64",
    "position": "int32",
    "token": "int32",
    "top_p": "int32",
    "top_q": "int32",
    "overlap": "int16",
    "choices_p_ids": "int32",
    "choices_q_ids": "int32",
    "choices_p": "float32",
    "choices_q": "float32",
}
"""Of a number; those that are not here are float64."""
NAMES = tuple(field.name for field in fields(Scores))


def schema(about: Mapping[str, Any] | None = None) -> Any:
    """The Arrow schema of `Scores`, lists of fixed size for what has several numbers a token."""
    pa = _arrow()
    return pa.schema([(name, _type(name)) for name in NAMES], metadata={ABOUT: json.dumps(dict(about or {}))})


class Writer:
    """Rows of scores, appended in order, any number at a time; a context manager.

    Args:
        path: of the Parquet file that there will be. Written under other names, then renamed.
        about: what the file says of itself, for `about`.
        keep: go on after so many rows of an earlier writer of `path`, at most those that are `recorded`. None: begin,
            where there is no file.

    Raises: BadInput: a file is there and `keep` is None, or fewer rows than it. MissingExtra: no pyarrow. OSError.
    """

    def __init__(self, path: Path, about: Mapping[str, Any] | None = None, *, keep: int | None = None) -> None:
        self.path, self._schema = path, schema(about)
        if keep is None and path.exists():
            raise BadInput(f"{path}: exists; nothing was overwritten, name another file")
        if keep is not None:
            if keep > (there := recorded(path)):
                raise BadInput(f"{path}: has {there} rows, of which {keep} were to be kept")
            _settle(path)
        self._file = _journal(path).open("wb")
        self._stream = _arrow().ipc.new_stream(self._file, self._schema)
        left = keep or 0
        for batch in _parquet(path) if left else ():  # these stay in the file too, until this writer is closed
            self._write(batch.slice(0, left))
            left -= min(left, batch.num_rows)

    def append(self, scores: Scores) -> None:
        """These rows after those that are there; with the system when this returns, so that a kill leaves them."""
        self._write(_batch(scores, self._schema))

    def close(self) -> None:
        """Make the Parquet file."""
        if not self._file.closed:
            self._stream.close()
            self._file.close()
            _finish(self.path)

    def _write(self, batch: Any) -> None:
        if batch.num_rows:
            self._stream.write_batch(batch.replace_schema_metadata(self._schema.metadata))
            self._file.flush()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def recorded(path: Path) -> int:
    """How many rows a writer of `path` left, whatever ended it: 0 where there was none."""
    return max(_count(_parquet(path)), _count(_stream(path)))


class Columns(Mapping[str, npt.NDArray[Any]]):
    """The columns of a file by name, each read when it is asked for and not kept: (N,), or (N, 3) for choices.

    Raises: BadInput: no such file, or not one of scores. MissingExtra.
    """

    def __init__(self, path: Path) -> None:
        pq = extra("pyarrow.parquet", of="lm")
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, _arrow().ArrowInvalid) as error:
            raise BadInput(f"{path}: cannot be read as per-token scores ({error})") from None
        missing = [name for name in NAMES if name not in self._file.schema_arrow.names]
        if missing:
            raise BadInput(f"{path}: has no column {missing[0]!r}; it was not written by `kullback compare`")

    @property
    def about(self) -> dict[str, Any]:
        """What the run said of itself."""
        said = (self._file.schema_arrow.metadata or {}).get(ABOUT, b"{}")
        return dict(json.loads(said))

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in NAMES:
            raise KeyError(name)
        return _array(self._file.read(columns=[name])[name].combine_chunks())

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self._file.metadata.num_rows)

    def rows(self, indices: Sequence[int] | npt.NDArray[Any]) -> Scores:
        """A few tokens by their place in the file, in the order asked for."""
        indices = np.asarray(indices, np.int64)
        return Scores(**{name: self[name][indices] for name in NAMES})


def read(path: Path) -> Scores:
    """All of a file."""
    return Scores(**Columns(path))


# ---------------------------------------------------------------- as Arrow has it


def _arrow() -> Any:
    extra("pyarrow.ipc", of="lm")
    return extra("pyarrow", of="lm")


def _type(name: str) -> Any:
    pa = _arrow()
    of_one = getattr(pa, _TYPES.get(name, "float64"))()
    return pa.list_(of_one, CHOICES) if name.startswith("choices") else of_one


def _batch(scores: Scores, of: Any) -> Any:
    pa = _arrow()
    arrays = []
    for name, column in scores.columns().items():
        flat = pa.array(np.ascontiguousarray(column).reshape(-1), getattr(pa, _TYPES.get(name, "float64"))())
        arrays.append(flat if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, CHOICES))
    return pa.record_batch(arrays, schema=of)


def _array(column: Any) -> npt.NDArray[Any]:
    pa = _arrow()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if isinstance(column, pa.FixedSizeListArray):
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(-1, CHOICES)
    return np.asarray(column.to_numpy(zero_copy_only=False))


# ---------------------------------------------------------------- the journal


def _journal(path: Path) -> Path:
    return path.with_name(f".{path.name}.journal")


def _stream(path: Path) -> Iterator[Any]:
    """The whole batches of a journal, up to where it breaks off."""
    pa, journal = _arrow(), _journal(path)
    if not journal.exists():
        return
    with journal.open("rb") as file:
        try:
            yield from pa.ipc.open_stream(file)
        except (pa.ArrowInvalid, OSError):
            return


def _parquet(path: Path) -> Iterator[Any]:
    if not path.exists():
        return
    yield from extra("pyarrow.parquet", of="lm").ParquetFile(path).iter_batches(ROW_GROUP)


def _count(batches: Iterator[Any]) -> int:
    return sum(batch.num_rows for batch in batches)


def _settle(path: Path) -> None:
    """Make the file of a journal that knows more than it."""
    if _count(_stream(path)) > _count(_parquet(path)):
        _finish(path)


def _finish(path: Path) -> None:
    """The journal as Parquet, in groups of rows that do not depend on the lengths of documents."""
    pa, pq = _arrow(), extra("pyarrow.parquet", of="lm")
    temporary = path.with_name(f".{path.name}.part")
    with _journal(path).open("rb") as file, pa.ipc.open_stream(file) as stream:
        of = stream.schema
    try:
        with pq.ParquetWriter(temporary, of, compression="zstd") as writer:
            waiting: list[Any] = []
            for batch in _stream(path):
                waiting.append(batch)
                if sum(each.num_rows for each in waiting) >= ROW_GROUP:
                    writer.write_table(pa.Table.from_batches(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _journal(path).unlink()
