"""The verbs: each reads as its formula and gives one number per row.

Every verb takes forms (`Logits`, `LogProbs`, `Probs`, `Labels`), or `torch.distributions` objects or densities, in the
order of the formula and positionally only; batch shapes broadcast; the result has the broadcast batch shape, float64 if
an input is float64 and float32 otherwise.
Gradients flow to every input that requires them, once and twice. A row whose true value is infinite is +inf and sends
back a zero gradient (docs/decisions/0002). All raise `FormError` for a bare tensor, different V, batch shapes that do
not broadcast, or different devices.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import divergences, exact
from ._errors import FormError
from .core.coarse import shared_out
from .core.dtypes import result_dtype
from .core.reduction import GeneratorSum, Pair, cells
from .core.sharded import shard_of, weights_of_columns
from .divergences import KL, Divergence
from .engines import choice
from .forms.density import Measured
from .forms.finite import FiniteForm
from .route import sides

__all__ = [
    "alpha",
    "chi2",
    "contributions",
    "cross_entropy",
    "entropy",
    "hellinger",
    "jeffreys",
    "js",
    "kl",
    "measure",
    "renyi",
    "skew",
    "triangular",
    "tsallis",
    "tv",
]


def kl(p: Measured, q: Measured, /, *, base: float = math.e) -> Tensor:
    """Relative entropy KL(p‖q) = Σ_v p_v log(p_v / q_v): what it costs to take q for p.

    Args:
        p: the reference: the truth, the teacher. Form over V classes.
        q: the approximation: the model, the student. Form over the same V.
        base: e gives nats, 2 gives bits.

    Returns:
        Tensor (...), >= 0; exactly 0 for equal inputs; +inf where p has mass and q has none.

    Gradients: to p and q. With logits b of q they are q - p.
    Source: Kullback & Leibler 1951; Cover & Thomas 2006, section 2.3.

    >>> kl(Probs([[0.5, 0.5]]), Probs([[0.75, 0.25]]))
    tensor([0.1438])
    >>> kl(Probs([[0.5, 0.5]]), Probs([[0.75, 0.25]]), base=2)
    tensor([0.2075])
    """
    return measure(divergences.KL, p, q, base=base)


def js(p: Measured, q: Measured, /, *, weight: float = 0.5, base: float = math.e) -> Tensor:
    """Jensen-Shannon divergence w KL(p‖m) + (1-w) KL(q‖m) with the mixture m = w p + (1-w) q.

    Args:
        p, q: forms over the same V.
        weight: w in [0, 1], the share of p in the mixture. The value is continuous in w, and 0 at both ends.
        base: e gives nats, 2 gives bits.

    Returns:
        Tensor (...), from 0 to the entropy of (w, 1-w): log 2 for w = 1/2. Symmetric for w = 1/2.

    Gradients: to p and q. Source: Lin 1991.

    >>> js(Probs([1.0, 0.0]), Probs([0.0, 1.0]), base=2)
    tensor(1.)
    """
    return measure(divergences.js(_number("js", "weight", weight, 0.0, 1.0)), p, q, base=base)


def skew(p: Measured, q: Measured, /, weight: float = 0.1, *, base: float = math.e) -> Tensor:
    """Skew divergence KL(p ‖ w p + (1-w) q): q is smoothed by p itself before it is compared.

    Args:
        p, q: forms over the same V.
        weight: w in [0, 1], the share of p in the mixture; KL(p‖q) at 0, 0 at 1.
        base: e gives nats, 2 gives bits.

    Returns: Tensor (...), from 0 to log(1/w); finite for w > 0 whatever the supports.
    Gradients: to p and q. Source: Lee 1999 (with α = 1 - w); Ko et al. 2024, arXiv 2402.03898, section 3.1.

    >>> skew(Probs([1.0, 0.0]), Probs([0.0, 1.0]), weight=0.5)
    tensor(0.6931)
    """
    return measure(divergences.skew(_number("skew", "weight", weight, 0.0, 1.0)), p, q, base=base)


def jeffreys(p: Measured, q: Measured, /, *, base: float = math.e) -> Tensor:
    """Jeffreys' divergence KL(p‖q) + KL(q‖p) = Σ_v (p_v - q_v) log(p_v / q_v).

    Over the bins of a histogram it is the population stability index.

    Args: p, q: forms over the same V.  base: e gives nats, 2 gives bits.
    Returns: Tensor (...), >= 0, symmetric; +inf where only one of the two has mass.
    Gradients: to p and q. Source: Jeffreys 1946.

    >>> jeffreys(Probs([0.5, 0.5]), Probs([0.75, 0.25]))
    tensor(0.2747)
    """
    return measure(divergences.JEFFREYS, p, q, base=base)


def alpha(p: Measured, q: Measured, /, order: float) -> Tensor:
    """Amari's α-divergence (Σ_v p_v^a q_v^(1-a) - 1) / (a (a-1)).

    Args:
        p, q: forms over the same V.
        order: a, any finite number. KL(p‖q) at 1, KL(q‖p) at 0, 4 times the squared Hellinger distance at 1/2,
            half of χ² at 2; continuous through all of them.

    Returns: Tensor (...), >= 0.
    Gradients: to p and q. Source: Amari 1985; Cichocki & Amari 2010.

    >>> alpha(Probs([0.5, 0.5]), Probs([0.75, 0.25]), 2.0)
    tensor(0.1667)
    """
    return measure(divergences.alpha(_number("alpha", "order", order, -math.inf, math.inf)), p, q)


def renyi(p: Measured, q: Measured, /, order: float, *, base: float = math.e) -> Tensor:
    """Rényi divergence of order a, log(Σ_v p_v^a q_v^(1-a)) / (a - 1).

    Args:
        p, q: forms over the same V.
        order: a >= 0; KL(p‖q) at 1, -log q(p > 0) at 0, nondecreasing in a.
        base: e gives nats, 2 gives bits.

    Returns: Tensor (...), >= 0.
    Gradients: to p and q. Source: Rényi 1961; van Erven & Harremoës 2014.

    >>> renyi(Probs([0.5, 0.5]), Probs([0.75, 0.25]), 2.0)
    tensor(0.2877)
    """
    return measure(divergences.renyi(_number("renyi", "order", order, 0.0, math.inf)), p, q, base=base)


def tsallis(p: Measured, q: Measured, /, order: float) -> Tensor:
    """Tsallis relative entropy of order a, (Σ_v p_v^a q_v^(1-a) - 1) / (a - 1): a times the α-divergence.

    Args:
        p, q: forms over the same V.
        order: a >= 0; KL(p‖q) at 1, the mass of q where p has none at 0, χ² at 2.

    Returns: Tensor (...), >= 0, at most 1/(1-a) for a < 1.
    Gradients: to p and q. Source: Tsallis 1998; Furuichi, Yanagi & Kuriyama 2004.

    >>> tsallis(Probs([0.5, 0.5]), Probs([0.75, 0.25]), 2.0)
    tensor(0.3333)
    """
    return measure(divergences.tsallis(_number("tsallis", "order", order, 0.0, math.inf)), p, q)


def triangular(p: Measured, q: Measured, /) -> Tensor:
    """Triangular discrimination Σ_v (p_v - q_v)² / (p_v + q_v): a symmetric χ², twice the Vincze-Le Cam distance.

    Args: p, q: forms over the same V.
    Returns: Tensor (...), from 0 to 2, symmetric. Half of it is at most the total variation distance.
    Gradients: to p and q. Source: Le Cam 1986, section 4.2; Topsøe 2000.

    >>> triangular(Probs([0.5, 0.5]), Probs([0.75, 0.25]))
    tensor(0.1333)
    """
    return measure(divergences.TRIANGULAR, p, q)


def tv(p: Measured, q: Measured, /) -> Tensor:
    """Total variation distance ½ Σ_v |p_v - q_v|: the largest difference in the probability of any event.

    Args: p, q: forms over the same V.
    Returns: Tensor (...), from 0 to 1, symmetric.
    Gradients: to p and q; 0 where p_v = q_v. Source: Levin & Peres 2017, section 4.1.

    >>> tv(Probs([0.5, 0.5]), Probs([0.75, 0.25]))
    tensor(0.2500)
    """
    return measure(divergences.TV, p, q)


def hellinger(p: Measured, q: Measured, /) -> Tensor:
    """Hellinger distance √(½ Σ_v (√p_v - √q_v)²).

    Args: p, q: forms over the same V.
    Returns: Tensor (...), from 0 to 1, symmetric.
    Gradients: to p and q; 0 at p = q, where the distance has its corner. Source: Hellinger 1909.

    >>> hellinger(Probs([0.5, 0.5]), Probs([1.0, 0.0]))
    tensor(0.5412)
    """
    return measure(divergences.HELLINGER, p, q)


def chi2(p: Measured, q: Measured, /) -> Tensor:
    """Pearson's χ² divergence Σ_v (p_v - q_v)² / q_v.

    Args: p, q: forms over the same V.
    Returns: Tensor (...), >= 0; +inf where p has mass and q has none.
    Gradients: to p and q. Source: Pearson 1900; Tsybakov 2009, section 2.4.

    >>> chi2(Probs([0.5, 0.5]), Probs([0.75, 0.25]))
    tensor(0.3333)
    """
    return measure(divergences.CHI2, p, q)


def entropy(p: Measured, /, *, base: float = math.e) -> Tensor:
    """Shannon entropy H(p) = -Σ_v p_v log p_v: the shortest mean code length, in nats or (base=2) bits.

    Args: p: form over V classes.  base: e gives nats, 2 gives bits.
    Returns: Tensor (...), from 0 to log V.
    Gradients: to p. Source: Shannon 1948.

    >>> entropy(Probs([0.5, 0.25, 0.25]), base=2)
    tensor(1.5000)
    """
    return measure(divergences.CROSS_ENTROPY, p, p, base=base, verb="entropy")


def cross_entropy(p: Measured, q: Measured, /, *, base: float = math.e) -> Tensor:
    """Cross-entropy H(p, q) = -Σ_v p_v log q_v = H(p) + KL(p‖q): the mean code length when q's code is used for p.

    Args: p: the reference.  q: the model; forms over the same V.  base: e gives nats, 2 gives bits.
    Returns: Tensor (...), >= 0; +inf where p has mass and q has none.
    Gradients: to p and q. Source: Shannon 1948; Cover & Thomas 2006, section 5.4.

    >>> cross_entropy(Labels([0], num_classes=2), Probs([[0.25, 0.75]]), base=2)
    tensor([2.])
    """
    return measure(divergences.CROSS_ENTROPY, p, q, base=base)


def contributions(p: FiniteForm, q: FiniteForm, /, divergence: Divergence = KL, *, base: float = math.e) -> Tensor:
    """What each class brings to a divergence: (..., V), adding up to its value.

    For KL the class v brings p_v log(p_v / q_v) - p_v + q_v, which is >= 0: the textbook term p_v log(p_v / q_v) can be
    negative where q has too much, and says less of where p and q differ. The sums are the same. Classes that are known
    only together (`TopK` with a bucket) share out evenly what they bring.

    Args:
        p, q: forms over the same V; their batch shapes broadcast.
        divergence: a row of `kullback.divergences` that is a sum over classes, as Hellinger's and
            Rényi's are not.
        base: e gives nats, 2 gives bits.

    Returns: Tensor (..., V), >= 0 (cross-entropy: its textbook terms). For looking at: it carries no gradient. Of
        Sharded forms, those of the classes here: (..., width).
    Raises: FormError, also for a divergence that is no sum.

    >>> contributions(Probs([0.5, 0.5]), Probs([0.75, 0.25]))
    tensor([0.0473, 0.0966])
    """
    linear = divergence.linear
    if linear is None or not isinstance(linear[0], GeneratorSum):
        raise FormError(
            f"contributions: {divergence.name} is no sum over classes. Write contributions(p, q, KL), "
            "or alpha of the same order for Rényi's."
        )
    unit = _log_base(base)
    left, right = sides("contributions", p, q)
    with torch.no_grad():
        if (shard := shard_of(left.reading, right.reading)) is not None:
            pair, alone = Pair(*(weights_of_columns(side, shard) for side in (left, right))), None
        else:
            pair, alone = cells(left, right)
        terms = linear[0].terms(pair).value
        if alone is not None:
            terms = shared_out(terms, alone)
        return (terms * (linear[1] / unit)).to(result_dtype(*(x.dtype for x in (*left.data, *right.data))))


def measure(divergence: Divergence, p: Any, q: Any, /, *, base: float = math.e, verb: str | None = None) -> Tensor:
    """Any row of the table, or one of your own: the verbs are its named cases.

    >>> from kullback import divergences
    >>> measure(divergences.js(0.5), Probs([1.0, 0.0]), Probs([0.0, 1.0]), base=2)
    tensor(1.)
    """
    unit = 1.0 if base is math.e else _log_base(base)
    if not (isinstance(p, FiniteForm) and isinstance(q, FiniteForm)) and (
        exact.is_measurable(p) or exact.is_measurable(q)
    ):
        value = exact.measure(divergence, verb or divergence.family, p, q)
        return value if unit == 1.0 else value / unit
    left, right = sides(verb or divergence.family, p, q)
    return choice.measure(divergence, left, right, p.num_classes, unit)


def row_of(divergence: Any, /) -> Divergence | None:
    """The row of the table that a verb, a `functools.partial` of one, or a row itself measures; else None.

    >>> from functools import partial
    >>> row_of(kl).name, row_of(partial(js, weight=0.1)).name, row_of(lambda p, q: kl(q, p))
    ('kl', 'js(0.1)', None)
    """
    if isinstance(divergence, Divergence):
        return divergence
    verb, given = divergence, {}
    if isinstance(divergence, functools.partial):
        if divergence.func is measure and len(divergence.args) == 1 and not divergence.keywords:
            return row_of(divergence.args[0])
        if divergence.args:
            return None
        verb, given = divergence.func, divergence.keywords
    family = divergences.FAMILIES.get(getattr(verb, "__name__", ""))
    if family is None or globals().get(verb.__name__) is not verb:
        return None
    if isinstance(family, Divergence):
        return None if given else family
    name = "weight" if verb in (js, skew) else "order"
    number = given.get(name, 0.5 if verb is js else 0.1 if verb is skew else None)
    return family(_PARAMETERS[verb](number)) if number is not None and given.keys() <= {name} else None


_PARAMETERS: dict[Any, Callable[[float], float]] = {
    js: lambda w: _number("js", "weight", w, 0.0, 1.0),
    skew: lambda w: _number("skew", "weight", w, 0.0, 1.0),
    alpha: lambda a: _number("alpha", "order", a, -math.inf, math.inf),
    tsallis: lambda a: _number("tsallis", "order", a, 0.0, math.inf),
    renyi: lambda a: _number("renyi", "order", a, 0.0, math.inf),
}


def _log_base(base: float) -> float:
    if base is math.e:
        return 1.0
    if not (isinstance(base, int | float) and 1.0 < base < math.inf):
        raise FormError(
            f"base is {base!r}, but a unit needs a number above 1: leave it out for nats, write base=2 for bits."
        )
    return 1.0 if base == math.e else math.log(base)


def _number(verb: str, name: str, value: float, low: float, high: float) -> float:
    number = float(value)
    if not (low <= number <= high and math.isfinite(number)):
        needed = (
            f"a number from {low:g} to {high:g}"
            if high < math.inf
            else "a finite number" + (f" >= {low:g}" if low > -math.inf else "")
        )
        raise FormError(f"{verb}: {name} is {value!r}, but it must be {needed}.")
    return number
