"""The divergences that the command offers: every row of the table, and every family with its parameter."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kullback import divergences, verbs
from kullback._errors import BadInput, FormError
from kullback.divergences import Divergence
from kullback.forms.finite import Probs
from kullback.kit.tables import is_number, shortened

LARGEST = 1e12  # of a parameter


@dataclass(frozen=True)
class Choice:
    """A divergence as it was asked for: how it is written, its row, and its verb with the parameter put in."""

    name: str
    row: Divergence
    verb: Callable[[Any, Any], Tensor]


def families() -> dict[str, str | None]:
    """Name to the verb's parameter, in the order of the table; None for a divergence without one."""
    names = dict.fromkeys(row.name.partition("(")[0] for row in divergences.TABLE)
    with_parameter = {row.name.partition("(")[0] for row in divergences.TABLE if "(" in row.name}
    return {name: _parameter(name).name if name in with_parameter else None for name in names}


def written() -> tuple[str, ...]:
    """What may be written: kl, js or js:WEIGHT, renyi:ORDER, ..."""
    texts: list[str] = []
    for name, parameter in families().items():
        if parameter is None or _parameter(name).default is not inspect.Parameter.empty:
            texts.append(name)
        if parameter is not None:
            texts.append(f"{name}:{parameter.upper()}")
    return tuple(texts)


def choose(text: str) -> Choice:
    """The divergence that a text such as "kl" or "renyi:0.5" names.

    Raises: BadInput: it names none, or its parameter is missing or out of range.

    >>> choose("RENYI:0.5").row.name
    'renyi(0.5)'
    """
    wanted = text.strip().lower()
    name, colon, number = wanted.partition(":")
    known = families()
    if name not in known:
        raise BadInput(f"--divergence {shortened(text, 40)!r} is not known; write one of {', '.join(written())}")
    parameter, verb = known[name], getattr(verbs, name)
    if parameter is None:
        if colon:
            raise BadInput(f"--divergence {shortened(text, 40)}: {name} takes no number; write {name}")
        return Choice(name, next(row for row in divergences.TABLE if row.name == name), verb)
    value = _parameter(name).default
    if colon:
        value = float(number) if is_number(number) else math.nan
    elif value is inspect.Parameter.empty:
        value = math.nan
    if math.isnan(value):
        raise BadInput(f"--divergence {shortened(text, 40)}: {name} needs its {parameter}, a number; write {name}:0.5")

    if abs(value) > LARGEST:
        raise BadInput(
            f"--divergence {shortened(text, 40)}: a number beyond {LARGEST:g} is lost in double precision; by "
            "then the value has come to its limit, or grows in proportion"
        )

    def with_number(p: Any, q: Any) -> Tensor:
        result: Tensor = verb(p, q, **{parameter: value})
        return result

    half = Probs([0.5, 0.5])
    try:
        with_number(half, half)  # the verb knows the range of its parameter
    except FormError as error:
        raise BadInput(f"--divergence {shortened(text, 40)}: {error}") from None
    return Choice(wanted if colon else name, getattr(divergences, name)(value), with_number)


def _parameter(name: str) -> inspect.Parameter:
    """The one that is neither a side nor the unit."""
    parameters = inspect.signature(getattr(verbs, name)).parameters.values()
    return next(one for one in parameters if one.kind != one.POSITIONAL_ONLY and one.name != "base")
