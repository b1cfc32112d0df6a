"""Pictures that read on light and on dark ground: grey ink on a clear ground, colours of middling lightness.

Names in a picture (of classes, columns, files) are text: a $ in them starts no formula. The same numbers give the same
bytes.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

from .extras import extra

# each stands out from white and from near black (#0d1117) by 3 to 1 at least, the ink by 4.3
INK = "#727a84"
BLUE, ORANGE, GREEN, PURPLE, PINK = "#2a8bcb", "#cd7420", "#2f9a66", "#8f6bd6", "#cf5f97"

STYLE = {
    "svg.fonttype": "path",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
    ),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), "none"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.22,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def drawn(
    draw: Callable[[Any], None], *, size: tuple[float, float], of: str, form: str = "svg", salt: str = "kullback"
) -> bytes:
    """Let `draw` fill a figure; the file, as bytes.

    Args:
        draw: called with a matplotlib Figure without axes.
        size: width and height, in inches.
        of: the extra to name where matplotlib is missing.
        form: svg, png or pdf.
        salt: what makes the identifiers in an SVG differ from those of another in the same page.
    """
    matplotlib, figures = extra("matplotlib", of=of), extra("matplotlib.figure", of=of)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # an empty box stands in for it
        figure = figures.Figure(figsize=size, layout="constrained")
        draw(figure)
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                _plain_powers(axis, extra("matplotlib.ticker", of=of))
        file = io.BytesIO()
        metadata = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}.get(form, {})
        figure.savefig(file, format=form, metadata=metadata, dpi=150)
    return _lighter(file.getvalue().decode()).encode() if form == "svg" else file.getvalue()


def chart(draw: Callable[[Any], None], *, size: tuple[float, float], of: str, salt: str = "kullback") -> str:
    """As `drawn`, for one pair of axes with lines across, as SVG text."""

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        axes.grid(visible=True, axis="y", linewidth=0.8)
        draw(axes)

    return drawn(fill, size=size, of=of, salt=salt).decode()


def short(name: str, longest: int = 10) -> str:
    """A name as it fits into a picture: one line, nothing that cannot be printed.

    >>> short("a rather long name")
    'a rather …'
    """
    line = "".join(c if c.isprintable() else "?" for c in " ".join(name.split()))
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return f" {line}" if line.startswith("_") else line  # matplotlib's legends leave out a leading underscore


def _plain_powers(axis: Any, ticker: Any) -> None:
    """matplotlib writes the powers on logarithmic axes as formulas, which here are text."""
    if isinstance(axis.get_major_formatter(), ticker.LogFormatterMathtext):
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: power(value)))
    if isinstance(axis.get_minor_formatter(), ticker.LogFormatterMathtext):
        axis.set_minor_formatter(ticker.NullFormatter())


def power(value: float) -> str:
    """A number on a logarithmic axis.

    >>> power(0.01), power(1e-7)
    ('0.01', '10⁻⁷')
    """
    mantissa, _, exponent = f"{value:e}".partition("e")
    if float(mantissa) != 1.0 or abs(int(exponent)) < 4:
        return f"{value:g}"
    return "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _lighter(svg: str) -> str:
    """The paths of a drawing with two decimals: a hundredth of a point cannot be seen."""

    def rounded(path: re.Match[str]) -> str:
        return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path[0])

    return re.sub(r' d="[^"]*"', rounded, svg)
