"""The pictures of a run, as SVG."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kullback.kit.pictures import BLUE, GREEN, INK, ORANGE, PURPLE, chart, drawn, short

from . import measures
from .extras import extra
from .results import Results, kl_rows
from .training import KINDS, Kind

SMALLEST_BIN = 10  # rows; smaller bins scatter too much to be drawn
COLOURS: dict[str, str] = {"labels only": ORANGE, "teacher only": PURPLE, "both": BLUE, "the teacher": GREEN}
MARKS: dict[Kind, str] = {"labels only": "s", "teacher only": "^", "both": "o"}
CURVE_ROWS = 10_000  # held-out rows that the curves are measured on, at most


def summary_picture(results: Results) -> str:
    """Held-out accuracy by epoch of the three students, with the teacher's level: the picture for a README."""

    def draw(axes: Any) -> None:
        _curves(results, axes, "accuracy")
        level = results.teacher_measures["accuracy"]
        axes.axhline(level, color=COLOURS["the teacher"], linestyle=(0, (5, 3)), linewidth=1.6, label="the teacher")
        values = [v for kind in KINDS for o in results.of(kind) for v in o.curve.accuracy]
        low = max(0.0, float(np.quantile(values, 0.06)) - 0.03)
        axes.set_ylim(low, min(1.005, max(level, max(values)) + 0.015))
        _percent(axes)
        axes.set_ylabel("held-out accuracy")
        many = f"mean and standard deviation over {results.settings.seeds} seeds" if results.settings.seeds > 1 else ""
        axes.set_title(
            f"{results.table.name}: the same network, {len(results.labelled)} labels, same number of steps",
            loc="left",
            fontsize=12.5,
            color=INK,
            pad=26,
        )
        axes.text(0, 1.035, many, transform=axes.transAxes, fontsize=10.5, color=INK)
        axes.legend(loc="lower right", fontsize=11.5)

    return _chart(draw, (8.0, 4.3), "summary")


def loss_picture(results: Results) -> str:
    """Held-out negative log-likelihood by epoch."""

    def draw(axes: Any) -> None:
        _curves(results, axes, "nll")
        level = results.teacher_measures["nll"]
        if np.isfinite(level):
            axes.axhline(level, color=COLOURS["the teacher"], linestyle=(0, (5, 3)), linewidth=1.6, label="the teacher")
        axes.set_yscale("log")
        axes.set_ylabel("held-out NLL (nats)")
        axes.yaxis.set_major_formatter(extra("matplotlib.ticker").FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(extra("matplotlib.ticker").FuncFormatter(_one_two_five))
        axes.legend()

    return _chart(draw, (6.0, 4.0), "loss")


def temperature_picture(results: Results) -> str:
    """Held-out accuracy of the student that learns from both, against temperature."""

    def draw(axes: Any) -> None:
        points = results.by_temperature()
        x, y = list(points), [summary.mean for summary in points.values()]
        errors = [summary.stderr or 0.0 for summary in points.values()]
        axes.errorbar(x, y, yerr=errors, color=COLOURS["both"], marker="o", capsize=4, linewidth=1.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{t:g}" for t in x])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("temperature T (log scale)")
        axes.set_ylabel("held-out accuracy")
        _percent(axes)

    return _chart(draw, (6.0, 4.0), "temperature")


def reliability_picture(results: Results) -> str:
    """Accuracy against confidence, in equal-width bins; on the diagonal, confidence can be taken at its word."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="calibrated")
        for kind in KINDS:
            bins = [b for b in results.reliability(kind) if b.count >= SMALLEST_BIN]
            axes.plot(
                [b.confidence for b in bins],
                [b.accuracy for b in bins],
                color=COLOURS[kind],
                marker=MARKS[kind],
                markersize=5,
                linewidth=1.6,
                label=kind,
            )
        axes.set_xlabel("confidence (probability of the class named)")
        axes.set_ylabel("held-out accuracy")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.legend(loc="upper left")

    return _chart(draw, (6.0, 4.0), "reliability")


def class_picture(results: Results) -> str:
    """KL(teacher‖student) on held-out rows, by their class."""

    def draw(axes: Any) -> None:
        names, place = results.table.class_names, np.arange(results.table.num_classes)
        for i, kind in enumerate(KINDS):
            per_seed = np.array([outcome.kl_per_class for outcome in results.of(kind)])
            error = per_seed.std(0, ddof=1) / np.sqrt(len(per_seed)) if len(per_seed) > 1 else None
            axes.bar(
                place + (i - 1) * 0.27,
                per_seed.mean(0),
                0.25,
                yerr=error,
                color=COLOURS[kind],
                ecolor=INK,
                error_kw={"linewidth": 1},
                label=kind,
            )
        shown = place[:: max(1, len(place) // 20)]
        axes.set_xticks(shown, [short(names[i]) for i in shown], rotation=0 if len(names) <= 10 else 45)
        axes.set_xlabel("class")
        axes.set_ylabel("KL(teacher‖student), nats")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.22)
        axes.legend(ncols=3, loc="upper left", fontsize=9.5, columnspacing=1.2)

    return _chart(draw, (6.0, 4.0), "classes")


def example_rows(results: Results, count: int = 6) -> list[int]:
    """Positions among the held-out rows to look at: where the teacher hesitates most (its largest probability is
    smallest), and where it stands furthest from the student of labels only (largest KL), by turns.
    """
    assert results.teacher is not None
    said = measures.probabilities(results.teacher.said)[results.split.held_out]
    hesitates = said.max(-1).values.argsort().tolist()
    apart = kl_rows(results, "labels only").argsort(descending=True).tolist()
    turns = [i for pair in zip(hesitates, apart, strict=True) for i in pair]
    return list(dict.fromkeys(turns))[:count]


def image_picture(results: Results, position: int) -> str:
    """One held-out picture, with the probabilities of the teacher and of the first seed's students beside it."""
    assert results.teacher is not None
    row = int(results.split.held_out[position])
    sides = [("teacher", COLOURS["the teacher"], measures.probabilities(results.teacher.said)[row])]
    sides += [
        (kind, COLOURS[kind], measures.probabilities(results.said(kind))[position])
        for kind in KINDS
        if kind != "teacher only"
    ]

    def draw(figure: Any) -> None:
        picture, *charts = figure.subplots(1, 4, gridspec_kw={"width_ratios": [1.1, 1, 1, 1]})
        picture.imshow(results.table.features[row].reshape(results.table.image_shape), cmap="gray_r")
        picture.set_title(f"row {row}: a {short(results.table.class_names[results.table.classes[row]])}", fontsize=10.5)
        picture.set_xticks([])
        picture.set_yticks([])
        places = np.arange(results.table.num_classes)
        for axes, (name, colour, p) in zip(charts, sides, strict=True):
            axes.barh(places, p.numpy(), color=colour)
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 1], ["0", "1"])
            axes.set_yticks(
                places, [short(n) for n in results.table.class_names] if axes is charts[0] else [], fontsize=8
            )
            axes.invert_yaxis()
            axes.set_title(name, fontsize=10.5)

    return drawn(draw, size=(6.0, 2.7), of="distill", salt=f"image{position}").decode()


def _curves(results: Results, axes: Any, measure: str) -> None:
    for kind in KINDS:
        runs = np.array([getattr(outcome.curve, measure) for outcome in results.of(kind)])
        epochs, mean = np.arange(1, runs.shape[1] + 1), runs.mean(0)
        axes.plot(
            epochs,
            mean,
            color=COLOURS[kind],
            linewidth=2,
            label=kind,
            marker=MARKS[kind],
            markevery=max(1, len(epochs) // 8),
            markersize=5,
        )
        if len(runs) > 1:
            spread = runs.std(0, ddof=1)
            low = np.maximum(mean - spread, runs.min(0)) if measure == "nll" else mean - spread
            axes.fill_between(epochs, low, mean + spread, color=COLOURS[kind], alpha=0.18, linewidth=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(extra("matplotlib.ticker").MaxNLocator(integer=True))
    axes.margins(x=0.02)


def _percent(axes: Any) -> None:
    ticker = extra("matplotlib.ticker")
    axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def _chart(draw: Callable[[Any], None], size: tuple[float, float], salt: str) -> str:
    return chart(draw, size=size, of="distill", salt=salt)


def _one_two_five(value: float, _: int) -> str:
    """Label 2 and 5 of each decade, so that a short logarithmic axis has numbers to read."""
    leading = f"{value:e}"[0]
    return f"{value:g}" if leading in "25" else ""
