"""The C++ engine against the specification in `core`: every sum of the table, every ordered pair of readings, every
dtype, value and gradient to both sides, ordinary rows and rows with edges, short, long and strided."""

import itertools
import math

import pytest
import torch

from cases import SMALL
from kullback import Labels, Logits, LogProbs, Probs
from kullback.core import reduction
from kullback.divergences import TABLE
from kullback.engines import cpu

pytestmark = pytest.mark.skipif(cpu.ABSENT is not None, reason=str(cpu.ABSENT))

READINGS = {
    "Logits": lambda s, dtype: Logits(s.to(dtype)),
    "Logits T=0.7": lambda s, dtype: Logits(s.to(dtype), 0.7),
    "LogProbs": lambda s, dtype: LogProbs(torch.log_softmax(s, -1).to(dtype), validate=False),
    "Probs": lambda s, dtype: Probs(torch.softmax(s, -1).to(dtype), validate=False),
    "one-hot": lambda s, dtype: Labels(s.argmax(-1), s.shape[-1]),
    "smooth all": lambda s, dtype: Labels(s.argmax(-1), s.shape[-1], 0.1),
    "smooth others": lambda s, dtype: Labels(s.argmax(-1), s.shape[-1], 0.1 if s.shape[-1] > 1 else 0.0, "others"),
}
PAIRS = list(itertools.product(READINGS, READINGS))
SOME = [
    ("Logits", "Logits"),
    ("Logits T=0.7", "Logits T=0.7"),
    ("Logits", "LogProbs"),
    ("Probs", "Logits T=0.7"),
    ("LogProbs", "Probs"),
    ("one-hot", "Logits"),
    ("Probs", "one-hot"),
    ("Logits", "smooth all"),
    ("smooth others", "LogProbs"),
]
SUMS = {str(total): total for divergence in TABLE for total in divergence.sums}
VALUE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}  # one ulp


def scores(shape, scale=1.0, holes=0.0, seed=0, apart=0.3):
    g = torch.Generator().manual_seed(seed)
    a = scale * torch.randn(shape, generator=g, dtype=torch.float64)
    b = a + apart * torch.randn(shape, generator=g, dtype=torch.float64)
    if holes:
        a[torch.rand(shape, generator=g) < holes] = -math.inf
        b[torch.rand(shape, generator=g) < holes] = -math.inf
        a[..., 0] = b[..., 0] = 0.0
    return a, b


def leaf(data):
    """A leaf over the very same memory layout."""
    return data.detach().requires_grad_(data.is_floating_point())


def compare(total, p, q, num_classes, seed=0, slack=0.0):
    """Values and gradients of one sum from the engine and from core, or an assertion that says where they part."""
    x, y = leaf(p.data), leaf(q.data)
    dtype = next((d.dtype for d in (x, y) if d.is_floating_point()), torch.float64)
    truth = reduction.rows(total, p.reading, q.reading, x, y).detach()
    values = cpu.rows(total, p.reading, q.reading, x, y, num_classes)
    tiny = 1e-13 if "LogAffinity" in str(total) else 1e-14 if dtype == torch.float64 else 2e-15
    torch.testing.assert_close(values.detach(), truth, rtol=VALUE[dtype], atol=tiny, equal_nan=True)
    wanted = x.requires_grad, y.requires_grad
    if not any(wanted):
        return
    upstream = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leaves = [data for data in (x, y) if data.requires_grad]
    got = torch.autograd.grad(values, leaves, upstream)
    want = reduction.gradients(total, p.reading, q.reading, x, y, truth, upstream, wanted)
    for mine, theirs in zip(got, [w.detach() for w in want if w is not None], strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        mine, theirs = mine.double(), theirs.double()
        same = (mine == theirs) | (mine.isnan() & theirs.isnan())
        row = theirs.abs().nan_to_num(posinf=0.0).amax(-1, keepdim=True) if theirs.numel() else theirs
        room = max(ROUNDING[dtype], slack) * row + VALUE[dtype] * 0.3 * upstream.abs().unsqueeze(-1)
        off = ~(same | ((mine - theirs).abs() <= room))
        assert not off.any(), (mine[off][:3], theirs[off][:3], off.nonzero()[:3])


def compare_all(a, b, dtype, pairs=PAIRS, sums=SUMS, slack=0.0):
    for (left, right), (name, total) in itertools.product(pairs, sums.items()):
        p, q = READINGS[left](a, dtype), READINGS[right](b, dtype)
        try:
            compare(total, p, q, a.shape[-1], slack=slack)
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
    # far apart x - wΣx cancels: at 1e22 against 1e11, core's own digits are few
    compare_all(a, b, dtype, pairs, sums, slack=1e-4 if case.name == "far_apart" else 0.0)


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
    total = SUMS[str(TABLE[0].sums[0])]
    p, q = Logits(LAYOUTS[left](a.float())), Logits(LAYOUTS[right](b.float()))
    compare(total, p, q, num_classes)
    labels = Labels(LAYOUTS[left](b.argmax(-1, keepdim=True)).squeeze(-1), num_classes, 0.1)
    compare(total, labels, q, num_classes)


@pytest.mark.parametrize("num_classes", [7, 600])
def test_rows_with_nan(num_classes):
    """A NaN row is NaN, alone; with a zero upstream gradient it sends back zeros."""
    total = TABLE[0].sums[0]
    a, b = (s.float() for s in scores((3, num_classes)))
    b[1, 2] = math.nan
    p, q = Logits(a).reading, Logits(b).reading
    x, y = leaf(a), leaf(b)
    values = cpu.rows(total, p, q, x, y, num_classes)
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
        values = cpu.rows(TABLE[0].sums[0], Logits(x).reading, Logits(x).reading, x, torch.randn(2, 600), 600)
        assert values.isnan().tolist() == [True, False]


def test_empty_and_single():
    for shape in ((0, 4), (2, 0, 3)):
        x = torch.zeros(shape, requires_grad=True)
        values = cpu.rows(TABLE[0].sums[0], Logits(x).reading, Logits(x).reading, x, x, shape[-1])
        assert values.shape == shape[:-1]
        values.sum().backward()
        assert x.grad.shape == shape
    x = torch.zeros(5, requires_grad=True)
    assert cpu.rows(TABLE[0].sums[0], Logits(x).reading, Logits(x).reading, x, x, 5).shape == ()


def test_half_floats_convert_exactly_both_ways():
    """Every finite float16 and bfloat16 is read as itself, and gradients round to nearest, ties to even."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        every = every[every.isfinite() & (every.abs() < 60000)]
        x = torch.stack([torch.zeros_like(every), every], -1)  # V = 2: value and gradient show the cell
        y = torch.zeros_like(x)
        for scale in (1.0, 3e-5, 1e-7):
            for data in (x.detach().requires_grad_(), x.float().requires_grad_()):
                values = cpu.rows(TABLE[0].sums[0], Logits(data).reading, Logits(y).reading, y.to(data.dtype), data, 2)
                values.backward(torch.full_like(values, scale))
                if data.dtype == dtype:
                    narrow = data.grad
                else:
                    torch.testing.assert_close(narrow, data.grad.to(dtype), rtol=0, atol=0)
