"""The house style of docstrings, which is plain text, as reStructuredText.

A docstring is paragraphs, examples, indented blocks that stand as they are, and sections: `Args:`, `Returns:` and the
like, on a line of their own above an indented block, or with their text on the same line. `x` is code, and a link where
the package has that name; p_v and q^(1-a) are indices and powers.
"""

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SECTIONS = ("Args", "Returns", "Raises", "Gradients", "Source", "Shapes", "Cost", "Attributes", "Yields", "Memory")
HEAD = re.compile(rf"({'|'.join(SECTIONS)}): ?(.*)")
NEXT = re.compile(rf"(?<=[.;)]) +(?=(?:{'|'.join(SECTIONS)}): )")
ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): +(.*)|(\*{0,2}\w+(?:, \*{0,2}\w+)*):$")
NAME = re.compile(r"[A-Za-z_][\w.]*(?:\(\))?")
SCRIPTS = re.compile(
    r"(?<![\w`])(?P<sign>[A-Za-zΑ-ωΣΠ])"
    r"(?:_(?P<sub>[A-Z]{2}|\w)(?![\w]))?"
    r"(?:\^(?P<sup>\([^()]*\)|-?\w+))?(?![\w_])"
)


def text(plain: str) -> str:
    """A piece of prose: names in backticks, everything else literally."""
    return "".join(code(part[1:-1]) if part[:1] == "`" else prose(part) for part in re.split(r"(`[^`]+`)", plain))


def code(name: str) -> str:
    found = name.removesuffix("()")
    return f"\\ :py:obj:`{name} <{found}>`\\ " if NAME.fullmatch(name) else f"\\ ``{name}``\\ "


def prose(plain: str) -> str:
    made, end = [], 0
    for sign in SCRIPTS.finditer(plain):
        if sign["sub"] or sign["sup"]:
            made += [escaped(plain[end : sign.start()]), escaped(sign["sign"])]
            made += [f"\\ :{role}:`{escaped(sign[role].strip('()'))}`\\ " for role in ("sub", "sup") if sign[role]]
            end = sign.end()
    return "".join([*made, escaped(plain[end:])])


def escaped(plain: str) -> str:
    return re.sub(r"([\\*|_`])", r"\\\1", plain)


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines between blank ones; a block that is indented further belongs to a section's head above it."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def dedented(lines: list[str]) -> list[str]:
    depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[depth:] for line in lines]


def indented(lines: list[str], depth: int = 3) -> list[str]:
    return [" " * depth + line if line else "" for line in lines]


def entries(lines: list[str]) -> list[str]:
    """`name: what it is` one below the other, or on one line with two spaces between; else a paragraph."""
    lines = [part for line in dedented(lines) for part in spread(line)]
    if not ENTRY.match(lines[0]):
        return translated(lines)
    made: list[str] = []
    for line in lines:
        if (entry := ENTRY.match(line)) is not None:
            names = entry[1] or entry[3]
            made += [", ".join(f"``{name}``" for name in names.split(", "))]
            made += indented([text(entry[2])]) if entry[2] else []
        else:
            made.append(f"   {text(line.strip())}" if line.strip() else "")
    return made


def spread(line: str) -> list[str]:
    if not re.match(r"\*{0,2}\w+(?:, \*{0,2}\w+)*: ", line):
        return [line]
    return re.split(r"(?<=[.;)])  +(?=\w+(?:, \w+)*: )", line)


def section(head: str, lines: list[str]) -> list[str]:
    body = entries(lines) if head in ("Args", "Attributes", "Raises") else translated(dedented(lines))
    return [f":{head}:", *indented(body), ""]


def translated(lines: list[str]) -> list[str]:
    """The lines of a docstring, as lines of reStructuredText."""
    made: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            made.append("")
            at += 1
            continue
        if line.lstrip().startswith(">>>"):
            end = at
            while end < len(lines) and lines[end].strip():
                end += 1
            made += ["", *dedented(lines[at:end]), ""]
            at = end
            continue
        if HEAD.fullmatch(line):
            end = at + 1
            while end < len(lines) and (lines[end].startswith(" ") or not lines[end].strip()):
                if not lines[end].strip() and not (end + 1 < len(lines) and lines[end + 1].startswith(" ")):
                    break
                end += 1
            made += ["", *sections([line, *lines[at + 1 : end]])]
            at = end
            continue
        end = at
        deep = line.startswith(" ")
        while end < len(lines) and lines[end].strip() and not (end > at and HEAD.fullmatch(lines[end])):
            if lines[end].startswith(" ") != deep:
                break
            end += 1
        block = lines[at:end]
        if deep:
            made += ["", ".. code-block:: none", "", *indented(dedented(block)), ""]
        elif block[0].startswith("|"):
            made += table(block)
        elif block[0].startswith("* "):
            made += ["", *[f"* {text(x[2:])}" if x.startswith("* ") else f"  {text(x)}" for x in block], ""]
        else:
            made += [text(x) for x in block]
        at = end
    return made


def sections(lines: list[str]) -> list[str]:
    """A head with its block, or several heads on one line."""
    first, *rest = lines
    heads = NEXT.split(first)
    made: list[str] = []
    for number, each in enumerate(heads):
        head = HEAD.fullmatch(each)
        assert head is not None
        body = [head[2]] if head[2] else []
        if number == len(heads) - 1:
            tail = dedented(rest)
            if head[2] and head[1] not in ("Args", "Attributes"):
                body = [*body, *tail]
            else:
                body += rest if not body else tail
        made += section(head[1], body) if body else []
    return made


def table(lines: list[str]) -> list[str]:
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if not set(line) <= set("|- ")]
    made = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        made += [f"   {'* -' if not number else '  -'} {text(cell)}" for number, cell in enumerate(row)]
    return [*made, ""]


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = translated(lines)


def missing(app: Sphinx, env: Any, node: nodes.Element, contnode: nodes.Element) -> nodes.Element | None:
    """Names in backticks that are no name of the package, and types of other libraries, are plain code."""
    if node.get("refdomain") != "py":
        return None
    inside = str(node.get("reftarget", "")).startswith("kullback.")
    return None if inside and node.get("reftype") != "obj" else contnode


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("missing-reference", missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
