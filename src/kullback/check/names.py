"""What names say: which function a dotted name stands for, and what a variable is called after."""

import ast
import re
from functools import cache


class Imports:
    """The names that a file imports, and what they stand for."""

    def __init__(self, tree: ast.Module) -> None:
        self._known: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.partition(".")[0]
                    self._known[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    self._known[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def dotted(self, node: ast.expr) -> str | None:
        """The full name of what is written, "torch.nn.functional.kl_div" for `F.kl_div`; None if it is not imported."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self._known:
            return None
        return ".".join([self._known[node.id], *reversed(parts)])


@cache
def words(name: str) -> tuple[str, ...]:
    """The parts of a name, in lower case.

    >>> words("self.teacherLogProbs_2")
    ('self', 'teacher', 'log', 'probs', '2')
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return tuple(part for part in re.split(r"[^A-Za-z0-9]+|_+", spaced.lower()) if part)


_LOG_PROBS = {"logp", "logq", "logps", "logprob", "logprobs", "logsoftmax"}
_PROBS = {"prob", "probs", "probability", "probabilities", "softmax"}
_LOGITS = {"logit", "logits"}


def kind_of_name(name: str) -> str | None:
    """What a variable of this name holds, if its name says so.

    >>> kind_of_name("student_log_probs"), kind_of_name("probs"), kind_of_name("logits"), kind_of_name("x")
    ('log-probabilities', 'probabilities', 'logits', None)
    """
    parts = set(words(name))
    if parts & _LOG_PROBS or ("log" in parts and parts & {*_PROBS, "p", "q"}):
        return "log-probabilities"
    if parts & _LOGITS:
        return "logits"
    return "probabilities" if parts & _PROBS and "log" not in parts else None


_ROLES = {
    "teacher": {"teacher", "teachers", "tea", "target", "targets", "label", "labels", "gt", "truth"},
    "student": {"student", "students", "stu", "pred", "preds", "prediction", "predictions", "predicted"},
    "p": {"p", "logp"},
    "q": {"q", "logq"},
}


def role_of_name(name: str) -> str | None:
    """Which side of a divergence a name stands for: "teacher", "student", "p" or "q"; None if it says none, or two."""
    parts = set(words(name))
    found = [role for role, those in _ROLES.items() if parts & those]
    return found[0] if len(found) == 1 else None


def is_temperature(node: ast.expr) -> bool:
    """Whether what logits are divided by is a temperature: a number, or a name such as T, tau, kd_temperature."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return named_temperature(node.slice.value)
    if isinstance(node, ast.Name | ast.Attribute):
        return named_temperature(node.id if isinstance(node, ast.Name) else node.attr)
    return False


def named_temperature(name: str) -> bool:
    """Whether a name is that of a temperature."""
    parts = words(name)
    return bool(parts) and (any("temp" in part for part in parts) or "tau" in parts or parts[-1] == "t")
