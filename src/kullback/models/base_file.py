"""llama.cpp's base file (`--kl-divergence-base`, `--save-all-logits`): log-probabilities of a reference in 16 bits.

    bytes                   what
    0                       the eight letters _logits_
    8, 12, 16               int32 n_ctx, n_vocab, n_chunk
    20                      int32 ids of n_chunk texts of n_ctx tokens
    20 + 4 n_ctx n_chunk    a row for each of the positions n_ctx//2 ... n_ctx-2 of each text, which predicts the token
                            after it: float32 scale, float32 least, then n_vocab uint16 codes, and one more that means
                            nothing if n_vocab is odd

All little-endian, without padding, version or checksum. log p = scale · code + least. A class more than 16 nats below
the largest is stored as 16 nats below it, so that -inf comes back with mass.

What 16 bits cost. The step is at most 16/65535 = 2.4e-4 nats, the error half of it, and rows sum to 1 only up to about
3e-5: they are read as `Logits`, whose meaning normalises them. KL(decoded‖exact) is then about 1e-9 nats a token where
no class is cut off, never negative, and no comparison with such a reference means anything below it; what is cut off
adds up to n_vocab · e^-16 of the largest class's mass. llama.cpp's own formula neither normalises nor counts classes
of log p <= -16: of the same rows it gives ±2.6e-5, negative for half of the tokens.

Chunks are texts cut every n_ctx tokens, not documents: neighbours are dependent, and an error clustered by chunk is a
lower bound of that by document.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from kullback._errors import BadInput
from kullback.forms.finite import Logits
from kullback.forms.linear import LinearLogits

MAGIC = b"_logits_"
HEADER = 20
DEPTH = 16.0  # nats below the largest that are told apart
CODES = 65535
_BLOCK = 1 << 22  # scores at a time


def scored(n_ctx: int) -> int:
    """How many positions of a chunk have a row."""
    return n_ctx - 1 - n_ctx // 2


def row_bytes(n_vocab: int) -> int:
    """What one row takes."""
    return 2 * (2 * ((n_vocab + 1) // 2) + 4)


def size(n_ctx: int, n_vocab: int, n_chunk: int) -> int:
    """Bytes of a whole file.

    >>> size(512, 128256, 1)
    65414668
    """
    return HEADER + 4 * n_ctx * n_chunk + row_bytes(n_vocab) * n_chunk * scored(n_ctx)


class BaseFile:
    """A base file that is read a few rows at a time; a context manager.

    Args:
        path: of the file.
        num_classes: the tokenizer's number of classes, which n_vocab must be; None: not checked.

    Attributes: n_ctx, n_vocab, n_chunk, as above; rows: how many positions of a chunk are scored.

    llama.cpp replaces the first token of a chunk by BOS while it runs the model, where the vocabulary asks for it; the
    file has the token of the text. Whoever runs a candidate does the same: `tokens` gives the text's.

    Raises: BadInput: no such file, not one of these, cut short, too long, or of another vocabulary; the message names
        the byte.
    """

    def __init__(self, path: Path, num_classes: int | None = None) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
        try:
            self.n_ctx, self.n_vocab, self.n_chunk = self._header(num_classes)
        except BaseException:
            self._file.close()
            raise
        self.rows = scored(self.n_ctx)

    def _header(self, num_classes: int | None) -> tuple[int, int, int]:
        held = os.fstat(self._file.fileno()).st_size
        head = self._file.read(HEADER)
        if head[:8] != MAGIC:
            raise self._bad(0, f"begins with {head[:8]!r} and not with {MAGIC!r}; it is no base file of llama.cpp")
        if len(head) < HEADER:
            raise self._bad(held, f"ends within the header of {HEADER} bytes")
        n_ctx, n_vocab, n_chunk = (int(x) for x in np.frombuffer(head, "<i4", 3, 8))
        for at, name, value, least in (
            (8, "n_ctx", n_ctx, 3),
            (12, "n_vocab", n_vocab, 1),
            (16, "n_chunk", n_chunk, 1),
        ):
            if value < least:
                raise self._bad(at, f"says that {name} is {value}; at least {least} makes sense. The file is damaged")
        if num_classes is not None and n_vocab != num_classes:
            raise self._bad(
                12, f"says that n_vocab is {n_vocab}, but the tokenizer has {num_classes} classes. Take the base file "
                "of this vocabulary"
            )  # fmt: skip
        whole = size(n_ctx, n_vocab, n_chunk)
        if held < whole:
            raise self._bad(held, self._cut(held, n_ctx, n_vocab, n_chunk, whole))
        if held > whole:
            raise self._bad(
                whole, f"goes on for {held - whole} bytes after the last row of {n_chunk} chunks of {n_ctx} tokens and "
                f"{n_vocab} classes; the header or the file is damaged"
            )  # fmt: skip
        return n_ctx, n_vocab, n_chunk

    @staticmethod
    def _cut(held: int, n_ctx: int, n_vocab: int, n_chunk: int, whole: int) -> str:
        rows = max(0, held - HEADER - 4 * n_ctx * n_chunk) // row_bytes(n_vocab)
        return (
            f"ends, where {n_chunk} chunks of {n_ctx} tokens and {n_vocab} classes take {whole} bytes: it has "
            f"{rows // scored(n_ctx)} whole chunks. Write it anew; an interrupted run leaves such a file"
        )

    def _bad(self, at: int, what: str) -> BadInput:
        return BadInput(f"{self.path}: byte {at} {what}")

    def tokens(self, chunk: int) -> npt.NDArray[np.int32]:
        """The ids of a chunk's text, (n_ctx,). Raises: BadInput: an id outside of the vocabulary."""
        at = HEADER + 4 * self.n_ctx * self._place(chunk)
        found = self._read(at, "<i4", self.n_ctx).astype(np.int32)
        outside = np.flatnonzero((found < 0) | (found >= self.n_vocab))
        if len(outside):
            first = int(outside[0])
            raise self._bad(
                at + 4 * first, f"is the id {found[first]} of token {first} of chunk {chunk}, but n_vocab is "
                f"{self.n_vocab}. The file is damaged"
            )  # fmt: skip
        return found

    def positions(self) -> npt.NDArray[np.int32]:
        """Of the tokens that rows predict, in any chunk: n_ctx//2 + 1 ... n_ctx - 1."""
        return np.arange(self.n_ctx // 2 + 1, self.n_ctx, dtype=np.int32)

    def logits(self, chunk: int, first: int = 0, last: int | None = None) -> Logits:
        """The reference's distributions of rows first ... last-1 of a chunk, float32; row k predicts the token at
        `positions()[k]`.

        Raises: BadInput: what a row says of itself is no log-probability.
        """
        last = self.rows if last is None else last
        if not 0 <= first <= last <= self.rows:
            raise IndexError(f"rows {first} to {last} of {self.rows}")
        length = row_bytes(self.n_vocab)
        row = self._place(chunk) * self.rows + first
        at = HEADER + 4 * self.n_ctx * self.n_chunk + row * length
        raw = self._read(at, "<u2", (last - first) * (length // 2)).reshape(last - first, length // 2)
        scale, least = raw[:, :4].copy().view("<f4").astype(np.float32).T[:, :, None]
        with np.errstate(invalid="ignore", over="ignore"):
            top = scale * np.float32(CODES) + least
            wrong = np.flatnonzero(~((scale >= 0.0) & (least <= 0.0) & (top <= 1e-3) & np.isfinite(least)))
        if len(wrong):
            k = int(wrong[0])
            raise self._bad(
                at + k * length, f"begins row {first + k} of chunk {chunk}, of scale {scale[k, 0]:g} and least "
                f"log-probability {least[k, 0]:g}, which none is. The file is damaged"
            )  # fmt: skip
        found = raw[:, 4 : 4 + self.n_vocab].astype(np.float32)
        found *= scale
        found += least
        return Logits(torch.from_numpy(found))

    def _place(self, chunk: int) -> int:
        if not 0 <= chunk < self.n_chunk:
            raise IndexError(f"chunk {chunk} of {self.n_chunk}")
        return chunk

    def _read(self, at: int, dtype: str, count: int) -> npt.NDArray[Any]:
        self._file.seek(at)
        found = np.frombuffer(self._file.read(count * np.dtype(dtype).itemsize), dtype)
        if len(found) < count:  # it shrank since it was opened
            raise self._bad(at + found.nbytes, "is the last one that can be read")
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "BaseFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class BaseFileWriter:
    """Write a base file row by row, under a temporary name until it is whole; a context manager.

    Args:
        path: of the file there will be.
        tokens: (n_chunk, n_ctx), the texts' ids, without the BOS that replaces the first of a chunk while a model runs.
        n_vocab: V, which llama.cpp's reader compares with its vocabulary.
        keep: go on after so many rows that an earlier writer of the same tokens left; see `recorded`. None: begin.

    Raises: BadInput: chunks too short, ids outside of the vocabulary, other tokens or fewer rows than are to be kept;
        on leaving, rows that are missing, which then stay for a later writer.
    """

    def __init__(
        self,
        path: Path,
        tokens: npt.NDArray[Any] | Sequence[Sequence[int]],
        n_vocab: int,
        *,
        keep: int | None = None,
    ) -> None:
        ids = np.asarray(tokens)
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 3:
            raise BadInput(f"{path}: tokens have shape {ids.shape}; write (n_chunk, n_ctx) with n_ctx of at least 3")
        if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= n_vocab:
            raise BadInput(f"{path}: token ids are integers from 0 to {n_vocab - 1}, and these are not")
        self.path, self.n_vocab = path, n_vocab
        self.rows_left = ids.shape[0] * scored(ids.shape[1])
        head = MAGIC + np.array([ids.shape[1], n_vocab, ids.shape[0]], "<i4").tobytes() + ids.astype("<i4").tobytes()
        if keep is None:
            self._file: BinaryIO = _unfinished(path).open("wb")
            self._file.write(head)
        else:
            self._file = self._kept(head, keep)
            self.rows_left -= keep

    def _kept(self, head: bytes, keep: int) -> BinaryIO:
        end = len(head) + keep * row_bytes(self.n_vocab)
        try:
            file = _unfinished(self.path).open("r+b")
        except FileNotFoundError:
            raise BadInput(f"{self.path}: there is nothing to go on with") from None
        same, held = file.read(len(head)) == head, os.fstat(file.fileno()).st_size
        if not same or held < end:
            file.close()
            has = f"{(held - len(head)) // row_bytes(self.n_vocab)} rows" if same else "other tokens or classes"
            raise BadInput(f"{self.path}: what is unfinished has {has}, of which {keep} rows were to be kept")
        file.seek(end)
        file.truncate()
        return file

    def append(self, rows: Logits | LinearLogits) -> None:
        """The next rows in the file's order, any number of them, (n,).

        Raises: BadInput: another V, more rows than the tokens have, NaN or +inf.
        """
        n = rows.batch_shape.numel()
        if rows.num_classes != self.n_vocab or len(rows.batch_shape) != 1:
            raise BadInput(f"{self.path}: rows have shape {tuple(rows.shape)}; write (n, {self.n_vocab})")
        if n > self.rows_left:
            raise BadInput(f"{self.path}: {n} rows are given where {self.rows_left} are left")
        step = max(1, _BLOCK // self.n_vocab)
        with torch.no_grad():
            for at in range(0, n, step):
                part = rows[at : at + step]
                part = part.logits() if isinstance(part, LinearLogits) else part
                scores = (part.data.float() / part.temperature).cpu().numpy()
                self._file.write(encode(scores, str(self.path)).tobytes())
        self._file.flush()
        self.rows_left -= n

    def close(self) -> None:
        """Give the file its name."""
        if self._file.closed:
            return
        self._file.close()
        if self.rows_left:
            raise BadInput(f"{self.path}: is unfinished, {self.rows_left} of its rows are missing")
        _unfinished(self.path).replace(self.path)

    def __enter__(self) -> "BaseFileWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self._file.close()
            return
        self.close()


def recorded(path: Path) -> int:
    """How many rows an interrupted writer of `path` left: 0 where there is none."""
    if not _unfinished(path).exists():
        return 0
    with _unfinished(path).open("rb") as file:
        head, held = file.read(HEADER), os.fstat(file.fileno()).st_size
    if len(head) < HEADER:
        return 0
    n_ctx, n_vocab, n_chunk = (int(x) for x in np.frombuffer(head, "<i4", 3, 8))
    return max(0, held - HEADER - 4 * n_ctx * n_chunk) // row_bytes(n_vocab)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def encode(scores: npt.NDArray[np.float32], whose: str = "scores") -> npt.NDArray[np.uint16]:
    """Rows as the file has them, (n, row_bytes/2), in llama.cpp's own arithmetic: float32, but the sum of exponentials.

    Only the last bit of `least` depends on who computes e^x.

    Raises: BadInput: a row with NaN or +inf, or of -inf only.
    """
    n, num_classes = scores.shape
    top = scores.max(-1, keepdims=True)
    if not np.isfinite(top).all():
        raise BadInput(f"{whose}: row {int(np.argmin(np.isfinite(top)))} of {n} has NaN, +inf, or only -inf")
    bottom = np.maximum(scores.min(-1, keepdims=True), top - np.float32(DEPTH))
    log_sum = np.log(np.exp(scores - top).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    scale = (top - bottom) / np.float32(CODES)
    found = np.zeros((n, row_bytes(num_classes) // 2), "<u2")
    found[:, :4] = np.concatenate([scale, bottom - top - log_sum], -1).astype("<f4").view("<u2")
    inverse = np.where(scale > 0, np.float32(1.0) / np.where(scale > 0, scale, np.float32(1.0)), np.float32(0.0))
    steps = np.where(scores > bottom, inverse * (np.maximum(scores, bottom) - bottom), np.float32(0.0))
    found[:, 4 : 4 + num_classes] = np.rint(steps)
    return found
