"""Published and computed values of densities and counts, and what torch.distributions gets wrong."""

import math

import pytest
import torch
import torch.distributions as td

from kullback import kl


def t(x, dtype=torch.float64):
    return torch.tensor(x, dtype=dtype)


def mvn(covariance):
    return td.MultivariateNormal(torch.zeros(2, dtype=torch.float64), t(covariance))


def cb(probs=None, logits=None):
    return td.ContinuousBernoulli(
        probs=None if probs is None else t(probs), logits=None if logits is None else t(logits)
    )


def make(family, *parameters):
    return family(*(t(x) for x in parameters))


# value with its printed digits: the tolerance is half a unit of the last one, or 1e-9 relative
TABLE = [
    ("Exp(1) Exp(1/12)", make(td.Exponential, 1.0), make(td.Exponential, 1 / 12), "1.5682400"),
    ("N(0,1) N(1,4)", make(td.Normal, 0.0, 1.0), make(td.Normal, 1.0, 2.0), "0.4431472"),
    ("U(1,2) U(0,4)", make(td.Uniform, 1.0, 2.0), make(td.Uniform, 0.0, 4.0), "1.3862944"),
    ("U(0,1) N(0,1)", make(td.Uniform, 0.0, 1.0), make(td.Normal, 0.0, 1.0), "1.0856052"),
    ("N2", mvn([[1.0, 0.0], [0.0, 1.0]]), mvn([[1.0, 1.0], [1.0, 2.0]]), "0.5"),
    ("CB(.3) U", cb(0.3), make(td.Uniform, 0.0, 1.0), "0.02938620223212908"),
    ("U CB(.3)", make(td.Uniform, 0.0, 1.0), cb(0.3), "0.02973612325187543"),
    ("CB(.8) U", cb(0.8), make(td.Uniform, 0.0, 1.0), "0.07641445280335878"),
    ("U CB(.8)", make(td.Uniform, 0.0, 1.0), cb(0.8), "0.0788308481298834"),
    ("CB(-500) CB(20)", cb(logits=-500.0), cb(logits=20.0), "22.178875822807"),
    ("VM", make(td.VonMises, 0.0, 1.0), make(td.VonMises, 1.0, 2.0), "0.5520980930917165"),
    ("Cauchy", make(td.Cauchy, 0.0, 1.0), make(td.Cauchy, 1.0, 2.0), "0.2231435513142098"),
    ("t3 t5", make(td.StudentT, 3.0), make(td.StudentT, 5.0, 1.0, 2.0), "0.29674952479449"),
    ("t3 N", make(td.StudentT, 3.0), make(td.Normal, 0.0, 1.0), "0.645460961341"),
    ("N t3", make(td.Normal, 0.0, 1.0), make(td.StudentT, 3.0), "0.06915159848517566"),
    ("N Cauchy", make(td.Normal, 0.0, 1.0), make(td.Cauchy, 0.0, 1.0), "0.2592445324888617"),
    ("NB", make(td.NegativeBinomial, 3.0, 0.3), make(td.NegativeBinomial, 3.0, 0.6), "0.787658131657767"),
    ("Weibull", make(td.Weibull, 1.0, 2.0), make(td.Weibull, 2.0, 0.8), "0.634078321188278"),
    ("Gamma small", make(td.Gamma, 2.0, 1.0), make(td.Gamma, 2.001, 1.0), "3.22400e-7"),
    ("Gamma large", make(td.Gamma, 1e6, 1.0), make(td.Gamma, 1.00001e6, 1.0), "4.999986e-5"),
    ("Beta large", make(td.Beta, 1e4, 2e4), make(td.Beta, 10001.0, 2e4), "3.333407e-5"),
    ("N small", make(td.Normal, 0.0, 1.0), make(td.Normal, 0.0, 1.001), "9.983356e-7"),
]


@pytest.mark.parametrize(("p", "q", "printed"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_table_of_densities(p, q, printed):
    mantissa, _, exponent = printed.partition("e")
    digits = len(mantissa.partition(".")[2])
    half_unit = 0.51 * 10.0 ** (int(exponent or 0) - digits)
    assert kl(p, q).item() == pytest.approx(float(printed), abs=half_unit, rel=1e-9 if digits > 8 else 0.0)


F32 = torch.float32
TRAPS = [
    (td.Poisson(t(0.0)), td.Poisson(t(1.0)), 1.0),
    (td.Geometric(t(1.0)), td.Geometric(t(1.0)), 0.0),
    (td.Gamma(t(1e6, F32), t(1.0, F32)), td.Gamma(t(1.00001e6, F32), t(1.0, F32)), 4.999986e-5),
    (td.Beta(t(1e4, F32), t(2e4, F32)), td.Beta(t(10001.0, F32), t(2e4, F32)), 3.333407e-5),
    (td.Binomial(3, t(0.3)), td.Binomial(5, t(0.2)), None),
    (td.Binomial(5, t(0.3)), td.Binomial(3, t(0.2)), math.inf),
]


@pytest.mark.parametrize(("p", "q", "truth"), TRAPS, ids=lambda x: type(x).__name__)
def test_where_pytorch_is_wrong(p, q, truth):
    if truth is None:  # Binomial with different n, by enumeration
        pmf = [math.comb(3, k) * 0.3**k * 0.7 ** (3 - k) for k in range(4)]
        other = [math.comb(5, k) * 0.2**k * 0.8 ** (5 - k) for k in range(4)]
        truth = sum(a * math.log(a / b) for a, b in zip(pmf, other, strict=True))
    assert kl(p, q).item() == pytest.approx(truth, rel=2e-7)


def test_categorical_with_a_masked_class_has_finite_gradients():
    x = torch.tensor([0.5, -math.inf, 1.0], requires_grad=True)
    y = torch.tensor([0.0, -math.inf, 0.5], requires_grad=True)
    value = kl(td.Categorical(logits=x), td.Categorical(logits=y))
    value.backward()
    a, b = (torch.softmax(torch.tensor(v, dtype=torch.float64), 0) for v in ([0.5, 1.0], [0.0, 0.5]))
    assert value.item() == pytest.approx((a * (a / b).log()).sum().item(), abs=1e-7)
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(y.grad).all()
    torch.testing.assert_close(y.grad[[0, 2]], (b - a).float(), rtol=1e-5, atol=1e-7)


SELF = [
    make(td.StudentT, 3.0),
    make(td.NegativeBinomial, 3.0, 0.3),
    make(td.VonMises, 0.0, 1.0),
    make(td.FisherSnedecor, 3.0, 5.0),
    td.Multinomial(3, t([0.3, 0.7])),
    td.LKJCholesky(3, t(1.5)),
    td.MixtureSameFamily(td.Categorical(t([0.3, 0.7])), td.Normal(t([-1.0, 1.0]), t([1.0, 2.0]))),
    td.RelaxedBernoulli(t(0.5), t(0.3)),
    make(td.GeneralizedPareto, 0.0, 1.0, 0.2),
    make(td.Weibull, 1.0, 2.0),
    make(td.Kumaraswamy, 2.0, 3.0),
]


@pytest.mark.parametrize("p", SELF, ids=lambda p: type(p).__name__)
def test_pairs_that_pytorch_refuses_are_zero_against_themselves(p):
    assert kl(p, p).item() == 0.0
