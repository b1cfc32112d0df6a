"""Rules about calls of `F.kl_div` and `nn.KLDivLoss`."""

import ast
import re
from collections.abc import Iterator
from typing import Literal

from .algebra import constant
from .calls import argument, path
from .context import Context
from .finding import Hit
from .names import role_of_name, words
from .values import KLCall, Value

Side = Literal["input", "target"]
_OTHER_WAY = re.compile(
    r"revers|\brkl|_rkl|rkl_|backward[ _]kl|mode.seeking|symm?etr|jensen|\bjsd?\b|_jsd?\b|jsd?_|bidirect|mutual|r.?drop"
    r"|exclusive|\bKL\( *(student|q\b|pred)|KL\((q|student)|student ?(\|\||‖|→|->) ?teacher|kl_?qp|kl_q_p",
    re.IGNORECASE,
)
_SHARPENED = re.compile(r"sharp|\buda|consisten|unsup|unlabel|\bdino|center", re.IGNORECASE)
_HARD = re.compile(r"loss|(\b|_)ce(\b|_)|hard|nll|cross_?entropy|criterion|mse", re.IGNORECASE)


def averages_over_classes(file: Context) -> Iterator[Hit]:
    """KLB001: reduction "mean", said, left at its default, or as a mean of what "none" returns."""
    instead = 'reduction="batchmean" for (batch, classes), or kullback.kl(Probs(target), LogProbs(input)).mean()'
    seen: set[ast.AST] = set()
    for node in file.nodes:
        if not isinstance(node, ast.Call):
            continue
        made = file.value(node).module
        call = file.value(node).kl
        options, reduction = None, None
        if made is not None and made.what == "kl" and made.made is node:
            options, reduction = node, _reduction_of(node, 0)
        elif call is not None and call.node is node and call.options is node:
            options, reduction = node, call.reduction
        if options is not None and reduction == "mean" and options not in seen:
            seen.add(options)
            said = any(each.arg == "reduction" for each in options.keywords)
            how = 'reduction="mean"' if said else "without a reduction it takes the mean, which"
            yield Hit(node, f"{how} divides by the classes too, so this is KL/V and not KL", instead)
        elif (unreduced := _mean_of_terms(file, node)) is not None:
            yield Hit(
                node,
                "this mean of kl_div's terms divides by the classes too, so it is KL/V and not KL",
                "sum over the classes first: .sum(-1).mean()",
            )
            seen.add(unreduced)


def _mean_of_terms(file: Context, node: ast.Call) -> ast.AST | None:
    """The kl_div whose terms, all of them, this call takes the mean of."""
    if isinstance(node.func, ast.Attribute) and file.name(node.func) is None:
        what, first, at = node.func.attr, node.func.value, 0
    elif file.name(node.func) == "torch.mean" and node.args:
        what, first, at = "mean", node.args[0], 1
    else:
        return None
    of = file.value(first)
    if what != "mean" or of.kl is None or of.reduced or of.kl.reduction != "none":
        return None
    dim = argument(node, at, "dim", "axis")
    softmax = file.value(of.kl.input).softmax
    over = None if softmax is None else constant(argument(softmax, 0 if _is_method(file, softmax) else 1, "dim"))
    over_classes = dim is None or (over is not None and constant(dim) == over)
    return of.kl.node if over_classes and not _offers_mean(file, node) else None


def _offers_mean(file: Context, node: ast.AST) -> bool:
    """Whether it stands where a caller has asked for "mean" as PyTorch has it."""
    tests = (each.test for each in file.above(node) if isinstance(each, ast.If | ast.IfExp))
    return any(constant(part) == "mean" for test in tests for part in ast.walk(test) if isinstance(part, ast.expr))


def _is_method(file: Context, call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and file.name(call.func) is None


def _reduction_of(options: ast.Call, at: int) -> str | None:
    if any(each.arg is None for each in options.keywords) or any(
        isinstance(each, ast.Starred) for each in options.args
    ):
        return None
    if argument(options, at, "size_average") is not None or argument(options, at + 1, "reduce") is not None:
        return None
    node = argument(options, at + 2, "reduction")
    value = "mean" if node is None else constant(node)
    return value if isinstance(value, str) else None


def batchmean_of_sequences(file: Context) -> Iterator[Hit]:
    """KLB002: "batchmean" where three axes or more can be seen: it divides by the first only."""
    for call in file.kl_calls:
        axes = max(file.value(call.input).axes, file.value(call.target).axes)
        if call.reduction == "batchmean" and axes >= 3:
            yield Hit(
                call.node,
                f"batchmean divides by the first of at least {axes} axes only: the loss grows with the others' length",
                "flatten to (rows, classes) first, or kullback.kl(...).mean(), or losses.Distillation with its mask",
            )


def input_without_log(file: Context) -> Iterator[Hit]:
    """KLB003: `input` holds probabilities or logits; it is read as log-probabilities."""
    for call in file.kl_calls:
        value = file.value(call.input)
        if call.input is None or value.kind not in ("probabilities", "logits") or value.tempered == ("?",):
            continue
        yield Hit(
            call.input,
            f"input holds {value.kind}{_by_name(value)}, but kl_div reads it as log-probabilities",
            "F.log_softmax(logits, dim=-1), or kullback.kl(Probs(p), Logits(logits))",
            _to_log_softmax(file, call.input),
        )


def target_in_logarithms(file: Context) -> Iterator[Hit]:
    """KLB004: `target` and `log_target` do not agree."""
    for call in file.kl_calls:
        value = file.value(call.target)
        if call.target is None or call.log_target is None:
            continue
        if value.kind in ("log-probabilities", "logits") and not call.log_target:
            logs = value.kind == "log-probabilities"
            edits: tuple[tuple[ast.expr | ast.keyword, str], ...] = ()
            if logs and not value.named and call.options is call.node:
                edits = _with_log_target(file, call.node)
            yield Hit(
                call.target,
                f"target holds {value.kind}{_by_name(value)}, but is read as probabilities",
                "log_target=True" if logs else "F.softmax(logits, dim=-1), or kullback.kl(Logits(target), ...)",
                edits,
            )
        elif value.kind == "probabilities" and call.log_target:
            yield Hit(
                call.target,
                f"target holds probabilities{_by_name(value)}, but log_target=True reads it as log-probabilities",
                "log_target=False, or F.log_softmax for the target",
            )


def swapped(file: Context) -> Iterator[Hit]:
    """KLB005: kl_div(input, target) is KL(target‖input); the names say that the other one was meant."""
    orders = {(call.scope, *_roles(file, call)) for call in file.kl_calls}
    for call in file.kl_calls:
        roles = _roles(file, call)
        if (call.scope, *reversed(roles)) in orders or _OTHER_WAY.search(file.words_around(call.node)):
            continue
        if roles == ("teacher", "student"):
            said = "KL(student‖teacher): the first argument is the approximation, the second the reference"
        elif roles == ("p", "q") and _written_kl_of_p_q(file, call):
            said = "KL(q‖p): the second argument is the reference"
        else:
            continue
        yield Hit(
            call.node,
            f"the arguments stand in the order of {said}",
            f"kl_div(log {roles[1]}, {roles[0]}), or kullback.kl({roles[0]}, {roles[1]}), which reads as the formula; "
            "if the reverse is meant, say so in a name",
        )


def _roles(file: Context, call: KLCall) -> tuple[str | None, str | None]:
    return file.value(call.input).role, file.value(call.target).role


def _written_kl_of_p_q(file: Context, call: KLCall) -> bool:
    """Whether what is computed is called KL of p and q, in this order."""
    function = file.function(call.node)
    named = [name.rpartition(".")[2] for name in file.targets(call.node)]
    if any({"kl", "pq"} <= set(words(name)) or words(name)[-3:] == ("kl", "p", "q") for name in named):
        return True
    if function is None or not {"kl", "kld", "kldiv"} & set(words(function.name)):
        return False
    parameters = [each.arg for each in (*function.args.posonlyargs, *function.args.args) if each.arg != "self"]
    return [role_of_name(name) for name in parameters[:2]] == ["p", "q"]


def one_temperature(file: Context) -> Iterator[Hit]:
    """KLB006: logits of one side are divided by T, those of the other are not."""
    for call in file.kl_calls:
        one, other = file.value(call.input), file.value(call.target)
        if one.softmax is None or other.softmax is None or bool(one.tempered) == bool(other.tempered):
            continue
        if "?" in (*one.tempered, *other.tempered) or _soft_already(file, one, other):
            continue
        side: Side = "input" if one.tempered else "target"
        if side == "target" and _SHARPENED.search(file.words_around(call.node)):
            continue
        yield Hit(
            call.node,
            f"the logits of {side} are divided by {(one.tempered or other.tempered)[-1]}, those of the other side "
            "are not",
            "divide both, or kullback.kl(Logits(teacher, temperature=T), Logits(student, temperature=T))",
        )


def _soft_already(file: Context, one: Value, other: Value) -> bool:
    """Whether the name of what has no temperature says that it was applied elsewhere."""
    plain = one if not one.tempered else other
    names = set() if plain.softmax is None else set(words(ast.unparse(plain.softmax)))
    return bool(names & {"scaled", "tempered", "soft", "softened", "sharpened", "temp", "temperature", "tau"})


def no_square_of_temperature(file: Context) -> Iterator[Hit]:
    """KLB007: both sides have a temperature, the term is added to another loss, and T² is nowhere."""
    for call in file.kl_calls:
        one, other = file.value(call.input).tempered, file.value(call.target).tempered
        if not one or one != other or "?" in one or one in (("1",), ("1.0",)):
            continue
        if _squared(file, call, one[-1]) or not _added_to_a_loss(file, call):
            continue
        t = one[-1]
        yield Hit(
            call.node,
            f"both sides are divided by {t}, so the gradient shrinks with {t}² beside the loss that this is added to",
            f"multiply by {t} ** 2, or kullback.losses.Distillation, which does",
        )


def _squared(file: Context, call: KLCall, temperature: str) -> bool:
    function = file.function(call.node) or file.tree
    number = constant(ast.parse(temperature, mode="eval").body)
    for node in ast.walk(function):
        if not isinstance(node, ast.expr):
            continue
        if isinstance(node, ast.BinOp):
            text = ast.unparse(node)
            if isinstance(node.op, ast.Pow) and constant(node.right) in (2, 2.0):
                return True
            if isinstance(node.op, ast.Mult) and text.count(temperature) >= 2:
                return True
            if number is not None and isinstance(node.op, ast.Mult):
                factors = (constant(node.left), constant(node.right))
                if any(isinstance(each, int | float) and each == number**2 for each in factors):
                    return True
        called = node.func if isinstance(node, ast.Call) else node
        name = path(called).rpartition(".")[2] if isinstance(called, ast.Name | ast.Attribute) else ""
        if isinstance(node, ast.Call) and name in ("pow", "square", "mul_"):
            return True
        if isinstance(node, ast.Name | ast.Attribute) and _names_square(name):
            return True
    return False


def _names_square(name: str) -> bool:
    """Whether a name is that of a squared temperature or of what stands for it: T_squared, temp2, kd_scale."""
    parts = words(name)
    whole = re.fullmatch(r"(t|tau|temp|temperature)(2|sq)", parts[-1]) if parts else None
    return bool(whole) or bool(
        set(parts[-1:]) & {"sq", "squared", "square", "2", "scale", "weight", "factor"}
        and set(parts[:-1]) & {"t", "tau", "temp", "temperature", "kd"}
    )


def _added_to_a_loss(file: Context, call: KLCall) -> bool:
    for node in file.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                if file.value(one).kl is call and file.value(other).kl is None and _HARD.search(ast.unparse(other)):
                    return True
        elif (
            isinstance(node, ast.AugAssign)
            and isinstance(node.op, ast.Add)
            and file.value(node.value).kl is call
            and _HARD.search(ast.unparse(node.target))
        ):
            return True
    return False


def old_options(file: Context) -> Iterator[Hit]:
    """KLB011: `size_average` and `reduce`, which PyTorch has deprecated."""
    seen = set()
    options = [(call.options, 2 if call.options is call.node else 0) for call in file.kl_calls]
    options += [
        (made.made, 0) for node in file.nodes if (made := file.value(node).module) is not None and made.what == "kl"
    ]
    for call, _ in options:
        old = [each for each in call.keywords if each.arg in ("size_average", "reduce")]
        if not old or call in seen:
            continue
        seen.add(call)
        reduction = _translated(old)
        say = f'reduction="{reduction}"' if reduction else "reduction=..."
        only = len(old) == len([each for each in call.keywords if each.arg in ("size_average", "reduce", "reduction")])
        edits = tuple(_replaced(old, say)) if reduction and len(old) == 1 and only else ()
        yield Hit(old[0], f"{old[0].arg} is deprecated", say, edits)


def _translated(old: list[ast.keyword]) -> str | None:
    given = {each.arg: constant(each.value) for each in old}
    if not all(isinstance(each, bool) for each in given.values()):
        return None
    if not given.get("reduce", True):
        return "none"
    return "mean" if given.get("size_average", True) else "sum"


def _replaced(old: list[ast.keyword], say: str) -> Iterator[tuple[ast.keyword, str]]:
    yield old[0], say


def _by_name(value: Value) -> str:
    return ", as its name says" if value.named else ""


def _to_log_softmax(file: Context, node: ast.expr) -> tuple[tuple[ast.expr, str], ...]:
    text = log_softmax_text(file, node)
    return () if text is None else ((node, text),)


def log_softmax_text(file: Context, node: ast.expr) -> str | None:
    """The call of log_softmax that a call of softmax becomes; None for anything else."""
    if not isinstance(node, ast.Call) or file.value(node).softmax is not node:
        return None
    last = ast.unparse(node.func).rpartition(".")[2]
    text = file.source(node)
    name = file.source(node.func)
    if last != "softmax" or not isinstance(node.func, ast.Attribute) or not text.startswith(name):
        return None
    return name[: -len("softmax")] + "log_softmax" + text[len(name) :]


def _with_log_target(file: Context, call: ast.Call) -> tuple[tuple[ast.expr | ast.keyword, str], ...]:
    for each in call.keywords:
        if each.arg == "log_target":
            return ((each, "log_target=True"),)
    if len(call.args) > 5:
        return ()
    places: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
    last = max(places, key=lambda each: (each.end_lineno or 0, each.end_col_offset or 0))
    return ((last, f"{file.source(last)}, log_target=True"),)
