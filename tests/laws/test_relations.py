"""How the divergences relate to each other, and what they do at the ends of their parameters."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kullback
from kullback import Logits, Probs, alpha, chi2, cross_entropy, entropy, hellinger, jeffreys, js, kl, renyi, tv
from strategies import pairs

pytestmark = pytest.mark.usefixtures("engine")

LOG2 = math.log(2.0)
moderate = pairs(score=st.floats(-6, 6))
# Two ways to the same number, both in float64: a few hundred roundings of terms of size value or √value.
NEAR = {"rel": 1e-12, "abs": 1e-14}


def at(verb, pair, *args, **kwargs):
    return verb(Logits(pair[0]), Logits(pair[1]), *args, **kwargs).item()


def back(pair):
    return pair[1], pair[0]


@given(pair=moderate)
def test_cross_entropy_is_entropy_plus_kl(pair):
    assert at(cross_entropy, pair) == pytest.approx(entropy(Logits(pair[0])).item() + at(kl, pair), **NEAR)


@given(pair=moderate)
def test_jeffreys_is_kl_both_ways(pair):
    assert at(jeffreys, pair) == pytest.approx(at(kl, pair) + at(kl, back(pair)), **NEAR)


@given(pair=moderate)
def test_named_orders_of_alpha(pair):
    assert at(alpha, pair, 1.0) == at(kl, pair)
    assert at(alpha, pair, 0.0) == at(kl, back(pair))
    assert at(alpha, pair, 0.5) == pytest.approx(4.0 * at(hellinger, pair) ** 2, **NEAR)
    assert at(alpha, pair, 2.0) == pytest.approx(at(chi2, pair) / 2.0, rel=1e-11, abs=1e-14)
    assert at(alpha, pair, -1.0) == pytest.approx(at(chi2, back(pair)) / 2.0, rel=1e-11, abs=1e-14)


@given(pair=moderate, order=st.floats(-3, 3))
def test_alpha_changes_sides_at_one_minus_its_order(pair, order):
    assert at(alpha, pair, order) == pytest.approx(at(alpha, back(pair), 1.0 - order), rel=1e-9, abs=1e-14)


@given(pair=moderate)
def test_named_orders_of_renyi(pair):
    assert at(renyi, pair, 1.0) == at(kl, pair)
    assert at(renyi, pair, 0.5) == pytest.approx(-2.0 * math.log1p(-(at(hellinger, pair) ** 2)), **NEAR)
    assert at(renyi, pair, 2.0) == pytest.approx(math.log1p(at(chi2, pair)), rel=1e-11, abs=1e-14)
    assert at(renyi, pair, 0.0) == 0.0


@given(pair=pairs())
def test_pinsker(pair):
    assert 2.0 * at(tv, pair) ** 2 <= at(kl, pair) * (1.0 + 1e-12)


@given(pair=pairs())
def test_hellinger_against_total_variation(pair):
    """Le Cam: h² ≤ tv ≤ h √(2 - h²)."""
    h, t = at(hellinger, pair), at(tv, pair)
    assert h * h <= t * (1.0 + 1e-12)
    assert t <= h * math.sqrt(2.0 - min(h * h, 1.0)) * (1.0 + 1e-12)


@given(pair=pairs())
def test_kl_is_below_log_of_one_plus_chi2(pair):
    assert at(kl, pair) <= math.log1p(at(chi2, pair)) * (1.0 + 1e-12)


@given(pair=pairs(), weight=st.floats(0, 1))
def test_js_is_bounded_for_every_weight(pair, weight):
    """By the entropy of (w, 1-w), and below w KL(p‖q) and (1-w) KL(q‖p) too."""
    bound = sum(-w * math.log(w) for w in (weight, 1.0 - weight) if w > 0)
    value = at(js, pair, weight=weight)
    assert 0.0 <= value <= min(bound, LOG2) * (1.0 + 1e-12)
    assert value <= weight * at(kl, pair) * (1.0 + 1e-9) + 1e-16 if weight else value == 0.0


@given(pair=pairs(), weight=st.floats(0, 1))
def test_js_changes_sides_at_one_minus_its_weight(pair, weight):
    assert at(js, pair, weight=weight) == pytest.approx(at(js, back(pair), weight=1.0 - weight), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_js_is_continuous_up_to_the_ends_of_its_weight(end):
    """No jump to KL, and approached like the entropy of (w, 1-w) at worst."""
    p, q = Probs([[1.0, 0.0], [0.9, 0.1]]), Probs([[0.0, 1.0], [0.1, 0.9]])
    for step in (1e-1, 1e-3, 1e-6, 1e-9, 1e-12, 1e-15):
        w = abs(end - step)
        bound = -step * math.log(step) - (1 - step) * math.log1p(-step)
        values = js(p, q, weight=w).double()
        assert 0.0 < values[1] < values[0]
        assert values[0].item() == pytest.approx(bound, rel=1e-3 if step < 1e-14 else 1e-6)
    assert torch.equal(js(p, q, weight=end), torch.zeros(2))


def test_js_at_the_weights_where_others_jump():
    """Known trap: 0.0044 at .999, then 4.70 at 1 where KL is substituted."""
    torch.manual_seed(0)
    p, q = Logits(3 * torch.randn(100)), Logits(3 * torch.randn(100))
    at_999, at_1 = js(p, q, weight=0.999).item(), js(p, q, weight=1.0).item()
    assert at_1 == 0.0
    assert 0.0 < at_999 < 0.0080


ORDERS = [
    0.0,
    1e-12,
    1e-6,
    1e-3,
    0.1,
    0.5,
    0.9,
    0.999,
    1 - 1e-6,
    1 - 1e-12,
    1.0,
    1 + 1e-12,
    1 + 1e-6,
    1.001,
    1.1,
    2.0,
    5.0,
]


@given(pair=pairs())
def test_renyi_never_falls_as_its_order_rises(pair):
    values = [at(renyi, pair, order) for order in ORDERS]
    for below, above in pairwise(values):
        assert below <= above * (1.0 + 1e-9) + 1e-15


@pytest.mark.parametrize("step", [1e-3, -1e-3, 1e-6, -1e-6, 1e-9, -1e-9, 1e-12, -1e-12, 2.0**-52, -(2.0**-53)])
@given(pair=moderate)
def test_renyi_and_alpha_tend_to_kl_at_order_one(step, pair):
    """The slope at 1 is half the variance of log(p/q), at most the square of its range: 24 here."""
    a, b = (torch.log_softmax(x, -1) for x in pair)
    d = a - b
    spread = (d.max() - d.min()).item()
    truth = at(kl, pair)
    room = abs(step) * spread**2 * math.exp(min(spread * abs(step), 1.0)) + 1e-12 * truth + 1e-15
    assert abs(at(renyi, pair, 1.0 + step) - truth) <= room
    slope = abs(step) * (spread**2 + truth + 1.0) * (1.0 + truth) * math.exp(min(spread * abs(step), 1.0))
    assert abs(at(alpha, pair, 1.0 + step) - truth) <= slope * max(truth, 1e-300) ** 0.5 + 2e-12 * truth + 1e-15 + slope


@pytest.mark.parametrize("step", [1e-3, -1e-3, 1e-6, -1e-6, 1e-9, -1e-9, 1e-12, -1e-12, 1e-300, -1e-300])
@given(pair=moderate)
def test_alpha_tends_to_reverse_kl_at_order_zero(step, pair):
    a, b = (torch.log_softmax(x, -1) for x in pair)
    spread = ((a - b).max() - (a - b).min()).item()
    truth = at(kl, back(pair))
    room = abs(step) * (spread**2 + truth + 1.0) * (1.0 + truth) * 4.0 + 2e-12 * truth + 1e-15
    assert abs(at(alpha, pair, step) - truth) <= room


@given(pair=pairs())
def test_renyi_tends_to_its_order_zero(pair):
    """-log q(p > 0), also where p has no mass in places."""
    a, b = pair
    kept = min(1.0, torch.softmax(b, -1)[a > -math.inf].sum().item())
    truth = -math.log(kept) if kept else math.inf
    got = at(renyi, pair, 0.0)
    assert got == pytest.approx(truth, rel=1e-9, abs=4e-16)
    if not math.isinf(got):
        assert at(renyi, pair, 1e-13) == pytest.approx(got, rel=1e-9, abs=1e-10)


def test_near_order_one_no_digit_is_lost():
    """KL of 1e-9 scale: Rényi of order 1 ± h is KL (1 + O(h·√KL)), in float32 to 1e-5."""
    torch.manual_seed(1)
    a = torch.randn(50)
    b = a + 4e-5 * torch.randn(50)
    truth = kl(Logits(a.double()), Logits(b.double())).item()
    for order in (1 - 1e-6, 1 + 1e-6, 1 - 1e-12, 1 + 1e-12):
        assert renyi(Logits(a), Logits(b), order).item() == pytest.approx(truth, rel=1e-5)
        assert alpha(Logits(a), Logits(b), order).item() == pytest.approx(truth, rel=1e-5)


@given(first=moderate, second=moderate, order=st.sampled_from([0.3, 0.5, 1.0, 2.0, 3.0]))
def test_kl_and_renyi_add_over_independent_factors(first, second, order):
    both = tuple((x[:, None] + y[None, :]).reshape(-1) for x, y in zip(first, second, strict=True))
    assert at(kl, both) == pytest.approx(at(kl, first) + at(kl, second), rel=1e-11, abs=1e-14)
    assert at(renyi, both, order) == pytest.approx(
        at(renyi, first, order) + at(renyi, second, order), rel=1e-11, abs=1e-14
    )


@given(pair=moderate)
def test_squared_hellinger_multiplies_over_independent_factors(pair):
    both = tuple((x[:, None] + x[None, :]).reshape(-1) for x in pair)
    assert 1.0 - at(hellinger, both) ** 2 == pytest.approx((1.0 - at(hellinger, pair) ** 2) ** 2, rel=1e-12)


@pytest.mark.parametrize("verb", [kl, js, jeffreys, cross_entropy])
@given(pair=moderate)
def test_base_two_gives_bits(verb, pair):
    assert at(verb, pair, base=2) == pytest.approx(at(verb, pair) / LOG2, rel=1e-15, abs=0)
    assert at(verb, pair, base=10.0) == pytest.approx(at(verb, pair) / math.log(10.0), rel=1e-15, abs=0)


@given(pair=moderate)
def test_base_two_of_renyi_and_entropy(pair):
    assert at(renyi, pair, 2.0, base=2) == pytest.approx(at(renyi, pair, 2.0) / LOG2, rel=1e-15, abs=0)
    p = Logits(pair[0])
    assert entropy(p, base=2).item() == pytest.approx(entropy(p).item() / LOG2, rel=1e-15, abs=0)


@given(pair=pairs())
def test_entropy_is_between_zero_and_log_v(pair):
    value = entropy(Logits(pair[0])).item()
    assert 0.0 <= value <= math.log(len(pair[0])) * (1.0 + 1e-14) + 1e-15


def test_entropy_of_uniform_and_of_one_hot_rows():
    assert entropy(Logits(torch.zeros(8)), base=2).item() == pytest.approx(3.0, rel=1e-7)
    assert entropy(Probs([0.0, 1.0, 0.0])).item() == 0.0
    assert entropy(kullback.Labels([2], num_classes=4)).tolist() == [0.0]


@pytest.mark.parametrize("temperature", [0.5, 2.0, 7.0])
def test_temperature_divides_the_scores(temperature):
    torch.manual_seed(2)
    a, b = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    got = kl(Logits(a, temperature), Logits(b, temperature=2 * temperature))
    torch.testing.assert_close(got, kl(Logits(a / temperature), Logits(b / (2 * temperature))), rtol=1e-13, atol=0)
