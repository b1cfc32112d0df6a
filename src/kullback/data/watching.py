"""Windows of a stream or of a time column against a profile, with a threshold for false alarms per run.

Each window's T (statistics.py) is compared with a threshold that, if nothing changes, no window of the whole run
reaches with probability 1 - alpha, all columns together. The threshold is simulated: runs of the same length and row
counts are drawn from the profile's frequencies, sliding windows overlap as they do, and all windows of a run meet one
reference, which is a sample itself and drawn anew for each run.
"""

import math
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any

import numpy as np

import kullback
from kullback._errors import BadInput

from .bins import PERIODS, Bins, as_moment, floor_time
from .counting import Tally, tally
from .engines import Column, Place, Source, open_source
from .job import Cell, Data, countable, opened, without
from .profiles import Counted, Profile, make
from .statistics import Floats, cell_contributions, effects, statistic

SIMULATIONS, MOST_SIMULATIONS = 2000, 20_000
# narwhals knows no weeks: days are added up to them
TRUNCATE = dict(zip(PERIODS, ("1m", "1h", "1d", "1d", "1mo", "1q", "1y"), strict=True))
MOST_PERIODS = 10_000


@dataclass(frozen=True)
class Alarm:
    """One window in which one column left its profile.

    Args:
        window: the last period of the window, or the number of the batch.
        rows: in the window.
        kl: KL(reference‖window), less what chance alone would show, in nats.
        statistic, threshold: T of the window, and what it had to exceed.
        moved: the cells that contribute most to KL.
    """

    window: str
    column: str
    rows: int
    kl: float
    statistic: float
    threshold: float
    moved: tuple[Cell, ...]


@dataclass
class Watch:
    """What `watch` saw: every window's KL by column, and the alarms.

    Args:
        windows: their names.  rows: in each.
        kl: by column, one number a window, in nats, less what chance alone would show.
        thresholds: of T, by column.
    """

    reference: str
    current: str
    windows: tuple[str, ...]
    rows: tuple[int, ...]
    kl: Mapping[str, tuple[float, ...]]
    thresholds: Mapping[str, float]
    alarms: list[Alarm]
    alpha: float
    smallest: float
    window: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "drift": bool(self.alarms),
            "kullback": kullback.__version__,
            "reference": self.reference,
            "current": self.current,
            "alpha": self.alpha,
            "smallest": self.smallest,
            "periods_in_a_window": self.window,
            "unit": "nats",
            "thresholds": dict(self.thresholds),
            "windows": [
                {"window": name, "rows": n, "kl": {column: values[i] for column, values in self.kl.items()}}
                for i, (name, n) in enumerate(zip(self.windows, self.rows, strict=True))
            ],
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "notes": list(self.notes),
        }


@dataclass
class Monitor:
    """Watch a stream batch by batch.

    Args:
        reference: the profile.
        rows: about how many rows a batch has; the threshold is simulated for that.
        run: batches for which the false-alarm rate holds.
        window: batches in a sliding window.
        alpha: the chance of any false alarm, in any column, in the whole run.
        smallest: the smallest KL that matters, in nats.

    >>> import polars as pl
    >>> from kullback.data import profile
    >>> usual = profile(pl.DataFrame({"x": [i % 100 for i in range(5000)]}), bins=5)
    >>> monitor = Monitor(usual, rows=500, run=50)
    >>> monitor.update(pl.DataFrame({"x": [i % 100 for i in range(500)]}))
    []
    >>> alarm, = monitor.update(pl.DataFrame({"x": [i % 60 for i in range(500)]}))
    >>> alarm.column, alarm.moved[0].label
    ('x', '60 to 79')
    """

    reference: Profile
    rows: int
    run: int
    window: int = 1
    alpha: float = 0.05
    smallest: float = 0.005
    seed: int = 0
    thresholds: Mapping[str, float] = field(init=False)
    _recent: deque[Profile] = field(init=False, repr=False)
    _seen: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self.window, self.alpha, self.smallest)
        if self.rows < 1 or self.run < 1:
            raise BadInput("Monitor: rows and run are whole numbers above 0")
        sizes = [self.rows] * (self.run + self.window - 1)
        self.thresholds = thresholds(self.reference, sizes, window=self.window, alpha=self.alpha, seed=self.seed)
        self._recent = deque(maxlen=self.window)

    def update(self, batch: Data) -> list[Alarm]:
        """Count a batch, and the alarms of the window that it completes."""
        source = open_source(batch, Place(), list(self.reference.columns))
        countable(source, self.reference, list(self.reference.columns))
        counted = make(source, bins=2, categories=1, like=self.reference)
        if counted.rows == 0:
            raise BadInput(f"batch {self._seen + 1}: holds no rows")
        self._recent.append(counted)
        self._seen += 1
        if len(self._recent) < self.window:
            return []
        found = []
        for name, reference in self.reference.columns.items():
            x = np.array(reference.counts, dtype=np.float64)
            y = np.sum([one.columns[name].counts for one in self._recent], axis=0).astype(np.float64)
            found += _alarm(str(self._seen), name, reference, x, y, self.thresholds[name], self.smallest)
        return found


def watch(
    reference: Data,
    data: Data,
    *,
    time: str,
    every: str = "day",
    window: int = 1,
    alpha: float = 0.05,
    smallest: float = 0.005,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    seed: int = 0,
    database: str | None = None,
    spark: str | None = None,
) -> Watch:
    """Compare sliding windows of a table with a profile, by its time column.

    Args:
        reference: a profile, or a table.
        data: a table with a time column; the engine groups by period.
        time: the column: times, or whole numbers.
        every: the period: minute, hour, day, week, month, quarter, year; of whole numbers, how many.
        window: periods in a sliding window.
        alpha: the chance of any false alarm, in any column and window, if nothing changes.
        smallest: the smallest KL(reference‖window) that matters, in nats.
        columns, drop, seed, database, spark: as for `drift`.
    Returns: `Watch`.
    Raises: BadInput.
    """
    import narwhals as nw

    _check(window, alpha, smallest)
    place = Place(database, spark)
    try:
        (left,) = without(drop, opened(reference, place, columns, drop))
        base = left if isinstance(left, Profile) else make(left, bins=10, categories=200)
        names = [name for name in base.columns if name != time]
        source = open_source(data, place, [*names, time], ())
        if not names:
            raise BadInput(f"{base.source}: has no column besides {time!r}")
        countable(source, base, names)
        if time not in source.columns:
            raise BadInput(f"{source.label}: column {time!r} holds no times")
        key = _period(nw.col(source.columns[time].alias), source, source.columns[time], every)
        bins: dict[str, Bins] = {name: base.columns[name].bins for name in names}
        counted = tally(source, bins, key, MOST_PERIODS)
        counted = _weeks(counted) if every == "week" else counted
        source.check_unchanged()
    finally:
        place.close()
    notes = []
    kept = [i for i, k in enumerate(counted.keys) if k is not None]
    if len(kept) < len(counted.keys):
        notes.append(f"{int(counted.rows[-1]):,} rows without a time are in no window")
    if len(kept) < window:
        raise BadInput(f"{source.label}: {len(kept)} periods of {every}, fewer than a window of {window}")
    sizes = [int(counted.rows[i]) for i in kept]
    some = Profile(base.rows, {name: base.columns[name] for name in names}, base.source, base.engine)
    limits = thresholds(some, sizes, window=window, alpha=alpha, seed=seed)
    labels = tuple(_name(counted.keys[i], every) for i in kept[window - 1 :])
    rows = tuple(sum(sizes[i : i + window]) for i in range(len(sizes) - window + 1))
    series: dict[str, tuple[float, ...]] = {}
    alarms: list[Alarm] = []
    for name in names:
        x = np.array(base.columns[name].counts, dtype=np.float64)
        slid = _slide(counted.cells[name][kept].astype(np.float64), window)
        series[name] = tuple(effects(*_used(x, y))["kl"].value if len(_used(x, y)[0]) > 1 else 0.0 for y in slid)
        for label, y in zip(labels, slid, strict=True):
            alarms += _alarm(label, name, base.columns[name], x, y, limits[name], smallest)
    order = {label: i for i, label in enumerate(labels)}
    alarms.sort(key=lambda alarm: (order[alarm.window], -alarm.kl))
    return Watch(base.source, source.label, labels, rows, series, limits, alarms, alpha, smallest, window, tuple(notes))


def thresholds(
    reference: Profile, sizes: Sequence[int], *, window: int = 1, alpha: float = 0.05, seed: int = 0
) -> dict[str, float]:
    """For each column the T that no window of a run without change exceeds, but for a share alpha of the runs.

    The share is divided evenly among the columns.

    Args: sizes: rows of each period of the run.  window: periods in a sliding window.
    """
    share = alpha / len(reference.columns)
    runs = min(max(SIMULATIONS, math.ceil(40.0 / share)), MOST_SIMULATIONS)
    found = {}
    for name, column in reference.columns.items():
        counts = np.array(column.counts, dtype=np.float64)
        # what the reference never saw may still be seen: Jeffreys' ½ for its cells together
        p = np.where(counts > 0.0, counts, 0.5 / max((counts == 0.0).sum(), 1))
        p /= p.sum()
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), len(sizes), window])
        tops = np.concatenate(
            [_tops(p, int(counts.sum()), sizes, window, n, rng) for n in _blocks(runs, sizes, len(p))]
        )
        found[name] = float(np.quantile(tops, 1.0 - share, method="higher"))
    return found


def _tops(p: Floats, n: int, sizes: Sequence[int], window: int, runs: int, rng: np.random.Generator) -> Floats:
    """The largest T of each simulated run."""
    reference = rng.multinomial(n, p, size=runs).astype(np.float64)
    periods = np.stack([rng.multinomial(m, p, size=runs) for m in sizes], axis=1).astype(np.float64)
    sums = np.cumsum(periods, axis=1)
    slid = np.concatenate([sums[:, window - 1 : window], sums[:, window:] - sums[:, :-window]], axis=1)
    top: Floats = statistic(np.broadcast_to(reference[:, None], slid.shape), slid).max(1)
    return top


def _blocks(runs: int, sizes: Sequence[int], cells: int) -> list[int]:
    step = max(1, 4_000_000 // (len(sizes) * cells))
    return [min(step, runs - start) for start in range(0, runs, step)]


def _slide(counts: Floats, window: int) -> Floats:
    sums = np.cumsum(counts, axis=0)
    return np.concatenate([sums[window - 1 : window], sums[window:] - sums[:-window]])


def _used(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    used = (x + y) > 0
    return x[used], y[used]


def _alarm(
    label: str, name: str, reference: Counted, x: Floats, y: Floats, threshold: float, smallest: float
) -> list[Alarm]:
    t = float(statistic(x, y))
    if t <= threshold:
        return []
    used = np.flatnonzero(x + y > 0)
    value = effects(x[used], y[used])["kl"].value
    if value < smallest:
        return []
    parts = cell_contributions(x[used], y[used])
    labels = reference.bins.labels
    cells = [
        Cell(labels[i], int(x[i]), int(y[i]), float(part))
        for i, part in zip(used.tolist(), parts.tolist(), strict=True)
    ]
    cells.sort(key=lambda cell: -cell.contribution)
    return [Alarm(label, name, int(y.sum()), value, t, threshold, tuple(cells[:5]))]


def _check(window: int, alpha: float, smallest: float) -> None:
    if window < 1:
        raise BadInput(f"--window is {window}; write how many periods a window has, 1 or more")
    if not 0.0 < alpha < 1.0:
        raise BadInput(f"--alpha is {alpha:g}; write a number between 0 and 1")
    if not 0.0 <= smallest < math.inf:
        raise BadInput(f"--smallest is {smallest:g}; write an effect in nats, 0 or more")


def _period(x: Any, source: Source, column: Column, every: str) -> Any:
    if column.kind == "time":
        if every not in TRUNCATE:
            raise BadInput(f"--every is {every!r}; for times write {', '.join(TRUNCATE)}")
        import narwhals as nw

        if not column.zoned:
            x = x.cast(nw.Datetime("us"))
        return x.dt.truncate(TRUNCATE[every])
    if column.kind == "number" and column.whole:
        if not (every.isdigit() and int(every) > 0):
            raise BadInput(f"--every is {every!r}; {column.name!r} holds whole numbers: write how many make a period")
        return (x // int(every)) * int(every)
    raise BadInput(f"{source.label}: column {column.name!r} holds neither times nor whole numbers")


def _weeks(days: Tally) -> Tally:
    """Days added up to weeks, which begin on Monday."""
    weeks = [None if day is None else floor_time(as_moment(day), "week") for day in days.keys]
    keys = list(dict.fromkeys(weeks))
    starts = [weeks.index(key) for key in keys]
    cells = {name: np.add.reduceat(counts, starts) for name, counts in days.cells.items()}
    return Tally(keys, np.add.reduceat(days.rows, starts), cells)


def _name(key: Any, every: str) -> str:
    if not isinstance(key, date | datetime):
        return str(key)
    form = {"minute": "%Y-%m-%d %H:%M", "hour": "%Y-%m-%d %H:%M", "month": "%Y-%m", "quarter": "%Y-%m", "year": "%Y"}
    return key.strftime(form.get(every, "%Y-%m-%d"))
