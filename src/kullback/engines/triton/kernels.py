"""`core.normalizer`, `core.readings` and `core.reduction`, transcribed: one forward kernel and one backward kernel.

A program owns ROWS rows and walks over their columns, BLOCK at a time. T is the type of a cell: float32 (narrow) or
float64 (wide). Narrow quantities are unevaluated sums hi + lo of two float32 numbers wherever digits would be lost:
scores below the row's maximum, d = log(q/p), running sums. What is per row is float64.

Readings are numbers: 0 Logits, 1 LogProbs, 2 Probs, 3 Labels (one class index a row; no dense row exists anywhere).
A cell outside the row or the matrix is one without mass on both sides, which counts for nothing.
"""

import triton
import triton.language as tl

LOGITS = tl.constexpr(0)
LOG_PROBS = tl.constexpr(1)
PROBS = tl.constexpr(2)
LABELS = tl.constexpr(3)

FAR = tl.constexpr(-1e30)  # e^FAR = 0; stands for -inf in products, where -inf times a zero would be NaN
LOG2_E = tl.constexpr(1.4426950216293335)  # float32(log2 e), and what it lacks
LOG2_E_LOW = tl.constexpr(1.9259629911266175e-08)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _two_sum(a, b):
    """a + b, and what rounding it lost."""
    s = a + b
    moved = s - a
    return s, (a - (s - moved)) + (b - moved)


@triton.jit
def _split(x, T: tl.constexpr):
    """A float64 number as hi + lo."""
    hi = x.to(T)
    return hi, (x - hi.to(tl.float64)).to(T)


@triton.jit
def _row_constant(x):
    """A float argument as a (1, 1) float64 block."""
    return tl.zeros((1, 1), tl.float64) + x


@triton.jit
def _scaled(hi, lo, scale_hi, scale_lo, UNIT: tl.constexpr):
    """(hi + lo) · scale."""
    if UNIT:
        return hi, lo
    else:
        product = hi * scale_hi
        return product, tl.fma(hi, scale_hi, -product) + (hi * scale_lo + lo * scale_hi)


@triton.jit
def _exp(hi, lo):
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
def _add(total, low, term):
    """Kahan's sum: total + low is the sum of all terms so far; float64 needs none of it, +inf stays +inf."""
    if total.dtype == tl.float64:
        return total + term, low
    else:
        y = term + low
        s = total + y
        return s, tl.where(tl.abs(s) == float("inf"), 0.0, y - (s - total))


@triton.jit
def _see(m, s, low, x, scale_hi, scale_lo, UNIT: tl.constexpr):
    """(m, s + low) = (max, Σ exp((x - max)·scale)) of the columns each lane has seen; one exponential a cell."""
    up = x > m
    gap = tl.where(x == m, 0.0, -tl.abs(x - m))
    gap = tl.where(gap < FAR, FAR, gap)
    hi, lo = _scaled(gap, tl.zeros_like(gap), scale_hi, scale_lo, UNIT)
    e = _exp(hi, lo)
    s, low = _add(tl.where(up, s * e, s), tl.where(up, low * e, low), tl.where(up, 1.0, e))
    return tl.where(up, x, m), s, low


@triton.jit
def _merged(m, s, low, scale_hi, scale_lo, UNIT: tl.constexpr):
    """The lanes' (max, Σ exp) as one per row, (ROWS, 1), float64."""
    top = tl.max(m, axis=1, keep_dims=True)
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    gap = tl.where(m - base < FAR, FAR, m - base)
    hi, lo = _scaled(gap, tl.zeros_like(gap), scale_hi, scale_lo, UNIT)
    weight = _exp(hi, lo).to(tl.float64)
    return top.to(tl.float64), tl.sum((s.to(tl.float64) + low.to(tl.float64)) * weight, axis=1, keep_dims=True)


@triton.jit
def _normalizer(
    row_ptr, row_ok, V, scale, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, T: tl.constexpr
):
    """Stage one: (max, log Σ exp((x - max)·scale)) of every row, (ROWS, 1), float64."""
    scale_hi, scale_lo = _split(scale, T)
    m = tl.full((ROWS, BLOCK), float("-inf"), T)
    s = tl.zeros((ROWS, BLOCK), T)
    low = tl.zeros((ROWS, BLOCK), T)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(row_ptr + column, mask=row_ok & (column < V), other=float("-inf")).to(T)
        m, s, low = _see(m, s, low, x, scale_hi, scale_lo, UNIT)
    top, total = _merged(m, s, low, scale_hi, scale_lo, UNIT)
    # a row of -inf only, or one that holds +inf, has no distribution: its value is NaN
    return top, tl.where(tl.abs(top) == float("inf"), float("nan"), tl.log(total))


@triton.jit
def _load(row_ptr, column, cell_ok, READING: tl.constexpr, T: tl.constexpr):
    """The data of a block; a class index stays as it is."""
    if READING == LABELS:
        return row_ptr
    elif READING == PROBS:
        return tl.load(row_ptr + column, mask=cell_ok, other=0.0).to(T)
    else:
        return tl.load(row_ptr + column, mask=cell_ok, other=float("-inf")).to(T)


@triton.jit
def _weigh(
    x, column, cell_ok, top, log_sum, scale, on, off, log_on, log_off,
    READING: tl.constexpr, UNIT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Weight, log weight + log_sum as hi + lo, and where there is no mass; 0 and 0 there."""
    if READING == LOGITS:
        # a row without a distribution has no normaliser: its cells are NaN, not empty
        none = ((x == float("-inf")) & (log_sum == log_sum)) | ~cell_ok
        scale_hi, scale_lo = _split(scale, T)
        hi, lo = _two_sum(tl.where(none, top.to(T), x), -top.to(T))
        hi, lo = _scaled(hi, lo, scale_hi, scale_lo, UNIT)
        w = _exp(hi, lo) * tl.exp(-log_sum).to(T)
    elif READING == LOG_PROBS:
        none = (x == float("-inf")) | ~cell_ok
        hi = tl.where(none, 0.0, x)
        lo = tl.zeros_like(hi)
        w = _exp(hi, lo)
    elif READING == PROBS:
        none = (x == 0.0) | ~cell_ok
        hi, lo = _split(tl.log(tl.where(none, 1.0, x).to(tl.float64)), T)
        w = x
    else:
        hit = column == x
        weight = tl.where(hit, on, off)
        none = (weight == 0.0) | ~cell_ok
        hi, lo = _split(tl.where(hit, log_on, log_off), T)
        w = weight.to(T)
    return tl.where(none, 0.0, w), tl.where(none, 0.0, hi), tl.where(none, 0.0, lo), none


@triton.jit
def _cells(
    x, y, column, cell_ok, top_p, log_sum_p, top_q, log_sum_q, constants_p, constants_q,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, UNIT_P: tl.constexpr, UNIT_Q: tl.constexpr, SAME: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """p, q, d = log(q/p), 0 on an edge, and log q, 0 without mass; and where p, and where q, has no mass."""
    p, p_hi, p_lo, no_p = _weigh(
        x, column, cell_ok, top_p, log_sum_p, constants_p[0], constants_p[1], constants_p[2], constants_p[3],
        constants_p[4], LEFT, UNIT_P, T,
    )  # fmt: skip
    q, q_hi, q_lo, no_q = _weigh(
        y, column, cell_ok, top_q, log_sum_q, constants_q[0], constants_q[1], constants_q[2], constants_q[3],
        constants_q[4], RIGHT, UNIT_Q, T,
    )  # fmt: skip
    edge = no_p | no_q
    if SAME:  # two rows of logits at one temperature: d = ((y - x) - shift) · scale, without either maximum
        scale, _ = _split(constants_p[0], T)
        shift, shift_low = _split((top_q - top_p) + (log_sum_q - log_sum_p) / constants_p[0], T)
        hi, lo = _two_sum(tl.where(edge, 0.0, y), -tl.where(edge, 0.0, x))
        d = (hi - shift) + (lo - shift_low)
        if not UNIT_P:
            d = d * scale
    else:
        shift, shift_low = _split(log_sum_q - log_sum_p, T)
        hi, lo = _two_sum(q_hi, -p_hi)
        d = (hi - shift) + (lo + (q_lo - p_lo) - shift_low)
    log_q = q_hi - log_sum_q.to(T)
    return p, q, tl.where(edge, 0.0, d), tl.where(no_q, 0.0, log_q), no_p, no_q


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
def _rows_of(ptr, row, row_ok, stride, READING: tl.constexpr):
    """Where each row begins, or, of labels, each row's class."""
    if READING == LABELS:
        return tl.load(ptr + row * stride, mask=row_ok, other=-1)
    else:
        return ptr + row * stride


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
    x_rows = _rows_of(x_ptr, row, row_ok, x_stride, LEFT)
    y_rows = _rows_of(y_ptr, row, row_ok, y_stride, RIGHT)
    constants_p = (
        _row_constant(scale_p), _row_constant(on_p), _row_constant(off_p),
        _row_constant(log_on_p), _row_constant(log_off_p),
    )  # fmt: skip
    constants_q = (
        _row_constant(scale_q), _row_constant(on_q), _row_constant(off_q),
        _row_constant(log_on_q), _row_constant(log_off_q),
    )  # fmt: skip

    zero = tl.zeros((ROWS, 1), tl.float64)
    top_p, log_sum_p, top_q, log_sum_q = zero, zero, zero, zero
    if LEFT == LOGITS:
        top_p, log_sum_p = _normalizer(x_rows, row_ok, V, constants_p[0], UNIT_P, ROWS, BLOCK, NORMALIZER)
    if RIGHT == LOGITS:
        top_q, log_sum_q = _normalizer(y_rows, row_ok, V, constants_q[0], UNIT_Q, ROWS, BLOCK, NORMALIZER)

    total = tl.zeros((ROWS, BLOCK), T)
    low = tl.zeros((ROWS, BLOCK), T)
    sum_p = tl.zeros((ROWS, BLOCK), T)
    sum_q = tl.zeros((ROWS, BLOCK), T)
    m = tl.full((ROWS, BLOCK), float("-inf"), T)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        cell_ok = row_ok & (column < V)
        x = _load(x_rows, column, cell_ok, LEFT, T)
        y = _load(y_rows, column, cell_ok, RIGHT, T)
        p, q, d, log_q, no_p, no_q = _cells(
            x, y, column, cell_ok, top_p, log_sum_p, top_q, log_sum_q, constants_p, constants_q,
            LEFT, RIGHT, UNIT_P, UNIT_Q, SAME, T,
        )  # fmt: skip
        if AFFINITY:
            scores = _affinity_scores(d, log_q, no_p, no_q, PARAMETER)
            m, total, low = _see(m, total, low, scores, 1.0, 0.0, True)
        else:
            value, dlogp, dlogq = _terms(p, q, d, log_q, no_p, no_q, GENERATOR, PARAMETER, AT_P_ZERO, AT_Q_ZERO)
            total, low = _add(total, low, value)
            if KEEP and LEFT == LOGITS:
                sum_p += dlogp
            if KEEP and RIGHT == LOGITS:
                sum_q += dlogq
    if AFFINITY:
        top, s = _merged(m, total, low, 1.0, 0.0, True)
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
def _pull_back(
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
    x_rows = _rows_of(x_ptr, row, row_ok, x_stride, LEFT)
    y_rows = _rows_of(y_ptr, row, row_ok, y_stride, RIGHT)
    constants_p = (
        _row_constant(scale_p), _row_constant(on_p), _row_constant(off_p),
        _row_constant(log_on_p), _row_constant(log_off_p),
    )  # fmt: skip
    constants_q = (
        _row_constant(scale_q), _row_constant(on_q), _row_constant(off_q),
        _row_constant(log_on_q), _row_constant(log_off_q),
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
        x = _load(x_rows, column, cell_ok, LEFT, T)
        y = _load(y_rows, column, cell_ok, RIGHT, T)
        p, q, d, log_q, no_p, no_q = _cells(
            x, y, column, cell_ok, top_p, log_sum_p, top_q, log_sum_q, constants_p, constants_q,
            LEFT, RIGHT, UNIT_P, UNIT_Q, SAME, T,
        )  # fmt: skip
        if AFFINITY:
            share = tl.exp(_affinity_scores(d, log_q, no_p, no_q, PARAMETER) - result)
            dlogp, dlogq = PARAMETER * share, (1.0 - PARAMETER) * share
        else:
            _, dlogp, dlogq = _terms(p, q, d, log_q, no_p, no_q, GENERATOR, PARAMETER, AT_P_ZERO, AT_Q_ZERO)
        if TO_X:
            gradient = _pull_back(
                dlogp, p, no_q, log_q, x_p, upstream, constants_p[0], PLAIN_P, SLOPE_P, LOG_Q_SLOPE, LEFT, T
            )
            gradient = tl.where(silent, 0.0, gradient)
            tl.store(to_x_ptr + row * V + column, _rounded(gradient, to_x_ptr.dtype.element_ty), mask=cell_ok)
        if TO_Y:
            gradient = _pull_back(
                dlogq, q, no_p, log_q, x_q, upstream, constants_q[0], PLAIN_Q, SLOPE_Q, False, RIGHT, T
            )
            gradient = tl.where(silent, 0.0, gradient)
            tl.store(to_y_ptr + row * V + column, _rounded(gradient, to_y_ptr.dtype.element_ty), mask=cell_ok)
