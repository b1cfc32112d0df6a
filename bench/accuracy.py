"""How wrong kl and js are in float32: the worst relative error over a grid of rows, next to the usual formulas.

    python bench/accuracy.py            # writes docs/accuracy.md
    python bench/accuracy.py --check    # holds the truth that it measures by against 50-digit arithmetic

The truth is computed from the float32 inputs as given, in extended precision (numpy's longdouble, eps <= 1.1e-19).
"""

import argparse
import datetime
import math
import platform
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import kullback
from kullback import Logits, js, kl
from kullback.engines import cpu

PAGE = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
TARGETS = (1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 1e1, 1e2)
CLASSES = (10, 1_000, 32_000, 128_256)
OFFSETS = (0.0, 100.0, 1000.0)
ROWS = 4
LIMIT = 1e-5  # CONVENTIONS.md, accuracy
ENGINE = (
    "Computed by the " + ("C++ engine, in float32" if cpu.ABSENT is None else "eager engine, in float64") + " terms."
)


def rows(target: float, classes: int, offset: float, seed: int) -> tuple[Tensor, Tensor]:
    """float32 scores (ROWS, V) with KL(p‖q) about `target`; q's carry the offset, and are rounded with it."""
    g = torch.Generator().manual_seed(seed)
    a = (2.0 * torch.randn(ROWS, classes, generator=g)).double()
    step = torch.randn(ROWS, classes, generator=g).double()
    low, high = torch.zeros(ROWS, 1, dtype=torch.float64), torch.full((ROWS, 1), 1e4, dtype=torch.float64)
    for _ in range(60):  # KL grows along the line
        middle = (low * high).sqrt() if bool((low > 0).all()) else high * 1e-3
        below = (kl(Logits(a), Logits(a + middle * step)) < target).unsqueeze(-1)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        if bool((low == 0).any()):
            low = torch.where(low == 0, 1e-9, low)
        if bool((high / low < 1.001).all()):
            break
    return a.float(), (a + high * step + offset).float()


def truth(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(KL(p‖q), JS(p, q)) of every row, by the canonical sums in longdouble; as float64."""
    x, y = (s.double().numpy().astype(np.longdouble) for s in (a, b))
    log_p, log_q = (_log_softmax(s) for s in (x, y))
    p, q, d = np.exp(log_p), np.exp(log_q), log_q - log_p
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.where(np.abs(d) < 1, p * (np.expm1(np.where(np.abs(d) < 1, d, 0)) - d), q - p - p * d)
    m = (p + q) / 2
    to_m = [m - w - w * _log_ratio(m, w, e) for w, e in ((p, d), (q, -d))]
    return near.sum(-1).astype(float), (sum(to_m).sum(-1) / 2).astype(float)


def _log_softmax(s: np.ndarray) -> np.ndarray:
    s = s - s.max(-1, keepdims=True)
    return s - np.log(np.exp(s).sum(-1, keepdims=True))


def _log_ratio(m: np.ndarray, w: np.ndarray, e: np.ndarray) -> np.ndarray:
    """log(m / w) with m = w (1 + e^e) / 2."""
    close = np.abs(e) < 1
    return np.where(
        close,
        np.log1p(np.expm1(np.where(close, e, 0)) / 2),
        np.maximum(e, 0) + np.log1p(np.exp(-np.abs(e))) - np.log(np.longdouble(2)),
    )


def usual_kl(a: Tensor, b: Tensor) -> Tensor:
    log_p, log_q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def usual_js(a: Tensor, b: Tensor) -> Tensor:
    log_p, log_q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return 0.5 * (log_p.exp() * (log_p - log_m)).sum(-1) + 0.5 * (log_q.exp() * (log_q - log_m)).sum(-1)


def worst(value: Tensor, exact: np.ndarray) -> float:
    return float((np.abs(value.double().numpy() - exact) / exact).max())


Errors = dict[tuple[float, int, float], tuple[float, float]]


def measure() -> tuple[Errors, Errors]:
    """(target, V, offset) -> (ours, usual), of kl and of js."""
    of_kl: Errors = {}
    of_js: Errors = {}
    for classes in CLASSES:
        for target in TARGETS:
            for offset in OFFSETS:
                a, b = rows(target, classes, offset, seed=classes)
                exact_kl, exact_js = truth(a, b)
                cell = target, classes, offset
                of_kl[cell] = worst(kl(Logits(a), Logits(b)), exact_kl), worst(usual_kl(a, b), exact_kl)
                of_js[cell] = worst(js(Logits(a), Logits(b)), exact_js), worst(usual_js(a, b), exact_js)
    return of_kl, of_js


def check() -> float:
    """The largest relative error of `truth` against mpmath."""
    from mpmath import mp

    error = 0.0
    with mp.workdps(50):
        for classes in CLASSES[:2]:
            for target in TARGETS:
                a, b = (s[:1] for s in rows(target, classes, 1000.0, seed=classes))
                p, q = ([mp.exp(mp.mpf(s) - mp.mpf(max(x))) for s in x] for x in (a[0].tolist(), b[0].tolist()))
                p, q = ([w / mp.fsum(side) for w in side] for side in (p, q))
                pairs = list(zip(p, q, strict=True))
                exact = (
                    mp.fsum(x * mp.log(x / y) for x, y in pairs),
                    mp.fsum(x * mp.log(2 * x / (x + y)) + y * mp.log(2 * y / (x + y)) for x, y in pairs) / 2,
                )
                for got, want in zip(truth(a, b), exact, strict=True):
                    error = max(error, abs(got[0] / float(want) - 1.0))
    return error


def table(errors: Errors, usual: str) -> str:
    lines = [
        f"| KL(p‖q) about | V | ours, +0 | ours, +100 | ours, +1000 | {usual}, +0 | +100 | +1000 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for target in TARGETS:
        for classes in CLASSES:
            cells = [errors[target, classes, offset] for offset in OFFSETS]
            numbers = [f"{c[0]:.0e}" for c in cells] + [f"{c[1]:.0e}" for c in cells]
            lines.append(f"| {target:.0e} | {classes:,} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def page(of_kl: Errors, of_js: Errors, checked: float) -> str:
    ours = {name: max(e[0] for e in errors.values()) for name, errors in (("kl", of_kl), ("js", of_js))}
    return f"""# Accuracy in float32

The worst relative error of {ROWS} random rows of float32 scores in each cell, on the CPU. q's scores carry a
common offset (+0, +100, +1000), which changes nothing in the distribution. Inputs count as exact: the truth is that
of the rounded scores, computed in extended precision, which agrees with 50-digit arithmetic to {checked:.0e}
(V = 10 and 1,000, offset 1000).

The worst of all cells is {ours["kl"]:.1e} for `kl` and {ours["js"]:.1e} for `js`; {LIMIT:.0e} is promised. Results are
float32, so that half a unit in the last place, 6e-8, is the least that a cell can show.
{ENGINE}

An error of 1e+00 and above means that no digit is right.

## kl, and `F.kl_div` over `log_softmax`

{table(of_kl, "F.kl_div")}

## js, and `logaddexp` over `log_softmax`

The rows are the same: their Jensen-Shannon divergence is about an eighth of the KL near equality and at most log 2.

{table(of_js, "usual")}

Written by `python bench/accuracy.py` on {datetime.date.today()}:
kullback {kullback.__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only hold the truth against mpmath")
    only_check = parser.parse_args().check
    if np.finfo(np.longdouble).eps > 2e-19:
        raise SystemExit("numpy's longdouble is a double here, which is no truth to measure by.")
    torch.set_num_threads(1)
    checked = check()
    print(f"truth against 50 digits: relative error at most {checked:.1e}")
    if only_check:
        return
    of_kl, of_js = measure()
    PAGE.write_text(page(of_kl, of_js, checked))
    for name, errors in (("kl", of_kl), ("js", of_js)):
        at, (ours, usual) = max(errors.items(), key=lambda item: item[1][0])
        print(f"{name}: worst {ours:.1e} at (value, V, offset) = {at}, where the usual formula has {usual:.1e}")
        if ours > LIMIT:
            raise SystemExit(f"{name} misses the promised {LIMIT:.0e}")


if __name__ == "__main__":
    main()
