"""Writing a teacher cache: shard by shard, each under a temporary name until it is whole, so that a run that is killed
goes on where its last whole shard ends.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kullback._errors import BadInput
from kullback.forms.sparse import Drawn, TopK
from kullback.kit.extras import extra
from kullback.language.windows import IGNORED, Window

from .format import (
    KEY,
    PATTERN,
    CacheSettings,
    Numbers,
    Shard,
    block_of,
    parquet_options,
    path_of,
    schema,
    shards_in,
    to_arrow,
)

GROUP_TOKENS = 1 << 13  # of a row group: what is in memory, and what is read, at once


class Task(NamedTuple):
    """A window of a document, for a teacher to describe."""

    document: str
    number: int
    window: Window

    @property
    def described(self) -> Numbers:
        """(L,) bool: whether what comes after each token is scored."""
        found: Numbers = np.array([*self.window.labels[1:], IGNORED]) != IGNORED
        return found

    def generator(self, seed: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Of this window's draws, whatever was drawn before."""
        whole = hashlib.sha256(f"{seed}/{self.number}/{self.window.start}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(whole[:8], "little") >> 1)


Forms = Sequence[TopK | Drawn]
Teacher = Callable[[Sequence[Task]], Sequence[Forms]]
"""Gives, for each window of a batch, the forms of its described positions: parts of their rows, in order."""


@dataclass(frozen=True)
class Written:
    """A cache, as far as it was written."""

    folder: Path
    settings: CacheSettings
    windows: int
    tokens: int
    """That are described."""
    size: int
    """Of the files, in bytes."""
    left_out: float | None
    """Mean over the tokens."""
    complete: bool

    @property
    def dense_bytes_per_token(self) -> int:
        """Of log-probabilities of all classes in float16."""
        return 2 * self.settings.num_classes

    @property
    def bytes_per_token(self) -> float:
        """Of the files, for each token that is described."""
        return self.size / max(self.tokens, 1)


def written(folder: Path) -> Written | None:
    """What is in a folder; None for a folder without a cache. Raises: BadInput."""
    shards = shards_in(folder)
    return summary(folder, shards) if shards else None


def summary(folder: Path, shards: Sequence[Shard]) -> Written:
    """Of the shards of a cache."""
    tokens = sum(shard.tokens for shard in shards)
    masses = [shard.left_out * shard.tokens for shard in shards if shard.left_out is not None]
    return Written(
        folder=folder,
        settings=shards[0].settings,
        windows=sum(sum(shard.windows) for shard in shards),
        tokens=tokens,
        size=sum(shard.size for shard in shards),
        left_out=sum(masses) / max(tokens, 1) if masses else None,
        complete=shards[-1].last,
    )


def write_cache(
    folder: str | Path,
    settings: CacheSettings,
    tasks: Iterable[Task],
    teacher: Teacher,
    *,
    batch: int = 8,
    on_tokens: Callable[[int], None] = lambda done: None,
) -> Written:
    """Write a cache, or go on with the one in the folder.

    Whole shards stay; their windows are compared with `tasks`, and the teacher is asked only about what comes after
    them, in the batches in which it would have been asked. So the files are those of a run that nothing stopped, byte
    by byte where the teacher gives the same numbers again.

    Args:
        folder: made if need be.
        tasks: the windows, documents in order and each document's windows together.
        teacher: see `Teacher`. Drawn classes come from `task.generator(settings.seed)`.
        batch: windows for which it is asked at once.
        on_tokens: called with the number of tokens of all windows done, those of an earlier run included.

    Raises: BadInput: the folder holds a cache of another tokenizer, teacher, text or of other settings; no windows;
        a form that does not fit the settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = shards_in(folder)
    if before and (found := before[0].settings.differs(settings)):
        raise BadInput(f"{folder}: holds a cache already, and {found}. Name another folder")
    settings = before[0].settings if before else settings  # with the names that were given first
    for left in folder.glob(f".{PATTERN}.*.part"):  # of a run that was killed
        left.unlink(missing_ok=True)
    if before and before[-1].last:
        _compare(before, tasks)
        return summary(folder, before)
    shards, done = list(before), 0
    for number, (part, last) in enumerate(_parts(tasks, settings.shard_tokens)):
        if number < len(before):
            _compare([before[number]], part)
            if last:
                raise BadInput(_other_text(folder, "ends before what the cache holds of it"))
        else:
            with _Unfinished(folder, settings, number) as file:
                for start in range(0, len(part), batch):
                    asked = part[start : start + batch]
                    file.add(asked, teacher(asked))
                    on_tokens(done + sum(len(task.window.ids) for task in part[: start + len(asked)]))
                shards.append(file.finish(last))
        done += sum(len(task.window.ids) for task in part)
        on_tokens(done)
    if not shards:
        raise BadInput("there is no token to describe: each document has at most one. Give a longer text")
    return summary(folder, shards)


class _Unfinished:
    """A shard under a temporary name."""

    def __init__(self, folder: Path, settings: CacheSettings, number: int) -> None:
        self.path, self.settings, self.number = path_of(folder, number), settings, number
        self.temporary = folder / f".{self.path.name}.{os.getpid()}.part"
        self.waiting: list[tuple[Task, Forms]] = []
        self.windows: list[int] = []
        self.checksums: list[str] = []
        self.masses: list[float] = []
        self.tokens = 0

    def __enter__(self) -> "_Unfinished":
        parquet = extra("pyarrow.parquet", of="lm")
        self.writer: Any = parquet.ParquetWriter(
            self.temporary, schema(self.settings), **parquet_options(self.settings)
        )
        return self

    def __exit__(self, *caught: object) -> None:
        self.writer.close()
        self.temporary.unlink(missing_ok=True)

    def add(self, tasks: Sequence[Task], forms: Sequence[Forms]) -> None:
        """Windows that were described."""
        for task, form in zip(tasks, forms, strict=True):
            _check(task, form, self.settings)
            self.waiting.append((task, form))
            if sum(len(task.window.ids) for task, _ in self.waiting) >= GROUP_TOKENS:
                self._write()

    def finish(self, last: bool) -> Shard:
        """Give it its name."""
        self._write()
        shard = Shard(
            path=self.path,
            settings=self.settings,
            number=self.number,
            last=last,
            windows=tuple(self.windows),
            tokens=self.tokens,
            left_out=sum(self.masses) / self.tokens if self.settings.policy == "top-k" else None,
            checksums=tuple(self.checksums),
            size=0,
        )
        self.writer.add_key_value_metadata({KEY.decode(): shard.metadata().decode()})
        self.writer.close()
        with self.temporary.open("rb+") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self.path)
        return replace(shard, size=self.path.stat().st_size)

    def _write(self) -> None:
        if not self.waiting:
            return
        tasks, forms = zip(*self.waiting, strict=True)
        self.waiting = []
        block = block_of(
            self.settings,
            documents=[(task.number, task.document) for task in tasks],
            starts=[task.window.start for task in tasks],
            windows=[task.window.ids for task in tasks],
            described=[task.described for task in tasks],
            forms=forms,
        )
        self.writer.write_table(to_arrow(block, self.settings), row_group_size=len(tasks))
        self.windows.append(len(tasks))
        self.checksums.append(block.digest())
        self.tokens += int((block.entries > 0).sum())
        if block.left_out is not None:
            self.masses.append(float(block.left_out.sum(dtype=np.float64)))


def _parts(tasks: Iterable[Task], shard_tokens: int) -> Iterator[tuple[list[Task], bool]]:
    """(the windows of a shard, whether it is the last), one shard ahead."""
    ready: list[Task] | None = None
    part: list[Task] = []
    tokens = 0
    for task in tasks:
        if ready is not None:
            yield ready, False
            ready = None
        part.append(task)
        tokens += len(task.window.ids)
        if tokens >= shard_tokens:
            ready, part, tokens = part, [], 0
    if ready or part:
        yield ready or part, True


def _check(task: Task, forms: Forms, settings: CacheSettings) -> None:
    """Forms that fit the settings, with a row for each described position."""
    needed = TopK if settings.policy == "top-k" else Drawn
    for form in forms:
        if type(form) is not needed or form.num_classes != settings.num_classes:
            what = f"a {type(form).__name__} of {getattr(form, 'num_classes', 'no')} classes"
            raise BadInput(f"the teacher gave {what}, but a {needed.__name__} of {settings.num_classes} is needed")
        ids, _, *counts = form.tensors
        if isinstance(form, Drawn):
            if not bool((counts[0].sum(-1) == settings.k).all()):
                raise BadInput(f"the teacher drew another number of classes than {settings.k}")
        elif ids.shape[-1] != settings.k or form.temperature != 1.0:
            raise BadInput(
                f"the teacher gave {ids.shape[-1]} classes at temperature {form.temperature:g}, but {settings.k} are "
                "needed, by top_k(logits, k, temperature=...), which keeps them at it"
            )
    rows, shapes = int(task.described.sum()), [tuple(form.batch_shape) for form in forms]
    if any(len(shape) != 1 for shape in shapes) or sum(n for (n,) in shapes) != rows:
        raise BadInput(f"the teacher gave rows of shapes {shapes}, but there are {rows} to describe")


def _compare(shards: Sequence[Shard], tasks: Iterable[Task]) -> None:
    """The windows of whole shards against the text of this run."""
    given = iter(tasks)
    folder = shards[0].path.parent
    for index, name, start, ids in (window for shard in shards for window in windows_of(shard)):
        task = next(given, None)
        if task is None:
            raise BadInput(_other_text(folder, "ends before what the cache holds of it"))
        if (task.number, task.document, task.window.start) != (index, name, start) or task.window.ids != ids:
            raise BadInput(_other_text(folder, f"is another one from token {start} of {name!r} on"))
    if next(given, None) is not None:
        raise BadInput(_other_text(folder, "goes on behind the cache's end"))


def windows_of(shard: Shard) -> Iterator[tuple[int, str, int, list[int]]]:
    """(document index, document, start, ids) of each window, without the teacher's columns."""
    parquet = extra("pyarrow.parquet", of="lm")
    columns = ["document_index", "document", "start", "input_ids"]
    with parquet.ParquetFile(shard.path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            yield from zip(*(table.column(name).to_pylist() for name in columns), strict=True)


def _other_text(folder: Path, how: str) -> str:
    return (
        f"{folder}: holds a cache already, and the text {how}. Name another folder, or give the text it was begun with"
    )
