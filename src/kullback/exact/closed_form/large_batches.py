"""KL of many pairs of Normals: the same formula as `location.normal`, a block at a time so that it stays in cache."""

from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 15
_SMALL = 1e-3


def serves(*tensors: Tensor) -> bool:
    """Whether the batch is large and plain: functorch transforms and the compiler take the formula itself."""
    if torch.compiler.is_compiling() or max(t.numel() for t in tensors) <= BLOCK:
        return False
    return not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)


class NormalKL(torch.autograd.Function):
    """½ (Δ/σq)² + ½ (r² - 1 - 2 log r); arithmetic in float64, the result in the widest dtype given."""

    @staticmethod
    def forward(ctx: Any, loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor) -> Tensor:
        ctx.save_for_backward(loc_p, scale_p, loc_q, scale_q)
        shape = torch.broadcast_shapes(loc_p.shape, scale_p.shape, loc_q.shape, scale_q.shape)  # type: ignore[no-untyped-call]
        flat = [x.expand(shape).reshape(-1) for x in (loc_p, scale_p, loc_q, scale_q)]
        wide = any(x.dtype == torch.float64 for x in flat)
        result = torch.empty(flat[0].shape, dtype=torch.float64 if wide else torch.float32, device=loc_p.device)
        for start in range(0, flat[0].shape[0], BLOCK):
            m, s, n, t = (x[start : start + BLOCK].double() for x in flat)
            result[start : start + BLOCK] = _block(m, s, n, t)
        return result.reshape(shape)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        m, s, n, t = (x.double() for x in saved)
        gap, growth = (m - n) / t, (s - t) / t * ((s + t) / t)  # Δ/σq and r² - 1
        to_loc, weight = upstream * (gap / t), upstream.double()
        to_p, to_q = weight * (growth / s), -weight * ((gap * gap + growth) / t)
        found = (to_loc, to_p, -to_loc, to_q)
        return tuple(
            g.sum_to_size(x.shape).to(x.dtype) if needed else None
            for g, x, needed in zip(found, saved, ctx.needs_input_grad, strict=True)
        )


def _block(m: Tensor, s: Tensor, n: Tensor, t: Tensor) -> Tensor:
    inverse = t.reciprocal()
    u = (s - t).mul_(inverse)
    gap = m.sub(n).mul_(inverse)
    rest = torch.log1p(u).neg_().add_(u)  # u - log(1 + u)
    far = (u < -0.5).nonzero().squeeze(-1)  # there 1 + u has lost the digits of r
    if far.numel():
        rest[far] = u[far] - torch.log(s[far]) + torch.log(t[far])
    small = (u.abs() < _SMALL).nonzero().squeeze(-1)
    if small.numel():  # u²/2 - u³/3 + u⁴/4 - ...: a difference has no digits there
        v = u[small]
        rest[small] = v * v * (0.5 - v * (1 / 3 - v * (0.25 - v * (0.2 - v / 6.0))))
    return gap.square_().add_(u.square_()).mul_(0.5).add_(rest)
