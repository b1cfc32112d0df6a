"""Distributions written as text, such as "Normal(0, 1)". The text is parsed, never evaluated."""

import ast
import re
from typing import Any

import torch
from torch import distributions
from torch.distributions import Distribution

from kullback._errors import FormError

# the classes that may be written; their arguments are numbers, lists of numbers, or distributions
_NAMES = """
    Bernoulli Beta Binomial Categorical Cauchy Chi2 ContinuousBernoulli Dirichlet Exponential FisherSnedecor Gamma
    GeneralizedPareto Geometric Gumbel HalfCauchy HalfNormal Independent InverseGamma Kumaraswamy Laplace LogNormal
    MixtureSameFamily Multinomial MultivariateNormal NegativeBinomial Normal Pareto Poisson StudentT Uniform VonMises
    Weibull
"""
ALLOWED = {name: getattr(distributions, name) for name in _NAMES.split() if hasattr(distributions, name)}
_INTEGERS = {"total_count", "reinterpreted_batch_ndims"}
_INTEGER_FIRST = {"Binomial", "Multinomial"}
_LONGEST = 10_000  # characters: the parser recurses


def looks_like_distribution(text: str) -> bool:
    """Whether the text has the shape of a call, Name(...)."""
    return re.fullmatch(r"\s*[A-Za-z_]\w*\s*\(.*\)\s*", text, re.DOTALL) is not None


def parse_distribution(text: str) -> Distribution:
    """The distribution that the text names, with float64 parameters.

    Raises: FormError: not a call of an allowed class, or arguments that it refuses.

    >>> parse_distribution("Normal(0, 2)")
    Normal(loc: 0.0, scale: 2.0)
    """
    try:
        tree = ast.parse(text.strip(), mode="eval") if len(text) <= _LONGEST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        raise FormError(f"{_short(text)}: this is not a distribution. Write one such as Normal(0, 1).")
    value = _value(tree.body, text)
    if not isinstance(value, Distribution):
        raise FormError(f"{_short(text)}: this is not a distribution. Write one such as Normal(0, 1).")
    return value


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call):
        return _call(node, text)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(one, text) for one in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _value(node.operand, text)
        if isinstance(number, int | float):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    raise FormError(
        f"{_short(text)}: {_short(ast.unparse(node))} is not a number, a list of numbers or a distribution: nothing "
        "else may be written here."
    )


def _call(node: ast.Call, text: str) -> Distribution:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    if name not in ALLOWED:
        raise FormError(
            f"{_short(text)}: {_short(name)} is not a known distribution; write one of {', '.join(ALLOWED)}."
        )
    if any(keyword.arg is None for keyword in node.keywords) or any(isinstance(a, ast.Starred) for a in node.args):
        raise FormError(f"{_short(text)}: * and ** cannot be written here; write the arguments out.")
    first_is_integer = name in _INTEGER_FIRST
    args = [_argument(_value(a, text), first_is_integer and i == 0) for i, a in enumerate(node.args)]
    if name == "Independent" and len(args) > 1:
        args[1] = int(args[1])
    options = {str(k.arg): _argument(_value(k.value, text), k.arg in _INTEGERS) for k in node.keywords}
    try:
        made: Distribution = ALLOWED[name](*args, **options, validate_args=True)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise FormError(f"{_short(text)}: {name} refuses these arguments: {_reason(error)}") from None
    return made


def _argument(value: Any, integer: bool) -> Any:
    if isinstance(value, Distribution) or (integer and isinstance(value, int)):
        return value
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise FormError("a list of numbers must be a rectangle, such as [[1, 0], [0, 1]].") from None


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0].partition(", but found invalid values")[0]


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else flat[:77] + "..."
