"""What rules may ask about a file."""

import ast
from collections.abc import Iterator
from typing import TypeGuard

from .flow import Flow
from .values import UNKNOWN, KLCall, Value

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Context:
    """A file, walked through."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.splitlines(keepends=True)
        self.tree = ast.parse(text)
        self.flow = Flow(self.tree)
        self.nodes = list(ast.walk(self.tree))

    @property
    def kl_calls(self) -> list[KLCall]:
        """The calls of kl_div, in the order they were met."""
        return self.flow.kl_calls

    def value(self, node: ast.AST | None) -> Value:
        """What is known of an expression."""
        return UNKNOWN if node is None else self.flow.values.get(node, UNKNOWN)

    def name(self, node: ast.expr) -> str | None:
        """The full name of what is imported."""
        return self.flow.imports.dotted(node)

    def source(self, node: ast.AST) -> str:
        """The text of a node, as it stands in the file."""
        return ast.get_source_segment(self.text, node) or ast.unparse(node)

    def parent(self, node: ast.AST) -> ast.AST | None:
        """What a node stands in."""
        return self.flow.parents.get(node)

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """Everything around a node, from the inside."""
        while (parent := self.parent(node)) is not None:
            yield parent
            node = parent

    def statement(self, node: ast.AST) -> ast.stmt | None:
        """The statement that an expression is part of."""
        return next((each for each in self.above(node) if isinstance(each, ast.stmt)), None)

    def function(self, node: ast.AST) -> FunctionNode | None:
        """The function around a node."""
        return next((each for each in self.above(node) if _is_function(each)), None)

    def words_around(self, node: ast.AST) -> str:
        """The text of the function around a node, comments included, after its classes' names; else the file's."""
        function = self.function(node)
        if function is None:
            return self.text
        names = [each.name for each in self.above(function) if isinstance(each, ast.ClassDef | FunctionNode)]
        return "\n".join([*names, "".join(self.lines[function.lineno - 1 : function.end_lineno])])

    def targets(self, node: ast.AST) -> list[str]:
        """The names that the statement around an expression assigns to."""
        statement = self.statement(node)
        if isinstance(statement, ast.Assign):
            return [ast.unparse(each) for each in statement.targets]
        if isinstance(statement, ast.AugAssign | ast.AnnAssign):
            return [ast.unparse(statement.target)]
        return []


def _is_function(node: ast.AST) -> TypeGuard[FunctionNode]:
    return isinstance(node, FunctionNode)
