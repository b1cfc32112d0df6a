"""Pointwise generators: the formulas, each standing once, with all that anyone may ask of them.

A generator sees one cell of a pair of finite distributions, where both have mass:

    p, q     the two probabilities
    d        log(q / p), finite
    log_q    log q, finite

and returns its term of the sum with its two logarithmic derivatives p·∂f/∂p and q·∂f/∂q. Every term is
*canonical*: it is >= 0 and flat at p = q, because a multiple of (q - p), which sums to zero over two
normalised rows, has been added to the textbook term. The sum is therefore never negative and is insensitive, to first
order, to an error in either normaliser. (Cross-entropy is no divergence and is its textbook self.)

Cells where p or q has no mass are not the formula's business: an f-divergence is homogeneous, so its
term there is a constant times the mass that is left (`at_p_zero`, `at_q_zero`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Cells(NamedTuple):
    """What a generator sees: p, q, log(q/p) and log q, elementwise."""

    p: Tensor
    q: Tensor
    d: Tensor
    log_q: Tensor


class Terms(NamedTuple):
    """What a generator says: its term of the sum, p ∂f/∂p and q ∂f/∂q."""

    value: Tensor
    dlogp: Tensor
    dlogq: Tensor


class Power(NamedTuple):
    """f = scale (p^order q^(1-order) - order p - (1-order) q), so that Σ f = scale (Σ p^a q^(1-a) - 1)."""

    order: float
    scale: float


class Tail(NamedTuple):
    """f <= multiple (p + q), and p log(p/q) more if `p_log`, q log(q/p) more if `q_log`.

    Where `power` has an order outside [0, 1], |scale| p^a q^(1-a) comes on top.
    """

    multiple: float = 1.0
    p_log: bool = False
    q_log: bool = False


@dataclass(frozen=True)
class Generator:
    """A term f(p, q), homogeneous of degree one (or, like cross-entropy, with its own edge slope), as a value.

    Two generators of one name and parameter are the same: engines know them by these. Equality, hashing and dispatch
    are by value, and a copy made by `dataclasses.replace` behaves as its original.

    name        a Python name; what engines and messages call it
    terms       (cells, parameter) -> Terms
    parameter   the weight or order, 0 where there is none
    at_p_zero, at_q_zero   f(0, q) / q and f(p, 0) / p, possibly inf: f(0) and f'(∞) of the f-divergence
    plain       canonical sum = textbook sum + plain[0] Σp + plain[1] Σq
    slopes      ∂f/∂p at p = 0 < q and ∂f/∂q at q = 0 < p of the textbook sum, 0 for an infinite one
    log_q_slope ∂f/∂p at p = 0 is -log q instead (cross-entropy is linear in p)
    corner      of first order in log Z: f is not smooth at p = q, and normalisers are wanted in float64
    power       set where Σ f is an affine function of Σ p^a q^(1-a)
    tail        how f grows where p/q or q/p does; None: unknown, and infinite sums and integrals are refused
    """

    name: str
    terms: Callable[[Cells, float], Terms]
    parameter: float = 0.0
    at_p_zero: float = math.inf
    at_q_zero: float = math.inf
    plain: tuple[float, float] = (0.0, 0.0)
    slopes: tuple[float, float] = (0.0, 0.0)
    log_q_slope: bool = False
    corner: bool = False
    power: Power | None = None
    tail: Tail | None = None

    def __call__(self, cells: Cells) -> Terms:
        return self.terms(cells, self.parameter)

    def __str__(self) -> str:
        return self.name if self.parameter == 0.0 else f"{self.name}({self.parameter:g})"


# e^y - 1 - y = y² (1/2! + y/3! + ...): below 1/8 nine terms leave a relative remainder under 1e-15
_SERIES_BELOW = 0.125
_SERIES = tuple(1.0 / math.factorial(k) for k in range(2, 11))


def growth(w: Tensor, m: Tensor, y: Tensor) -> Tensor:
    """w (e^y - 1), given also m = w e^y: no overflow at large y, no cancellation at small y."""
    near = y.abs() < 1.0
    return torch.where(near, w * torch.expm1(torch.where(near, y, 0.0)), m - w)


def excess(w: Tensor, m: Tensor, y: Tensor) -> Tensor:
    """w (e^y - 1 - y) >= 0, given also m = w e^y."""
    near = y.abs() < _SERIES_BELOW
    t = torch.where(near, y, 0.0)
    series = torch.full_like(t, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        series = series * t + coefficient
    return torch.where(near, w * (t * t * series), m - w - w * y)


# ---------------------------------------------------------------- the formulas


def _kl(c: Cells, _: float) -> Terms:
    """p log(p/q) - p + q = p (e^d - 1 - d)."""
    return Terms(excess(c.p, c.q, c.d), -c.p * c.d, growth(c.p, c.q, c.d))


def _reverse_kl(c: Cells, _: float) -> Terms:
    """q log(q/p) - q + p."""
    return Terms(excess(c.q, c.p, -c.d), growth(c.q, c.p, -c.d), c.q * c.d)


def _jeffreys(c: Cells, _: float) -> Terms:
    """(q - p) log(q/p)."""
    g = growth(c.p, c.q, c.d)
    return Terms(g * c.d, -c.p * c.d - g, g + c.q * c.d)


def _js(c: Cells, w: float) -> Terms:
    """w p log(p/m) + (1-w) q log(q/m), with m = w p + (1-w) q, for 0 < w < 1."""
    u = 1.0 - w
    m = w * c.p + u * c.q
    log_m_p, log_m_q = _log_mix(w, u, c.d), _log_mix(u, w, -c.d)
    value = w * excess(c.p, m, log_m_p) + u * excess(c.q, m, log_m_q)
    return Terms(value, -w * c.p * log_m_p, -u * c.q * log_m_q)  # m is the minimiser: no term through it


def _skew_kl(c: Cells, w: float) -> Terms:
    """p log(p/m) - p + m, with m = w p + (1-w) q, for 0 < w < 1."""
    u = 1.0 - w
    m = w * c.p + u * c.q
    y = _log_mix(w, u, c.d)  # log(m/p)
    back = torch.exp(-y)  # p/m, at most 1/w
    from_p, from_q = growth(c.p, c.p * back, -y), growth(c.q, c.q * back, -y)
    return Terms(excess(c.p, m, y), -c.p * y - w * from_p, -u * from_q)


def _log_mix(w: float, u: float, y: Tensor) -> Tensor:
    """log(w + u e^y) with w + u = 1, exact at y = 0, without overflow, and with its digits where it is small."""
    # near: -1/2 < u (e^y - 1) < 1
    low = math.log1p(-0.5 / u) if u > 0.5 else -math.inf
    high = math.log1p(1.0 / u) if u > 1e-300 else 700.0
    near = (y > low) & (y < high)
    small = torch.exp(-y.abs())
    far = y.clamp(min=0.0) + torch.log(torch.where(y < 0, w + u * small, u + w * small))
    return torch.where(near, torch.log1p(u * torch.expm1(torch.where(near, y, 0.0))), far)


def _alpha(c: Cells, a: float) -> Terms:
    """(p^a q^(1-a) - a p - (1-a) q) / (a (a-1)), a neither 0 nor 1."""
    t = 1.0 - a
    if a >= 0.5:
        return Terms(*_alpha_half_up(a, t, c.p, c.q, c.d))
    value, dlogq, dlogp = _alpha_half_up(t, a, c.q, c.p, -c.d)
    return Terms(value, dlogp, dlogq)


def _alpha_half_up(a: float, t: float, p: Tensor, q: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The formula for a = 1 - t >= 1/2, where nothing cancels; t may be too small for 1 - t to show it."""
    m = torch.where(d < 0, p, q) * torch.exp(torch.where(d < 0, t * d, -a * d))  # p^a q^(1-a)
    dlogp = -growth(p, m, t * d) / t
    near = excess(p, q, d) - excess(p, m, t * d) / t
    far = growth(p, q, d) + dlogp
    return torch.where(d.abs() < 1.0, near, far) / a, dlogp, -growth(q, m, -a * d) / a


def _tv(c: Cells, _: float) -> Terms:
    """|p - q| / 2."""
    g = growth(c.p, c.q, c.d)
    s = torch.where(g.isnan(), g, torch.sign(g))  # torch.sign(NaN) is 0
    return Terms(g.abs() / 2, -s * c.p / 2, s * c.q / 2)


def _squared_hellinger(c: Cells, _: float) -> Terms:
    """(√p - √q)² / 2."""
    root_p, root_q = _root(c.p), _root(c.q)
    r = growth(root_p, root_q, c.d / 2)
    return Terms(r * r / 2, -root_p * r / 2, root_q * r / 2)


def _root(w: Tensor) -> Tensor:
    """√w, with derivative 0 where w has underflowed to 0."""
    zero = w == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, w)))


def _chi2(c: Cells, _: float) -> Terms:
    """(p - q)² / q."""
    g = growth(c.p, c.q, c.d)
    return Terms(-g * torch.expm1(-c.d), -2.0 * g * torch.exp(-c.d), g * (1.0 + torch.exp(-c.d)))


def _triangular(c: Cells, _: float) -> Terms:
    """(p - q)² / (p + q) = (q - p) t, with t = (q - p) / (q + p) = tanh(d/2)."""
    g, t = growth(c.p, c.q, c.d), torch.tanh(c.d / 2)
    return Terms(g * t, -c.p * t * (2.0 + t), c.q * t * (2.0 - t))


def _nothing(c: Cells, _: float) -> Terms:
    """0: all that counts lies on the edge (Rényi's order 0 is the mass of q where p has none)."""
    zero = 0.0 * c.d
    return Terms(zero, zero, zero)


def _cross_entropy(c: Cells, _: float) -> Terms:
    """-p log q."""
    return Terms(-c.p * c.log_q, -c.p * c.log_q, -c.p)


# ---------------------------------------------------------------- the generators

_UNBOUNDED = math.inf

kl = Generator("kl", _kl, 0.0, 1.0, _UNBOUNDED, plain=(-1.0, 1.0), tail=Tail(p_log=True))

reverse_kl = Generator("reverse_kl", _reverse_kl, 0.0, _UNBOUNDED, 1.0, plain=(1.0, -1.0), tail=Tail(q_log=True))

jeffreys = Generator("jeffreys", _jeffreys, 0.0, _UNBOUNDED, _UNBOUNDED, tail=Tail(p_log=True, q_log=True))

tv = Generator("tv", _tv, 0.0, 0.5, 0.5, slopes=(-0.5, -0.5), corner=True, tail=Tail(0.5))

squared_hellinger = Generator(
    "squared_hellinger", _squared_hellinger, 0.0, 0.5, 0.5, corner=True, power=Power(0.5, -1.0), tail=Tail()
)  # its square root has the corner

chi2 = Generator("chi2", _chi2, 0.0, 1.0, _UNBOUNDED, slopes=(-2.0, 0.0), power=Power(2.0, 1.0), tail=Tail(2.0))

triangular = Generator("triangular", _triangular, 0.0, 1.0, 1.0, slopes=(-3.0, -3.0), tail=Tail())

cross_entropy = Generator(
    "cross_entropy", _cross_entropy, 0.0, 0.0, _UNBOUNDED, log_q_slope=True, tail=Tail(p_log=True)
)


def nothing(at_p_zero: float) -> Generator:
    """0 where both have mass; the mass of q where p has none counts `at_p_zero` times."""
    return Generator("nothing", _nothing, at_p_zero, at_p_zero, 0.0, plain=(0.0, at_p_zero), tail=Tail())


def js(weight: float) -> Generator:
    """Jensen-Shannon; 0 at its limits w = 0 and w = 1."""
    if weight in (0.0, 1.0):
        return nothing(0.0)
    rest = 1.0 - weight
    return Generator("js", _js, weight, _surprise(rest, weight), _surprise(weight, rest), tail=Tail())


def skew_kl(weight: float) -> Generator:
    """KL(p ‖ w p + (1-w) q): KL at w = 0, 0 at w = 1."""
    if weight == 0.0:
        return kl
    if weight == 1.0:
        return nothing(0.0)
    u = 1.0 - weight
    surprise = -math.log(weight)
    return Generator(
        "skew_kl", _skew_kl, weight, u, surprise - u, (-u, u), (0.0, -u / weight), tail=Tail(1.0 + surprise)
    )


def alpha(order: float) -> Generator:
    """Amari's α; its limits KL(p‖q) at a = 1 and KL(q‖p) at a = 0."""
    if order == 1.0:
        return kl
    if order == 0.0:
        return reverse_kl
    scale = 1.0 / (order * (order - 1.0))
    return Generator(
        "alpha",
        _alpha,
        order,
        1.0 / order if order > 0.0 else math.inf,
        1.0 / (1.0 - order) if order < 1.0 else math.inf,
        plain=(-1.0 / (order - 1.0), 1.0 / order),
        power=Power(order, scale),
        tail=Tail(1.0 / min(abs(order), abs(1.0 - order))),
    )


def _surprise(w: float, rest: float) -> float:
    """-w log w, w + rest = 1."""
    return -w * (math.log(w) if w < 0.5 else math.log1p(-rest))


NAMED: dict[str, Callable[[float], Generator]] = {
    "kl": lambda _: kl,
    "reverse_kl": lambda _: reverse_kl,
    "jeffreys": lambda _: jeffreys,
    "js": js,
    "skew_kl": skew_kl,
    "alpha": alpha,
    "tv": lambda _: tv,
    "squared_hellinger": lambda _: squared_hellinger,
    "chi2": lambda _: chi2,
    "triangular": lambda _: triangular,
    "nothing": nothing,
    "cross_entropy": lambda _: cross_entropy,
}
"""Generator of a name and a parameter: what an exported graph, which holds only these two, is read with."""
