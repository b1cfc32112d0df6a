"""Values that others have published, within their printed digits."""

import math

import pytest
import torch

from kullback import Logits, Probs, jeffreys, kl

UNIFORM = [1 / 3, 1 / 3, 1 / 3]
COUNTS = (
    [n / 357 for n in (115, 76, 61, 39, 55, 10, 1)],
    [n / 212 for n in (3, 3, 7, 10, 28, 44, 117)],
)
DESK = ([0.5, 0.3, 0.2], [0.3, 0.6, 0.1])

PUBLISHED = [
    # p, q, base, value, half a unit of the last printed digit, source
    ([0.5, 0.5], [0.75, 0.25], 2, 0.207518749639422, 5e-16, "Cover & Thomas, example 2.3.1"),
    ([0.75, 0.25], [0.5, 0.5], 2, 0.188721875540867, 5e-16, "Cover & Thomas, example 2.3.1, reverse"),
    ([0.36, 0.48, 0.16], UNIFORM, math.e, 0.0852996, 5e-8, "Kullback 1959, table 2.1"),
    (UNIFORM, [0.36, 0.48, 0.16], math.e, 0.0974550, 5e-8, "Kullback 1959, table 2.1, reverse"),
    ([n / 55 for n in range(1, 11)], [n / 245 for n in range(20, 30)], 2, 0.1392629, 5e-8, "R philentropy"),
    ([0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.1, 0.2], math.e, 0.3542697, 5e-8, "R Rtreemix"),
    ([0.5, 0.5], [0.9, 0.1], 2, 0.7369655941662062, 5e-16, "scipy.stats.entropy"),
    ([0.54, 0.32, 0.14], UNIFORM, math.e, 0.12599700286677529, 5e-17, "Great Expectations, test data"),
    (*DESK, math.e, 0.186098093827, 5e-13, "computed: a news desk's politics, sport, entertainment"),
    (*DESK, 2, 0.268482797083, 5e-13, "the same in bits"),
    (*COUNTS, math.e, 1.90927825610, 5e-12, "counts of R dlookr"),
    (*COUNTS[::-1], math.e, 3.13464721022, 5e-12, "counts of R dlookr, reverse"),
]


@pytest.mark.parametrize(("p", "q", "base", "value", "digit", "source"), PUBLISHED, ids=[c[-1] for c in PUBLISHED])
def test_kl(p, q, base, value, digit, source):
    got = kl(Probs(torch.tensor(p, dtype=torch.float64)), Probs(torch.tensor(q, dtype=torch.float64)), base=base)
    assert got.item() == pytest.approx(value, abs=digit + 4e-16, rel=0)  # and a few roundings of sums near one


def test_population_stability_index():
    p, q = (Probs(torch.tensor(row, dtype=torch.float64)) for row in COUNTS)
    assert jeffreys(p, q).item() == pytest.approx(5.04392546632, abs=5e-12, rel=0)


def test_mean_over_rows_from_scores():
    p = Probs(torch.tensor([[0.3, 0.4, 0.3], [0.1, 0.5, 0.4]]))
    assert kl(p, Logits(torch.tensor([[0.5, 1.0, 0.8], [0.2, 0.4, 0.6]]))).mean().item() == pytest.approx(
        0.0578, abs=5e-5, rel=0
    )


def test_softmax_of_the_tutorials():
    """Printed as (0.2271, 0.4116, 0.3613) in common write-ups."""
    p = Logits(torch.tensor([0.5, 1.0, 0.8], dtype=torch.float64))
    assert kl(p, Probs(torch.tensor([0.2501, 0.4123, 0.3376], dtype=torch.float64))).item() < 1e-8
