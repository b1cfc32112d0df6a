"""Literals and sums, as they are written."""

import ast
from typing import Any


def constant(node: ast.expr | None) -> Any:
    """The value of a literal, with its sign; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = constant(node.operand)
        return -value if isinstance(value, int | float) else None
    return node.value if isinstance(node, ast.Constant) else None


def terms(node: ast.expr, sign: int = 1) -> list[tuple[int, ast.expr]]:
    """The terms of a sum, with their signs.

    >>> [(sign, each.id) for sign, each in terms(ast.parse("a - (b - c)", mode="eval").body)]
    [(1, 'a'), (-1, 'b'), (1, 'c')]
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        return [*terms(node.left, sign), *terms(node.right, sign if isinstance(node.op, ast.Add) else -sign)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return terms(node.operand, -sign)
    return [(sign, node)]
