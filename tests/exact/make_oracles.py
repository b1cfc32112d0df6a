"""Writes closed_forms.json: KL and its gradient for every closed form, by mpmath quadrature or summation.

Run from the repository root: python tests/exact/make_oracles.py. Densities are written out here, in 25 digits, without
any of kullback's or PyTorch's formulas. Parameters are rounded to float32 first, so that one oracle serves both dtypes.
"""

import json
import multiprocessing
import struct
import sys
from pathlib import Path

import mpmath as mp

mp.mp.dps = 25
OUT = Path(__file__).parent / "closed_forms.json"
INF = mp.inf


def f32(x):
    return struct.unpack("f", struct.pack("f", float(x)))[0]


def _beta(a, b):
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def _cb(eta):
    return mp.log(mp.expm1(eta) / eta) if abs(eta) > mp.mpf(10) ** -12 else eta / 2 + eta**2 / 24


# family: log density, support, points around the mass
CONTINUOUS = {
    "Normal": (
        lambda x, m, s: -(((x - m) / s) ** 2) / 2 - mp.log(s) - mp.log(2 * mp.pi) / 2,
        lambda m, s: (-INF, INF),
        lambda m, s: (m, s),
    ),
    "LogNormal": (
        lambda x, m, s: -(((mp.log(x) - m) / s) ** 2) / 2 - mp.log(s * x) - mp.log(2 * mp.pi) / 2,
        lambda m, s: (0, INF),
        lambda m, s: (mp.exp(m), s * mp.exp(m)),
    ),
    "HalfNormal": (
        lambda x, s: -((x / s) ** 2) / 2 + mp.log(2 / mp.pi) / 2 - mp.log(s),
        lambda s: (0, INF),
        lambda s: (s, s),
    ),
    "Laplace": (lambda x, m, b: -abs(x - m) / b - mp.log(2 * b), lambda m, b: (-INF, INF), lambda m, b: (m, b)),
    "Cauchy": (
        lambda x, m, g: -mp.log(mp.pi * g * (1 + ((x - m) / g) ** 2)),
        lambda m, g: (-INF, INF),
        lambda m, g: (m, g),
    ),
    "HalfCauchy": (lambda x, g: -mp.log(mp.pi / 2 * g * (1 + (x / g) ** 2)), lambda g: (0, INF), lambda g: (g, g)),
    "Gumbel": (
        lambda x, m, b: -(x - m) / b - mp.exp(-(x - m) / b) - mp.log(b),
        lambda m, b: (-INF, INF),
        lambda m, b: (m, b),
    ),
    "Weibull": (
        lambda x, s, k: mp.log(k / s) + (k - 1) * mp.log(x / s) - (x / s) ** k,
        lambda s, k: (0, INF),
        lambda s, k: (s, s / k),
    ),
    "Pareto": (
        lambda x, s, a: mp.log(a) + a * mp.log(s) - (a + 1) * mp.log(x),
        lambda s, a: (s, INF),
        lambda s, a: (s * (1 + 1 / a), s / a),
    ),
    "Uniform": (lambda x, a, b: -mp.log(b - a), lambda a, b: (a, b), lambda a, b: ((a + b) / 2, (b - a) / 4)),
    "VonMises": (
        lambda x, m, k: k * mp.cos(x - m) - mp.log(2 * mp.pi * mp.besseli(0, k)),
        lambda m, k: (-mp.pi, mp.pi),
        lambda m, k: (m, 1 / mp.sqrt(1 + k)),
    ),
    "Gamma": (
        lambda x, a, r: a * mp.log(r) - mp.loggamma(a) + (a - 1) * mp.log(x) - r * x,
        lambda a, r: (0, INF),
        lambda a, r: (a / r, mp.sqrt(a) / r),
    ),
    "InverseGamma": (
        lambda x, a, r: a * mp.log(r) - mp.loggamma(a) - (a + 1) * mp.log(x) - r / x,
        lambda a, r: (0, INF),
        lambda a, r: (r / a, r / a / mp.sqrt(a)),
    ),
    "Exponential": (lambda x, r: mp.log(r) - r * x, lambda r: (0, INF), lambda r: (1 / r, 1 / r)),
    "Beta": (
        lambda x, a, b: (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x) - _beta(a, b),
        lambda a, b: (0, 1),
        lambda a, b: (a / (a + b), mp.sqrt(a * b / (a + b + 1)) / (a + b)),
    ),
    "ContinuousBernoulli": (
        lambda x, eta: eta * x - _cb(eta),
        lambda eta: (0, 1),
        lambda eta: (mp.mpf(1) / 2, mp.mpf(1) / 8),
    ),
    "StudentT": (
        lambda x, v, m, s: (
            -(v + 1) / 2 * mp.log1p(((x - m) / s) ** 2 / v) - mp.log(s * mp.sqrt(v)) - _beta(v / 2, mp.mpf(1) / 2)
        ),
        lambda v, m, s: (-INF, INF),
        lambda v, m, s: (m, s),
    ),
}


def _xlog(x, w):
    return mp.mpf(0) if x == 0 else (x * mp.log(w) if w > 0 else -INF)


def _log_binomial(n, x):
    return mp.loggamma(n + 1) - mp.loggamma(x + 1) - mp.loggamma(n - x + 1)


# family: log mass, last point of the support
COUNTS = {
    "Poisson": (lambda x, r: _xlog(x, r) - r - mp.loggamma(x + 1), lambda r: INF),
    "Geometric": (lambda x, p: _xlog(x, 1 - p) + mp.log(p), lambda p: INF),
    "NegativeBinomial": (
        lambda x, n, p: mp.loggamma(x + n) - mp.loggamma(n) - mp.loggamma(x + 1) + n * mp.log(1 - p) + _xlog(x, p),
        lambda n, p: INF,
    ),
    "Binomial": (lambda x, n, p: _log_binomial(n, x) + _xlog(x, p) + _xlog(n - x, 1 - p), lambda n, p: n),
    "Bernoulli": (lambda x, p: _xlog(x, p) + _xlog(1 - x, 1 - p), lambda p: 1),
}


def kl_density(p, a, q, b):
    log_p, support, mass = CONTINUOUS[p]
    log_q, other, mass_q = CONTINUOUS[q]
    low, high = support(*a)
    low_q, high_q = other(*b)
    if low < low_q or high > high_q:
        return INF
    marks = {low, high}
    for center, width in (mass(*a), mass_q(*b)):
        marks |= {center + k * width for k in (-40, -12, -5, -2, 0, 2, 5, 12, 40) if low < center + k * width < high}
    if low == 0:
        marks |= {
            mass(*a)[0] * mp.mpf(10) ** -k for k in (1, 3, 10, 40, 160, 640) if mass(*a)[0] * mp.mpf(10) ** -k < high
        }
    if high == 1:
        marks |= {1 - mp.mpf(10) ** -k for k in (2, 5, 15, 40) if low < 1 - mp.mpf(10) ** -k}
    points = sorted(marks)

    def term(x):
        if x <= low or x >= high:  # a node that has rounded to an end
            return mp.mpf(0)
        lp, lq = log_p(x, *a), log_q(x, *b)
        return mp.exp(lp) * (lp - lq) if lp > -400 else mp.mpf(0)

    if low == 0 and high == INF:  # in log x, so that a singular density is smooth
        inner = [mp.log(x) for x in points[1:-1]]
        spread = [-4000, -1500, -600, -250, -100, -40]
        inner = [u for u in spread if u < inner[0]] + inner + [inner[-1] + k for k in (1, 3, 10, 40, 150)]
        return mp.quad(lambda u: mp.exp(u) * term(mp.exp(u)), inner)
    return mp.quad(term, points)


def kl_counts(p, a, q, b):
    log_p, last = COUNTS[p]
    log_q, last_q = COUNTS[q]
    total, x, previous = mp.mpf(0), 0, -INF
    while x <= last(*a):
        lp = log_p(mp.mpf(x), *a)
        if lp > -INF:
            lq = log_q(mp.mpf(x), *b) if x <= last_q(*b) else -INF
            if lq == -INF:
                return INF
            total += mp.exp(lp) * (lp - lq)
        if lp < -90 and lp <= previous and previous > -INF:
            break
        previous = lp
        x += 1
    return total


def kl(p, a, q, b):
    # near 1 a singular density needs 1 - x in many digits
    with mp.workdps(60 if p == "Beta" and a[1] < 1 else 25):
        return (kl_counts if p in COUNTS else kl_density)(p, a, q, b)


def case(p, a, q, b, fixed=()):
    """One row: value and gradient (p's parameters, then q's); `fixed` are indices without a derivative."""
    a, b = [mp.mpf(f32(x)) for x in a], [mp.mpf(f32(x)) for x in b]
    value = kl(p, a, q, b)
    row = {"p": p, "a": [float(x) for x in a], "q": q, "b": [float(x) for x in b]}
    if value == INF:
        return {**row, "value": "inf", "gradient": None}
    gradient = []
    for i in range(len(a) + len(b)):
        if i in fixed:
            gradient.append(None)
            continue

        def moved(t, i=i):
            both = [*a, *b]
            both[i] = t
            return kl(p, both[: len(a)], q, both[len(a) :])

        at = [*a, *b][i]
        h = max(abs(at), mp.mpf(1)) * mp.mpf(10) ** -8 if at == 0 else abs(at) * mp.mpf(10) ** -8
        slope = (8 * (moved(at + h) - moved(at - h)) - (moved(at + 2 * h) - moved(at - 2 * h))) / (12 * h)
        gradient.append(float(mp.nstr(slope, 20)))
    return {**row, "value": mp.nstr(value, 20), "gradient": gradient}


INTERIOR = {
    "Normal": [(0.3, 1.2), (-0.5, 0.7)],
    "LogNormal": [(0.3, 0.5), (-0.5, 0.7)],
    "HalfNormal": [(1.2,), (0.7,)],
    "Laplace": [(0.3, 1.2), (-0.5, 1.7)],
    "Cauchy": [(0.3, 1.2), (-0.5, 0.7)],
    "HalfCauchy": [(1.2,), (0.7,)],
    "Gumbel": [(0.3, 1.2), (-0.5, 0.7)],
    "Weibull": [(1.0, 2.0), (2.0, 0.8)],
    "Pareto": [(1.5, 4.5), (1.25, 2.0)],
    "Uniform": [(0.25, 0.75), (-0.5, 1.5)],
    "VonMises": [(0.3, 1.2), (1.0, 3.0)],
    "Gamma": [(2.0, 1.5), (3.25, 0.75)],
    "InverseGamma": [(2.0, 1.5), (3.25, 0.75)],
    "Exponential": [(1.5,), (0.6,)],
    "Beta": [(2.0, 1.5), (3.25, 0.75)],
    "ContinuousBernoulli": [(-0.8,), (0.6,)],
    "StudentT": [(4.0, 0.2, 1.0), (5.0, 1.0, 2.0)],
    "Poisson": [(1.5,), (0.6,)],
    "Geometric": [(0.5,), (0.3,)],
    "NegativeBinomial": [(3.0, 0.3), (3.0, 0.6)],
    "Binomial": [(5.0, 0.3), (5.0, 0.6)],
    "Bernoulli": [(0.3,), (0.6,)],
}
CROSS = [
    ("Gamma", "Exponential"),
    ("Exponential", "Gamma"),
    ("Bernoulli", "Poisson"),
    *[
        (p, "Normal")
        for p in (
            "Beta",
            "ContinuousBernoulli",
            "Exponential",
            "Gamma",
            "Gumbel",
            "Laplace",
            "LogNormal",
            "Pareto",
            "StudentT",
            "Uniform",
        )
    ],
    ("Normal", "Laplace"),
    *[(p, "Gumbel") for p in ("Normal", "Exponential", "Gamma", "Uniform")],
    ("ContinuousBernoulli", "Uniform"),
    ("ContinuousBernoulli", "Exponential"),
    ("Beta", "ContinuousBernoulli"),
    ("Beta", "Uniform"),
    ("Beta", "Exponential"),
    ("Beta", "Gamma"),
    ("Pareto", "Exponential"),
    ("Pareto", "Gamma"),
    ("Uniform", "Beta"),
    ("Uniform", "ContinuousBernoulli"),
    ("Uniform", "Exponential"),
    ("Uniform", "Gamma"),
]
FIXED = {"NegativeBinomial": (0, 2), "Binomial": (0, 2)}
# nearly equal, extreme, and boundary parameters
SPECIAL = [
    ("Normal", (0.0, 1.0), "Normal", (0.0, 1.001)),
    ("Normal", (1.0, 1.0), "Normal", (1.0001, 1.0)),
    ("Normal", (0.0, 1e-3), "Normal", (5.0, 30.0)),
    ("LogNormal", (0.3, 0.5), "LogNormal", (0.3, 0.5001)),
    ("HalfNormal", (1.0,), "HalfNormal", (1.0001,)),
    ("Laplace", (0.0, 1.0), "Laplace", (0.001, 1.001)),
    ("Cauchy", (0.0, 1.0), "Cauchy", (0.001, 1.001)),
    ("Gumbel", (0.0, 1.0), "Gumbel", (0.001, 1.001)),
    ("Weibull", (1.0, 2.0), "Weibull", (1.001, 2.001)),
    ("Pareto", (1.5, 3.0), "Pareto", (1.5, 3.001), (0, 2)),
    ("Pareto", (1.0, 3.0), "Pareto", (1.5, 3.0)),
    ("Uniform", (0.0, 1.0), "Uniform", (0.0, 1.0001), (0, 2)),
    ("Uniform", (0.0, 1.0), "Uniform", (0.5, 2.0)),
    ("VonMises", (0.0, 1.0), "VonMises", (1.0, 2.0)),
    ("VonMises", (0.0, 1e-4), "VonMises", (0.0, 2e-4)),
    ("VonMises", (0.0, 60.0), "VonMises", (0.001, 60.01)),
    ("VonMises", (0.0, 3.0), "VonMises", (0.0, 3.001)),
    ("Gamma", (2.0, 1.0), "Gamma", (2.001, 1.0)),
    ("Gamma", (1e6, 1.0), "Gamma", (1.00001e6, 1.0)),
    ("Gamma", (0.05, 3.0), "Gamma", (0.06, 2.0)),
    ("Gamma", (12.0, 1.0), "Gamma", (7.0, 2.0)),
    ("Gamma", (1e4, 2.0), "Normal", (5e3, 50.0)),
    ("Exponential", (1.0,), "Exponential", (1.0001,)),
    ("Beta", (1e4, 2e4), "Beta", (10001.0, 2e4)),
    ("Beta", (0.5, 0.75), "Beta", (0.501, 0.75)),
    ("Beta", (1.0, 1.0), "Uniform", (0.0, 1.25), (2,)),
    ("Beta", (1e3, 2e3), "Normal", (0.333, 0.01)),
    ("ContinuousBernoulli", (-500.0,), "ContinuousBernoulli", (20.0,)),
    ("ContinuousBernoulli", (0.01,), "ContinuousBernoulli", (0.0101,)),
    ("ContinuousBernoulli", (60.0,), "ContinuousBernoulli", (60.1,)),
    ("ContinuousBernoulli", (5.0,), "ContinuousBernoulli", (5.001,)),
    ("Uniform", (0.0, 1.0), "ContinuousBernoulli", (-0.8472978603872036,), (0, 1)),
    ("Uniform", (-1.0, 2.0), "Normal", (0.0, 1.0)),
    ("Uniform", (2.0, 3.0), "Pareto", (1.5, 2.0)),
    ("Uniform", (1.0, 3.0), "Pareto", (1.5, 2.0)),
    ("Laplace", (0.3, 1.2), "Gumbel", (-0.5, 1.7)),
    ("Poisson", (0.0,), "Poisson", (1.0,), (0,)),
    ("Poisson", (1.0,), "Poisson", (0.0,)),
    ("Poisson", (0.0,), "Poisson", (0.0,), (0, 1)),
    ("Poisson", (2.0,), "Poisson", (2.0001,)),
    ("Poisson", (0.5,), "Bernoulli", (0.5,)),
    ("Poisson", (0.0,), "Bernoulli", (0.25,), (0,)),
    ("Poisson", (0.0,), "Binomial", (3.0, 0.25), (0, 1)),
    ("Bernoulli", (0.0,), "Poisson", (0.5,), (0,)),
    ("Bernoulli", (1.0,), "Bernoulli", (0.5,), (0,)),
    ("Bernoulli", (0.5,), "Bernoulli", (1.0,)),
    ("Geometric", (1.0,), "Geometric", (1.0,), (0, 1)),
    ("Geometric", (1.0,), "Geometric", (0.5,), (0,)),
    ("Geometric", (0.5,), "Geometric", (1.0,)),
    ("Geometric", (0.3,), "Geometric", (0.30001,)),
    ("NegativeBinomial", (3.0, 0.3), "NegativeBinomial", (3.0, 0.3001), (0, 2)),
    ("NegativeBinomial", (3.0, 0.0), "NegativeBinomial", (3.0, 0.5), (0, 1, 2)),
    ("Binomial", (4.0, 0.0), "Binomial", (4.0, 0.5), (0, 1, 2)),
]


def jobs():
    same = [(f, a, f, b, FIXED.get(f, ())) for f, (a, b) in INTERIOR.items() if f != "StudentT"]
    return [*same, *((p, INTERIOR[p][0], q, INTERIOR[q][1]) for p, q in CROSS), *SPECIAL]


def compute(job):
    row = case(*job)
    print(row, file=sys.stderr, flush=True)
    return row


def main():
    with multiprocessing.Pool(2) as pool:
        rows = pool.map(compute, jobs(), chunksize=1)
    OUT.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
