"""Writes tests/exact/sweep.json: KL and JS of every pair of families on one space, with two derivatives, by mpmath.

    python tests/exact/make_sweep.py [--jobs N]

Spaces are the line, the half-line, the unit interval and the integers. Both sides' parameters move along one direction,
θ + ε d, and a row holds φ(0), φ'(0) and φ''(0) of φ(ε) = KL or JS, by central differences of five integrals (step 1e-4,
error below 1e-13). Integrals are double-exponential trapezoids in 60 digits over log(x - low), log(x - low)/(high - x)
or asinh(x), cut at the ends of both supports and at the kinks of Laplace. "inf" is decided by the tails: KL(p‖q) is
infinite where p has mass outside of q, or where p's power tail is too heavy for -log q.
"""

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import mpmath as mp

mp.mp.dps = 60
INF = math.inf
STEP = mp.mpf("1e-4")
OUT = Path(__file__).parent / "sweep.json"


def _beta(a, b):
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def _softplus(x):
    return mp.log1p(mp.exp(x)) if x < 0 else x + mp.log1p(mp.exp(-x))


def _exp(x):
    return mp.exp(x) if x < 10**6 else mp.inf


# family: log density of (x, log of its distance to the lower end, log of that to the upper end)
LINE = {
    "Normal": (
        lambda x, above, below, m, s: -(((x - m) / s) ** 2) / 2 - mp.log(s) - mp.log(2 * mp.pi) / 2,
        (0.3, 1.2),
        (-0.5, 0.7),
    ),
    "Laplace": (lambda x, above, below, m, b: -abs(x - m) / b - mp.log(2 * b), (0.3, 1.2), (-0.5, 1.7)),
    "Cauchy": (lambda x, above, below, m, g: -mp.log(mp.pi * g * (1 + ((x - m) / g) ** 2)), (0.25, 1.1), (-0.5, 0.7)),
    "StudentT": (
        lambda x, above, below, v, m, s: (
            -(v + 1) / 2 * mp.log1p(((x - m) / s) ** 2 / v) - mp.log(s * mp.sqrt(v)) - _beta(v / 2, mp.mpf(1) / 2)
        ),
        (3.5, 0.2, 1.1),
        (5.0, -0.5, 0.8),
    ),
    "Gumbel": (lambda x, above, below, m, b: -(x - m) / b - _exp(-(x - m) / b) - mp.log(b), (0.3, 1.2), (-0.5, 1.7)),
    "Logistic": (lambda x, above, below: x - 2 * _softplus(x), (), ()),
    "LogitRelaxedBernoulli": (
        lambda x, above, below, t, z: mp.log(t) + z - t * x - 2 * _softplus(z - t * x),
        (0.9, 0.4),
        (1.3, -0.5),
    ),
}
HALF = {
    "Exponential": (lambda x, above, below, r: mp.log(r) - r * _exp(above), (1.5,), (0.75,)),
    "Gamma": (
        lambda x, above, below, a, r: a * mp.log(r) - mp.loggamma(a) + (a - 1) * above - r * _exp(above),
        (2.5, 1.5),
        (0.6, 0.75),
    ),
    "Chi2": (
        lambda x, above, below, n: -n / 2 * mp.log(2) - mp.loggamma(n / 2) + (n / 2 - 1) * above - _exp(above) / 2,
        (3.5,),
        (1.5,),
    ),
    "InverseGamma": (
        lambda x, above, below, a, r: a * mp.log(r) - mp.loggamma(a) - (a + 1) * above - r * _exp(-above),
        (3.5, 2.0),
        (2.25, 0.75),
    ),
    "Weibull": (
        lambda x, above, below, s, k: mp.log(k) - k * mp.log(s) + (k - 1) * above - _exp(k * (above - mp.log(s))),
        (1.1, 1.7),
        (2.0, 0.8),
    ),
    "HalfNormal": (
        lambda x, above, below, s: -_exp(2 * above) / (2 * s * s) + mp.log(2 / mp.pi) / 2 - mp.log(s),
        (1.2,),
        (0.7,),
    ),
    "HalfCauchy": (
        lambda x, above, below, g: -mp.log(mp.pi / 2 * g) - mp.log1p(_exp(2 * above) / g**2),
        (1.2,),
        (0.7,),
    ),
    "LogNormal": (
        lambda x, above, below, m, s: -(((above - m) / s) ** 2) / 2 - mp.log(s) - above - mp.log(2 * mp.pi) / 2,
        (0.3, 0.5),
        (-0.5, 0.7),
    ),
    "FisherSnedecor": (
        lambda x, above, below, a, b: (
            a / 2 * mp.log(a / b)
            + (a / 2 - 1) * above
            - (a + b) / 2 * mp.log1p(a / b * _exp(above))
            - _beta(a / 2, b / 2)
        ),
        (3.0, 7.0),
        (4.5, 5.0),
    ),
    "Pareto": (lambda x, above, below, s, a: mp.log(a) + a * mp.log(s) - (a + 1) * mp.log(x), (1.5, 3.5), (1.25, 2.0)),
    "GeneralizedPareto": (
        lambda x, above, below, m, s, k: -(1 / k + 1) * mp.log1p(k * (x - m) / s) - mp.log(s),
        (0.25, 1.1, 0.15),
        (0.0, 0.9, 0.3),
    ),
}
UNIT = {
    "Uniform": (lambda x, above, below: mp.mpf(0), (), ()),
    "Beta": (lambda x, above, below, a, b: (a - 1) * above + (b - 1) * below - _beta(a, b), (2.0, 1.5), (0.6, 0.75)),
    "Kumaraswamy": (
        lambda x, above, below, a, b: mp.log(a * b) + (a - 1) * above + (b - 1) * mp.log(-mp.expm1(a * above)),
        (1.7, 2.5),
        (0.8, 0.6),
    ),
    "ContinuousBernoulli": (
        lambda x, above, below, p: x * mp.log(p / (1 - p)) - mp.log((2 * p - 1) / (1 - p) / mp.log(p / (1 - p))),
        (0.3,),
        (0.85,),
    ),
    "RelaxedBernoulli": (
        lambda x, above, below, t, z: (
            mp.log(t) + z - t * (above - below) - 2 * _softplus(z - t * (above - below)) - above - below
        ),
        (0.6, 0.4),
        (1.3, -0.5),
    ),
}
COUNTS = {
    "Poisson": (lambda x, r: x * mp.log(r) - r - mp.loggamma(x + 1), (2.5,), (3.25,)),
    "Geometric": (lambda x, p: x * mp.log(1 - p) + mp.log(p), (0.3,), (0.45,)),
    "NegativeBinomial": (
        lambda x, n, p: mp.loggamma(x + n) - mp.loggamma(n) - mp.loggamma(x + 1) + n * mp.log(1 - p) + x * mp.log(p),
        (2.5, 0.4),
        (0.75, 0.6),
    ),
    "Binomial": (
        lambda x, n, p: mp.log(mp.binomial(n, x)) + x * mp.log(p) + (n - x) * mp.log(1 - p) if x <= n else -mp.inf,
        (4, 0.3),
        (7, 0.55),
    ),
}
SPACES = {"line": LINE, "half-line": HALF, "unit": UNIT, "integers": COUNTS}
# parameters that stay: an end that moves out of the other's support would change the value at once
FIXED = {("GeneralizedPareto", "q"): (0,), ("Binomial", "p"): (0,), ("Binomial", "q"): (0,)}
DIRECTION = (0.5, -0.35, 0.25, -0.3, 0.4, 0.2)

# p's power tail at +inf, x^-s (else lighter), and at 0 of the half-line, x^e; -log q grows like x^r there
HEAVY = {"Cauchy": lambda g: 2, "StudentT": lambda a: a[0] + 1, "InverseGamma": lambda a: a[0] + 1}
HEAVY |= {"HalfCauchy": lambda a: 2, "FisherSnedecor": lambda a: a[1] / 2 + 1, "Pareto": lambda a: a[1] + 1}
HEAVY |= {"GeneralizedPareto": lambda a: 1 / a[2] + 1, "Cauchy": lambda a: 2}
RISES = {"Normal": lambda b: 2, "Laplace": lambda b: 1, "Gumbel": lambda b: 1, "Logistic": lambda b: 1}
RISES |= {"LogitRelaxedBernoulli": lambda b: 1, "Exponential": lambda b: 1, "Gamma": lambda b: 1, "Chi2": lambda b: 1}
RISES |= {"Weibull": lambda b: b[1], "HalfNormal": lambda b: 2}
AT_ZERO = {"Exponential": lambda a: 0, "Gamma": lambda a: a[0] - 1, "Chi2": lambda a: a[0] / 2 - 1}
AT_ZERO |= {"Weibull": lambda a: a[1] - 1, "HalfNormal": lambda a: 0, "HalfCauchy": lambda a: 0}
AT_ZERO |= {"FisherSnedecor": lambda a: a[0] / 2 - 1}
DECAYS = {"Laplace": lambda a: 1 / a[1], "Logistic": lambda a: 1, "LogitRelaxedBernoulli": lambda a: a[0]}


def ends(space, family, a):
    if space == "line":
        return -INF, INF
    if space == "unit":
        return 0, 1
    return {"Pareto": a[0], "GeneralizedPareto": a[0]}.get(family, 0) if a else 0, INF


def infinite(space, p, a, q, b):
    """Whether KL(p‖q) = +inf."""
    if space == "integers":
        return (p != "Binomial" and q == "Binomial") or (p == q == "Binomial" and a[0] > b[0])
    if space == "unit":
        return False
    if ends(space, p, a)[0] < ends(space, q, b)[0]:
        return True
    if p in HEAVY and q in RISES and RISES[q](b) >= HEAVY[p](a) - 1:
        return True
    if space == "line" and q == "Gumbel":  # its left tail falls like exp(-e^(-x/β))
        return p in HEAVY or (p in DECAYS and DECAYS[p](a) <= 1 / b[1])
    return q == "InverseGamma" and p in AT_ZERO and AT_ZERO[p](a) <= 0


def kinks(family, a):
    return [a[0]] if family == "Laplace" else []


def nodes(low, high, step):
    """(x, log(x - low), log(high - x), dx/dv) over a piece of the line, x = chart(2 sinh v)."""
    found = []
    count = int(mp.mpf("4.8") / step)
    for k in range(-count, count + 1):
        v = k * step
        t, slope = 2 * mp.sinh(v), 2 * mp.cosh(v)
        if low == -INF and high == INF:
            if abs(t) < 110:
                found.append((mp.sinh(t), None, None, mp.log(mp.cosh(t) * slope)))
        elif high == INF:
            found.append((low + mp.exp(t), t, None, t + mp.log(slope)))
        elif low == -INF:
            found.append((high - mp.exp(t), None, t, t + mp.log(slope)))
        else:
            up, down = -_softplus(-t), -_softplus(t)
            width = mp.log(high - low)
            found.append((low + (high - low) * mp.exp(up), width + up, width + down, width + up + down + mp.log(slope)))
    return found


def log_density(row, low, x, above, edge, below, top, a):
    """Of one family at a node whose distances to the piece's edges are known."""
    if x <= low and edge != low:
        return -mp.inf
    up = above if edge == low and above is not None else (mp.log(x - low) if low > -INF else None)
    down = below if top == 1 and below is not None else None
    return row(x, up, down, *a)


def integrals(space, p, a, q, b, step):
    """(KL, JS) for parameters a and b."""
    table = SPACES[space]
    low_p, low_q = (ends(space, f, v)[0] for f, v in ((p, a), (q, b)))
    top = ends(space, p, a)[1]
    cuts = sorted({low_p, low_q, top, *kinks(p, a), *kinks(q, b)})
    kl = js = mp.mpf(0)
    for low, high in pairwise(cuts):
        for x, above, below, log_slope in nodes(low, high, step):
            lp = log_density(table[p][0], low_p, x, above, low, below, high, a) if low >= low_p else -mp.inf
            lq = log_density(table[q][0], low_q, x, above, low, below, high, b) if low >= low_q else -mp.inf
            if max(lp, lq) + log_slope < -160:
                continue
            d = _term(lp, lq)
            kl, js = kl + step * mp.exp(log_slope) * d[0], js + step * mp.exp(log_slope) * d[1]
    return kl, js


def _term(lp, lq):
    u, v = (mp.exp(x) if x > -(10**6) else mp.mpf(0) for x in (lp, lq))
    m = mp.log((u + v) / 2) if u + v > 0 else mp.mpf(0)
    kl = u * (lp - lq) - u + v if u and lq > -mp.inf else v
    return kl, ((u * (lp - m) if u else 0) + (v * (lq - m) if v else 0)) / 2


def sums(p, a, q, b):
    kl = js = mp.mpf(0)
    for x in range(400):
        d = _term(COUNTS[p][0](mp.mpf(x), *a), COUNTS[q][0](mp.mpf(x), *b))
        kl, js = kl + d[0], js + d[1]
    return kl, js


def moved(side, family, a, epsilon):
    fixed = FIXED.get((family, side), ())
    shift = 0 if side == "p" else 3
    return [mp.mpf(x) + (0 if i in fixed else epsilon * DIRECTION[i + shift]) for i, x in enumerate(a)]


def row(job):
    space, p, q = job
    a, b = SPACES[space][p][1], SPACES[space][q][2]
    step = mp.mpf(1) / (140 if "Gumbel" in (p, q) else 56)  # errors below 1e-26
    values = []
    for k in (-2, -1, 0, 1, 2):
        x, y = moved("p", p, a, k * STEP), moved("q", q, b, k * STEP)
        values.append(sums(p, x, q, y) if space == "integers" else integrals(space, p, x, q, y, step))
    result = {"space": space, "p": p, "q": q, "a": a, "b": b}
    for index, name in enumerate(("kl", "js")):
        if name == "kl" and infinite(space, p, a, q, b):
            result[name] = ["inf", "0", "0"]
            continue
        f = [v[index] for v in values]
        first = (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * STEP)
        second = (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * STEP**2)
        result[name] = [mp.nstr(v, 20) for v in (f[2], first, second)]
    return result


def jobs():
    return [(space, p, q) for space, table in SPACES.items() for p in table for q in table]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    chosen = [job for job in jobs() if options.only in "‖".join(job)]
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(row, chosen))
    if options.only:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        temporary = OUT.with_suffix(".tmp")
        temporary.write_text("[\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n]\n")
        temporary.replace(OUT)


if __name__ == "__main__":
    main()
