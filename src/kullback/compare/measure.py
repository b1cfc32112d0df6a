"""From two contents and a divergence to the answers that the command prints."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.distributions import Distribution

from kullback import divergences, estimate, verbs
from kullback._errors import FormError, NoExactMethod
from kullback.divergences import Divergence
from kullback.estimate.result import Estimate, brief
from kullback.forms.empirical import Counts
from kullback.forms.finite import Probs

from .files import Content

Side: TypeAlias = Content | Distribution

_ROWS: dict[str, Divergence] = {
    row.name: row
    for row in (divergences.KL, divergences.JEFFREYS, divergences.TV, divergences.HELLINGER, divergences.CHI2)
} | {"js": divergences.js(0.5)}
_ORDERS: dict[str, Callable[[float], Divergence]] = {"renyi": divergences.renyi, "alpha": divergences.alpha}
DIVERGENCES = (*_ROWS, "renyi:ORDER", "alpha:ORDER")


@dataclass(frozen=True)
class Answer:
    """One number and all that is known about it."""

    direction: str
    value: float
    unit: str
    exact: bool
    method: str
    level: float
    interval: tuple[float, float] | None = None
    stderr: float | None = None
    bias: str = ""
    verdict: str = ""
    n: int | None = None
    m: int | None = None


@dataclass(frozen=True)
class Request:
    """What is asked of every pair."""

    divergence: str = "kl"
    base: float = math.e
    level: float = 0.95
    seed: int = 0
    counts: estimate.PlugIn | None = None
    """How counts are compared by KL; None for the default."""


def answer(p: Side, q: Side, request: Request, names: tuple[str, str] = ("P", "Q")) -> Answer:
    """D(p‖q), exactly where the verbs do, else estimated.

    Raises: FormError: an unknown divergence, or one that cannot be had for what the sides hold.
    """
    row = _row(request.divergence)
    direction = f"{request.divergence.upper() if row is divergences.KL else request.divergence}({names[0]}‖{names[1]})"
    held: list[Any] = [side.held if isinstance(side, Content) else side for side in (p, q)]
    if isinstance(held[0], Probs) and isinstance(held[1], Probs):
        value = verbs.measure(row, held[0], held[1], base=request.base if row.logarithmic else math.e)
        return _exact(direction, float(value), "exact sum over the categories", row, request)
    if isinstance(held[0], Distribution) and isinstance(held[1], Distribution):
        return _of_distributions(held[0], held[1], row, request, direction)
    generator = torch.Generator().manual_seed(request.seed)
    kinds = {type(one) for one in held}
    if kinds <= {Counts, Probs}:
        found = (
            estimate.kl(held[0], held[1], method=request.counts)
            if row is divergences.KL
            else estimate.bootstrap_divergence(row, held[0], held[1], generator=generator)
        )
    elif row is divergences.KL:
        found = estimate.kl(held[0], held[1], generator=generator)
    elif row is divergences.JEFFREYS:
        found = _both_ways(held[0], held[1], generator)
    else:
        raise FormError(
            f"--divergence {request.divergence}: from samples only kl and jeffreys are estimated. Count both in the "
            "same bins and write the counts, from which every divergence is, or write --divergence kl."
        )
    return _estimated(direction, found, row, request)


def _of_distributions(p: Distribution, q: Distribution, row: Divergence, request: Request, direction: str) -> Answer:
    verb: Any = getattr(verbs, row.name.partition("(")[0])
    order = (float(request.divergence.partition(":")[2]),) if ":" in request.divergence else ()
    try:
        value = verb(p, q, *order)
    except NoExactMethod as error:
        if row not in (divergences.KL, divergences.JEFFREYS):
            raise FormError(
                f"--divergence {request.divergence}: {str(error).partition('. Write')[0]}. "
                "Write --divergence kl or jeffreys, which can be estimated from draws."
            ) from None
        generator = torch.Generator().manual_seed(request.seed)
        method = estimate.MonteCarlo(100_000)
        if row is divergences.KL:
            found = estimate.kl(p, q, method=method, generator=generator)
        else:
            found = _both_ways(p, q, generator, method)
        return _estimated(direction, found, row, request)
    if value.dim():
        raise FormError("one of the distributions is a batch; write one number a parameter.")
    unit = math.log(request.base) if row.logarithmic else 1.0
    return _exact(direction, float(value) / unit, "exact", row, request)


def _both_ways(p: Any, q: Any, generator: torch.Generator, method: estimate.MonteCarlo | None = None) -> Estimate:
    there, back = (estimate.kl(x, y, method=method, generator=generator) for x, y in ((p, q), (q, p)))
    return Estimate(
        there.value + back.value,
        there.stderr + back.stderr,  # at most: the two are correlated
        there.n,
        bias=there.bias,
        method=there.method,
        m=there.m,
        verdict=there.verdict or back.verdict,
    )


def _exact(direction: str, value: float, method: str, row: Divergence, request: Request) -> Answer:
    return Answer(direction, value, _unit(row, request), exact=True, method=method, level=request.level)


def _estimated(direction: str, found: Estimate, row: Divergence, request: Request) -> Answer:
    shown = found.to(request.base) if row.logarithmic else found
    return Answer(
        direction,
        shown.value,
        _unit(row, request),
        exact=False,
        method=brief(shown.method),
        level=request.level,
        interval=shown.interval(request.level),
        stderr=shown.stderr,
        bias=shown.bias,
        verdict=shown.verdict,
        n=shown.n,
        m=shown.m,
    )


def _unit(row: Divergence, request: Request) -> str:
    if not row.logarithmic:
        return ""
    return "nats" if request.base == math.e else "bits" if request.base == 2 else f"base {request.base:g}"


def _row(name: str) -> Divergence:
    kind, _, order = name.partition(":")
    if name in _ROWS:
        return _ROWS[name]
    if kind in _ORDERS and order:
        try:
            number = float(order)
        except ValueError:
            number = math.nan
        if math.isfinite(number) and (kind == "alpha" or number >= 0):
            return _ORDERS[kind](number)
        raise FormError(f"--divergence {name}: the order must be a finite number{' >= 0' if kind == 'renyi' else ''}.")
    raise FormError(f"--divergence {name!r} is not known; write one of {', '.join(DIVERGENCES)}.")
