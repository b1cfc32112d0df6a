"""Writes vectors.json: divergences between vectors and matrices, with gradients, in 40 digits of mpmath.

Run from the repository root: python tests/exact/make_vector_oracles.py. Gaussians and Wishart by textbook determinants,
traces and inverses; Dirichlet as independent Beta variables and LKJ row by row, both by quadrature of their densities;
Multinomial by summation over every outcome. Parameters are rounded to float32 first.
"""

import itertools
import json
from pathlib import Path

import mpmath as mp
import numpy as np

mp.mp.dps = 40
OUT = Path(__file__).parent / "vectors.json"


def flat(x):
    return [x] if not isinstance(x, list) else [z for y in x for z in flat(y)]


def rounded(x):
    return [rounded(y) for y in x] if isinstance(x, list) else mp.mpf(float(np.float32(x)))


def rebuilt(x, values):
    return [rebuilt(y, values) for y in x] if isinstance(x, list) else next(values)


# Gaussians and Wishart: mean and covariance


def gaussian(parameters):
    loc = mp.matrix(parameters["loc"])
    if "covariance_matrix" in parameters:
        matrix = mp.matrix(parameters["covariance_matrix"])
        return loc, (matrix + matrix.T) / 2
    if "precision_matrix" in parameters:
        matrix = mp.matrix(parameters["precision_matrix"])
        return loc, mp.inverse((matrix + matrix.T) / 2)
    if "cov_factor" in parameters:
        w = mp.matrix(parameters["cov_factor"])
        return loc, w * w.T + mp.diag(parameters["cov_diag"])
    if "scale" in parameters:
        return loc, mp.diag([s**2 for s in parameters["scale"]])
    factor = mp.matrix(parameters["scale_tril"])
    return loc, factor * factor.T


def is_definite(m):
    return all(mp.det(m[:k, :k]) > 0 for k in range(1, m.rows + 1))


def trace(m):
    return mp.fsum(m[i, i] for i in range(m.rows))


def gaussians(quantity, order, p, q):
    m, s = gaussian(p)
    if quantity == "entropy":
        return (len(m) * mp.log(2 * mp.pi * mp.e) + mp.log(mp.det(s))) / 2
    n, r = gaussian(q)
    gap = m - n
    if quantity == "kl":
        ratio = mp.inverse(r) * s
        return (trace(ratio) - len(m) - mp.log(mp.det(ratio)) + (gap.T * mp.inverse(r) * gap)[0]) / 2
    mixed = (1 - order) * s + order * r
    if not is_definite(mixed):
        return mp.inf
    log_det = mp.log(mp.det(mixed)) - (1 - order) * mp.log(mp.det(s)) - order * mp.log(mp.det(r))
    return order * (gap.T * mp.inverse(mixed) * gap)[0] / 2 + log_det / (2 * (1 - order))


def multigamma(x, size):
    return mp.mpf(size * (size - 1)) / 4 * mp.log(mp.pi) + mp.fsum(mp.loggamma(x - mp.mpf(i) / 2) for i in range(size))


def multidigamma(x, size):
    return mp.fsum(mp.digamma(x - mp.mpf(i) / 2) for i in range(size))


def wisharts(quantity, order, p, q):
    a, v = p["df"], mp.matrix(p["scale_tril"]) * mp.matrix(p["scale_tril"]).T
    size = v.rows
    if quantity == "entropy":
        value = mp.mpf(size + 1) / 2 * mp.log(mp.det(v)) + mp.mpf(size * (size + 1)) / 2 * mp.log(2)
        value += multigamma(a / 2, size) - (a - size - 1) / 2 * multidigamma(a / 2, size)
        return value + a * size / 2
    b, w = q["df"], mp.matrix(q["scale_tril"]) * mp.matrix(q["scale_tril"]).T

    def normalizer(df, matrix):
        return df * size / 2 * mp.log(2) + df / 2 * mp.log(mp.det(matrix)) + multigamma(df / 2, size)

    if quantity == "kl":
        ratio = mp.inverse(w) * v
        value = -b / 2 * mp.log(mp.det(ratio)) + a / 2 * (trace(ratio) - size)
        value += multigamma(b / 2, size) - multigamma(a / 2, size)
        return value + (a - b) / 2 * multidigamma(a / 2, size)
    if not is_definite(order * mp.inverse(v) + (1 - order) * mp.inverse(w)):
        return mp.inf
    middle = mp.inverse(order * mp.inverse(v) + (1 - order) * mp.inverse(w))
    log_sum = normalizer(order * a + (1 - order) * b, middle)
    return (log_sum - order * normalizer(a, v) - (1 - order) * normalizer(b, w)) / (order - 1)


# products of densities on the line, by quadrature: each factor is a log-density up to its constant, on (low, high)


def product(quantity, order, factors):
    return mp.fsum(on_the_line(quantity, order, *factor) for factor in factors)


def on_the_line(quantity, order, log_p, log_q, points):
    norm_p = mp.log(mp.quad(lambda x: mp.exp(log_p(x)), points))
    norm_q = mp.log(mp.quad(lambda x: mp.exp(log_q(x)), points))
    if quantity == "kl":
        return mp.quad(lambda x: mp.exp(log_p(x) - norm_p) * (log_p(x) - norm_p - log_q(x) + norm_q), points)
    power = mp.quad(lambda x: mp.exp(order * (log_p(x) - norm_p) + (1 - order) * (log_q(x) - norm_q)), points)
    return mp.log(power) / (order - 1)


def beta(a, b):
    return lambda x: (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x)


def dirichlets(quantity, order, p, q):
    a = p["concentration"]
    if quantity == "entropy":
        total = mp.fsum(a)
        value = mp.fsum(mp.loggamma(x) for x in a) - mp.loggamma(total) + (total - len(a)) * mp.digamma(total)
        return value - mp.fsum((x - 1) * mp.digamma(x) for x in a)
    b = q["concentration"]
    points = [0, mp.mpf(1) / 16, mp.mpf(1) / 2, mp.mpf(15) / 16, 1]
    factors = [(beta(a[i], mp.fsum(a[i + 1 :])), beta(b[i], mp.fsum(b[i + 1 :])), points) for i in range(len(a) - 1)]
    return product(quantity, order, factors)


def lkjs(quantity, order, p, q):
    """Row i of the factor lies in the unit ball of dimension i - 1; its density falls with the distance r from 0."""
    size, factors = p["dim"], []
    for row in range(2, size + 1):

        def log_density(eta, row=row):
            power = 2 * (eta - 1) + size - row
            return lambda r: power / 2 * mp.log1p(-r * r) + (row - 2) * mp.log(r)

        if quantity == "entropy":
            factors.append(ball_entropy(log_density(p["concentration"]), row - 1))
            continue
        factors.append((log_density(p["concentration"]), log_density(q["concentration"]), [0, mp.mpf(1) / 2, 1]))
    return mp.fsum(factors) if quantity == "entropy" else product(quantity, order, factors)


def ball_entropy(log_density, size):
    """Of a point in the unit ball, whose distance from 0 has this log-density with r^(size-1) in it."""
    points = [0, mp.mpf(1) / 2, 1]
    sphere = 2 * mp.pi ** (mp.mpf(size) / 2) / mp.gamma(mp.mpf(size) / 2)

    def log_point(r):
        return log_density(r) - (size - 1) * mp.log(r)

    total = mp.quad(lambda r: sphere * mp.exp(log_density(r)), points)
    mean = mp.quad(lambda r: sphere * mp.exp(log_density(r)) * log_point(r), points) / total
    return mp.log(total) - mean


def multinomials(quantity, order, p, q):
    n, weights = p["total_count"], [[w / mp.fsum(x["probs"]) for w in x["probs"]] for x in (p, q or p)]
    total = mp.mpf(0)
    for counts in itertools.product(range(n + 1), repeat=len(weights[0])):
        if sum(counts) != n:
            continue
        ways = mp.factorial(n)
        for c in counts:
            ways /= mp.factorial(c)
        log_p, log_q = (
            mp.log(ways) + mp.fsum(c * mp.log(w) for c, w in zip(counts, side, strict=True) if c) for side in weights
        )
        if quantity == "renyi":
            total += mp.exp(order * log_p + (1 - order) * log_q)
        else:
            total += mp.exp(log_p) * (log_p - log_q if quantity == "kl" else -log_p)
    return mp.log(total) / (order - 1) if quantity == "renyi" else total


SERVES = {
    "MultivariateNormal": gaussians,
    "LowRankMultivariateNormal": gaussians,
    "Independent": gaussians,
    "Wishart": wisharts,
    "Dirichlet": dirichlets,
    "LKJCholesky": lkjs,
    "Multinomial": multinomials,
}
WHOLE = ("dim", "total_count")


def case(quantity, order, family, p, other=None, q=None):
    function = SERVES[family]
    p, q = (None if side is None else {k: v if k in WHOLE else rounded(v) for k, v in side.items()} for side in (p, q))
    # the quadratures are slower
    exact = family not in ("Dirichlet", "LKJCholesky")
    with mp.workdps(40 if exact else 25):
        step = mp.mpf(10) ** (-8 if exact else -5)
        value = function(quantity, order, p, q)
        gradient = {}
        for name, side in (("p", p), ("q", q)):
            for key, given in (side or {}).items():
                if key in WHOLE or value == mp.inf:
                    continue
                numbers, slopes = flat(given), []
                for i, number in enumerate(numbers):
                    if key == "scale_tril" and given[0][1] == 0 and i % len(given) > i // len(given):
                        slopes.append(0.0)
                        continue
                    h = step * max(abs(number), mp.mpf(1) / 100)

                    def moved(t, i=i, numbers=numbers, given=given, key=key, name=name):
                        changed = [t if j == i else x for j, x in enumerate(numbers)]
                        sides = {"p": p, "q": q}
                        sides[name] = {**sides[name], key: rebuilt(given, iter(changed))}
                        return function(quantity, order, sides["p"], sides["q"])

                    slope = 8 * (moved(number + h) - moved(number - h)) - moved(number + 2 * h) + moved(number - 2 * h)
                    slopes.append(float(slope / (12 * h)))
                gradient[f"{name}.{key}"] = slopes

    def plain(side):
        return side and {k: v if k in WHOLE else rebuilt(v, map(float, flat(v))) for k, v in side.items()}

    return {
        "quantity": quantity,
        "order": order,
        "family": family,
        "p": plain(p),
        "other": other or family,
        "q": plain(q),
        "value": mp.nstr(value, 20),
        "gradient": gradient,
    }


TRIL = [[1.2, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.5, 1.5]]
OTHER = [[0.7, 0.0, 0.0], [-0.2, 1.1, 0.0], [0.6, 0.1, 0.9]]
WIDE = [[30.0, 0.0, 0.0], [10.0, 5.0, 0.0], [-200.0, 3.0, 80.0]]
COVARIANCE = [[2.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.5]]
LOC, AWAY = [0.3, -0.5, 1.0], [0.0, 0.5, 1.25]


def scaled(x, by):
    return [scaled(y, by) for y in x] if isinstance(x, list) else x * by


MVN, LOW, IND = "MultivariateNormal", "LowRankMultivariateNormal", "Independent"
COV_P, COV_NEAR = ({"loc": LOC, "covariance_matrix": scaled(COVARIANCE, by)} for by in (1.0, 1.001))
P, Q = {"loc": LOC, "scale_tril": TRIL}, {"loc": AWAY, "scale_tril": OTHER}
NEAR = {"loc": scaled(LOC, 1.0001), "scale_tril": scaled(TRIL, 1.0001)}
LOW_P = {"loc": LOC, "cov_factor": [[1.0], [2.0], [0.5]], "cov_diag": [1.0, 0.5, 2.0]}
LOW_Q = {"loc": AWAY, "cov_factor": [[0.5, 0.1], [1.0, -0.5], [1.5, 0.2]], "cov_diag": [0.7, 1.5, 1.0]}
LOW_NEAR = {"loc": LOC, "cov_factor": [[1.0001], [2.0], [0.5]], "cov_diag": [1.0, 0.5, 2.0001]}
IND_P = {"loc": AWAY, "scale": [0.7, 1.1, 0.9]}
W_P, W_Q = {"df": 4.5, "scale_tril": TRIL}, {"df": 6.0, "scale_tril": OTHER}
W_NEAR = {"df": 4.5005, "scale_tril": scaled(TRIL, 1.0001)}
D_P, D_Q, D_NEAR = ({"concentration": x} for x in ([2.0, 3.5, 1.5], [4.0, 1.0, 2.5], [2.0, 3.5001, 1.5]))
M_P, M_Q = ({"total_count": 4, "probs": x} for x in ([0.25, 0.5, 0.25], [0.5, 0.125, 0.375]))
M_NEAR = {"total_count": 4, "probs": [0.25, 0.5 + 2.0**-13, 0.25 - 2.0**-13]}


def lkj(size, eta):
    return {"dim": size, "concentration": eta}


PAIRS = [
    (MVN, P, MVN, Q),
    (MVN, P, MVN, NEAR),
    (MVN, P, MVN, {"loc": [100.0, 0.0, -50.0], "scale_tril": WIDE}),
    (MVN, COV_P, MVN, Q),
    (MVN, COV_P, MVN, COV_NEAR),
    (MVN, {"loc": LOC, "precision_matrix": COVARIANCE}, MVN, Q),
    (LOW, LOW_P, LOW, LOW_Q),
    (LOW, LOW_P, LOW, LOW_NEAR),
    (LOW, LOW_P, MVN, Q),
    (MVN, P, LOW, LOW_Q),
    (IND, IND_P, MVN, P),
    (MVN, P, IND, IND_P),
    (IND, IND_P, LOW, LOW_P),
    (LOW, LOW_P, IND, IND_P),
    ("Wishart", W_P, "Wishart", W_Q),
    ("Wishart", W_P, "Wishart", W_NEAR),
    ("Dirichlet", D_P, "Dirichlet", D_Q),
    ("Dirichlet", D_P, "Dirichlet", D_NEAR),
    ("LKJCholesky", lkj(2, 1.5), "LKJCholesky", lkj(2, 0.75)),
    ("LKJCholesky", lkj(4, 2.0), "LKJCholesky", lkj(4, 3.5)),
    ("LKJCholesky", lkj(3, 2.0), "LKJCholesky", lkj(3, 2.0002)),
    ("Multinomial", M_P, "Multinomial", M_Q),
    ("Multinomial", M_P, "Multinomial", M_NEAR),
]  # fmt: skip


def main():
    rows = [case("kl", None, *pair) for pair in PAIRS]
    rows += [case("renyi", order, *pair) for order in (0.5, 1.25) for pair in PAIRS]
    alone = [(MVN, P), (MVN, COV_P), (LOW, LOW_P), ("Wishart", W_P)]
    rows += [
        case("entropy", None, *side)
        for side in (*alone, ("Dirichlet", D_P), ("Multinomial", M_P), ("LKJCholesky", lkj(4, 2.0)))
    ]
    OUT.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
