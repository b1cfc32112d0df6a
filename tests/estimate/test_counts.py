import math

import numpy as np
import pytest
import torch

from kullback import Counts, FormError, Probs, divergences, estimate, kl
from kullback.estimate import JEFFREYS_PRIOR, DirichletPrior, Jackknife, MillerMadow, PlugIn, bootstrap_divergence

DLOOKR = (115, 76, 61, 39, 55, 10, 1), (3, 3, 7, 10, 28, 44, 117)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frequencies_kl(x, y):
    n, m = sum(x), sum(y)
    return sum(a / n * math.log((a / n) / (b / m)) if b else math.inf for a, b in zip(x, y, strict=True) if a)


def test_plug_in_is_the_exact_divergence_of_the_frequencies():
    x, y = DLOOKR  # R dlookr: 1.90927825610, reverse 3.13464721022, PSI 5.04392546632
    forward = estimate.kl(Counts(x), Counts(y), method=PlugIn())
    assert forward.value == pytest.approx(1.90927825610, abs=1e-10)
    assert (forward.n, forward.m) == (357, 212)
    assert estimate.kl(Counts(y), Counts(x), method=PlugIn()).value == pytest.approx(3.13464721022, abs=1e-10)
    psi = bootstrap_divergence(divergences.JEFFREYS, Counts(x), Counts(y), generator=seeded(), replicates=10)
    assert psi.value == pytest.approx(5.04392546632, abs=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_priors_add_to_the_counts(alpha):
    x, y = (5, 0, 3), (0, 4, 4)
    found = estimate.kl(Counts(x), Counts(y), method=PlugIn(prior=DirichletPrior(alpha)))
    assert found.value == pytest.approx(frequencies_kl([a + alpha for a in x], [b + alpha for b in y]), rel=1e-12)
    known = estimate.kl(Counts(x), Probs([0.2, 0.3, 0.5]), method=PlugIn(prior=DirichletPrior(alpha)))
    # what is known gets no prior; float32 probabilities
    assert known.value == pytest.approx(frequencies_kl([a + alpha for a in x], [0.2, 0.3, 0.5]), rel=1e-6)
    assert JEFFREYS_PRIOR == estimate.KRICHEVSKY_TROFIMOV_PRIOR == DirichletPrior(0.5)


def test_miller_madow_by_hand():
    x, y = (4, 6, 0), (5, 10, 5)
    found = estimate.kl(Counts(x), Counts(y))
    # Miller 1955 for -Σ p̂ log p̂, (K-1)/2n; the same expansion of -Σ p log q̂, Σ p (1-q)/(2 m q) = (Σ p/q - 1)/2m
    bias = 1 / 20 + (0.4 / 0.25 + 0.6 / 0.5 - 1) / 40
    assert found.value == pytest.approx(frequencies_kl(x, y) - bias, rel=1e-12)
    assert found.details["uncorrected"] == pytest.approx(frequencies_kl(x, y), rel=1e-12)


@pytest.mark.parametrize(("x", "y"), [((4, 6, 0, 1), (5, 10, 5, 2)), ((7, 1, 2), (3, 3, 9))])
def test_jackknife_by_leaving_out_one_at_a_time(x, y):
    n, m, whole = sum(x), sum(y), frequencies_kl(x, y)

    def without(counts, i):
        return [c - (j == i) for j, c in enumerate(counts)]

    of_p = sum(c / n * frequencies_kl(without(x, i), y) for i, c in enumerate(x) if c)
    of_q = sum(c / m * frequencies_kl(x, without(y, i)) for i, c in enumerate(y) if c)
    truth = whole - (n - 1) * (of_p - whole) - (m - 1) * (of_q - whole)
    found = estimate.kl(Counts(x), Counts(y), method=PlugIn(correction=Jackknife()))
    assert found.raw == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("correction", [MillerMadow(), Jackknife()])
def test_corrections_remove_most_of_the_bias(correction):
    g, p = seeded(), torch.arange(1.0, 11.0, dtype=torch.float64) / 55
    q = p.flip(0)
    truth = float(kl(Probs(p), Probs(q)))

    def observe(w):
        return Counts(torch.bincount(torch.multinomial(w, 400, True, generator=g), minlength=10))

    pairs = [(observe(p), observe(q)) for _ in range(300)]
    pairs = [(a, b) for a, b in pairs if int(b.data.min()) >= 2]

    def mean(method):
        return sum(estimate.kl(a, b, method=method).raw for a, b in pairs) / len(pairs) - truth

    raw, corrected = mean(PlugIn()), mean(PlugIn(correction=correction))
    assert raw > 0.02
    assert abs(corrected) < 0.5 * raw


def test_an_unseen_category_is_infinite_or_dropped_with_its_mass():
    x, y = Counts([10, 5, 1]), Counts([10, 6, 0])
    found = estimate.kl(x, y)
    assert found.value == math.inf
    assert found.interval() == (0.0, math.inf)
    assert found.details["mass_unseen_by_q"] == pytest.approx(1 / 16)
    assert "1 category with 0.0625 of p unseen by q" in found.verdict
    dropped = estimate.kl(x, y, method=PlugIn(unseen="drop"))
    assert dropped.value == pytest.approx(frequencies_kl((10, 5), (10, 6)), rel=1e-12)
    assert dropped.n == 15
    assert dropped.details["mass_unseen_by_q"] == pytest.approx(1 / 16)
    assert "left out" in dropped.verdict
    assert math.isfinite(estimate.kl(y, x).value)  # 0 log 0: q may see more


def test_known_q_halves_the_noise_of_equal_samples():
    p = Counts([100, 100, 100, 100])
    uniform = Probs(torch.full((4,), 0.25, dtype=torch.float64))
    one, two = estimate.kl(p, uniform, method=PlugIn()), estimate.kl(p, p, method=PlugIn())
    assert one.m is None
    assert (one.value, two.value) == (0.0, 0.0)
    # sd of χ²(3)/(2·400), and of χ²(3)·(1/400 + 1/400)/2
    assert one.stderr == pytest.approx(math.sqrt(6) / 800, rel=1e-9)
    assert two.stderr == pytest.approx(math.sqrt(6) / 400, rel=1e-9)
    assert estimate.kl(uniform, p, method=PlugIn()).stderr == pytest.approx(math.sqrt(6) / 800, rel=1e-9)


def test_standard_error_by_hand():
    x, y = (40, 60), (150, 50)
    p, q, n, m = (0.4, 0.6), (0.75, 0.25), 100, 200
    logs = [math.log(a / b) for a, b in zip(p, q, strict=True)]
    mean = sum(a * t for a, t in zip(p, logs, strict=True))
    first = sum(a * (t - mean) ** 2 for a, t in zip(p, logs, strict=True)) / n
    first += (sum(a * a / b for a, b in zip(p, q, strict=True)) - 1) / m
    least, plug_in = 0.5 * (1 / n + 1 / m) ** 2, frequencies_kl(x, y)
    bias = 1 / (2 * n) + (0.4 / 0.75 + 0.6 / 0.25 - 1) / (2 * m)
    for method, value in ((PlugIn(), plug_in), (PlugIn(correction=MillerMadow()), plug_in - bias)):
        found = estimate.kl(Counts(x), Counts(y), method=method)
        assert found.value == pytest.approx(value, rel=1e-12)
        assert found.slope == pytest.approx(first / plug_in, rel=1e-12)
        assert found.stderr == pytest.approx(math.sqrt(least + first / plug_in * (plug_in - bias)), rel=1e-12)
    # the score interval: the ends θ are where (value - θ)² = z² (least + slope·θ)
    for end in found.interval():
        spread = 1.959963985 * math.sqrt(least + found.slope * end)
        assert abs(found.value - end) == pytest.approx(spread, rel=1e-8)


def observed(w, n, g):
    return Counts(torch.bincount(torch.multinomial(w, n, True, generator=g), minlength=len(w)))


# P20: n = m = 100, where value ± 1.96 standard errors covers 89 % of the second and 99.9 % of the first
@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.1] * 10, [0.1] * 10),
        ([0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.3, 0.3]),
        ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]),
        ([0.5, 0.5], [0.45, 0.55]),
    ],
)
def test_intervals_of_a_hundred_counts_cover_as_they_say(p, q):
    """600 runs: 95 % is known to 0.9 points. Infinite values, with their [0, inf], are fewer than one in 200."""
    g, runs = seeded(), 600
    p, q = torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
    truth = float(kl(Probs(p), Probs(q)))
    covered = 0
    for _ in range(runs):
        low, high = estimate.kl(observed(p, 100, g), observed(q, 100, g)).interval()
        assert 0.0 <= low <= high
        covered += low <= truth <= high
    assert 0.92 <= covered / runs <= 0.98


def test_an_uncorrected_bias_is_named_where_it_matters():
    """P20's like for counts: at p = q and n = m = 1000 the plug-in value's interval covers 5 %."""
    g, p = seeded(), torch.full((10,), 0.1, dtype=torch.float64)
    q = torch.arange(1.0, 11.0, dtype=torch.float64) / 55
    x, y = observed(p, 1000, g), observed(p, 1000, g)
    for method in (PlugIn(), PlugIn(prior=JEFFREYS_PRIOR)):
        assert "too high by about 0.009" in estimate.kl(x, y, method=method).verdict
        assert estimate.kl(x, observed(q, 1000, g), method=method).verdict == ""
    assert estimate.kl(x, y).verdict == ""


def test_an_interval_of_equal_frequencies_begins_at_zero():
    """P9: the corrected value of equal counts is negative."""
    x = Counts([50, 30, 20])
    found = estimate.kl(x, x)
    assert found.raw < 0.0 == found.value == found.interval().low
    assert found.interval().high > found.stderr > 0.0
    assert " 0 nats" in f" {found}"
    assert "-" not in str(found).partition(",")[0]


@pytest.mark.slow
@pytest.mark.parametrize("n", [100_000, 1_000_000])
@pytest.mark.parametrize("correction", [MillerMadow(), Jackknife()])
def test_no_bias_hides_at_a_hundred_thousand_counts_and_a_million(n, correction):
    """300 runs at B = 100: their mean is known to 1/17 of a standard error, and the raw bias is 3 at p near q."""
    g = torch.Generator().manual_seed(0)
    p, q = torch.full((100,), 0.01, dtype=torch.float64), torch.arange(951.0, 1051.0, dtype=torch.float64) / 100050
    truth, errors, raw = float(kl(Probs(p), Probs(q))), [], []
    source = np.random.default_rng(int(torch.randint(2**31, (1,), generator=g)))
    for _ in range(300):
        x, y = (Counts(torch.from_numpy(source.multinomial(n, w.numpy() / w.numpy().sum()))) for w in (p, q))
        found = estimate.kl(x, y, method=PlugIn(correction=correction))
        errors.append((found.raw - truth) / found.stderr)
        raw.append((found.details["uncorrected"] - truth) / found.stderr)
    assert abs(sum(errors) / 300) < 4 / math.sqrt(300)
    assert sum(raw) / 300 > 2.0 if n == 100_000 else sum(raw) / 300 > 1.0


def test_critical_values_of_the_oracles():
    assert estimate.critical_value(1000, 1000, 10) == pytest.approx(0.016919, abs=5e-7)
    assert estimate.critical_value(1000, 1000, 10, curvature=2.0) == pytest.approx(0.033838, abs=5e-7)
    tested = estimate.homogeneity_test(Counts([100] * 10), Counts([100] * 10))
    assert tested.critical_value() == pytest.approx(estimate.critical_value(1000, 1000, 10), rel=1e-12)
    assert (tested.statistic, tested.df, tested.p_value) == (0.0, 9, 1.0)


@pytest.mark.parametrize("known", [False, True])
def test_the_level_of_the_test_is_what_it_says(known):
    """2,000 runs without drift, 10 bins: 5 % are flagged, within 4 standard deviations (0.5 points each)."""
    g, w, flagged = seeded(), torch.full((10,), 0.1, dtype=torch.float64), 0
    for _ in range(2000):
        x, y = (Counts(torch.bincount(torch.multinomial(w, n, True, generator=g), minlength=10)) for n in (500, 1000))
        flagged += estimate.homogeneity_test(x, Probs(w) if known else y).p_value < 0.05
    assert abs(flagged / 2000 - 0.05) < 0.02


def test_a_permutation_test_where_chi2_has_no_answer():
    x, y = Counts([5, 5, 1]), Counts([6, 5, 0])
    with pytest.raises(FormError, match="generator=torch"):
        estimate.homogeneity_test(x, y)
    same = estimate.homogeneity_test(x, y, generator=seeded(), permutations=199)
    assert same.law == "permutation"
    assert same.p_value > 0.3
    other = estimate.homogeneity_test(Counts([40, 5]), Counts([5, 40]), generator=seeded(), permutations=199)
    assert other.p_value == pytest.approx(1 / 200)
    few = estimate.homogeneity_test(Counts([3, 4]), Counts([4, 3]))
    assert "below 5" in few.verdict
    simulated = estimate.homogeneity_test(Counts([50, 50]), Probs([0.5, 0.5]), generator=seeded(), permutations=99)
    assert simulated.p_value == 1.0


def test_permutation_and_chi2_agree_when_counts_are_large():
    x, y = Counts([120, 90, 90]), Counts([100, 100, 100])
    law = estimate.homogeneity_test(x, y).p_value
    drawn = estimate.homogeneity_test(x, y, generator=seeded(), permutations=1999).p_value
    assert drawn == pytest.approx(law, abs=0.05)  # 4 standard deviations of 1,999 draws


def test_bootstrap_of_another_divergence():
    g, p, q = seeded(), torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])

    def observe(w):
        return Counts(torch.bincount(torch.multinomial(w, 2000, True, generator=g), minlength=3))

    found = bootstrap_divergence(divergences.TV, observe(p), observe(q), generator=g)
    assert abs(found.value - 0.2) < 4 * found.stderr < 0.1
    infinite = bootstrap_divergence(divergences.CHI2, Counts([1, 1]), Counts([2, 0]), generator=g)
    assert infinite.value == math.inf
    assert infinite.verdict


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: estimate.kl(Counts([1, 2]), Counts([1, 2, 3])), "minlength=B"),
        (lambda: estimate.kl(Counts([1, 2]), Probs([[0.5, 0.5]])), "one row"),
        (lambda: PlugIn(prior=JEFFREYS_PRIOR, correction=MillerMadow()), "either prior= or correction="),
        (lambda: PlugIn(unseen="skip"), "'infinite' or 'drop'"),
        (lambda: DirichletPrior(0.0), "above 0"),
        (lambda: estimate.kl(Counts([5, 5]), Counts([1, 9]), method=PlugIn(correction=Jackknife())), "single one"),
        (lambda: estimate.kl(Counts([1, 0]), Counts([0, 1]), method=PlugIn(unseen="drop")), "share no category"),
        (lambda: estimate.homogeneity_test(Counts([5]), Counts([5])), "at least two"),
        (lambda: estimate.homogeneity_test(Probs([1.0]), Counts([5])), "p must be Counts"),
        (lambda: estimate.critical_value(0, 10, 10), "at least one observation"),
    ],
)
def test_errors(call, words):
    with pytest.raises(FormError) as error:
        call()
    assert words in str(error.value)
