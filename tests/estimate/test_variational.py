import math

import pytest
import torch

from kullback import FormError, Samples, estimate
from kullback.estimate import Classifier, DonskerVaradhanBound, NWJBound


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d, shift=0.0, seed=0):
    return shift + torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", [DonskerVaradhanBound, NWJBound, Classifier])
def test_finds_most_of_a_known_divergence_and_not_more(kind):
    """N(0, I) against N(0.6, I) in 3 dimensions: 0.54. Seeds fixed; within 4 standard errors, and above half of it."""
    x, y = Samples(normal(3000, 3)), Samples(normal(3000, 3, 0.6, seed=1))
    found = estimate.kl(x, y, method=kind(steps=250), generator=seeded())
    assert 0.27 < found.value < 0.54 + 4 * found.stderr
    assert found.stderr < 0.12
    assert (found.n, found.m) == (1200, 1200)
    low, high = found.interval()
    assert low < 0.54
    if kind is Classifier:
        assert high < 1.0
    else:
        assert high == math.inf
        assert found.bias.startswith("lower bound")


def test_held_out_draws_keep_a_bound_from_overfitting():
    """Equal distributions, few draws and a large critic: what it learns by heart must not count."""
    x, y = Samples(normal(100, 5)), Samples(normal(100, 5, seed=1))
    for method in (DonskerVaradhanBound(steps=200, hidden=(128,)), NWJBound(steps=200, hidden=(128,))):
        found = estimate.kl(x, y, method=method, generator=seeded())
        assert found.value < 0.1


def test_repeats_with_the_generator_and_leaves_the_global_state_alone():
    x, y = Samples(normal(100, 2)), Samples(normal(100, 2, 1.0, seed=1))
    before = torch.random.get_rng_state()
    first = estimate.kl(x, y, method=NWJBound(steps=20), generator=seeded())
    assert estimate.kl(x, y, method=NWJBound(steps=20), generator=seeded()) == first
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.no_grad():
        assert estimate.kl(x, y, method=NWJBound(steps=20), generator=seeded()) == first


@pytest.mark.slow
@pytest.mark.parametrize("n", [100_000, 1_000_000])
def test_no_bias_hides_at_a_hundred_thousand_draws_and_a_million(n):
    """At the best critic log(p/q) = 1/2 - x of N(0,1) against N(1,1) all three are estimates of 0.5."""
    g = seeded()
    x, y = torch.randn(n, generator=g, dtype=torch.float64), 1.0 + torch.randn(n, generator=g, dtype=torch.float64)
    for method, constant in ((DonskerVaradhanBound(), 3.0), (NWJBound(), 1.0), (Classifier(), 0.0)):
        value, stderr = method.evaluate(0.5 - x + constant, 0.5 - y + constant)
        assert abs(value - 0.5) < 4 * stderr < 16 / math.sqrt(n)


def test_a_tail_of_the_ratio_that_has_no_variance_is_named():
    """N(0,1) against N(2,1): e^T under q is all in a few draws."""
    x, y = Samples(normal(2000, 1)), Samples(normal(2000, 1, 2.0, seed=1))
    assert "Pareto" in estimate.kl(x, y, method=DonskerVaradhanBound(steps=200), generator=seeded()).verdict


def test_formulas_at_given_critics():
    on_p, on_q = torch.tensor([0.2, 0.6], dtype=torch.float64), torch.tensor([-0.4, 0.1, 0.3], dtype=torch.float64)
    mean_exp = sum(math.exp(t) for t in (-0.4, 0.1, 0.3)) / 3
    assert float(DonskerVaradhanBound().objective(on_p, on_q)) == pytest.approx(0.4 - math.log(mean_exp))
    assert float(NWJBound().objective(on_p, on_q)) == pytest.approx(0.4 - mean_exp / math.e)
    assert NWJBound().evaluate(on_p, on_q)[0] == pytest.approx(0.4 - mean_exp / math.e)
    assert Classifier().evaluate(on_p, on_q)[0] == pytest.approx(0.4)
    spread = sum((math.exp(t) / mean_exp - 1) ** 2 for t in (-0.4, 0.1, 0.3)) / 2 / 3
    value, stderr = DonskerVaradhanBound().evaluate(on_p, on_q)
    assert value == pytest.approx(0.4 - math.log(mean_exp) - spread / 2)
    assert stderr == pytest.approx(math.sqrt(0.08 / 2 + spread))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NWJBound(steps=0), "above 0"),
        (lambda: NWJBound(held_out=1.0), "between 0 and 1"),
        (
            lambda: estimate.kl(Samples(normal(9, 1)), Samples(normal(99, 1)), method=NWJBound(), generator=seeded()),
            "50 of",
        ),
        (
            lambda: estimate.kl(Samples(normal(99, 1)), Samples(normal(99, 2)), method=NWJBound(), generator=seeded()),
            "columns",
        ),
    ],
)
def test_errors(call, words):
    with pytest.raises(FormError) as error:
        call()
    assert words in str(error.value)


def test_a_critic_is_looked_at_every_fifty_steps_and_at_the_last():
    """On the part that is kept for it, without gradients; once more, held out, when it is chosen."""
    looked = []

    class Watched(NWJBound):
        def objective(self, on_p, on_q):
            looked.append(torch.is_grad_enabled())
            return super().objective(on_p, on_q)

    x, y = Samples(normal(100, 2)), Samples(normal(100, 2, 1.0, seed=1))
    estimate.kl(x, y, method=Watched(steps=53), generator=seeded())
    steps = [k for k, grad in enumerate(looked) if not grad]
    assert steps[:3] == [0, 51, 54]  # before steps 0, 50 and 52, among 53 with gradients
    assert looked.count(True) == 53
