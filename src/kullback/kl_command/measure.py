"""From two sides and a divergence to the answers that the command prints."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback import estimate
from kullback._errors import BadInput, FormError, KullbackError, NoExactMethod
from kullback.estimate.result import Estimate, brief, student_quantile
from kullback.forms.empirical import Counts
from kullback.forms.finite import Probs

from .choices import Choice
from .content import Content
from .matching import same_numbers
from .words import in_flags, method_in_words

Side: TypeAlias = Content | Distribution
_DRAWS = 100_000  # of Monte Carlo
_FROM_DRAWS = ("kl", "jeffreys")


class Rows(NamedTuple):
    """A batch: how many rows, how many of them infinite, and between what the others lie."""

    number: int
    infinite: int
    low: float
    high: float


@dataclass(frozen=True)
class Answer:
    """One number and all that is known about it; `words` is the method for people, `method` for Python."""

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
    rows: Rows | None = None
    words: str = ""


@dataclass(frozen=True)
class Request:
    """What is asked of every pair."""

    divergence: Choice
    base: float = math.e
    level: float = 0.95
    seed: int = 0
    counts: estimate.PlugIn | None = None
    """How counts are compared by KL; None for the default."""


def answer(p: Side, q: Side, request: Request, names: tuple[str, str] = ("P", "Q")) -> Answer:
    """D(p‖q), exactly where the verbs do, else estimated.

    Raises: BadInput: a pair or a divergence that cannot be had for what the sides hold; no number.
    """
    wanted = request.divergence
    direction = f"{wanted.name.upper() if wanted.row.name == 'kl' else wanted.name}({names[0]}‖{names[1]})"
    try:
        found = _answer(p, q, request, direction)
    except BadInput:
        raise
    except KullbackError as error:
        raise BadInput(f"{direction}: {in_flags(str(error))}") from None
    if math.isnan(found.value):
        raise BadInput(f"{direction} has no number in double precision; parameters nearer to 1 may have")
    return found


def _answer(p: Side, q: Side, request: Request, direction: str) -> Answer:
    if isinstance(p, Distribution) and isinstance(q, Distribution):
        return _of_distributions(p, q, request, direction)
    kinds = {side.kind if isinstance(side, Content) else "distribution" for side in (p, q)}
    if isinstance(p, Content) and isinstance(q, Content) and "samples" not in kinds:
        if "counts" in kinds and not same_numbers(p, q):
            return _of_counts(p, q, request, direction)
        return _of_rows(p, q, request, direction)
    if not kinds <= {"samples", "distribution"}:
        other = next(iter(kinds - {"samples", "distribution", "counts"}), "counts")
        if "distribution" in kinds:
            raise BadInput(f"{direction}: a file of {other} cannot be held against a distribution; give two files")
        raise BadInput(f"{direction}: samples and {other} cannot be compared; count the samples in the same categories")
    return _of_samples(p, q, request, direction)


def _of_rows(p: Content, q: Content, request: Request, direction: str) -> Answer:
    """Probabilities and logits, exactly; and two files of counts that are the same."""
    held = [_shares(side) for side in (p, q)]
    values = request.divergence.verb(*held).double() / _unit_of(request)
    same = "P and Q hold the same numbers" if same_numbers(p, q) else ""
    method = "exact sum over the categories"
    one = Answer(direction, 0.0, _unit(request), exact=True, method=method, level=request.level, verdict=same)
    if values.dim() == 0:
        return replace(one, value=float(values))
    finite = values[torch.isfinite(values)]
    if bool(values.isnan().any()):
        return replace(one, value=math.nan)
    infinite = len(values) - len(finite)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (math.inf, math.inf)
    mean, stderr, interval = float(values.mean()), None, None
    if len(values) > 1 and not infinite:
        stderr = float(values.std()) / math.sqrt(len(values))
        reach = student_quantile(0.5 + 0.5 * request.level, len(values) - 1) * stderr
        interval = (max(0.0, mean - reach), mean + reach)
    return replace(
        one, value=mean, stderr=stderr, interval=interval, rows=Rows(len(values), infinite, low, high),
        method=f"{method}, mean over the rows",
    )  # fmt: skip


def _shares(side: Content) -> Any:
    return Probs(side.values / side.values.sum()) if side.kind == "counts" else side.held


def _of_counts(p: Content, q: Content, request: Request, direction: str) -> Answer:
    for name, side in (("P", p), ("Q", q)):
        if side.num_rows is not None:
            raise BadInput(f"{direction}: {name} holds {side.num_rows} rows; beside counts it must be one")
    held: list[Any] = [Counts(side.values) if side.kind == "counts" else _probs(side) for side in (p, q)]
    if request.divergence.row.name == "kl":
        found = estimate.kl(held[0], held[1], method=request.counts)
    elif request.counts is not None:
        raise BadInput(f"{direction}: --prior and --drop-unseen are for --divergence kl; leave them out")
    else:
        found = estimate.bootstrap_divergence(request.divergence.row, held[0], held[1], generator=_generator(request))
    answer = _estimated(direction, found, request)
    missed = (p.values > 0 if p.kind != "logits" else p.values > -math.inf) & (held[1].data == 0)
    if math.isinf(answer.value) and bool(missed.any()):
        name = p.labels[int(missed.nonzero()[0])]
        if q.kind == "counts":
            return replace(answer, verdict=f"{answer.verdict}; the first is {name!r}")
        return replace(answer, verdict=f"P has seen {name!r}, to which Q gives no probability")
    return answer


def _probs(side: Content) -> Probs:
    return Probs(side.values if side.kind == "probs" else torch.softmax(side.values, -1))


def _of_samples(p: Side, q: Side, request: Request, direction: str) -> Answer:
    name = request.divergence.row.name
    if name not in _FROM_DRAWS:
        raise BadInput(
            f"{direction}: from samples only kl and jeffreys are estimated; count both in the same bins "
            "and give the counts, from which every divergence is"
        )
    if isinstance(p, Content) and isinstance(q, Content) and same_numbers(p, q):
        return Answer(
            direction, 0.0, _unit(request), exact=True, method="same", words="the same numbers on both sides",
            level=request.level, verdict="the same draws tell nothing about two sources",
        )  # fmt: skip
    _check_dimensions(p, q, direction)
    held: list[Any] = [side.held if isinstance(side, Content) else side for side in (p, q)]
    if name == "kl":
        return _estimated(direction, estimate.kl(held[0], held[1], generator=_generator(request)), request)
    return _both_ways(held[0], held[1], request, direction)


def _check_dimensions(p: Side, q: Side, direction: str) -> None:
    for side, other in ((p, q), (q, p)):
        if isinstance(side, Content) and isinstance(other, Distribution):
            width, shape = side.values.shape[-1], tuple(other.event_shape)
            if shape not in ((width,), () if width == 1 else (width,)):
                raise BadInput(
                    f"{direction}: each sample is {_numbers(width)} and the distribution is over "
                    f"{_numbers(other.event_shape.numel())}; choose with --columns, or write "
                    "Independent(Normal([0, ...], [1, ...]), 1)"
                )
            support: Any = other.support
            if support.is_discrete:
                raise BadInput(
                    f"{direction}: the distribution is over whole numbers, without a density to hold samples against; "
                    "count the samples, and give the counts and a file of its probabilities"
                )


def _numbers(count: int) -> str:
    return "one number" if count == 1 else f"{count} numbers"


def _of_distributions(p: Distribution, q: Distribution, request: Request, direction: str) -> Answer:
    wanted = request.divergence
    try:
        value = wanted.verb(p, q)
    except NoExactMethod as error:
        if wanted.row.name not in _FROM_DRAWS:
            raise BadInput(
                f"{direction}: {in_flags(str(error))}. Write --divergence kl or jeffreys, which draws can estimate"
            ) from None
        method = estimate.MonteCarlo(_DRAWS)
        try:
            if wanted.row.name == "kl":
                found = estimate.kl(p, q, method=method, generator=_generator(request))
                return _estimated(direction, found, request)
            return _both_ways(p, q, request, direction, method)
        except FormError:  # nothing to draw or to compare: what the exact method said is the reason
            raise BadInput(f"{direction}: {in_flags(str(error))}") from None
    if value.dim():
        raise BadInput(f"{direction}: one of the distributions is a batch; write one number a parameter")
    return Answer(
        direction, float(value) / _unit_of(request), _unit(request), exact=True, method="exact", level=request.level
    )


def _both_ways(p: Any, q: Any, request: Request, direction: str, method: Any = None) -> Answer:
    """The sum of both directions; their errors are added, which is the most that they can be together."""
    source = _generator(request)
    there, back = (
        _estimated(direction, estimate.kl(x, y, method=method, generator=source), request) for x, y in ((p, q), (q, p))
    )
    assert there.interval is not None
    assert back.interval is not None
    errors = None if there.stderr is None or back.stderr is None else there.stderr + back.stderr

    def both(of: str, between: str) -> str:
        """What is said of both directions, once."""
        return between.join(dict.fromkeys(words for one in (there, back) if (words := getattr(one, of))))

    return replace(
        there,
        value=there.value + back.value,
        stderr=errors,
        interval=(there.interval[0] + back.interval[0], there.interval[1] + back.interval[1]),
        method=both("method", " and "),
        words=both("words", " and "),
        bias=both("bias", "; "),
        verdict=both("verdict", "; "),
    )


def _estimated(direction: str, found: Estimate, request: Request) -> Answer:
    unit = _unit_of(request)
    low, high = found.interval(request.level)
    verdict, value = in_flags(found.verdict), found.value / unit
    if value < 0.0:
        below = f"the estimate is {value:.3g}, and no divergence is below 0"
        verdict, value = "; ".join(one for one in (below, verdict) if one), 0.0
    return Answer(
        direction,
        value,
        _unit(request),
        exact=False,
        method=brief(found.method),
        words=method_in_words(found.method, brief(found.method)),
        level=request.level,
        interval=(max(0.0, low) / unit, max(0.0, high) / unit),
        stderr=found.stderr / unit if math.isfinite(found.stderr) else None,
        bias=found.bias,
        verdict=verdict,
        n=found.n,
        m=found.m,
    )


def contributions(p: Content, q: Content, base: float = math.e) -> Tensor:
    """What each category adds to KL(p‖q), p log(p/q) of the shares: (B,), the mean over the rows of a batch."""
    log_p, log_q = (_log_shares(side) for side in (p, q))
    some = log_p > -math.inf
    terms = torch.where(some, log_p.exp() * (log_p - torch.where(some, log_q, 0.0)), 0.0) / math.log(base)
    return terms if terms.dim() == 1 else terms.mean(0)


def _log_shares(side: Content) -> Tensor:
    if side.kind == "logits":
        return torch.log_softmax(side.values, -1)
    return torch.log(side.values) - torch.log(side.values.sum(-1, keepdim=True))


def _generator(request: Request) -> torch.Generator:
    return torch.Generator().manual_seed(request.seed)


def _unit_of(request: Request) -> float:
    return math.log(request.base) if request.divergence.row.logarithmic and request.base != math.e else 1.0


def _unit(request: Request) -> str:
    if not request.divergence.row.logarithmic:
        return ""
    return "nats" if request.base == math.e else "bits" if request.base == 2 else f"base {request.base:g}"
