"""What holds for every row of the table. A new row is tested unasked."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES, DATA, DTYPES, FORMS, SMALL, forms, parameter
from kullback import Logits, Probs
from kullback.verbs import measure
from strategies import pairs

pytestmark = pytest.mark.usefixtures("engine")

EPS = 2.0**-52


def of(divergence, a, b):
    return measure(divergence, Logits(a), Logits(b)).item()


def close(x, y, a, b):
    """Equal up to what moving the scores by their own rounding does; see tests/oracles/test_finite.py."""
    spread = max((s[s > -math.inf].max() - s[s > -math.inf].min()).item() for s in (a, b))
    delta = 64.0 * EPS * (1.0 + spread)
    return x == y or abs(x - y) <= delta * (max(x, y) + math.sqrt(max(x, y))) * (1.0 + spread) + delta


def is_divergence(d):
    return d.name != "cross_entropy"  # zero for equal rows only if they are one-hot


@given(pair=pairs())
def test_never_negative_and_below_its_bound(divergence, pair):
    value = of(divergence, *pair)
    assert 0.0 <= value <= divergence.upper * (1.0 + 1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("names", [("Logits", "Logits"), ("LogProbs", "Probs"), ("Probs", "LogProbs")], ids="-".join)
def test_never_negative_nor_nan_on_the_edge_rows(divergence, names, dtype):
    for case in CASES:
        if case.big and (dtype != torch.float32 or names != ("Logits", "Logits")):
            continue  # one wide row is like another
        p, q = forms(case, names, dtype)
        value = measure(divergence, p, q)
        assert value.shape == torch.broadcast_shapes(p.batch_shape, q.batch_shape), case
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), case
        assert bool((value >= 0).all()), case
        # rows rounded to a coarse dtype may sum to a little more than one
        slack = 4.0 * abs(p.probabilities().sum(-1) - 1) + 4.0 * abs(q.probabilities().sum(-1) - 1)
        assert bool((value <= divergence.upper * (1.0 + slack.float() + 1e-6)).all()), case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_exactly_zero_for_equal_rows(divergence, name, dtype):
    for case in SMALL:
        data = DATA[name](case.make()[0], dtype)
        value = measure(divergence, FORMS[name](data), FORMS[name](data.clone()))
        if is_divergence(divergence):
            assert torch.equal(value, torch.zeros_like(value)), case
        else:
            assert bool(torch.isfinite(value).all()), case


@given(pair=pairs(score=st.floats(-8, 8), classes=st.integers(2, 6)), which=st.integers(0, 5))
def test_positive_for_different_rows(divergence, pair, which):
    a, _ = pair
    if divergence.name in ("renyi(0)", "tsallis(0)"):
        return  # sees supports only
    b = a.clone()
    b[which % len(b)] += 1e-6
    assert of(divergence, a, b) > 0.0


@given(pair=pairs(), shifts=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)))
def test_a_constant_added_to_scores_changes_nothing(divergence, pair, shifts):
    a, b = pair
    plain = of(divergence, a, b)
    # shifts are multiples of 2^-30 and scores are rounded likewise, so that the moved scores are the same rows exactly
    a, b, (s, t) = _grid(a), _grid(b), (_grid(torch.tensor(x)).item() for x in shifts)
    x, y = of(divergence, a, b), of(divergence, a + s, b + t)
    assert x == y or close(x, y, a, b)
    assert plain >= 0.0


def _grid(x):
    return torch.where(x == -math.inf, x, torch.round(x.double() * 2**30) / 2**30)


@given(pair=pairs(), order=st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(divergence, pair, order):
    a, b = pair
    moved = list(range(len(a)))
    order.shuffle(moved)
    assert close(of(divergence, a, b), of(divergence, a[moved], b[moved]), a, b)


@given(pair=pairs())
def test_the_symmetric_flag_is_right(divergence, pair):
    a, b = pair
    if divergence.symmetric:
        assert close(of(divergence, a, b), of(divergence, b, a), a, b)


def test_what_is_not_flagged_symmetric_is_not(divergence):
    p, q = Probs([0.5, 0.3, 0.2]), Probs([0.2, 0.0, 0.8])
    if not divergence.symmetric:
        assert measure(divergence, p, q).item() != pytest.approx(measure(divergence, q, p).item(), rel=1e-3)


def test_a_finite_upper_bound_is_attained_by_disjoint_rows(divergence):
    value = measure(divergence, Probs([1.0, 0.0]), Probs([0.0, 1.0])).item()
    assert value == pytest.approx(divergence.upper, rel=1e-7)


@given(pair=pairs(classes=st.integers(2, 6)), cells=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_merging_classes_never_increases_it(divergence, pair, cells):
    """The data processing inequality, which every f-divergence obeys, and every monotone function of one."""
    a, b = pair
    i, j = cells[0] % len(a), cells[1] % len(a)
    if i == j or not is_divergence(divergence):
        return
    fine = of(divergence, a, b)
    coarse = of(divergence, *(_merge(x, i, j) for x in (a, b)))
    assert coarse <= fine or close(coarse, fine, a, b)


def _merge(scores, i, j):
    both = torch.logaddexp(scores[i], scores[j]).reshape(1)
    rest = [v for v in range(len(scores)) if v not in (i, j)]
    return torch.cat([scores[rest], both])


@given(pair=pairs())
def test_columns_without_mass_on_both_sides_do_not_exist(divergence, pair):
    a, b = pair
    none = torch.full((2,), -math.inf, dtype=torch.float64)
    assert close(of(divergence, a, b), of(divergence, torch.cat([none, a]), torch.cat([none, b])), a, b)


@given(pair=pairs())
def test_the_form_does_not_matter(divergence, pair):
    """Scores, log-probabilities and probabilities of the same rows, up to rounding of the latter two."""
    a, b = (torch.log_softmax(x, -1) for x in pair)
    if min(x[x > -math.inf].min().item() for x in (a, b)) < -40.0:
        return
    x = of(divergence, a, b)
    p, q = torch.exp(a), torch.exp(b)
    y = measure(divergence, Probs(p), Probs(q)).item()
    power = max(1.0, abs(parameter(divergence) or 1.0))  # p^a q^(1-a) multiplies the rounding of log p by a
    assert x == y or abs(x - y) <= 1e-13 * power * (x + math.sqrt(x) + 1.0)
