"""The house style of docstrings, which is plain text, as reStructuredText.

A docstring is paragraphs, examples, indented blocks that stand as they are, and sections: `Args:`, `Returns:` and the
like, above an indented block or with their text on the same line. `x` is code, and a link where the package has that
name; p_v and q^(1-a) are indices and powers.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

WORDS = (
    "Args|Returns|Raises|Gradients|Source|Sources|Shapes|Cost|Attributes|Yields|Memory|Communication|Exit codes|"
    "Where copies differ"
)
HEAD = re.compile(rf"({WORDS}):(?: +(.*))?")
NEXT_HEAD = re.compile(rf"(?<=[.;)]) +(?=(?:{WORDS}): )")
NAMES = r"\*{0,2}\w+(?:, \*{0,2}\w+)*"
ENTRY = re.compile(rf"({NAMES}):(?: +(.*))?")
NEXT_ENTRY = re.compile(rf"(?<=[.;)])  +(?={NAMES}: )")
ALIGNED = re.compile(rf"({NAMES}) {{2,}}(\S.*)")
FORMULA = re.compile(r"[^\W\d](?:[\w()^]{0,7}|\([^)]*\)) = .*[^.:;]")
NAME = re.compile(r"[A-Za-z_][\w.]*(?:\(\))?")
SCRIPTS = re.compile(
    r"(?<![\w.`])(?P<sign>[A-Za-zΑ-ωΣΠ])(?!_?\w{3})"
    r"(?:_(?P<sub>[A-Z]{2}|\w)(?!\w))?"
    r"(?:\^(?P<sup>\([^()]*\)|-?\w+))?(?![\w])"
)


def text(lines: list[str]) -> str:
    """A paragraph: names in backticks are code, everything else stands literally."""
    plain = " ".join(line.strip() for line in lines)
    return "".join(code(part[1:-1]) if part[:1] == "`" else prose(part) for part in re.split(r"(`[^`]+`)", plain))


def code(name: str) -> str:
    if NAME.fullmatch(name):
        return f"\\ :py:obj:`{name} <{name.removesuffix('()')}>`\\ "
    return f"\\ ``{name}``\\ "


def prose(plain: str) -> str:
    made, end = [], 0
    for found in SCRIPTS.finditer(plain):
        if found["sub"] or found["sup"]:
            made += [escaped(plain[end : found.start()]), escaped(found["sign"])]
            made += [f"\\ :{role}:`{escaped(found[role].strip('()'))}`\\ " for role in ("sub", "sup") if found[role]]
            end = found.end()
    return "".join([*made, escaped(plain[end:])])


def escaped(plain: str) -> str:
    return re.sub(r"([\\*|_`])", r"\\\1", plain)


def dedented(lines: list[str]) -> list[str]:
    depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[depth:] for line in lines]


def indented(lines: list[str]) -> list[str]:
    return [f"   {line}" if line else "" for line in lines]


def taken(lines: list[str], at: int, ends: Any) -> int:
    """The first line from `at` on that is blank or ends the block."""
    while at < len(lines) and lines[at].strip() and not ends(lines[at]):
        at += 1
    return at


def belonging(lines: list[str], at: int) -> int:
    """The end of the indented lines from `at` on; a blank line between two of them belongs to them."""
    end = at
    while at < len(lines) and (lines[at].startswith(" ") or not lines[at].strip()):
        at += 1
        if lines[at - 1].strip():
            end = at
    return end


def starts(line: str) -> bool:
    """Whether a line that follows a paragraph without a blank one between is no part of it."""
    return line.startswith((" ", ">>>")) or HEAD.fullmatch(line) is not None


def translated(lines: list[str]) -> list[str]:
    """The lines of a docstring, as lines of reStructuredText."""
    made: list[str] = []
    at = 0
    while at < len(lines):
        line, start = lines[at].rstrip(), at
        follows = lines[at + 1] if at + 1 < len(lines) else ""
        if not line:
            at += 1
        elif line.startswith(">>>"):
            at = taken(lines, at, lambda _: False)
            made += ["", *lines[start:at], ""]
        elif line.startswith(" "):
            at = belonging(lines, at)
            made += ["", ".. code-block:: none", "", *indented(dedented(lines[start:at])), ""]
        elif line.startswith("| "):
            at = taken(lines, at, lambda x: not x.startswith("|"))
            made += table(lines[start:at])
        elif line.startswith("* "):
            at = taken(lines, at, lambda x: not x.startswith(("* ", " ")))
            made += bullets(lines[start:at])
        elif (head := HEAD.fullmatch(line)) is not None:
            hangs = head[2] and follows.strip() and not follows.startswith((" ", ">>>"))
            at = taken(lines, at + 1, starts) if hangs else belonging(lines, at + 1)
            made += sections(line, lines[start + 1 : at])
        elif line.endswith(":") and follows.startswith(" ") and ENTRY.match(follows.strip()):
            at = belonging(lines, at + 1)
            made += section(line[:-1], lines[start + 1 : at])
        elif ALIGNED.fullmatch(line) is not None:
            at = taken(lines, at, lambda x: not (x.startswith(" ") or ALIGNED.fullmatch(x)))
            made += ["", *entries(lines[start:at], ALIGNED), ""]
        elif FORMULA.fullmatch(line) is not None and not follows.strip():
            at += 1
            made += ["", ".. rst-class:: formula", "", *indented([text([line])]), ""]
        else:
            at = taken(lines, at + 1, starts)
            made += ["", text(lines[start:at]), ""]
    return made


def sections(head: str, block: list[str]) -> list[str]:
    """A head with its block, or several heads on one line, of which the last one has the block."""
    *before, last = NEXT_HEAD.split(head)
    made: list[str] = []
    for each in before:
        name, body = HEAD.fullmatch(each).groups()  # type: ignore[union-attr]
        made += section(name, [body])
    name, body = HEAD.fullmatch(last).groups()  # type: ignore[union-attr]
    return made + section(name, [body, *dedented(block)] if body else block)


def section(name: str, lines: list[str]) -> list[str]:
    lines = dedented(lines)
    if name in ("Args", "Attributes"):
        lines = [part for line in lines for part in NEXT_ENTRY.split(line)]
    listed = bool(lines) and ENTRY.fullmatch(lines[0]) is not None and name not in ("Returns", "Source", "Gradients")
    return ["", f":{escaped(name)}:", *indented(entries(lines, ENTRY) if listed else translated(lines)), ""]


def entries(lines: list[str], form: re.Pattern[str]) -> list[str]:
    """`name: what it is`, one below the other, as definitions."""
    made: list[str] = []
    body: list[str] = []
    for line in [*lines, None]:
        entry = None if line is None else form.fullmatch(line.rstrip())
        if entry is None and line is not None:
            body.append(line)
            continue
        if body:
            made += indented(stripped(translated(dedented(body) if not body[0] else [text_of(body)])))
        if entry is not None:
            made.append(", ".join(f"``{name}``" for name in entry[1].split(", ")))
            body = [entry[2] or ""]
    return made


def stripped(lines: list[str]) -> list[str]:
    """Without the blank lines at the start, which would part an entry from its text."""
    return lines[next((at for at, line in enumerate(lines) if line), len(lines)) :]


def text_of(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def bullets(lines: list[str]) -> list[str]:
    items: list[list[str]] = []
    for line in lines:
        if line.startswith("* "):
            items.append([])
        items[-1].append(line.removeprefix("* "))
    return ["", *(f"* {text(item)}" for item in items), ""]


def table(lines: list[str]) -> list[str]:
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if not set(line) <= set("|- ")]
    made = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        made += [f"   {'* -' if not number else '  -'} {text([cell])}" for number, cell in enumerate(row)]
    return [*made, ""]


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = translated(lines)


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """The fields of a named tuple stand in its signature and its text."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def missing(app: Sphinx, env: Any, node: nodes.Element, contnode: nodes.Element) -> nodes.Element | None:
    """Names in backticks that are no name of the package, and types that have no entry, are plain code."""
    return contnode if node.get("refdomain") == "py" and node.get("reftype") in ("obj", "class") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
