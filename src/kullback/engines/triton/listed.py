"""Listed classes beside logits: one kernel finds what is not listed, one spreads a gradient over it; the k + 1 cells,
of which there are few, are `core`'s own.

Of every row six numbers are kept: of the logits (max, log Σ exp, Σ ∂f/∂log w), of what is not listed (max, Σ exp,
∂f/∂log w).
"""

import math
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from kullback.core.readings import LogitsReading, Side, Weights
from kullback.core.reduction import Pair
from kullback.engines.call import STATS, Call
from kullback.engines.listed import is_coarse, parts

from . import kernels
from .launch import as_rows, blocks_for, on_device, power_of_two

NO_CLASS = 1 << 62


class Seen(NamedTuple):
    """A coarse call: which side is dense, its rows, and the other side's list."""

    dense: int
    scale: float
    x: Tensor
    stride: int
    ids: Tensor
    kept: Tensor
    """Whether a place of the list holds a class."""
    scores: Tensor
    log_w: Tensor

    def weights(self, stats: Tensor) -> Pair:
        """Both sides of the k + 1 cells, the rest last; places that hold none have no mass on either side."""
        top, log_sum, _, rest_top, rest_sum, _ = stats.unbind(-1)
        mine = ((self.scores - top.unsqueeze(-1)) * self.scale) - log_sum.unsqueeze(-1)
        none = rest_sum == 0
        gap = torch.where(none, 0.0, rest_top - top) * self.scale
        others = torch.where(none, -math.inf, gap + torch.log(torch.where(none, 1.0, rest_sum)) - log_sum)
        log_w = torch.cat([torch.where(self.kept, mine, -math.inf), others.unsqueeze(-1)], -1)
        dense, listed = Weights(torch.exp(log_w), log_w), Weights(torch.exp(self.log_w), self.log_w)
        return Pair(listed, dense) if self.dense else Pair(dense, listed)


def _seen(call: Call, p: Side, q: Side) -> Seen:
    dense = 1 if is_coarse(call.p) else 0
    side, other = (q, p) if dense else (p, q)
    reading = side.reading
    assert isinstance(reading, LogitsReading)
    x, stride = as_rows(side.data[0], reading, call.num_classes)
    count, ids, log_w, left = (t.reshape(-1, t.shape[-1]) for t in parts(other))
    kept = torch.arange(ids.shape[-1], device=ids.device) < count
    scores = x.gather(-1, ids).double()
    return Seen(dense, 1.0 / reading.temperature, x, stride, ids, kept, scores, torch.cat([log_w, left], -1))


def forward(call: Call, p: Side, q: Side, keep: bool) -> tuple[Tensor, Tensor]:
    """See `launch.forward`."""
    batch, seen = p.batch_shape, _seen(call, p, q)
    n, v = len(seen.x), call.num_classes
    found = torch.empty((n, 2), dtype=torch.float64, device=seen.x.device)
    listed = torch.where(seen.kept, seen.ids, NO_CLASS).contiguous()
    if n:
        with on_device(seen.x):
            kernels.rest[(n,)](
                seen.x, listed, found, v, listed.shape[-1], seen.stride, seen.scale,
                UNIT=seen.scale == 1.0, BLOCK=min(power_of_two(v), 512), num_warps=4,
            )  # fmt: skip
    rest_top, rest_sum = found.unbind(-1)
    own = torch.where(seen.kept, seen.scores, -math.inf)
    top = torch.maximum(own.amax(-1), rest_top) if own.shape[-1] else rest_top
    gap = torch.where(rest_sum == 0, -math.inf, (rest_top - top) * seen.scale)
    mass = torch.exp((own - top.unsqueeze(-1)) * seen.scale).sum(-1) + rest_sum * torch.exp(gap)
    # a row of -inf only, or one that holds +inf, has no distribution: its value is NaN
    log_sum = torch.where(top.abs() == math.inf, math.nan, torch.log(mass))
    zero = torch.zeros_like(top)
    stats = torch.stack([top, log_sum, zero, rest_top, rest_sum, zero], -1)
    pair = seen.weights(stats)
    state = call.total.of(pair)
    values = call.total.value(state).reshape(batch)
    if not keep:
        return values, values.new_empty(0)
    partial = call.total.partials(pair, state)[seen.dense]
    stats[:, 2], stats[:, 5] = partial.total.squeeze(-1), partial.dlog[:, -1]
    return values, stats.reshape(*batch, STATS)


def backward(call: Call, p: Side, q: Side, values: Tensor, stats: Tensor, upstream: Tensor) -> Tensor:
    """The gradient to the logits, contiguous and in their dtype."""
    seen = _seen(call, p, q)
    data = (p, q)[seen.dense].data[0]
    values, upstream, stats = values.reshape(-1), upstream.reshape(-1), stats.reshape(-1, STATS)
    silent = (values.abs() == math.inf) | (values.isnan() & (upstream == 0.0))
    scale = torch.where(silent, 0.0, upstream).unsqueeze(-1) * seen.scale
    pair = seen.weights(stats)
    partial = call.total.partials(pair, call.total.of(pair))[seen.dense]
    cells = scale * (partial.dlog - pair[seen.dense].w * partial.total)
    cells = torch.where(silent.unsqueeze(-1), 0.0, cells)
    top, log_sum, total, rest_top, rest_sum, rest_x = stats.unbind(-1)
    none = rest_sum == 0
    weight = torch.exp(torch.where(none, 0.0, rest_top - top) * seen.scale - log_sum)
    factor = scale.squeeze(-1) * (rest_x / torch.where(none, 1.0, rest_sum) - weight * total)
    factor = torch.where(silent | none, 0.0, factor)
    out = torch.empty(data.shape, dtype=data.dtype, device=data.device)
    n, v = len(seen.x), call.num_classes
    if n:
        block = min(power_of_two(v), 512)
        with on_device(data):
            kernels.spread[(n, blocks_for(v, block))](
                seen.x, torch.where(none, 0.0, rest_top).contiguous(), factor.contiguous(), out, v, seen.stride,
                seen.scale, UNIT=seen.scale == 1.0, T=tl.float64 if data.dtype == torch.float64 else tl.float32,
                BLOCK=block, num_warps=4,
            )  # fmt: skip
    # a place that holds no class sends its row's first class again
    first = torch.zeros_like(seen.ids[:, :1])
    ids = torch.where(seen.kept, seen.ids, seen.ids.gather(-1, first))
    mine = torch.where(seen.kept, cells[:, :-1], cells[:, :1])
    out.view(-1, v).scatter_(-1, ids, mine.to(out.dtype))
    return out
