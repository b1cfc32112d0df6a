"""The mean of grouped values: its standard error against the spread of simulated means."""

import numpy as np
import pytest

from kullback.kit.clustered import clustered_mean, sums_by_group


def drawn(rng, groups=60):
    """Values of groups that share a level, of uneven sizes."""
    sizes = rng.integers(1, 40, groups)
    level = rng.normal(size=groups)
    group = np.repeat(np.arange(groups), sizes)
    return level[group] + rng.normal(size=len(group)), group


def test_the_standard_error_is_the_spread_of_means_where_that_of_independent_values_is_not():
    rng = np.random.default_rng(0)
    means, clustered, plain = [], [], []
    for _ in range(400):
        values, group = drawn(rng)
        found = clustered_mean(*sums_by_group(values, group))
        assert found.mean == pytest.approx(values.mean(), rel=1e-12)
        assert (found.groups, found.count) == (60, len(values))
        means.append(found.mean)
        clustered.append(found.stderr)
        plain.append(values.std(ddof=1) / len(values) ** 0.5)
    spread = np.std(means, ddof=1)
    assert np.mean(clustered) == pytest.approx(spread, rel=0.12)
    assert np.mean(plain) < 0.5 * spread


def test_groups_of_one_value_give_the_usual_standard_error():
    values = np.random.default_rng(1).normal(size=50)
    found = clustered_mean(list(values), [1] * 50)
    assert found.stderr == pytest.approx(values.std(ddof=1) / 50**0.5, rel=1e-12)


def test_empty_groups_count_for_nothing_and_infinities_have_no_error():
    assert clustered_mean([1.0, 0.0, 3.0], [1, 0, 1]) == clustered_mean([1.0, 3.0], [1, 1])
    assert clustered_mean([1.0, float("inf")], [1, 1]).stderr is None
    with pytest.raises(ValueError, match="no values"):
        clustered_mean([0.0], [0])
