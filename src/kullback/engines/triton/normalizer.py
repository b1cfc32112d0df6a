"""`core.normalizer`, transcribed: (max, Σ exp) of every lane, then of every row."""

import triton
import triton.language as tl

from .arithmetic import FAR, add, exp_of, scaled, split


@triton.jit
def see(m, s, low, x, scale_hi, scale_lo, UNIT: tl.constexpr):
    """(m, s + low) = (max, Σ exp((x - max)·scale)) of the columns each lane has seen; one exponential a cell."""
    up = x > m
    gap = tl.where(x == m, 0.0, -tl.abs(x - m))
    gap = tl.where(gap < FAR, FAR, gap)
    hi, lo = scaled(gap, tl.zeros_like(gap), scale_hi, scale_lo, UNIT)
    e = exp_of(hi, lo)
    s, low = add(tl.where(up, s * e, s), tl.where(up, low * e, low), tl.where(up, 1.0, e))
    return tl.where(up, x, m), s, low


@triton.jit
def merged(m, s, low, scale_hi, scale_lo, UNIT: tl.constexpr):
    """The lanes' (max, Σ exp) as one per row, (ROWS, 1), float64."""
    top = tl.max(m, axis=1, keep_dims=True)
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    gap = tl.where(m - base < FAR, FAR, m - base)
    hi, lo = scaled(gap, tl.zeros_like(gap), scale_hi, scale_lo, UNIT)
    weight = exp_of(hi, lo).to(tl.float64)
    return top.to(tl.float64), tl.sum((s.to(tl.float64) + low.to(tl.float64)) * weight, axis=1, keep_dims=True)


@triton.jit
def normalizer(row_ptr, row_ok, V, scale, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, T: tl.constexpr):
    """Stage one: (max, log Σ exp((x - max)·scale)) of every row, (ROWS, 1), float64."""
    scale_hi, scale_lo = split(scale, T)
    m = tl.full((ROWS, BLOCK), float("-inf"), T)
    s = tl.zeros((ROWS, BLOCK), T)
    low = tl.zeros((ROWS, BLOCK), T)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(row_ptr + column, mask=row_ok & (column < V), other=float("-inf")).to(T)
        m, s, low = see(m, s, low, x, scale_hi, scale_lo, UNIT)
    top, total = merged(m, s, low, scale_hi, scale_lo, UNIT)
    # a row of -inf only, or one that holds +inf, has no distribution: its value is NaN
    return top, tl.where(tl.abs(top) == float("inf"), float("nan"), tl.log(total))
