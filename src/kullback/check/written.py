"""Rules about what is written by hand: logarithms, estimators, closed forms, and what hides their defects."""

import ast
from collections.abc import Iterator

from .algebra import constant, terms
from .calls import EXP, LOG, argument, is_small
from .context import Context
from .finding import Hit
from .kl_div import log_softmax_text
from .names import words

_INFORMATION = {"scipy.stats.entropy", "scipy.special.rel_entr", "scipy.special.kl_div"}
_PRODUCTS = {"dot", "vdot", "inner", "mul", "multiply"}
_DIVERGENCES = {"kl", "kld", "kldiv", "divergence", "entropy", "jsd", "js", "jensen"}
_JENSEN_SHANNON = "scipy.spatial.distance.jensenshannon"
_LOG_SOFTMAX_ELSEWHERE = "F.log_softmax(logits, dim=-1), or a kullback verb on Logits(logits)"


def logarithm(file: Context, node: ast.AST) -> ast.expr | None:
    """x, of log(x) and x.log()."""
    return _operand(file, node, LOG, "log")


def _operand(file: Context, node: ast.AST, functions: set[str], method: str) -> ast.expr | None:
    if not isinstance(node, ast.Call):
        return None
    name = file.name(node.func)
    if name is not None:
        return node.args[0] if name in functions and node.args else None
    if isinstance(node.func, ast.Attribute) and node.func.attr == method and not node.args and not node.keywords:
        return node.func.value
    return None


def epsilon_in_log(file: Context) -> Iterator[Hit]:
    """KLB008: something small is added to probabilities, or they are clamped, before a logarithm of a divergence."""
    in_kl_div = {file.value(side).epsilon for call in file.kl_calls for side in (call.input, call.target)} - {None}
    for node in file.nodes:
        of = logarithm(file, node)
        if of is not None and isinstance(node, ast.expr):
            value = file.value(of)
            probabilities = value.epsilon is not None and value.kind == "probabilities"
            weighted = probabilities and (value.softmax is not None or _by_a_distribution(file, node))
            if not weighted and value.epsilon not in in_kl_div and not _p_log_p(file, node, of):
                continue
            if _is_guarded(file, node):
                continue
            whole = of if value.epsilon is of and isinstance(of, ast.BinOp) else None
            inside = None if whole is None else (whole.right if is_small(whole.left) else whole.left)
            text = None if inside is None else log_softmax_text(file, inside)
            if text is None and isinstance(of, ast.Call) and value.epsilon is of and isinstance(of.func, ast.Attribute):
                text = log_softmax_text(file, of.func.value) if file.name(of.func) is None else None
            yield Hit(
                node,
                "an epsilon changes every value of this logarithm's sum, and hides a zero instead of giving it its "
                "meaning",
                _LOG_SOFTMAX_ELSEWHERE
                if value.softmax
                else "torch.special.xlogy, or kullback.kl(Probs(p), Probs(q)), where 0·log 0 = 0",
                () if text is None else ((node, text),),
            )
        elif isinstance(node, ast.Call) and file.name(node.func) in _INFORMATION:
            for each in node.args[:2]:
                if isinstance(each, ast.BinOp) and isinstance(each.op, ast.Add) and is_small(each.right):
                    yield Hit(
                        node,
                        "an epsilon is added to what this divergence is taken of",
                        "kullback.kl(Probs(p), Probs(q)): zeros have a meaning; for counts estimate.kl with a prior",
                    )
                    break


def _is_guarded(file: Context, node: ast.expr) -> bool:
    """Whether a `where` around it puts the limit in the place of what the epsilon made."""
    around = file.parent(node)
    return isinstance(around, ast.Call) and ast.unparse(around.func).rpartition(".")[2] == "where"


def _weight(file: Context, node: ast.expr) -> ast.expr | None:
    """p, of p * log(...), and of p * (log(...) - ...)."""
    below: ast.AST = node
    for each in file.above(node):
        if isinstance(each, ast.Call) and (file.name(each.func) or "").rpartition(".")[2] in _PRODUCTS:
            others = [other for other in each.args if other is not below]
            return others[0] if len(others) == 1 else None
        if not isinstance(each, ast.BinOp):
            return None
        if isinstance(each.op, ast.Mult | ast.MatMult):
            return each.right if each.left is below else each.left
        if not isinstance(each.op, ast.Add | ast.Sub):
            return None
        below = each
    return None


def _by_a_distribution(file: Context, node: ast.expr) -> bool:
    """Whether a logarithm is weighted by probabilities, or by what is called so, or stands in what is called KL."""
    weight = _weight(file, node)
    if weight is None:
        return False
    value, function = file.value(weight), file.function(node)
    called = [*file.targets(node), *([] if function is None else [function.name])]
    return (
        value.kind == "probabilities"
        or value.role is not None
        or bool(_DIVERGENCES & {part for name in called for part in words(name)})
    )


def _p_log_p(file: Context, node: ast.expr, of: ast.expr) -> bool:
    """Whether it is the logarithm of p * log(p + eps), or of p * log(p / (q + eps))."""
    weight = _weight(file, node)
    if weight is None or not _by_a_distribution(file, node):
        return False
    text = ast.unparse(weight)
    for each in _terms_with_epsilon(file, of):
        parts = [ast.unparse(part) for part in ast.walk(each) if isinstance(part, ast.expr)]
        if text in parts:
            return True
    quotient = of.left if isinstance(of, ast.BinOp) and isinstance(of.op, ast.Add) and is_small(of.right) else of
    if isinstance(quotient, ast.BinOp) and isinstance(quotient.op, ast.Div):
        has_epsilon = (
            quotient is not of
            or any(True for _ in _terms_with_epsilon(file, quotient.right))
            or any(True for _ in _terms_with_epsilon(file, quotient.left))
        )
        top = {ast.unparse(part) for part in ast.walk(quotient.left) if isinstance(part, ast.expr)}
        return has_epsilon and text in top
    return False


def _terms_with_epsilon(file: Context, node: ast.expr) -> Iterator[ast.expr]:
    """x, of x + eps and of x.clamp(min=eps)."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        if is_small(node.right):
            yield node.left
        elif is_small(node.left):
            yield node.right
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in (
        "clamp", "clamp_min", "clip", "maximum",
    ):  # fmt: skip
        method = file.name(node.func) is None
        low = argument(node, 0 if method else 1, "min", "a_min")
        if low is not None and is_small(low) and (method or node.args):
            yield node.func.value if method else node.args[0]


def log_of_softmax(file: Context) -> Iterator[Hit]:
    """KLB009: the logarithm of a softmax: -inf where the softmax underflows."""
    for node in file.nodes:
        of = logarithm(file, node)
        if of is None or not isinstance(node, ast.expr):
            continue
        value = file.value(of)
        if value.kind == "probabilities" and value.fresh and value.softmax is not None:
            text = log_softmax_text(file, of)
            yield Hit(
                node,
                "the softmax underflows to 0 before its logarithm is taken: -inf, and NaN in gradients",
                _LOG_SOFTMAX_ELSEWHERE,
                () if text is None else ((node, text),),
            )


def hidden_nan(file: Context) -> Iterator[Hit]:
    """KLB010: `nan_to_num` on a divergence, or on the loss that holds one."""
    scopes = {call.scope for call in file.kl_calls}
    for node in file.nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = file.name(node.func)
        if name is not None and name.rpartition(".")[2] == "nan_to_num" and node.args:
            of = node.args[0]
        elif name is None and isinstance(node.func, ast.Attribute) and node.func.attr in ("nan_to_num", "nan_to_num_"):
            of = node.func.value
        else:
            continue
        parts = set(words(ast.unparse(of))) if isinstance(of, ast.Name | ast.Attribute) else set()
        known = file.value(of)
        is_kl = known.kl is not None or (not known.difference and parts & {"kl", "kld", "kldiv", "divergence", "jsd"})
        if is_kl or ("loss" in parts and (file.function(node) or file.tree) in scopes):
            yield Hit(
                node,
                "nan_to_num hides the NaN of a zero or of a broken input; its gradient stays NaN, or becomes 0",
                "kullback.kl, which is finite wherever the mathematics is; or torch_compat.kl_div",
            )


def gaussian_by_hand(file: Context) -> Iterator[Hit]:
    """KLB012: the closed form 1 + log σ² - μ² - σ², written out."""
    for node in file.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub) and not _is_term(file, node):
            parts = terms(node)
            if len(parts) == 4 and _is_gaussian(file, parts):
                mean = _mean_around(file, node)
                also = ", and this mean divides by the latent axes as well as by the batch" if mean else ""
                yield Hit(
                    node,
                    f"the KL of a Gaussian from N(0, 1), written by hand{also}",
                    "kullback.losses.gaussian_kl(DiagonalGaussian(mu, logvar)), one value a row, 1e-5 accurate near 0",
                )


def _is_term(file: Context, node: ast.expr) -> bool:
    """Whether a sum is part of a larger one."""
    parent = file.parent(node)
    return isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Add | ast.Sub)


def _is_gaussian(file: Context, parts: list[tuple[int, ast.expr]]) -> bool:
    ones = [(sign, node) for sign, node in parts if constant(node) in (1, 1.0)]
    if len(ones) != 1:
        return False
    way = ones[0][0]
    rest = [(sign * way, node) for sign, node in parts if node is not ones[0][1]]
    plus, minus = [node for sign, node in rest if sign > 0], [node for sign, node in rest if sign < 0]
    if len(plus) != 1 or len(minus) != 2:
        return False
    squares = [node for node in minus if _square(file, node) is not None]
    return any(_belongs(file, plus[0], other) for mean in squares for other in minus if other is not mean)


def _belongs(file: Context, log_variance: ast.expr, variance: ast.expr) -> bool:
    """Whether one is the logarithm of the other: L and exp(L), log V and V, log σ² and σ², 2 log σ and σ²."""
    exponent = _operand(file, variance, EXP, "exp")
    if exponent is not None and _text(exponent) == _text(log_variance):
        return True
    inside = logarithm(file, log_variance)
    if inside is not None and _text(inside) == _text(variance):
        return True
    root, doubled = _square(file, variance), _doubled(log_variance)
    if root is None or doubled is None:
        return False
    exponent, inside = _operand(file, root, EXP, "exp"), logarithm(file, doubled)
    return (exponent is not None and _text(exponent) == _text(doubled)) or (
        inside is not None and _text(inside) == _text(root)
    )


def _square(file: Context, node: ast.expr) -> ast.expr | None:
    """x, of x ** 2, x.pow(2), torch.square(x), x * x."""
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow) and constant(node.right) in (2, 2.0):
            return node.left
        return node.left if isinstance(node.op, ast.Mult) and _text(node.left) == _text(node.right) else None
    if not isinstance(node, ast.Call):
        return None
    name = file.name(node.func)
    if name in ("torch.square", "numpy.square"):
        return node.args[0] if node.args else None
    if name in ("torch.pow", "numpy.power"):
        return node.args[0] if len(node.args) == 2 and constant(node.args[1]) == 2 else None
    if name is None and isinstance(node.func, ast.Attribute):
        power = node.func.attr == "pow" and len(node.args) == 1 and constant(node.args[0]) == 2
        if power or (node.func.attr == "square" and not node.args):
            return node.func.value
    return None


def _doubled(node: ast.expr) -> ast.expr | None:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for two, other in ((node.left, node.right), (node.right, node.left)):
            if constant(two) in (2, 2.0):
                return other
    return None


def _text(node: ast.expr) -> str:
    return ast.unparse(node)


def _mean_around(file: Context, node: ast.expr) -> bool:
    """Whether a mean over all axes is taken of the sum, or of a multiple of it."""
    below: ast.AST = node
    for each in file.above(node):
        if isinstance(each, ast.BinOp | ast.UnaryOp):
            below = each
            continue
        if isinstance(each, ast.Call) and file.name(each.func) == "torch.mean":
            return len(each.args) == 1 and not each.keywords
        if isinstance(each, ast.Attribute) and each.value is below and each.attr == "mean":
            call = file.parent(each)
            return isinstance(call, ast.Call) and not call.args and not call.keywords
        return False
    return False


def k3_as_loss(file: Context) -> Iterator[Hit]:
    """KLB013: the estimator exp(r) - r - 1, differentiated."""
    reported = set()
    for node in file.nodes:
        k3 = _k3_in_a_loss(file, node)
        if k3 is not None and k3 not in reported and k3 not in file.flow.without_gradient:
            reported.add(k3)
            yield Hit(
                k3,
                "k3 as a loss: its value estimates KL(policy‖reference), its gradient is that of KL(reference‖policy)",
                'kullback.losses.PolicyKL(value="k3", gradient="k2"), or ratio * k3',
            )


def _k3_in_a_loss(file: Context, node: ast.AST) -> ast.expr | None:
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(_is_loss(each) for each in targets):
            return file.value(node.value).k3
    elif isinstance(node, ast.Return) and node.value is not None:
        function = file.function(node)
        return file.value(node.value).k3 if function is not None and "loss" in words(function.name) else None
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward":
        return file.value(node.func.value).k3
    return None


def _is_loss(target: ast.expr) -> bool:
    name = target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""
    return "loss" in words(name)


def root_as_divergence(file: Context) -> Iterator[Hit]:
    """KLB014: SciPy's `jensenshannon`, which is the square root of the divergence, under a divergence's name."""
    for node in file.nodes:
        if not isinstance(node, ast.Call) or file.name(node.func) != _JENSEN_SHANNON:
            continue
        parent = file.parent(node)
        squared = (isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Pow | ast.Mult)) or (
            isinstance(parent, ast.Call) and ast.unparse(parent.func).rpartition(".")[2] in ("square", "power", "pow")
        )
        if squared or not _called_divergence(file, node):
            continue
        yield Hit(
            node,
            "jensenshannon returns the distance, the square root of the divergence that its name here says",
            "jensenshannon(p, q) ** 2, or kullback.js(Probs(p), Probs(q))",
            ((node, f"{file.source(node)} ** 2"),),
        )


def _called_divergence(file: Context, node: ast.Call) -> bool:
    names = [ast.unparse(node.func)]
    names += [name.rpartition(".")[2] for name in file.targets(node)]
    parent = file.parent(node)
    if isinstance(parent, ast.keyword) and parent.arg:
        names.append(parent.arg)
    if isinstance(parent, ast.Dict):
        keys = [constant(key) for key, value in zip(parent.keys, parent.values, strict=True) if value is node]
        names += [key for key in keys if isinstance(key, str)]
    function = file.function(node)
    if function is not None and isinstance(file.statement(node), ast.Return):
        names.append(function.name)
    return any(part.startswith("div") for name in names for part in words(name))
