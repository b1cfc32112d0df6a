"""Anomaly detection: the windowed KL of a stream, with a threshold that has a meaning.

Measure: KL(window ‖ reference) of the class counts. When nothing has changed, 2nm/(n+m) · KL follows about a χ² law
with (classes - 1) degrees of freedom, so that the false-alarm rate can be chosen. Beside it: the usual fixed
threshold KL >= 0.1, Pearson's χ² with the same law, and a test of the classifier's mean confidence.
Source: Kullback 1959, chapter 6; Wilks 1938 (the χ² law).
Data: scikit-learn's digits (UCI, Alpaydin & Kaynak 1998, CC BY 4.0) as a stream whose mix changes: from some row on a
third of the rows are 3s. A classifier trained on other rows names them. And the yearly flow of the Nile at Aswan,
1871 to 1970, from statsmodels (public domain), which fell in 1898.
Expect: calibrated KL keeps its false-alarm rate and finds the change; a fixed threshold does not know how large the
window is. Pearson's test does as well as KL: calibration is what helps.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback import Labels, Logits, Probs, chi2, cross_entropy, kl
from kullback.losses import average

from .shared import BLUE, GREEN, INK, ORANGE, Clock, Result, check, extra, picture, progress, seeded

CLASSES, WINDOW, STRIDE, REFERENCE = 10, 100, 25, 1000
BEFORE, AFTER, STREAMS = 1000, 400, 40  # rows of a stream before and after the change; streams of a seed
RATE = 0.005  # false alarms of a window
COLUMNS = {"false alarms a window ↓": ".4f", "changes found ↑": ".3f", "rows until found ↓": ".0f"}
METHODS = ("KL, χ² threshold", "KL >= 0.1", "Pearson, χ² threshold", "mean confidence")


def train(pixels: Tensor, digits: Tensor, steps: int, seed: int, tick: Any) -> tuple[nn.Module, list[float]]:
    """Softmax regression on batches of 64."""
    losses = []
    with seeded(seed) as generator:
        model = nn.Linear(64, CLASSES)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            rows = torch.randint(len(digits), (64,), generator=generator)
            loss = average(cross_entropy(Labels(digits[rows], CLASSES), Logits(model(pixels[rows]))))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            tick()
    return model, losses


def windows(classes: Tensor) -> Tensor:
    """Counts (..., windows, CLASSES) of windows that start every STRIDE rows of (..., rows)."""
    one_hot = nn.functional.one_hot(classes, CLASSES).double()
    return one_hot.unfold(-2, WINDOW, STRIDE).sum(-1)


def critical(degrees: int, rate: float) -> float:
    """What a χ² variable with `degrees` exceeds with probability `rate`."""
    return float(extra("scipy.stats").chi2.isf(rate, degrees))


def alarms(counts: Tensor, reference: Tensor, confidence: Tensor, usual: tuple[float, float]) -> dict[str, Tensor]:
    """Which windows every rule would raise: (..., windows) bool."""
    n, m = float(WINDOW), reference.sum().item()
    p, q = counts / n, reference / m
    pooled = (counts + reference) / (n + m)
    limit = critical(CLASSES - 1, RATE)
    divergence = kl(Probs(p), Probs(q))
    # Pearson's statistic of the two rows of counts: n chi2(p, pooled) + m chi2(q, pooled)
    pearson = n * chi2(Probs(p), Probs(pooled)) + m * chi2(Probs(q), Probs(pooled))
    mean, deviation = usual
    z = (confidence - mean) / (deviation * math.sqrt(1 / n + 1 / m))
    return dict(zip(METHODS, (
        2 * n * m / (n + m) * divergence > limit,
        divergence >= 0.1,
        pearson > limit,
        z * z > critical(1, RATE),
    ), strict=True))  # fmt: skip


def measure(model: nn.Module, pixels: Tensor, digits: Tensor, seed: int) -> dict[str, dict[str, float]]:
    """The columns of every rule over STREAMS streams drawn from the rows given."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        top, named = torch.softmax(model(pixels), -1).max(-1)
    threes = torch.where(digits == 3, 1.0, 0.0)
    even = torch.ones(len(digits))
    changed = even / even.sum() * 2 / 3 + threes / threes.sum() / 3
    before = torch.multinomial(even, STREAMS * BEFORE, True, generator=generator).view(STREAMS, BEFORE)
    after = torch.multinomial(changed, STREAMS * AFTER, True, generator=generator).view(STREAMS, AFTER)
    known = torch.multinomial(even, REFERENCE, True, generator=generator)
    stream = torch.cat([before, after], 1)
    confidence = top[stream].double().unfold(-1, WINDOW, STRIDE).mean(-1)
    reference = torch.bincount(named[known], minlength=CLASSES).double()
    raised = alarms(windows(named[stream]), reference, confidence, (top[known].mean().item(), top[known].std().item()))
    ends = torch.arange(confidence.shape[-1]) * STRIDE + WINDOW
    quiet = ends <= BEFORE
    measured = {}
    for method, each in raised.items():
        late = each & ~quiet
        found = late.any(-1)
        first = ends[late.double().argmax(-1)] - BEFORE
        delay = first[found].double().mean().item() if bool(found.any()) else math.nan
        values = (each[:, quiet].double().mean().item(), found.double().mean().item(), delay)
        measured[method] = dict(zip(COLUMNS, values, strict=True))
    return measured


def nile(first: int = 25, window: int = 10) -> tuple[list[int], list[float], list[float], float, int]:
    """Years, flows, 2nm/(n+m) KL of the last `window` years against the first in three classes, limit, alarm."""
    data = extra("statsmodels.datasets.nile").load_pandas().data
    years, flow = [int(year) for year in data["year"]], torch.tensor(data["volume"].to_numpy())
    cuts = torch.quantile(flow[:first], torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    classes = nn.functional.one_hot(torch.bucketize(flow, cuts), 3).double()
    reference = classes[:first].mean(0)
    recent = classes.unfold(0, window, 1).mean(-1)
    score = 2 * window * first / (window + first) * kl(Probs(recent), Probs(reference))
    limit = critical(2, RATE)
    ends = years[window - 1 :]
    alarm = next(
        (year for year, value in zip(ends, score.tolist(), strict=True) if value > limit and year > years[first]), 0
    )
    return ends, flow.tolist(), score.tolist(), limit, alarm


def run(seeds: int = 5, steps: int = 300, out: Path | None = None) -> Result:
    """Measure every rule on STREAMS streams of every seed; `Result` compares calibrated KL with the fixed threshold.

    Args: seeds: splits and streams.  steps: of the classifier, 64 rows each.  out: picture file.
    Raises: BadInput, MissingExtra.
    """
    check(seeds, steps, out)
    clock = Clock()
    bunch = extra("sklearn.datasets").load_digits()
    pixels, digits = torch.from_numpy(bunch.data / 16).float(), torch.from_numpy(bunch.target).long()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    curve: list[float] = []
    with progress("anomaly", seeds * steps) as tick:
        for seed in range(seeds):
            order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
            train_rows, rest = order[:600], order[600:]
            model, losses = train(pixels[train_rows], digits[train_rows], steps, seed, tick)
            curve = curve or losses
            for method, measured in measure(model, pixels[rest], digits[rest], seed).items():
                rows[method].append(measured)
    river = nile()
    if out is not None:
        picture(out, lambda figure: draw(figure, rows, river))
    return Result(
        "anomaly",
        f"streams of scikit-learn's digits (CC BY 4.0), windows of {WINDOW}; the Nile: alarm in {river[-1]}",
        {"seeds": seeds, "steps": steps},
        COLUMNS, rows, ("false alarms a window ↓", METHODS[0], METHODS[1]), {"classifier": curve}, clock.seconds,
    )  # fmt: skip


def draw(
    figure: Any, rows: dict[str, list[dict[str, float]]], river: tuple[list[int], list[float], list[float], float, int]
) -> None:
    """Left what every rule finds and wrongly raises, right the Nile with its windowed KL."""
    left, right = figure.subplots(1, 2)
    for (method, each), colour in zip(rows.items(), (BLUE, ORANGE, GREEN, INK), strict=True):
        wrong, found = ([row[name] for row in each] for name in ("false alarms a window ↓", "changes found ↑"))
        left.plot(wrong, found, "o", color=colour, label=method, alpha=0.8)
    left.axvline(RATE, color=INK, linestyle=":")
    left.text(RATE, 0.42, " chosen rate", fontsize=8)
    left.set(title="Digits, one point a seed", xlabel="false alarms a window", ylabel="changes found")
    left.set(xlim=(0, None), ylim=(0, 1.05))
    left.legend(fontsize=8, loc="center right")
    ends, flow, score, limit, alarm = river
    right.plot(ends, score, color=BLUE, label="of ten years")
    right.axhline(limit, color=ORANGE, linestyle="--", label="χ² threshold")
    right.axvline(1898, color=INK, linestyle=":")
    right.set(title=f"Nile: fell in 1898, alarm in {alarm}", xlabel="year, end of the window", ylim=(0, 27))
    right.set(ylabel="2nm/(n+m) · KL, nats")
    other = right.twinx()
    other.plot(range(ends[-1] - len(flow) + 1, ends[-1] + 1), flow, color=INK, linewidth=0.8, label="flow")
    other.set(ylim=(0, 2100), yticks=(0, 500, 1000, 1500), ylabel="flow, 10⁸ m³ a year")
    other.spines["right"].set_visible(True)
    handles, labels = (
        a + b for a, b in zip(right.get_legend_handles_labels(), other.get_legend_handles_labels(), strict=True)
    )
    right.legend(handles, labels, fontsize=8, loc="upper right", ncols=3)
