"""The directive `commands`: a section for each sub-command of `kullback`, with what its `--help` says."""

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command
from typer.testing import CliRunner

from kullback.cli import app

WIDTH = 88


def named(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that does something."""
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from named(each, (*path, name))


class Commands(SphinxDirective):
    """One section a command, in the order of the command line."""

    def run(self) -> list[nodes.Node]:
        whole = app()
        made: list[nodes.Node] = []
        for path in named(get_command(whole)):
            said = CliRunner().invoke(whole, [*path, "--help"], terminal_width=WIDTH, env={"COLUMNS": str(WIDTH)})
            title = " ".join(("kullback", *path))
            section = nodes.section(ids=[nodes.make_id(title)], names=[nodes.fully_normalize_name(title)])
            section += nodes.title(title, title)
            section += nodes.literal_block(said.output, said.output.strip(), language="none")
            self.state.document.note_implicit_target(section, section)
            made.append(section)
        return made


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
