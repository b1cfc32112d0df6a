"""What the models read: pieces of documents, in each of which some tokens are scored, in batches."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kullback._errors import BadInput
from kullback.language.documents import Document, documents
from kullback.language.windows import begins, token_ids, windows

Source = str | Path | Sequence[str] | Sequence[Document]


class Piece(NamedTuple):
    """Token ids that a model reads at once. Those from `scored` on are predicted; the first of them is at `position` of
    its document.
    """

    document: int
    ids: list[int]
    scored: int
    position: int

    @property
    def rows(self) -> int:
        """How many tokens are predicted."""
        return len(self.ids) - self.scored


@dataclass(frozen=True)
class Batch:
    """Pieces that go through a model together, the first of which is the `start`-th of the text."""

    start: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """(ids, mask), each (pieces, longest): short ones are filled up to the right."""
        longest = max(len(piece.ids) for piece in self.pieces)
        ids, mask = (torch.zeros(len(self.pieces), longest, dtype=torch.int64) for _ in range(2))
        for i, piece in enumerate(self.pieces):
            ids[i, : len(piece.ids)] = torch.tensor(piece.ids)
            mask[i, : len(piece.ids)] = 1
        return ids, mask

    def places(self) -> tuple[Tensor, Tensor]:
        """Where the rows that predict the scored tokens stand in what `inputs` gives: (piece, position before)."""
        which = [torch.full((piece.rows,), i) for i, piece in enumerate(self.pieces)]
        where = [torch.arange(piece.scored - 1, len(piece.ids) - 1) for piece in self.pieces]
        return torch.cat(which), torch.cat(where)

    def tokens(self) -> Tensor:
        """(rows,): the tokens that came."""
        return torch.tensor([token for piece in self.pieces for token in piece.ids[piece.scored :]])

    def labels(self) -> dict[str, np.ndarray]:
        """document and position of every row."""
        return {
            "document": np.repeat([p.document for p in self.pieces], [p.rows for p in self.pieces]).astype(np.int64),
            "position": np.concatenate([np.arange(p.position, p.position + p.rows) for p in self.pieces]).astype(
                np.int32
            ),
        }


class Reading(Protocol):
    """A text as pieces, the same ones whenever it is read."""

    def pieces(self) -> Iterator[Piece]: ...

    def names(self) -> Iterator[tuple[str, int]]:
        """Name and number of tokens of each document."""
        ...


@dataclass(frozen=True)
class Cut:
    """Documents cut into windows of `context` tokens; each token but the first of a document is scored once."""

    source: Source
    tokenizer: Any
    context: int
    limit: int | None = None  # of scored tokens

    def pieces(self) -> Iterator[Piece]:
        left = self.limit
        for number, (_, ids) in enumerate(self._documents()):
            for window in windows(ids, self.context):
                piece = Piece(number, window.ids, window.scored, window.start + window.scored)
                if left is not None and piece.rows >= left:
                    yield piece._replace(ids=piece.ids[: piece.scored + left])
                    return
                yield piece
                left = None if left is None else left - piece.rows

    def names(self) -> Iterator[tuple[str, int]]:
        return ((name, len(ids)) for name, ids in self._documents())

    def _documents(self) -> Iterator[tuple[str, list[int]]]:
        return ((document.name, token_ids(self.tokenizer, document.text)) for document in read(self.source))


@dataclass(frozen=True)
class Chunks:
    """Documents as llama.cpp reads them: one row of tokens, cut every `context` tokens; the second half of each chunk
    is scored, and what is left over is not. A chunk stands where a document does elsewhere.
    """

    source: Source
    tokenizer: Any
    context: int
    limit: int | None = None  # of scored tokens; the last chunk is whole

    def pieces(self) -> Iterator[Piece]:
        begin = self.tokenizer.bos_token_id if begins(self.tokenizer) else None
        return (chunk_piece(i, ids, begin) for i, ids in enumerate(self.ids()))

    def names(self) -> Iterator[tuple[str, int]]:
        return ((f"chunk {i}", len(ids)) for i, ids in enumerate(self.ids()))

    def ids(self) -> Iterator[list[int]]:
        """The tokens of each chunk: of the text, without those that take the place of a chunk's first."""
        kept: list[int] = []
        scored = self.context - 1 - self.context // 2
        most = None if self.limit is None else -(-self.limit // scored)
        many = 0
        for i, document in enumerate(read(self.source)):
            ids = token_ids(self.tokenizer, document.text)
            kept += ids[1:] if i and begins(self.tokenizer) else ids
            at = 0
            while len(kept) - at >= self.context and many != most:
                yield kept[at : at + self.context]
                at, many = at + self.context, many + 1
            kept = kept[at:]
            if many == most:
                return


def chunk_piece(number: int, ids: list[int], begin: int | None) -> Piece:
    """A chunk as llama.cpp runs and scores it: with a beginning-of-text token, if any, in place of its first."""
    first = len(ids) // 2 + 1
    return Piece(number, ids if begin is None else [begin, *ids[1:]], first, first)


@dataclass(frozen=True)
class Survey:
    """What a text comes to. `fingerprint` is of the ids, how they are cut, and what is scored of them."""

    fingerprint: str
    documents: int
    pieces: int
    tokens: int
    scored: int
    largest: int  # id
    last: int  # document

    @classmethod
    def of(cls, text: Reading) -> "Survey":
        """Raises: BadInput: nothing to score."""
        digest, many, tokens, scored, largest, seen, last = sha256(), 0, 0, 0, -1, 0, -1
        for piece in text.pieces():
            head = np.array([piece.document, piece.scored, piece.position, len(piece.ids)], dtype="<i8")
            digest.update(head.tobytes() + np.array(piece.ids, dtype="<i8").tobytes())
            many, scored, largest = many + 1, scored + piece.rows, max(largest, *piece.ids)
            tokens += piece.rows + (piece.scored if piece.document != last else 0)
            if piece.document != last:
                seen, last = seen + 1, piece.document
        if not scored:
            raise BadInput("the text has no token that follows another one, so nothing to compare; give a longer one")
        return cls(digest.hexdigest(), seen, many, tokens, scored, largest, last)


def read(source: Source) -> Iterator[Document]:
    """The documents of a file or folder, named from there, or of strings. Raises: BadInput."""
    if isinstance(source, str | Path):
        root = Path(source) if Path(source).is_dir() else Path(source).parent
        for document in documents(source):
            yield replace(document, name=document.name.removeprefix(f"{root}{os.sep}"))
        return
    for i, each in enumerate(source):
        if not isinstance(each, str | Document):
            raise BadInput(f"text holds a {type(each).__name__}, but a path, strings or documents are needed")
        yield Document(f"text {i}", each) if isinstance(each, str) else each


def batches(text: Reading, size: int, start: int = 0) -> Iterator[Batch]:
    """`size` pieces each, from the `start`-th piece on, which is a multiple of `size`."""
    pieces = islice(text.pieces(), start, None)
    while found := tuple(islice(pieces, size)):
        yield Batch(start, found)
        start += len(found)


def before(text: Reading, places: Sequence[tuple[int, int]], width: int) -> list[list[int]]:
    """The ids, at most `width`, that stand before each (document, position)."""
    wanted: dict[int, list[int]] = {}
    for i, (document, _) in enumerate(places):
        wanted.setdefault(document, []).append(i)
    found: list[dict[int, int]] = [{} for _ in places]
    for piece in text.pieces():
        start = piece.position - piece.scored
        for i in wanted.get(piece.document, ()):
            position = places[i][1]
            for at in range(max(start, position - width), min(start + len(piece.ids), position)):
                found[i][at] = piece.ids[at - start]
    return [[ids[at] for at in sorted(ids)] for ids in found]
