"""The Triton kernels, interpreted on the CPU, against `core` in float64: value and gradients to both sides."""

import itertools
import math

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'kullback[triton]'")

from triton_common import READINGS, SUMS, compare, edge_rows, leaf, scores, with_tile

from cases import call_of
from kullback import Labels, Logits, LogProbs, Probs
from kullback.core import reduction
from kullback.core.readings import Side
from kullback.divergences import CROSS_ENTROPY, HELLINGER, KL, TV, js
from kullback.engines.triton import ops

# the interpreter is NumPy, which says aloud what a GPU does in silence: inf - inf in branches that are discarded
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("total", SUMS.values(), ids=SUMS)
def test_every_sum_on_every_edge(total, dtype, monkeypatch):
    with_tile(monkeypatch, 128, 16)
    a, b = edge_rows()
    compare(total, Logits(a.to(dtype)), Logits(b.to(dtype)))


def rows_of(total, reading, x, y):
    """A sum of two tensors of one reading, from the engine."""
    p, q = Side(reading, (x,)), Side(reading, (y,))
    return ops.rows(call_of(total, p, q, x.shape[-1]), p, q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["kl", "js(0.1)", "chi2", "cross_entropy"])
def test_half_precision_on_every_edge(name, dtype, monkeypatch):
    with_tile(monkeypatch, 128, 64)
    a, b = edge_rows()
    compare(SUMS[name], Logits(a.to(dtype)), Logits(b.to(dtype)))


@pytest.mark.parametrize("total", SUMS.values(), ids=SUMS)
def test_every_sum_between_temperatures(total, monkeypatch):
    with_tile(monkeypatch, 128, 32)
    a, b = edge_rows()
    compare(total, Logits(a.float(), 2.0), Logits(b.float(), 0.7))


@pytest.mark.parametrize("total", SUMS.values(), ids=SUMS)
def test_every_sum_of_probabilities(total, monkeypatch):
    with_tile(monkeypatch, 128, 64)
    a, b = (torch.softmax(s, -1).float() for s in edge_rows())
    compare(total, Probs(a, validate=False), Probs(b, validate=False))


@pytest.mark.parametrize("names", list(itertools.product(READINGS, READINGS)), ids=" ".join)
def test_every_pair_of_readings(names, monkeypatch):
    with_tile(monkeypatch, 8, 8)
    a, b = scores(5, 13)
    a[1, 2], b[2, 3], a[3, 4], b[3, 4] = (-math.inf,) * 4
    p, q = (READINGS[name](s, torch.float32) for name, s in zip(names, (a, b), strict=True))
    for total in (KL.sums[0], CROSS_ENTROPY.sums[0]):
        compare(total, p, q)


@pytest.mark.parametrize("left", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("right", [torch.float64, torch.float16], ids=str)
def test_mixed_dtypes(left, right, monkeypatch):
    with_tile(monkeypatch, 4, 8)
    a, b = scores(3, 11)
    p, q = Logits(a.to(left)), Logits(b.to(right))
    x, y = leaf(p.data), leaf(q.data)
    got = torch.autograd.grad(rows_of(KL.sums[0], p.reading, x, y).sum(), (x, y))
    truth = reduction.rows(KL.sums[0], Side(p.reading, (x,)), Side(q.reading, (y,)))
    want = torch.autograd.grad(truth.sum(), (x, y))
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        # one rounding to the gradient's own dtype, at worst float16's subnormal step, of float32 or float64 cells
        rtol = max(2 * torch.finfo(mine.dtype).eps, 1e-14 if torch.float64 in (left, right) else 1e-5)
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=1e-15 if mine.dtype == torch.float64 else 1e-7)


@pytest.mark.parametrize("num_rows", [0, 1, 5])
@pytest.mark.parametrize("num_columns", [1, 2, 3, 15, 16, 17, 33])
def test_remainders(num_rows, num_columns, monkeypatch):
    with_tile(monkeypatch, 2, 8, span=1)
    a, b = scores(num_rows, num_columns)
    compare(KL.sums[0], Logits(a.float()), Logits(b.float()))


def test_the_tile_that_a_gpu_would_use():
    a, b = scores(3, 1500)
    compare(KL.sums[0], Logits(a.bfloat16()), Logits(b.bfloat16()))
    compare(TV.sums[0], Logits(a.float()), Logits(b.float()))


def test_more_rows_than_a_grid_axis_holds(monkeypatch):
    with_tile(monkeypatch, 1 << 15, 2)
    a, b = scores(70_001, 2)
    compare(KL.sums[0], Logits(a.float()), Logits(b.float()))


def test_rows_further_apart_than_32_bits():
    step = 2**31
    buffer = torch.empty(step + 64, dtype=torch.bfloat16)  # untouched memory costs nothing
    a, b = (s.bfloat16() for s in scores(2, 8))
    far = buffer.as_strided((2, 8), (step, 1))
    far.copy_(a)
    compare(KL.sums[0], Logits(far), Logits(b))


@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize("step", [0.3, 1e-2, 2e-5], ids=lambda step: f"kl~{step**2 / 2:.0e}")
@pytest.mark.parametrize("readings", [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)], ids=str)
def test_small_values_keep_their_digits(step, offset, readings, monkeypatch):
    """The law's 1e-5 at a true value of 1e-9, under a common offset that rounds by more than any log(q/p)."""
    with_tile(monkeypatch, 4, 256)
    a = scores(3, 1000, seed=11)[0]
    b = a + step * scores(3, 1000, seed=13)[0]
    p, q = Logits(a.float(), readings[0]), Logits((b + offset).float(), readings[1])
    p = Logits((p.data.double() + offset).float() - offset, readings[0]) if offset else p  # the same grid of float32
    for total in (KL.sums[0], js(0.5).sums[0], TV.sums[0], HELLINGER.sums[0]):
        compare(total, p, q, floor=1e-18)


@pytest.mark.parametrize("weight", [2e-6, 1e-3, 0.1, 0.9, 1.0 - 1e-3, 1.0 - 2e-6])
def test_js_keeps_its_digits_at_weights_near_0_and_1(weight, monkeypatch):
    """log m/p and log m/q are as small as the weights there; no term of js is a difference of p and q (unit = 0)."""
    with_tile(monkeypatch, 16, 64)
    far = torch.linspace(-12.0, 12.0, 61, dtype=torch.float64)
    a = torch.stack([0.3 * far.roll(7), far, torch.zeros(61), far.flip(0)])
    b = torch.stack([far, 0.2 * far, far, far.roll(3)])
    compare(js(weight).sums[0], Logits(a.float()), Logits(b.float()), floor=1e-16, unit=0.0)


@pytest.mark.parametrize("num_columns", [2, 3, 64])
def test_short_rows_keep_their_digits_too(num_columns):
    a = scores(16, num_columns, seed=31)[0]
    b = a + 4e-5 * scores(16, num_columns, seed=33)[0]
    for total in (KL.sums[0], HELLINGER.sums[0]):
        compare(total, Logits(a.float()), Logits((b - 7.0).float()), floor=1e-17)


def test_a_narrow_difference_of_unlike_readings(monkeypatch):
    """d = log(q/p) keeps its digits between log-probabilities and logits, and between two temperatures, too."""
    with_tile(monkeypatch, 4, 256)
    a, _ = scores(3, 1000, seed=21)
    near = a + 1e-4 * scores(3, 1000, seed=22)[0]
    for p, q in (
        (LogProbs(torch.log_softmax(a, -1).float()), Logits(near.float())),
        (Logits((2.0 * a).float(), 2.0), Logits(near.float())),  # the interpreter's fma rounds twice: exact for 2 only
        (Probs(torch.softmax(a, -1).float()), Logits(near.float())),
    ):
        compare(KL.sums[0], p, q, floor=1e-18)


def test_layouts(monkeypatch):
    with_tile(monkeypatch, 8, 8)
    a, b = (s.float() for s in scores(2, 3, 10))
    plain = Logits(a.clone()), Logits(b.clone())
    for p, q in (
        (Logits(a.transpose(0, 1)), Logits(b.transpose(0, 1))),
        (Logits(a.mT), Logits(b.mT)),
        (Logits(a[..., ::2]), Logits(b[..., 1::2])),
        (Logits(a[:, :1].expand(2, 3, 10)), Logits(b)),
        (Logits(a[:1, :1].expand(2, 3, 10)), Labels(torch.tensor([0, 1, 2]).expand(2, 3), 10, 0.1)),
        (Logits(a[..., 1:]), Logits(b[..., :-1])),
        (Logits(a[0, 0]), Logits(b[0, 0])),
    ):
        compare(KL.sums[0], p, q)
    assert torch.equal(a, plain[0].data)  # no input was written to
    assert torch.equal(b, plain[1].data)


def test_upstream_gradients(monkeypatch):
    with_tile(monkeypatch, 8, 8)
    a, b = (s.float() for s in scores(4, 9))
    b[3, 2] = -math.inf  # a row of value +inf
    p, q = Logits(a), Logits(b)
    for upstream in (
        torch.tensor([0.0, -3.0, 1e-30, 2.0], dtype=torch.float64),
        torch.tensor(0.25, dtype=torch.float64).expand(4),
    ):
        compare(KL.sums[0], p, q, upstream=upstream)


def test_a_dropped_row_may_hold_anything(monkeypatch):
    with_tile(monkeypatch, 4, 8)
    a, b = (s.float() for s in scores(4, 9))
    a[0, 1], b[1, 1], a[2] = math.nan, math.inf, -math.inf
    x, y = leaf(a), leaf(b)
    values = rows_of(KL.sums[0], Logits(a).reading, x, y)
    assert values.isnan().tolist() == [True, True, True, False]
    to_x, to_y = torch.autograd.grad(values, (x, y), torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64))
    assert torch.equal(to_x[:3], torch.zeros(3, 9))
    assert torch.equal(to_y[:3], torch.zeros(3, 9))
    assert to_x[3].abs().min() > 0


def test_equal_rows_are_exactly_zero(monkeypatch):
    with_tile(monkeypatch, 8, 32)
    a = scores(4, 100)[0].float()
    for name, total in SUMS.items():
        if "cross_entropy" in name or "log_affinity" in name:
            continue
        values = rows_of(total, Logits(a, 0.7).reading, a, a.clone())
        assert torch.equal(values, torch.zeros(4).double()), name
