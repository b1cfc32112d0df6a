"""Walks through a file in the order it runs in, and keeps what is known of each name. `calls` says what functions do.

Where two ways meet, only what holds on both stays known. A function starts with what is known of names that the code
around it sets once.
"""

import ast
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from .calls import Calls, path
from .names import Imports, words
from .values import UNKNOWN, KLCall, Value, join

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Env = dict[str, Value]
_NO_GRADIENT = {"no_grad", "inference_mode"}


class Flow:
    """What is known of every expression of a file.

    >>> flow = Flow(ast.parse("import torch\\nx = torch.softmax(y / T, dim=2)\\nx"))
    >>> value = flow.values[flow.tree.body[2].value]
    >>> value.kind, value.tempered, value.axes
    ('probabilities', ('T',), 3)
    """

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.imports = Imports(tree)
        self.values: dict[ast.AST, Value] = {}
        self.kl_calls: list[KLCall] = []
        self.parents: dict[ast.AST, ast.AST] = {
            child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)
        }
        self.without_gradient: set[ast.AST] = set()
        self._scope: ast.AST = tree
        self._quiet = 0
        self._once: dict[ast.AST, set[str]] = {}
        self._calls = Calls(self)
        self._block(tree.body, {})

    def value(self, node: ast.expr, env: Env) -> Value:
        """What is known of an expression, kept in `values`."""
        known = self._calls.value(node, env)
        self.values[node] = known
        if self._quiet:
            self.without_gradient.add(node)
        return known

    def found(self, call: KLCall) -> None:
        """Keep a call of kl_div."""
        self.kl_calls.append(call)

    @property
    def scope(self) -> ast.AST:
        """The function that is being walked through, or the module."""
        return self._scope

    def lambda_body(self, node: ast.Lambda, env: Env) -> None:
        """A lambda sees what is known where it is written."""
        before, self._scope = self._scope, node
        self.value(node.body, {**env, **self._parameters(node)})
        self._scope = before

    # statements ----------------------------------------------------------------------------------------------------

    def _block(self, body: Iterable[ast.stmt], env: Env) -> None:
        for statement in body:
            self._statement(statement, env)

    def _statement(self, node: ast.stmt, env: Env) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._function(node, env)
        elif isinstance(node, ast.ClassDef):
            self._class(node, env)
        elif isinstance(node, ast.Assign):
            value = self.value(node.value, env)
            for target in node.targets:
                self._bind(target, value, env, node.value)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self._bind(node.target, self.value(node.value, env), env, node.value)
        elif isinstance(node, ast.AugAssign):
            self.value(node.value, env)
            sum_of_both = ast.copy_location(ast.BinOp(_read(node.target), node.op, node.value), node)
            self._bind(node.target, self._calls.value(sum_of_both, env), env, None)
        elif isinstance(node, ast.If):
            self.value(node.test, env)
            self._branches(env, node.body, node.orelse)
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While):
            if not isinstance(node, ast.While):
                self.value(node.iter, env)
            self._forget(node, env)
            if isinstance(node, ast.While):
                self.value(node.test, env)
            self._branches(env, node.body, [])
            self._block(node.orelse, env)
        elif isinstance(node, ast.With | ast.AsyncWith):
            self._with(node, env)
        elif isinstance(node, ast.Try | ast.TryStar):
            self._branches(env, node.body, [])
            for handler in node.handlers:
                self._branches(env, handler.body, [])
            self._block(node.orelse, env)
            self._block(node.finalbody, env)
        elif isinstance(node, ast.Match):
            self.value(node.subject, env)
            self._forget(node, env)
            for case in node.cases:
                self._block(case.body, dict(env))
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.value(child, env)

    def _branches(self, env: Env, first: list[ast.stmt], second: list[ast.stmt]) -> None:
        one, other = dict(env), dict(env)
        self._block(first, one)
        self._block(second, other)
        ways = [way for body, way in ((first, one), (second, other)) if not _leaves(body)] or [one, other]
        env.clear()
        for name in {name for way in ways for name in way}:
            values = [way.get(name, UNKNOWN) for way in ways]
            env[name] = values[0] if len(values) == 1 else join(*values)

    def _with(self, node: ast.With | ast.AsyncWith, env: Env) -> None:
        quiet = False
        for item in node.items:
            value = self.value(item.context_expr, env)
            quiet |= _stops_gradients(item.context_expr)
            if item.optional_vars is not None:
                self._bind(item.optional_vars, value, env, None)
        self._quiet += quiet
        self._block(node.body, env)
        self._quiet -= quiet

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, env: Env) -> None:
        for expression in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.value(expression, env)
        around = self._scope
        if around not in self._once:
            self._once[around] = _set_once(around)
        once = self._once[around]
        inner = {name: value for name, value in env.items() if name in once or "." in name} | self._parameters(node)
        before_quiet = self._quiet
        self._quiet = int(any(map(_stops_gradients, node.decorator_list)))
        self._scope = node
        self._block(node.body, inner)
        self._scope, self._quiet = around, before_quiet
        env[node.name] = UNKNOWN

    def _parameters(self, node: Function) -> Env:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        return {each.arg: Value(axes=_annotated_axes(each.annotation)) for each in every}

    def _class(self, node: ast.ClassDef, env: Env) -> None:
        """Modules that one method sets, once, as `self.x` are known to all."""
        inner = {name: value for name, value in env.items() if not name.startswith("self.")}
        assigned = [each for each in ast.walk(node) if isinstance(each, ast.Assign | ast.AnnAssign | ast.AugAssign)]
        attributes = Counter(name for each in assigned for name in map(_self_attribute, _targets(each)) if name)
        for each in assigned:
            for name in filter(None, map(_self_attribute, _targets(each))):
                if attributes[name] == 1 and isinstance(each, ast.Assign) and isinstance(each.value, ast.Call):
                    made = self._calls.module(each.value)
                    if made is not None:
                        inner[name] = Value(module=made)
        self._block(node.body, inner)
        env[node.name] = UNKNOWN

    # names ---------------------------------------------------------------------------------------------------------

    def _bind(self, target: ast.expr, value: Value, env: Env, source: ast.expr | None) -> None:
        if isinstance(target, ast.Starred):
            self._bind(target.value, UNKNOWN, env, None)
        elif isinstance(target, ast.Tuple | ast.List):
            self._unpack(target, value, env, source)
        elif isinstance(target, ast.Name):
            env[target.id] = value
        elif isinstance(target, ast.Attribute):
            env[path(target)] = value
        else:  # an item of something: what it holds is no longer known
            base: ast.expr = target
            while isinstance(base, ast.Subscript):
                base = base.value
            if isinstance(base, ast.Name | ast.Attribute):
                env[path(base)] = UNKNOWN

    def _unpack(self, target: ast.Tuple | ast.List, value: Value, env: Env, source: ast.expr | None) -> None:
        if isinstance(source, ast.Tuple | ast.List) and len(source.elts) == len(target.elts):
            for one, its in zip(target.elts, source.elts, strict=True):
                self._bind(one, self.values.get(its, UNKNOWN), env, its)
            return
        shape_of = _whose_shape(source)
        if shape_of is not None and not any(isinstance(one, ast.Starred) for one in target.elts):
            known = self.values.get(shape_of, UNKNOWN)
            env[path(shape_of)] = replace(known, axes=max(known.axes, len(target.elts)))
        parts = self._calls.parts(source, value)
        for one in target.elts:
            self._bind(one, parts, env, None)

    def _forget(self, node: ast.AST, env: Env) -> None:
        for name in _assigned(node):
            env.pop(name, None)


def _read(target: ast.Name | ast.Attribute | ast.Subscript) -> ast.expr:
    return ast.copy_location(ast.parse(ast.unparse(target), mode="eval").body, target)


def _leaves(body: list[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)


def _stops_gradients(node: ast.expr) -> bool:
    called = node.func if isinstance(node, ast.Call) else node
    return isinstance(called, ast.Attribute | ast.Name) and ast.unparse(called).rpartition(".")[2] in _NO_GRADIENT


def _targets(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> list[ast.expr]:
    return list(node.targets) if isinstance(node, ast.Assign) else [node.target]


def _self_attribute(node: ast.expr) -> str | None:
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return path(node) if named else None


def _assigned(node: ast.AST) -> list[str]:
    """Every name that is set below a node, as often as it is."""
    found = []
    for each in ast.walk(node):
        if isinstance(each, ast.Name | ast.Attribute) and isinstance(each.ctx, ast.Store):
            found.append(path(each))
        elif isinstance(each, ast.Subscript) and isinstance(each.ctx, ast.Store):
            found.append(path(each.value))
    return found


def _set_once(scope: ast.AST) -> set[str]:
    """Names that a scope itself sets once; functions inside have names of their own."""
    count: Counter[str] = Counter()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                continue
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                count[child.id] += 1
            visit(child)

    visit(scope)
    return {name for name, times in count.items() if times == 1}


def _whose_shape(node: ast.expr | None) -> ast.expr | None:
    """x, of `x.shape` and `x.size()`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "size":
        return node.func.value if not node.args and not node.keywords else None
    return node.value if isinstance(node, ast.Attribute) and node.attr == "shape" else None


def _annotated_axes(annotation: ast.expr | None) -> int:
    """The axes that an annotation such as `Float[Tensor, "batch time classes"]` names."""
    if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.slice, ast.Tuple):
        return 0
    last = annotation.slice.elts[-1]
    if not isinstance(last, ast.Constant) or not isinstance(last.value, str) or "Literal" in ast.unparse(annotation):
        return 0
    return sum(1 for word in last.value.split() if not word.startswith(("*", "..."))) if words(last.value) else 0
