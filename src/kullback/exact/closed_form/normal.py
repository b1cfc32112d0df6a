"""KL of Normals: the formula, and the same for many pairs, a block at a time so that it stays in cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kullback.exact.shapes import is_traced
from kullback.exact.special import log_ratio, rise

BLOCK = 1 << 15
_NEAR = 1e-3  # of |r - 1|, below which r - 1 - log r has lost too many digits
_FAR = 1e-3  # of r, below which 1 + (r - 1) has
_SERIES_BELOW = 0.125


def normal(loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor) -> Tensor:
    """½ ((μp - μq)/σq)² + ½ rise(2 log(σp/σq))."""
    return 0.5 * ((loc_p - loc_q) / scale_q) ** 2 + 0.5 * rise(2.0 * log_ratio(scale_p, scale_q))


def is_large(*tensors: Tensor) -> bool:
    """Whether the batch is large and plain: functorch transforms and the compiler take the formula itself."""
    return max(t.numel() for t in tensors) > BLOCK and not is_traced(*tensors)


class LargeBatch(torch.autograd.Function):
    """½ (Δ/σq)² + ½ (r² - 1 - 2 log r); arithmetic in float64, the result in the widest dtype given."""

    @staticmethod
    def forward(ctx: Any, loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor) -> Tensor:
        given = (loc_p, scale_p, loc_q, scale_q)
        ctx.save_for_backward(*given)
        shape = torch.broadcast_shapes(*(x.shape for x in given))  # type: ignore[no-untyped-call]
        wide = any(x.dtype == torch.float64 for x in given)
        result = torch.empty(shape, dtype=torch.float64 if wide else torch.float32, device=loc_p.device)
        rest = torch.empty(shape, dtype=torch.bool, device=loc_p.device)
        for (value, left_over), block in _blocks((result, rest), given):
            _fill(value, left_over, *block)
        at = rest.view(-1).nonzero().squeeze(-1)
        if at.numel():
            flat = [x.expand(shape).reshape(-1) for x in given]
            for some in torch.split(at, BLOCK):
                result.view(-1)[some] = normal(*(x[some].double() for x in flat)).to(result.dtype)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: in operations that have derivatives of their own
            m, s, n, t = (x.double() for x in saved)
            found: tuple[Tensor, ...] = _slopes(m, s, n, t, upstream.double())
        else:  # what is summed over broadcast rows is summed in float64
            same = [x.dtype if x.shape == upstream.shape else torch.float64 for x in saved]
            found = tuple(torch.empty(upstream.shape, dtype=d, device=upstream.device) for d in same)
            for slopes, block in _blocks(found, (*saved, upstream)):
                for into, slope in zip(slopes, _slopes(*block), strict=True):
                    into.copy_(slope)
        return tuple(
            g.sum_to_size(x.shape).to(x.dtype) if needed else None
            for g, x, needed in zip(found, saved, ctx.needs_input_grad, strict=True)
        )


def _blocks(results: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Block after block: views of the results, and what is given in float64, in buffers that the next block reuses."""
    into = [x.view(-1) for x in results]
    flat = [x.expand(results[0].shape).reshape(-1) for x in given]
    buffers = torch.empty(len(given), BLOCK, dtype=torch.float64, device=flat[0].device)
    for start in range(0, flat[0].shape[0], BLOCK):
        blocks = [x[start : start + BLOCK] for x in flat]
        yield (
            [x[start : start + BLOCK] for x in into],
            [b[: x.shape[0]].copy_(x) for b, x in zip(buffers, blocks, strict=True)],
        )


def _fill(value: Tensor, left_over: Tensor, m: Tensor, s: Tensor, n: Tensor, t: Tensor) -> None:
    """½ (Δ/σq)² + ½ u² + u - log(1 + u) with u = r - 1, and where that is not good enough. Overwrites the buffers."""
    gap, u, inverse = m.sub_(n), torch.sub(s, t, out=n), t.reciprocal_()
    gap.mul_(inverse)
    u.mul_(inverse)
    square = torch.square(u, out=s)
    low, high = (float(x) for x in u.aminmax())
    if low > -_SERIES_BELOW and high < _SERIES_BELOW:
        left_over.zero_()
        rest = _rest(u, t)
    else:
        torch.lt(square, _NEAR**2, out=left_over)
        if not low >= _FAR - 1.0:  # also where a NaN hides the others
            left_over |= u < _FAR - 1.0
        rest = torch.sub(u, torch.log1p(u, out=t), out=t)
    torch.add(rest, square.addcmul_(gap, gap), alpha=0.5, out=value)


def _rest(u: Tensor, buffer: Tensor) -> Tensor:
    """u - log(1 + u) = v (u - 2v² (1/3 + v²/5 + ...)), v = u/(2 + u); six terms leave 1e-16 for |u| < 1/8."""
    v = torch.div(u, torch.add(u, 2.0, out=buffer), out=buffer)
    square = v * v
    series = square * (-2.0 / 13.0)
    for k in (11, 9, 7, 5, 3):
        series.add_(-2.0 / k).mul_(square)
    return v.mul_(series.add_(u))


def _slopes(m: Tensor, s: Tensor, n: Tensor, t: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients times weight, with gap = Δ/σq and growth = r² - 1, which keeps its digits at r = 1."""
    inverse = t.reciprocal()
    gap, u = (m - n) * inverse, (s - t) * inverse
    growth, scaled = u * (u + 2.0), weight * inverse
    to_loc = scaled * gap
    return to_loc, weight * (growth / s), -to_loc, -scaled * (gap * gap + growth)
