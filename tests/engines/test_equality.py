"""The C++ engine against the specification in `core`: every sum of the table, every ordered pair of readings, every
dtype, value and gradient to both sides, ordinary rows and rows with edges, short, long and strided."""

import itertools
import math

import pytest
import torch
from agreement import PAIRS, READINGS, SOME, SUMS, VALUE, compare, leaf, scores

from cases import SMALL, call_of
from kullback import Labels, Logits
from kullback.divergences import KL
from kullback.engines import cpu

pytestmark = pytest.mark.skipif(cpu.ABSENT is not None, reason=str(cpu.ABSENT))


def rows_of(x, y, total=KL.sums[0]):
    """KL of two tensors of logits, from the C++ engine."""
    p, q = Logits(x).side(x.shape[:-1]), Logits(y).side(y.shape[:-1])
    return cpu.prepare(call_of(total, p, q, x.shape[-1]))(p, q)


def compare_all(a, b, dtype, pairs=PAIRS, sums=SUMS):
    for (left, right), (name, total) in itertools.product(pairs, sums.items()):
        p, q = READINGS[left](a, dtype), READINGS[right](b, dtype)
        try:
            compare(total, p, q, a.shape[-1])
        except AssertionError as error:
            raise AssertionError(f"{left} | {right} | {name}: {error}") from error


@pytest.mark.parametrize("dtype", VALUE, ids=str)
@pytest.mark.parametrize("num_classes", [1, 7, 600])
def test_all_sums_on_all_pairs(num_classes, dtype):
    pairs = PAIRS if num_classes == 7 and dtype in (torch.float64, torch.float32) else SOME
    compare_all(*scores((3, num_classes)), dtype, pairs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_classes", [5, 700])
def test_cells_without_mass(num_classes, dtype):
    compare_all(*scores((4, num_classes), scale=2.0, holes=0.2), dtype, SOME)


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_edge_rows(case, dtype):
    a, b = case.make()
    pairs = [pair for pair in SOME if a.numel() or not any("o" in side and "L" not in side for side in pair)]
    # at p = q total variation has a corner, where the sign of rounding decides
    sums = {name: s for name, s in SUMS.items() if case.name != "equal" or "tv" not in name}
    compare_all(a, b, dtype, pairs, sums)


@pytest.mark.parametrize("dtype", VALUE, ids=str)
@pytest.mark.parametrize("shape", [(2, 20_000), (1, 40_001), (3, 513), (5, 512)])
def test_long_rows(shape, dtype):
    pairs = [("Logits", "Logits"), ("Probs", "Logits T=0.7"), ("one-hot", "Logits"), ("LogProbs", "smooth all")]
    compare_all(*scores(shape, scale=3.0), dtype, pairs[:1] if dtype.itemsize == 2 else pairs)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_classes", [3, 10, 33, 64, 100])
def test_many_short_rows(num_classes, masked):
    a, b = scores((150, num_classes), scale=3.0, holes=0.02 if masked else 0.0)
    pairs = [("Logits", "Logits"), ("Logits T=0.7", "Logits T=0.7"), ("one-hot", "Logits")]
    for dtype in (torch.float32, torch.bfloat16):
        compare_all(a, b, dtype, pairs)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 30.0, 300.0])
def test_scales(scale):
    for num_classes in (9, 1000):
        compare_all(*scores((3, num_classes), scale=scale, apart=scale), torch.float32, [("Logits", "Logits")])


LAYOUTS = {
    "rows of a wider tensor": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "transposed batch": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "strided columns": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "offset storage": lambda x: torch.cat([x[:1], x])[1:],
}


@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("num_classes", [10, 130])
def test_layouts(left, right, num_classes):
    a, b = scores((4, 3, num_classes))
    total = SUMS[str(KL.sums[0])]
    p, q = Logits(LAYOUTS[left](a.float())), Logits(LAYOUTS[right](b.float()))
    compare(total, p, q, num_classes)
    labels = Labels(LAYOUTS[left](b.argmax(-1, keepdim=True)).squeeze(-1), num_classes, 0.1)
    compare(total, labels, q, num_classes)


@pytest.mark.parametrize("num_classes", [7, 600])
def test_rows_with_nan(num_classes):
    """A NaN row is NaN, alone; with a zero upstream gradient it sends back zeros."""
    a, b = (s.float() for s in scores((3, num_classes)))
    b[1, 2] = math.nan
    x, y = leaf(a), leaf(b)
    values = rows_of(x, y)
    assert values.isnan().tolist() == [False, True, False]
    to_x, to_y = torch.autograd.grad(values, (x, y), torch.tensor([1.0, 0.0, 1.0]).double(), retain_graph=True)
    assert to_x[1].count_nonzero() == 0
    assert to_y[1].count_nonzero() == 0
    to_x, to_y = torch.autograd.grad(values, (x, y), torch.ones(3).double())
    assert to_x[1].isnan().all()
    assert to_x[0].isfinite().all()
    assert to_x[0].count_nonzero()


def test_payloads_of_nan_do_not_hide():
    """Every bit pattern of NaN stays one through the exponential's integer arithmetic."""
    for bits in (-1, 0x7F800001, 0x7FC001FF, -0x7FFFFF):
        x = torch.randn(2, 600)
        x.view(torch.int32)[0, 77] = bits
        values = rows_of(x, torch.randn(2, 600))
        assert values.isnan().tolist() == [True, False]


def test_empty_and_single():
    for shape in ((0, 4), (2, 0, 3)):
        x = torch.zeros(shape, requires_grad=True)
        values = rows_of(x, x)
        assert values.shape == shape[:-1]
        values.sum().backward()
        assert x.grad.shape == shape
    x = torch.zeros(5, requires_grad=True)
    assert rows_of(x, x).shape == ()


def test_half_floats_convert_exactly_both_ways():
    """Every finite float16 and bfloat16 is read as itself, and gradients round to nearest, ties to even."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        every = every[every.isfinite() & (every.abs() < 60000)]
        x = torch.stack([torch.zeros_like(every), every], -1)  # V = 2: value and gradient show the cell
        y = torch.zeros_like(x)
        for scale in (1.0, 3e-5, 1e-7):
            for data in (x.detach().requires_grad_(), x.float().requires_grad_()):
                values = rows_of(y.to(data.dtype), data)
                values.backward(torch.full_like(values, scale))
                if data.dtype == dtype:
                    narrow = data.grad
                else:
                    torch.testing.assert_close(narrow, data.grad.to(dtype), rtol=0, atol=0)
