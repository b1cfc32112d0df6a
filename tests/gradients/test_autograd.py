"""What autograd may ask: any upstream gradient, any subset of inputs, twice over one graph, rows that must not leak."""

import itertools
import math

import pytest
import torch

from cases import DATA, FORMS, normal
from kullback import Labels, Logits, entropy, kl
from kullback.verbs import measure

pytestmark = pytest.mark.usefixtures("engine")


def pair(dtype=torch.float64):
    return normal(4, 6, seed=1).to(dtype), normal(4, 6, seed=2).to(dtype)


def value(divergence, a, b):
    return measure(divergence, Logits(a), Logits(b))


def grads(divergence, a, b, upstream):
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    return torch.autograd.grad(value(divergence, x, y), (x, y), upstream)


def test_each_row_is_scaled_by_its_upstream_gradient(divergence):
    a, b = pair()
    upstream = torch.tensor([2.0, -1.0, 0.0, 1e-3], dtype=torch.float64)
    ones = grads(divergence, a, b, torch.ones(4, dtype=torch.float64))
    for scaled, plain in zip(grads(divergence, a, b, upstream), ones, strict=True):
        torch.testing.assert_close(scaled, upstream[:, None] * plain, rtol=1e-14, atol=0)
        assert not scaled[2].any()


def test_an_expanded_upstream_gradient(divergence):
    """`.sum()` sends a stride-0 one."""
    a, b = pair()
    expanded = grads(divergence, a, b, torch.ones((), dtype=torch.float64).expand(4))
    assert all(map(torch.equal, expanded, grads(divergence, a, b, torch.ones(4, dtype=torch.float64))))


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_every_choice_of_inputs_that_require_grad(divergence, wanted):
    a, b = pair()
    full = grads(divergence, a, b, torch.ones(4, dtype=torch.float64))
    leaves = [s.clone().requires_grad_(w) for s, w in zip((a, b), wanted, strict=True)]
    value(divergence, *leaves).sum().backward()
    for leaf, truth, w in zip(leaves, full, wanted, strict=True):
        assert (leaf.grad is not None) == w
        assert not w or torch.equal(leaf.grad, truth)


def test_no_graph_without_an_input_that_requires_grad(divergence):
    assert not value(divergence, *pair()).requires_grad


def test_backward_twice_over_a_retained_graph(divergence):
    x, y = (s.requires_grad_() for s in pair())
    total = value(divergence, x, y).sum()
    total.backward(retain_graph=True)
    once = x.grad.clone(), y.grad.clone()
    total.backward()
    assert torch.equal(x.grad, 2 * once[0])
    assert torch.equal(y.grad, 2 * once[1])


def test_the_differentiable_gradient_is_the_gradient(divergence):
    a, b = pair()
    plain = grads(divergence, a, b, torch.ones(4, dtype=torch.float64))
    x, y = a.requires_grad_(), b.requires_grad_()
    graph = torch.autograd.grad(value(divergence, x, y).sum(), (x, y), create_graph=True)
    torch.testing.assert_close(graph, plain, rtol=1e-12, atol=1e-15)


def test_the_same_tensor_on_both_sides(divergence):
    """Its gradient is the sum of both sides': 0 at equality, where every divergence has its minimum."""
    x = normal(3, 5, seed=3).requires_grad_()
    (grad,) = torch.autograd.grad(value(divergence, x, x).sum(), x)
    if divergence.name == "cross_entropy":  # entropy: -p (log p + H)
        p = torch.softmax(x, -1).detach()
        torch.testing.assert_close(grad, -p * (p.log() + entropy(Logits(x.detach()))[:, None]), rtol=1e-12, atol=1e-15)
    else:
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-15)


@pytest.mark.parametrize("poison", [math.nan, math.inf, "all -inf"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_without_a_distribution_is_nan_alone(divergence, poison, side):
    sides = [s.clone() for s in pair()]
    if poison == "all -inf":
        sides[side][1] = -math.inf
    else:
        sides[side][1, 2] = poison
    clean = value(divergence, *(s.requires_grad_() for s in pair()))
    x, y = (s.requires_grad_() for s in sides)
    got = value(divergence, x, y)
    assert got[1].isnan()
    assert torch.equal(got[[0, 2, 3]], clean[[0, 2, 3]])

    dropped = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    truth = grads(divergence, *pair(), dropped)
    for g, t in zip(torch.autograd.grad(got, (x, y), dropped, retain_graph=True), truth, strict=True):
        assert torch.equal(g, t)
    kept = torch.autograd.grad(got, (x, y), torch.ones(4, dtype=torch.float64))
    for g, t in zip(kept, truth, strict=True):
        assert torch.equal(g[[0, 2, 3]], t[[0, 2, 3]])
        assert g[1].isnan().all()


def test_infinite_rows_send_zeros_whatever_comes_up(divergence):
    x = torch.tensor([[0.0, 1.0], [0.5, -math.inf]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0, 1.0], [-math.inf, 0.5]], dtype=torch.float64, requires_grad=True)
    got = value(divergence, x, y)
    for upstream in ([1.0, 1.0], [1.0, 0.0], [1.0, -3.0], [1.0, 1e300]):
        to_x, to_y = torch.autograd.grad(got, (x, y), torch.tensor(upstream, dtype=torch.float64), retain_graph=True)
        if got[1] == math.inf:
            assert not to_x[1].any()
            assert not to_y[1].any()
        assert torch.isfinite(to_x[0]).all()
        assert torch.isfinite(to_y[0]).all()


@pytest.mark.parametrize("names", list(itertools.product(FORMS, FORMS)), ids="-".join)
def test_broadcast_sides_receive_the_sum(divergence, names):
    a, b = normal(5, seed=4), normal(2, 3, 5, seed=5)
    x, y = (DATA[n](s, torch.float64).requires_grad_() for n, s in zip(names, (a, b), strict=True))
    got = measure(divergence, FORMS[names[0]](x), FORMS[names[1]](y))
    assert got.shape == (2, 3)
    to_x, to_y = torch.autograd.grad(got.sum(), (x, y))

    whole = x.detach().expand(2, 3, 5).clone().requires_grad_()
    again = measure(divergence, FORMS[names[0]](whole), FORMS[names[1]](y))
    assert torch.equal(again, got)
    want_x, want_y = torch.autograd.grad(again.sum(), (whole, y))
    torch.testing.assert_close(to_x, want_x.sum((0, 1)), rtol=1e-13, atol=1e-16)
    assert torch.equal(to_y, want_y)


def test_both_sides_broadcast():
    x, y = normal(3, 1, 4, seed=6).requires_grad_(), normal(1, 2, 4, seed=7).requires_grad_()
    got = kl(Logits(x), Logits(y))
    assert got.shape == (3, 2)
    got.sum().backward()
    for i, j in itertools.product(range(3), range(2)):
        assert torch.equal(got[i, j], kl(Logits(x[i, 0]), Logits(y[0, j])))
    assert x.grad.shape == x.shape
    assert y.grad.shape == y.shape


def test_labels_broadcast_against_columns():
    y = normal(2, 4, seed=8).requires_grad_()
    got = kl(Labels([[0], [3]], num_classes=4), Logits(y))
    torch.testing.assert_close(got, torch.log_softmax(y, -1)[:, [0, 3]].T.neg(), rtol=1e-13, atol=0)
    got.sum().backward()
    assert y.grad.shape == (2, 4)
