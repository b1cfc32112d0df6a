"""`--fix`: the edits of findings, made in the text; the difference, shown."""

import ast
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from kullback.kit.files import write_bytes

from .checking import check_source, read
from .finding import Edit, Finding
from .rules import Rule

_ROUNDS = 10  # an edit may uncover another


def fixed(text: str, rules: Iterable[Rule] | None = None) -> str:
    """The text with every safe edit made. Only what a wrong call *means* is changed, never how losses are weighted.

    >>> print(fixed("import torch\\nx = torch.log(torch.softmax(y, -1))\\n"), end="")
    import torch
    x = torch.log_softmax(y, -1)
    """
    rules = None if rules is None else tuple(rules)
    for _ in range(_ROUNDS):
        edits = [edit for one in check_source(text, rules=rules) for edit in one.edits]
        if not edits:
            break
        text = _edited(text, edits)
    return text


def difference(before: str, after: str, path: str) -> str:
    """What changes, as a unified diff."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{path}", f"b/{path}"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def fix_files(findings: Sequence[Finding], rules: Iterable[Rule], *, write: bool) -> str:
    """Make the edits in the files of these findings, and return the difference; without `write` only return it.

    A file is written whole or not at all, in the encoding it had. Raises: OSError.
    """
    rules, shown = tuple(rules), []
    for path in dict.fromkeys(Path(one.path) for one in findings if one.edits):
        before = read(path)
        after = fixed(before, rules)
        if after == before:
            continue
        shown.append(difference(before, after, str(path)))
        if write:
            mode, data = path.stat().st_mode, path.read_bytes()
            write_bytes(path, after.encode(_encoding(data)))
            path.chmod(mode)
    return "".join(shown)


def _encoding(data: bytes) -> str:
    import io
    import tokenize

    return tokenize.detect_encoding(io.BytesIO(data).readline)[0]


def _edited(text: str, edits: list[Edit]) -> str:
    """The text with edits made from the end; of two that overlap the inner waits for the next round."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data = text.encode()
    free = len(data)
    for edit in sorted(set(edits), key=lambda each: (each.start, each.end), reverse=True):
        start, end = (starts[line - 1] + column for line, column in (edit.start, edit.end))
        if end > free:
            continue
        data = data[:start] + edit.text.encode() + data[end:]
        free = start
    after = data.decode()
    ast.parse(after)
    return after
