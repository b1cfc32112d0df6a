"""The table: every divergence as data.

A row names its sums (see `core.reduction`), what is done to them, its range, whether it is symmetric, and its source.
Rows are values: two of one family and parameter are equal. `verbs` look rows up here; tests, documents, the command
and `distill` run over `TABLE` and `FAMILIES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .core import generators
from .core.reduction import GeneratorSum, LogAffinity, Sum


@dataclass(frozen=True)
class Root:
    """√x; at 0 and NaN the derivative of x itself passes: 0 at the minimum, and a masked NaN stays masked."""

    def __call__(self, x: Tensor) -> Tensor:
        inside = x > 0
        return torch.where(inside, torch.sqrt(torch.where(inside, x, 1.0)), x)


@dataclass(frozen=True)
class Scaled:
    """factor · x; by default the sum itself."""

    factor: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.factor == 1.0 else self.factor * x


@dataclass(frozen=True)
class LogSum:
    """log S / (order - 1), S = 1 + scale·x: near S = 1 only x has the digits, far from it only the log domain has."""

    order: float
    scale: float

    def __call__(self, x: Tensor, log_sum: Tensor) -> Tensor:
        near = log_sum.abs() < 0.5
        log = torch.where(near, torch.log1p(self.scale * torch.where(near, x, 0.0)), log_sum)
        return log / (self.order - 1.0) + 0.0  # 0 / -1 is -0


@dataclass(frozen=True, eq=False)
class Divergence:
    """One row of the table.

    family      the name of the verb
    parameter   its weight or order, None where it has none
    formula     in words of p and q
    sums        what is summed over the columns
    finish      takes the value of each of `sums`, in order
    upper       the largest value
    symmetric   whether p and q may be exchanged
    source      where it was defined
    logarithmic measured in nats, so that `base` applies
    """

    family: str
    parameter: float | None
    formula: str
    sums: tuple[Sum, ...]  # type: ignore[type-arg]
    finish: Callable[..., Tensor]
    upper: float
    symmetric: bool
    source: str
    logarithmic: bool = True
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(self._key))

    @property
    def _key(self) -> tuple[object, ...]:
        return self.family, self.parameter, self.sums, self.finish, self.logarithmic

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Divergence) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    @property
    def name(self) -> str:
        """`family`, or `family(parameter)`."""
        return self.family if self.parameter is None else f"{self.family}({self.parameter:g})"

    @property
    def linear(self) -> tuple[Sum, float] | None:  # type: ignore[type-arg]
        """(sum, factor) where the divergence is factor · sum, which adds up over terms; else None."""
        if isinstance(self.finish, Scaled) and len(self.sums) == 1:
            return self.sums[0], self.finish.factor
        return None


KL = Divergence(
    "kl",
    None,
    "Σ p log(p/q)",
    (GeneratorSum(generators.kl),),
    Scaled(),
    math.inf,
    False,
    "Kullback & Leibler 1951",
)

JEFFREYS = Divergence(
    "jeffreys",
    None,
    "Σ (p - q) log(p/q)",
    (GeneratorSum(generators.jeffreys),),
    Scaled(),
    math.inf,
    True,
    "Jeffreys 1946",
)

TV = Divergence(
    "tv",
    None,
    "½ Σ |p - q|",
    (GeneratorSum(generators.tv),),
    Scaled(),
    1.0,
    True,
    "Levin & Peres 2017, section 4.1",
    logarithmic=False,
)

HELLINGER = Divergence(
    "hellinger",
    None,
    "√(½ Σ (√p - √q)²)",
    (GeneratorSum(generators.squared_hellinger),),
    Root(),
    1.0,
    True,
    "Hellinger 1909; Tsybakov 2009, section 2.4",
    logarithmic=False,
)

CHI2 = Divergence(
    "chi2",
    None,
    "Σ (p - q)² / q",
    (GeneratorSum(generators.chi2),),
    Scaled(),
    math.inf,
    False,
    "Pearson 1900; Tsybakov 2009, section 2.4",
    logarithmic=False,
)

TRIANGULAR = Divergence(
    "triangular",
    None,
    "Σ (p - q)² / (p + q)",
    (GeneratorSum(generators.triangular),),
    Scaled(),
    2.0,
    True,
    "Le Cam 1986; Topsøe 2000",
    logarithmic=False,
)

CROSS_ENTROPY = Divergence(
    "cross_entropy",
    None,
    "-Σ p log q",
    (GeneratorSum(generators.cross_entropy),),
    Scaled(),
    math.inf,
    False,
    "Shannon 1948; Cover & Thomas 2006, section 5.4",
)


def js(weight: float) -> Divergence:
    """Jensen-Shannon with weight w on p: w KL(p‖m) + (1-w) KL(q‖m), m = w p + (1-w) q."""
    f = generators.js(weight)
    return Divergence(
        "js",
        weight,
        "w Σ p log(p/m) + (1-w) Σ q log(q/m), m = w p + (1-w) q",
        (GeneratorSum(f),),
        Scaled(),
        f.at_p_zero + f.at_q_zero,
        weight == 0.5,
        "Lin 1991",
    )


def skew(weight: float) -> Divergence:
    """Skew divergence KL(p ‖ w p + (1-w) q): KL at w = 0, 0 at w = 1."""
    return Divergence(
        "skew",
        weight,
        "Σ p log(p/m), m = w p + (1-w) q",
        (GeneratorSum(generators.skew_kl(weight)),),
        Scaled(),
        -math.log(weight) if weight > 0.0 else math.inf,
        False,
        "Lee 1999 (with α = 1 - w)",
    )


def alpha(order: float) -> Divergence:
    """Amari's α-divergence (Σ p^a q^(1-a) - 1) / (a (a-1))."""
    return Divergence(
        "alpha",
        order,
        "(Σ p^a q^(1-a) - 1) / (a (a-1))",
        (GeneratorSum(generators.alpha(order)),),
        Scaled(),
        1.0 / (order * (1.0 - order)) if 0.0 < order < 1.0 else math.inf,
        order == 0.5,
        "Amari 1985; Cichocki & Amari 2010",
        logarithmic=order in (0.0, 1.0),
    )


def tsallis(order: float) -> Divergence:
    """Tsallis' relative entropy (Σ p^a q^(1-a) - 1) / (a-1), a >= 0: a times the α-divergence, KL at a = 1."""
    f = generators.nothing(1.0) if order == 0.0 else generators.alpha(order)
    return Divergence(
        "tsallis",
        order,
        "(Σ p^a q^(1-a) - 1) / (a-1)",
        (GeneratorSum(f),),
        Scaled(order or 1.0),
        1.0 / (1.0 - order) if order < 1.0 else math.inf,
        order == 0.5,
        "Tsallis 1998",
        logarithmic=order == 1.0,
    )


def renyi(order: float) -> Divergence:
    """Rényi's divergence log(Σ p^a q^(1-a)) / (a-1), a >= 0; KL at a = 1 and -log q(p > 0) at a = 0."""
    sums: tuple[Sum, ...]  # type: ignore[type-arg]
    finish: Callable[..., Tensor]
    if order == 1.0:
        sums, finish = KL.sums, Scaled()
    elif order == 0.0:
        sums, finish = (GeneratorSum(generators.nothing(1.0)), LogAffinity(0.0)), LogSum(0.0, -1.0)
    else:
        sums = (GeneratorSum(generators.alpha(order)), LogAffinity(order))
        finish = LogSum(order, order * (order - 1.0))
    return Divergence(
        "renyi",
        order,
        "log(Σ p^a q^(1-a)) / (a-1)",
        sums,
        finish,
        math.inf,
        order == 0.5,
        "Rényi 1961; van Erven & Harremoës 2014",
    )


FAMILIES: dict[str, Divergence | Callable[[float], Divergence]] = {
    "kl": KL,
    "jeffreys": JEFFREYS,
    "js": js,
    "skew": skew,
    "alpha": alpha,
    "tsallis": tsallis,
    "renyi": renyi,
    "tv": TV,
    "hellinger": HELLINGER,
    "triangular": TRIANGULAR,
    "chi2": CHI2,
    "cross_entropy": CROSS_ENTROPY,
}
"""Every family by the name of its verb: a row, or what makes one of a parameter."""

TABLE: tuple[Divergence, ...] = (
    KL,
    JEFFREYS,
    js(0.5),
    js(0.1),
    skew(0.5),
    skew(0.1),
    alpha(-1.0),
    alpha(0.0),
    alpha(0.3),
    alpha(0.5),
    alpha(1.0),
    alpha(2.0),
    tsallis(0.0),
    tsallis(0.5),
    tsallis(3.0),
    renyi(0.0),
    renyi(0.3),
    renyi(0.5),
    renyi(1.0),
    renyi(3.0),
    TV,
    HELLINGER,
    TRIANGULAR,
    CHI2,
    CROSS_ENTROPY,
)
"""The rows that tests, oracles and documents run over."""
