"""Vectors and matrices against mpmath (make_vector_oracles.py): value and gradient, float64 and float32."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as st

import kullback as kb
from kullback.exact.closed_form import low_rank, multivariate
from kullback.exact.registry import CLOSED_FORMS

ROWS = json.loads((Path(__file__).parent / "vectors.json").read_text())
WHOLE = ("dim", "total_count")


def build(family, parameters):
    if family == "Independent":
        return td.Independent(td.Normal(**parameters, validate_args=False), 1)
    return getattr(td, family)(**parameters, validate_args=False)


def name(row):
    return f"{row['quantity']}-{row['order']}-{row['family']}-{row['other']}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("row", ROWS, ids=name)
def test_value_and_gradient(row, dtype):
    leaves, sides = {}, []
    for side, family in (("p", row["family"]), ("q", row["other"])):
        if row[side] is None:
            continue
        parameters = {}
        for key, given_value in row[side].items():
            parameters[key] = given_value
            if key not in WHOLE:
                parameters[key] = torch.tensor(given_value, dtype=dtype, requires_grad=True)
                leaves[f"{side}.{key}"] = parameters[key]
        sides.append(build(family, parameters))
    arguments = [*sides, *([] if row["order"] is None else [row["order"]])]
    value = getattr(kb, row["quantity"])(*arguments)
    assert value.dtype == dtype
    value.backward()
    if row["value"] == "+inf":
        assert value.item() == math.inf
        assert all(x.grad is None or bool((x.grad == 0).all()) for x in leaves.values())
        return
    # float32 rounds the result only; in float64 the condition of the matrices (here to 1e3) multiplies 1e-16
    truth = float(row["value"])
    assert value.item() == pytest.approx(truth, rel=1e-11 if dtype == torch.float64 else 2e-7)
    scale = max(abs(slope) for want in row["gradient"].values() for slope in want)
    for key, want in row["gradient"].items():
        found = leaves[key].grad
        found = torch.zeros_like(leaves[key]) if found is None else found
        wanted = torch.tensor(want, dtype=dtype).reshape(found.shape)
        rtol = 1e-8 if dtype == torch.float64 else 1e-6
        # PyTorch normalises probs in their dtype, of whose slope the textbook's constant n is a part
        projected = 4.0 * torch.finfo(dtype).eps if key.endswith("probs") else 0.0
        torch.testing.assert_close(
            found, wanted, rtol=rtol, atol=rtol * scale + projected, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_every_closed_form_of_vectors_has_an_oracle():
    tested = {f"{row['family']}‖{row['other']}" for row in ROWS}
    vectors = ("Normal‖", "‖MultivariateNormal", "Wishart", "Dirichlet", "LKJ", "Multinomial", "Independent")
    entries = {e.name for e in CLOSED_FORMS if e.quantity == "kl" and any(v in e.name for v in vectors)}
    scalars = {e for e in entries if "‖" in e and not any(v in e for v in ("Multi", "Rank", "Wish", "Diri", "LKJ"))}
    assert entries - scalars - tested == set()


def low_rank_pair(dimension, near, generator):
    """Two distributions of ranks 5 and 5 (near, by this much) or 5 and 8."""

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    p = [draw(2, dimension), draw(2, dimension, 5), draw(2, dimension).abs() + 0.1]
    if near is None:
        q = [draw(dimension), draw(dimension, 8), draw(dimension).abs() + 0.1]
    else:
        q = [x * (1.0 + near * draw(*x.shape).clamp(-0.9, 0.9)) for x in p]
    return [x.requires_grad_() for x in (*p, *q)]


@pytest.mark.parametrize("near", [None, 0.5, 1e-2, 1e-4, 1e-6])
def test_low_rank_against_dense(near):
    """The dense formula keeps 1e-12 / near of a value near equality, for these matrices of condition 1e4."""
    leaves = low_rank_pair(160, near, torch.Generator().manual_seed(0))
    p, q = (td.LowRankMultivariateNormal(*x, validate_args=False) for x in (leaves[:3], leaves[3:]))
    assert low_rank.pays(*(low_rank.low_rank(d) for d in (p, q)))
    found = kb.kl(p, q)
    dense = multivariate.mvn(multivariate.factor(p), multivariate.factor(q))
    error = 1e-12 if near is None else max(1e-12, 1e-12 / near)
    torch.testing.assert_close(found, dense, rtol=error, atol=0.0)
    for got, want in zip(*(torch.autograd.grad(v.sum(), leaves) for v in (found, dense)), strict=True):
        torch.testing.assert_close(got, want, rtol=10.0 * error, atol=100.0 * error * want.abs().max().item())


def test_low_rank_limits():
    leaves = low_rank_pair(160, 0.0, torch.Generator().manual_seed(1))
    p, q = (td.LowRankMultivariateNormal(*x, validate_args=False) for x in (leaves[:3], leaves[3:]))
    assert (kb.kl(p, q) == 0).all()
    flat = td.Independent(td.Normal(leaves[0], leaves[2]), 1)
    truth = multivariate.mvn(multivariate.factor(p), multivariate.factor(flat))
    torch.testing.assert_close(kb.kl(p, flat), truth, rtol=1e-12, atol=0.0)
    truth = multivariate.mvn(multivariate.factor(flat), multivariate.factor(p))
    torch.testing.assert_close(kb.kl(flat, p), truth, rtol=1e-12, atol=0.0)
    matrix = td.MultivariateNormal(p.loc, p.covariance_matrix)
    torch.testing.assert_close(kb.entropy(p), kb.entropy(matrix), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(kb.cross_entropy(p, flat), kb.entropy(matrix) + kb.kl(p, flat), rtol=1e-12, atol=0.0)


def test_low_rank_is_never_negative_and_maps():
    generator = torch.Generator().manual_seed(3)
    for near in 10.0 ** -torch.arange(1.0, 17.0):
        leaves = [x.detach() for x in low_rank_pair(130, near.item(), generator)]
        p, q = (td.LowRankMultivariateNormal(*x, validate_args=False) for x in (leaves[:3], leaves[3:]))
        assert (kb.kl(p, q) >= 0).all()

    def one(loc):
        moved = td.LowRankMultivariateNormal(loc, leaves[1][0], leaves[2][0], validate_args=False)
        return kb.kl(moved, td.LowRankMultivariateNormal(*(x[0] for x in leaves[3:]), validate_args=False))

    torch.testing.assert_close(torch.func.vmap(one)(leaves[0])[0], one(leaves[0][0]), rtol=1e-12, atol=0.0)


def test_low_rank_holds_no_square_matrix():
    """In 200,000 dimensions a covariance would need 320 GB. KL to itself times 1 + ε is d (r - 1 - log r)/2."""
    generator = torch.Generator().manual_seed(2)
    w, diagonal = torch.randn(200_000, 2, generator=generator).double(), torch.rand(200_000, generator=generator) + 0.5
    loc = torch.zeros(200_000, dtype=torch.float64)
    p = td.LowRankMultivariateNormal(loc, w, diagonal.double(), validate_args=False)
    grown = 1.0 + 1e-7
    q = td.LowRankMultivariateNormal(loc, w * math.sqrt(grown), diagonal.double() * grown, validate_args=False)
    small = math.log1p(1e-7)
    assert kb.kl(p, q).item() == pytest.approx(1e5 * (math.expm1(-small) + small), rel=1e-6)


def test_entropy_of_lkj_is_that_of_its_log_prob():
    """Over 20,000 draws, to 4 standard errors. PyTorch 2.13 draws rows from the third on from another Beta."""
    torch.manual_seed(0)
    size, eta = 4, 2.0
    factor = torch.zeros(20_000, size, size).double()
    factor[:, 0, 0] = 1.0
    for i in range(1, size):
        square = td.Beta(torch.tensor(i / 2).double(), torch.tensor(eta + (size - 1 - i) / 2).double()).sample(
            (20_000,)
        )
        direction = torch.nn.functional.normalize(torch.randn(20_000, i).double(), dim=-1)
        factor[:, i, :i] = square.sqrt().unsqueeze(-1) * direction
        factor[:, i, i] = (1.0 - square).sqrt()
    p = td.LKJCholesky(size, torch.tensor(eta).double())
    surprise = -p.log_prob(factor)
    assert abs(kb.entropy(p) - surprise.mean()) < 4.0 * surprise.std() / 20_000**0.5


def test_independent_products():
    """Rényi and entropy add, Hellinger's affinity and 1 + χ² multiply; JS and TV of a product do not split."""
    p = td.Gamma(torch.tensor([2.0, 3.0]).double(), torch.tensor([1.0, 2.0]).double())
    q = td.Weibull(torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 1.5]).double())
    joint = td.Independent(p, 1), td.Independent(q, 1)
    torch.testing.assert_close(kb.renyi(*joint, 0.7), kb.renyi(p, q, 0.7).sum())
    torch.testing.assert_close(kb.entropy(joint[0]), kb.entropy(p).sum())
    torch.testing.assert_close(1.0 - kb.hellinger(*joint) ** 2, (1.0 - kb.hellinger(p, q) ** 2).prod())
    torch.testing.assert_close(1.0 + kb.chi2(joint[1], joint[0]), (1.0 + kb.chi2(q, p)).prod())
    for verb in (kb.js, kb.tv):
        with pytest.raises(kb.NoExactMethod):
            verb(*joint)


def test_vectors_of_one_covariance_need_one_axis():
    """TV is erf(δ/√8), with δ Mahalanobis' distance; JS is that of N(0, 1) and N(δ, 1)."""
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    loc = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).double().requires_grad_()
    p = td.MultivariateNormal(torch.zeros(2).double(), covariance)
    q = td.MultivariateNormal(loc, covariance)
    distance = math.sqrt((loc[0] @ torch.linalg.inv(covariance) @ loc[0]).item())
    found = kb.tv(p, q)
    assert found.tolist() == [pytest.approx(math.erf(distance / math.sqrt(8.0)), rel=1e-9), 0.0]
    (slope,) = torch.autograd.grad(found.sum(), loc)
    along = torch.linalg.inv(covariance) @ loc[0].detach() / distance
    truth = math.exp(-(distance**2) / 8.0) / math.sqrt(2.0 * math.pi) * along
    # the integrand of TV has a corner, whose place between two nodes the slope feels to first order
    torch.testing.assert_close(slope, torch.stack([truth, 0.0 * truth]), rtol=1e-5, atol=0.0)
    unit = td.Normal(torch.tensor(0.0).double(), 1.0), td.Normal(torch.tensor(distance, dtype=torch.float64), 1.0)
    assert kb.js(p, q)[0].item() == pytest.approx(kb.js(*unit).item(), rel=1e-9)
    flat = [td.Independent(td.Normal(x, torch.ones(2).double()), 1) for x in (torch.zeros(2).double(), loc[0].detach())]
    assert kb.tv(*flat).item() == pytest.approx(math.erf(math.sqrt(2.0) / math.sqrt(8.0)), rel=1e-9)
    free = td.MultivariateNormal(loc[0], covariance.clone().requires_grad_())
    with pytest.raises(kb.NoExactMethod):  # its slope towards other covariances is not that of one axis
        kb.tv(p, free)


def test_chi2_of_vectors_is_renyi_of_order_two():
    p = td.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double() * 0.5)
    q = td.MultivariateNormal(torch.ones(2).double(), torch.tensor([[1.0, 0.2], [0.2, 1.0]]).double())
    torch.testing.assert_close(kb.chi2(p, q), torch.expm1(kb.renyi(p, q, 2.0)), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(kb.alpha(p, q, 2.0), 0.5 * kb.chi2(p, q), rtol=1e-12, atol=0.0)


VECTORS = {
    "Dirichlet": lambda x: td.Dirichlet(x.abs() + 0.05, validate_args=False),
    "LKJCholesky": lambda x: td.LKJCholesky(4, x[0].abs() + 0.05, validate_args=False),
    "Wishart": lambda x: td.Wishart(x[3].abs() + 2.01, scale_tril=_tril(x[:3]), validate_args=False),
    "MultivariateNormal": lambda x: td.MultivariateNormal(x[3:5], scale_tril=_tril(x[:3]), validate_args=False),
    "Multinomial": lambda x: td.Multinomial(5, torch.softmax(x, -1), validate_args=False),
}


def _tril(x):
    return torch.stack([torch.stack([x[0].abs() + 0.1, 0.0 * x[0]]), torch.stack([x[1], x[2].abs() + 0.1])])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", VECTORS)
@settings(max_examples=30, deadline=None)
@given(
    numbers=st.lists(st.floats(-8, 8, width=32), min_size=10, max_size=10),
    order=st.sampled_from([0.25, 0.5, 0.9, 2.0]),
)
def test_never_negative_and_zero_for_equals(family, dtype, numbers, order):
    """Far, and one step of the dtype apart, where cancellation would show first."""
    make = VECTORS[family]
    x, y = torch.tensor(numbers[:5], dtype=dtype), torch.tensor(numbers[5:], dtype=dtype)
    p = make(x)
    for other in (y, torch.nextafter(x, torch.tensor(0.0, dtype=dtype))):
        q = make(other)
        for value in (kb.kl(p, q), kb.kl(q, p), kb.jeffreys(p, q)):
            assert value.item() >= 0.0
        assert kb.renyi(p, q, order).item() >= 0.0
    assert kb.kl(p, make(x.clone())).item() == 0.0


def test_vmap_over_vectors():
    """Under a transform no value is known, and every branch is taken, that of factors of few columns too."""
    n = low_rank.LARGE
    g = torch.Generator().manual_seed(0)
    factor, means = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, 1), (3, n)))
    diagonal = torch.linspace(0.5, 2.0, n, dtype=torch.float64)

    def distance(mean, width):
        p = td.LowRankMultivariateNormal(mean, width * factor, diagonal, validate_args=False)
        zero = torch.zeros(n, dtype=torch.float64)
        return kb.kl(p, td.LowRankMultivariateNormal(zero, 2.0 * factor, width * diagonal, validate_args=False))

    widths = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    rows = torch.func.vmap(distance)(means, widths)
    alone = [distance(*at).item() for at in zip(means, widths, strict=True)]
    assert rows.tolist() == pytest.approx(alone, rel=1e-12)
