import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Exponential,
    Geometric,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    Uniform,
)

from kullback import Counts, FormError, LogRatios, Probs, Samples, estimate, kl
from kullback.estimate import K1, K2, K3, MixtureBound, MonteCarlo, Regressed
from kullback.estimate.tails import pareto_shape


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ratios(shift, n, drawn_from="p", seed=0):
    """Draws for KL(N(0,1) ‖ N(shift,1)) = shift²/2."""
    p, q = Normal(torch.tensor(0.0).double(), 1.0), Normal(torch.tensor(shift).double(), 1.0)
    x = torch.randn(n, generator=seeded(seed), dtype=torch.float64)
    proposal = {"p": 0.0, "q": shift, "between": shift / 2}[drawn_from]
    x = x + proposal
    source = drawn_from if drawn_from != "between" else Normal(torch.tensor(proposal).double(), 1.0).log_prob(x)
    return LogRatios(p.log_prob(x), q.log_prob(x), drawn_from=source)


# Schulman's table (shift 0.1: bias/true 0, .002, 0 and std/true 20, 1.42, 1.42; shift 1: 0, .25, 0 and 2, 1.73, 1.7).
# std/true is the standard error times √n over the truth. n = 400,000 draws give the bias to 3 standard errors and the
# std to 3 % (k3 at shift 1 has heavy tails: 10 %)
@pytest.mark.parametrize(
    ("method", "shift", "bias", "std", "within"),
    [
        (K1(), 0.1, 0.0, 20.0, 0.03),
        (K2(), 0.1, 0.002, 1.42, 0.03),
        (K3(), 0.1, 0.0, 1.42, 0.03),
        (K1(), 1.0, 0.0, 2.0, 0.03),
        (K2(), 1.0, 0.25, 1.73, 0.03),
        (K3(), 1.0, 0.0, 1.7, 0.1),
    ],
)
def test_schulmans_table(method, shift, bias, std, within):
    n, truth = 400_000, 0.5 * shift * shift
    found = estimate.kl(ratios(shift, n), method=method)
    assert abs(found.value / truth - 1.0 - bias) < 3.0 * found.stderr / truth + 0.0005
    assert found.stderr * math.sqrt(n) / truth == pytest.approx(std, rel=within)


@pytest.mark.parametrize("method", [K1(), K1(self_normalised=True), K3(), Regressed()])
@pytest.mark.parametrize("drawn_from", ["p", "q", "between"])
def test_whatever_the_draws_come_from_the_truth_is_within_four_standard_errors(method, drawn_from):
    found = estimate.kl(ratios(0.7, 20_000, drawn_from), method=method)
    assert abs(found.value - 0.245) < 4 * found.stderr < 0.1
    assert found.n == 20_000


def test_formulas_by_hand():
    log_p, log_q, log_r = (torch.tensor(v, dtype=torch.float64) for v in ([-1.0, -2.0], [-1.5, -1.0], [-1.2, -1.1]))
    s = log_q - log_p
    w, v = torch.exp(log_p - log_r), torch.exp(log_q - log_r)
    from_p, from_r = LogRatios(log_p, log_q, "p"), LogRatios(log_p, log_q, log_r)

    def value(held, method):
        return estimate.kl(held, method=method).raw

    assert value(from_p, K1()) == pytest.approx(float((-s).mean()), rel=1e-12)
    assert value(from_p, K2()) == pytest.approx(float((s * s / 2).mean()), rel=1e-12)
    assert value(from_p, K3()) == pytest.approx(float((s.exp() - 1 - s).mean()), rel=1e-12)
    assert value(from_r, K1()) == pytest.approx(float((-w * s).mean()), rel=1e-12)
    assert value(from_r, K3()) == pytest.approx(float((-w * s + v - w).mean()), rel=1e-12)
    assert value(from_r, K1(self_normalised=True)) == pytest.approx(float((-w * s).sum() / w.sum()), rel=1e-12)
    assert estimate.kl(from_r, method=K1()).details["effective_sample_size"] == pytest.approx(
        float(w.sum() ** 2 / (w * w).sum()), rel=1e-12
    )
    assert estimate.kl(from_p, base=2).value == pytest.approx(value(from_p, K3()) / math.log(2), rel=1e-12)


def test_regression_is_least_squares_and_no_noisier_than_k1_and_k3():
    held = ratios(1.0, 5000)
    s = held.data[1] - held.data[0]
    design = torch.stack([torch.ones_like(s), s.exp() - 1], -1)
    fit = torch.linalg.lstsq(design, (-s).unsqueeze(-1)).solution[0].item()
    found = {type(m): estimate.kl(held, method=m) for m in (Regressed(), K1(), K3())}
    assert found[Regressed].value == pytest.approx(fit, rel=1e-9)
    assert found[Regressed].stderr <= min(found[K1].stderr, found[K3].stderr) * 1.001


def test_equal_densities_give_zero_and_k3_is_never_negative():
    held = LogRatios([-1.0, -2.0, -3.0, -1.0], [-1.0, -2.0, -3.0, -1.0], drawn_from="p")
    for method in (K1(), K2(), K3(), Regressed()):
        found = estimate.kl(held, method=method)
        assert (found.value, found.stderr) == (0.0, 0.0)
    near = LogRatios([-1.0], [-1.0 - 1e-9], drawn_from="p")
    assert estimate.kl(near).value == pytest.approx(5e-19, rel=1e-5)


def test_support():
    outside_q = LogRatios([-1.0, -1.0], [-1.0, -math.inf], drawn_from="p")
    for method in (K1(), K2(), K3(), Regressed()):
        found = estimate.kl(outside_q, method=method)
        assert found.value == math.inf
        assert found.interval() == (0.0, math.inf)
        assert "no density under q" in found.verdict
    outside_p = LogRatios([-1.0, -math.inf], [-1.5, -1.0], drawn_from="q")  # w = 0 there: log(p/q) is not asked
    w = math.exp(0.5)
    assert estimate.kl(outside_p, method=K1()).value == pytest.approx(0.5 * w / 2)
    assert estimate.kl(outside_p, method=K3()).value == pytest.approx((0.5 * w + 1 - w + 1) / 2)


def test_one_draw_has_no_standard_error():
    found = estimate.kl(LogRatios([-1.0], [-1.5], drawn_from="p"))
    assert math.isnan(found.stderr)
    assert found.interval() == (0.0, math.inf)
    assert "one draw" in found.verdict


def test_few_effective_draws_are_named():
    found = estimate.kl(ratios(4.0, 1000, "q"))
    assert found.details["effective_sample_size"] < 100
    assert "importance weights" in found.verdict


def test_draws_come_from_the_global_state_unless_a_generator_is_given():
    """P6."""
    p, q = Normal(0.0, 1.0), Normal(1.0, 2.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, second = estimate.kl(p, q), estimate.kl(p, q)
        torch.manual_seed(3)
        assert estimate.kl(p, q) == first
    assert first.raw != second.raw


def test_second_order_where_it_does_not_do_is_named():
    """K2 of N(0,1) against N(1,1) is 25 % too high, and its interval covers 0.2 %."""
    assert "K3() gives" in estimate.kl(ratios(1.0, 1000), method=K2()).verdict
    assert estimate.kl(ratios(0.1, 1000), method=K2()).verdict == ""


def test_tails_without_a_variance_are_named():
    """q/p of N(0,1) against N(2,1): K3 covers 83 % of 95 % with 1,000 draws, Regressed 88 %."""
    for seed in range(5):
        held = ratios(2.0, 1000, seed=seed)
        for method in (K3(), Regressed()):
            assert "Pareto" in estimate.kl(held, method=method).verdict
        assert estimate.kl(held, method=K1()).verdict == ""
        assert estimate.kl(ratios(0.3, 1000, seed=seed)).verdict == ""


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.2])
def test_the_shape_of_a_pareto_tail(shape):
    """The tail has 3 √40000 = 600 numbers: its maximum likelihood shape has a standard error of (1 + k)/√600."""
    u = torch.rand(40_000, generator=seeded(), dtype=torch.float64)
    assert pareto_shape(u**-shape) == pytest.approx(shape, abs=4 * (1 + shape) / math.sqrt(600))
    assert pareto_shape(torch.ones(1000)) == pareto_shape(torch.randn(20)) == -math.inf


@pytest.mark.slow
@pytest.mark.parametrize("n", [100_000, 1_000_000])
@pytest.mark.parametrize("drawn_from", ["p", "q"])
def test_no_bias_hides_at_a_hundred_thousand_draws_and_a_million(n, drawn_from):
    for method in (K1(), K1(self_normalised=True), K3(), Regressed()):
        found = estimate.kl(ratios(0.5, n, drawn_from), method=method)
        assert abs(found.raw - 0.125) < 4 * found.stderr < 4 / math.sqrt(n)
    # the mean of ½ s² for s = x/2 - 1/8 is (1/4 + 1/64)/2
    second = estimate.kl(ratios(0.5, n), method=K2())
    assert abs(second.raw - 0.1328125) < 4 * second.stderr < 4 / math.sqrt(n)


def test_bounds_of_mixtures_by_the_formulas_of_their_source():
    """Hershey & Olsen 2007, (20) and (18), and Durrieu, Thiran & Kelly 2012, written out with the KL of Normals."""
    pi, mu, s = (0.3, 0.7), (-1.0, 1.5), (0.5, 1.0)
    om, nu, t = (0.6, 0.4), (0.0, 2.0), (1.5, 0.8)

    def of(m, a, v, b):
        return math.log(b / a) + (a * a + (m - v) ** 2) / (2 * b * b) - 0.5

    def overlap(m, a, v, b):
        return math.exp(-((m - v) ** 2) / (2 * (a * a + b * b))) / math.sqrt(2 * math.pi * (a * a + b * b))

    p, q = (
        MixtureSameFamily(
            Categorical(torch.tensor(w, dtype=torch.float64)),
            Normal(torch.tensor(m, dtype=torch.float64), torch.tensor(a, dtype=torch.float64)),
        )
        for w, m, a in ((pi, mu, s), (om, nu, t))
    )
    near = lower = product = 0.0
    for w, m, a in zip(pi, mu, s, strict=True):
        within = sum(u * math.exp(-of(m, a, v, b)) for u, v, b in zip(pi, mu, s, strict=True))
        across = sum(u * math.exp(-of(m, a, v, b)) for u, v, b in zip(om, nu, t, strict=True))
        met = sum(u * overlap(m, a, v, b) for u, v, b in zip(om, nu, t, strict=True))
        own = sum(u * overlap(m, a, v, b) for u, v, b in zip(pi, mu, s, strict=True))
        near += w * math.log(within / across)
        product += w * math.log(own / met)
        lower += w * (math.log(within) - 0.5 * math.log(2 * math.pi * math.e * a * a) - math.log(met))

    values = {side: estimate.kl(p, q, method=MixtureBound(side)).raw for side in ("approximation", "product", "lower")}
    assert values["approximation"] == pytest.approx(near, rel=1e-12)
    assert values["product"] == pytest.approx(product, rel=1e-12)
    assert values["lower"] == pytest.approx(lower, rel=1e-12)
    # the upper bound: any weights φ give Σ φ log(φ/ψ) + Σ φ KL(f‖g) with ψ_ab = ω_b φ_ab / Σ_a φ_ab; a fine grid
    share = torch.linspace(1e-9, 1.0 - 1e-9, 801, dtype=torch.float64)
    first, second = torch.meshgrid(0.3 * share, 0.7 * share, indexing="ij")
    phi = torch.stack([torch.stack([first, 0.3 - first]), torch.stack([second, 0.7 - second])])
    psi = torch.tensor(om, dtype=torch.float64)[None, :, None, None] * phi / phi.sum(0, keepdim=True)
    kls = torch.tensor(
        [[of(m, a, v, b) for v, b in zip(nu, t, strict=True)] for m, a in zip(mu, s, strict=True)], dtype=torch.float64
    )
    best = float((phi * ((phi / psi).log() + kls[:, :, None, None])).sum((0, 1)).min())
    assert estimate.kl(p, q, method=MixtureBound("upper")).raw == pytest.approx(best, abs=1e-5)


def test_monte_carlo_repeats_and_leaves_the_global_state_alone():
    p, q = Normal(0.0, 1.0), Normal(1.0, 2.0)
    before = torch.random.get_rng_state()
    first = estimate.kl(p, q, method=MonteCarlo(2000), generator=seeded())
    assert torch.equal(before, torch.random.get_rng_state())
    assert estimate.kl(p, q, method=MonteCarlo(2000), generator=seeded()) == first
    assert estimate.kl(p, q, method=MonteCarlo(2000), generator=seeded(1)).value != first.value
    truth = math.log(2) + 2 / 8 - 0.5
    assert abs(first.value - truth) < 4 * first.stderr < 0.1


def test_monte_carlo_of_joint_distributions_and_of_supports():
    p = MultivariateNormal(torch.zeros(3), torch.eye(3))
    q = MultivariateNormal(torch.ones(3), 2 * torch.eye(3))
    truth = 0.5 * (3 / 2 + 3 / 2 - 3 + 3 * math.log(2))
    found = estimate.kl(p, q, generator=seeded())
    assert abs(found.value - truth) < 4 * found.stderr < 0.1
    assert estimate.kl(Normal(0.0, 1.0), Exponential(1.0), generator=seeded()).value == math.inf
    back = estimate.kl(Exponential(1.0), Normal(0.0, 1.0), generator=seeded())
    assert abs(back.value - (0.5 * math.log(2 * math.pi) + 1.0 - 1.0)) < 4 * back.stderr  # -1 + log√2π + E x²/2
    assert back.method == MonteCarlo(10_000, K1())


def test_tails_that_draws_do_not_reach_are_named():
    """Normal against t3: under p, q/p has mean 1 but no variance, and no draw sees all of it."""
    p, q = Normal(0.0, 1.0), StudentT(3.0)
    found = estimate.kl(p, q, method=MonteCarlo(100_000), generator=seeded())
    assert abs(found.value - 0.06915159848517566) < 4 * found.stderr < 0.01
    for term in (K3(), Regressed()):  # at this seed both read too low by more than they admit; not at every seed
        low = estimate.kl(p, q, method=MonteCarlo(100_000, term), generator=seeded(1))
        assert low.value < 0.069 - 4 * low.stderr
        assert "q has mass that" in low.verdict


def test_q_with_mass_where_p_has_none_rules_the_control_variate_out():
    """Under p, q/p averages Q(support of p): 1/2 for Exponential against Normal, so k3 would be wrong by a half."""
    p, q = Exponential(torch.tensor(1.0).double()), Normal(torch.tensor(0.0).double(), 1.0)
    for term in (K3(), Regressed()):
        with pytest.raises(FormError, match="K1"):
            estimate.kl(p, q, method=MonteCarlo(1000, term), generator=seeded())
    x = torch.empty(5000, dtype=torch.float64).exponential_(generator=seeded())
    held = LogRatios(p.log_prob(x), q.log_prob(x), drawn_from="p")
    assert "where it should be 1" in estimate.kl(held, method=K3()).verdict
    assert estimate.kl(held, method=K1()).verdict == ""


def two_modes(separation=1.0):
    return MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7]).double()),
        Normal(torch.tensor([-separation, separation]).double(), torch.tensor([0.5, 1.0]).double()),
    )


def test_bounds_of_mixtures_hold_around_quadrature():
    p, q = two_modes(2.0), two_modes(1.0)
    x = torch.linspace(-14, 14, 200_001, dtype=torch.float64)
    truth = float(torch.trapezoid(p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)), x))
    bound = {side: estimate.kl(p, q, method=MixtureBound(side)) for side in ("lower", "upper", "approximation")}
    assert bound["lower"].raw < truth < bound["upper"].value
    assert bound["lower"].interval() == (max(bound["lower"].raw, 0.0), math.inf)
    assert bound["upper"].interval() == (0.0, bound["upper"].value)
    assert abs(bound["approximation"].value - truth) < 0.5 * truth
    assert [bound[side].bias for side in ("lower", "upper")] == ["lower bound", "upper bound"]
    # the optimised weights are better than the plain convexity bound Σ π_a ω_b KL(f_a‖g_b), and tight for p = q
    assert estimate.kl(p, q, method=MixtureBound("upper", iterations=0)).value > bound["upper"].value
    assert estimate.kl(p, p, method=MixtureBound("upper")).value == pytest.approx(0.0, abs=1e-6)
    assert estimate.kl(p, p, method=MixtureBound("approximation")).value == pytest.approx(0.0, abs=1e-12)


def test_bounds_of_single_normals():
    p, q = Normal(0.0, 1.0), Normal(1.0, 2.0)
    truth = math.log(2) + 2 / 8 - 0.5
    assert estimate.kl(p, q, method=MixtureBound("upper")).value == pytest.approx(truth, rel=1e-6)
    assert estimate.kl(p, q, method=MixtureBound("approximation")).value == pytest.approx(truth, rel=1e-6)
    # -H(p) - log ∫ p q, the latter the density of N(0, 1 + 4) at the difference of the means
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    lower = -entropy + 0.5 * math.log(2 * math.pi * 5) + 1 / 10
    assert estimate.kl(p, q, method=MixtureBound("lower")).raw == pytest.approx(lower, rel=1e-6)
    joint = MultivariateNormal(torch.zeros(2), torch.eye(2)), MultivariateNormal(torch.ones(2), 4 * torch.eye(2))
    sides = [Independent(Normal(torch.zeros(2), 1.0), 1), Independent(Normal(torch.ones(2), 2.0), 1)]
    for pair in (joint, sides):
        assert estimate.kl(*pair, method=MixtureBound("lower")).raw == pytest.approx(2 * lower, rel=1e-5)
        assert estimate.kl(*pair, method=MixtureBound("upper")).value == pytest.approx(2 * truth, rel=1e-5)


def test_product_approximation_is_no_bound():
    """Hershey & Olsen's: log of the ratio of overlaps. Two unit Normals Δ apart give Δ²/4, half of the truth."""
    p, q = Normal(torch.tensor(0.0).double(), 1.0), Normal(torch.tensor(1.0).double(), 1.0)
    found = estimate.kl(p, q, method=MixtureBound("product"))
    assert found.value == pytest.approx(0.25, rel=1e-12)
    assert math.isnan(found.stderr)
    assert found.bias == "an approximation, either sign"
    wide = Normal(torch.tensor(0.0).double(), 3.0)
    # ∫ p² = 1/√(4π·9), ∫ p q = 1/√(2π·10): the logarithm of their ratio is below 0, which no KL is
    value = estimate.kl(wide, p, method=MixtureBound("product")).raw
    assert value == pytest.approx(0.5 * math.log(10 / 18), rel=1e-12)
    p, q = two_modes(2.0), two_modes(1.0)
    overlap = {}
    for name, r in (("z", p), ("t", q)):
        x = torch.linspace(-14, 14, 200_001, dtype=torch.float64)
        component = p.component_distribution.log_prob(x.unsqueeze(-1)).exp()
        overlap[name] = torch.trapezoid(component * r.log_prob(x).exp().unsqueeze(-1), x, dim=0)
    truth = (p.mixture_distribution.probs * (overlap["z"] / overlap["t"]).log()).sum().item()
    assert estimate.kl(p, q, method=MixtureBound("product")).value == pytest.approx(truth, rel=1e-9)


def test_bounds_of_components_that_only_kullback_measures():
    """Student's components by quadrature, Poisson with both parameters cached, components out of reach."""
    weights = Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64))
    p = MixtureSameFamily(weights, StudentT(torch.tensor([3.0, 5.0]).double(), torch.tensor([-1.0, 1.0]).double()))
    q = StudentT(torch.tensor(4.0).double())
    upper, near = (estimate.kl(p, q, method=MixtureBound(side)).raw for side in ("upper", "approximation"))
    first, second = (StudentT(torch.tensor(v).double(), torch.tensor(m).double()) for v, m in ((3.0, -1.0), (5.0, 1.0)))
    across = [kl(first, q).item(), kl(second, q).item()]
    assert upper == pytest.approx(0.3 * across[0] + 0.7 * across[1], rel=1e-9)
    assert kl(p, q).item() < upper
    within = [0.3 + 0.7 * math.exp(-kl(first, second).item()), 0.7 + 0.3 * math.exp(-kl(second, first).item())]
    truth = 0.3 * (math.log(within[0]) + across[0]) + 0.7 * (math.log(within[1]) + across[1])
    assert near == pytest.approx(truth, rel=1e-9)
    success = Geometric(torch.tensor([0.3, 0.6]).double())
    assert success.logits is not None
    p = MixtureSameFamily(weights, success)
    assert estimate.kl(p, p, method=MixtureBound("upper")).value == pytest.approx(0.0, abs=1e-6)


def test_upper_bound_with_components_out_of_reach():
    """A Uniform inside another has a KL to it and none the other way: only pairs within reach are matched."""
    half = Categorical(torch.tensor([0.5, 0.5]).double())
    ends = torch.tensor([0.0, 10.0]).double()
    p = MixtureSameFamily(half, Uniform(ends, ends + 1.0, validate_args=False), validate_args=False)
    q = MixtureSameFamily(half, Uniform(ends - 0.5, ends + 1.5, validate_args=False), validate_args=False)
    assert estimate.kl(p, q, method=MixtureBound("upper")).value == pytest.approx(math.log(2.0), rel=1e-12)
    assert estimate.kl(q, p, method=MixtureBound("upper")).value == math.inf
    one = Uniform(torch.tensor(0.0).double(), 1.0)
    assert estimate.kl(one, q, method=MixtureBound("upper")).value == pytest.approx(math.log(4.0), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: estimate.kl(torch.zeros(3), torch.zeros(3)), "Samples(p)"),
        (lambda: estimate.kl(Probs([0.5, 0.5]), Probs([0.5, 0.5])), "Write kl(p, q)"),
        (lambda: estimate.kl(Samples([1.0]), Counts([1])), "Counts on both sides"),
        (lambda: estimate.kl(Samples([1.0])), "q is missing"),
        (
            lambda: estimate.kl(Samples([1.0]), Samples([2.0]), method=PLUG_IN),
            "NearestNeighbours(), DonskerVaradhanBound()",
        ),
        (lambda: estimate.kl(LogRatios([0.0], [0.0], "p"), method=K1), "the class K1"),
        (lambda: estimate.kl(LogRatios([0.0], [0.0], "p"), Samples([1.0])), "LogRatios hold both sides"),
        (lambda: estimate.kl(Normal(torch.zeros(2), 1.0), Normal(0.0, 1.0), generator=seeded()), "batch"),
        (
            lambda: estimate.kl(Normal(0.0, 1.0), MultivariateNormal(torch.zeros(2), torch.eye(2)), generator=seeded()),
            "event shape",
        ),
        (lambda: MonteCarlo(1), "at least 2 draws"),
        (lambda: LogRatios([0.0], [0.0, 1.0], "p"), "equal shapes"),
        (lambda: LogRatios([], [], "p"), "at least one draw"),
        (lambda: LogRatios([math.nan], [0.0], "p"), "log_p is nan at draw 0"),
        (lambda: LogRatios([-math.inf], [0.0], "p"), "draw 0 has log-density -inf under p"),
        (lambda: LogRatios([0.0], [0.0], "r"), "drawn_from is 'r'"),
        (lambda: Samples([[1.0], [math.nan]]), "row 1 holds nan in column 0"),
        (lambda: Samples([]), "at least one draw"),
        (lambda: Samples(torch.zeros(2, 2, 2)), "(n, d)"),
        (lambda: Samples([[1.0], [1.0, 2.0]]), "rectangle of numbers"),
        (lambda: Counts([1, -1]), "category 1 holds -1"),
        (lambda: Counts([0.5, 0.5]), "Write Probs(x)"),
        (lambda: Counts([0, 0]), "every count is 0"),
        (lambda: Counts([[1, 2]]), "(B,)"),
        (lambda: MixtureBound("middle"), "'upper', 'lower'"),
        (lambda: estimate.kl(LogRatios([0.0], [0.0], "p")).interval(1.0), "between 0 and 1"),
        (lambda: estimate.kl(LogRatios([0.0], [0.0], "p"), base=1), "base=2 for bits"),
    ],
)
def test_errors_say_what_to_write(call, words):
    with pytest.raises(FormError) as error:
        call()
    assert words in str(error.value)


PLUG_IN = estimate.PlugIn()


def test_what_a_tail_is_fitted_to():
    """The largest min(n/5, 3 √n) of the distances from the mean, 20 at least; none where they are all alike."""
    heavy = torch.arange(1.0, 101.0, dtype=torch.float64) ** 8
    assert pareto_shape(heavy) > -math.inf  # a fifth of 100 is 20
    assert pareto_shape(heavy[:99]) == -math.inf
    assert pareto_shape(torch.ones(1000)) == -math.inf
    one = torch.zeros(100, dtype=torch.float64)
    one[0] = 100.0
    assert pareto_shape(one) > 1.0  # one number far from the others, which are all alike, is as heavy as can be
    assert pareto_shape(torch.tensor([math.inf] + [0.0] * 99)) == -math.inf
