import math

import pytest
import torch

from kullback import Logits, Probs, kl
from kullback.distill import Summary, measures


def test_calibration_error_of_a_hand_made_case():
    # Two rows at 0.9 (one right), two at 0.6 (both right): |0.5 - 0.9| / 2 + |1 - 0.6| / 2.
    p = Probs(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], dtype=torch.float64))
    labels = torch.tensor([0, 1, 1, 1])
    assert measures.calibration_error(p, labels) == pytest.approx(0.4, abs=1e-12)
    assert measures.accuracy(p, labels) == 0.75
    nll = -(math.log(0.9) + math.log(0.1) + 2 * math.log(0.6)) / 4
    assert measures.negative_log_likelihood(p, labels) == pytest.approx(nll, rel=1e-12)


def test_bins_hold_their_upper_edge_and_leave_out_the_empty():
    p = Probs(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.75, 0.25]], dtype=torch.float64))
    bins = measures.reliability(p, torch.tensor([0, 0, 1]), bins=4)
    assert [(b.count, b.confidence, b.accuracy) for b in bins] == [(1, 0.5, 1.0), (1, 0.75, 0.0), (1, 1.0, 1.0)]


def test_calibration_of_one_bin_is_accuracy_against_mean_confidence():
    logits = Logits(torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    labels = torch.arange(200) % 5
    confidence = torch.softmax(logits.data, -1).max(-1).values.mean().item()
    gap = abs(measures.accuracy(logits, labels) - confidence)
    assert measures.calibration_error(logits, labels, bins=1) == pytest.approx(gap, rel=1e-12)
    assert measures.calibration_error(logits, labels) >= gap


def test_the_mean_per_class_is_that_of_its_rows():
    g = torch.Generator().manual_seed(1)
    p, q = (Logits(torch.randn(6, 3, generator=g)) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    rows = kl(p, q).double()
    expected = [rows[[c, c + 3]].mean().item() for c in range(3)]
    assert measures.mean_per_class(rows, labels, 3) == pytest.approx(expected, rel=1e-12)


def test_bins_of_parts_pool_to_the_bins_of_the_whole():
    g = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(300, 4, generator=g), torch.randint(4, (300,), generator=g)
    whole = measures.reliability(Logits(logits), labels)
    split = [measures.reliability(Logits(logits[part]), labels[part]) for part in (slice(0, 90), slice(90, 300))]
    for ours, theirs in zip(measures.pooled(split), whole, strict=True):
        assert (ours.place, ours.count) == (theirs.place, theirs.count)
        assert (ours.confidence, ours.accuracy) == pytest.approx((theirs.confidence, theirs.accuracy), rel=1e-12)
    assert measures.gap(whole) == measures.calibration_error(Logits(logits), labels)


def test_summary_by_hand():
    summary = Summary.of([0.8, 0.9, 1.0, 0.7])
    assert summary.mean == pytest.approx(0.85)
    assert summary.stderr == pytest.approx(math.sqrt((0.0025 + 0.0025 + 0.0225 + 0.0225) / 3 / 4))
    assert Summary.of([0.5]).stderr is None
    assert Summary.of([math.inf, 1.0]) == Summary(math.inf, None, (math.inf, 1.0))


def test_no_mass_on_the_label_is_an_infinite_loss():
    assert measures.negative_log_likelihood(Probs([[1.0, 0.0]]), torch.tensor([1])) == math.inf
