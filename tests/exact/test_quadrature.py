"""What was wrong, refused or NaN in integrals and sums: supports, overflow, infinities, kinks, second gradients."""

import dataclasses
import math

import pytest
import torch
import torch.distributions as td
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

import kullback as kb
from kullback import Density, NoExactMethod, ToleranceError, divergences, exact, kl
from kullback.core import generators
from kullback.core.reduction import GeneratorSum
from kullback.exact import quadrature, summation


def t(x, grad=False):
    return torch.tensor(x, dtype=torch.float64, requires_grad=grad)


def normal(loc=0.0, scale=1.0):
    return td.Normal(t(loc), t(scale))


SIGMOID = td.SigmoidTransform()
UNIT = td.Uniform(t(0.0), t(1.0))
LOGISTIC = td.TransformedDistribution(UNIT, [SIGMOID.inv])


def logit(base):
    return td.TransformedDistribution(base, [SIGMOID.inv])


def sigmoid(base):
    return td.TransformedDistribution(base, [SIGMOID])


VALUES = {
    "an end at infinity that torch clamps": (normal(), LOGISTIC, 0.193179833490),
    "logit of Beta": (normal(), logit(td.Beta(t(2.0), t(3.0))), 0.126450733745),
    "an inverse transform on the left": (LOGISTIC, normal(0.0, 2.0), 0.0233192304767),
    "logarithm of Gamma": (
        td.TransformedDistribution(td.Gamma(t(2.0), t(1.0)), [td.ExpTransform().inv]),
        normal(0.0, 2.0),
        0.560614466568,
    ),
    "a log_prob that overflows": (
        LogitRelaxedBernoulli(t(0.5), t(0.3)),
        LogitRelaxedBernoulli(t(2.0), t(0.6)),
        3.18997114679,
    ),
    "the same in the unit interval": (
        td.RelaxedBernoulli(t(0.5), t(0.3)),
        td.RelaxedBernoulli(t(2.0), t(0.6)),
        3.18997114679,
    ),
    "mass beyond the last float below 1": (sigmoid(normal(0.0, 20.0)), td.Beta(t(0.1), t(0.1)), 0.169003388401),
    "a squashed policy": (
        td.TransformedDistribution(normal(0.0, 5.0), [td.TanhTransform()]),
        td.Uniform(t(-1.0), t(1.0)),
        4.38710243614,
    ),
    "two singular ends": (td.Beta(t(0.5), t(0.5)), td.Kumaraswamy(t(0.5), t(0.5)), 0.00501625748883),
    "mass below the smallest float": (td.Gamma(t(0.01), t(1.0)), td.Weibull(t(1.0), t(0.02)), 0.63787285076),
    "very singular ends": (td.Kumaraswamy(t(0.1), t(0.1)), td.Beta(t(0.2), t(0.2)), 0.40603442604),
    "infinite degrees of freedom": (td.StudentT(t(math.inf)), normal(), 0.0),
}


@pytest.mark.parametrize("name", VALUES)
def test_finite_values_are_found(name):
    p, q, truth = VALUES[name]
    assert kl(p, q).item() == pytest.approx(truth, rel=1e-9, abs=1e-14)


def test_a_student_near_its_normal_is_answered():
    """KL(N‖t_ν) = 7/(4ν²)·... is 1.75e-16 at ν = 1e8, below what float64 tells of the two log-densities."""
    assert 0.0 <= kl(normal(), td.StudentT(t(1e8))).item() < 1e-15
    by_quadrature = kl(td.StudentT(t(math.inf)), td.Laplace(t(0.3), t(1.2))).item()
    assert by_quadrature == pytest.approx(kl(normal(), td.Laplace(t(0.3), t(1.2))).item(), rel=1e-9)


def test_entropies_of_transformed_distributions():
    assert kb.entropy(LOGISTIC).item() == pytest.approx(2.0, rel=1e-9)
    assert kb.entropy(td.RelaxedBernoulli(t(0.5), t(0.3))).item() == pytest.approx(-0.750485927746, rel=1e-9)


def _neyman_terms(cells, _):
    turned = generators.chi2(generators.Cells(cells.q, cells.p, -cells.d, cells.log_q))
    return generators.Terms(turned.value, turned.dlogq, turned.dlogp)


NEYMAN = generators.Generator("neyman", _neyman_terms, at_q_zero=1.0)
TOLD = dataclasses.replace(NEYMAN, power=generators.Power(-1.0, 1.0), tail=generators.Tail(2.0))


def row(generator):
    return dataclasses.replace(divergences.CHI2, family="neyman", sums=(GeneratorSum(generator),))


POISSON = td.Poisson(t(1.0)), td.Poisson(t(12.0))
GEOMETRIC = td.Geometric(t(0.5)), td.Geometric(t(0.29))


@pytest.mark.parametrize("pair", [POISSON, GEOMETRIC, (normal(), normal(20.0))], ids=lambda p: type(p[0]).__name__)
def test_a_divergence_of_unknown_growth_is_refused(pair):
    with pytest.raises(NoExactMethod, match="how neyman grows"):
        kb.measure(row(NEYMAN), *pair)


def test_a_divergence_that_says_how_it_grows_is_right():
    assert kb.measure(row(TOLD), *POISSON).item() == pytest.approx(math.expm1(121.0), rel=1e-12)
    assert summation.add_up(row(TOLD).sums, *POISSON)[0].item() == pytest.approx(math.expm1(121.0), rel=1e-9)
    assert kb.measure(row(TOLD), *GEOMETRIC).item() == math.inf  # Σ q²/p: 0.71² / 0.5 > 1
    for sums in (row(TOLD).sums, divergences.CHI2.sums):  # e^400, of terms that overflow
        found = quadrature.integrate(sums, normal(20.0), normal())[0]
        assert found.item() == pytest.approx(math.expm1(400.0), rel=1e-9)


def test_a_copy_of_a_row_behaves_as_the_row():
    copy = dataclasses.replace(divergences.JEFFREYS)
    for pair in ((normal(), normal(1.0, 2.0)), (normal(), td.StudentT(t(3.0)))):
        assert kb.measure(copy, *pair).item() == kb.jeffreys(*pair).item()


INDEPENDENT = [
    (
        td.Independent(td.Normal(t([0.0, 1.0]), t([1.0, 2.0])), 1),
        td.Independent(td.Normal(t([0.5, 1.0]), t([2.0, 1.0])), 1),
    ),
    (
        td.Independent(td.Gamma(t([2.0, 3.0]), t([1.0, 2.0])), 1),
        td.Independent(td.Gamma(t([1.0, 3.5]), t([2.0, 1.0])), 1),
    ),
    (td.Independent(td.Laplace(t([0.0]), t([1.0])), 1), td.Independent(td.Normal(t([0.5]), t([1.5])), 1)),
    (
        td.MultivariateNormal(t([0.0, 1.0]), t([[2.0, 0.5], [0.5, 1.0]])),
        td.MultivariateNormal(t([0.5, 1.0]), t([[1.0, 0.2], [0.2, 1.5]])),
    ),
]


@pytest.mark.parametrize(("p", "q"), INDEPENDENT, ids=lambda d: type(getattr(d, "base_dist", d)).__name__)
def test_orders_zero_and_one_are_kl_on_vectors(p, q):
    for value in (kb.renyi(p, q, 1.0), kb.alpha(p, q, 1.0), kb.tsallis(p, q, 1.0)):
        assert value.item() == pytest.approx(kl(p, q).item(), rel=1e-12)
    assert kb.alpha(p, q, 0.0).item() == pytest.approx(kl(q, p).item(), rel=1e-12)


def test_tsallis_follows_the_closed_affinities():
    p, q = td.Gamma(t(2.0), t(1.5)), td.Gamma(t(3.25), t(0.75))
    assert kb.explain(p, q, divergence=divergences.tsallis(0.5)).method.startswith("closed form, log-affinity")
    assert kb.tsallis(p, q, 0.5).item() == pytest.approx(0.5 * kb.alpha(p, q, 0.5).item(), rel=1e-12)
    for divergence in (divergences.skew(0.3), divergences.TRIANGULAR):  # bounded: never infinite
        assert 0.0 < kb.measure(divergence, td.Cauchy(t(0.0), t(1.0)), normal()).item() < divergence.upper


def hessian(f, *leaves):
    slopes = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
    return slopes, [torch.autograd.grad(s, leaves, retain_graph=True) for s in slopes]


def test_kinks_keep_their_term_in_the_second_derivative():
    for divergence, q, truth in ((kb.kl, td.StudentT(t(3.0)), 0.597079), (kb.js, normal(), 0.156922)):
        _, ((found,),) = hessian(lambda a, f=divergence, q=q: f(td.Laplace(a, t(1.2)), q), t(0.3, grad=True))
        assert found.item() == pytest.approx(truth, abs=1e-6)


def test_total_variation_keeps_the_term_of_its_crossings():
    """TV(N(a,1), N(b,1)) = erf(δ / 2√2), with derivatives φ(δ/2) and -δ/4 φ(δ/2) in δ = b - a."""
    leaves = t(0.0, grad=True), t(1.0, grad=True)
    slopes, second = hessian(lambda a, b: kb.tv(td.Normal(a, t(1.0)), td.Normal(b, t(1.0))), *leaves)
    density = math.exp(-1 / 8) / math.sqrt(2.0 * math.pi)
    assert slopes[1].item() == pytest.approx(density, rel=1e-9)
    assert second[1][1].item() == pytest.approx(-density / 4.0, rel=1e-8)
    assert second[0][1].item() == pytest.approx(density / 4.0, rel=1e-8)


def test_an_end_that_lies_on_the_other_ones_end_keeps_its_slope():
    """Moving q's end away from p's takes q's mass out of p's reach; by finite differences on the open side."""
    p = td.InverseGamma(t(3.0), t(2.0))

    def f(loc):
        return kl(p, td.GeneralizedPareto(loc, t(1.0), t(0.3), validate_args=False))

    (slope,), ((curvature,),) = hessian(f, t(0.0, grad=True))
    h = 1e-3
    near, far = f(t(-h)).item(), f(t(-2.0 * h)).item()
    assert slope.item() == pytest.approx((3.0 * f(t(0.0)).item() - 4.0 * near + far) / (2.0 * h), rel=1e-5)
    assert curvature.item() == pytest.approx((f(t(0.0)).item() - 2.0 * near + far) / h**2, rel=2e-3)


GUMBEL = [
    ("kl", td.StudentT(t(3.0)), (0.440442, 0.087594)),
    ("kl", td.Cauchy(t(0.0), t(1.0)), (0.335558, -0.137551)),
    ("js", td.StudentT(t(3.0)), (0.106180, -0.012329)),
    ("tv", td.StudentT(t(3.0)), (0.299138, 0.064183)),
    ("hellinger", td.StudentT(t(3.0)), (0.219827, -0.051602)),
]


@pytest.mark.parametrize(("verb", "q", "truth"), GUMBEL, ids=lambda x: x if isinstance(x, str) else None)
def test_gradients_of_a_density_that_underflows_twice_over_are_finite(verb, q, truth):
    leaves = t(0.3, grad=True), t(1.2, grad=True)
    slopes, second = hessian(lambda a, b: getattr(kb, verb)(td.Gumbel(a, b), q), *leaves)
    assert [s.item() for s in slopes] == pytest.approx(truth, abs=1e-6)
    assert all(torch.isfinite(x) for line in second for x in line)


MADE = {
    "Normal": (0.3, 1.2),
    "StudentT": (3.0, 0.1, 1.1),
    "Cauchy": (0.1, 0.9),
    "Gumbel": (0.3, 1.2),
    "Laplace": (0.2, 0.8),
    "InverseGamma": (3.0, 2.0),
    "Exponential": (0.7,),
    "Weibull": (1.1, 1.7),
    "HalfNormal": (1.3,),
    "HalfCauchy": (0.8,),
    "GeneralizedPareto": (0.0, 1.0, 0.3),
    "Chi2": (3.0,),
}
SECOND = [
    ("kl", "Normal", "StudentT"),
    ("kl", "Normal", "Cauchy"),
    ("kl", "Gumbel", "Laplace"),
    *(("kl", "InverseGamma", q) for q in ("Exponential", "Weibull", "HalfNormal", "HalfCauchy", "Chi2")),
    ("kl", "InverseGamma", "GeneralizedPareto"),
    ("kl", "Weibull", "HalfCauchy"),
    ("kl", "HalfNormal", "InverseGamma"),
    ("kl", "HalfNormal", "HalfCauchy"),
    ("js", "Normal", "StudentT"),
    ("jeffreys", "Normal", "StudentT"),
]


@pytest.mark.parametrize(("verb", "p", "q"), SECOND)
def test_second_gradients_are_finite_and_symmetric(verb, p, q):
    leaves = [t(x, grad=True) for x in (*MADE[p], *MADE[q])]
    count = len(MADE[p])

    def f(*x):
        left, right = (getattr(td, d)(*y, validate_args=False) for d, y in ((p, x[:count]), (q, x[count:])))
        return getattr(kb, verb)(left, right)

    _, lines = hessian(f, *leaves)
    found = torch.stack([torch.stack(line) for line in lines])
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, found.T, rtol=1e-8, atol=1e-9 * found.abs().max().item())


def test_infinities_come_from_mass_or_from_tails():
    """∫ p(0) b/x dx diverges like a logarithm; a light tail against a lighter one does not; JS never does."""
    gap = Density(lambda x: torch.where(x.abs() > 1.0, 0.5 * (1.0 - x.abs()) - math.log(4.0), -math.inf))
    assert kl(td.HalfNormal(t(1.3)), td.InverseGamma(t(3.0), t(2.0))).item() == math.inf
    assert kl(td.Laplace(t(0.0), t(1.0)), td.Gumbel(t(0.0), t(0.9))).item() == math.inf
    assert math.isfinite(kl(td.Laplace(t(0.0), t(1.0)), td.Gumbel(t(0.0), t(1.1))).item())
    assert kl(normal(), gap).item() == math.inf
    assert kb.js(td.Cauchy(t(0.0), t(1.0)), td.Uniform(t(2.0), t(3.0))).item() < math.log(2.0)
    with pytest.raises(ToleranceError, match="returns NaN"):
        kl(normal(), Density(lambda x: torch.log(x)))


def test_js_of_multinomials_is_summed_over_their_outcomes():
    p, q = td.Multinomial(3, t([0.3, 0.7])), td.Multinomial(3, t([0.5, 0.5]))
    pmf = [[math.comb(3, k) * w**k * (1.0 - w) ** (3 - k) for k in range(4)] for w in (0.3, 0.5)]
    parts = [sum(x * math.log(2.0 * x / (x + y)) for x, y in zip(*two, strict=True)) for two in (pmf, pmf[::-1])]
    assert kb.js(p, q).item() == pytest.approx(0.5 * sum(parts), rel=1e-12)
    assert kb.js(p, td.Multinomial(2, t([0.5, 0.5])), base=2).item() == pytest.approx(1.0)
    probs = t([0.2, 0.3, 0.5], grad=True)
    other = td.Multinomial(4, t([0.3, 0.3, 0.4]))
    torch.autograd.gradcheck(lambda w: kb.tv(td.Multinomial(4, w / w.sum(), validate_args=False), other), probs)


def test_the_error_for_vectors_names_a_call_that_works():
    torch.manual_seed(0)
    p, q = (td.Independent(td.Normal(t([0.0, shift]), t([1.0, scale])), 1) for shift, scale in ((0.0, 1.0), (1.0, 1.5)))
    n = 400_000
    truths = {"tv": None, "js": None, "hellinger": kb.hellinger(p, q).item()}
    for verb, truth in truths.items():
        divergence = divergences.js(0.5) if verb == "js" else getattr(divergences, verb.upper())
        if truth is None:
            with pytest.raises(NoExactMethod, match=r"x = p\.sample"):
                kb.measure(divergence, p, q)
        one, other = normal(), normal(1.0, 1.5)  # the second axis alone differs
        truth = kb.measure(divergence, one, other).item()
        *before, last = exact.ladder.estimator(divergence, p, q).partition("write ")[2].split("; ")
        names = {"p": p, "q": q, "n": n, "torch": torch}
        exec("; ".join(before), names)
        assert eval(last, names).item() == pytest.approx(truth, abs=5e-3)


@pytest.mark.parametrize("n", [400, 700, 900])
def test_the_bound_on_what_lies_below_holds(n):
    p, q = td.Poisson(t(1000.0)), td.NegativeBinomial(t(1000.0), t(0.5))
    below = summation.bound_below(divergences.KL.sums, p, q, n).item()
    x = torch.arange(n, dtype=torch.float64)
    log_p, log_q = summation.log_mass(p, x), summation.log_mass(q, x)
    assert below >= (log_p.exp() * (log_p - log_q) - log_p.exp() + log_q.exp()).sum().item()
    assert below < 1.0 or n == 900


LONG = [
    (td.Poisson(t(1e6)), td.NegativeBinomial(t(1e6), t(0.5)), 0.0965735796951),
    (td.NegativeBinomial(t(0.5), t(0.9999)), td.NegativeBinomial(t(1.5), t(0.999)), 2.29991134768),
]


@pytest.mark.parametrize(("p", "q", "truth"), LONG, ids=["Poisson", "NegativeBinomial"])
def test_long_sums(p, q, truth):
    assert kl(p, q).item() == pytest.approx(truth, rel=1e-10)


def test_what_explain_says_is_what_happens():
    p, q = normal(), td.StudentT(t(3.0))
    for divergence in (divergences.KL, divergences.js(0.3), divergences.renyi(2.0)):
        decision, plan = exact.decide(divergence, p, q), kb.explain(p, q, divergence=divergence)
        assert (plan.divergence, plan.method, plan.error) == (divergence.name, decision.method, decision.error)
        assert decision.value().item() == kb.measure(divergence, p, q).item()


TINY = {
    "Laplace‖Normal": (lambda s: td.Laplace(t(0.0), s), normal(), lambda s: -1.0 - math.log(2.0) + HALF_LOG_2PI),
    "Normal‖Cauchy": (lambda s: td.Normal(t(0.0), s), td.Cauchy(t(0.0), t(1.0)), lambda s: NORMAL_TO_CAUCHY),
    "Normal‖StudentT": (lambda s: td.Normal(t(0.0), s), td.StudentT(t(3.0)), lambda s: NORMAL_TO_T3),
    "Uniform‖Normal": (lambda s: td.Uniform(-s, s), normal(), lambda s: HALF_LOG_2PI - math.log(2.0)),
    "Gumbel‖Normal": (lambda s: td.Gumbel(t(0.0), s), normal(), lambda s: HALF_LOG_2PI - 1.0 - 0.5772156649015329),
}
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
NORMAL_TO_CAUCHY = math.log(math.pi) - HALF_LOG_2PI - 0.5
NORMAL_TO_T3 = math.log(math.pi * math.sqrt(3.0) / 2.0) - HALF_LOG_2PI - 0.5


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("scale", [1e-140, 1e-200, 1e-300])
def test_a_width_whose_square_underflows_has_its_number(name, scale):
    """KL is -entropy - log q(0), to all digits; and its slope in the scale is -1/scale."""
    make, q, constant = TINY[name]
    s = t(scale, grad=True)
    value = kl(make(s), q)
    assert value.item() == pytest.approx(constant(scale) - math.log(scale), rel=1e-11)
    (slope,) = torch.autograd.grad(value, s)
    assert slope.item() * scale == pytest.approx(-1.0, rel=1e-8)


def peak(order, log_p, log_q, at, curvature):
    """Laplace's method: log ∫ p^a q^(1-a) to O(1/a), from one peak of log p - log q, and of what surrounds it."""
    height = order * log_p(at) + (1.0 - order) * log_q(at)
    return (height + 0.5 * math.log(2.0 * math.pi / (order * curvature))) / (order - 1.0)


@pytest.mark.parametrize("order", [1e4, 1e6, 1e9, 1e12])
def test_narrow_peaks_of_a_high_order_are_found(order):
    """N(0,1)‖Laplace(1,2): log p - log q is highest at -1/2. Two peaks, of N‖t3 at ±1, count twice."""

    def log_normal(x):
        return -0.5 * x * x - HALF_LOG_2PI

    value = kb.renyi(normal(), td.Laplace(t(1.0), t(2.0)), order)
    x = -0.5 * (order - 1.0) / order  # where the slope -a x + (a-1)(-1/2) is 0
    exact_value = peak(order, log_normal, lambda x: -abs(x - 1.0) / 2.0 - math.log(4.0), x, 1.0)
    assert value.item() == pytest.approx(exact_value, rel=1e-11)
    value = kb.renyi(normal(), td.StudentT(t(3.0)), order)
    limit = 0.15731446131
    rest = math.log(2.0 * math.sqrt(2.0 * math.pi / order)) + log_normal(1.0)
    assert value.item() == pytest.approx(limit + rest / order, abs=20.0 / order + 1e-10)


@pytest.mark.parametrize("order", [1.1e12, 1e16, 1e308])
@pytest.mark.parametrize("q", [td.Normal(t(1.0), t(1.0)), td.Laplace(t(0.0), t(1.0)), td.Cauchy(t(0.0), t(1.0))])
def test_orders_beyond_double_precision_are_refused(order, q):
    """N(0,1)‖N(1,1) of order 1e16 was infinite, not 5e15."""
    with pytest.raises(kb.FormError, match=r"orders up to 1e\+12 keep their digits"):
        kb.renyi(normal(), q, order)
    assert kb.renyi(normal(), normal(1.0), 1e12).item() == pytest.approx(5e11, rel=1e-12)


def test_what_is_over_classes_is_not_advised_to_be_drawn():
    for p, q in ((kb.Logits(t([0.0, 1.0])), normal()), (normal(), kb.Logits(t([0.0, 1.0])))):
        with pytest.raises(NoExactMethod, match="One is over classes and the other is not") as refused:
            kl(p, q)
        assert "MonteCarlo" not in str(refused.value)
    vectors = td.Independent(td.Normal(t([0.0, 0.0]), t([1.0, 1.0])), 1)
    with pytest.raises(NoExactMethod, match=r"Their draws have shapes \(2,\) and \(\)") as refused:
        kl(vectors, td.Normal(t([0.0, 0.0]), t([1.0, 1.0])))
    assert "MonteCarlo" not in str(refused.value)


def counted(monkeypatch):
    """How many places are read."""
    seen = []
    logs = quadrature.Integrand.logs

    def read(self, piece, at, both=None):
        seen.append(at.numel())
        return logs(self, piece, at, both)

    monkeypatch.setattr(quadrature.Integrand, "logs", read)
    return seen


def test_a_thousand_pairs_cost_few_calls(monkeypatch):
    """Rows are integrated together: the calls of a batch are not much more than those of a pair."""
    g = torch.Generator().manual_seed(0)

    def rows(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def student(n):
        return td.StudentT(3.0 + 5.0 * rows(n), rows(n), 0.5 + rows(n))

    def mixture(n):
        parts = td.Normal(3.0 * rows(n, 3), 0.5 + rows(n, 3))
        return td.MixtureSameFamily(td.Categorical(logits=rows(n, 3)), parts)

    for make in (student, mixture):
        seen = counted(monkeypatch)
        kl(make(1), make(1))
        alone = len(seen)
        kl(make(1000), make(1000))
        assert len(seen) - alone <= 30 * alone
        assert sum(seen[alone:]) <= 2000 * 1000


@pytest.mark.parametrize("divergence", [kb.hellinger, kb.js, kb.tv, kb.triangular])
def test_no_integral_is_above_its_bound(divergence):
    """Between distributions far apart the integral rounds to either side of the largest value."""
    bound = {kb.hellinger: 1.0, kb.js: math.log(2.0), kb.tv: 1.0, kb.triangular: 2.0}[divergence]
    sharp = [(1e4, 1e-4), (1e-4, 1e4), (50.0, 0.02), (0.01, 5.0), (0.02, 80.0), (300.0, 300.0)]
    pairs = [(td.Kumaraswamy(*map(t, a)), td.Kumaraswamy(*map(t, b))) for a in sharp for b in sharp if a != b]
    values = [divergence(p, q).item() for p, q in pairs]
    assert max(values) <= bound
    assert max(values) > (1.0 - 1e-9) * bound


def test_narrow_peaks_are_found_in_every_row_of_a_batch():
    """Rows of other widths have other places to look at, and repeat some."""
    rows = [*map(t, ([0.0, 2.0, -1.0, 3.0, -4.0], [1.0, 0.5, 3.0, 0.02, 60.0]))]
    rows += [*map(t, ([1.0, 0.0, 5.0, -2.0, 0.5], [2.0, 1.0, 4.0, 50.0, 0.1]))]
    for order in (50.0, 1e6):
        found = kb.renyi(td.Normal(*rows[:2]), td.Laplace(*rows[2:]), order)
        alone = [kb.renyi(td.Normal(m, s), td.Laplace(n, b), order).item() for m, s, n, b in zip(*rows, strict=True)]
        assert found.tolist() == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("q", [td.Cauchy(t(0.0), t(1.0)), td.StudentT(t(1.5)), td.StudentT(t(2.0))])
def test_both_directions_are_infinite_if_one_is(q):
    """KL(q‖Normal) needs a variance of q: Jeffreys' too, from either side."""
    assert kb.jeffreys(normal(), q).item() == math.inf
    assert kb.jeffreys(q, normal()).item() == math.inf
    assert math.isfinite(kb.jeffreys(normal(), td.StudentT(t(2.5))).item())


@pytest.mark.parametrize("order", [0.3, 0.5, 2.0, 3.5])
def test_renyi_of_normals_of_no_special_scale(order):
    """a Δ²/(2 s²) - log(s² / (σp^(2-2a) σq^(2a))) / (2(a-1)), s² = (1-a) σp² + a σq²."""
    p, q = (0.3, 1.7), (1.2, 2.1)
    square = (1.0 - order) * p[1] ** 2 + order * q[1] ** 2
    power = p[1] ** (2.0 - 2.0 * order) * q[1] ** (2.0 * order)
    truth = order * (p[0] - q[0]) ** 2 / (2.0 * square) - math.log(square / power) / (2.0 * (order - 1.0))
    assert kb.renyi(normal(*p), normal(*q), order).item() == pytest.approx(truth, rel=1e-13)
