"""Every divergence of the table, on every ordered pair of forms, against 50-digit arithmetic (make_finite.py)."""

import json
import math

import make_finite
import mpmath
import numpy as np
import pytest
import torch

from kullback import Labels, Logits, LogProbs, Probs, js, kl
from kullback.divergences import TABLE
from kullback.verbs import measure

pytestmark = pytest.mark.usefixtures("engine")

ORACLE = json.loads(make_finite.FILE.read_text())
SETS = {make_finite.key(name, a, b, double): (row, a, b, double) for name, row, a, b, double in make_finite.sets()}
EPS = 2.0**-52
FLOAT32_MAX = float(np.finfo(np.float32).max)


def form(row, side, name, double, dtype):
    data = make_finite.inputs(row, side, name, double)
    if name == "Labels":
        _, _, smoothing, spread = row.labels
        return Labels(torch.tensor([int(data[0])]), len(row[side]), smoothing, spread)
    return {"Logits": Logits, "LogProbs": LogProbs, "Probs": Probs}[name](torch.tensor([data], dtype=dtype))


def gap(row):
    finite = [s for side in (row.p, row.q) for s in (side[0] - x for x in side) if math.isfinite(s)]
    return max(map(abs, finite), default=0.0)


def close(divergence, row, got, truth, dtype):
    """Within the error budget.

    δ, the error of log(q/p), is a few eps·(1 + largest gap between scores). Near equality a divergence is about d²/2,
    so that its relative error is 2δ/d with d = √(2·value), down to δ² where d is lost; a distance is about d.
    Far from equality the error is δ. float32 results have the 1e-5 of CONVENTIONS.md on top.
    """
    if truth > (FLOAT32_MAX if dtype == torch.float32 else math.inf) or math.isinf(truth):
        return got == math.inf
    distance = divergence.name in ("tv", "hellinger")
    delta = 16.0 * EPS * (1.0 + gap(row))
    floor = delta if distance else delta**2
    d = truth if distance else math.sqrt(2.0 * truth)
    rel = 1e-13 + delta * (1.0 + 1.0 / max(d, delta))
    return math.isclose(got, truth, rel_tol=min(rel, 0.01) + (1e-5 if dtype == torch.float32 else 0.0), abs_tol=floor)


def test_the_file_covers_the_table():
    assert ORACLE["columns"] == [d.name for d in TABLE], "run tests/oracles/make_finite.py"
    assert ORACLE["values"].keys() == SETS.keys(), "run tests/oracles/make_finite.py"


def test_the_file_stands_on_the_same_inputs():
    for key, (row, a, b, double) in SETS.items():
        data = [make_finite.inputs(row, 0, a, double), make_finite.inputs(row, 1, b, double)]
        assert make_finite.digest(data) == ORACLE["values"][key][0], key


def test_the_rows_reach_down_to_1e_9():
    column = ORACLE["columns"].index("kl") + 1
    for exponent in range(-9, 0):
        for offset in ("", ", offset 1000", ", offset -1000"):
            value = float(ORACLE["values"][f"about 1e{exponent}{offset}|Logits|Logits|float32"][column])
            assert 0.1 < value / 10.0**exponent < 10.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_value(divergence, dtype):
    wrong = []
    column = ORACLE["columns"].index(divergence.name) + 1
    for key, (row, a, b, double) in SETS.items():
        if double != (dtype == torch.float64) and (double or not {a, b} <= {"Logits", "Labels"}):
            continue  # rounded to float32, these data differ, or no longer sum to one
        truth = float(ORACLE["values"][key][column])
        got = measure(divergence, form(row, 0, a, double, dtype), form(row, 1, b, double, dtype)).item()
        result = torch.float32 if a == b == "Labels" else dtype
        good = close(divergence, row, got, truth, result)
        if not good:
            wrong.append(f"{key}: {got!r}, true {truth!r}, relative {abs(got - truth) / max(truth, 1e-300):.2g}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_count_as_exact(dtype):
    """Rows rounded to a coarse dtype are rows of their own: the value is theirs, to the digits of float32."""
    torch.manual_seed(0)
    a, b = torch.randn(5, 50).to(dtype), torch.randn(5, 50).to(dtype)
    truth = kl(Logits(a.double()), Logits(b.double()))
    # eager rounds once, to 6e-8; the C++ engine's terms are float32, each within a few of these
    torch.testing.assert_close(kl(Logits(a), Logits(b)).double(), truth, rtol=5e-7, atol=0)


@pytest.mark.parametrize("weight", [1e-12, 1e-6, 1e-3, 1 - 1e-3, 1 - 1e-6, 1 - 1e-12])
def test_js_keeps_its_digits_at_weights_near_0_and_1(engine, weight):
    """There log m/p or log m/q is as small as the weight; far apart it is no difference of p and q."""
    far = torch.linspace(-12.0, 12.0, 25, dtype=torch.float64)
    a, b = torch.stack([0.3 * far.roll(7), far, far.flip(0)]), torch.stack([far, 0.2 * far, far.roll(3)])
    got = js(Logits(a), Logits(b), weight=weight)
    with mpmath.workdps(50):
        for row, value in enumerate(got.tolist()):
            p, q = ([mpmath.exp(x) for x in side[row].tolist()] for side in (a, b))
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            w = mpmath.mpf(weight)
            m = [w * x + (1 - w) * y for x, y in zip(p, q, strict=True)]
            truth = w * sum(x * mpmath.log(x / z) for x, z in zip(p, m, strict=True))
            truth += (1 - w) * sum(y * mpmath.log(y / z) for y, z in zip(q, m, strict=True))
            assert abs(value / truth - 1) < 1e-11
