"""Normalisers of parts of a row merge, in any order and grouping, to the normaliser of the row."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from kullback.core.normalizer import Normalizer

score = st.one_of(st.floats(-800, 800), st.floats(-3, 3), st.just(-math.inf))
part = st.lists(score, max_size=5).map(lambda r: torch.tensor(r, dtype=torch.float64))
IDENTITY = Normalizer.of(torch.empty(0, dtype=torch.float64))


def same(a: Normalizer, b: Normalizer) -> bool:
    """Maxima are exact; a sum has one rounding a term and two a merge: ten terms, four merges."""
    return torch.equal(a.max, b.max) and torch.allclose(a.sum, b.sum, rtol=20 * 2.0**-52, atol=0)


@given(a=part)
def test_no_columns_are_the_identity(a):
    n = Normalizer.of(a)
    for merged in (n.merge(IDENTITY), IDENTITY.merge(n)):
        assert torch.equal(merged.max, n.max)
        assert torch.equal(merged.sum, n.sum)


@given(a=part, b=part)
def test_commutative(a, b):
    x, y = Normalizer.of(a), Normalizer.of(b)
    left, right = x.merge(y), y.merge(x)
    assert torch.equal(left.max, right.max)
    assert torch.equal(left.sum, right.sum)


@given(a=part, b=part, c=part)
def test_associative(a, b, c):
    x, y, z = (Normalizer.of(part) for part in (a, b, c))
    assert same(x.merge(y).merge(z), x.merge(y.merge(z)))


@given(row=st.lists(score, min_size=2, max_size=10))
def test_cut_anywhere(row):
    whole = torch.tensor(row, dtype=torch.float64)
    for cut in range(len(row) + 1):
        assert same(Normalizer.of(whole), Normalizer.of(whole[:cut]).merge(Normalizer.of(whole[cut:])))


@given(row=st.lists(score, min_size=1, max_size=10).filter(lambda r: max(r) > -math.inf), shift=st.floats(-1e4, 1e4))
def test_log_probs_are_normalised_wherever_the_scores_lie(row, shift):
    scores = torch.tensor(row, dtype=torch.float64) + shift
    log_w = Normalizer.of(scores).log_probs(scores)
    assert torch.exp(log_w).sum().item() == 1.0 or abs(torch.exp(log_w).sum().item() - 1.0) < 20 * 2.0**-52
    # (s - max) - log Σ rounds once relative to the gap
    torch.testing.assert_close(log_w, torch.log_softmax(scores, -1), rtol=1e-14, atol=1e-11)


def test_rows_of_a_batch_are_independent():
    torch.manual_seed(0)
    scores = torch.randn(3, 4, 6, dtype=torch.float64)
    n = Normalizer.of(scores)
    assert n.max.shape == n.sum.shape == (3, 4, 1)
    one = Normalizer.of(scores[1, 2])
    assert torch.equal(n.max[1, 2], one.max)
    assert torch.equal(n.sum[1, 2], one.sum)


def test_rows_without_columns_and_columns_without_rows():
    """What no columns give is asked of the last axis, the classes: (3, 0) are three rows of none, (0, 4) no rows."""
    none = Normalizer.of(torch.zeros(3, 0, dtype=torch.float64))
    assert (none.max.tolist(), none.sum.tolist()) == ([[-math.inf]] * 3, [[0.0]] * 3)
    empty = Normalizer.of(torch.zeros(0, 4, dtype=torch.float64))
    assert empty.max.shape == empty.sum.shape == (0, 1)
