"""Wasserstein distances against SciPy, POT and closed forms; gradients; errors."""

import math

import pytest
import torch
import torch.distributions as td
from scipy.stats import wasserstein_distance

from kullback import FormError, Logits, NoExactMethod, Points, Probs, Samples, wasserstein


def t(x, grad=False):
    return torch.tensor(x, dtype=torch.float64, requires_grad=grad)


def draws(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64), torch.rand(
        n, generator=generator, dtype=torch.float64
    )


def test_weighted_points_agree_with_scipy():
    (x, v), (y, w) = draws(50, 0), draws(70, 1)
    assert wasserstein(Points(x, v), Points(y, w)).item() == pytest.approx(wasserstein_distance(x, y, v, w), rel=1e-12)
    assert wasserstein(Points(x), Points(y)).item() == pytest.approx(wasserstein_distance(x, y), rel=1e-12)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.5])
def test_equally_many_points_are_matched_in_order(order):
    x, y = draws(20, 2)[0], draws(20, 3)[0]
    truth = ((x.sort().values - y.sort().values).abs() ** order).mean() ** (1 / order)
    torch.testing.assert_close(wasserstein(Points(x), Points(y), order), truth)


def test_gradients_to_points_and_weights():
    (x, v), (y, w) = draws(5, 4), draws(6, 5)
    leaves = [a.requires_grad_() for a in (x, v, y, w)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: wasserstein(Points(a, b), Points(c, d), 2.0), leaves)


def test_batches_of_points():
    x, y = draws(24, 6)[0].reshape(3, 8), draws(8, 7)[0]
    rows = torch.stack([wasserstein(Points(row), Points(y)) for row in x])
    torch.testing.assert_close(wasserstein(Points(x), Points(y)), rows)


def test_zero_and_its_gradient():
    x = t([1.0, 2.0], grad=True)
    value = wasserstein(Points(x), Points(t([2.0, 1.0])), 2.0)
    assert value.item() == 0.0
    assert torch.autograd.grad(value, x)[0].tolist() == [0.0, 0.0]


def test_forms_over_positions_and_costs_agree():
    pytest.importorskip("ot")
    places = t([0.0, 1.0, 5.0])
    x = t([0.0, 1.0, 2.0], grad=True)
    on_line = wasserstein(Probs(t([0.2, 0.3, 0.5])), Logits(x), positions=places)
    # the distance is Σ of |difference of the cumulative masses| times the gaps
    difference = (t([0.2, 0.3, 0.5]) - torch.softmax(x, 0)).cumsum(0)
    truth = (difference[:2].abs() * t([1.0, 4.0])).sum()
    torch.testing.assert_close(on_line, truth)
    by_cost = wasserstein(Probs(t([0.2, 0.3, 0.5])), Logits(x), cost=(places[:, None] - places).abs())
    torch.testing.assert_close(by_cost, on_line)
    slopes = [torch.autograd.grad(v, x)[0] for v in (on_line, truth, by_cost)]
    torch.testing.assert_close(slopes[0], slopes[1])
    torch.testing.assert_close(slopes[2], slopes[1])
    plane = t([[0.0, 0.0], [3.0, 4.0]])
    moved = wasserstein(Probs(t([1.0, 0.0])), Probs(t([0.5, 0.5])), 2.0, positions=plane)
    assert moved.item() == pytest.approx(math.sqrt(12.5))


def test_sinkhorn_is_above_and_tends_to_the_exact_cost():
    pytest.importorskip("ot")
    p, q, cost = Probs(t([0.2, 0.8])), Probs(t([0.7, 0.3])), t([[0.0, 1.0], [1.0, 0.0]])
    values = [wasserstein(p, q, cost=cost, regularization=e).item() for e in (1.0, 0.1, 0.02)]
    assert values[0] > values[1] >= values[2] >= 0.5 - 1e-9
    assert values[2] == pytest.approx(0.5, abs=1e-6)


def test_gaussians():
    p, q = td.Normal(t(0.0), t(1.0)), td.Normal(t(3.0), t(5.0))
    assert wasserstein(p, q, 2).item() == pytest.approx(5.0)
    z = 3.0 / 4.0
    folded = 4.0 * (math.sqrt(2.0 / math.pi) * math.exp(-0.5 * z * z) + z * math.erf(z / math.sqrt(2.0)))
    assert wasserstein(p, q, 1).item() == pytest.approx(folded)
    # |3 + 4 z|³ has no sign change below z = -3/4: by its moments on either side; here against many quantiles
    u = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000
    cubes = ((p.icdf(u) - q.icdf(u)).abs() ** 3).mean() ** (1 / 3)
    assert wasserstein(p, q, 3).item() == pytest.approx(cubes.item(), rel=1e-5)
    s, r = t([[2.0, 0.5], [0.5, 1.0]]), t([[1.0, -0.3], [-0.3, 0.5]])
    one, two = td.MultivariateNormal(t([0.0, 0.0]), s), td.MultivariateNormal(t([1.0, -1.0]), r)
    values, vectors = torch.linalg.eigh(s)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ r @ root).sqrt().sum()
    truth = (2.0 + s.trace() + r.trace() - 2.0 * cross).sqrt()
    torch.testing.assert_close(wasserstein(one, two, 2), truth)
    assert wasserstein(one, one, 2).item() < 1e-12


def test_gradient_of_the_distance_between_gaussians():
    a = t([[1.2, 0.0], [0.4, 0.8]], grad=True)
    b = t([[0.7, 0.0], [-0.4, 1.0]], grad=True)
    zero = torch.zeros(2, dtype=torch.float64)

    def distance(x, y):
        p, q = (td.MultivariateNormal(zero, scale_tril=z.tril(), validate_args=False) for z in (x, y))
        return wasserstein(p, q, 2)

    assert torch.autograd.gradcheck(distance, (a, b))


def test_distributions_by_their_quantiles():
    assert wasserstein(td.Exponential(t(1.0)), td.Exponential(t(0.5))).item() == pytest.approx(1.0, rel=1e-9)
    rate = t(0.5, grad=True)
    value = wasserstein(td.Exponential(t(1.0)), td.Exponential(rate))
    assert torch.autograd.grad(value, rate)[0].item() == pytest.approx(-4.0, rel=1e-7)
    # uniform on [0, 1] against Laplace: the quantiles cross
    found = wasserstein(td.Uniform(t(0.0), t(1.0)), td.Laplace(t(0.0), t(1.0))).item()
    u = (torch.arange(4_000_000, dtype=torch.float64) + 0.5) / 4_000_000
    assert found == pytest.approx((u - td.Laplace(t(0.0), t(1.0)).icdf(u)).abs().mean().item(), rel=1e-6)


def test_cauchy():
    """Of one scale: a shift. Of two: the quantiles differ by (s - t) tan, which has no mean."""
    shift, scale = t([0.0, 3.0, 0.0], grad=True), t([1.0, 1.0, 2.0], grad=True)
    value = wasserstein(td.Cauchy(shift, scale), td.Cauchy(t([-2.0, 1.0, 1.0]), t(1.0)), 2.0)
    assert value.tolist() == [2.0, 2.0, math.inf]
    slopes = torch.autograd.grad(value.sum(), (shift, scale))
    assert [x.tolist() for x in slopes] == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert wasserstein(td.HalfCauchy(t(1.0)), td.HalfCauchy(t(1.0))).item() == 0.0
    assert wasserstein(td.HalfCauchy(t(1.0)), td.HalfCauchy(t(1.5))).item() == math.inf
    for other in (
        td.Normal(t(0.0), t(1.0)),
        td.HalfCauchy(t(1.0)),
        td.Uniform(t(0.0), t(1.0)),
        td.Pareto(t(1.0), t(3.0)),
    ):
        assert wasserstein(td.Cauchy(t(0.0), t(1.0)), other).item() == math.inf
        assert wasserstein(other, td.Cauchy(t(0.0), t(1.0))).item() == math.inf


def test_samples_are_points_of_equal_weight():
    (x, _), (y, _) = draws(50, 8), draws(70, 9)
    found = wasserstein(Samples(x), Samples(y.unsqueeze(-1)))
    assert found.item() == pytest.approx(wasserstein_distance(x, y), rel=1e-12)
    assert wasserstein(Samples(t([0.0, 1.0, 3.0])), Samples(t([5.0, 6.0, 8.0])), 2.0).item() == 5.0
    # half of the mass at 0 and half at 4, against all of it at 1: (1² + 3²)/2
    assert wasserstein(Samples(t([0.0, 4.0])), Samples(t([1.0])), 2.0).item() == pytest.approx(math.sqrt(5.0))
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    value = wasserstein(Samples(x), Samples([1]), 2.0)
    assert value.dtype == torch.float32
    # √((x₁-1)²/2 + (x₂-1)²/2): its slope is (x - 1)/(2·value)
    assert torch.autograd.grad(value, x)[0].tolist() == pytest.approx([-0.5 / math.sqrt(5), 1.5 / math.sqrt(5)])
    x = x.detach().repeat(25)
    with pytest.raises(NoExactMethod, match="2 columns"):
        wasserstein(Samples(x.reshape(25, 2)), Samples(y.reshape(35, 2)))


def test_weights_stand_for_repeated_samples():
    x, y = t([0.0, 1.0, 4.0]), t([1.0, 2.0])
    repeated = Samples(t([0.0, 0.0, 1.0, 4.0, 4.0, 4.0]))
    found = wasserstein(Points(x, t([2.0, 1.0, 3.0])), Points(y))
    torch.testing.assert_close(found, wasserstein(repeated, Samples(y)))
    torch.testing.assert_close(found, wasserstein(repeated, Points(y)))


def test_errors_say_what_to_write():
    with pytest.raises(FormError, match=r"positions=\(V,\)"):
        wasserstein(Probs([0.5, 0.5]), Probs([0.5, 0.5]))
    with pytest.raises(FormError, match=r"order is 0\.5"):
        wasserstein(Points([1.0]), Points([2.0]), 0.5)
    with pytest.raises(NoExactMethod, match=r"icdf"):
        wasserstein(td.Beta(1.0, 2.0), td.Beta(2.0, 2.0))
    with pytest.raises(FormError, match="weights must be >= 0"):
        Points([1.0, 2.0], [1.0, -1.0])
    with pytest.raises(FormError, match="bare Tensor"):
        wasserstein(torch.zeros(3), torch.zeros(3))
