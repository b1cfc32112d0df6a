"""Hidden states whose scores Triton reads: the same chunks, another engine behind them."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'kullback[triton]'")

from triton_common import with_tile

from kullback import Labels, LinearLogits, Logits, Term, engines, explain, kl, total
from kullback.divergences import CROSS_ENTROPY, KL

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning:triton.runtime.interpreter", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(autouse=True)
def _small_tile(monkeypatch):
    with_tile(monkeypatch, 8, 16)


@pytest.mark.parametrize("memory", [3 * 2 * 11 * 4, None])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_rows_and_totals_equal_those_of_whole_scores(memory, softcap):
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, 4, generator=g).requires_grad_() for n in (7, 11))
    other, y = Logits(torch.randn(7, 11, generator=g)), torch.arange(7)
    weights = torch.arange(7).double() / 7

    def both(form):
        terms = [Term(KL, other, form, weights), Term(CROSS_ENTROPY, Labels(y, 11), form, 0.1)]
        for value in (kl(other, form).sum(), total(terms)):
            yield from (value.detach(), *torch.autograd.grad(value, (h, w), retain_graph=True))

    form = LinearLogits(h, w, softcap=softcap, memory=memory)
    with engines.use("triton"):
        assert "then triton" in explain(other, form).manner
        found = list(both(form))
    for a, b in zip(found, both(LinearLogits(h.double(), w.double(), softcap=softcap).logits()), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=1e-5 * b.abs().max().item())
