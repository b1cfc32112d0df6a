"""What was found, and where."""

import ast
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Edit:
    """Replace a piece of the source, from one place to another; lines count from 1, columns in UTF-8 bytes from 0."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule.

    Args:
        code: of the rule, such as "KLB001".
        path: the file, as it was named.
        line, column, end_line, end_column: both count from 1, in characters; the end is the first place behind it.
        message: what is wrong here.  instead: what to write.
        edits: what `--fix` would do; empty if it leaves this alone.
    """

    code: str
    path: str
    line: int
    column: int
    end_line: int
    end_column: int
    message: str
    instead: str
    edits: tuple[Edit, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Hit:
    """What a rule answers: the node that is wrong, in which words, and how it is mended.

    Args: edits: texts that take the place of nodes.
    """

    node: ast.expr | ast.keyword
    message: str
    instead: str
    edits: tuple[tuple[ast.expr | ast.keyword, str], ...] = ()
