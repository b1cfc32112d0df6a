"""Distributions written as text, such as "Normal(0, 1)". The text is parsed, never evaluated."""

import ast
import math
import re
import warnings
from typing import Any, NoReturn

import torch
from torch import distributions
from torch.distributions import Distribution

from kullback._errors import BadInput
from kullback.kit.tables import shortened

# the classes that may be written; their arguments are numbers, lists of numbers, or distributions
_NAMES = """
    Bernoulli Beta Binomial Categorical Cauchy Chi2 ContinuousBernoulli Dirichlet Exponential FisherSnedecor Gamma
    GeneralizedPareto Geometric Gumbel HalfCauchy HalfNormal Independent InverseGamma Kumaraswamy Laplace LogNormal
    MixtureSameFamily Multinomial MultivariateNormal NegativeBinomial Normal Pareto Poisson StudentT Uniform VonMises
    Weibull
"""
ALLOWED = {name: getattr(distributions, name) for name in _NAMES.split() if hasattr(distributions, name)}
# arguments that must be whole numbers, by class: place and name
_WHOLE = {
    "Binomial": (0, "total_count"),
    "Multinomial": (0, "total_count"),
    "Independent": (1, "reinterpreted_batch_ndims"),
}
_LONGEST = 20_000  # characters
_DEEPEST = 20  # calls and lists within each other
_LARGEST_WHOLE = 2**53


def looks_like_distribution(text: str) -> bool:
    """Whether the text has the shape of a call, Name(...)."""
    return re.fullmatch(r"\s*[A-Za-z_]\w*\s*\(.*\)\s*", text, re.DOTALL) is not None


def parse_distribution(text: str) -> Distribution:
    """The distribution that the text names, with float64 parameters.

    Raises: BadInput: not a call of an allowed class, or arguments that it refuses.

    >>> parse_distribution("Normal(0, 2)")
    Normal(loc: 0.0, scale: 2.0)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text.strip(), mode="eval") if len(text) <= _LONGEST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        _refuse(text, "this is not a distribution; write one such as Normal(0, 1)")
    value = _value(tree.body, text, 0)
    if not isinstance(value, Distribution):
        _refuse(text, "this is not a distribution; write one such as Normal(0, 1)")
    if value.batch_shape:
        _refuse(
            text,
            f"this is a batch of {value.batch_shape.numel()} distributions; write one number a parameter, or "
            f"Independent({shortened(text, 40)}, {len(value.batch_shape)}) for one distribution over them all",
        )
    return value


def _refuse(text: str, why: str) -> NoReturn:
    raise BadInput(f"{shortened(text)}: {why}") from None


def _value(node: ast.expr, text: str, depth: int) -> Any:
    if depth > _DEEPEST:
        _refuse(text, f"is nested more than {_DEEPEST} deep")
    if isinstance(node, ast.Call):
        return _call(node, text, depth)
    if isinstance(node, ast.List | ast.Tuple):
        if not node.elts:
            _refuse(text, "a list needs at least one number")
        return [_value(one, text, depth + 1) for one in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _value(node.operand, text, depth + 1)
        if isinstance(number, int | float):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    written = ast.get_source_segment(text.strip(), node) or "something"
    _refuse(
        text,
        f"{shortened(written, 40)} is not a number, a list of numbers or a distribution: nothing else may be written",
    )


def _call(node: ast.Call, text: str, depth: int) -> Distribution:
    name = (
        node.func.id if isinstance(node.func, ast.Name) else ast.get_source_segment(text.strip(), node.func) or "this"
    )
    if name not in ALLOWED:
        _refuse(text, f"{shortened(name, 40)} is not a known distribution; write one of {', '.join(ALLOWED)}")
    if any(keyword.arg is None for keyword in node.keywords) or any(isinstance(a, ast.Starred) for a in node.args):
        _refuse(text, "* and ** cannot be written here; write the arguments out")
    place, whole = _WHOLE.get(name, (-1, ""))
    args = [_argument(_value(a, text, depth + 1), i == place, whole, text) for i, a in enumerate(node.args)]
    options = {
        str(k.arg): _argument(_value(k.value, text, depth + 1), k.arg == whole, whole, text) for k in node.keywords
    }
    try:
        made: Distribution = ALLOWED[name](*args, **options, validate_args=True)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError) as error:
        _refuse(text, f"{name} refuses these arguments ({_reason(error)})")
    if 0 in (*made.batch_shape, *made.event_shape):
        _refuse(text, f"{name} is over nothing")
    return made


def _argument(value: Any, whole: bool, name: str, text: str) -> Any:
    if whole:
        if not isinstance(value, int | float) or value != round_or_nan(value) or not 0 <= value <= _LARGEST_WHOLE:
            written = shortened(str(value), 40)
            _refuse(text, f"{name} is {written}, but it must be a whole number from 0 to 2^53")
        return int(value)
    if isinstance(value, Distribution):
        return value
    try:
        tensor = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        _refuse(text, "a list of numbers must be a rectangle, such as [[1, 0], [0, 1]]")
    except OverflowError:
        tensor = torch.tensor(math.inf)
    if not bool(torch.isfinite(tensor).all()):
        _refuse(text, "a parameter is beyond the range of double precision, about 1.8e308")
    return tensor


def round_or_nan(value: float) -> float:
    """The nearest whole number; NaN, which nothing equals, for what has none."""
    return round(value) if math.isfinite(value) else math.nan


def _reason(error: Exception) -> str:
    """PyTorch's words in one line, without its own instructions."""
    line = (str(error).strip() or type(error).__name__).split("\n")[0].partition(", but found invalid values")[0]
    line = re.sub(r"Expected parameter (\w+) \(.*?\)\) of distribution .*? to satisfy", r"\1 must satisfy", line)
    line = re.sub(r"^\w+(?:\.<locals>)?\.__init__\(\)|^__init__\(\)", "it", line).replace(" positional", "")
    return shortened(line, 120)
