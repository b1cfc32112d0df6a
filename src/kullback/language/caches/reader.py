"""Reading a teacher cache."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kullback._errors import BadInput
from kullback.forms.sparse import Tail
from kullback.kit.extras import extra
from kullback.language.windows import IGNORED

from .format import Block, CacheSettings, Numbers, from_arrow, shards_in
from .stored import NONE, Row, StoredTeacher, unpadded

MEMORY = 256 << 20


class TeacherCache(StoredTeacher):
    """A cache that `kullback lm cache` wrote, as a teacher.

    It is read as it is asked for: in memory are the row groups that were read last, up to `memory` bytes, and eight
    bytes a window. The content of each row group is compared with its checksum when it is first read.

    Log-probabilities come back in float32 from the float16 of the file. Of a top k they are shifted, all of a row by
    the same number, so that their probabilities are 1 less the `left_out` of the file, which is float32: the mass of
    the tail is exact, and each log-probability has an error of at most |log p| / 2048 and the size of that shift.

    Args:
        folder: of the cache.
        tail: what the classes that are not listed have (docs/sparse.md); there is no default. None for drawn classes.
        memory: bytes of row groups to keep.
        incomplete: take a cache that is still being written, or was stopped, as far as it goes.

    Raises:
        BadInput: no cache, one that is not whole, or content that is not what was written.
        FormError: no tail.

    >>> TeacherCache("no/such/folder", tail="bucket")
    Traceback (most recent call last):
    kullback._errors.BadInput: no/such/folder: no such folder; `kullback lm cache --out FOLDER` writes a cache
    """

    def __init__(
        self, folder: str | Path, *, tail: Tail | None = None, memory: int = MEMORY, incomplete: bool = False
    ) -> None:
        self.folder, self.tail, self.memory = Path(folder), tail, memory
        if not self.folder.is_dir():
            raise BadInput(f"{folder}: no such folder; `kullback lm cache --out FOLDER` writes a cache")
        self._shards = shards_in(self.folder)
        if not self._shards:
            raise BadInput(f"{folder}: holds no file of a teacher cache; `kullback lm cache` writes them")
        if not self._shards[-1].last and not incomplete:
            raise BadInput(
                f"{folder}: the cache is not complete. Go on with the command that began it, or write incomplete=True "
                "to take what there is"
            )
        self.settings: CacheSettings = self._shards[0].settings
        self.num_classes, self.policy = self.settings.num_classes, self.settings.policy
        self.temperature, self.tokenizer_hash = self.settings.temperature, self.settings.tokenizer_hash
        self.check_tail()
        self._groups = [(shard, group) for shard in self._shards for group in range(len(shard.windows))]
        self._first = np.cumsum([0, *(shard.windows[group] for shard, group in self._groups)]).tolist()
        self._kept: OrderedDict[int, _Group] = OrderedDict()
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return int(self._first[-1])

    def __repr__(self) -> str:
        return f"TeacherCache({str(self.folder)!r}, {len(self)} windows of {self.settings.teacher.name})"

    @property
    def tokens(self) -> int:
        """How many the teacher describes, in all windows."""
        return sum(shard.tokens for shard in self._shards)

    @property
    def left_out(self) -> float | None:
        """The mean mass of the classes that are not listed; None for drawn ones."""
        if self.policy == "drawn":
            return None
        return sum((shard.left_out or 0.0) * shard.tokens for shard in self._shards) / self.tokens

    def row(self, place: int) -> Row:
        if not -len(self) <= place < len(self):
            raise IndexError(f"window {place} of {len(self)}")
        place %= len(self)
        group = bisect_right(self._first, place) - 1
        return self._group(group).row(place - self._first[group])

    def document_numbers(self) -> Numbers:
        return np.concatenate([column.to_numpy() for column in self._column("document_index")])

    def documents(self) -> list[str]:
        """The name of each window's document, without reading what the teacher said."""
        return [name for column in self._column("document") for name in column.to_pylist()]

    def check(self) -> None:
        """Read all of it, and compare it with its checksums. Raises: BadInput."""
        for group in range(len(self._groups)):
            self._group(group)

    def _column(self, name: str) -> Iterator[Any]:
        parquet = extra("pyarrow.parquet", of="lm")
        return (parquet.read_table(shard.path, columns=[name]).column(0) for shard in self._shards)

    def _group(self, group: int) -> "_Group":
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        shard, number = self._groups[group]
        pa, parquet = extra("pyarrow", of="lm"), extra("pyarrow.parquet", of="lm")
        try:
            with parquet.ParquetFile(shard.path) as file:
                block = from_arrow(file.read_row_group(number))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise BadInput(f"{shard.path}: {_damaged(str(error).splitlines()[0])}") from None
        if group not in self._checked:
            if block.digest() != shard.checksums[number]:
                raise BadInput(f"{shard.path}: {_damaged('its checksum is another one')}")
            self._checked.add(group)
        self._kept[group] = found = _Group(block)
        while len(self._kept) > 1 and sum(each.block.nbytes for each in self._kept.values()) > self.memory:
            self._kept.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Workers of a DataLoader read for themselves."""
        return self.__dict__ | {"_kept": OrderedDict()}


class _Group:
    """A row group in memory."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.tokens = np.concatenate([[0], np.cumsum(block.lengths)])
        self.entries = np.concatenate([[0], np.cumsum(block.entries)])
        self.rows = np.concatenate([[0], np.cumsum(block.entries > 0)])

    def row(self, place: int) -> Row:
        block = self.block
        tokens = slice(*self.tokens[place : place + 2])
        entries = block.entries[tokens]
        within = slice(self.entries[tokens.start], self.entries[tokens.stop])
        ids = block.input_ids[tokens].astype(np.int64)
        labels = np.full_like(ids, IGNORED)
        labels[1:][entries[:-1] > 0] = ids[1:][entries[:-1] > 0]
        logs = block.log_probs[within].astype(np.float32)
        if block.left_out is not None:
            left_out = block.left_out[self.rows[tokens.start] : self.rows[tokens.stop]]
            logs = _with_mass(logs.reshape(len(left_out), -1), left_out).reshape(-1)
        counts = None if block.counts is None else block.counts[within].astype(np.int64)
        return Row(
            document=block.document[place],
            number=int(block.document_index[place]),
            start=int(block.start[place]),
            input_ids=torch.from_numpy(ids),
            labels=torch.from_numpy(labels),
            teacher_ids=unpadded(entries, block.ids[within].astype(np.int64), NONE),
            teacher_log_probs=unpadded(entries, logs, 0.0),
            teacher_counts=None if counts is None else unpadded(entries, counts, 0),
        )


def _with_mass(log_probs: Numbers, left_out: Numbers) -> Numbers:
    """(R, k) shifted so that each row's probabilities sum to 1 - left_out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        wide = log_probs.astype(np.float64)
        shift = np.log1p(-left_out.astype(np.float64)) - np.log(np.exp(wide).sum(-1))
    found: Numbers = (wide + np.where(np.isfinite(shift), shift, 0.0)[:, None]).astype(np.float32)
    return found


def _damaged(reason: str) -> str:
    return f"is not what was written ({reason.rstrip('.')}); write the cache again, or copy it from where it is whole"
