"""`core.reduction`, transcribed: one forward kernel and one backward kernel; and what listed classes need beside.

A program owns ROWS rows and walks over their columns, BLOCK at a time. Cells are of type T, float32 or float64; what is
per row is float64.
"""

import triton
import triton.language as tl

from .arithmetic import FAR, add, exp_of, row_constant, scaled, split
from .normalizer import merged, normalizer, see
from .readings import LOGITS, cells, load, pull_back, rows_of


@triton.jit
def _mass_times(coefficient: tl.constexpr, mass, where):
    """coefficient · mass on `where`, 0 elsewhere; an infinite coefficient counts even where mass underflows."""
    if coefficient == float("inf"):
        return tl.where(where, tl.full(mass.shape, float("inf"), mass.dtype), 0.0)
    else:
        return tl.where(where, coefficient * mass, 0.0)


@triton.jit
def _finite_or_zero(x):
    return tl.where(x == float("inf"), 0.0, x)


@triton.jit
def _terms(
    p, q, d, log_q, no_p, no_q,
    GENERATOR: tl.constexpr, PARAMETER: tl.constexpr, AT_P_ZERO: tl.constexpr, AT_Q_ZERO: tl.constexpr,
):  # fmt: skip
    """A block's terms and their logarithmic derivatives, with the meaning of cells without mass."""
    edge = no_p | no_q
    value, dlogp, dlogq = GENERATOR(tl.where(edge, 1.0, p), tl.where(edge, 1.0, q), d, log_q, PARAMETER)
    p_gone = _mass_times(AT_P_ZERO, q, no_p & ~no_q)
    q_gone = _mass_times(AT_Q_ZERO, p, no_q & ~no_p)
    return (
        tl.where(edge, p_gone + q_gone, value),
        tl.where(edge, _finite_or_zero(q_gone), dlogp),
        tl.where(edge, _finite_or_zero(p_gone), dlogq),
    )


@triton.jit
def _affinity_scores(d, log_q, no_p, no_q, ORDER: tl.constexpr):
    """a log p + (1-a) log q = log q - a d; -inf or +inf where one side has no mass."""
    inf = tl.full(d.shape, float("inf"), d.dtype)
    p_gone = -inf if ORDER >= 0.0 else inf
    q_gone = -inf if ORDER <= 1.0 else inf
    edge = tl.where(no_p & no_q, -inf, tl.where(no_p, p_gone, q_gone))
    return tl.where(no_p | no_q, edge, log_q - ORDER * d)


@triton.jit
def forward(
    x_ptr, y_ptr, values_ptr, stats_ptr,
    N, V, x_stride, y_stride,
    scale_p: tl.float64, on_p: tl.float64, off_p: tl.float64, log_on_p: tl.float64, log_off_p: tl.float64,
    scale_q: tl.float64, on_q: tl.float64, off_q: tl.float64, log_on_q: tl.float64, log_off_q: tl.float64,
    GENERATOR: tl.constexpr, PARAMETER: tl.constexpr, AT_P_ZERO: tl.constexpr, AT_Q_ZERO: tl.constexpr,
    AFFINITY: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, UNIT_P: tl.constexpr, UNIT_Q: tl.constexpr,
    SAME: tl.constexpr, T: tl.constexpr, NORMALIZER: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The value of every row; and, if KEEP, (max, log Σ exp, Σ ∂f/∂log w) of either side for `backward`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row_ok = row < N
    x_rows = rows_of(x_ptr, row, row_ok, x_stride, LEFT)
    y_rows = rows_of(y_ptr, row, row_ok, y_stride, RIGHT)
    constants_p = (
        row_constant(scale_p), row_constant(on_p), row_constant(off_p),
        row_constant(log_on_p), row_constant(log_off_p),
    )  # fmt: skip
    constants_q = (
        row_constant(scale_q), row_constant(on_q), row_constant(off_q),
        row_constant(log_on_q), row_constant(log_off_q),
    )  # fmt: skip

    zero = tl.zeros((ROWS, 1), tl.float64)
    top_p, log_sum_p, top_q, log_sum_q = zero, zero, zero, zero
    if LEFT == LOGITS:
        top_p, log_sum_p = normalizer(x_rows, row_ok, V, constants_p[0], UNIT_P, ROWS, BLOCK, NORMALIZER)
    if RIGHT == LOGITS:
        top_q, log_sum_q = normalizer(y_rows, row_ok, V, constants_q[0], UNIT_Q, ROWS, BLOCK, NORMALIZER)

    total = tl.zeros((ROWS, BLOCK), T)
    low = tl.zeros((ROWS, BLOCK), T)
    sum_p = tl.zeros((ROWS, BLOCK), T)
    sum_q = tl.zeros((ROWS, BLOCK), T)
    m = tl.full((ROWS, BLOCK), float("-inf"), T)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        cell_ok = row_ok & (column < V)
        x = load(x_rows, column, cell_ok, LEFT, T)
        y = load(y_rows, column, cell_ok, RIGHT, T)
        p, q, d, log_q, no_p, no_q = cells(
            x, y, column, cell_ok, top_p, log_sum_p, top_q, log_sum_q, constants_p, constants_q,
            LEFT, RIGHT, UNIT_P, UNIT_Q, SAME, T,
        )  # fmt: skip
        if AFFINITY:
            scores = _affinity_scores(d, log_q, no_p, no_q, PARAMETER)
            m, total, low = see(m, total, low, scores, 1.0, 0.0, True)
        else:
            value, dlogp, dlogq = _terms(p, q, d, log_q, no_p, no_q, GENERATOR, PARAMETER, AT_P_ZERO, AT_Q_ZERO)
            total, low = add(total, low, value)
            if KEEP and LEFT == LOGITS:
                sum_p += dlogp
            if KEEP and RIGHT == LOGITS:
                sum_q += dlogq
    if AFFINITY:
        top, s = merged(m, total, low, 1.0, 0.0, True)
        result = tl.where(s != s, s, tl.where(tl.abs(top) == float("inf"), top, top + tl.log(s)))
    else:
        result = tl.sum(total.to(tl.float64) + low.to(tl.float64), axis=1, keep_dims=True)
    tl.store(values_ptr + row, result, mask=row_ok)
    if KEEP:
        x_p = tl.sum(sum_p.to(tl.float64), axis=1, keep_dims=True)
        x_q = tl.sum(sum_q.to(tl.float64), axis=1, keep_dims=True)
        if AFFINITY:
            x_p, x_q = zero + PARAMETER, zero + (1.0 - PARAMETER)
        tl.store(stats_ptr + 6 * row, top_p, mask=row_ok)
        tl.store(stats_ptr + 6 * row + 1, log_sum_p, mask=row_ok)
        tl.store(stats_ptr + 6 * row + 2, x_p, mask=row_ok)
        tl.store(stats_ptr + 6 * row + 3, top_q, mask=row_ok)
        tl.store(stats_ptr + 6 * row + 4, log_sum_q, mask=row_ok)
        tl.store(stats_ptr + 6 * row + 5, x_q, mask=row_ok)


@triton.jit
def _rounded(x, T: tl.constexpr):
    """Through float32: not every target converts float64 to 16 bits."""
    if T == tl.float64:
        return x.to(tl.float64)
    else:
        return x.to(tl.float32).to(T)


@triton.jit
def backward(
    x_ptr, y_ptr, values_ptr, stats_ptr, upstream_ptr, to_x_ptr, to_y_ptr,
    N, V, x_stride, y_stride, upstream_stride,
    scale_p: tl.float64, on_p: tl.float64, off_p: tl.float64, log_on_p: tl.float64, log_off_p: tl.float64,
    scale_q: tl.float64, on_q: tl.float64, off_q: tl.float64, log_on_q: tl.float64, log_off_q: tl.float64,
    GENERATOR: tl.constexpr, PARAMETER: tl.constexpr, AT_P_ZERO: tl.constexpr, AT_Q_ZERO: tl.constexpr,
    PLAIN_P: tl.constexpr, PLAIN_Q: tl.constexpr, SLOPE_P: tl.constexpr, SLOPE_Q: tl.constexpr,
    LOG_Q_SLOPE: tl.constexpr,
    AFFINITY: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, UNIT_P: tl.constexpr, UNIT_Q: tl.constexpr,
    SAME: tl.constexpr, T: tl.constexpr, TO_X: tl.constexpr, TO_Y: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Gradients of Σ_rows upstream · value, each written once. A program owns ROWS rows and SPAN of their blocks.

    A row whose value is +inf, or NaN under a zero upstream gradient, sends back zeros.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row_ok = row < N
    x_rows = rows_of(x_ptr, row, row_ok, x_stride, LEFT)
    y_rows = rows_of(y_ptr, row, row_ok, y_stride, RIGHT)
    constants_p = (
        row_constant(scale_p), row_constant(on_p), row_constant(off_p),
        row_constant(log_on_p), row_constant(log_off_p),
    )  # fmt: skip
    constants_q = (
        row_constant(scale_q), row_constant(on_q), row_constant(off_q),
        row_constant(log_on_q), row_constant(log_off_q),
    )  # fmt: skip

    upstream = tl.load(upstream_ptr + row * upstream_stride, mask=row_ok, other=0.0).to(tl.float64)
    result = tl.load(values_ptr + row, mask=row_ok, other=0.0)
    top_p = tl.load(stats_ptr + 6 * row, mask=row_ok, other=0.0)
    log_sum_p = tl.load(stats_ptr + 6 * row + 1, mask=row_ok, other=0.0)
    x_p = tl.load(stats_ptr + 6 * row + 2, mask=row_ok, other=0.0)
    top_q = tl.load(stats_ptr + 6 * row + 3, mask=row_ok, other=0.0)
    log_sum_q = tl.load(stats_ptr + 6 * row + 4, mask=row_ok, other=0.0)
    x_q = tl.load(stats_ptr + 6 * row + 5, mask=row_ok, other=0.0)
    silent = (tl.abs(result) == float("inf")) | ((result != result) & (upstream == 0.0))
    upstream = tl.where(silent, 0.0, upstream)

    first = tl.program_id(1) * (SPAN * BLOCK)
    for start in range(first, tl.minimum(first + SPAN * BLOCK, V), BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        cell_ok = row_ok & (column < V)
        x = load(x_rows, column, cell_ok, LEFT, T)
        y = load(y_rows, column, cell_ok, RIGHT, T)
        p, q, d, log_q, no_p, no_q = cells(
            x, y, column, cell_ok, top_p, log_sum_p, top_q, log_sum_q, constants_p, constants_q,
            LEFT, RIGHT, UNIT_P, UNIT_Q, SAME, T,
        )  # fmt: skip
        if AFFINITY:
            share = tl.exp(_affinity_scores(d, log_q, no_p, no_q, PARAMETER) - result)
            dlogp, dlogq = PARAMETER * share, (1.0 - PARAMETER) * share
        else:
            _, dlogp, dlogq = _terms(p, q, d, log_q, no_p, no_q, GENERATOR, PARAMETER, AT_P_ZERO, AT_Q_ZERO)
        if TO_X:
            gradient = pull_back(
                dlogp, p, no_q, log_q, x_p, upstream, constants_p[0], PLAIN_P, SLOPE_P, LOG_Q_SLOPE, LEFT, T
            )
            gradient = tl.where(silent, 0.0, gradient)
            tl.store(to_x_ptr + row * V + column, _rounded(gradient, to_x_ptr.dtype.element_ty), mask=cell_ok)
        if TO_Y:
            gradient = pull_back(
                dlogq, q, no_p, log_q, x_q, upstream, constants_q[0], PLAIN_Q, SLOPE_Q, False, RIGHT, T
            )
            gradient = tl.where(silent, 0.0, gradient)
            tl.store(to_y_ptr + row * V + column, _rounded(gradient, to_y_ptr.dtype.element_ty), mask=cell_ok)


# ---------------------------------------------------------------- listed classes beside logits (listed.py)


@triton.jit
def rest(x_ptr, ids_ptr, out_ptr, V, K, x_stride, scale: tl.float64, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """(max, Σ exp((x - max)·scale)) of the classes of a row that are not listed, in float64; ids ascend."""
    row = tl.program_id(0).to(tl.int64)
    scale_hi, scale_lo = split(row_constant(scale), tl.float64)
    m = tl.full((1, BLOCK), float("-inf"), tl.float64)
    s = tl.zeros((1, BLOCK), tl.float64)
    low = tl.zeros((1, BLOCK), tl.float64)
    place = row * K
    last = place + K
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(x_ptr + row * x_stride + column, mask=column < V, other=float("-inf")).to(tl.float64)
        listed = tl.load(ids_ptr + place, mask=place < last, other=1 << 62)
        while listed < start + BLOCK:
            x = tl.where(column == listed, float("-inf"), x)
            place += 1
            listed = tl.load(ids_ptr + place, mask=place < last, other=1 << 62)
        m, s, low = see(m, s, low, x, scale_hi, scale_lo, UNIT)
    top, total = merged(m, s, low, scale_hi, scale_lo, UNIT)
    at = tl.zeros((1, 1), tl.int64)
    tl.store(out_ptr + 2 * row + at, top)
    tl.store(out_ptr + 2 * row + 1 + at, tl.where((top == float("-inf")) & (total == total), 0.0, total))


@triton.jit
def spread(
    x_ptr, top_ptr, factor_ptr, out_ptr, V, x_stride, scale: tl.float64,
    UNIT: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """factor · exp((x - top)·scale) of every class; listed ones, of which x may be above top, are overwritten later."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    at = tl.zeros((1, 1), tl.int64)
    top = tl.load(top_ptr + row + at)
    factor = tl.load(factor_ptr + row + at)
    x = tl.load(x_ptr + row * x_stride + column, mask=column < V, other=float("-inf")).to(tl.float64)
    gap = tl.where(x > top, 0.0, x - top)
    gap = tl.where(gap < FAR, FAR, gap)
    scale_hi, scale_lo = split(row_constant(scale), T)
    hi, lo = split(gap, T)
    hi, lo = scaled(hi, lo, scale_hi, scale_lo, UNIT)
    sent = tl.where(factor == 0.0, 0.0, factor.to(T) * exp_of(hi, lo))
    tl.store(out_ptr + row * V + column, _rounded(sent, out_ptr.dtype.element_ty), mask=column < V)
