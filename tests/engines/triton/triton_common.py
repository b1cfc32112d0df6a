"""What the Triton engine's tests share: packed edge rows, readings by name, and the comparison with `core`."""

import math

import torch

from cases import SMALL, call_of, normal
from kullback import Labels, Logits, LogProbs, Probs
from kullback.core import reduction
from kullback.core.readings import Side
from kullback.divergences import TABLE
from kullback.engines.triton import launch, ops

SUMS = {str(total): total for divergence in TABLE for total in divergence.sums}
READINGS = {
    "Logits": lambda s, dtype: Logits(s.to(dtype)),
    "Logits T=0.7": lambda s, dtype: Logits(s.to(dtype), 0.7),
    "LogProbs": lambda s, dtype: LogProbs(torch.log_softmax(s, -1).to(dtype), validate=False),
    "Probs": lambda s, dtype: Probs(torch.softmax(s, -1).to(dtype), validate=False),
    "one-hot": lambda s, dtype: Labels(s.argmax(-1), s.shape[-1]),
    "smooth all": lambda s, dtype: Labels(s.argmax(-1), s.shape[-1], 0.1),
    "smooth others": lambda s, dtype: Labels(s.argmax(-1), s.shape[-1], 0.1, "others"),
}
# float32 cells: some units in the last place of every term; float64 cells: 1e-10 leaves room for the division by
# a (a-1) of the alpha family. A gradient is rounded to its dtype once, bfloat16 by the interpreter towards zero.
VALUE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def edge_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Every small case as rows of one (N, 40): columns of -inf on both sides change nothing, and are edges too."""
    pairs = [case.make() for case in SMALL]
    pairs = [(a.expand(torch.broadcast_shapes(a.shape, b.shape)), b) for a, b in pairs]
    pairs = [(a, b.expand(a.shape)) for a, b in pairs if a.numel()]
    width = max(a.shape[-1] for a, _ in pairs)

    def pack(rows):
        flat = [row.reshape(-1, row.shape[-1]) for row in rows]
        return torch.cat([torch.nn.functional.pad(f, (0, width - f.shape[-1]), value=-math.inf) for f in flat])

    return pack([a for a, _ in pairs]), pack([b for _, b in pairs])


def scores(*shape, seed=0, apart=0.3):
    a = normal(*shape, seed=seed)
    return a, a + apart * normal(*shape, seed=seed + 1)


def leaf(data):
    """A leaf over the very same memory layout."""
    return data.detach().requires_grad_(data.is_floating_point())


def with_tile(monkeypatch, rows, columns, span=2):
    """This tile, and no row short enough for a float64 normaliser: the float32 one is what long rows get."""
    monkeypatch.setattr(launch, "SHORT", 0)
    monkeypatch.setattr(launch, "tile", lambda *_: launch.Tile(rows, columns, span))


def compare(total, p, q, floor=None, upstream=None, unit=1.0):
    """Values and gradients of one sum from the engine and from core, or an assertion that says where they part.

    A gradient may be off by `ROUNDING` of its row's largest entry, and by a few units in the last place of the terms
    whose difference it is: q and p (up to `unit`), or x and w Σx with x = ∂f/∂log w, times the upstream gradient.
    """
    x, y = leaf(p.data), leaf(q.data)
    dtype = next((d.dtype for d in (x, y) if d.is_floating_point()), torch.float64)
    left, right = Side(p.reading, (x,)), Side(q.reading, (y,))
    truth = reduction.rows(total, left, right).detach()
    values = ops.rows(call_of(total, left, right, p.num_classes), left, right)
    assert values.dtype == torch.float64
    tiny = floor or (1e-13 if "log_affinity" in str(total) else 1e-15)
    torch.testing.assert_close(values.detach(), truth, rtol=VALUE[dtype], atol=tiny, equal_nan=True)
    wanted = x.requires_grad, y.requires_grad
    if not any(wanted):
        return
    if upstream is None:
        upstream = 1.0 + torch.rand(truth.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    leaves = [data for data in (x, y) if data.requires_grad]
    got = torch.autograd.grad(values, leaves, upstream)
    want = reduction.gradients(total, left, right, truth, upstream, wanted)
    ulp = 4 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    pair = reduction.Pair(left.weights(), right.weights())
    partials = total.partials(pair, total.of(pair))
    terms = [
        t.dlog.detach().abs().nan_to_num(0.0, posinf=0.0)
        for t, is_wanted in zip(partials, wanted, strict=True)
        if is_wanted
    ]
    for mine, theirs, term in zip(got, [w.detach() for w in want if w is not None], terms, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        mine, theirs = mine.double(), theirs.double()
        same = (mine == theirs) | (mine.isnan() & theirs.isnan())
        if not theirs.numel():
            continue
        row = theirs.abs().nan_to_num(posinf=0.0).amax(-1, keepdim=True)
        room = ROUNDING[dtype] * row + ulp * upstream.abs().unsqueeze(-1) * term.amax(-1, keepdim=True).clamp(min=unit)
        off = ~(same | ((mine - theirs).abs() <= room))
        assert not off.any(), (mine[off][:3], theirs[off][:3], off.nonzero()[:3])
