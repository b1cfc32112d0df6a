"""`core.readings`, transcribed: what the data of a block mean, and the way back for derivatives.

Readings are numbers: 0 Logits, 1 LogProbs, 2 Probs, 3 Labels (one class index a row; no dense row exists anywhere).
A cell outside the row or the matrix is one without mass on both sides, which counts for nothing.
"""

import triton
import triton.language as tl

from .arithmetic import exp_of, scaled, split, two_sum

LOGITS = tl.constexpr(0)
LOG_PROBS = tl.constexpr(1)
PROBS = tl.constexpr(2)
LABELS = tl.constexpr(3)


@triton.jit
def rows_of(ptr, row, row_ok, stride, READING: tl.constexpr):
    """Where each row begins, or, of labels, each row's class."""
    if READING == LABELS:
        return tl.load(ptr + row * stride, mask=row_ok, other=-1)
    else:
        return ptr + row * stride


@triton.jit
def load(row_ptr, column, cell_ok, READING: tl.constexpr, T: tl.constexpr):
    """The data of a block; a class index stays as it is."""
    if READING == LABELS:
        return row_ptr
    elif READING == PROBS:
        return tl.load(row_ptr + column, mask=cell_ok, other=0.0).to(T)
    else:
        return tl.load(row_ptr + column, mask=cell_ok, other=float("-inf")).to(T)


@triton.jit
def weigh(
    x, column, cell_ok, top, log_sum, scale, on, off, log_on, log_off,
    READING: tl.constexpr, UNIT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Weight, log weight + log_sum as hi + lo, and where there is no mass; 0 and 0 there."""
    if READING == LOGITS:
        # a row without a distribution has no normaliser: its cells are NaN, not empty
        none = ((x == float("-inf")) & (log_sum == log_sum)) | ~cell_ok
        scale_hi, scale_lo = split(scale, T)
        hi, lo = two_sum(tl.where(none, top.to(T), x), -top.to(T))
        hi, lo = scaled(hi, lo, scale_hi, scale_lo, UNIT)
        w = exp_of(hi, lo) * tl.exp(-log_sum).to(T)
    elif READING == LOG_PROBS:
        none = (x == float("-inf")) | ~cell_ok
        hi = tl.where(none, 0.0, x)
        lo = tl.zeros_like(hi)
        w = exp_of(hi, lo)
    elif READING == PROBS:
        none = (x == 0.0) | ~cell_ok
        hi, lo = split(tl.log(tl.where(none, 1.0, x).to(tl.float64)), T)
        w = x
    else:
        hit = column == x
        weight = tl.where(hit, on, off)
        none = (weight == 0.0) | ~cell_ok
        hi, lo = split(tl.where(hit, log_on, log_off), T)
        w = weight.to(T)
    return tl.where(none, 0.0, w), tl.where(none, 0.0, hi), tl.where(none, 0.0, lo), none


@triton.jit
def cells(
    x, y, column, cell_ok, top_p, log_sum_p, top_q, log_sum_q, constants_p, constants_q,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, UNIT_P: tl.constexpr, UNIT_Q: tl.constexpr, SAME: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """p, q, d = log(q/p), 0 on an edge, and log q, 0 without mass; and where p, and where q, has no mass."""
    p, p_hi, p_lo, no_p = weigh(
        x, column, cell_ok, top_p, log_sum_p, constants_p[0], constants_p[1], constants_p[2], constants_p[3],
        constants_p[4], LEFT, UNIT_P, T,
    )  # fmt: skip
    q, q_hi, q_lo, no_q = weigh(
        y, column, cell_ok, top_q, log_sum_q, constants_q[0], constants_q[1], constants_q[2], constants_q[3],
        constants_q[4], RIGHT, UNIT_Q, T,
    )  # fmt: skip
    edge = no_p | no_q
    if SAME:  # two rows of logits at one temperature: d = ((y - x) - shift) · scale, without either maximum
        scale, _ = split(constants_p[0], T)
        shift, shift_low = split((top_q - top_p) + (log_sum_q - log_sum_p) / constants_p[0], T)
        hi, lo = two_sum(tl.where(edge, 0.0, y), -tl.where(edge, 0.0, x))
        d = (hi - shift) + (lo - shift_low)
        if not UNIT_P:
            d = d * scale
    else:
        shift, shift_low = split(log_sum_q - log_sum_p, T)
        hi, lo = two_sum(q_hi, -p_hi)
        d = (hi - shift) + (lo + (q_lo - p_lo) - shift_low)
    log_q = q_hi - log_sum_q.to(T)
    return p, q, tl.where(edge, 0.0, d), tl.where(no_q, 0.0, log_q), no_p, no_q


@triton.jit
def pull_back(
    dlog, w, no_other, log_other, sum_dlog, upstream, scale, PLAIN: tl.constexpr, SLOPE: tl.constexpr,
    LOG_SLOPE: tl.constexpr, READING: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """∂(divergence)/∂x of one side, times the row's upstream gradient."""
    if READING == LOGITS:
        return (upstream * scale).to(T) * (dlog - w * sum_dlog.to(T))
    elif READING == LOG_PROBS:
        return upstream.to(T) * (dlog - PLAIN * w)
    else:
        zero = w == 0.0
        slope = tl.where(no_other, 0.0, -log_other if LOG_SLOPE else tl.full(w.shape, SLOPE, T))
        return upstream.to(T) * tl.where(zero, slope, dlog / tl.where(zero, 1.0, w) - PLAIN)
