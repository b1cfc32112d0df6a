"""`core.generators`, transcribed under the same names, where each formula is explained.

A generator takes p, q, d = log(q/p) and log q of cells where both have mass, and its parameter, if it has one; it
returns its term and the two logarithmic derivatives. Cells are float32 or float64, and so is all that is computed:

float64   near = |y| < 1/8, as in core
float32   near = |y| < 1, because e^y - 1 - y of two rounded exponentials has lost three digits at 1/8; the same
          nine terms leave a relative remainder below 1e-7 there
"""

import triton
import triton.language as tl


@triton.jit
def _series(y):
    """(e^y - 1 - y) / y², its first nine terms."""
    s = y * (1.0 / 3628800.0) + 1.0 / 362880.0
    s = s * y + 1.0 / 40320.0
    s = s * y + 1.0 / 5040.0
    s = s * y + 1.0 / 720.0
    s = s * y + 1.0 / 120.0
    s = s * y + 1.0 / 24.0
    s = s * y + 1.0 / 6.0
    return s * y + 0.5


@triton.jit
def _near(y):
    if y.dtype == tl.float64:
        return tl.abs(y) < 0.125
    else:
        return tl.abs(y) < 1.0


@triton.jit
def growth(w, m, y):
    """w (e^y - 1), given also m = w e^y."""
    return tl.where(_near(y), w * (y + y * y * _series(y)), m - w)


@triton.jit
def excess(w, m, y):
    """w (e^y - 1 - y) >= 0, given also m = w e^y."""
    return tl.where(_near(y), w * (y * y * _series(y)), m - w - w * y)


@triton.jit
def kl(p, q, d, log_q, parameter: tl.constexpr):
    return excess(p, q, d), -p * d, growth(p, q, d)


@triton.jit
def reverse_kl(p, q, d, log_q, parameter: tl.constexpr):
    return excess(q, p, -d), growth(q, p, -d), q * d


@triton.jit
def jeffreys(p, q, d, log_q, parameter: tl.constexpr):
    g = growth(p, q, d)
    return g * d, -p * d - g, g + q * d


@triton.jit
def js(p, q, d, log_q, parameter: tl.constexpr):
    u: tl.constexpr = 1.0 - parameter
    m = parameter * p + u * q
    log_m_p, log_m_q = _log_mix(parameter, u, d), _log_mix(u, parameter, -d)
    value = parameter * excess(p, m, log_m_p) + u * excess(q, m, log_m_q)
    return value, -parameter * p * log_m_p, -u * q * log_m_q


@triton.jit
def skew_kl(p, q, d, log_q, parameter: tl.constexpr):
    u: tl.constexpr = 1.0 - parameter
    m, y = parameter * p + u * q, _log_mix(parameter, u, d)
    back = tl.exp(-y)  # p/m, at most 1/w
    from_p, from_q = growth(p, p * back, -y), growth(q, q * back, -y)
    return excess(p, m, y), -p * y - parameter * from_p, -u * from_q


@triton.jit
def _log_mix(w: tl.constexpr, u: tl.constexpr, y):
    """log(w + u e^y) with w + u = 1, exact at y = 0, without overflow, and with its digits where it is small."""
    x = u * expm1(y)
    near = (x > -0.5) & (x < 1.0)
    small = tl.exp(-tl.abs(y))
    far = tl.where(y > 0.0, y, 0.0) + tl.log(tl.where(y > 0.0, u + w * small, w + u * small))
    return tl.where(near, log1p(tl.where(near, x, 0.0)), far)


@triton.jit
def alpha(p, q, d, log_q, parameter: tl.constexpr):
    if parameter >= 0.5:
        value, dlogp, dlogq = _alpha_half_up(parameter, 1.0 - parameter, p, q, d)
    else:
        value, dlogq, dlogp = _alpha_half_up(1.0 - parameter, parameter, q, p, -d)
    return value, dlogp, dlogq


@triton.jit
def _alpha_half_up(a: tl.constexpr, t: tl.constexpr, p, q, d):
    m = tl.where(d < 0.0, p, q) * tl.exp(tl.where(d < 0.0, t * d, -a * d))  # p^a q^(1-a)
    dlogp = -growth(p, m, t * d) / t
    near = excess(p, q, d) - excess(p, m, t * d) / t
    far = growth(p, q, d) + dlogp
    return tl.where(tl.abs(d) < 1.0, near, far) / a, dlogp, -growth(q, m, -a * d) / a


@triton.jit
def tv(p, q, d, log_q, parameter: tl.constexpr):
    g = growth(p, q, d)
    s = tl.where(g > 0.0, 0.5, tl.where(g < 0.0, -0.5, g))  # NaN stays NaN
    return tl.abs(g) * 0.5, -s * p, s * q


@triton.jit
def squared_hellinger(p, q, d, log_q, parameter: tl.constexpr):
    root_p, root_q = tl.sqrt(p), tl.sqrt(q)
    r = growth(root_p, root_q, d * 0.5)
    return r * r * 0.5, -root_p * r * 0.5, root_q * r * 0.5


@triton.jit
def chi2(p, q, d, log_q, parameter: tl.constexpr):
    g = growth(p, q, d)
    e = tl.exp(-d)
    return -g * expm1(-d), -2.0 * g * e, g * (1.0 + e)


@triton.jit
def triangular(p, q, d, log_q, parameter: tl.constexpr):
    g, s = growth(p, q, d), p + q
    t = tl.where(s > 0.0, g / tl.where(s > 0.0, s, 1.0), s)  # tanh(d/2); NaN stays NaN
    return g * t, -p * t * (2.0 + t), q * t * (2.0 - t)


@triton.jit
def nothing(p, q, d, log_q, parameter: tl.constexpr):
    return 0.0 * d, 0.0 * d, 0.0 * d


@triton.jit
def cross_entropy(p, q, d, log_q, parameter: tl.constexpr):
    return -p * log_q, -p * log_q, -p


@triton.jit
def expm1(y):
    """e^y - 1."""
    near = _near(y)
    t = tl.where(near, y, 0.0)
    return tl.where(near, t + t * t * _series(t), tl.exp(y) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x) for x in [-0.5, 1]."""
    if x.dtype == tl.float64:
        c = 1.0 + x
        return tl.log(c) + (x - (c - 1.0)) / c
    else:
        # 2 atanh(s) by its series, s² <= 1/9; the device's logarithm has an absolute error near 1
        s = x / (2.0 + x)
        z = s * s
        t = z * (2.0 / 15.0) + 2.0 / 13.0
        t = t * z + 2.0 / 11.0
        t = t * z + 2.0 / 9.0
        t = t * z + 2.0 / 7.0
        t = t * z + 2.0 / 5.0
        t = t * z + 2.0 / 3.0
        return s * (2.0 + z * t)
