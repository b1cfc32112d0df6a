"""torch.compile: one graph, the same values and gradients, and one compilation for every batch size."""

import pytest
import torch

from cases import DATA, FORMS, normal
from kullback import Labels, Logits, js, kl, renyi
from kullback.divergences import TABLE
from kullback.verbs import measure

# PyTorch's own words, while it traces an autograd.Function
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # said by the import of its own compiler
]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


class Counter:
    """A backend that runs eagerly and counts graphs."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, module, inputs):
        self.graphs += 1
        return module.forward


def both(function, *data, upstream=None, **options):
    """Values and gradients of a function, eager and compiled."""
    results = []
    for f in (function, torch.compile(function, fullgraph=True, **options)):
        leaves = [x.clone().requires_grad_() for x in data]
        value = f(*leaves)
        up = torch.linspace(-1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
        results.append((value.detach(), *torch.autograd.grad(value, leaves, up if upstream is None else upstream)))
    return results


def same(results, rtol=1e-12):
    torch.testing.assert_close(results[0], results[1], rtol=rtol, atol=1e-15)


def edge_rows(dtype=torch.float64):
    """Random, equal, and one without mass in places."""
    a, b = normal(4, 6, seed=1), normal(4, 6, seed=2)
    b[1] = a[1]
    a[2, 3] = b[2, 3] = float("-inf")
    a[3, 0] = float("-inf")
    return a.to(dtype), b.to(dtype)


@pytest.mark.parametrize("row", TABLE, ids=lambda d: d.name)
def test_every_divergence(row):
    same(both(lambda x, y: measure(row, Logits(x), Logits(y)), *edge_rows(), backend="aot_eager"))


@pytest.mark.parametrize("names", [("Logits", "Probs"), ("Probs", "LogProbs"), ("LogProbs", "Logits")], ids="-".join)
def test_forms(names):
    data = (DATA[n](s, torch.float64) for n, s in zip(names, edge_rows(), strict=True))
    same(both(lambda x, y: kl(FORMS[names[0]](x), FORMS[names[1]](y)), *data, backend="aot_eager"))


def test_labels_and_temperature():
    labels = torch.tensor([0, 5, 1, 2])
    function = lambda y: kl(Labels(labels, 6, 0.1), Logits(y, temperature=2.0))  # noqa: E731
    same(both(function, normal(4, 6, seed=3), backend="aot_eager"))


def test_an_infinite_row():
    a, b = edge_rows()
    eager, compiled = both(lambda x, y: kl(Logits(x), Logits(y)), b, a, backend="aot_eager")
    assert eager[0][3] == float("inf")
    same((eager, compiled))


def test_the_fused_code():
    """Inductor, in float32: same to the last digits, near equality too."""
    a = normal(8, 33, seed=4).float()
    b = a + torch.tensor([1e-4, 1e-3, 1e-2, 0.1, 1.0, 2.0, 4.0, 0.0])[:, None] * normal(8, 33, seed=5).float()
    same(both(lambda x, y: kl(Logits(x), Logits(y)) + js(Logits(x), Logits(y)), a, b), rtol=2e-6)


@pytest.mark.parametrize("verb", [kl, lambda p, q: renyi(p, q, 2.0)], ids=["kl", "renyi"])
def test_a_new_batch_size_does_not_compile_again(verb):
    counter = Counter()
    function = torch.compile(lambda x, y: verb(Logits(x), Logits(y)), fullgraph=True, dynamic=True, backend=counter)
    for n in (2, 3, 7, 64):
        x, y = normal(n, 5, seed=n).requires_grad_(), normal(n, 5, seed=n + 1)
        value = function(x, y)
        torch.testing.assert_close(value, verb(Logits(x), Logits(y)), rtol=1e-13, atol=0)
        value.sum().backward()
        assert x.grad is not None
    assert counter.graphs == 1


def test_automatic_dynamic_shapes_compile_at_most_twice():
    counter = Counter()
    function = torch.compile(lambda x, y: kl(Logits(x), Logits(y)), fullgraph=True, backend=counter)
    for n in (2, 3, 7, 64, 65):
        function(normal(n, 5, seed=n), normal(n, 5, seed=n + 1))
    assert counter.graphs <= 2
