"""A teacher's answers on disk: what a file of a teacher cache holds, and how arrays become its columns and come back.

A cache is a folder of Parquet files. A row is a window of a document's tokens; `teacher_ids[j]` and
`teacher_log_probs[j]` describe what comes after `input_ids[j]`, and are empty where nothing is scored there.
docs/caches.md lists every column and key.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kullback._errors import BadInput
from kullback.forms.sparse import Drawn, TopK
from kullback.kit.extras import extra
from kullback.language.fingerprints import Fingerprint

VERSION = 1
KEY = b"kullback"  # of the files' metadata: one JSON document
PATTERN = "teacher-*.parquet"
LOG_PROBS_ERROR = "float16: at most |log p| / 2048, and 3e-8 where that is less"

Policy = Literal["top-k", "drawn"]
POLICIES: tuple[Policy, ...] = ("top-k", "drawn")
Numbers = np.ndarray[Any, np.dtype[Any]]

_ABOUT = {
    "document": "name of the document",
    "document_index": "number of the document, in the order of the text",
    "start": "how many of the document's tokens come before this window",
    "input_ids": "the tokens of the window",
    "teacher_ids": "row j: the classes kept of what comes after input_ids[j]; empty where it is not scored",
    "teacher_log_probs": "row j: the teacher's natural log-probabilities of teacher_ids[j]",
    "teacher_counts": "row j: how often each of teacher_ids[j] was drawn",
    "left_out": "entry j: the mass of all classes that are not in teacher_ids[j]; null where that is empty",
}


@dataclass(frozen=True)
class CacheSettings:
    """What a cache is of. Two files belong together, and a run goes on with a folder, only where all of it is equal.

    Attributes:
        teacher: name and hash of the model.
        tokenizer_hash: of `fingerprints.tokenizer_hash`.
        num_classes: V, the classes that the teacher scores.
        policy: "top-k", the likeliest classes, or "drawn", classes drawn with replacement.
        k: how many classes are listed, or draws are made, for each token.
        temperature: T at which the teacher is kept: softmax(scores / T).
        dtype: in which the teacher computed.
        context: tokens of a window, at most.
        overlap: how many tokens a window repeats of the one before.
        seed: of the draws; None for "top-k".
        shard_tokens: a file is ended where its windows have as many tokens.
        text: the text in a word or two, such as its path; told to people, and not compared.
    """

    teacher: Fingerprint
    tokenizer_hash: str
    num_classes: int
    policy: Policy
    k: int
    temperature: float = 1.0
    dtype: str = "float32"
    context: int = 512
    overlap: int = 1
    seed: int | None = None
    shard_tokens: int = 1 << 17
    text: str = ""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise BadInput(f"the policy is {self.policy!r}; write {' or '.join(POLICIES)}")
        most = self.num_classes if self.policy == "top-k" else math.inf
        if not 1 <= self.k <= most:
            upper = f" to {self.num_classes}, the number of classes" if self.policy == "top-k" else ""
            raise BadInput(f"k is {self.k}; write a number from 1{upper}")
        if not 0.0 < self.temperature < math.inf:
            raise BadInput(f"the temperature is {self.temperature}; write a finite number above 0")
        if (self.seed is None) != (self.policy == "top-k"):
            raise BadInput("drawn classes need a seed, and the likeliest ones have none")

    @property
    def id_dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integers that hold V classes."""
        return np.min_scalar_type(self.num_classes - 1)

    @property
    def count_dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integers that hold the count of one class."""
        return np.min_scalar_type(self.k)

    def to_json(self) -> dict[str, Any]:
        """For the metadata."""
        return asdict(self) | {"teacher": self.teacher._asdict()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "CacheSettings":
        """As `to_json` wrote it; other keys are left alone."""
        known = {field.name: found[field.name] for field in fields(cls)}
        return cls(**known | {"teacher": Fingerprint(**found["teacher"])})

    def differs(self, other: "CacheSettings") -> str | None:
        """What is different, in words, or None. `self` is what is there, `other` what is given."""
        names = {
            "tokenizer_hash": "the tokenizer",
            "teacher": "the teacher",
            "num_classes": "the number of classes",
        }
        for name in (*names, *(f.name for f in fields(self) if f.name not in (*names, "text"))):
            mine, its = getattr(self, name), getattr(other, name)
            if name == "teacher" and mine.hash == its.hash:
                continue
            if mine != its:
                return f"{names.get(name, name)} is {_said(mine)} there and {_said(its)} here"
        return None


@dataclass
class Block:
    """Windows as flat arrays: a row group of a file.

    W windows of T tokens in all, of which some have a row of E entries in all:
        document [W], document_index (W,), start (W,), lengths (W,); input_ids (T,), entries (T,): how many each has;
        ids (E,), log_probs (E,), counts (E,) or None; left_out (R,) for the rows with entries, or None.
    """

    document: list[str]
    document_index: Numbers
    start: Numbers
    lengths: Numbers
    input_ids: Numbers
    entries: Numbers
    ids: Numbers
    log_probs: Numbers
    counts: Numbers | None
    left_out: Numbers | None

    @property
    def nbytes(self) -> int:
        """Of the arrays."""
        return sum(x.nbytes for x in self._arrays().values())

    def digest(self) -> str:
        """SHA-256 of the content, however Parquet lays it out."""
        whole = hashlib.sha256()
        for name, x in self._arrays().items():
            whole.update(f"{name} {x.dtype.newbyteorder('<').str} {x.size}\n".encode())
            whole.update(np.ascontiguousarray(x.astype(x.dtype.newbyteorder("<"), copy=False)).data)
        return whole.hexdigest()

    def _arrays(self) -> dict[str, Numbers]:
        names = "\0".join(self.document).encode()
        found = {"document": np.frombuffer(names, np.uint8)}
        others = [field.name for field in fields(self)[1:]]
        return found | {name: getattr(self, name) for name in others if getattr(self, name) is not None}


def block_of(
    settings: CacheSettings,
    documents: Sequence[tuple[int, str]],
    starts: Sequence[int],
    windows: Sequence[Sequence[int]],
    described: Sequence[Numbers],
    forms: Sequence[Sequence[TopK | Drawn]],
) -> Block:
    """Windows and the forms of their described positions, `described[i]` (L,) bool, each in parts, as arrays."""
    entries, ids, log_probs, counts, left_out = [], [], [], [], []
    for places, parts in zip(described, forms, strict=True):
        many = []
        for form in parts:
            of_ids, of_logs, *of_counts = (x.detach().cpu().numpy() for x in form.tensors)
            real = of_counts[0] > 0 if isinstance(form, Drawn) else np.ones(of_ids.shape, bool)
            if isinstance(form, Drawn):
                counts.append(of_counts[0][real].astype(settings.count_dtype))
            else:
                left_out.append(form.left_out.cpu().numpy().astype(np.float32))
            many.append(real.sum(-1))
            ids.append(of_ids[real].astype(settings.id_dtype))
            with np.errstate(over="ignore"):  # below -65504: no mass
                log_probs.append(of_logs[real].astype(np.float16))
        filled = np.zeros(len(places), np.int64)
        filled[places] = np.concatenate(many)
        entries.append(filled)
    drawn = settings.policy == "drawn"
    return Block(
        document=[name for _, name in documents],
        document_index=np.array([index for index, _ in documents], np.int64),
        start=np.array(starts, np.int64),
        lengths=np.array([len(window) for window in windows], np.int64),
        input_ids=np.concatenate([np.asarray(window, settings.id_dtype) for window in windows]),
        entries=np.concatenate(entries),
        ids=np.concatenate(ids),
        log_probs=np.concatenate(log_probs),
        counts=np.concatenate(counts) if drawn else None,
        left_out=None if drawn else np.concatenate(left_out),
    )


# ---------------------------------------------------------------- Arrow


def schema(settings: CacheSettings) -> Any:
    """Of the files."""
    pa: Any = extra("pyarrow", of="lm")
    ids = pa.from_numpy_dtype(settings.id_dtype)
    types = {
        "document": pa.string(),
        "document_index": pa.int64(),
        "start": pa.int64(),
        "input_ids": pa.list_(ids),
        "teacher_ids": pa.list_(pa.list_(ids)),
        "teacher_log_probs": pa.list_(pa.list_(pa.float16())),
    }
    if settings.policy == "drawn":
        types["teacher_counts"] = pa.list_(pa.list_(pa.from_numpy_dtype(settings.count_dtype)))
    else:
        types["left_out"] = pa.list_(pa.float32())
    return pa.schema([pa.field(n, of, metadata={"description": _ABOUT[n]}) for n, of in types.items()])


def to_arrow(block: Block, settings: CacheSettings) -> Any:
    """The table of a row group."""
    pa = extra("pyarrow", of="lm")
    tokens, entries = _offsets(block.lengths), _offsets(block.entries)

    def nested(values: Numbers) -> Any:
        return pa.ListArray.from_arrays(tokens, pa.ListArray.from_arrays(entries, pa.array(values)))

    columns = {
        "document": pa.array(block.document, pa.string()),
        "document_index": pa.array(block.document_index),
        "start": pa.array(block.start),
        "input_ids": pa.ListArray.from_arrays(tokens, pa.array(block.input_ids)),
        "teacher_ids": nested(block.ids),
        "teacher_log_probs": nested(block.log_probs),
    }
    if block.counts is not None:
        columns["teacher_counts"] = nested(block.counts)
    if block.left_out is not None:
        filled = np.zeros(len(block.entries), np.float32)
        filled[block.entries > 0] = block.left_out
        columns["left_out"] = pa.ListArray.from_arrays(tokens, pa.array(filled, mask=block.entries == 0))
    return pa.table(columns, schema=schema(settings))


def from_arrow(table: Any) -> Block:
    """As `to_arrow` made it. Raises: KeyError or ValueError where it did not."""
    pc = extra("pyarrow.compute", of="lm")

    def flat(name: str, depth: int) -> Numbers:
        found = table.column(name).combine_chunks()
        for _ in range(depth):
            found = found.flatten()
        values: Numbers = found.drop_null().to_numpy(zero_copy_only=False)
        return values

    def lengths(values: Any) -> Numbers:
        found: Numbers = pc.list_value_length(values).to_numpy(zero_copy_only=False).astype(np.int64)
        return found

    nested = table.column("teacher_ids").combine_chunks()
    return Block(
        document=table.column("document").to_pylist(),
        document_index=flat("document_index", 0),
        start=flat("start", 0),
        lengths=lengths(table.column("input_ids").combine_chunks()),
        input_ids=flat("input_ids", 1),
        entries=lengths(nested.flatten()),
        ids=flat("teacher_ids", 2),
        log_probs=flat("teacher_log_probs", 2),
        counts=flat("teacher_counts", 2) if "teacher_counts" in table.column_names else None,
        left_out=flat("left_out", 1) if "left_out" in table.column_names else None,
    )


def parquet_options(settings: CacheSettings) -> dict[str, Any]:
    """Of pyarrow's writer: the bytes of a number stand apart, where zstd finds the high ones alike."""
    leaf = ".list.element.list.element"
    split = ["teacher_ids" + leaf, "teacher_log_probs" + leaf, "input_ids.list.element"]
    split += ["teacher_counts" + leaf] if settings.policy == "drawn" else ["left_out.list.element"]
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": ["document"],
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        "write_statistics": ["document_index", "start"],
    }


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class Shard:
    """What the metadata of a file say of it."""

    path: Path
    settings: CacheSettings
    number: int
    last: bool
    windows: tuple[int, ...]
    """Of each row group."""
    tokens: int
    """With a row, of all windows."""
    left_out: float | None
    """The mean of the column."""
    checksums: tuple[str, ...]
    """Of each row group: `Block.digest`."""
    size: int
    """In bytes."""

    def metadata(self) -> bytes:
        """The JSON document under `KEY`."""
        document = {
            "format": "kullback teacher cache",
            "version": VERSION,
            **self.settings.to_json(),
            "log_probs": "float16",
            "log_probs_error": LOG_PROBS_ERROR,
            "shard": self.number,
            "last": self.last,
            "windows": list(self.windows),
            "tokens": self.tokens,
            "left_out": self.left_out,
            "checksum": checksum_of(self.checksums),
            "checksums": list(self.checksums),
            "torch": torch.__version__.partition("+")[0],
        }
        return json.dumps(document, ensure_ascii=False).encode()


def read_shard(path: Path) -> Shard:
    """Raises: BadInput: no file of a cache, or one that is not whole."""
    pa, parquet = extra("pyarrow", of="lm"), extra("pyarrow.parquet", of="lm")
    try:
        footer = parquet.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise BadInput(f"{path}: cannot be read as Parquet ({reason}); it is not whole") from None
    found = json.loads((footer.metadata or {}).get(KEY, b"null"))
    if not isinstance(found, dict) or "version" not in found:
        raise BadInput(f"{path}: is no file of a teacher cache; `kullback lm cache` writes them")
    if found["version"] != VERSION:
        raise BadInput(f"{path}: is a cache of version {found['version']}, but here is {VERSION}; write it again")
    shard = Shard(
        path=path,
        settings=CacheSettings.from_json(found),
        number=found["shard"],
        last=found["last"],
        windows=tuple(found["windows"]),
        tokens=found["tokens"],
        left_out=found["left_out"],
        checksums=tuple(found["checksums"]),
        size=path.stat().st_size,
    )
    if checksum_of(shard.checksums) != found["checksum"] or len(shard.checksums) != footer.num_row_groups:
        raise BadInput(f"{path}: its metadata have been changed since it was written; write it again")
    return shard


def shards_in(folder: Path) -> list[Shard]:
    """The files of a cache in their order, from 0 and without a gap; of one cache; none for a folder without any.

    Raises: BadInput.
    """
    shards = [read_shard(path) for path in sorted(folder.glob(PATTERN))]
    for number, shard in enumerate(shards):
        if shard.number != number or (shard.last and number + 1 < len(shards)):
            raise BadInput(
                f"{folder}: {shard.path.name} is part {shard.number} of a cache{', its last,' if shard.last else ''} "
                f"but stands in place {number} of {len(shards)}; the files of one cache belong together, all of them"
            )
        if found := shards[0].settings.differs(shard.settings):
            raise BadInput(f"{folder}: {shard.path.name} is of another cache than {shards[0].path.name}: {found}")
    return shards


def path_of(folder: Path, number: int) -> Path:
    """Of a shard."""
    return folder / f"teacher-{number:05d}.parquet"


def checksum_of(checksums: Sequence[str]) -> str:
    """Of a file, from those of its row groups."""
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def _offsets(lengths: Numbers) -> Numbers:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _said(value: Any) -> str:
    if isinstance(value, Fingerprint):
        return f"{value.name} ({value.hash[:12]})"
    return f"{value[:12]}" if isinstance(value, str) and len(value) == 64 else f"{value}"
