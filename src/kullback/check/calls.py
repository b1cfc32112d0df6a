"""What is known of the value of an expression, from what is known of its parts: what PyTorch's functions do."""

import ast
from dataclasses import replace
from typing import Any, Protocol, cast

from .algebra import constant, terms
from .names import Imports, is_temperature, kind_of_name, role_of_name, words
from .values import UNKNOWN, KLCall, Module, Value, combined, join, recast

Env = dict[str, Value]

_NN = ("torch.nn.functional.", "torch.special.", "torch.")
SOFTMAX = {f"{home}softmax" for home in _NN} | {"scipy.special.softmax"}
LOG_SOFTMAX = {f"{home}log_softmax" for home in _NN} | {"scipy.special.log_softmax"}
LOG = {"torch.log", "numpy.log", "math.log", "jax.numpy.log"}
EXP = {"torch.exp", "numpy.exp", "math.exp", "jax.numpy.exp"}
KL_DIV = {"torch.nn.functional.kl_div", "torch.kl_div", "kullback.torch_compat.kl_div"}
KL_LOSS = {"torch.nn.KLDivLoss", "torch.nn.modules.loss.KLDivLoss", "torch.nn.modules.KLDivLoss"}
KL_LOSS |= {"kullback.torch_compat.KLDivLoss"}
_ARRAYS = ("torch.", "numpy.", "jax.numpy.")
SMALL = 1e-2  # what is added to probabilities or clamps them from below, if it is no more than this
_SAME = {
    "clone", "contiguous", "cpu", "cuda", "detach", "double", "float", "half", "bfloat16", "requires_grad_", "to",
    "type", "type_as", "numpy", "nan_to_num", "nan_to_num_",
}  # fmt: skip
_MASKED = {
    "masked_fill",
    "masked_fill_",
    "masked_select",
    "index_select",
    "expand",
    "expand_as",
    "transpose",
    "flip",
    "roll",
}
_IN_PLACE = {"requires_grad_", "clamp_", "masked_fill_", "nan_to_num_"}  # what they leave is known
_MADE = {"rand", "randn", "zeros", "ones", "empty", "full"}


def argument(call: ast.Call, at: int, *names: str) -> ast.expr | None:
    """An argument by position or by name; None if it is not there, or hidden behind a star."""
    for keyword in call.keywords:
        if keyword.arg in names:
            return keyword.value
    before = call.args[: at + 1]
    if len(before) <= at or any(isinstance(each, ast.Starred) for each in before):
        return None
    return call.args[at]


def hides_arguments(call: ast.Call) -> bool:
    """Whether a star may bring arguments that cannot be seen."""
    return any(isinstance(each, ast.Starred) for each in call.args) or any(each.arg is None for each in call.keywords)


def is_small(node: ast.expr) -> bool:
    """Whether it is an epsilon: a small number, or a name that says so."""
    value = constant(node)
    if isinstance(value, float):
        return 0.0 < value <= SMALL
    if isinstance(node, ast.Name | ast.Attribute):
        parts = words(node.id if isinstance(node, ast.Name) else node.attr)
        return bool({"eps", "epsilon"} & set(parts))
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and constant(node.left) == 10 and (
        isinstance(constant(node.right), int) and constant(node.right) < -1
    )  # fmt: skip


def path(node: ast.expr) -> str:
    """A name, or names with dots between, as they are written: what is known is kept under it."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{path(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ast.unparse(node)


class Walk(Protocol):
    """Who walks through the file, and keeps what is known."""

    imports: Imports
    values: dict[ast.AST, Value]

    @property
    def scope(self) -> ast.AST:
        """The function that is being walked through."""

    def value(self, node: ast.expr, env: Env) -> Value:
        """What is known of an expression."""

    def found(self, call: KLCall) -> None:
        """Keep a call of kl_div."""

    def lambda_body(self, node: ast.Lambda, env: Env) -> None:
        """Walk through a lambda."""


class Calls:
    """Values of expressions."""

    def __init__(self, flow: Walk) -> None:
        self.flow = flow

    def value(self, node: ast.expr, env: Env) -> Value:
        """What is known of an expression."""
        if isinstance(node, ast.Name | ast.Attribute):
            return self._named(node, env)
        if isinstance(node, ast.Call):
            return self._call(node, env)
        if isinstance(node, ast.BinOp):
            return self._operation(node, self.flow.value(node.left, env), self.flow.value(node.right, env))
        if isinstance(node, ast.UnaryOp):
            value = self.flow.value(node.operand, env)
            if isinstance(node.op, ast.USub):
                return replace(combined(value, UNKNOWN), difference=value.difference)
            return UNKNOWN
        if isinstance(node, ast.Subscript):
            return self._item(node, env)
        if isinstance(node, ast.IfExp):
            self.flow.value(node.test, env)
            return join(self.flow.value(node.body, env), self.flow.value(node.orelse, env))
        if isinstance(node, ast.NamedExpr):
            value = self.flow.value(node.value, env)
            env[node.target.id] = value
            return value
        if isinstance(node, ast.Lambda):
            self.flow.lambda_body(node, env)
            return UNKNOWN
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            return self._comprehension(node, env)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.flow.value(child, env)
        return UNKNOWN

    def module(self, call: ast.Call) -> Module | None:
        """The module that a call makes."""
        name = self.flow.imports.dotted(call.func) or ""
        if name in KL_LOSS:
            return Module("kl", call)
        if name in ("torch.nn.Softmax", "torch.nn.LogSoftmax"):
            return Module("softmax" if name.endswith(".Softmax") else "log_softmax", call)
        return None

    def parts(self, source: ast.expr | None, value: Value) -> Value:
        """What is known of each part that a tuple is unpacked to."""
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute):
            if source.func.attr in ("chunk", "split", "tensor_split", "unbind"):
                dim = argument(source, 1, "dim")
                return replace(value, fresh=False) if constant(dim) == 0 or dim is None else UNKNOWN
            return Value(role=value.role)
        return UNKNOWN

    # names and items -----------------------------------------------------------------------------------------------

    def _named(self, node: ast.Name | ast.Attribute, env: Env) -> Value:
        if isinstance(node, ast.Attribute):
            self.flow.value(node.value, env)
        name = node.id if isinstance(node, ast.Name) else node.attr
        known = env.get(path(node)) or UNKNOWN
        if isinstance(node, ast.Attribute) and node.attr == "T":  # a transposed matrix, or a temperature
            return known
        if known.kind is None and known.kl is None and known.module is None and not known.difference:
            kind = kind_of_name(name)
            known = known if kind is None else replace(known, kind=cast(Any, kind), named=True)
        role = known.role or role_of_name(name)
        if role is None and isinstance(node, ast.Attribute):
            role = self.flow.values[node.value].role
        return known if role == known.role else replace(known, role=role)

    def _item(self, node: ast.Subscript, env: Env) -> Value:
        value = self.flow.value(node.value, env)
        self.flow.value(node.slice, env)
        index = node.slice
        if isinstance(index, ast.Tuple) and index.elts:
            slices = sum(isinstance(each, ast.Slice) or constant(each) is Ellipsis for each in index.elts)
            added = sum(isinstance(each, ast.Constant) and each.value is None for each in index.elts)
            last = index.elts[-1]
            if isinstance(last, ast.Slice) or constant(last) is Ellipsis or (added and constant(last) is None):
                certain = sum(isinstance(each, ast.Slice) for each in index.elts) + added
                plain = slices + added == len(index.elts)
                return recast(value, axes=max(certain, value.axes if plain else 0))
            return Value(role=value.role, kl=value.kl, reduced=True)
        if isinstance(index, ast.Slice):
            return recast(value, axes=max(value.axes, 1))
        if isinstance(index, ast.Constant):  # an element, of a tuple perhaps
            return Value(role=value.role)
        return recast(value, axes=0)

    def _comprehension(self, node: Any, env: Env) -> Value:
        inner = dict(env)
        for each in node.generators:
            self.flow.value(each.iter, inner)
            for name in ast.walk(each.target):
                if isinstance(name, ast.Name):
                    inner[name.id] = UNKNOWN
            for test in each.ifs:
                self.flow.value(test, inner)
        if isinstance(node, ast.DictComp):
            self.flow.value(node.key, inner)
            self.flow.value(node.value, inner)
        else:
            self.flow.value(node.elt, inner)
        return UNKNOWN

    # arithmetic ----------------------------------------------------------------------------------------------------

    def _operation(self, node: ast.BinOp, left: Value, right: Value) -> Value:
        op = node.op
        if isinstance(op, ast.Div):
            return self._quotient(node, left, right)
        if isinstance(op, ast.Mult):
            for half, both in ((node.left, node.right), (node.right, node.left)):
                if constant(half) == 0.5 and (mixture := self._mixture(both)) is not None:
                    return mixture
            result = combined(left, right)
            if left.exp_of or right.exp_of:  # k3 times the ratio has the right gradient
                result = replace(result, k3=None)
            return result
        if isinstance(op, ast.Add | ast.Sub):
            for value, other in ((left, node.right), (right, node.left)):
                if is_small(other) and isinstance(op, ast.Add):
                    if value.kind == "probabilities":
                        return replace(value, epsilon=node, fresh=False)
                    return replace(combined(left, right), epsilon=node)
            result = combined(left, right)
            if isinstance(op, ast.Sub):
                result = replace(
                    result, kind="log-ratio" if _both(left, right, "log-probabilities") else None, difference=True
                )
            return replace(result, k3=node) if self._is_k3(node) else result
        if isinstance(op, ast.Pow) and (left.kl is not None or left.k3 is not None):
            return UNKNOWN
        return Value(axes=max(left.axes, right.axes))

    def _mixture(self, node: ast.expr) -> Value | None:
        """What half of p + q is, where both are probabilities."""
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
            return None
        left, right = (self.flow.values.get(each, UNKNOWN) for each in (node.left, node.right))
        if not _both(left, right, "probabilities"):
            return None
        return Value(kind="probabilities", named=left.named or right.named, axes=max(left.axes, right.axes))

    def _is_k3(self, node: ast.BinOp) -> bool:
        """Whether it is exp(r) - r - 1 of a difference r, however it is written."""
        parts = terms(node)
        ones = [part for part in parts if constant(part[1]) in (1, 1.0)]
        powers = [part for part in parts if self.flow.values.get(part[1], UNKNOWN).exp_of]
        if [sign for sign, _ in ones] != [-1] or [sign for sign, _ in powers] != [1]:
            return False
        exponent = ast.parse(self.flow.values[powers[0][1]].exp_of or "", mode="eval").body
        rest = [part for part in parts if part not in (*ones, *powers)]
        taken = sorted((-sign, ast.unparse(each)) for sign, each in rest)
        if not rest or taken != sorted((sign, ast.unparse(each)) for sign, each in terms(exponent)):
            return False
        named = {word for _, each in rest for word in words(ast.unparse(each))}
        differs = any(self.flow.values.get(each, UNKNOWN).difference for _, each in rest)
        return len(rest) == 2 or differs or bool(named & {"ratio", "logratio", "ratios", "diff", "delta", "kl"})

    def _quotient(self, node: ast.BinOp, left: Value, right: Value) -> Value:
        if left.kl is not None or left.k3 is not None:
            return combined(left, right)
        mixture = self._mixture(node.left) if constant(node.right) == 2 else None
        if mixture is not None:
            return mixture
        if left.kind == "probabilities":
            sums = isinstance(node.right, ast.Call) and isinstance(node.right.func, ast.Attribute)
            total = sums and cast(ast.Attribute, cast(ast.Call, node.right).func).attr == "sum"
            return recast(left) if total else Value(axes=left.axes, role=left.role)
        if is_temperature(node.right):
            return Value(
                kind="logits" if left.kind == "logits" else None,
                named=left.named,
                axes=left.axes,
                tempered=(*left.tempered, ast.unparse(node.right)),
                role=left.role,
            )
        return replace(combined(left, right), tempered=(*left.tempered, "?"), role=left.role)

    # calls ---------------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call, env: Env) -> Value:
        for each in node.args:
            self.flow.value(each.value if isinstance(each, ast.Starred) else each, env)
        for keyword in node.keywords:
            self.flow.value(keyword.value, env)
        name = self.flow.imports.dotted(node.func)
        if isinstance(node.func, ast.Attribute) and name is None:
            receiver = self.flow.value(node.func.value, env)
            itself = self.flow.value(node.func, env)
            if itself.module is not None:
                return self._use(itself.module, node)
            after = self._does(node.func.attr, node, node.func.value, receiver, 0)
            if node.func.attr.endswith("_") and not node.func.attr.startswith("_"):  # it works in place
                env[path(node.func.value)] = after if node.func.attr in _IN_PLACE else UNKNOWN
            return after
        if not isinstance(node.func, ast.Attribute):
            itself = self.flow.value(node.func, env)
            if itself.module is not None:
                return self._use(itself.module, node)
        if name in KL_DIV:
            return self._kl(node, node, functional=True)
        made = self.module(node)
        if made is not None:
            return Value(module=made)
        first = argument(node, 0, "input", "x", "a", "tensor", "tensors")
        value = UNKNOWN if first is None else self.flow.values.get(first, UNKNOWN)
        if name in SOFTMAX or name in LOG_SOFTMAX:
            return self._softmax(node, value, "probabilities" if name in SOFTMAX else "log-probabilities", 1)
        if name == "torch.nn.functional.gumbel_softmax":
            return Value(kind="probabilities", axes=value.axes, role=value.role)
        if name is not None and name.startswith(("einops.", *_ARRAYS)):
            short = name.rpartition(".")[2]
            if short in _MADE:
                return Value(axes=_sizes(node.args))
            return UNKNOWN if first is None else self._does(short, node, first, value, 1)
        return self._opaque(node, value)

    def _opaque(self, node: ast.Call, first: Value) -> Value:
        """A function that is not known: its name may say whose output this is."""
        given = [self.flow.values.get(each, UNKNOWN) for each in node.args]
        tempered = any(map(is_temperature, [each for each in node.args if not isinstance(each, ast.Constant)]))
        tempered |= any(each.arg is not None and is_temperature(ast.Name(each.arg)) for each in node.keywords)
        called = role_of_name(ast.unparse(node.func)) if isinstance(node.func, ast.Name | ast.Attribute) else None
        roles = {value.role for value in given if value.role}
        return Value(
            tempered=("?",) if tempered or any(value.tempered for value in given) else (),
            role=called or (roles.pop() if len(roles) == 1 else None),
        )

    def _use(self, module: Module, node: ast.Call) -> Value:
        if module.what == "kl":
            return self._kl(node, module.made, functional=False)
        first = argument(node, 0, "input")
        value = UNKNOWN if first is None else self.flow.values.get(first, UNKNOWN)
        kind = "probabilities" if module.what == "softmax" else "log-probabilities"
        return self._softmax(node, value, kind, 1, argument(module.made, 0, "dim"))

    def _softmax(self, node: ast.Call, of: Value, kind: Any, at: int, dim: ast.expr | None = None) -> Value:
        number = constant(dim or argument(node, at, "dim", "axis"))
        axes = of.axes
        if isinstance(number, int):
            axes = max(axes, number + 1 if number >= 0 else -number)
        return Value(kind=kind, axes=axes, softmax=node, fresh=True, tempered=of.tempered, role=of.role)

    def _kl(self, node: ast.Call, options: ast.Call, *, functional: bool) -> Value:
        native = functional and self.flow.imports.dotted(node.func) == "torch.kl_div"  # it has fewer options
        first = 2 if functional else 0
        hidden = hides_arguments(options)
        reduction = argument(options, first + (0 if native else 2), "reduction")
        log_target = argument(options, 9 if native else first + 3, "log_target")
        old = () if native else (argument(options, first, "size_average"), argument(options, first + 1, "reduce"))
        call = KLCall(
            node,
            argument(node, 0, "input"),
            argument(node, 1, "target"),
            _reduction(reduction, old, hidden=hidden),
            (None if hidden else False) if log_target is None else cast("bool | None", constant(log_target)),
            options,
            self.flow.scope,
        )
        self.flow.found(call)
        values = [self.flow.values.get(each, UNKNOWN) for each in (call.input, call.target) if each is not None]
        tempered = next((value.tempered for value in values if value.tempered), ())
        axes = max((value.axes for value in values), default=0) if call.reduction == "none" else 0
        return Value(kl=call, reduced=call.reduction != "none", tempered=tempered, axes=axes)

    def _does(self, short: str, node: ast.Call, first: ast.expr, value: Value, at: int) -> Value:
        """What a method, or the function of that name, makes of its first operand; its options start at `at`."""
        if short in ("softmax", "log_softmax"):
            return self._softmax(node, value, "probabilities" if short == "softmax" else "log-probabilities", at)
        if short in _SAME:
            if short == "detach":
                value = replace(value, k3=None)
            return recast(value, fresh=True)
        if short == "log":
            if value.kind != "probabilities":
                return Value(axes=value.axes, role=value.role, epsilon=value.epsilon)
            return replace(value, kind="log-probabilities", fresh=False)
        if short == "exp":
            if value.kind == "log-probabilities":
                return replace(value, kind="probabilities", fresh=False, exp_of=ast.unparse(first))
            return Value(axes=value.axes, role=value.role, exp_of=ast.unparse(first))
        if short in ("clamp", "clamp_min", "clip", "clamp_", "maximum"):
            low = argument(node, at, "min", "a_min", "other")
            epsilon = node if low is not None and is_small(low) else value.epsilon
            if value.kl or value.k3 or value.kind == "probabilities":
                return replace(value, epsilon=epsilon, fresh=False)
            return Value(axes=value.axes, role=value.role, epsilon=epsilon)
        if short in ("div", "true_divide", "mul", "add", "sub"):
            other = argument(node, at, "other")
            if other is not None:
                op = {"mul": ast.Mult(), "add": ast.Add(), "sub": ast.Sub()}.get(short, ast.Div())
                same = ast.copy_location(ast.BinOp(first, op, other), node)
                return self._operation(same, value, self.flow.values.get(other, UNKNOWN))
        if short in ("sum", "mean", "nansum", "nanmean"):
            return self._reduce(node, value, at)
        if short in _MASKED:
            return recast(value)
        if short in ("where", "cat", "stack", "concat"):
            return self._joined(node, first, value, short, at)
        return self._reshaped(short, node, value, at)

    def _reduce(self, node: ast.Call, value: Value, at: int) -> Value:
        dim = argument(node, at, "dim", "axis")
        kept = constant(argument(node, at + 1, "keepdim", "keepdims")) is True
        axes = 0 if dim is None else max(value.axes - (0 if kept else 1), 0)
        return Value(axes=axes, role=value.role, kl=value.kl, reduced=True, k3=value.k3, tempered=value.tempered)

    def _joined(self, node: ast.Call, first: ast.expr, value: Value, short: str, at: int) -> Value:
        if short == "where":
            if at == 0 or len(node.args) != 3:
                return UNKNOWN
            return recast(join(*(self.flow.values.get(each, UNKNOWN) for each in node.args[1:])))
        if not isinstance(first, ast.Tuple | ast.List) or not first.elts:
            return UNKNOWN
        values = [self.flow.values.get(each, UNKNOWN) for each in first.elts]
        whole = values[0]
        for each in values[1:]:
            whole = join(whole, each)
        return recast(whole, axes=whole.axes + (short == "stack"))

    def _reshaped(self, short: str, node: ast.Call, value: Value, at: int) -> Value:
        sizes = node.args[at:]
        if short in ("view", "reshape"):
            return recast(value, axes=_sizes(sizes))
        if short == "permute":
            return recast(value, axes=max(value.axes, _sizes(sizes)))
        if short == "unsqueeze":
            return recast(value, axes=value.axes + 1)
        if short in ("squeeze", "flatten"):
            return recast(value, axes=0)
        if short == "rearrange":
            pattern = constant(argument(node, at, "pattern"))
            return recast(value, axes=_rearranged(pattern) if isinstance(pattern, str) else 0)
        return Value(role=value.role, tempered=("?",) if value.tempered else ())


def _both(left: Value, right: Value, kind: str) -> bool:
    return left.kind == kind and right.kind == kind


def _sizes(sizes: list[ast.expr]) -> int:
    """How many axes `view(*sizes)` makes; 0 where it cannot be seen."""
    if len(sizes) == 1 and isinstance(sizes[0], ast.Tuple | ast.List):
        sizes = sizes[0].elts
    if any(isinstance(each, ast.Starred) for each in sizes):
        return 0
    return len(sizes) if len(sizes) > 1 or (sizes and constant(sizes[0]) == -1) else 0


def _rearranged(pattern: str) -> int:
    depth, axes = 0, 0
    for token in pattern.rpartition("->")[2].replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            axes, depth = axes + (depth == 0), depth + 1
        elif token == ")":
            depth -= 1
        elif depth == 0 and token != "...":
            axes += 1
    return axes


def _reduction(reduction: ast.expr | None, old: tuple[ast.expr | None, ...], *, hidden: bool) -> str | None:
    if any(each is not None for each in old):
        average, reduce = (True if constant(each) is None else constant(each) for each in old)
        return ("mean" if average else "sum") if reduce else "none"
    if reduction is None:
        return None if hidden else "mean"
    value = constant(reduction)
    if isinstance(value, int):
        return {0: "none", 1: "mean", 2: "sum"}.get(value)
    return value if isinstance(value, str) else None
