"""What the recipes share: optional packages, seeds, the progress bar, the table of results, the look of pictures."""

import io
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kullback._errors import BadInput
from kullback.distill.errors import extra as optional
from kullback.distill.run_folder import write_bytes

BLUE, ORANGE, GREEN, GREY, PINK = "#0072b2", "#d55e00", "#009e73", "#666666", "#cc79a7"  # for colour-blind readers too
STYLE = {
    "svg.hashsalt": "kullback",
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
}


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

    def mean(self, method: str, column: str) -> tuple[float, float]:
        """Mean over the seeds and its standard error (nan for one seed)."""
        return _mean([row[column] for row in self.rows[method]])

    @property
    def difference(self) -> tuple[float, float]:
        """Ours minus the baseline in the column of `compare`, seed by seed: mean and standard error."""
        column, ours, baseline = self.compare
        pairs = zip(self.rows[ours], self.rows[baseline], strict=True)
        return _mean([a[column] - b[column] for a, b in pairs])

    @property
    def headline(self) -> str:
        """The comparison as a sentence."""
        column, ours, baseline = self.compare
        mean, error = self.difference
        digits = self.columns[column].lstrip("+")
        seeds = len(self.rows[ours])
        return f"{column}: {ours} less {baseline} = {mean:+{digits}} ± {error:{digits}} (paired, seeds: {seeds})"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; a standard error of one seed is null."""
        table = {
            method: {column: [_plain(x) for x in self.mean(method, column)] for column in self.columns}
            for method in self.rows
        }
        mean, error = self.difference
        return {
            "recipe": self.recipe,
            "data": self.data,
            "settings": self.settings,
            "mean_and_standard_error": table,
            "per_seed": {
                name: [{k: _plain(v) for k, v in row.items()} for row in rows] for name, rows in self.rows.items()
            },
            "compare": {
                "column": self.compare[0],
                "ours": self.compare[1],
                "baseline": self.compare[2],
                "difference": _plain(mean),
                "standard_error": _plain(error),
            },
            "seconds": {"wall": self.seconds[0], "processor": self.seconds[1]},
        }


def show(result: Result) -> None:
    """Print the data, the table (mean ± standard error over the seeds) and the headline."""
    console = extra("rich.console").Console(width=None if _terminal() else 110)
    table = extra("rich.table").Table(box=extra("rich.box").SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for column in result.columns:
        table.add_column(column, justify="right")
    for method in result.rows:
        table.add_row(method, *(_cell(*result.mean(method, column), form) for column, form in result.columns.items()))
    console.print(f"{result.recipe}: {result.data}", highlight=False, soft_wrap=True)
    console.print(table)
    console.print(result.headline, highlight=False, soft_wrap=True)
    wall, processor = result.seconds
    console.print(f"{wall:.0f} s ({processor:.0f} s of processor time)", highlight=False)


def extra(module: str) -> Any:
    """The optional module, or the one-line error that says how to install it.

    >>> extra("json").loads("[1]")
    [1]
    """
    return optional(module, of="recipes")


def check(seeds: int, steps: int, out: Path | None) -> None:
    """Refuse settings that cannot run, before any work. Raises: BadInput."""
    for name, value in (("--seeds", seeds), ("--steps", steps)):
        if value < 1:
            raise BadInput(f"{name} is {value}, but it must be at least 1")
    if out is not None:
        if out.suffix not in (".svg", ".png", ".pdf"):
            raise BadInput(f"--out {str(out)!r} is no picture file; end it in .svg, .png or .pdf")
        if not out.absolute().parent.is_dir():
            raise BadInput(
                f"--out {str(out)!r}: the folder {str(out.absolute().parent)!r} does not exist; create it first"
            )
        extra("matplotlib")


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Everything inside draws from `seed`, dropout and the generator given included; the state outside is left."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error while it is a terminal; call what it yields once a step."""
    rich = extra("rich.progress")
    console = extra("rich.console").Console(stderr=True)
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


class Clock:
    """Seconds since it was made: wall time, processor time."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> tuple[float, float]:
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def picture(out: Path, draw: Callable[[Any], None], *, width: float = 8.0, height: float = 3.4) -> None:
    """Let `draw` fill a figure, and write it to `out`; the same bytes for the same numbers."""
    with extra("matplotlib").rc_context(STYLE):
        figure = extra("matplotlib.figure").Figure(figsize=(width, height))
        draw(figure)
        metadata = {"Date": None} if out.suffix == ".svg" else {}
        drawn = io.BytesIO()
        figure.savefig(drawn, format=out.suffix[1:], metadata=metadata, dpi=150)
    data = drawn.getvalue()
    write_bytes(out, _lighter(data.decode()).encode() if out.suffix == ".svg" else data)


def smooth(values: Sequence[float], window: int) -> tuple[list[int], list[float]]:
    """Steps, and the means of the `window` values up to each: about a hundred points, for pictures of noisy losses.

    >>> smooth([1.0, 3.0, 5.0], 2)
    ([1, 2], [2.0, 4.0])
    """
    width = max(1, min(window, len(values)))
    steps = list(range(width - 1, len(values), max(1, len(values) // 100)))
    return steps, [statistics.fmean(values[step + 1 - width : step + 1]) for step in steps]


def _mean(values: list[float]) -> tuple[float, float]:
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 and math.isfinite(mean) else math.nan
    return mean, error


def _cell(mean: float, error: float, form: str) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:{form}}" + ("" if math.isnan(error) else f" ± {error:{form.lstrip('+')}}")


def _lighter(svg: str) -> str:
    """The paths of a drawing with two decimals: a hundredth of a point cannot be seen."""

    def rounded(path: re.Match[str]) -> str:
        return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path[0])

    return re.sub(r' d="[^"]*"', rounded, svg)


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _terminal() -> bool:
    return bool(extra("sys").stdout.isatty())
