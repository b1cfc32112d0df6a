"""Write finite.json: every divergence of the table on fixed rows, in 50-digit arithmetic.

    python tests/oracles/make_finite.py

The formulas below are the textbook ones and owe nothing to the package. Inputs are exact binary floats made by `inputs`
with integers, IEEE divisions and 50-digit exp and log only, so that no version of any library can change them; the
tests make them again and check their digest.

Where rows hold probabilities, rounding leaves their sums a little off one; the value is then the canonical sum of
CONVENTIONS.md, which is the f-divergence's own (for KL, Σ p log(p/q) - p + q).
"""

import hashlib
import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import mpmath as mp

FILE = Path(__file__).with_name("finite.json")
DIGITS = 50
NO = float("-inf")
ROW = Sequence[float]


class Row(NamedTuple):
    """Scores of p and q; `pairs` of forms to compute; `labels` (class of p, class of q, smoothing, spread)."""

    p: ROW
    q: ROW
    pairs: Sequence[tuple[str, str]]
    labels: tuple[int, int, float, str] = (0, 0, 0.1, "all")


DENSE = ("Logits", "LogProbs", "Probs")
ALL = tuple((a, b) for a in (*DENSE, "Labels") for b in (*DENSE, "Labels"))
LOGITS = (("Logits", "Logits"),)
LABELS = tuple(pair for pair in ALL if "Labels" in pair)


def single(x: float) -> float:
    """The nearest float32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def _noise(n: int, seed: int) -> list[float]:
    """About normal, exact in float32: sums of four 16-bit integers."""
    r = random.Random(seed)
    draws = [sum(r.getrandbits(16) for _ in range(4)) - 2 * 65535 for _ in range(n)]
    return [k / 2**15 for k in draws]


def _near(n: int, seed: int, step: float, offset: float = 0.0, scale: float = 1.0) -> tuple[list[float], list[float]]:
    p = [single(scale * a) for a in _noise(n, seed)]
    q = [single(a + step * d + offset) for a, d in zip(p, _noise(n, seed + 1000), strict=True)]
    return p, q


def recipe() -> dict[str, Row]:
    rows = {
        "random": Row(*_near(5, 1, 1.0), ALL, (1, 3, 0.1, "all")),
        "two classes": Row([0.5, -0.25], [-1.0, 2.0], ALL, (0, 1, 0.2, "others")),
        "one class": Row([3.0], [-2.0], ALL),
        "equal": Row([0.5, 1.0, -2.0], [0.5, 1.0, -2.0], ALL),
        "nearly equal": Row(*_near(6, 2, 1e-3), ALL, (2, 2, 0.25, "others")),
        "far apart": Row(*_near(6, 3, 12.0), ALL, (4, 0, 0.0, "all")),
        "zeros in p": Row([NO, 0.5, 1.0, NO], [0.0, 0.25, -1.0, 0.5], ALL, (1, 1, 0.0, "all")),
        "zeros in q": Row([0.0, 0.25, -1.0, 0.5], [NO, 0.5, 1.0, NO], ALL, (0, 1, 0.0, "all")),
        "zeros in both": Row([NO, 0.25, -1.0, 0.5], [NO, 0.5, 1.0, -1.0], ALL, (3, 3, 0.0, "others")),
        "one-hot p": Row([NO, 0.0, NO], [0.5, 1.0, 0.75], ALL, (1, 2, 0.5, "others")),
        "disjoint": Row([0.0, NO, 1.0, NO], [NO, 1.0, NO, 2.0], ALL, (0, 1, 0.0, "all")),
        "gap of 110": Row([0.0, 110.0, 109.0], [1.0, 110.0, 110.0], LOGITS + LABELS, (0, 1, 1e-6, "all")),
        "gap of 110, crossed": Row([0.0, 110.0], [110.0, 0.0], LOGITS),
        "gap of 1000": Row([0.0, 1000.0, 999.0], [1.0, 1000.0, 1000.0], LOGITS),
        "gap of 1000, crossed": Row([0.0, 1000.0], [1000.0, 0.0], LOGITS),
        "subnormal in float32": Row([0.0, -95.0, -1.0], [0.0, -96.0, -2.0], ALL),
        "subnormal in float64": Row([0.0, -735.0, -1.0], [0.0, -736.0, -2.0], LOGITS),
    }
    for exponent in (-1, -2, -3, -4, -5, -6, -7, -8, -9):
        step = (2.0 * 10.0**exponent) ** 0.5
        rows[f"about 1e{exponent}"] = Row(*_near(20, 20 - exponent, step), LOGITS)
        rows[f"about 1e{exponent}, offset 1000"] = Row(*_near(20, 40 - exponent, step, 1000.0), LOGITS)
        rows[f"about 1e{exponent}, offset -1000"] = Row(*_near(20, 60 - exponent, step, -1000.0), LOGITS)
    rows["about 1e-9, 1000 classes"] = Row(*_near(1000, 80, 4.5e-5, scale=2.0), LOGITS)
    rows["about 1e-6, 1000 classes, offset 1000"] = Row(*_near(1000, 81, 1.4e-3, 1000.0, scale=2.0), LOGITS)
    rows["about 1, 1000 classes"] = Row(*_near(1000, 82, 1.4), LOGITS)
    rows["about 1e2, 1000 classes"] = Row(*_near(1000, 83, 30.0, scale=10.0), LOGITS)
    return rows


def inputs(row: Row, side: int, form: str, double: bool) -> list[float]:
    """The exact data of one side: columns, or [class]."""
    if form == "Labels":
        return [float(row.labels[side])]
    scores = row[side]
    if form == "Logits":
        return list(scores)
    with mp.workdps(DIGITS):
        weights = _softmax(scores)
        values = [float(w if form == "Probs" else (mp.log(w) if w else NO)) for w in weights]
    return values if double else [single(v) for v in values]


def weights(row: Row, side: int, form: str, double: bool) -> list[mp.mpf]:
    """The distribution that those data mean."""
    data = inputs(row, side, form, double)
    if form == "Labels":
        _, _, smoothing, spread = row.labels
        n, e = len(row[side]), mp.mpf(smoothing)
        if spread == "all":
            on, off = 1 - e + e / n, e / n
        else:
            on, off = 1 - e, e / (n - 1)
        return [on if v == data[0] else off for v in range(n)]
    if form == "Logits":
        return _softmax(data)
    return [mp.exp(x) if form == "LogProbs" else mp.mpf(x) for x in data]


def _softmax(scores: ROW) -> list[mp.mpf]:
    top = max(scores)
    e = [mp.exp(mp.mpf(s) - mp.mpf(top)) if s != NO else mp.mpf(0) for s in scores]
    total = mp.fsum(e)
    return [x / total for x in e]


def _xlogy(p: mp.mpf, ratio: Callable[[], mp.mpf]) -> mp.mpf:
    return mp.mpf(0) if p == 0 else p * mp.log(ratio())


def _sum(cell, *rows):
    return mp.fsum(cell(*cells) for cells in zip(*rows, strict=True))


def kl(p, q):
    return _sum(lambda a, b: mp.inf if a > 0 and b == 0 else _xlogy(a, lambda: a / b) - a + b, p, q)


def jeffreys(p, q):
    def cell(a, b):
        if a == b:
            return mp.mpf(0)
        return mp.inf if a == 0 or b == 0 else (a - b) * mp.log(a / b)

    return _sum(cell, p, q)


def js(p, q, w):
    w, u = mp.mpf(w), 1 - mp.mpf(w)

    def cell(a, b):
        m = w * a + u * b
        return w * _xlogy(a, lambda: a / m) + u * _xlogy(b, lambda: b / m)

    return _sum(cell, p, q)


def _power_sum(p, q, a):
    """Σ p^a q^(1-a), infinite where a zero has a negative exponent."""

    def power(x, e):
        if e == 0:
            return mp.mpf(1) if x > 0 else mp.mpf(0)
        return (mp.mpf(0) if e > 0 else mp.inf) if x == 0 else x**e

    def cell(x, y):
        if x == 0 and y == 0:
            return mp.mpf(0)
        left, right = power(x, a), power(y, 1 - a)
        return mp.mpf(0) if left == 0 or right == 0 else left * right

    return _sum(cell, p, q)


def alpha(p, q, a):
    if a == 1:
        return kl(p, q)
    if a == 0:
        return kl(q, p)
    a = mp.mpf(a)
    return (_power_sum(p, q, a) - a * mp.fsum(p) - (1 - a) * mp.fsum(q)) / (a * (a - 1))


def renyi(p, q, a):
    """With the canonical sum where it decides the digits, near Σ p^a q^(1-a) = 1."""
    if a == 1:
        return kl(p, q)
    a = mp.mpf(a)
    total = _power_sum(p, q, a)
    if total == 0 or total == mp.inf:
        return mp.inf
    if abs(mp.log(total)) < 0.5:
        total += 1 - a * mp.fsum(p) - (1 - a) * mp.fsum(q)
    return mp.log(total) / (a - 1)


def tsallis(p, q, a):
    """a times the α-divergence; at a = 0 the mass of q where p has none."""
    return _sum(lambda x, y: y if x == 0 else mp.mpf(0), p, q) if a == 0 else mp.mpf(a) * alpha(p, q, a)


def skew(p, q, w):
    w = mp.mpf(w)
    return kl(p, [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)])


def triangular(p, q):
    return _sum(lambda a, b: (a - b) ** 2 / (a + b) if a + b > 0 else mp.mpf(0), p, q)


def tv(p, q):
    return _sum(lambda a, b: abs(a - b), p, q) / 2


def hellinger(p, q):
    return mp.sqrt(_sum(lambda a, b: (mp.sqrt(a) - mp.sqrt(b)) ** 2, p, q) / 2)


def chi2(p, q):
    return _sum(lambda a, b: mp.mpf(0) if a == b else mp.inf if b == 0 else (a - b) ** 2 / b, p, q)


def cross_entropy(p, q):
    return _sum(lambda a, b: mp.inf if a > 0 and b == 0 else -_xlogy(a, lambda: b), p, q)


FORMULAS = {f.__name__: f for f in (
    kl, jeffreys, js, skew, alpha, tsallis, renyi, tv, hellinger, triangular, chi2, cross_entropy,
)}  # fmt: skip


def value(name: str, p, q) -> mp.mpf:
    """The divergence called `name`, as in the table: alpha(0.3) is alpha with the float 0.3."""
    family, _, rest = name.partition("(")
    return FORMULAS[family](p, q, *([float(rest[:-1])] if rest else []))


def sets() -> list[tuple[str, Row, str, str, bool]]:
    """(row name, row, form of p, form of q, float64?) of everything in the file."""
    return [
        (name, row, a, b, double)
        for name, row in recipe().items()
        for a, b in row.pairs
        for double in (False, True)
        if not (double and (a, b) == ("Logits", "Logits"))  # their data are float32 numbers: one truth for both
    ]


def key(name: str, a: str, b: str, double: bool) -> str:
    return f"{name}|{a}|{b}|{'float64' if double else 'float32'}"


def digest(data: Sequence[Sequence[float]]) -> str:
    return hashlib.sha256(b"".join(struct.pack(f"<{len(d)}d", *d) for d in data)).hexdigest()[:16]


def main() -> None:
    from kullback.divergences import TABLE

    names = [d.name for d in TABLE]
    values = {}
    with mp.workdps(DIGITS + 30):  # the guard digits are what Σ p^a q^(1-a) - 1 cancels
        for name, row, a, b, double in sets():
            p, q = weights(row, 0, a, double), weights(row, 1, b, double)
            check = digest([inputs(row, 0, a, double), inputs(row, 1, b, double)])
            values[key(name, a, b, double)] = [
                check,
                *(mp.nstr(mp.chop(value(n, p, q), mp.mpf(10) ** -60), 17) for n in names),
            ]
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in values.items())
    FILE.write_text(f'{{"columns": {json.dumps(names)},\n"values": {{\n{lines}\n}}}}\n')
    print(f"{FILE.name}: {len(values)} rows of {len(names)} values, {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
