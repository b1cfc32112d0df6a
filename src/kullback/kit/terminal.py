"""Tables and pairs on standard output, on a terminal that has only ASCII too."""

import codecs
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from .extras import extra

# what to write where an encoding lacks the character; any other becomes its escape
_SPELLED = {
    "‖": "||", "∞": "inf", "±": "+/-", "…": "...", "–": "-", "—": "-", "−": "-", "·": "*", "×": "x",
    "Σ": "sum ", "√": "sqrt ", "½": "1/2 ", "²": "^2", "≤": "<=", "≥": ">=", "→": "->", "←": "<-", "é": "e",
    "━": "=", "─": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "│": "|", "╸": "=", "╺": "=", "•": "*",
    "“": '"', "”": '"', "’": "'", "‘": "'", "α": "alpha", "σ": "sigma", "ψ": "psi",
}  # fmt: skip


def spell_out() -> None:
    """From here on standard output and error spell what their encoding cannot write: ‖ as || on an ASCII terminal."""
    codecs.register_error("kullback.spelled", _spell)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="kullback.spelled")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def _spelled(character: str) -> str:
    escape = character.encode("utf-16-be", "surrogatepass").hex()  # as JSON writes it
    return _SPELLED.get(character) or "".join(f"\\u{escape[i : i + 4]}" for i in range(0, len(escape), 4))


def paragraph(text: str) -> str:
    """Text broken into lines that the terminal holds, and that are not too long to read."""
    return textwrap.fill(text, min(shutil.get_terminal_size().columns, 110), break_long_words=False)


def pairs(lines: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line, the values one under the other.

    >>> print(pairs([("KL", "0.5 nats"), ("method", "exact")]))
    KL      0.5 nats
    method  exact
    """
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{value}".rstrip() for name, value in lines)


def show_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, of: str, title: str = "", width: int | None = None
) -> None:
    """Print a table: the first column to the left, the others to the right. Names are text, never markup.

    Args: of: the extra to name where rich is missing.  width: in columns, where standard output is no terminal.
    """
    console = extra("rich.console", of=of).Console(
        width=None if sys.stdout.isatty() else width, markup=False, highlight=False
    )
    text = extra("rich.text", of=of).Text
    table = extra("rich.table", of=of).Table(
        box=extra("rich.box", of=of).SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        title=text(title) if title else None,
        title_justify="left",
    )
    for i, name in enumerate(header):
        table.add_column(text(name), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(text, row))
    console.print(table)
