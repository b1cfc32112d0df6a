"""Texts: from files, and the documentation strings that come with Python."""

import ast
import json
import math
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kullback._errors import BadInput
from kullback.kit.extras import extra

COLUMN = "text"
SUFFIXES = (".jsonl", ".parquet", ".txt")
ROWS = 1024  # of a Parquet file that are in memory at once
SHORTEST = 200  # characters of a module's documentation that makes a document
# parts of the standard library that some distributions leave out, or that Python has since dropped
ELSEWHERE = ("distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtle", "turtledemo")


@dataclass(frozen=True)
class Document:
    """A text with a name to speak of it by: documents are independent of each other, their tokens are not."""

    name: str
    text: str


def documents(path: str | Path) -> Iterator[Document]:
    """The documents of a file or a folder, one at a time.

    A .txt file is one document; each line of a .jsonl file and each row of a .parquet file is one, by its column
    `text`, named FILE:ROW with rows from 0. A folder gives its files of these kinds, at any depth, sorted by path.
    Documents without any text but white space are left out.

    Raises: BadInput: no such path, nothing to read in it, a file that is no UTF-8 or no table, no column `text`.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise BadInput(f"{path}: holds no file that ends in {', '.join(SUFFIXES)}; name a folder of texts")
    elif path.is_file():
        files = [path]
    else:
        raise BadInput(f"{path}: no such file or folder; check the path")
    empty = True
    for file in files:
        for document in _of_file(file):
            if document.text.strip():
                empty = False
                yield document
    if empty:
        raise BadInput(f"{path}: holds no text; at least one document that is not empty is needed")


def docstrings() -> tuple[Document, ...]:
    """The documentation strings of Python's standard library, one document a module, sorted by path.

    Read from the sources that are installed, so the same for one version of Python: some 320 documents, 1.4 million
    characters in Python 3.11. Parts that distributions leave out (tkinter, idlelib, ...) are not read.

    Raises: BadInput where the sources are not installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for file in sorted(_modules(root)):
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError:  # files with which a package tests the parser
            continue
        text = "\n\n".join(_docstrings(tree))
        if len(text) >= SHORTEST:
            found.append(Document(file.relative_to(root).as_posix(), text))
    if not found:
        raise BadInput(f"{root}: this Python came without the sources of its library; write --text FILE instead")
    return tuple(found)


def split(found: Sequence[Document], held_out: float) -> tuple[list[Document], list[Document]]:
    """(to train on, held out): whole documents, chosen by the hash of their names and texts, in the order given.

    Documents that are equal have one hash: copies of a text are all on one side.

    Args: held_out: share of the documents; at least one, and one is left to train on.
    Raises: BadInput for fewer than two different documents.

    >>> train, held_out = split([Document(f"{i}", "x" * i) for i in range(10)], 0.2)
    >>> [document.name for document in held_out]
    ['1', '4']
    """
    hashes = [sha256(document.text.encode("utf-8", "surrogatepass")).digest() for document in found]
    different = sorted(set(hashes))
    if len(different) < 2:
        raise BadInput(
            f"there are {len(different)} different documents, but at least 2 are needed: one is held out. Give a "
            "folder of files, or a .jsonl file with a text in each line"
        )
    kept_out = set(different[: min(len(different) - 1, max(1, math.ceil(held_out * len(different))))])
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document, digest in zip(found, hashes, strict=True):
        sides[digest in kept_out].append(document)
    return sides


def fingerprint(found: Sequence[Document]) -> str:
    """The same for the same texts under the same names in the same order, and for no others."""
    digest = sha256()
    for document in found:
        for part in (document.name, document.text):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _of_file(file: Path) -> Iterator[Document]:
    kind = file.suffix.lower()
    if kind == ".txt":
        yield Document(str(file), _text(file))
    elif kind == ".jsonl":
        yield from _of_lines(file)
    elif kind == ".parquet":
        yield from _of_parquet(file)
    else:
        raise BadInput(f"{file}: is not a file that ends in {', '.join(SUFFIXES)}; convert it to one of them")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _of_lines(file: Path) -> Iterator[Document]:
    with file.open("rb") as lines:
        row = 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value: Any = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise BadInput(f"{file}: line {number} is not UTF-8; save it as UTF-8") from None
            except ValueError as error:
                raise BadInput(f"{file}: line {number} is no JSON ({error}); write one object a line") from None
            text = value.get(COLUMN) if isinstance(value, dict) else None
            if not isinstance(text, str):
                raise BadInput(
                    f'{file}: line {number} has no text under "{COLUMN}"; write {{"{COLUMN}": "..."}} in each line'
                )
            yield Document(f"{file}:{row}", text)
            row += 1


def _of_parquet(file: Path) -> Iterator[Document]:
    parquet, arrow = extra("pyarrow.parquet", of="lm"), extra("pyarrow", of="lm")
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if COLUMN not in names:
                raise BadInput(
                    f"{file}: has no column {COLUMN!r}, but {', '.join(names)}; rename the one with the text"
                )
            row = 0
            for batch in table.iter_batches(ROWS, columns=[COLUMN]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str):
                        raise BadInput(f"{file}: row {row} has no text in column {COLUMN!r}; leave such rows out")
                    yield Document(f"{file}:{row}", text)
                    row += 1
    except arrow.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise BadInput(f"{file}: cannot be read as Parquet ({reason}); check that the file is whole") from None


def _modules(root: Path) -> Iterator[Path]:
    for name in sys.stdlib_module_names - set(ELSEWHERE):
        if (root / name / "__init__.py").is_file():
            yield from (root / name).rglob("*.py")
        elif (root / f"{name}.py").is_file():
            yield root / f"{name}.py"


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Of a module, and of the classes and functions in it, in the order of the source."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
        text := ast.get_docstring(node)
    ):
        yield text
    for child in ast.iter_child_nodes(node):
        yield from _docstrings(child)
