"""Gradients of every row of the table, on both sides, once and twice: finite differences and the textbook formula."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from cases import FORMS, SMALL, Case, leaves, normal, parameter
from kullback import Labels, Logits, Probs, hellinger, kl, tv
from kullback.divergences import TABLE
from kullback.verbs import measure

pytestmark = pytest.mark.usefixtures("engine")

PAIRS = list(itertools.product(FORMS, FORMS))
BY_NAME = {case.name: case for case in SMALL}
INTERIOR = ("random", "two_batch_axes", "nearly_equal", "one_class", "two_classes", "offset_in_q", "offset_in_p")
EDGE = ("no_mass_in_p", "no_mass_in_both", "one_hot_p", "no_mass_in_q", "equal", "gap_of_110_in_both")


def smooth(divergence, case, value):
    """Rows at a corner of the divergence have no derivative to compare with."""
    if divergence.name == "tv":
        return case.name not in ("equal", "one_class") and "gap" not in case.name
    if divergence.name == "hellinger":
        return bool((value > 1e-6).all())
    return True


def of_logits(divergence):
    return lambda x, y: measure(divergence, Logits(x), Logits(y))


def normalised(divergence, names):
    """Finite differences must not leave the simplex, or `Probs` would see other rows than the form allows."""

    def function(x, y):
        sides = []
        for name, s in zip(names, (x, y), strict=True):
            log_w = torch.log_softmax(s, -1)
            sides.append(FORMS[name]({"Logits": s, "LogProbs": log_w, "Probs": torch.exp(log_w)}[name]))
        return measure(divergence, *sides)

    return function


@pytest.mark.parametrize("name", [*INTERIOR, *EDGE])
def test_gradcheck_of_logits(divergence, name):
    """-inf scores stay -inf under finite differences, and their gradient must be 0."""
    x, y = leaves(BY_NAME[name])
    function = of_logits(divergence)
    value = function(x, y)
    if not (torch.isfinite(value).all() and smooth(divergence, BY_NAME[name], value)):
        pytest.skip("the value is infinite, or at a corner")
    moving = [torch.isfinite(s) for s in (x, y)]

    def moved(u, v):
        sides = [torch.where(m, w, s.detach()) for m, w, s in zip(moving, (u, v), (x, y), strict=True)]
        return function(*sides)

    start = tuple(torch.where(m, s, 0.0).detach().requires_grad_() for m, s in zip(moving, (x, y), strict=True))
    assert gradcheck(moved, start)
    assert gradgradcheck(
        moved, start, atol=1e-4, fast_mode=True
    )  # finite differences of a gradient with curvature up to 1e3


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
@pytest.mark.parametrize("name", ["random", "nearly_equal"])
def test_gradcheck_of_every_pair_of_forms(divergence, names, name):
    start = leaves(BY_NAME[name])
    function = normalised(divergence, names)
    assert gradcheck(function, start, fast_mode=True)
    assert gradgradcheck(function, start, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("dense", FORMS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("first", [True, False])
def test_gradcheck_against_labels(divergence, dense, smoothing, first):
    labels = Labels(torch.tensor([1, 0, 3]), 5, smoothing)
    start = normal(3, 5, seed=11).requires_grad_()

    def function(s):
        log_w = torch.log_softmax(s, -1)
        other = FORMS[dense]({"Logits": s, "LogProbs": log_w, "Probs": torch.exp(log_w)}[dense])
        return measure(divergence, *((labels, other) if first else (other, labels)))

    if not torch.isfinite(function(start)).all():
        (grad,) = torch.autograd.grad(function(start).sum(), start)
        assert torch.equal(grad, torch.zeros_like(start))
        return
    assert gradcheck(function, (start,))
    assert gradgradcheck(function, (start,), atol=1e-4, fast_mode=True)


# The formulas of the table's `formula` column, written out once more for autograd; a new row needs its own.
def _kl(p, q):
    return (p * (p / q).log()).sum(-1)


def _js(p, q, w):
    m = w * p + (1 - w) * q
    return w * _kl(p, m) + (1 - w) * _kl(q, m)


def _alpha(p, q, a):
    if a in (0.0, 1.0):
        return _kl(p, q) if a else _kl(q, p)
    return ((p**a * q ** (1 - a)).sum(-1) - 1) / (a * (a - 1))


def _renyi(p, q, a):
    return _kl(p, q) if a == 1.0 else (p**a * q ** (1 - a)).sum(-1).log() / (a - 1)


def _skew(p, q, w):
    return _kl(p, w * p + (1 - w) * q)


def _tsallis(p, q, a):
    if a == 1.0:
        return _kl(p, q)
    return ((p**a * q ** (1 - a)).sum(-1) - 1) / (a - 1)


TEXTBOOK = {
    "kl": _kl,
    "skew": _skew,
    "tsallis": _tsallis,
    "triangular": lambda p, q: ((p - q) ** 2 / (p + q)).sum(-1),
    "jeffreys": lambda p, q: ((p - q) * (p / q).log()).sum(-1),
    "js": _js,
    "alpha": _alpha,
    "renyi": _renyi,
    "tv": lambda p, q: (p - q).abs().sum(-1) / 2,
    "hellinger": lambda p, q: ((p.sqrt() - q.sqrt()) ** 2).sum(-1).div(2).sqrt(),
    "chi2": lambda p, q: ((p - q) ** 2 / q).sum(-1),
    "cross_entropy": lambda p, q: -(p * q.log()).sum(-1),
}


def textbook(divergence, p, q):
    family = TEXTBOOK[divergence.family]
    number = parameter(divergence)
    return family(p, q) if number is None else family(p, q, number)


@pytest.mark.parametrize("names", [n for n in PAIRS if n != ("Logits", "Logits")], ids="-".join)
@pytest.mark.parametrize("far", [0.01, 1.0, 4.0])
def test_gradients_are_those_of_the_textbook_formula(divergence, names, far):
    """In the coordinates given, not only along the simplex: no constant of the canonical sum leaks out."""
    a = normal(4, 6, seed=12)
    case = Case("", lambda: (a, a + far * normal(4, 6, seed=13)))
    upstream = normal(4, seed=14)
    if divergence.family not in TEXTBOOK:
        pytest.skip(f"{divergence.family} has no textbook formula here; gradcheck and the oracles hold it")

    def gradients(function):
        x, y = leaves(case, names)
        return torch.autograd.grad(function(x, y), (x, y), upstream)

    def weights(name, x):
        return {"Logits": lambda: torch.softmax(x, -1), "LogProbs": x.exp, "Probs": lambda: x}[name]()

    ours = gradients(lambda x, y: measure(divergence, FORMS[names[0]](x), FORMS[names[1]](y)))
    theirs = gradients(lambda x, y: textbook(divergence, weights(names[0], x), weights(names[1], y)))
    # the textbook side cancels: eps over the distance between the rows is what it can resolve
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12 / far)


def test_gradient_of_kl_to_the_scores_of_q_is_q_minus_p():
    a, b = normal(3, 5, seed=15), normal(3, 5, seed=16).requires_grad_()
    kl(Logits(a), Logits(b)).sum().backward()
    torch.testing.assert_close(b.grad, torch.softmax(b, -1).detach() - torch.softmax(a, -1), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
def test_temperature_divides_the_gradient(temperature):
    a, b = normal(3, 5, seed=15), normal(3, 5, seed=16).requires_grad_()
    kl(Logits(a, temperature), Logits(b, temperature)).sum().backward()
    p, q = (torch.softmax(s.detach() / temperature, -1) for s in (a, b))
    torch.testing.assert_close(b.grad, (q - p) / temperature, rtol=1e-12, atol=1e-15)


def _probs_gradients(verb, p, q):
    x, y = (torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in (p, q))
    return [g.tolist() for g in torch.autograd.grad(verb(Probs(x), Probs(y)), (x, y))]


def _row(name):
    divergence = next(d for d in TABLE if d.name == name)
    return lambda p, q: measure(divergence, p, q)


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("tv", -0.5),
        ("chi2", -2.0),
        ("triangular", -3.0),
        ("cross_entropy", math.log(2.0)),
        *((name, 0.0) for name in ("kl", "js(0.5)", "js(0.1)", "hellinger", "alpha(0.5)", "alpha(0.3)", "renyi(0.5)")),
    ],
)
def test_slope_at_a_zero_of_p(name, slope):
    """Finite ones are returned; infinite ones (log p, p^(a-1) with a < 1, 1/√p) are returned as 0."""
    to_p, _ = _probs_gradients(_row(name), [0.0, 1.0], [0.5, 0.5])
    assert to_p[0] == pytest.approx(slope, abs=1e-15)


@pytest.mark.parametrize(("name", "slope"), [("alpha(2)", -1.0), ("renyi(3)", 0.0)])
def test_slope_at_a_zero_of_p_for_orders_above_one(name, slope):
    """The textbook Σ p^a q^(1-a) is flat at p = 0 for a > 1; alpha(2) is half of χ² only along the simplex."""
    to_p, _ = _probs_gradients(_row(name), [0.0, 1.0], [0.5, 0.5])
    assert to_p[0] in (pytest.approx(0.0, abs=1e-15), pytest.approx(slope, abs=1e-15))


@pytest.mark.parametrize("name", ["tv"])
def test_slope_at_a_zero_of_q(name):
    _, to_q = _probs_gradients(_row(name), [0.5, 0.5], [0.0, 1.0])
    assert to_q == pytest.approx([-0.5, 0.5], abs=1e-15)


def test_slopes_where_both_have_no_mass_are_zero(divergence):
    to_p, to_q = _probs_gradients(lambda p, q: measure(divergence, p, q), [0.0, 0.25, 0.75], [0.0, 0.5, 0.5])
    assert to_p[0] == 0.0
    assert to_q[0] == 0.0


def test_corners():
    for verb in (tv, hellinger):
        x = normal(2, 5, seed=17).requires_grad_()
        (grad,) = torch.autograd.grad(verb(Logits(x), Logits(x.detach())).sum(), x)
        assert torch.equal(grad, torch.zeros_like(grad))


def _scores(name, x):
    return x.log() if name == "Probs" else x


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_no_nan_on_the_edge_rows(divergence, names, dtype):
    """Neither in the value, nor in the gradient, nor in the second; a +inf row sends back zeros."""
    for case in SMALL:
        x, y = leaves(case, names, dtype)
        value = measure(divergence, FORMS[names[0]](x), FORMS[names[1]](y))
        assert not value.isnan().any(), case
        first = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
        with torch.no_grad():  # infinite in truth, not by overflow of the result's dtype
            rows = measure(divergence, FORMS[names[0]](x), Logits(_scores(names[1], y).double())) == math.inf
        for g, data in zip(first, (x, y), strict=True):
            assert g.dtype == dtype
            assert g.shape == data.shape
            assert not g.isnan().any(), case
            assert not g.expand(*value.shape, data.shape[-1])[rows].any(), case
        probe = sum((g.double() * (1.0 + torch.arange(g.shape[-1]))).sum() for g in first)
        if case.name == "subnormal_in_float64" and "Probs" in names:
            continue  # 1/p² overflows: the true second derivative is not a number of the dtype
        for g in torch.autograd.grad(probe, (x, y), allow_unused=True):
            assert g is None or not g.isnan().any(), case


@pytest.mark.parametrize("shift", [0.0, 300.0])
@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0])
def test_float32_gradients_near_equality(engine, divergence, step, shift):
    """float32 rows are exact: their gradient is that of the same rows in float64, rounded once by eager.

    The C++ engine's cells are float32: x - wΣx has the error of its terms, a few eps of the row's largest gradient,
    or, where the terms do not vanish with d (cross-entropy's x = -p), of the row's largest weight.
    """
    a = normal(3, 40, seed=18).float()
    b = (a + step * normal(3, 40, seed=19).float() + shift).float()

    def gradients(dtype):
        x, y = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
        return torch.autograd.grad(of_logits(divergence)(x, y).sum(), (x, y))

    for ours, truth in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        noise = 1e-7 if divergence.name == "cross_entropy" else 1e-6 * truth.abs().max().item()
        torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=1e-30 if engine == "eager" else noise)


def test_gradient_near_equality_is_that_of_50_digits():
    """∂KL/∂b = q - p keeps its digits where softmax(b) - softmax(a) in float32 has none left."""
    from mpmath import mp

    a = [0.5, -0.25, 1.0, 0.0]
    b = torch.tensor([s + d for s, d in zip(a, (2**-16, -(2**-15), 0.0, 2**-14), strict=True)]).requires_grad_()
    with mp.workdps(50):
        p, q = ([mp.exp(mp.mpf(s)) for s in side] for side in (a, b.tolist()))
        truth = [float(y / mp.fsum(q) - x / mp.fsum(p)) for x, y in zip(p, q, strict=True)]
    kl(Logits(torch.tensor(a)), Logits(b)).backward()
    # log(q/p) is known to about 4 eps, so q - p to 4 eps relative to q, next to which q - p is 1e-5
    assert b.grad.tolist() == pytest.approx(truth, rel=1e-6)
