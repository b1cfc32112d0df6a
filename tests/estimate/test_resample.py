import itertools
import math

import pytest
import torch

from kullback import FormError
from kullback.estimate import bootstrap, permutation_test, subsample, subsample_stderr


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mean(x):
    return float(x.mean())


# the spread of 2,000 replicates is known to 1/√4000 = 1.6 %: 4 standard deviations
def test_bootstrap_and_subsampling_know_the_standard_error_of_a_mean():
    x = torch.randn(900, generator=seeded(1), dtype=torch.float64)
    truth = float(x.std(correction=0)) / 30
    spread = float(bootstrap(mean, x, generator=seeded(), replicates=2000).std())
    assert spread == pytest.approx(truth, rel=0.065)
    for size in (90, 450):
        values = subsample(mean, x, sizes=(size,), generator=seeded(), replicates=2000)
        assert subsample_stderr(values, size / 900) == pytest.approx(truth, rel=0.065)


def test_samples_are_resampled_independently_and_keep_their_sizes():
    x, y = torch.zeros(5), torch.ones(8)
    seen = []
    bootstrap(
        lambda a, b: seen.append((len(a), len(b), mean(a), mean(b))) or 0.0, x, y, generator=seeded(), replicates=3
    )
    subsample(
        lambda a, b: seen.append((len(a), len(b), mean(a), mean(b))) or 0.0, x, y, sizes=(2, 4), generator=seeded()
    )
    assert set(seen) == {(5, 8, 0.0, 1.0), (2, 4, 0.0, 1.0)}


def test_subsets_repeat_nothing_and_bootstrap_does():
    x = torch.arange(50.0)
    distinct = subsample(lambda a: len(a.unique()), x, sizes=(50,), generator=seeded(), replicates=5)
    assert distinct.tolist() == [50.0] * 5
    share = bootstrap(lambda a: len(a.unique()) / 50, x, generator=seeded(), replicates=400)
    assert float(share.mean()) == pytest.approx(1 - (1 - 1 / 50) ** 50, abs=0.01)


def test_permutation_p_values_are_uniform_under_the_null():
    """Of 400 tests on equal distributions 5 % are below 0.05, within 4 standard deviations (1.1 points each)."""
    g, below = seeded(), 0
    for _ in range(400):
        x, y = torch.randn(12, generator=g), torch.randn(9, generator=g)
        below += (
            permutation_test(lambda a, b: abs(mean(a) - mean(b)), x, y, generator=g, permutations=99).p_value <= 0.05
        )
    assert abs(below / 400 - 0.05) < 0.044


def test_permutation_counts_ties_and_infinities():
    x, y = torch.ones(4), torch.ones(4)
    assert permutation_test(lambda a, b: 0.0, x, y, generator=seeded(), permutations=9).p_value == 1.0
    assert permutation_test(lambda a, b: math.inf, x, y, generator=seeded(), permutations=9).p_value == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap(mean, torch.ones(0), generator=seeded()), "empty"),
        (lambda: bootstrap(mean, torch.ones(2), generator=seeded(), replicates=0), "at least 1"),
        (lambda: subsample(mean, torch.ones(3), sizes=(4,), generator=seeded()), "from 1 to its length"),
        (
            lambda: permutation_test(max, torch.ones(3, 2), torch.ones(3, 1), generator=seeded()),
            "a draw of x has shape (2,)",
        ),
    ],
)
def test_errors(call, words):
    with pytest.raises(FormError) as error:
        call()
    assert words in str(error.value)


def test_bootstrap_and_subsets_by_their_definition():
    """Efron 1979 and Politis & Romano 1994: the statistic of all resamples of three draws, enumerated."""
    x = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    means = [sum(one) / 3 for one in itertools.product(x.tolist(), repeat=3)]
    truth = torch.tensor(means).double()
    found = bootstrap(mean, x, generator=seeded(), replicates=40_000)
    # the standard error of a mean of 40,000 is 1/200 of the spread, that of a standard deviation about 1/280
    assert float(found.mean()) == pytest.approx(float(truth.mean()), abs=4 * float(truth.std()) / 200)
    assert float(found.std()) == pytest.approx(float(truth.std(correction=0)), rel=0.015)
    pairs = [sum(one) / 2 for one in itertools.combinations(x.tolist(), 2)]
    drawn = subsample(mean, x, sizes=(2,), generator=seeded(), replicates=3000)
    assert sorted(set(drawn.tolist())) == sorted(pairs)
    shares = [float((drawn == one).double().mean()) for one in pairs]
    assert shares == pytest.approx([1 / 3] * 3, abs=4 * math.sqrt(2 / 9 / 3000))
    # for a mean the law of subsets of b of n has variance s²(1/b - 1/n), so that the factor √(f/(1-f)) is exact
    spread = float(torch.tensor(pairs).double().std(correction=0))
    assert spread == pytest.approx(math.sqrt(float(x.var()) * (1 / 2 - 1 / 3)), rel=1e-6)
    assert subsample_stderr(drawn, 2 / 3) == pytest.approx(float(x.std()) / math.sqrt(3), rel=0.05)


def test_a_statistic_may_be_several_numbers():
    x = torch.arange(10.0)
    found = subsample(lambda a: torch.stack([a.mean(), a.max()]), x, sizes=(10,), generator=seeded(), replicates=3)
    assert found.tolist() == [[4.5, 9.0]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("n", [100_000, 1_000_000])
def test_the_standard_error_of_a_mean_at_large_n(n):
    x = torch.randn(n, generator=seeded(1), dtype=torch.float64)
    values = subsample(mean, x, sizes=(n // 10,), generator=seeded(), replicates=100)
    assert subsample_stderr(values, 0.1) == pytest.approx(float(x.std()) / math.sqrt(n), rel=0.29)
    spread = float(bootstrap(mean, x, generator=seeded(), replicates=100).std())
    assert spread == pytest.approx(float(x.std()) / math.sqrt(n), rel=0.29)  # 4 / √200
