"""Teacher caches that others wrote: DistillKit's Parquet folders and axolotl's columns, as `StoredTeacher`s.

Neither says in its files of which tokenizer and teacher it is, nor how much mass it leaves out; nothing is checked
against them. docs/caches.md describes both formats.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from kullback._errors import BadInput, FormError
from kullback.forms.sparse import Tail, TopK
from kullback.kit.extras import extra
from kullback.language.windows import IGNORED

from .distillkit import Current, Legacy
from .format import Numbers
from .stored import NONE, Row, StoredTeacher

Holds = Literal["log-probs", "scores"]


class Decoded(NamedTuple):
    """A stored sequence: rows of classes that describe what comes after some of its positions."""

    input_ids: Sequence[int]
    labels: Sequence[int] | None
    positions: Sequence[int]
    ids: Sequence[Numbers]
    log_probs: Sequence[Numbers]


class ForeignTeacher(StoredTeacher):
    """Sequences of Parquet files, one a row. One row group is in memory at a time."""

    policy = "top-k"
    tokenizer_hash = None

    def __init__(self, path: str | Path, num_classes: int, tail: Tail, temperature: float) -> None:
        self.tail, self.temperature, self.num_classes = tail, temperature, num_classes
        self.check_tail()
        self._files = _parquet_files(Path(path))
        parquet = extra("pyarrow.parquet", of="lm")
        self._groups: list[tuple[Path, int]] = []
        counts = []
        for file in self._files:
            footer = parquet.read_metadata(file)
            self._groups += [(file, group) for group in range(footer.num_row_groups)]
            counts += [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        self._first = np.cumsum([0, *counts])
        self._kept: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return int(self._first[-1])

    def document_numbers(self) -> Numbers:
        """Each sequence is a document: the files do not say which belong together."""
        return np.arange(len(self))

    def row(self, place: int) -> Row:
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        place %= len(self)
        group = int(np.searchsorted(self._first, place, side="right")) - 1
        file, number = self._groups[group]
        if self._kept is None or self._kept[0] != group:
            with extra("pyarrow.parquet", of="lm").ParquetFile(file) as opened:
                self._kept = group, opened.read_row_group(number)
        (record,) = self._kept[1].slice(place - int(self._first[group]), 1).to_pylist()
        try:
            return self._row(place, self.decode(record))
        except (FormError, BadInput) as error:
            raise BadInput(f"{file}, sequence {place}: {error}") from None

    @abstractmethod
    def decode(self, record: Mapping[str, Any]) -> Decoded:
        """A row of the files."""

    def _row(self, place: int, found: Decoded) -> Row:
        ids = torch.tensor(found.input_ids, dtype=torch.long)
        labels = ids if found.labels is None else torch.tensor(found.labels, dtype=torch.long)
        kept = [i for i, position in enumerate(found.positions) if position + 1 < len(ids)]
        kept = [i for i in kept if labels[found.positions[i] + 1] != IGNORED]
        at = torch.tensor([found.positions[i] for i in kept], dtype=torch.long)
        classes, log_probs = _even([found.ids[i] for i in kept], [found.log_probs[i] for i in kept], self.num_classes)
        if self.tail == "renormalize":
            log_probs = log_probs.log_softmax(-1)  # whose sum above 1, by the rounding of others, does no harm
        if kept:
            TopK(classes, log_probs, self.num_classes, tail=self.tail)  # raises where it is none
        teacher_ids = torch.full((len(ids), classes.shape[-1]), NONE)
        teacher_log_probs = torch.zeros(len(ids), classes.shape[-1])
        teacher_ids[at], teacher_log_probs[at] = classes, log_probs
        described = torch.full_like(ids, IGNORED)
        described[at + 1] = labels[at + 1]
        return Row(str(place), place, 0, ids, described, teacher_ids, teacher_log_probs, None)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}


class DistillKit(ForeignTeacher):
    """A folder as DistillKit's `sample_logits` writes it: `data_0.parquet`, ...

    Row j describes what comes after input_ids[j]; the last token has none. Three layouts are told apart by their
    columns: the current one (compressed_logprobs, bytepacked_indices), the legacy one (packed_indices, exact_values,
    coeffs) and plain rows (token_ids, top_values).

    Args:
        path: the folder, or one file.
        tail: what the classes that are not listed have (docs/sparse.md).
        config: DistillKit's compression config, by its keys, without which the first two layouts cannot be read;
            None for the `compression_config.yaml` that newer versions leave in the folder.
        holds: of the legacy layout, which the files do not say: "log-probs", or "scores" less their mean, as its
            compressor makes of logits. Scores of k classes have no normaliser: they take tail="renormalize".
        num_classes: V; None for the config's d or vocab_size.
        temperature: at which the teacher was sampled.
        pad_token_id: DistillKit puts one such token at the end of a short text to get a row for the last real one;
            where it is given, that token is no label.

    Raises: BadInput: columns that are none of these, a config that is missing or does not fit the bytes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tail: Tail,
        config: Mapping[str, Any] | None = None,
        holds: Holds | None = None,
        num_classes: int | None = None,
        temperature: float = 1.0,
        pad_token_id: int | None = None,
    ) -> None:
        files = _parquet_files(Path(path))
        names = set(extra("pyarrow.parquet", of="lm").read_schema(files[0]).names)
        self.pad_token_id = pad_token_id
        self._codec: Current | Legacy | None = None
        self._scores = False
        if {"compressed_logprobs", "bytepacked_indices"} <= names:
            self._codec = Current(_config(files[0].parent, config))
        elif {"packed_indices", "exact_values", "coeffs"} <= names:
            if holds not in ("log-probs", "scores"):
                raise BadInput(
                    f"{path}: the legacy layout does not say what it holds; write holds='log-probs', or holds='scores' "
                    "if logits were compressed"
                )
            self._codec, self._scores = Legacy(_config(files[0].parent, config)), holds == "scores"
        elif not {"token_ids", "top_values"} <= names:
            raise BadInput(f"{path}: has the columns {', '.join(sorted(names))}, which no layout of DistillKit has")
        if self._scores and tail != "renormalize":
            raise FormError(
                f"DistillKit: tail is {tail!r}, but scores of k classes do not say what they leave. Write "
                "tail='renormalize'."
            )
        classes = self._codec.num_classes if num_classes is None and self._codec is not None else num_classes
        if classes is None:
            raise BadInput(f"{path}: the number of classes is not in these files; write num_classes=V")
        super().__init__(path, classes, tail, temperature)

    def decode(self, record: Mapping[str, Any]) -> Decoded:
        ids = record["input_ids"]
        labels = list(ids)
        if self.pad_token_id is not None and ids and ids[-1] == self.pad_token_id:
            labels[-1] = IGNORED
        if len(ids) < 2:
            return Decoded(ids, labels, (), (), ())
        if self._codec is None:
            classes, values = np.array(record["token_ids"]), np.array(record["top_values"], np.float32)
        else:
            classes, values = self._codec.decode(record)
        if not len(ids) - 1 <= len(classes) <= len(ids):
            raise BadInput(f"{len(classes)} rows describe {len(ids)} tokens; there is one for each but the last")
        if self._scores:
            values = np.asarray(torch.from_numpy(values).double().log_softmax(-1).float())
        return Decoded(ids, labels, range(len(classes)), list(classes), list(values))


class Axolotl(ForeignTeacher):
    """Columns of axolotl's distillation, from Parquet files that hold `input_ids` too.

    Before its preprocessing: `logprobs_field` (list of rows of log-probabilities) with `target_token_ids`, or, as vLLM
    gives them, rows of {"token": "token_id:123", "logprob": x}. There a row describes a token, and the last row the
    last token: with R rows and L tokens, row r is of token L - R + r, which comes after position L - R + r - 1; a row
    of the first token is left out. Empty rows and null are none.

    After it: `target_logprobs`, `target_token_ids`, `target_mask`, where row j describes input_ids[j + 1]. These were
    normalised over their k classes: they take tail="renormalize" only.

    Tokens whose label is -100 are not scored, where there is a column `labels`. Rows are cut to the k that axolotl
    takes: the smaller of the most and the least common number of classes, sequence by sequence.

    Args:
        path: a folder of Parquet files, or one file.
        num_classes: V.
        tail: what the classes that are not listed have (docs/sparse.md).
        logprobs_field: the column; None for preprocessed files.
        temperature: at which the log-probabilities were made.
    """

    _PREPARED: ClassVar[set[str]] = {"target_logprobs", "target_token_ids", "target_mask"}

    def __init__(
        self,
        path: str | Path,
        num_classes: int,
        *,
        tail: Tail,
        logprobs_field: str | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.logprobs_field = logprobs_field
        names = set(extra("pyarrow.parquet", of="lm").read_schema(_parquet_files(Path(path))[0]).names)
        needed = {"input_ids"} | (self._PREPARED if logprobs_field is None else {logprobs_field})
        if missing := sorted(needed - names):
            raise BadInput(
                f"{path}: has no column {', '.join(missing)}, but {', '.join(sorted(names))}; name the column of "
                "log-probabilities by logprobs_field, and tokenize the texts into input_ids first"
            )
        if logprobs_field is None and tail != "renormalize":
            raise FormError(
                f"Axolotl: tail is {tail!r}, but axolotl normalised these rows over their k classes, and what they "
                "left is lost. Write tail='renormalize', or read the column of before by logprobs_field."
            )
        super().__init__(path, num_classes, tail, temperature)

    def decode(self, record: Mapping[str, Any]) -> Decoded:
        ids, labels = record["input_ids"], record.get("labels")
        if labels is not None and len(labels) != len(ids):
            raise BadInput(f"there are {len(ids)} input_ids and {len(labels)} labels")
        if self.logprobs_field is None:
            rows = list(zip(record["target_token_ids"], record["target_logprobs"], strict=True))
            masks = record["target_mask"]
            if not len(rows) == len(masks) == len(ids):
                raise BadInput(f"there are {len(ids)} input_ids, but {len(rows)} rows and {len(masks)} masks")
            first = 0
            rows = [_masked(classes, values, mask) for (classes, values), mask in zip(rows, masks, strict=True)]
        else:
            rows = self._rows(record)
            first = max(len(ids) - len(rows), 0) - 1
            rows = rows[: len(ids)]
        k = _usual_k([len(values) for _, values in rows if len(values)])
        there = [i for i, (_, values) in enumerate(rows) if len(values) and first + i >= 0]
        return Decoded(
            ids,
            labels,
            [first + i for i in there],
            [np.array(rows[i][0][:k]) for i in there],
            [np.array(rows[i][1][:k], np.float32) for i in there],
        )

    def _rows(self, record: Mapping[str, Any]) -> list[tuple[Sequence[int], Sequence[float]]]:
        assert self.logprobs_field is not None
        values = record[self.logprobs_field] or []
        classes = record.get("target_token_ids")
        if any(isinstance(entry, Mapping) for row in values for entry in row or ()):
            listed = [[(_token(entry["token"]), entry["logprob"]) for entry in row or ()] for row in values]
            return [([i for i, _ in row], [x for _, x in row]) for row in listed]
        if classes is None:
            raise BadInput(f"{self.logprobs_field} holds numbers, but there is no column target_token_ids beside it")
        if [len(row or ()) for row in classes] != [len(row or ()) for row in values]:
            raise BadInput(f"target_token_ids and {self.logprobs_field} have rows of different lengths")
        return [(i or (), x or ()) for i, x in zip(classes, values, strict=True)]


def _token(text: str) -> int:
    kind, _, number = str(text).partition(":")
    if kind != "token_id" or not number.isdigit():
        raise BadInput(f"a token is {text!r}, but 'token_id:123' is needed: texts of tokens have no certain id")
    return int(number)


def _masked(
    classes: Sequence[int], values: Sequence[float], mask: Sequence[int]
) -> tuple[Sequence[int], Sequence[float]]:
    kept = [i for i, m in enumerate(mask) if m]
    return [classes[i] for i in kept], [values[i] for i in kept]


def _usual_k(lengths: Sequence[int]) -> int:
    """The smaller of the most and the least common of them, as axolotl takes it."""
    different = sorted(set(lengths))
    if not different:
        return 0
    return min(max(different, key=lengths.count), min(different, key=lengths.count))


def _even(ids: Sequence[Numbers], log_probs: Sequence[Numbers], num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, k) of rows that may differ in length; classes that are missing, or have no mass, become ones not listed."""
    k = max((len(row) for row in ids), default=1)
    if k > num_classes:
        raise BadInput(f"{k} classes are listed, but there are only {num_classes}; num_classes is V")
    made = np.full((len(ids), k), NONE, np.int64), np.full((len(ids), k), -np.inf, np.float32)
    for i, (row, values) in enumerate(zip(ids, log_probs, strict=True)):
        real = values > -math.inf
        made[0][i, : len(row)], made[1][i, : len(row)] = np.where(real, row.astype(np.int64), NONE), values
        if (empty := made[0][i] == NONE).any():
            others = np.setdiff1d(np.arange(min(2 * k, num_classes)), made[0][i])
            made[0][i, empty] = others[: empty.sum()]
    return torch.from_numpy(made[0]), torch.from_numpy(made[1])


def _config(folder: Path, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if config is not None:
        return config
    beside = folder / "compression_config.yaml"
    if not beside.is_file():
        raise BadInput(
            f"{folder}: DistillKit's files do not say how they are compressed, and there is no {beside.name} beside "
            "them; write config={...}, the compression config that they were made with"
        )
    found: Mapping[str, Any] = extra("yaml", of="lm").safe_load(beside.read_text())
    return found


def _parquet_files(path: Path) -> list[Path]:
    """In the order of the numbers in their names."""
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.parquet"), key=lambda p: (int("".join(filter(str.isdigit, p.stem)) or 0), p.name))
    if not found:
        raise BadInput(f"{path}: {'holds no Parquet file' if path.is_dir() else 'no such file or folder'}")
    return found
