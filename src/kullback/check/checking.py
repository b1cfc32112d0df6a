"""Finds: a text, a file, folders."""

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kullback._errors import BadInput
from kullback.kit.ending import near, of_system

from .context import Context
from .finding import Edit, Finding, Hit
from .rules import RULES, Rule

_NOQA = re.compile(r"#\s*noqa(?P<codes>\s*:\s*[A-Z][A-Z0-9]*(?:[\s,]+[A-Z]+[0-9]+)*)?", re.IGNORECASE)
# without one of these words no rule can find anything
_WORDS = re.compile(r"kl_div|KLDiv|jensenshannon|nan_to_num|scipy|\blog\(|\blog\b *[,\n]|\bexp\(|\bexp\b *[,\n]")
_SKIPPED = {"__pycache__", "node_modules", "build", "dist", "venv", "env"}


@dataclass(frozen=True)
class Checked:
    """What checking files brought.

    Args: findings: in the order of files and lines.  errors: one line for each file that could not be read.
        files: how many were looked at.
    """

    findings: tuple[Finding, ...]
    errors: tuple[str, ...]
    files: int


def chosen(select: Sequence[str] = (), ignore: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The rules whose codes begin with one of `select` (all, if it is empty) and with none of `ignore`.

    Raises: BadInput: a code that no rule has.

    >>> [rule.code for rule in chosen(["KLB00"], ["KLB003"])][:3]
    ['KLB001', 'KLB002', 'KLB004']
    """
    for code in (*select, *ignore):
        if not code or not any(known.startswith(code) for known in RULES):
            raise BadInput(f"there is no rule {code!r}; nearest: {near(code, list(RULES))}")
    return tuple(
        rule
        for code, rule in RULES.items()
        if (not select or code.startswith(tuple(select))) and not code.startswith(tuple(ignore))
    )


def check_source(text: str, path: str = "<text>", rules: Iterable[Rule] | None = None) -> tuple[Finding, ...]:
    """Find misuse of KL in a text of Python; nothing of it is run.

    Args: text: the code.  path: its name in findings.  rules: all of them unless given; see `chosen`.
    Returns: findings in the order of lines; what a `# noqa` excuses is left out.
    Raises: SyntaxError: it is no Python.

    >>> found = check_source("import torch.nn.functional as F\\nloss = F.kl_div(log_q, p)\\n")
    >>> [(one.code, one.line, one.column) for one in found]
    [('KLB001', 2, 8)]
    """
    if not _WORDS.search(text):
        ast.parse(text)
        return ()
    context = Context(text)
    excused = _excuses(text)
    found = [
        _finding(rule, hit, path, context.lines)
        for rule in (chosen() if rules is None else rules)
        for hit in rule.finds(context)
    ]
    kept = (one for one in dict.fromkeys(found) if not _is_excused(one, excused))
    return tuple(sorted(kept, key=lambda one: (one.line, one.column, one.code)))


def check_paths(paths: Iterable[str | Path], rules: Iterable[Rule] | None = None) -> Checked:
    """Find misuse of KL in files, and in the .py files below folders.

    Hidden folders, virtual environments and build folders below a folder are left out. A file that cannot be read, or
    is no Python, is one line of `errors`.

    >>> check_paths([__file__]).findings
    ()
    """
    rules = chosen() if rules is None else tuple(rules)
    findings: list[Finding] = []
    errors: list[str] = []
    number = 0
    for path in _files(paths, errors):
        number += 1
        try:
            findings += check_source(read(path), str(path), rules)
        except SyntaxError as error:
            errors.append(f"{path}:{error.lineno or 1}: is no Python: {error.msg}")
        except (ValueError, RecursionError) as error:
            errors.append(f"{path}: cannot be read: {error}")
        except OSError as error:
            errors.append(of_system(error))
    return Checked(tuple(findings), tuple(errors), number)


def read(path: Path) -> str:
    """The text of a Python file, in the encoding that it declares; its line ends are kept."""
    data = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding)


def _files(paths: Iterable[str | Path], errors: list[str]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            errors.append(f"{path}: No such file or directory")
        below = _below(path) if path.is_dir() else [path] if path.exists() else []
        for each in below:
            if each not in seen:
                seen.add(each)
                yield each


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in _SKIPPED and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(files) if name.endswith((".py", ".pyi")))


def _finding(rule: Rule, hit: Hit, path: str, lines: list[str]) -> Finding:
    node = hit.node
    end_line, end = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
    edits = tuple(
        Edit((each.lineno, each.col_offset), (each.end_lineno or 0, each.end_col_offset or 0), text)
        for each, text in hit.edits
    )
    return Finding(
        rule.code,
        path,
        node.lineno,
        _column(lines[node.lineno - 1], node.col_offset),
        end_line,
        _column(lines[end_line - 1], end),
        hit.message,
        hit.instead,
        edits,
    )


def _column(line: str, at: int) -> int:
    """A place in UTF-8 bytes from 0, in characters from 1."""
    return len(line.encode()[:at].decode(errors="replace")) + 1


def _excuses(text: str) -> dict[int, frozenset[str] | None]:
    """Line to the codes that a `# noqa` there excuses; None for all."""
    if "noqa" not in text.lower():
        return {}
    found: dict[int, frozenset[str] | None] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        match = _NOQA.search(token.string) if token.type == tokenize.COMMENT else None
        if match:
            codes = match["codes"]
            found[token.start[0]] = frozenset(re.findall(r"[A-Z]+[0-9]+", codes.upper())) if codes else None
    return found


def _is_excused(one: Finding, excused: dict[int, frozenset[str] | None]) -> bool:
    """A comment counts on every line that the finding spans."""
    for line in range(one.line, one.end_line + 1):
        if line in excused:
            codes = excused[line]
            if codes is None or one.code in codes:
                return True
    return False
