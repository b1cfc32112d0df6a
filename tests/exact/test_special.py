"""The small functions under the closed forms against 60 digits: near equality, where branches meet, far."""

import math

import mpmath
import pytest
import torch

from kullback.exact import special

TINY = [1e-300, 1e-100, 1e-30, 1e-12, 1e-8, 1e-4, 0.01]
UNIT = [0.1, 0.3, 0.49, 0.4999999, 0.5, 0.51, math.log(2.0), 0.7, 1.0, 1.4, 2.0, 3.0]
FAR = [3.6, 3.71, 5.0, 9.99, 10.0, 10.01, 15.99, 16.0, 16.01, 25.0, 60.0, 300.0, 1e4, 1e9]
SMALL_LOGS = [-1e5, -700.0, -100.0, -36.1, -36.0, -35.9, -20.0, -5.0, -1.0, -0.1, -1e-3]
LOGS = [*SMALL_LOGS, 0.0, 0.5, 2.0, 3.69, 3.71, 6.0]


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(60):
        yield


def t(x):
    return torch.tensor(x, dtype=torch.float64)


def exact(formula, *points):
    return [float(formula(*map(mpmath.mpf, at))) for at in zip(*points, strict=True)]


def agree(found, formula, *points, rel=4e-15, abs=0.0):
    assert found.tolist() == pytest.approx(exact(formula, *points), rel=rel, abs=abs)


def log1mexp(x):
    return mpmath.log(-mpmath.expm1(-x))


@pytest.mark.parametrize(
    ("name", "points", "formula"),
    [
        ("rise", [s * x for x in TINY[1:] + UNIT + FAR[:10] for s in (1, -1)], lambda y: mpmath.expm1(y) - y),
        ("log1mexp", TINY + UNIT + FAR[:11], log1mexp),
        ("log_expm1", LOGS, lambda v: mpmath.log(mpmath.expm1(mpmath.exp(v)))),
        ("log1pexp", [*LOGS, 20.5, 40.0, 800.0], lambda v: mpmath.log1p(mpmath.exp(v))),
        ("log_log1p", [*LOGS, 20.5, 800.0], lambda v: mpmath.log(mpmath.log1p(mpmath.exp(v)))),
        ("log_log1p_minus", SMALL_LOGS, lambda v: mpmath.log(-mpmath.log1p(-mpmath.exp(v)))),
        ("log1mexp_log", LOGS, lambda v: log1mexp(mpmath.exp(v))),
        ("log_sinhc", TINY[1:] + UNIT + FAR[:11], lambda x: mpmath.log(mpmath.sinh(x) / x)),
    ],
)
def test_functions_of_one_number(name, points, formula):
    """exp(±large) leaves 60 digits, so that the largest points are those where both still see the small term."""
    with mpmath.workdps(400):
        found = getattr(special, name)(t(points))
        # e^v of an exponential has as many roundings as v has units: e^6 = 403
        agree(found, formula, points, rel=5e-14 if name == "log1mexp_log" else 4e-15, abs=1e-323)


def test_a_thousandth_below_one_half_the_series_of_log_sinhc_still_holds():
    x = torch.linspace(0.3, 0.7, 81, dtype=torch.float64)
    agree(special.log_sinhc(x), lambda v: mpmath.log(mpmath.sinh(v) / v), x.tolist(), rel=2e-15)
    assert torch.equal(special.log_sinhc(-x), special.log_sinhc(x))


@pytest.mark.parametrize("x", [1e-300, 1e-3, 1.0, 15.99, 16.0, 40.0, 1e6])
def test_digamma_less_log(x):
    """ψ(x) - log x; between 1 and 16 a difference of numbers of size 3, whose last digits it shares."""
    agree(special.digamma_minus_log(t([x])), lambda v: mpmath.digamma(v) - mpmath.log(v), [x], rel=1e-13)


@pytest.mark.parametrize("x", [1e-10, 1e-3, 0.5, 1.0, 3.0, 15.99, 16.0, 17.0, 40.0, 1e3, 1e8])
def test_the_rest_of_a_gammas_entropy(x):
    def rest(v):
        entropy = mpmath.loggamma(v) - (v - 1) * mpmath.digamma(v)
        return entropy - mpmath.log(2 * mpmath.pi * mpmath.e * v) / 2 + v

    # below 16 a difference of numbers of size x; from there on -1/(3x) to its digits
    agree(special.gamma_entropy_rest(t([x])), rest, [x], rel=1e-14, abs=2e-14 if x < 16 else 0.0)


PAIRS = [
    (x, x * (1.0 + d))
    for x in (1e-8, 0.01, 0.7, 1.0, 9.5, 10.0, 10.5, 50.0, 1e5)
    for d in (1e-14, -1e-12, 1e-8, 1e-3, -0.3, 0.49, 0.51, -0.6, 3.0, -0.999)
]
FIRST, SECOND = ([pair[k] for pair in PAIRS] for k in (0, 1))


def bregman(f, slope):
    return lambda x, y: f(x) - f(y) - (x - y) * slope(y)


@pytest.mark.parametrize(
    ("found", "formula", "rel"),
    [
        # far apart, log(x/y) is a difference of logarithms: at x = 1e-8, of size 18 with 4e-15 of rounding each
        (special.relative_entropy, bregman(lambda x: x * mpmath.log(x) - x, mpmath.log), 4e-14),
        (special.bregman_lgamma, bregman(mpmath.loggamma, mpmath.digamma), 2e-14),
        (
            special.bregman_phi,
            bregman(lambda x: mpmath.loggamma(x) - x * mpmath.log(x) + x, lambda x: mpmath.digamma(x) - mpmath.log(x)),
            1e-13,
        ),
    ],
    ids=["x log x", "log gamma", "phi"],
)
def test_bregman_divergences_keep_their_digits_near_equality(found, formula, rel):
    """Neighbours differ in their last digits, yet both count as exact: so does their difference."""
    values = found(t(FIRST), t(SECOND))
    assert bool((values >= 0).all())
    agree(values, formula, FIRST, SECOND, rel=rel)


def test_a_difference_that_is_known_better_is_used():
    """x = y + δ with δ below the last digit of y: (δ²/2) A''(y)."""
    y, delta = t([0.5, 3.0, 40.0]), t([1e-30, -1e-25, 1e-40])
    want = exact(lambda a, d: d * d / 2 * mpmath.psi(1, a), y.tolist(), delta.tolist())
    assert special.bregman_lgamma(y, y, delta).tolist() == pytest.approx(want, rel=1e-13)
    want = exact(lambda a, d: d * d / (2 * a), y.tolist(), delta.tolist())
    assert special.relative_entropy(y, y, delta).tolist() == pytest.approx(want, rel=1e-13)
    assert special.log_ratio(y, y, delta).tolist() == pytest.approx((delta / y).tolist(), rel=1e-14)


def test_logarithms_of_ratios():
    agree(special.log_ratio(t(FIRST), t(SECOND)), lambda a, b: mpmath.log(a / b), FIRST, SECOND, abs=1e-320)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 13])
def test_bregman_divergences_of_powers(m):
    x, y = t(FIRST), t(SECOND)
    want = exact(lambda a, b: a**-m - b**-m + m * (a - b) * b ** (-m - 1), FIRST, SECOND)
    assert special.bregman_power(x, y, m, x - y).tolist() == pytest.approx(want, rel=1e-13)


def test_a_bregman_divergence_from_its_second_derivative():
    x, y = t([1.0, 1.3, 2.0]), t([1.001, 1.0, 2.5])
    found = special.bregman_integral(lambda s: 1.0 / s, x, y)
    assert found.tolist() == pytest.approx(special.relative_entropy(x, y).tolist(), rel=1e-14)
    found = special.bregman_integral(torch.exp, x, y)
    assert found.tolist() == pytest.approx((torch.exp(y) * special.rise(x - y)).tolist(), rel=1e-13)


def test_gradients_pass_every_branch():
    for name, points in (
        ("rise", [-2.0, -1e-3, 1e-3, 3.0]),
        ("log1mexp", [1e-3, 0.6, 0.8, 5.0]),
        ("log_expm1", [-40.0, -3.0, 1.0, 4.0]),
        ("log1pexp", [-40.0, 0.0, 30.0]),
        ("log_log1p", [-40.0, -1.0, 3.0]),
        ("log_log1p_minus", [-40.0, -2.0, -0.1]),
        ("log1mexp_log", [-40.0, -2.0, 1.0]),
        ("log_sinhc", [-0.7, -0.1, 0.2, 2.0]),
        ("gamma_entropy_rest", [0.5, 3.0, 20.0]),
        ("digamma_minus_log", [0.5, 3.0, 20.0]),
    ):
        assert torch.autograd.gradcheck(getattr(special, name), (t(points).requires_grad_(),))
