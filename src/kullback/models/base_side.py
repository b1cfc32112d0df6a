"""llama.cpp's base file as a reference, with the text that is in it."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kullback.forms.finite import FiniteForm, Logits

from .base_file import BaseFile
from .measuring import Rows
from .text import Batch, Piece, chunk_piece


@dataclass(frozen=True)
class BaseRows(Rows):
    """Rows that are read when they are needed; `form` holds none."""

    file: BaseFile | None = None
    batch: Batch | None = None
    on: str = "cpu"

    @property
    def device(self) -> torch.device:
        return torch.device(self.on)

    def part(self, rows: slice) -> FiniteForm:
        assert self.file is not None
        assert self.batch is not None
        found = []
        for i, piece in enumerate(self.batch.pieces):
            first, last = (min(max(at - i * self.file.rows, 0), self.file.rows) for at in (rows.start, rows.stop))
            if first < last:
                found.append(self.file.logits(piece.document, first, last).data[:, : self.num_classes])
        return Logits(torch.cat(found).to(self.device))


class BaseReference:
    """A base file: a `Side` and the text that it was made of. `begin` takes the place of each chunk's first token."""

    longest: int | None = None
    tokenizer: Any = None

    def __init__(self, path: Path) -> None:
        self.file, self.path, self.name = BaseFile(path), path, path.name
        self.about = (
            f"llama.cpp's base file, {self.file.n_chunk:,} chunks of {self.file.n_ctx:,} tokens, 16 bits a class"
        )
        self.begin: int | None = None
        weakref.finalize(self, self.file.close)
        self.device = torch.device("cpu")

    def pieces(self) -> Iterator[Piece]:
        return (chunk_piece(i, self.file.tokens(i).tolist(), self.begin) for i in range(self.file.n_chunk))

    def names(self) -> Iterator[tuple[str, int]]:
        return ((f"chunk {i}", self.file.n_ctx) for i in range(self.file.n_chunk))

    def rows(self, batch: Batch, num_classes: int | None = None) -> Rows:
        n = self.file.n_vocab if num_classes is None else num_classes
        return BaseRows(Logits(torch.empty(0, n)), file=self.file, batch=batch, on=str(self.device))


def same_ids(reference: BaseReference, chunks: Iterator[list[int]]) -> tuple[int, int] | None:
    """The first (chunk, token) at which a text has not the ids of the file; None if it has them all."""
    for i in range(reference.file.n_chunk):
        here, there = next(chunks, None), reference.file.tokens(i).tolist()
        if here is None:
            return i, 0
        # a beginning-of-text token may stand in the file, or be put there only while a model runs
        for at, (a, b) in enumerate(zip(here, there, strict=True)):
            if a != b and not (i == 0 and at == 0):
                return i, at
    return None


def is_base_file(given: Any) -> bool:
    """Whether it is the path of a base file."""
    if not isinstance(given, str | Path) or not Path(given).is_file():
        return False
    with Path(given).open("rb") as file:
        return file.read(8) == b"_logits_"
