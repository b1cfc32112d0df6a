"""What it means that the C++ engine agrees with the specification in `core`, for the tests that compare them."""

import itertools
import math

import torch

from cases import call_of
from kullback import Labels, Logits, LogProbs, Probs
from kullback.core import reduction
from kullback.core.coarse import refined
from kullback.core.readings import LogitsReading, LogProbsReading, Side
from kullback.divergences import TABLE
from kullback.engines import cpu

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


NORMALIZER = {torch.float64: 1e-5, torch.float32: 3e-2}  # the error of log Z, over VALUE


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


def compare(total, p, q, num_classes, seed=0):
    """Values and gradients of one sum from the engine and from core, or an assertion that says where they part."""
    # listed classes get their gradient from core in any case
    x, y = (tuple(leaf(x) if len(form.tensors) == 1 else x.detach() for x in form.tensors) for form in (p, q))
    sides = [side for side in (x, y) if len(side) == 1 and side[0].is_floating_point()]
    dtype = torch.float32 if sides and all(side[0].dtype != torch.float64 for side in sides) else torch.float64
    left, right = Side(p.reading, x), Side(q.reading, y)
    truth = reduction.rows(total, left, right).detach()
    values = cpu.prepare(call_of(total, left, right, num_classes))(left, right)
    tiny = 1e-13 if "log_affinity" in str(total) else 1e-14 if dtype == torch.float64 else 2e-15
    torch.testing.assert_close(values.detach(), truth, rtol=VALUE[dtype], atol=tiny, equal_nan=True)
    wanted = tuple(data.requires_grad for data in (*x, *y))
    if not any(wanted):
        return
    upstream = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leaves = [data for data in (*x, *y) if data.requires_grad]
    got = torch.autograd.grad(values, leaves, upstream)
    want = reduction.gradients(total, left, right, truth, upstream, wanted)
    pair, alone = reduction.cells(p.detach().side(p.batch_shape), q.detach().side(q.batch_shape))
    partials = total.partials(pair, total.of(pair))
    if alone is not None:
        fine = [form.detach().side(form.batch_shape).weights() for form in (p, q)]
        partials = [refined(*each, alone) for each in zip(partials, fine, pair, strict=True)]
        pair = fine
    conditions = [
        condition(form.reading, weights, partial, NORMALIZER[dtype]) * upstream.unsqueeze(-1).abs()
        for form, weights, partial, data in zip((p, q), pair, partials, (x, y), strict=True)
        if data[0].requires_grad
    ]
    for mine, theirs, parts in zip(got, [w.detach() for w in want if w is not None], conditions, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        rounding = max(ROUNDING[dtype], ROUNDING[mine.dtype])
        finfo = torch.finfo(mine.dtype)
        ulp = finfo.smallest_normal * finfo.eps  # of a subnormal number
        mine, theirs = mine.double(), theirs.double()
        same = (mine == theirs) | (mine.isnan() & theirs.isnan())
        room = rounding * theirs.abs() + VALUE[dtype] * parts + 1e-14 * upstream.abs().unsqueeze(-1) + ulp
        off = ~(same | ((mine - theirs).abs() <= room))
        assert not off.any(), (mine[off][:3], theirs[off][:3], off.nonzero()[:3])


def condition(reading, weights, partial, shift):
    """The size of the terms whose difference a gradient is; its error is that of their rounding, and `shift` of d."""
    x = partial.dlog.abs() + shift * weights.w
    w = weights.w + 2e-33  # times VALUE: the weights below e^-87, which are 0 in single precision
    if isinstance(reading, LogitsReading):
        return (x + w * x.sum(-1, keepdim=True)) / reading.temperature
    if isinstance(reading, LogProbsReading):
        return x + abs(partial.plain) * w
    return x / w.clamp(min=1e-300) + abs(partial.plain)
