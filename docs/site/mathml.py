"""Formulas as MathML, which browsers render themselves: by the converter that comes with docutils."""

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def mathml(node: nodes.Element, as_block: bool = False) -> str:
    """As MathML; the bars of KL(p‖q) do not grow with what stands beside them."""
    made: str = latex2mathml.tex2mathml(node.astext(), as_block=as_block)
    return made.replace("<mo>‖</mo>", '<mo stretchy="false">‖</mo>')


def inline(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node))
    raise nodes.SkipNode


def display(self: Any, node: nodes.math_block) -> None:
    formula = mathml(node, as_block=True)
    self.body.append(f'<div class="math-block">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
