"""torch.func: vmap, grad, jvp, hessian, and their compositions."""

import pytest
import torch
from torch.func import grad, grad_and_value, hessian, jacrev, jvp, vmap

from cases import FORMS, normal
from kullback import Labels, Logits, LogProbs, Probs, kl
from kullback.verbs import measure

pytestmark = [
    pytest.mark.usefixtures("engine"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # said by the import of forward mode itself
]
A, B = normal(4, 5, seed=1), normal(4, 5, seed=2)


def of(divergence):
    return lambda x, y: measure(divergence, Logits(x), Logits(y))


def same(x, y, rtol=1e-11, atol=1e-13):
    torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


def test_vmap_is_the_batch(divergence):
    f = of(divergence)
    same(vmap(f)(A, B), f(A, B), rtol=1e-14, atol=0)
    same(vmap(f, in_dims=(0, None))(A, B[0]), f(A, B[0]), rtol=1e-14, atol=0)
    same(vmap(f, in_dims=1)(A.T, B.T), f(A, B), rtol=1e-14, atol=0)
    same(vmap(vmap(f, (None, 0)), (0, None))(A, B), f(A[:, None], B[None]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", FORMS)
def test_vmap_over_forms(name):
    data = {"Logits": A, "LogProbs": torch.log_softmax(A, -1), "Probs": torch.softmax(A, -1)}[name]
    same(
        vmap(lambda x, y: kl(FORMS[name](x), Logits(y)))(data, B), kl(FORMS[name](data), Logits(B)), rtol=1e-14, atol=0
    )


def test_vmap_over_labels():
    labels = torch.tensor([0, 4, 2, 2])
    same(vmap(lambda y, b: kl(Labels(y, 5, 0.1), Logits(b)))(labels, B), kl(Labels(labels, 5, 0.1), Logits(B)))


def test_grad_is_autograd(divergence):
    f = of(divergence)
    x, y = A.clone().requires_grad_(), B.clone().requires_grad_()
    truth = torch.autograd.grad(f(x, y).sum(), (x, y))
    same(grad(lambda x, y: f(x, y).sum(), argnums=(0, 1))(A, B), truth)
    gradients, value = grad_and_value(lambda x, y: f(x, y).sum())(A, B)
    same(gradients, truth[0])
    same(value, f(A, B).sum())


def test_vmap_over_grad(divergence):
    f = of(divergence)
    per_row = vmap(grad(f, argnums=(0, 1)))(A, B)
    same(per_row, grad(lambda x, y: f(x, y).sum(), argnums=(0, 1))(A, B))


def test_jvp_is_the_gradient_times_the_tangent(divergence):
    f = of(divergence)
    u, v = normal(4, 5, seed=3), normal(4, 5, seed=4)
    value, change = jvp(f, (A, B), (u, v))
    to_x, to_y = grad(lambda x, y: f(x, y).sum(), argnums=(0, 1))(A, B)
    same(value, f(A, B))
    same(change, (to_x * u + to_y * v).sum(-1))
    same(jvp(lambda x: f(x, B), (A,), (u,))[1], (to_x * u).sum(-1))


def test_hessian_is_that_of_double_backward(divergence):
    f = of(divergence)
    x = A[0].clone().requires_grad_()
    truth = torch.autograd.functional.hessian(lambda x: f(x, B[0]), x)
    same(hessian(lambda x: f(x, B[0]))(A[0]), truth, rtol=1e-9, atol=1e-11)
    same(jacrev(grad(lambda x: f(x, B[0])))(A[0]), truth, rtol=1e-9, atol=1e-11)
    same(truth, truth.T, rtol=1e-9, atol=1e-11)


def test_hessian_of_kl_at_equality_is_the_fisher_information():
    p = torch.softmax(A[0], -1)
    fisher = torch.diag(p) - p[:, None] * p[None, :]
    same(hessian(lambda y: kl(Logits(A[0]), Logits(y)))(A[0]), fisher, rtol=1e-12, atol=1e-15)


def test_values_are_not_checked_inside_vmap():
    """Reading values is impossible there: a wrong row is not refused but computed as given."""
    p = torch.tensor([[0.5, 0.6]])
    assert vmap(lambda x: kl(Probs(x), Probs(x)))(p).tolist() == [0.0]
    assert vmap(lambda x: kl(LogProbs(x), LogProbs(x)))(p).tolist() == [0.0]
