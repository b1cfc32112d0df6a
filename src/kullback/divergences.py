"""The table: every divergence as data.

A row names its sum (a generator with its constants, see `core.reduction`), what is done to that sum, its range,
whether it is symmetric, and its source. `verbs` look rows up here; tests and documents run over `TABLE`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .core import generators
from .core.reduction import GeneratorSum, LogAffinity, Sum


@dataclass(frozen=True)
class Divergence:
    """One row of the table. `finish` takes the value of each of `sums`, in order."""

    name: str
    formula: str
    sums: tuple[Sum, ...]
    finish: Callable[..., Tensor]
    upper: float
    symmetric: bool
    source: str
    logarithmic: bool = True
    """Measured in nats, so that `base` applies."""


def _identity(x: Tensor) -> Tensor:
    return x


def _sqrt(x: Tensor) -> Tensor:
    """√x; at 0 and NaN the derivative of x itself passes: 0 at the minimum, and a masked NaN stays masked."""
    inside = x > 0
    return torch.where(inside, torch.sqrt(torch.where(inside, x, 1.0)), x)


KL = Divergence(
    "kl",
    "Σ p log(p/q)",
    (GeneratorSum(generators.kl, at_p_zero=1.0, at_q_zero=math.inf, plain=(-1.0, 1.0)),),
    _identity,
    math.inf,
    False,
    "Kullback & Leibler 1951",
)

JEFFREYS = Divergence(
    "jeffreys",
    "Σ (p - q) log(p/q)",
    (GeneratorSum(generators.jeffreys, at_p_zero=math.inf, at_q_zero=math.inf),),
    _identity,
    math.inf,
    True,
    "Jeffreys 1946",
)

TV = Divergence(
    "tv",
    "½ Σ |p - q|",
    (GeneratorSum(generators.tv, at_p_zero=0.5, at_q_zero=0.5, slopes=(-0.5, -0.5)),),
    _identity,
    1.0,
    True,
    "Levin & Peres 2017, section 4.1",
    logarithmic=False,
)

HELLINGER = Divergence(
    "hellinger",
    "√(½ Σ (√p - √q)²)",
    (GeneratorSum(generators.squared_hellinger, at_p_zero=0.5, at_q_zero=0.5),),
    _sqrt,
    1.0,
    True,
    "Hellinger 1909; Tsybakov 2009, section 2.4",
    logarithmic=False,
)

CHI2 = Divergence(
    "chi2",
    "Σ (p - q)² / q",
    (GeneratorSum(generators.chi2, at_p_zero=1.0, at_q_zero=math.inf, slopes=(-2.0, 0.0)),),
    _identity,
    math.inf,
    False,
    "Pearson 1900; Tsybakov 2009, section 2.4",
    logarithmic=False,
)

CROSS_ENTROPY = Divergence(
    "cross_entropy",
    "-Σ p log q",
    (GeneratorSum(generators.cross_entropy, at_p_zero=0.0, at_q_zero=math.inf, log_q_slope=True),),
    _identity,
    math.inf,
    False,
    "Shannon 1948; Cover & Thomas 2006, section 5.4",
)


def js(weight: float) -> Divergence:
    """Jensen-Shannon with weight w on p: w KL(p‖m) + (1-w) KL(q‖m), m = w p + (1-w) q."""
    at_p_zero, at_q_zero = (_surprise(1.0 - weight), _surprise(weight)) if 0.0 < weight < 1.0 else (0.0, 0.0)
    return Divergence(
        f"js({weight:g})",
        "w Σ p log(p/m) + (1-w) Σ q log(q/m), m = w p + (1-w) q",
        (GeneratorSum(generators.js(weight), at_p_zero, at_q_zero),),
        _identity,
        at_p_zero + at_q_zero,
        weight == 0.5,
        "Lin 1991",
    )


def alpha(order: float) -> Divergence:
    """Amari's α-divergence (Σ p^a q^(1-a) - 1) / (a (a-1))."""
    return Divergence(
        f"alpha({order:g})",
        "(Σ p^a q^(1-a) - 1) / (a (a-1))",
        (_alpha_sum(order),),
        _identity,
        1.0 / (order * (1.0 - order)) if 0.0 < order < 1.0 else math.inf,
        order == 0.5,
        "Amari 1985; Cichocki & Amari 2010",
        logarithmic=order in (0.0, 1.0),
    )


def renyi(order: float) -> Divergence:
    """Rényi's divergence log(Σ p^a q^(1-a)) / (a-1), a >= 0; KL at a = 1 and -log q(p > 0) at a = 0."""
    if order == 1.0:
        sums, finish = KL.sums, _identity
    elif order == 0.0:
        missing = GeneratorSum(generators.nothing, at_p_zero=1.0, at_q_zero=0.0, plain=(0.0, 1.0))
        sums, finish = (missing, LogAffinity(0.0)), partial(_log_sum, order=0.0, scale=-1.0)
    else:
        sums = (_alpha_sum(order), LogAffinity(order))
        finish = partial(_log_sum, order=order, scale=order * (order - 1.0))
    return Divergence(
        f"renyi({order:g})",
        "log(Σ p^a q^(1-a)) / (a-1)",
        sums,
        finish,
        math.inf,
        order == 0.5,
        "Rényi 1961; van Erven & Harremoës 2014",
    )


def _log_sum(x: Tensor, log_sum: Tensor, *, order: float, scale: float) -> Tensor:
    """log S / (a-1), S = 1 + scale·x: near S = 1 only x has the digits, far from it only the log domain has."""
    near = log_sum.abs() < 0.5
    return torch.where(near, torch.log1p(scale * torch.where(near, x, 0.0)), log_sum) / (order - 1.0)


def _alpha_sum(order: float) -> Sum:
    if order == 1.0:
        return KL.sums[0]
    if order == 0.0:
        return GeneratorSum(generators.reverse_kl, at_p_zero=math.inf, at_q_zero=1.0, plain=(1.0, -1.0))
    return GeneratorSum(
        generators.alpha(order),
        at_p_zero=1.0 / order if order > 0.0 else math.inf,
        at_q_zero=1.0 / (1.0 - order) if order < 1.0 else math.inf,
        plain=(-1.0 / (order - 1.0), 1.0 / order),
    )


def _surprise(w: float) -> float:
    return -w * math.log(w)


TABLE: tuple[Divergence, ...] = (
    KL,
    JEFFREYS,
    js(0.5),
    js(0.1),
    alpha(-1.0),
    alpha(0.0),
    alpha(0.3),
    alpha(0.5),
    alpha(1.0),
    alpha(2.0),
    renyi(0.0),
    renyi(0.3),
    renyi(0.5),
    renyi(1.0),
    renyi(3.0),
    TV,
    HELLINGER,
    CHI2,
    CROSS_ENTROPY,
)
