"""A page of HTML that needs no other file: pictures, tables and style are in it."""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from .extras import extra
from .pictures import INK

_SHARED = ("page.html.j2", "parts.html.j2")


def render(package: str, template: str, *, of: str, scripts: Sequence[str] = (), **values: Any) -> str:
    """Fill a template that lies in a package and extends "page.html.j2", whose blocks are `title` and `body`.

    In it, `scrolling(rows, corner)` is a table of rows of text, the first its heads, `picture(svg, label)` an SVG
    document as part of the page, and `passages(prepared)` text in pieces of `kullback.kit.passages`. Text from outside
    is escaped.

    Args:
        of: the extra to name where jinja2 is missing.
        scripts: files of this package that the page carries: "tables.js", which sorts the tables of
            `scrolling(..., sortable=true)`, and "passages.js", which `passages` needs. The page then lets no other
            script run.
    """
    jinja2 = extra("jinja2", of=of)
    places = [(__package__, name) for name in _SHARED] + [(package, template)]
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.DictLoader({name: files(home).joinpath(name).read_text("utf-8") for home, name in places}),
    )
    parts = environment.get_template("parts.html.j2").module
    environment.globals.update(
        scrolling=parts.scrolling, passages=parts.passages, picture=lambda svg, label: inline(svg, label, of=of)
    )
    texts = [files(__package__).joinpath(name).read_text("utf-8") for name in scripts]
    markup = extra("markupsafe", of=of).Markup
    html: str = environment.get_template(template).render(
        scripts=list(map(markup, texts)), known=markup(" ".join(map(_fingerprint, texts))), **values
    )
    return html


def _fingerprint(script: str) -> str:
    """How a Content-Security-Policy names a script that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def inline(svg: str, label: str, *, of: str) -> Any:
    """An SVG document as part of a page, as Markup, with a name for those who cannot see it; its ink is the page's."""
    markupsafe = extra("markupsafe", of=of)
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    named = f'<svg role="img" aria-label="{markupsafe.escape(label)}" '
    return markupsafe.Markup(body.replace("<svg ", named, 1).replace(INK, "currentColor"))
