"""What generators say of themselves beside their formula: edges, slopes, plain sums and tails, against the formula."""

import math

import pytest
import torch

from kullback.core import generators
from kullback.core.generators import Cells
from kullback.core.readings import Weights
from kullback.core.reduction import GeneratorSum, Pair

MANY = [
    generators.kl,
    generators.reverse_kl,
    generators.jeffreys,
    generators.tv,
    generators.squared_hellinger,
    generators.chi2,
    generators.triangular,
    *(generators.js(w) for w in (0.5, 0.1, 0.9)),
    *(generators.skew_kl(w) for w in (0.5, 0.1, 0.9)),
    *(generators.alpha(a) for a in (-1.0, -0.5, 0.3, 0.5, 0.9, 2.0, 3.5)),
    generators.nothing(0.0),
    generators.nothing(1.0),
]
EVERY = [*MANY, generators.cross_entropy]


def t(x):
    return torch.tensor(x, dtype=torch.float64)


def f(generator, p, q):
    p, q = torch.broadcast_tensors(t(p), t(q))
    return generator(Cells(p, q, torch.log(q) - torch.log(p), torch.log(q))).value


def textbook(generator, p, q):
    """The canonical term without the multiples of p and q that make it so."""
    p, q = t(p), t(q)
    return f(generator, p.tolist(), q.tolist()) - generator.plain[0] * p - generator.plain[1] * q


@pytest.mark.parametrize("generator", MANY, ids=str)
def test_edges_are_the_limits_of_the_formula(generator):
    """f(0, 1) and f(1, 0): within √ε at ε = 1e-60, which every finite edge here is; an infinite one grows on."""
    tiny, smaller = 1e-60, 1e-200
    for edge, near, nearer in (
        (generator.at_p_zero, f(generator, tiny, 1.0), f(generator, smaller, 1.0)),
        (generator.at_q_zero, f(generator, 1.0, tiny), f(generator, 1.0, smaller)),
    ):
        if generator.name == "nothing":
            continue  # it counts on the edge alone
        if math.isinf(edge):
            assert nearer > near > 100.0
        else:
            # the slowest of these orders, 0.9, leaves (1e-200)^0.1 / 0.09
            assert nearer.item() == pytest.approx(edge, rel=1e-12, abs=2e-19)


@pytest.mark.parametrize("generator", MANY, ids=str)
def test_slopes_at_the_edges_are_those_of_the_textbook_sum(generator):
    """∂f/∂p at p = 0 and ∂f/∂q at q = 0, from differences at 1e-7: of second order, unless they are infinite."""
    step = 1e-7
    for side, slope in enumerate(generator.slopes):
        points = [(k * step, 1.0) if side == 0 else (1.0, k * step) for k in (1.0, 2.0, 3.0)]
        one, two, three = (textbook(generator, *at).item() for at in points)
        # f(x) = f(0) + s x + O(x²): two estimates of s that agree, or do not
        first, second = (two - one) / step, (three - two) / step
        finite = abs(first - second) < 1e-4
        edge = generator.at_p_zero if side == 0 else generator.at_q_zero
        if generator.name == "nothing":
            finite, first = True, 0.0
        if finite and math.isfinite(edge):
            assert slope == pytest.approx(first, abs=1e-4)
        else:
            assert slope == 0.0


@pytest.mark.parametrize("generator", MANY, ids=str)
def test_plain_is_what_the_canonical_sum_adds(generator):
    """Σ f = Σ textbook + plain·(Σp, Σq), flat at p = q."""
    if generator.name in ("tv", "nothing"):
        return  # a corner, and no slope at all
    h = 1e-5
    for side in (0, 1):
        up, down = ((1.0 + h, 1.0), (1.0 - h, 1.0)) if side == 0 else ((1.0, 1.0 + h), (1.0, 1.0 - h))
        slope = (f(generator, *up) - f(generator, *down)).item() / (2.0 * h)
        assert slope == pytest.approx(0.0, abs=1e-8)
    # the textbook terms, written out
    p, q = t([0.2, 0.7, 0.5]), t([0.6, 0.1, 0.5])
    a = generator.parameter
    m = a * p + (1.0 - a) * q
    written = {
        "kl": p * torch.log(p / q),
        "reverse_kl": q * torch.log(q / p),
        "jeffreys": (p - q) * torch.log(p / q),
        "js": a * p * torch.log(p / m) + (1.0 - a) * q * torch.log(q / m),
        "skew_kl": p * torch.log(p / m),
        "alpha": (p**a * q ** (1.0 - a) - 0.0) / (a * (a - 1.0)) if a else p,
        "squared_hellinger": 0.5 * (p.sqrt() - q.sqrt()) ** 2,
        "chi2": (p - q) ** 2 / q,
        "triangular": (p - q) ** 2 / (p + q),
    }[generator.name]
    torch.testing.assert_close(textbook(generator, p.tolist(), q.tolist()), written, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("generator", EVERY, ids=str)
def test_tails_bound_the_formula(generator):
    """f <= multiple (p + q) + what `p_log`, `q_log` and `power` add, over twenty decades; quadrature relies on it."""
    ratio = torch.logspace(-20, 20, 401, dtype=torch.float64)
    p, q = torch.ones_like(ratio), ratio
    tail, power = generator.tail, generator.power
    bound = tail.multiple * (p + q)
    if tail.p_log:
        bound = bound + (p * torch.log(p / q)).clamp(min=0.0)
    if tail.q_log:
        bound = bound + (q * torch.log(q / p)).clamp(min=0.0)
    if power is not None and not 0.0 <= power.order <= 1.0:
        bound = bound + abs(power.scale) * p**power.order * q ** (1.0 - power.order)
    assert bool((f(generator, p.tolist(), q.tolist()) <= bound * (1.0 + 1e-12)).all())


@pytest.mark.parametrize("generator", [g for g in MANY if g.power is not None], ids=str)
def test_power_writes_the_formula_as_an_affinity(generator):
    """f = scale (p^a q^(1-a) - a p - (1-a) q)."""
    a, scale = generator.power
    p, q = t([0.2, 0.7, 1e-3, 5.0]), t([0.6, 0.1, 2.0, 4.0])
    written = scale * (p**a * q ** (1.0 - a) - a * p - (1.0 - a) * q)
    torch.testing.assert_close(f(generator, p.tolist(), q.tolist()), written, rtol=1e-12, atol=1e-15)


def test_generators_of_other_names_at_their_limits():
    assert generators.js(0.0) == generators.js(1.0) == generators.skew_kl(1.0) == generators.nothing(0.0)
    assert generators.skew_kl(0.0) == generators.alpha(1.0) == generators.kl
    assert generators.alpha(0.0) == generators.reverse_kl
    assert [name for name in generators.NAMED if generators.NAMED[name](0.5).name not in (name, "nothing")] == []
    assert (str(generators.kl), str(generators.js(0.25)), str(generators.alpha(-2.0))) == (
        "kl",
        "js(0.25)",
        "alpha(-2)",
    )


@pytest.mark.parametrize("generator", EVERY, ids=str)
def test_no_formula_is_asked_where_a_side_has_no_mass(generator):
    """A NaN or an infinity from there would come back in a derivative, though its value is discarded."""
    asked = []

    def watched(cells, parameter):
        asked.append(cells)
        return generator.terms(cells, parameter)

    total = GeneratorSum(generators.Generator("watched", watched, generator.parameter, *(1.0, 1.0)))
    p, q = t([0.5, 0.0, 0.5, 0.0]), t([0.25, 0.75, 0.0, 0.0])
    total.rows(Pair(*(Weights(w, torch.log(w)) for w in (p, q))))
    (cells,) = asked
    assert cells.p.tolist() == [0.5, 1.0, 1.0, 1.0]
    assert cells.q.tolist() == [0.25, 1.0, 1.0, 1.0]
    assert cells.d.tolist() == pytest.approx([-math.log(2.0), 0.0, 0.0, 0.0])
    assert cells.log_q.tolist() == pytest.approx([math.log(0.25), 0.0, 0.0, 0.0])
