"""The pictures of a comparison, as SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kullback.kit.pictures import BLUE, GREEN, INK, ORANGE, PINK, PURPLE, chart, short

Candidate = Mapping[str, Any]

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, PINK)
MARKS = "os^Dv"
LONGEST = 18  # letters of a name


def means_picture(means: Sequence[tuple[str, Mapping[str, Any]]], floors: Sequence[float | None]) -> str:
    """Mean KL of each candidate with its interval, on a logarithmic axis; dashed: the reference against itself."""
    shown = [0.0 < mean["value"] < math.inf for _, mean in means]

    def draw(axes: Any) -> None:
        for i, (_, mean) in enumerate(means):
            if shown[i]:
                axes.errorbar(mean["value"], i, xerr=_bars([mean]), color=_colour(i), marker=_mark(i), markersize=7,
                              capsize=4, linewidth=2)  # fmt: skip
            else:
                said = "exactly 0" if mean["value"] == 0.0 else "infinite"
                axes.text(0.01, i, said, transform=axes.get_yaxis_transform(), va="center", color=_colour(i))
        for floor in floors:
            if floor:
                axes.axvline(floor, color=INK, linestyle=(0, (4, 3)), linewidth=1.4)
        if any(shown):
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            if high / low < 10.0:
                axes.set_xlim(low / 3.0, high * 3.0)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", linewidth=0.8)
        axes.set_yticks(range(len(means)), [short(name, LONGEST) for name, _ in means])
        axes.set_ylim(len(means) - 0.5, -0.5)
        axes.set_xlabel("mean KL(reference‖candidate), nats a token")

    return _chart(draw, (6.0, 1.4 + 0.42 * len(means)), "means")


def distribution_picture(candidates: Sequence[Candidate]) -> str:
    """Share of the tokens by their KL, in bins of equal width on a logarithmic axis."""

    edges = candidates[0]["histogram"]["edges"]
    filled = [any(counts) for counts in zip(*(one["histogram"]["counts"] for one in candidates), strict=True)]

    def draw(axes: Any) -> None:
        for i, one in enumerate(candidates):
            histogram, many = one["histogram"], tokens(one["histogram"])
            shares = [100.0 * count / max(many, 1) for count in histogram["counts"]]
            zeros = f", {_percent(histogram['zeros'] / max(many, 1))} exactly 0" if histogram["zeros"] else ""
            label = short(one["name"], LONGEST) + zeros
            axes.stairs(shares, histogram["edges"], color=_colour(i), linewidth=1.8, label=label)
        axes.set_xscale("log")
        if any(filled):
            axes.set_xlim(edges[filled.index(True)] / 1.5, edges[len(filled) - filled[::-1].index(True)] * 1.5)
        axes.set_xlabel("KL(reference‖candidate) of a token, nats")
        axes.set_ylabel("% of the tokens")
        axes.set_ylim(0, axes.get_ylim()[1] * (1.08 + 0.07 * len(candidates)))
        axes.legend(loc="upper left", fontsize=9.5)

    return _chart(draw, (6.0, 4.0), "distribution")


def bins_picture(candidates: Sequence[Candidate], key: str, axis: str) -> str:
    """Mean KL in bins of tokens, with its interval, on a logarithmic axis."""

    def draw(axes: Any) -> None:
        labels = [one["label"] for one in candidates[0][key]]
        for i, one in enumerate(candidates):
            rows = {row["label"]: row["mean"] for row in one[key] if (row["mean"]["value"] or 0.0) > 0.0}
            places = [j + _aside(i, len(candidates)) for j, label in enumerate(labels) if label in rows]
            means = [rows[label] for label in labels if label in rows]
            axes.errorbar(places, [mean["value"] for mean in means], yerr=_bars(means), color=_colour(i),
                          marker=_mark(i), markersize=5, linewidth=1.6, capsize=3,
                          label=short(one["name"], LONGEST))  # fmt: skip
        if any((row["mean"]["value"] or 0.0) > 0.0 for one in candidates for row in one[key]):
            axes.set_yscale("log")
        crowded = sum(map(len, labels)) > 55
        axes.set_xticks(range(len(labels)), [short(label, LONGEST) for label in labels],
                        rotation=40 if crowded else 0, ha="right" if crowded else "center")  # fmt: skip
        axes.set_xlabel(axis)
        axes.set_ylabel("mean KL, nats a token")
        if len(candidates) > 1:
            axes.legend(fontsize=9.5, ncols=min(3, len(candidates)), loc="lower left", bbox_to_anchor=(0.0, 1.0))

    return _chart(draw, (6.0, 4.0), key)


def classes_picture(candidates: Sequence[Candidate]) -> str:
    """Mean KL by class of token, with its interval, on a logarithmic axis."""
    labels = [one["label"] for one in candidates[0]["by_class"]]

    def draw(axes: Any) -> None:
        for i, one in enumerate(candidates):
            rows = {row["label"]: row["mean"] for row in one["by_class"] if (row["mean"]["value"] or 0.0) > 0.0}
            places = [j + 2.0 * _aside(i, len(candidates)) for j, label in enumerate(labels) if label in rows]
            means = [rows[label] for label in labels if label in rows]
            axes.errorbar([mean["value"] for mean in means], places, xerr=_bars(means), color=_colour(i), linestyle="",
                          marker=_mark(i), markersize=5, linewidth=1.6, label=short(one["name"], LONGEST))  # fmt: skip
        if any((row["mean"]["value"] or 0.0) > 0.0 for one in candidates for row in one["by_class"]):
            axes.set_xscale("log")
        axes.set_yticks(range(len(labels)), [short(label, 24) for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=True, axis="both", linewidth=0.8)
        axes.set_xlabel("mean KL(reference‖candidate), nats a token")
        if len(candidates) > 1:
            axes.legend(fontsize=9.5, ncols=min(3, len(candidates)), loc="lower left", bbox_to_anchor=(0.0, 1.0))

    return _chart(draw, (6.0, 1.6 + 0.38 * len(labels)), "classes")


def _bars(means: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths downward and upward of intervals, as matplotlib wants them; none where there is none."""
    downward = [_length(mean["value"], mean["low"]) for mean in means]
    return [downward, [_length(mean["high"], mean["value"]) for mean in means]]


def _length(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(high - low, 0.0)


def tokens(histogram: Mapping[str, Any]) -> int:
    """How many are counted."""
    return int(histogram["zeros"] + histogram["below"] + sum(histogram["counts"]) + histogram["above"])


def _percent(share: float) -> str:
    return f"{100.0 * share:.2g} %" if share < 0.995 else f"{100.0 * share:.4g} %"


def _aside(i: int, many: int) -> float:
    """A step to the side, so that intervals of several candidates do not cover each other."""
    return 0.1 * (i - (many - 1) / 2) if many < 6 else 0.5 * (i / (many - 1) - 0.5)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _mark(i: int) -> str:
    return MARKS[(i + i // len(COLOURS)) % len(MARKS)]


def _chart(draw: Callable[[Any], None], size: tuple[float, float], salt: str) -> str:
    return chart(draw, size=size, of="lm", salt=salt)
