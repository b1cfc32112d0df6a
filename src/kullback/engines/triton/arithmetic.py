"""Arithmetic in two numbers: hi + lo, unevaluated, wherever digits would be lost in float32.

T is the type of a cell: float32 (narrow) or float64 (wide), where lo is 0 and everything here is the plain operation.
"""

import triton
import triton.language as tl

FAR = tl.constexpr(-1e30)  # e^FAR = 0; stands for -inf in products, where -inf times a zero would be NaN
LOG2_E = tl.constexpr(1.4426950216293335)  # float32(log2 e), and what it lacks
LOG2_E_LOW = tl.constexpr(1.9259629911266175e-08)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def two_sum(a, b):
    """a + b, and what rounding it lost."""
    s = a + b
    moved = s - a
    return s, (a - (s - moved)) + (b - moved)


@triton.jit
def split(x, T: tl.constexpr):
    """A float64 number as hi + lo."""
    hi = x.to(T)
    return hi, (x - hi.to(tl.float64)).to(T)


@triton.jit
def row_constant(x):
    """A float argument as a (1, 1) float64 block."""
    return tl.zeros((1, 1), tl.float64) + x


@triton.jit
def scaled(hi, lo, scale_hi, scale_lo, UNIT: tl.constexpr):
    """(hi + lo) · scale."""
    if UNIT:
        return hi, lo
    else:
        product = hi * scale_hi
        return product, tl.fma(hi, scale_hi, -product) + (hi * scale_lo + lo * scale_hi)


@triton.jit
def exp_of(hi, lo):
    """e^(hi + lo), hi <= 0. The product with log2 e is exact: rounding it would cost |hi| units in the last place."""
    if hi.dtype == tl.float64:
        return tl.exp(hi + lo)
    else:
        bounded = tl.where(hi < FAR, FAR, hi)
        t = bounded * LOG2_E
        rest = tl.fma(bounded, LOG2_E, -t) + (bounded * LOG2_E_LOW + lo * LOG2_E)
        power = tl.exp2(t)
        return tl.fma(power, rest * LN_2, power)


@triton.jit
def add(total, low, term):
    """Kahan's sum: total + low is the sum of all terms so far; float64 needs none of it, +inf stays +inf."""
    if total.dtype == tl.float64:
        return total + term, low
    else:
        y = term + low
        s = total + y
        return s, tl.where(tl.abs(s) == float("inf"), 0.0, y - (s - total))
