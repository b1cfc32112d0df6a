"""Listed classes beside logits by Triton, interpreted, against `core` in float64."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'kullback[triton]'")

from triton_common import SUMS, scores

from cases import call_of
from kullback import Drawn, Labels, Logits, TopK, divergences
from kullback.core import reduction
from kullback.core.readings import Side
from kullback.engines.triton import ops
from kullback.forms.sparse import Draws

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
TAILS = ("bucket", "renormalize")


def agree(total, p, q, rtol=1e-5):
    """Values and the gradients to every tensor that floats."""
    x, y = (
        tuple(t.detach().requires_grad_(t.is_floating_point()) for t in form.side(form.batch_shape).data)
        for form in (p, q)
    )
    left, right = Side(p.reading, x), Side(q.reading, y)
    call = call_of(total, left, right, p.num_classes)
    assert ops.why_not(call) is None
    values, truth = ops.rows(call, left, right), reduction.rows(total, left, right).detach()
    torch.testing.assert_close(values.detach(), truth, rtol=rtol, atol=1e-13, equal_nan=True)
    leaves = [t for t in (*x, *y) if t.requires_grad]
    upstream = torch.linspace(-1.0, 2.0, truth.numel(), dtype=torch.float64).reshape(truth.shape)
    got = torch.autograd.grad(values, leaves, upstream)
    wanted = tuple(t.requires_grad for t in (*x, *y))
    want = [g for g in reduction.gradients(total, left, right, truth, upstream, wanted) if g is not None]
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        size = float(theirs.detach().double().abs().nan_to_num().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(mine, theirs.detach(), rtol=rtol, atol=rtol * size + 1e-14, equal_nan=True)


def listed(a, k, tail, dtype=torch.float64):
    log_p, ids = torch.log_softmax(a, -1).topk(k, -1)
    return TopK(ids.flip(-1), log_p.flip(-1).to(dtype), a.shape[-1], tail=tail, validate=False)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("total", SUMS.values(), ids=SUMS)
def test_every_sum_on_both_sides(total, tail):
    a, b = scores(3, 13)
    a[0, 3] = b[1, 4] = b[2, 5] = a[2, 5] = -math.inf
    agree(total, listed(a, 5, tail), Logits(b), 1e-10)
    agree(total, Logits(b), listed(a, 5, tail), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_narrow_dtypes_and_temperatures(dtype, temperature):
    a, b = scores(4, 700)
    for tail in TAILS:
        p = listed(a, 40, tail, dtype)
        rtol = 1e-5 if dtype == torch.float32 else 2**-7 if dtype == torch.bfloat16 else 2**-10
        agree(SUMS["kl"], p, Logits(b.to(dtype), temperature), rtol)


@pytest.mark.parametrize("k", [1, 12, 13])
def test_any_number_of_classes(k):
    a, b = scores(2, 13)
    for tail in TAILS:
        agree(SUMS["kl"], listed(a, k, tail), Logits(b), 1e-9)


def test_a_rest_that_is_nothing_or_next_to_it():
    b = torch.full((3, 20), -math.inf, dtype=torch.float64)
    ids = torch.tensor([[3, 7, 19]]).expand(3, 3)
    b = b.scatter(-1, ids, torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64).expand(3, 3))
    b[1, 5], b[2, 5] = -900.0, math.nan
    log_p = torch.log(torch.tensor([[0.5, 0.25, 0.2]], dtype=torch.float64)).expand(3, 3)
    for tail in TAILS:
        agree(SUMS["kl"], TopK(ids, log_p, 20, tail=tail), Logits(b), 1e-10)
        agree(SUMS["js(0.1)"], TopK(ids, log_p, 20, tail=tail), Logits(b), 1e-10)


def test_what_was_drawn_may_repeat():
    ids, counts = torch.tensor([[5, 5, 12, 0], [0, 1, 2, 3]]), torch.tensor([[2, 1, 4, 0], [1, 1, 1, 1]])
    form = Draws(Drawn(ids, torch.full((2, 4), -1.0), 13, counts=counts))
    agree(SUMS["cross_entropy"], form, Logits(scores(2, 13)[1]), 1e-10)


def test_no_rows():
    p = TopK(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3), 13, tail="bucket")
    agree(SUMS["kl"], p, Logits(torch.zeros(0, 13)))


def test_what_has_no_kernel_says_so():
    a, b = scores(2, 13)

    def why(p, q, total=divergences.KL.sums[0]):
        sides = p.side(p.batch_shape), q.side(q.batch_shape)
        return ops.why_not(call_of(total, *sides, 13))

    assert "even shares" in why(listed(a, 3, "even"), Logits(b))
    assert "has no kernel" in why(listed(a, 3, "bucket"), Labels([0, 1], 13))
    assert "has no kernel" in why(listed(a, 3, "bucket"), listed(b, 3, "bucket"))
