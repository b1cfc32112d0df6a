"""Pages that are read on a code host too: what their links and folders mean on the site.

* A link to a Markdown file of the project's root leads to its page in docs/project, one to README.md to the front page,
  one to a folder to its README.
* A page in docs/project that is one link, and nothing else, shows the file that it links to.
* The README of a folder lists the folder's pages, in the navigation, in the order of their names,
  unless it says another order.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent
PAGE_OF = {page.name: Path("project") / page.name.lower() for page in ROOT.glob("*.md")} | {
    "README.md": Path("index.md")
}

FENCE = re.compile(r"^(```+)[^\n]*\n.*?^\1[^\n]*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
ONE_LINK = re.compile(r"\s*\[[^\]]*\]\(([^)]*)\)\s*")


def target(link: str, folder: Path) -> str:
    """Where a relative link of a file in `folder` leads, from the top of docs; what leads elsewhere is left alone."""
    if "://" in link or link.startswith(("/", "mailto:")):
        return link
    path = (folder / link).resolve()
    if path.is_dir() and (path / "README.md").exists():
        path = path / "README.md"
    if path.parent == ROOT and path.name in PAGE_OF:
        return f"/{PAGE_OF[path.name].as_posix()}"
    if path.is_relative_to(DOCS):
        return f"/{path.relative_to(DOCS).as_posix()}"
    return f"/../{path.relative_to(ROOT).as_posix()}" if path.is_relative_to(ROOT) else link


def with_links(text: str, folder: Path) -> str:
    """The text with its links made for the site; code is left as it is."""
    made, end = [], 0
    for code in FENCE.finditer(text):
        made += [_with_links(text[end : code.start()], folder), code[0]]
        end = code.end()
    return "".join([*made, _with_links(text[end:], folder)])


def _with_links(text: str, folder: Path) -> str:
    return LINK.sub(lambda link: target(link[1], folder) + (link[2] or ""), text)


def listed(folder: Path) -> list[str]:
    """The pages of a folder, and the READMEs of the folders in it, by name."""
    pages = [page for page in folder.iterdir() if page.suffix == ".md" and page.name != "README.md"]
    pages += folder.glob("*/README.md")
    return [page.relative_to(folder).with_suffix("").as_posix() for page in sorted(pages)]


def read(app: Sphinx, name: str, source: list[str]) -> None:
    file = DOCS / f"{name}.md"
    if not file.exists():
        return
    text, folder = source[0], file.parent
    if (only := ONE_LINK.fullmatch(text)) and (shown := (folder / only[1]).resolve()).suffix == ".md":
        text, folder = shown.read_text(encoding="utf-8"), shown.parent
        app.env.note_dependency(str(shown))
    text = with_links(text, folder)
    if file.name == "README.md" and "{toctree}" not in text:
        text += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(listed(file.parent)) + "\n```\n"
    source[0] = text


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
