"""How far a job has come: a bar on a terminal, elsewhere a line now and then, both on standard error."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .extras import extra

FIRST, EVERY = 5.0, 30.0  # seconds to the first line without a terminal, and between lines


class Progress:
    """Where a job stands. The job calls `show` or `one`; whoever draws it is told through `changed`."""

    def __init__(self, title: str, total: int | None = None) -> None:
        self.title, self.total, self.done, self.what = title, total, 0, ""
        self.changed: Callable[[], None] = lambda: None
        self._start = time.monotonic()

    def show(self, done: int, total: int, what: str = "") -> None:
        """Units done, units in all, what is being done."""
        self.done, self.total, self.what = done, total, what
        self.changed()

    def one(self) -> None:
        """One unit more."""
        self.done += 1
        self.changed()

    def line(self) -> str:
        """For those without a terminal.

        >>> job = Progress("kullback distill")
        >>> job.show(1, 4, "teacher")
        >>> job.line()
        'kullback distill: 25 %, teacher; 0 s so far, about 0 s to go'
        >>> Progress("kullback distill").line()
        'kullback distill: 0 s so far'
        """
        gone = time.monotonic() - self._start
        share = f"{100 * self.done / self.total:.0f} %" if self.total else ""
        where = ", ".join(part for part in (share, self.what) if part)
        left = f", about {_span(gone * (self.total - self.done) / self.done)} to go" if self.total and self.done else ""
        return f"{self.title}: {where}{'; ' if where else ''}{_span(gone)} so far{left}"


@contextmanager
def progress(title: str, total: int | None = None, *, of: str) -> Iterator[Progress]:
    """Show the progress of the job inside.

    Args: title: before the lines, such as "kullback distill".  of: the extra to name where rich is missing.
    """
    job = Progress(title, total)
    if sys.stderr.isatty():
        with _bar(job, of):
            yield job
    else:
        with _lines(job):
            yield job


@contextmanager
def _lines(job: Progress) -> Iterator[None]:
    ended = threading.Event()

    def speak() -> None:
        wait = FIRST
        while not ended.wait(wait):
            print(job.line(), file=sys.stderr, flush=True)
            wait = EVERY

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        ended.set()
        speaker.join()


@contextmanager
def _bar(job: Progress, of: str) -> Iterator[None]:
    rich = extra("rich.progress", of=of)
    console = extra("rich.console", of=of).Console(stderr=True, highlight=False, markup=False)
    columns = (
        rich.TextColumn("{task.description:<28}", markup=False),
        rich.BarColumn(),
        rich.TextColumn("{task.percentage:>3.0f} %"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )

    with rich.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(job.title, total=job.total)
        job.changed = lambda: bar.update(task, completed=job.done, total=job.total, description=job.what or job.title)
        yield


def _span(seconds: float) -> str:
    """Seconds in words, to the unit that matters.

    >>> _span(42.2), _span(400.0), _span(5900.0)
    ('42 s', '7 min', '1 h 38 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
