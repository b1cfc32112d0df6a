"""`estimate.kl`: which estimator serves what you hold."""

import math
from typing import Any, TypeAlias, cast, overload

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback._errors import FormError
from kullback.forms.empirical import Counts, LogRatios, Samples
from kullback.forms.finite import FiniteForm, Probs
from kullback.forms.sparse import Drawn

from .drawn import kl_of_drawn
from .mixtures import MixtureBound
from .monte_carlo import K1, K2, K3, MonteCarlo, Regressed
from .neighbours import NearestNeighbours, same_draws
from .plug_in import MillerMadow, PlugIn
from .result import Estimate, Estimates
from .variational import Classifier, DonskerVaradhanBound, NWJBound

Method: TypeAlias = (
    K1
    | K2
    | K3
    | Regressed
    | MonteCarlo
    | MixtureBound
    | NearestNeighbours
    | DonskerVaradhanBound
    | NWJBound
    | Classifier
    | PlugIn
)
Side: TypeAlias = Distribution | Samples | Counts | Probs | LogRatios

# what the two sides are -> the methods that take them, the default first
_SERVES: dict[tuple[str, str], tuple[type, ...]] = {
    ("LogRatios", ""): (K3, K1, K2, Regressed),
    ("Distribution", "Distribution"): (MonteCarlo, MixtureBound),
    ("Samples", "Samples"): (NearestNeighbours, DonskerVaradhanBound, NWJBound, Classifier),
    ("Samples", "Distribution"): (NearestNeighbours,),
    ("Distribution", "Samples"): (NearestNeighbours,),
    ("Counts", "Counts"): (PlugIn,),
    ("Counts", "Probs"): (PlugIn,),
    ("Probs", "Counts"): (PlugIn,),
}


@overload
def kl(p: Drawn, q: FiniteForm, /, *, base: float = math.e) -> Estimates: ...


@overload
def kl(
    p: Side,
    q: Side | None = None,
    /,
    *,
    method: Method | None = None,
    generator: torch.Generator | None = None,
    base: float = math.e,
) -> Estimate: ...


def kl(
    p: Side | Drawn,
    q: Side | FiniteForm | None = None,
    /,
    *,
    method: Method | None = None,
    generator: torch.Generator | None = None,
    base: float = math.e,
) -> Estimate | Estimates:
    """KL(p‖q) estimated, with its standard error, an interval, and a verdict.

    Args:
        p, q: what is held of each side, and the methods that take it (the default first):
            Samples, Samples: NearestNeighbours, DonskerVaradhanBound, NWJBound, Classifier;
            Samples and a torch distribution, in either order: NearestNeighbours;
            two torch distributions: MonteCarlo, MixtureBound;
            Counts and Counts, or Counts and Probs (V,) in either order: PlugIn (with MillerMadow);
            LogRatios as p, and no q: K3, K1, K2, Regressed;
            Drawn as p and a form as q: the mean of log p - log q over the draws, without a method, row by row.
        method: a method, as a value: `NearestNeighbours(k=1)`.
        generator: the source of randomness of the methods that draw, which makes the call repeatable; PyTorch's own
            (`torch.manual_seed`) unless given.
        base: e gives nats, 2 gives bits.

    Returns: `Estimate`, of numbers: no gradient flows through it. For Drawn `Estimates`, of one number a row.
    Raises: FormError: a pair that nothing here serves, a method that does not take it.

    >>> from kullback import Samples, estimate
    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(1000, generator=g), torch.randn(1000, generator=g) + 1
    >>> found = estimate.kl(Samples(x), Samples(y), generator=g)   # the truth is 0.5
    >>> found.interval().low < 0.5 < found.interval().high
    True
    """
    if isinstance(p, Drawn):
        if method is not None:
            raise FormError("estimate.kl: p is Drawn, which takes no method. Write estimate.kl(p, q).")
        return kl_of_drawn(p, cast(FiniteForm, q)).to(base)
    pair = (_kind("p", p), "" if q is None else _kind("q", q))
    if pair not in _SERVES:
        raise FormError(_nothing_serves(pair))
    takes = _SERVES[pair]
    chosen: Any = _default(takes[0]) if method is None else method
    if not isinstance(chosen, takes):
        given = type(chosen).__name__ if not isinstance(chosen, type) else f"the class {chosen.__name__}"
        names = ", ".join(f"{one.__name__}()" for one in takes)
        sides = " and ".join(side for side in pair if side)
        raise FormError(f"estimate.kl: method is {given}, which does not take {sides}. Write one of {names}.")
    if isinstance(p, Samples) and isinstance(q, Samples) and same_draws(p, q):
        return _of_itself(p, q, chosen).to(base)
    serve = cast(Any, chosen).estimate
    result: Estimate = serve(p) if q is None else serve(p, q, generator)
    return result.to(base)


def _of_itself(p: Samples, q: Samples, method: Any) -> Estimate:
    words = "p and q hold the same draws: 0 for any distribution, and nothing about how two of them differ"
    return Estimate(0.0, math.nan, len(p), bias="none", method=method, m=len(q), verdict=words)


def _default(method: type) -> Any:
    return PlugIn(correction=MillerMadow()) if method is PlugIn else method()


def _kind(name: str, side: Any) -> str:
    for form in (Distribution, Samples, Counts, Probs, LogRatios):
        if isinstance(side, form):
            return form.__name__
    if isinstance(side, FiniteForm | Drawn):
        return type(side).__name__
    kind = "a bare Tensor" if isinstance(side, Tensor) else f"a bare {type(side).__name__}"
    raise FormError(
        f"estimate.kl: {name} is {kind}, which does not say what it holds. Write Samples({name}) for draws, "
        f"Counts({name}) for how often each category was seen, or LogRatios(log_p, log_q, drawn_from='p')."
    )


def _nothing_serves(pair: tuple[str, str]) -> str:
    p, q = pair
    if p == "LogRatios" or q == "LogRatios":
        return "estimate.kl: LogRatios hold both sides. Write estimate.kl(LogRatios(log_p, log_q, drawn_from=...))."
    if not q:
        return f"estimate.kl: q is missing beside p, which is {p}. Write estimate.kl(p, q)."
    if q == "Drawn":
        return (
            "estimate.kl: q is Drawn, but only what p was drawn from can be compared so. Write estimate.kl(q, p) if "
            "the teacher's KL to the student is meant."
        )
    exact = {"Logits", "LogProbs", "Probs", "Labels", "TopK"}
    if p in exact and q in exact:
        return f"estimate.kl: {p} and {q} are known exactly, so there is nothing to estimate. Write kl(p, q)."
    if {p, q} == {"Samples", "Counts"}:
        return (
            "estimate.kl: p and q are Samples and Counts. Write Counts on both sides, with the samples counted over "
            "the same categories or bins (torch.histogram, torch.bincount)."
        )
    if "Counts" in pair and (p in exact or q in exact):
        return f"estimate.kl: nothing takes {p} and {q}. Beside Counts, write Probs(softmax or exp of it), one row."
    return (
        f"estimate.kl: nothing takes {p} and {q}. Write Samples or Counts on both sides, or kl(p, q) if both are known."
    )
