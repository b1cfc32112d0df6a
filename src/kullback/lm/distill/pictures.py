"""The pictures of a distillation, as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from kullback.kit.pictures import BLUE, GREEN, ORANGE, PURPLE, chart

Students = Sequence[Mapping[str, Any]]

COLOURS = (BLUE, ORANGE, PURPLE)
MARKS = "os^"


def curves_picture(students: Students, key: str, label: str, level: float | None = None) -> str:
    """A number of held-out text over the steps, a line for each seed; dashed: the teacher's.

    Args: key: of the curves' points.  label: of the axis.
    """

    def draw(axes: Any) -> None:
        seen = []
        for i, student in enumerate(students):
            for k, curve in enumerate(student["curves"]):
                points = [(point["step"], point[key]) for point in curve if point[key] is not None]
                first = {"label": student["name"]} if k == 0 else {"alpha": 0.8, "linestyle": (0, (3, 1.5))}
                steps, values = [step for step, _ in points], [value for _, value in points]
                axes.plot(
                    steps, values, color=COLOURS[i % 3], marker=MARKS[i % 3], markersize=4.5, linewidth=1.8, **first
                )
                seen += values
        if level is not None:
            axes.axhline(level, color=GREEN, linestyle=(0, (5, 3)), linewidth=1.6, label="the teacher")
        if seen and min(seen) > 0.0 and max(seen) / min(seen) > 30.0:
            axes.set_yscale("log")
        elif level is None:
            axes.set_ylim(0.0)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.margins(x=0.02)
        axes.legend(loc="upper right")

    return chart(draw, size=(6.0, 4.0), of="lm", salt=key)
