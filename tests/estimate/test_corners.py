"""Corners of the estimators; each test notices a change of one operator or number that no other one noticed."""

import itertools
import math
import operator

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from kullback import Counts, FormError, LogRatios, Probs, Samples, estimate
from kullback.divergences import KL
from kullback.estimate import K1, MixtureBound, MonteCarlo, NearestNeighbours, search, tails
from kullback.estimate.resample import subsample


def t(x):
    return torch.tensor(x, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(weights, *locs):
    return MixtureSameFamily(Categorical(t(weights)), Normal(t(locs), t([1.0] * len(locs))))


def test_a_batch_of_one_is_a_batch():
    with pytest.raises(FormError, match=r"p is a batch of distributions of shape \(1,\)"):
        estimate.kl(Normal(t([0.0]), t([1.0])), Normal(t(0.0), t(1.0)), generator=seeded())


def test_the_smallest_expected_count():
    """(2 + 12) / 112 of the 10 in the smaller sample; of a known q its share of n."""
    assert "smallest expected count is 1.2" in estimate.homogeneity_test(Counts([8, 2]), Counts([90, 12])).verdict
    assert "smallest expected count is 3" in estimate.homogeneity_test(Counts([8, 2]), Probs(t([0.7, 0.3]))).verdict
    assert estimate.homogeneity_test(Counts([50, 50]), Counts([60, 40])).verdict == ""
    assert estimate.homogeneity_test(Counts([5, 5]), Probs(t([0.5, 0.5]))).verdict == ""


def test_equal_divergences_count_as_equal_whatever_their_rounding():
    """All orders of (3, 2, 1, 1, 0) are as far from uniform; the share of draws as far or farther, by enumeration."""
    seen, q = (3, 2, 1, 1, 0), t([0.2] * 5)

    def distance(counts):
        return sum(c / 7.0 * math.log(c / 7.0 * 5.0) for c in counts if c)

    farther = total = 0.0
    for counts in itertools.product(range(8), repeat=5):
        if sum(counts) == 7:
            ways = math.factorial(7) / math.prod(map(math.factorial, counts))
            total += ways
            farther += ways * (distance(counts) > distance(seen) - 1e-9)
    for order in ((0, 1, 2, 3, 4), (4, 2, 0, 3, 1), (1, 4, 3, 0, 2)):
        x = Counts([seen[i] for i in order])
        found = estimate.homogeneity_test(x, Probs(q), generator=seeded(), permutations=4000).p_value
        assert found == pytest.approx(farther / total, abs=0.03)


def test_components_of_weight_zero_are_not_there():
    p = mixture([0.4, 0.6], 0.0, 2.0)
    for q, same in (
        (mixture([0.3, 0.7, 0.0], 0.5, 3.0, 9.0), mixture([0.3, 0.7], 0.5, 3.0)),
        (mixture([0.0, 0.3, 0.7], 9.0, 0.5, 3.0), mixture([0.3, 0.7], 0.5, 3.0)),
    ):
        bound = estimate.kl(p, q, method=MixtureBound("upper")).raw
        assert bound == pytest.approx(estimate.kl(p, same, method=MixtureBound("upper")).raw, rel=1e-12)
        assert bound > 0.01


def test_overlaps_need_components_of_one_kind():
    full = MixtureSameFamily(
        Categorical(t([0.5, 0.5])), MultivariateNormal(t([[0.0, 0.0], [1.0, 1.0]]), torch.eye(2).double())
    )
    plain = MixtureSameFamily(Categorical(t([0.5, 0.5])), Independent(Normal(t([[0.0, 0.0], [1.0, 1.0]]), t(1.0)), 1))
    for p, q in ((full, plain), (plain, full)):
        with pytest.raises(FormError, match="need Normal components on both sides"):
            estimate.kl(p, q, method=MixtureBound("product"))


def test_two_draws_are_enough_for_a_standard_error():
    found = estimate.kl(Normal(t(0.0), t(1.0)), Normal(t(1.0), t(1.0)), method=MonteCarlo(2), generator=seeded())
    assert found.n == 2
    assert math.isfinite(found.stderr)
    for n in (1, 0, 2.0):
        with pytest.raises(FormError, match="at least 2 draws"):
            MonteCarlo(n)


def test_self_normalised_weights_have_no_scale():
    g = seeded()
    x = torch.randn(50, generator=g, dtype=torch.float64)
    log_p, log_q, log_r = -0.5 * (x - 0.3) ** 2, -0.5 * (x + 0.2) ** 2, -0.5 * x**2
    values = [
        estimate.kl(LogRatios(log_p, log_q, drawn_from=log_r + shift), method=K1(self_normalised=True)).raw
        for shift in (0.0, 60.0, -60.0)
    ]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-10)
    w = torch.exp(log_p - log_r)
    assert values[0] == pytest.approx(float((w * (log_p - log_q)).sum() / w.sum()), rel=1e-12)


OPERATIONS = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.pow,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("other", [0.5, 2, 3.25])
def test_arithmetic_is_that_of_the_value_on_either_side(operation, other):
    one = estimate.Estimate(2.0, 0.1, 100, bias="none", method="by hand")
    assert operation(one, other) == operation(2.0, other)
    assert operation(other, one) == operation(other, 2.0)
    assert (-one, +one, abs(one), round(one, 1)) == (-2.0, 2.0, 2.0, 2.0)


def test_a_bootstrap_says_how_much_it_saw():
    p, q, g = Counts([30, 20, 50]), Counts([40, 30, 130]), seeded()
    both = estimate.bootstrap_divergence(KL, p, q, generator=g)
    assert (both.n, both.m) == (100, 200)
    known = estimate.bootstrap_divergence(KL, p, Probs(t([0.3, 0.3, 0.4])), generator=g)
    assert (known.n, known.m) == (100, None)


def test_subsets_of_one_draw_are_subsets():
    values = subsample(lambda x: x.sum(), torch.tensor([2.0, 3.0]), sizes=(1,), generator=seeded(), replicates=40)
    assert set(values.tolist()) == {2.0, 3.0}
    for sizes in ((0,), (3,), (1, 1)):
        with pytest.raises(FormError, match="one size a sample is needed, from 1 to its length"):
            subsample(lambda x: x.sum(), torch.tensor([2.0, 3.0]), sizes=sizes, generator=seeded())


def test_searches_hold_what_their_blocks_cannot(monkeypatch):
    """A block smaller than the cloud still takes one query at a time."""
    points, x = torch.randn(30, 2, generator=seeded()).double(), torch.randn(7, 2, generator=seeded(1)).double()
    whole = [kind(points).kth_distances(x, (1, 3)) for kind in (search.Blocks, search.Tree)]
    monkeypatch.setattr(search, "_BLOCK_CELLS", 2)
    monkeypatch.setattr(search, "_TREE_CELLS", 2)
    for kind, found in zip((search.Blocks, search.Tree), whole, strict=True):
        assert torch.equal(kind(points).kth_distances(x, (1, 3)), found)
        counts = kind(points).count_within(x, found[:, 1])
        assert counts.tolist() == [3] * 7
        assert torch.equal(kind(points).farthest_within(x, found[:, 1], counts), found[:, 1])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_point_at_the_radius_is_inside_on_either_side(sign):
    """x + radius rounds to below the point whose distance the radius is."""
    points = (sign * (1e8 + torch.rand(400, 1, generator=seeded(2), dtype=torch.float64))).contiguous()
    line, blocks = search.search(points), search.Blocks(points)
    for x in points[:40].split(1):
        radius = line.kth_distances(x, (6,))[:, 0]
        assert line.count_within(x, radius).tolist() == blocks.count_within(x, radius).tolist()


def test_a_tail_is_so_many_of_the_largest():
    x = torch.randn(2000, generator=seeded(), dtype=torch.float64) ** 3
    size = (x - x.mean()).abs().sort().values
    for n, m in ((2000, int(3.0 * math.sqrt(2000))), (150, 30)):
        sizes = (x[:n] - x[:n].mean()).abs().sort().values
        assert tails.pareto_shape(x[:n]) == tails._shape(sizes[-m:] - sizes[-m - 1])
    assert tails.pareto_shape(x[:99]) == -math.inf  # 19 of them are too few
    assert len(size) == 2000


def test_a_tail_of_equal_numbers_has_no_shape():
    x = torch.cat([torch.zeros(80), torch.ones(50), -torch.ones(50)]).double()
    assert tails.pareto_shape(x) == -math.inf
    assert tails.pareto_shape(torch.cat([x, t([math.inf])])) == -math.inf


def test_no_weight_at_all_is_no_draw():
    nothing = torch.full((10,), -math.inf, dtype=torch.float64)
    found = estimate.kl(LogRatios(nothing, torch.zeros(10).double(), drawn_from=torch.zeros(10).double()), method=K1())
    assert found.details["effective_sample_size"] == 0.0
    assert "rest on 0 effective draws" in found.verdict


def test_ties_of_equation_5_stand_at_the_nearest_distinct_point():
    """x = 0, 0, 1, 3 against y = ½, 2, 5, k = 1: of each 0 the nearest other place is 1, with two draws up to it."""
    x, y = t([[0.0], [0.0], [1.0], [3.0]]), t([[0.5], [2.0], [5.0]])
    rho, k_p, nu = [1.0, 1.0, 1.0, 2.0], [2, 2, 2, 1], [0.5, 0.5, 0.5, 1.0]
    # of 1: both zeros are at distance 1, but its nearest distance is not 0, so that k stays 1
    k_p[2] = 1
    terms = [
        math.log(b / a) + float(torch.digamma(t(float(k))) - torch.digamma(t(1.0)))
        for a, b, k in zip(rho, nu, k_p, strict=True)
    ]
    method = NearestNeighbours(k=1, bias_reduced=False, replicates=0)
    found = estimate.kl(Samples(x), Samples(y), method=method).raw
    assert found == pytest.approx(sum(terms) / 4.0 + math.log(3.0 / 3.0), rel=1e-12)


@pytest.mark.parametrize("method", [estimate.PlugIn(), estimate.PlugIn(correction=estimate.MillerMadow())])
def test_a_plug_in_says_how_much_it_saw(method):
    p, known = Counts([30, 20, 50]), Probs(t([0.3, 0.3, 0.4]))
    for q, n, m in ((Counts([40, 30, 130]), 100, 200), (Counts([40, 0, 130]), 100, 170), (known, 100, None)):
        found = estimate.kl(p, q, method=method)
        assert (found.n, found.m) == (n, m)
    found = estimate.kl(known, p, method=method)
    assert (found.n, found.m) == (100, None)


@pytest.mark.parametrize("seen", [[0, 2, 2], [2, 0, 2], [2, 2, 0]])
def test_resamples_as_far_as_what_was_seen_count_whatever_the_last_digit(seen):
    """Four draws of three equal classes: 18 + 24 + 3 of 81 are as far; orders of (0, 2, 2) differ by 1e-16."""
    known = Probs(torch.full((3,), 1.0 / 3.0))
    found = estimate.homogeneity_test(Counts(seen), known, generator=seeded(), permutations=4000)
    assert found.p_value == pytest.approx(45 / 81, abs=4 * math.sqrt(45 / 81 * 36 / 81 / 4000))
