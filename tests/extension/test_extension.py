"""The worked example of `kullback.extend`: a divergence and a form that the package does not know."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributions as td

sys.path.insert(0, str(Path(__file__).parent))

from neyman import NEYMAN_CHI2, TRIANGULAR
from uniform_mixture import UniformMixture

import kullback
from kullback import Labels, Logits, NoExactMethod, Probs, Term, divergences, explain, kl, measure, total
from kullback.divergences import FAMILIES, TABLE
from kullback.extend import Generator, GeneratorSum
from kullback.testing import check_divergence, check_form


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize("row", [NEYMAN_CHI2], ids=lambda row: row.name)
def test_a_divergence_of_ones_own_keeps_the_laws(row):
    check_divergence(row)


def test_its_values_are_those_of_its_formula():
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    want = ((p - q) ** 2 / p).sum()
    assert measure(NEYMAN_CHI2, Probs(p), Probs(q)).item() == pytest.approx(want.item(), rel=1e-14)
    # Neyman's is Pearson's with its sides exchanged, at every row that has mass
    assert measure(NEYMAN_CHI2, Probs(p), Probs(q)) == pytest.approx(
        kullback.chi2(Probs(q), Probs(p)).item(), rel=1e-14
    )
    assert measure(NEYMAN_CHI2, Labels([0], 2), Probs([[0.5, 0.5]])).item() == math.inf


def test_it_runs_eager_and_says_so_and_everything_else_goes_on_in_cpp():
    a, b = torch.randn(4, 7), torch.randn(4, 7, requires_grad=True)
    route = explain(Logits(a), Logits(b), divergence=NEYMAN_CHI2)
    assert route.engine == "eager"
    assert route.divergence == "neyman_chi2"
    if dict(route.not_taken)["cpu"].startswith("the C++ extension"):
        pytest.skip("no C++ engine")
    assert dict(route.not_taken)["cpu"] == "neyman_chi2 has no kernel"
    assert explain(Logits(a), Logits(b)).engine == "cpu"
    mixed = total([Term(NEYMAN_CHI2, Logits(a), Logits(b), 0.5), Term(divergences.KL, Logits(a), Logits(b), 2.0)])
    apart = 0.5 * measure(NEYMAN_CHI2, Logits(a), Logits(b)).sum() + 2.0 * kl(Logits(a), Logits(b)).sum()
    torch.testing.assert_close(mixed, apart)
    for got, want in zip(torch.autograd.grad(mixed, [b]), torch.autograd.grad(apart, [b]), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_works_under_compile_and_transforms():
    a, b = torch.randn(3, 5), torch.randn(3, 5)

    def loss(y):
        return measure(NEYMAN_CHI2, Logits(a), Logits(y)).sum()

    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(b), loss(b))
    want = torch.autograd.grad(loss(b.requires_grad_()), [b])[0]
    torch.testing.assert_close(torch.func.grad(loss)(b.detach()), want)


def test_what_is_not_known_of_its_growth_is_not_assumed():
    """Taken to be bounded by p + q, Poisson(1)‖Poisson(12) gave 1.97e39 for a true 3.55e52, Geometric 37.3 for +inf."""
    t = torch.tensor
    pairs = [
        (td.Poisson(t(1.0)), td.Poisson(t(12.0))),
        (td.Geometric(t(0.5)), td.Geometric(t(0.29))),
        (td.Normal(t(0.0), t(1.0)), td.Normal(t(20.0), t(1.0))),
    ]
    for p, q in pairs:
        with pytest.raises(NoExactMethod, match="Generator a tail"):
            measure(NEYMAN_CHI2, p, q)
    # finite sums need no bound, and a stated growth is believed
    two = td.Categorical(torch.tensor([0.5, 0.5])), td.Categorical(torch.tensor([0.75, 0.25]))
    assert measure(NEYMAN_CHI2, *two).item() == pytest.approx(0.25)
    poisson = td.Poisson(t(3.0).double()), td.Poisson(t(3.5).double())
    assert measure(TRIANGULAR, *poisson) == pytest.approx(kullback.triangular(*poisson).item(), rel=1e-12)


def test_a_form_of_two_tensors_keeps_what_verbs_rely_on():
    g = torch.Generator().manual_seed(1)
    x, gate = torch.randn(3, 5, generator=g).double(), torch.randn(3, generator=g).double()
    check_form(UniformMixture, x, gate)


def test_its_gradients_reach_both_tensors_in_totals_and_verbs():
    x, gate = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.zeros(3, dtype=torch.float64)
    gate.requires_grad_()
    other = torch.randn(3, 5, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 2.0])
    form = UniformMixture(x, gate)
    got = torch.autograd.grad(total([Term(divergences.KL, Logits(other), form, weights)]), (x, gate))
    p = (1 - gate.sigmoid().unsqueeze(-1)) * torch.softmax(x, -1) + gate.sigmoid().unsqueeze(-1) / 5
    w = torch.softmax(other, -1)
    want = torch.autograd.grad((weights * (w * (w.log() - p.log())).sum(-1)).sum(), (x, gate))
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"terms": lambda c, _: NEYMAN_CHI2.sums[0].generator(c)._replace(dlogp=-c.p)}, "gradient to Logits is wrong"),
        ({"at_q_zero": 0.5}, "class|grows|gradient"),
    ],
)
def test_a_broken_generator_is_caught(change, law):
    """The checks can fail: a wrong derivative, a wrong edge."""
    broken = replace(NEYMAN_CHI2, sums=(GeneratorSum(replace(NEYMAN_CHI2.sums[0].generator, **change)),))
    with pytest.raises(AssertionError, match=law):
        check_divergence(broken)


def test_a_row_that_lies_about_itself_is_caught():
    lying = replace(NEYMAN_CHI2, symmetric=True)
    with pytest.raises(AssertionError, match="symmetric=True is wrong"):
        check_divergence(lying)
    with pytest.raises(AssertionError, match="exceeds upper"):
        check_divergence(replace(NEYMAN_CHI2, upper=0.01))


def test_a_form_with_a_wrong_way_back_is_caught():
    class Wrong(UniformMixture):
        @property
        def reading(self):
            return WrongReading()

        def with_tensors(self, *tensors):
            return Wrong(*tensors)

    from uniform_mixture import UniformMixtureReading

    class WrongReading(UniformMixtureReading):
        def pull_back(self, data, weights, partial, upstream):
            to_x, to_gate = super().pull_back(data, weights, partial, upstream)
            return to_x, 2.0 * to_gate

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        check_form(Wrong, torch.randn(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "cross_entropy"])
def test_the_packages_own_rows_pass_what_it_asks_of_others(family):
    check_divergence(next(row for row in TABLE if row.family == family))


def test_generators_are_values():
    one, two = Generator("x", abs, 0.5), Generator("x", abs, 0.5)
    assert one == two
    assert hash(one) == hash(two)
    assert one != replace(one, parameter=0.6)
