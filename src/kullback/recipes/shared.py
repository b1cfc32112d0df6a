"""What the recipes share: optional packages, seeds, the progress bar, the table of results, the look of pictures."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kullback._errors import BadInput
from kullback.kit import extras, pictures
from kullback.kit import progress as kit_progress
from kullback.kit.files import check_file, write_bytes
from kullback.kit.numbers import Summary, finite
from kullback.kit.pictures import BLUE, GREEN, INK, ORANGE, PINK, PURPLE
from kullback.kit.terminal import paragraph, show_table

__all__ = [
    "BLUE",
    "GREEN",
    "INK",
    "ORANGE",
    "PINK",
    "PURPLE",
    "Clock",
    "Result",
    "check",
    "extra",
    "one_thread",
    "picture",
    "progress",
    "seeded",
    "show",
    "smooth",
]

extra = partial(extras.extra, of="recipes")


@dataclass(frozen=True)
class Result:
    """What a recipe measured.

    Args:
        recipe: its name.
        data: what it ran on, with the licence, in one line.
        settings: what it was run with.
        columns: heading to number format, in order; an arrow says which way is better.
        rows: method to one {heading: value} per seed.
        compare: (heading, ours, baseline), the difference that the recipe is about.
        curves: method to its training loss, step by step, first seed; empty for a method that is not trained.
        seconds: (wall time, processor time).
    """

    recipe: str
    data: str
    settings: dict[str, Any]
    columns: dict[str, str]
    rows: dict[str, list[dict[str, float]]]
    compare: tuple[str, str, str]
    curves: dict[str, list[float]] = field(repr=False, default_factory=dict)
    seconds: tuple[float, float] = (math.nan, math.nan)

    def mean(self, method: str, column: str) -> Summary:
        """Mean over the seeds and its standard error."""
        return Summary.of([row[column] for row in self.rows[method]])

    @property
    def difference(self) -> Summary:
        """Ours minus the baseline in the column of `compare`, seed by seed."""
        column, ours, baseline = self.compare
        pairs = zip(self.rows[ours], self.rows[baseline], strict=True)
        return Summary.of([a[column] - b[column] for a, b in pairs])

    @property
    def headline(self) -> str:
        """The comparison as a sentence."""
        column, ours, baseline = self.compare
        form = f"+{self.columns[column].lstrip('+')}"
        return (
            f"{column}: {ours} less {baseline} = {self.difference.text(form)} (paired, seeds: {len(self.rows[ours])})"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; a standard error of one seed is null."""
        table = {method: {column: _pair(self.mean(method, column)) for column in self.columns} for method in self.rows}
        mean, error = _pair(self.difference)
        return {
            "recipe": self.recipe,
            "data": self.data,
            "settings": self.settings,
            "mean_and_standard_error": table,
            "per_seed": {
                name: [{k: finite(v) for k, v in row.items()} for row in rows] for name, rows in self.rows.items()
            },
            "compare": {
                "column": self.compare[0],
                "ours": self.compare[1],
                "baseline": self.compare[2],
                "difference": mean,
                "standard_error": error,
            },
            "seconds": {"wall": self.seconds[0], "processor": self.seconds[1]},
        }


def show(result: Result) -> None:
    """Print the data, the table (mean ± standard error over the seeds) and the headline."""
    print(paragraph(f"{result.recipe}: {result.data}"))
    rows = [
        [method, *(result.mean(method, column).text(form) for column, form in result.columns.items())]
        for method in result.rows
    ]
    show_table(["", *result.columns], rows, of="recipes", width=110)
    print(paragraph(result.headline))
    wall, processor = result.seconds
    print(f"{wall:.0f} s ({processor:.0f} s of processor time)")


def check(seeds: int, steps: int, out: Path | None) -> None:
    """Refuse settings that cannot run, before any work. Raises: BadInput."""
    for name, value in (("--seeds", seeds), ("--steps", steps)):
        if value < 1:
            raise BadInput(f"{name} is {value}, but it must be at least 1")
    if out is not None:
        check_file("--out", out, (".svg", ".png", ".pdf"))
        extra("matplotlib")


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Everything inside draws from `seed`, dropout and the generator given included; the state outside is left."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more threads, and lose much on a machine that has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show how far a recipe has come; call what it yields once a step."""
    with kit_progress.progress(f"kullback recipes: {title}", total, of="recipes") as job:
        yield job.one


class Clock:
    """Seconds since it was made: wall time, processor time."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> tuple[float, float]:
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def picture(out: Path, draw: Callable[[Any], None], *, width: float = 8.0, height: float = 3.4) -> None:
    """Let `draw` fill a figure, and write it to `out`; the same bytes for the same numbers."""
    form = out.suffix[1:].lower()
    write_bytes(out, pictures.drawn(draw, size=(width, height), of="recipes", form=form))


def smooth(values: Sequence[float], window: int) -> tuple[list[int], list[float]]:
    """Steps, and the means of the `window` values up to each: about a hundred points, for pictures of noisy losses.

    >>> smooth([1.0, 3.0, 5.0], 2)
    ([1, 2], [2.0, 4.0])
    """
    width = max(1, min(window, len(values)))
    steps = list(range(width - 1, len(values), max(1, len(values) // 100)))
    return steps, [statistics.fmean(values[step + 1 - width : step + 1]) for step in steps]


def _pair(summary: Summary) -> list[float | None]:
    return [finite(summary.mean), finite(summary.stderr)]
