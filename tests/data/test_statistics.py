"""The test and the effects: values by hand, laws, false alarms that are as many as was said."""

import math

import numpy as np
import pytest
import torch

from kullback import Counts, Probs, estimate, jeffreys, js, kl
from kullback.data import drift, statistics
from kullback.data.bins import Categories, Numbers
from kullback.data.pairing import pair
from kullback.data.profiles import Counted
from kullback.data.statistics import (
    MEASURES,
    benjamini_hochberg,
    cell_contributions,
    compare,
    effects,
    holm,
    homogeneity,
)

X, Y = np.array([500.0, 300.0, 200.0]), np.array([300.0, 600.0, 100.0])


def test_t_is_the_weighted_jensen_shannon_divergence_of_the_verbs():
    x, y = X * 2, Y
    weight = x.sum() / (x.sum() + y.sum())
    by_verb = 2 * (x.sum() + y.sum()) * float(js(Probs(x / x.sum()), Probs(y / y.sum()), weight=float(weight)))
    assert statistics.statistic(x, y) == pytest.approx(by_verb, rel=1e-12)


def test_t_is_the_likelihood_ratio_statistic_of_scipy():
    from scipy.stats import chi2_contingency

    expected = chi2_contingency([X, Y], correction=False, lambda_="log-likelihood")
    test, _ = homogeneity(X, Y, seed=0)
    assert test.law == "chi2"
    assert test.df == 2
    assert test.statistic == pytest.approx(expected.statistic, rel=1e-12)
    assert test.p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_near_equality_t_is_the_scaled_kl_of_the_estimators_test():
    x, y = np.array([10_000.0, 10_100.0, 9_900.0]), np.array([20_050.0, 19_950.0, 20_000.0])
    other = estimate.homogeneity_test(Counts(x), Counts(y))
    assert statistics.statistic(x, y) == pytest.approx(other.statistic, rel=0.01)


def test_an_empty_cell_leaves_t_finite():
    test, _ = homogeneity(np.array([900.0, 100.0]), np.array([1000.0, 0.0]), seed=0)
    assert math.isfinite(test.statistic)
    assert test.p_value < 1e-6


def test_the_permutation_law_is_fishers_mid_p_where_there_are_two_cells():
    from scipy.stats import hypergeom

    x, y = np.array([14.0, 6.0]), np.array([7.0, 13.0])
    law = hypergeom(40, 21, 20)
    table = np.arange(1, 21)
    t = statistics.statistic(np.stack([table, 20.0 - table], 1), np.stack([21.0 - table, table - 1.0], 1))
    observed = statistics.statistic(x, y)
    equal = law.pmf(table[abs(t - observed) <= 1e-9]).sum()
    above = law.pmf(table[t > observed + 1e-9]).sum()
    test, _ = homogeneity(x, y, seed=1, smallest_p=0.0005)
    assert test.law == "permutation"
    assert test.p_value == pytest.approx(above + equal / 2, abs=0.012)


def test_the_permutation_law_and_chi_square_agree_where_counts_are_large(monkeypatch):
    x, y = np.full(8, 400.0), np.full(8, 400.0) + np.array([20, -20, 30, -30, 10, -10, 35, -35])
    by_chi2, _ = homogeneity(x, y, seed=0)
    monkeypatch.setattr(statistics, "EXPECTED", math.inf)
    by_draws, _ = homogeneity(x, y, seed=0, smallest_p=0.001)
    assert by_draws.law == "permutation"
    assert by_draws.p_value == pytest.approx(by_chi2.p_value, rel=0.35)


def test_small_p_values_get_the_draws_that_many_columns_need():
    x, y = np.array([40.0, 10.0, 10.0]), np.array([5.0, 30.0, 25.0])
    test, _ = homogeneity(x, y, seed=0, smallest_p=0.05 / 60)
    assert test.draws >= 20 * 60 / 0.05 - 1
    assert 60 * test.p_value < 0.05


@pytest.mark.parametrize("measure", MEASURES)
def test_effects_are_the_verbs_of_smoothed_frequencies_less_their_chance(measure):
    p, q = (Probs(torch.tensor((side + 0.5) / (side + 0.5).sum())) for side in (X, Y))
    expected = {"kl": kl(p, q), "kl_reverse": kl(q, p), "js": js(p, q), "psi": jeffreys(p, q)}[measure]
    found = effects(X, Y)[measure]
    curvature = MEASURES[measure][1]
    assert found.raw == pytest.approx(float(expected), rel=1e-12)
    assert found.value == pytest.approx(float(expected) - curvature * 0.5 * (2 / 1000) * 2, rel=1e-9)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(("n", "shift"), [(200, 0.0), (2000, 0.05), (2000, 0.4)])
def test_intervals_cover_the_truth(n, shift):
    rng = np.random.default_rng(5)
    p = np.full(8, 1 / 8)
    q = p * (1 + shift * np.linspace(-1, 1, 8))
    q /= q.sum()
    truth = (p * np.log(p / q)).sum()
    runs = 250
    inside = 0
    for _ in range(runs):
        x, y = rng.multinomial(n, p).astype(float), rng.multinomial(n, q).astype(float)
        found = compare(x, y, seed=int(rng.integers(2**31))).effects["kl"]
        inside += found.low <= truth + 1e-15 and truth <= found.high
    assert inside / runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)  # four standard errors of a share
    assert shift > 0 or inside / runs <= 1.0


def test_contributions_add_up_to_the_effect_and_are_never_negative():
    parts = cell_contributions(X, Y)
    assert (parts >= 0).all()
    assert parts.sum() == pytest.approx(effects(X, Y)["kl"].raw, rel=1e-12)


@pytest.mark.parametrize(("adjust", "scipy_name"), [(holm, None), (benjamini_hochberg, "bh")])
def test_adjusted_p_values(adjust, scipy_name):
    p = np.random.default_rng(0).random(20) ** 2
    found = adjust(p.tolist())
    if scipy_name:
        from scipy.stats import false_discovery_control

        assert found == pytest.approx(false_discovery_control(p, method=scipy_name).tolist(), rel=1e-12)
    else:
        order = np.argsort(p)
        stepped = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(20, 0, -1)))
        assert np.array(found)[order] == pytest.approx(stepped, rel=1e-12)


def rate(kind, n, m, cells, reps=600, seed=0):
    rng = np.random.default_rng(seed)
    p = np.full(cells, 1 / cells) if kind == "even" else 1 / np.arange(1, cells + 1) ** 1.1
    p /= p.sum()
    names = [f"v{i}" for i in range(cells)]
    hits = 0
    for _ in range(reps):
        x, y = rng.multinomial(n, p), rng.multinomial(m, p)
        a = Counted(Categories(tuple(names)), (*x.tolist(), 0, 0))
        b = Counted(Categories(tuple(names)), (*y.tolist(), 0, 0))
        found = pair(a, b)
        test, _ = homogeneity(found.x, found.y, seed=int(rng.integers(2**31)))
        hits += test.p_value <= 0.05
    return hits / reps


@pytest.mark.parametrize(
    ("kind", "n", "m", "cells"),
    [("even", 100, 100, 20), ("even", 1000, 100, 20), ("zipf", 100, 1000, 200), ("zipf", 20_000, 20_000, 40)],
)
def test_false_alarms_are_as_many_as_was_said(kind, n, m, cells):
    # 600 comparisons: four standard errors are 3.6 points
    assert 0.05 - 0.036 <= rate(kind, n, m, cells) <= 0.05 + 0.036


def test_rare_categories_do_not_look_like_drift():
    """Chosen by the reference's own counts, its most frequent values would seem to have become rarer."""
    import polars as pl

    rng = np.random.default_rng(3)
    p = 1 / np.arange(1, 20_001) ** 1.05
    p /= p.sum()
    before, after = (
        pl.DataFrame({f"c{i}": rng.choice(20_000, 1500, p=p).astype(str) for i in range(40)}) for _ in range(2)
    )
    found = drift(before, after, categories=50)
    p_values = [one.test.p_value for one in found.columns]
    assert not found.drifted
    assert np.mean(p_values) == pytest.approx(0.5, abs=4 * 0.289 / math.sqrt(40))


def test_a_shift_that_a_constant_threshold_misses_is_found():
    import polars as pl

    rng = np.random.default_rng(0)
    before = pl.DataFrame({"x": rng.normal(size=100_000)})
    after = pl.DataFrame({"x": rng.normal(0.15, size=100_000)})
    found = drift(before, after)["x"]
    assert found.drift
    assert found.effects["kl"].value < 0.02
    assert found.effects["psi"].value < 0.1  # the threshold in use everywhere


def test_significance_alone_is_no_drift():
    import polars as pl

    from kullback.data import Rule

    rng = np.random.default_rng(0)
    before, after = (pl.DataFrame({"x": rng.normal(s, size=50_000)}) for s in (0.0, 0.05))
    small = drift(before, after)
    assert small["x"].p_adjusted < 0.001
    assert not small.drifted
    assert drift(before, after, rule=Rule(smallest=0.0005)).drifted


def test_rows_that_belong_together_widen_errors_and_calm_the_test():
    """200 sessions of 25 equal rows are 200 observations, not 5,000."""
    import polars as pl

    rng = np.random.default_rng(11)
    alone, together, width = 0, 0, []
    for _ in range(12):
        sides = []
        for side in range(2):
            value = rng.normal(size=200).round(1)
            sides.append(
                pl.DataFrame({"x": np.repeat(value, 25), "session": np.repeat(np.arange(200) + 1000 * side, 25)})
            )
        plain, grouped = drift(*sides, columns=["x"]), drift(*sides, cluster="session")
        assert grouped["x"].test.law == "clusters"
        alone += plain["x"].test.p_value <= 0.05
        together += grouped["x"].test.p_value <= 0.05
        widths = [one["x"].effects["kl"].high - one["x"].effects["kl"].low for one in (plain, grouped)]
        width.append(widths[1] / widths[0])
    assert alone >= 11
    assert together <= 4
    assert np.median(width) > 1.5


def test_clusters_within_groups_are_those_of_each_group_alone():
    import polars as pl

    rng = np.random.default_rng(7)

    def side(seed):
        rows = 900
        return pl.DataFrame(
            {
                "kind": rng.choice(["u", "v", "w"], rows),
                "session": rng.integers(0, 60, rows) + 1000.5 * seed,
                "site": rng.choice(["north", "south", None], rows, p=[0.6, 0.3, 0.1]),
            }
        )

    before, after = side(1), side(2)
    both = drift(before, after, by="site", cluster="session")
    assert [one.title for one in both.columns if one.title == "session"] == []
    for name in ("north", "south", None):
        there = pl.col("site").is_null() if name is None else pl.col("site") == name
        alone = drift(before.filter(there), after.filter(there), cluster="session", columns=["kind", "session"])["kind"]
        found = both[f"kind · {name or '(null)'}"]
        assert found.test.law == "clusters"
        assert found.test.statistic == alone.test.statistic
        assert found.test.p_value == pytest.approx(alone.test.p_value, abs=0.08)  # other draws
        assert found.effects["kl"].raw == pytest.approx(alone.effects["kl"].raw, rel=1e-12)
    sizes = [
        sum(
            one.filter(pl.col("site").eq_missing(pl.lit(name)))["session"].n_unique()
            for name in ("north", "south", None)
        )
        for one in (before, after)
    ]
    assert f"{sizes[0]} against {sizes[1]} clusters, permuted as wholes within groups" in both.notes


def test_clusters_of_one_row_are_no_clusters():
    import polars as pl

    rng = np.random.default_rng(2)
    before, after = (
        pl.DataFrame({"x": rng.normal(s, size=400), "row": np.arange(400) + 400 * k}) for k, s in enumerate((0, 0.2))
    )
    plain, grouped = drift(before, after, columns=["x"]), drift(before, after, cluster="row")
    assert grouped["x"].test.statistic == plain["x"].test.statistic
    assert grouped["x"].test.p_value == pytest.approx(plain["x"].test.p_value, abs=0.02)
    assert grouped["x"].effects["kl"].high == pytest.approx(plain["x"].effects["kl"].high, rel=0.1)


def test_the_chain_rule_adds_up_and_finds_where_the_drift_is():
    import polars as pl

    rng = np.random.default_rng(4)
    sides = []
    for flip in (0.1, 0.4):
        a = rng.integers(0, 3, 6000)
        b = np.where(rng.random(6000) < flip, rng.integers(0, 3, 6000), a)
        sides.append(pl.DataFrame({"a": a.astype(str), "b": b.astype(str), "c": rng.integers(0, 2, 6000).astype(str)}))
    found = drift(*sides, joint_of=["a", "b", "c"]).joint
    assert math.fsum(part.raw for part in found.parts) == pytest.approx(found.raw, rel=1e-12)
    assert math.fsum(part.value for part in found.parts) == pytest.approx(found.value, rel=1e-9)
    shares = {part.column: part for part in found.parts}
    assert shares["b"].given == ("a",)
    assert shares["b"].p_value < 0.001
    assert shares["b"].value > 0.9 * found.value
    assert shares["a"].p_value > 0.01
    assert shares["c"].p_value > 0.01
    # by hand: the joint table of all three
    cells = [[side.group_by("a", "b", "c").len()] for side in sides]
    keys = sorted({row[:3] for (table,) in cells for row in table.rows()})
    counts = [np.array([{r[:3]: r[3] for r in t.rows()}.get(k, 0) for k in keys]) + 0.5 for (t,) in cells]
    p, q = (c / c.sum() for c in counts)
    assert found.raw == pytest.approx((p * np.log(p / q)).sum(), rel=1e-10)


def test_cells_of_numbers_are_joined_until_five_current_rows_are_expected():
    cells = Numbers(tuple(float(i) for i in range(1, 50)))
    a, b = (Counted(cells, (0, *[k] * 50, 0, 0, 0)) for k in (20, 2))
    found = pair(a, b)
    assert all(y >= 5 for y in found.y)
    assert 10 <= len(found.x) <= 25
    assert found.marks == ("cells with few rows are joined with their neighbours",)
    two = pair(Counted(Numbers((1.0,)), (0, 990, 10, 0, 0, 0)), Counted(Numbers((1.0,)), (0, 96, 4, 0, 0, 0)))
    assert two.labels == ("< 1", "≥ 1")  # the last two stay


def test_joining_cells_keeps_what_is_new_in_the_current_table():
    a = Counted(Numbers((7.0, 8.0), whole=True), (0, 0, 100_000, 0, 0, 0, 0))
    b = Counted(Numbers((7.0, 8.0), whole=True), (0, 0, 90, 10, 0, 0, 0))
    found = pair(a, b)
    assert found.labels == ("= 7", "≥ 8")
    assert homogeneity(found.x, found.y, seed=0)[0].p_value < 1e-3
