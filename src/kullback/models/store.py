"""A reference run that is kept: a candidate can be compared with it later, without the model that made it.

A folder:

    reference.json      what made it, of which text and with which tokenizer; size and SHA-256 of every file
    documents.parquet   name and number of tokens of each document
    head.safetensors    kind "hidden": the head's weight (V, H), and its bias
    part-*.safetensors  the pieces that were read (ids and where they are cut), and of every scored token
                        kind "hidden": the last hidden state, (rows, H): the distribution exactly, as the model gave it
                        kind "top-k": the k likeliest ids (rows, k) with log-probabilities, and the log-probability of
                        the token that came, the entropy and the largest probability, which are exact

reference.json is written last: a folder without it is unfinished.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback import Labels, cross_entropy, entropy
from kullback._errors import BadInput
from kullback.forms.finite import FiniteForm, Logits
from kullback.forms.linear import LinearLogits
from kullback.forms.sparse import TopK
from kullback.kit.extras import extra
from kullback.kit.files import write_bytes, write_json
from kullback.language.fingerprints import file_hash

from .measuring import Rows, chunks
from .scores import likeliest
from .text import Batch, Piece, Survey

FORMAT, VERSION = "kullback reference", 1
META, HEAD, DOCUMENTS = "reference.json", "head.safetensors", "documents.parquet"
KINDS = ("hidden", "top-k")
BYTES = 64 << 20  # of a part, before it is written


@dataclass(frozen=True)
class About:
    """What made a stored reference."""

    kind: str
    name: str
    about: str
    model_hash: str | None
    tokenizer_hash: str | None
    beginning: str
    num_classes: int
    dtype: str
    k: int | None
    scale: float
    softcap: float | None
    context: int
    batch_size: int
    limit: int | None
    versions: dict[str, str]


class Writer:
    """Writes a reference run, a batch after the other, each after the one before."""

    def __init__(self, folder: Path, kind: str, num_classes: int, k: int | None) -> None:
        self.folder, self.kind, self.num_classes, self.k = folder, kind, num_classes, k
        self._pieces: list[Piece] = []
        self._kept: list[dict[str, Tensor]] = []
        self._start, self._bytes = 0, 0

    def done(self, at_most: int | None = None) -> int:
        """How many pieces are written, without those behind `at_most`, which are removed."""
        at = 0
        for path in sorted(self.folder.glob("part-*.safetensors")):
            start, end = _span(path)
            if start != at or (at_most is not None and end > at_most):
                path.unlink()
                continue
            at = end
        return at

    def begin(self, start: int) -> None:
        """The next batch begins with the `start`-th piece."""
        self._start = start

    def add(self, batch: Batch, rows: Rows) -> bool:
        """Keep a batch; whether there is enough to be written."""
        made = self._of_hidden(rows.form) if self.kind == "hidden" else self._of_top(rows, batch.tokens())
        self._pieces += batch.pieces
        self._kept.append(made)
        self._bytes += sum(x.numel() * x.element_size() for x in made.values())
        return self._bytes >= BYTES

    def flush(self) -> None:
        """Write what is kept. Raises: OSError."""
        if not self._pieces:
            return
        end = self._start + len(self._pieces)
        tensors = {name: torch.cat([each[name] for each in self._kept]) for name in self._kept[0]}
        tensors |= {f"piece_{name}": x for name, x in _tensors(self._pieces).items()}
        data = extra("safetensors.torch", of="lm").save(tensors)
        write_bytes(self.folder / f"part-{self._start:010}-{end:010}.safetensors", data)
        self._start, self._pieces, self._kept, self._bytes = end, [], [], 0

    def finish(self, about: About, survey: Survey, documents: bytes) -> None:
        """Write what makes the folder whole. Raises: OSError."""
        self.flush()
        write_bytes(self.folder / DOCUMENTS, documents)
        files = [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}
            for path in sorted(self.folder.iterdir())
            if path.suffix in (".safetensors", ".parquet")
        ]
        write_json(
            self.folder / META,
            {"format": FORMAT, "version": VERSION, **asdict(about), "text": asdict(survey), "files": files},
        )

    def _of_hidden(self, form: FiniteForm) -> dict[str, Tensor]:
        if not isinstance(form, LinearLogits):
            raise BadInput(
                "--save-reference: this reference's head cannot be read, so that hidden states are not enough; write "
                "--save-top-k 64 to keep the likeliest tokens"
            )
        if not (self.folder / HEAD).exists():
            head = {"weight": form.weight, **({} if form.bias is None else {"bias": form.bias})}
            tensors = {name: x.detach().cpu().contiguous() for name, x in head.items()}
            write_bytes(self.folder / HEAD, extra("safetensors.torch", of="lm").save(tensors))
        return {"hidden": form.data.cpu()}

    def _of_top(self, rows: Rows, tokens: Tensor) -> dict[str, Tensor]:
        assert self.k is not None
        parts = []
        tokens = tokens.to(rows.device)
        for some in chunks(rows, len(tokens)):
            part = rows.part(some)
            assert isinstance(part, Logits)
            parts.append(_top(part, tokens[some], self.k))
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def _top(part: Logits, tokens: Tensor, k: int) -> dict[str, Tensor]:
    x = part.data
    ids = likeliest(x, min(k, x.shape[-1]))
    peak = -cross_entropy(Labels(ids[:, 0], x.shape[-1]), part).double()
    values = x.gather(-1, torch.cat([ids, tokens[:, None]], -1)).double()
    log_p = values - values[:, :1] + peak[:, None]
    return {
        "ids": ids.int(),
        "log_probs": log_p[:, :-1].float(),
        "log_p": log_p[:, -1],
        "entropy": entropy(part).double(),
        "confidence": peak.exp(),
    }


class Stored:
    """A stored reference: a `Side` and the text that it was made of."""

    longest: int | None = None
    tokenizer: Any = None

    def __init__(self, folder: Path) -> None:
        """Raises: BadInput: no stored reference, unfinished, or of a later version."""
        self.folder = folder
        if not (folder / META).is_file():
            raise BadInput(f"{folder}: holds no {META}, so it is no stored reference, or one that was not finished")
        found = json.loads((folder / META).read_text("utf-8"))
        if found.get("format") != FORMAT or found.get("version") != VERSION:
            raise BadInput(f"{folder}: its {META} is of format {found.get('format')!r}, version {found.get('version')}")
        self.about_run = About(**{name: found[name] for name in About.__dataclass_fields__})
        self.survey, self.files = Survey(**found["text"]), {each["name"]: each for each in found["files"]}
        self.name = self.about_run.name
        made = "hidden states and head" if self.about_run.kind == "hidden" else f"{self.about_run.k} likeliest tokens"
        self.about = f"stored run ({made}) of {self.about_run.about}"
        self._checked: set[str] = set()
        self._open: tuple[int, int, Any, Tensor] | None = None
        self._head: dict[str, Tensor] | None = None
        self.device = torch.device("cpu")

    @property
    def bounds(self) -> bool:
        """Whether divergences from it are lower bounds."""
        return self.about_run.kind == "top-k"

    def pieces(self) -> Iterator[Piece]:
        """The text, as it was read."""
        for path in self._parts():
            with self._file(path) as file:
                lengths, documents, scored, positions, ids = (
                    file.get_tensor(f"piece_{name}").tolist()
                    for name in ("lengths", "document", "scored", "position", "ids")
                )
            at = 0
            for length, document, first, position in zip(lengths, documents, scored, positions, strict=True):
                yield Piece(document, ids[at : at + length], first, position)
                at += length

    def names(self) -> Iterator[tuple[str, int]]:
        self._check(DOCUMENTS)
        table = extra("pyarrow.parquet", of="lm").read_table(self.folder / DOCUMENTS)
        yield from zip(table["name"].to_pylist(), table["tokens"].to_pylist(), strict=True)

    def rows(self, batch: Batch, num_classes: int | None = None) -> Rows:
        """Of a batch of `pieces`, in the batches in which they were stored or smaller ones."""
        n = self.about_run.num_classes if num_classes is None else num_classes
        first, file = self._at(batch.start)
        rows = slice(first, first + batch.rows)

        def read(name: str) -> Tensor:
            found: Tensor = file.get_slice(name)[rows.start : rows.stop]
            return found.to(self.device)

        if self.about_run.kind == "hidden":
            head = self._weights()
            form = LinearLogits(
                read("hidden"), head["weight"][:n], head["bias"][:n] if "bias" in head else None,
                scale=self.about_run.scale, softcap=self.about_run.softcap,
            )  # fmt: skip
            return Rows(form)
        known = {name: read(name).cpu().numpy() for name in ("log_p", "entropy", "confidence")}
        return Rows(TopK(read("ids"), read("log_probs"), n, tail="bucket", validate=False), known)

    def _weights(self) -> dict[str, Tensor]:
        if self._head is None:
            self._check(HEAD)
            found = extra("safetensors.torch", of="lm").load_file(self.folder / HEAD)
            self._head = {name: x.to(self.device) for name, x in found.items()}
        return self._head

    def _at(self, piece: int) -> tuple[int, Any]:
        """(the first row of a piece in its file, the file)."""
        if self._open is None or not self._open[0] <= piece < self._open[1]:
            path = next((p for p in self._parts() if _span(p)[0] <= piece < _span(p)[1]), None)
            if path is None:
                raise BadInput(f"{self.folder}: has no piece {piece}")
            file = self._file(path)
            rows = file.get_tensor("piece_lengths") - file.get_tensor("piece_scored")
            self._open = (*_span(path), file, torch.cat([rows.new_zeros(1), rows.cumsum(0)]))
        start, _, file, before = self._open
        return int(before[piece - start]), file

    def _parts(self) -> list[Path]:
        return [self.folder / name for name in sorted(self.files) if name.startswith("part-")]

    def _file(self, path: Path) -> Any:
        self._check(path.name)
        return extra("safetensors", of="lm").safe_open(path, framework="pt")

    def _check(self, name: str) -> None:
        """Once a file: that it is what was written."""
        if name in self._checked:
            return
        path, known = self.folder / name, self.files[name]
        if not path.is_file():
            raise BadInput(f"{path}: is missing; store the reference again")
        if path.stat().st_size != known["bytes"] or file_hash(path) != known["sha256"]:
            raise BadInput(f"{path}: is not what was written (its SHA-256 differs); store the reference again")
        self._checked.add(name)


def is_stored(given: Any) -> bool:
    """Whether a path is that of a stored reference."""
    return isinstance(given, str | Path) and (Path(given) / META).is_file()


def _span(path: Path) -> tuple[int, int]:
    _, start, end = path.stem.split("-")
    return int(start), int(end)


def _tensors(pieces: list[Piece]) -> dict[str, Tensor]:
    return {
        "ids": torch.tensor([token for piece in pieces for token in piece.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(piece.ids) for piece in pieces]),
        "document": torch.tensor([piece.document for piece in pieces]),
        "scored": torch.tensor([piece.scored for piece in pieces]),
        "position": torch.tensor([piece.position for piece in pieces]),
    }
