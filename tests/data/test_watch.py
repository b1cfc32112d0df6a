"""Windows: alarms where something changes, as few as was said where nothing does."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from kullback._errors import BadInput
from kullback.data import Monitor, profile, watch
from kullback.data.bins import Categories, Numbers
from kullback.data.profiles import Counted, Profile
from kullback.data.statistics import statistic
from kullback.data.watching import _slide, thresholds

START = datetime(2024, 3, 1)


def stream(days, rows, seed, change_at=None):
    rng = np.random.default_rng(seed)
    frames = []
    for d in range(days):
        moved = change_at is not None and d >= change_at
        frames.append(
            pl.DataFrame(
                {
                    "when": [START + timedelta(days=d, minutes=int(k)) for k in rng.integers(0, 1440, rows)],
                    "tick": [d * 100 + int(k) for k in rng.integers(0, 100, rows)],
                    "x": rng.normal(1.0 if moved else 0.0, size=rows),
                    "kind": rng.choice(["a", "b"], rows),
                }
            )
        )
    return pl.concat(frames).sample(fraction=1.0, shuffle=True, seed=seed)


@pytest.fixture(scope="module")
def usual():
    return profile(stream(20, 200, 0), columns=["x", "kind"])


def test_a_change_is_alarmed_from_its_day_on_with_the_cells_that_moved(usual):
    found = watch(usual, stream(12, 200, 1, change_at=8), time="when")
    assert [alarm.window for alarm in found.alarms] == [f"2024-03-{d:02d}" for d in range(9, 13)]
    assert {alarm.column for alarm in found.alarms} == {"x"}
    assert found.alarms[0].rows == 200
    assert found.alarms[0].kl == pytest.approx(0.5, abs=0.3)  # a shift of 1 σ; its first cell holds a row or two
    assert found.alarms[0].moved[0].contribution > 0.05
    assert len(found.windows) == 12
    assert max(found.kl["kind"]) < 0.02


def test_no_change_no_alarm_and_windows_slide(usual):
    data = stream(12, 200, 3)
    found = watch(usual, data, time="when", window=3)
    assert not found.alarms
    assert found.windows[0] == "2024-03-03"
    assert found.rows == (600,) * 10
    by_number = watch(usual, data, time="tick", every="100", window=3)
    assert by_number.windows == tuple(str(100 * d) for d in range(2, 12))
    assert by_number.kl == found.kl


def test_weeks_begin_on_monday(usual):
    data = stream(12, 50, 3)  # from a Friday on
    found = watch(usual, data, time="when", every="week")
    assert found.windows == ("2024-02-26", "2024-03-04", "2024-03-11")
    assert found.rows == (150, 350, 100)
    with pytest.raises(BadInput, match="1 periods of month, fewer than a window of 2"):
        watch(usual, data, time="when", every="month", window=2)


def test_duckdb_groups_as_polars_does(usual, tmp_path):
    data = stream(9, 100, 4, change_at=5)
    data.write_parquet(tmp_path / "s.parquet")
    one, other = watch(usual, data, time="when"), watch(usual, tmp_path / "s.parquet", time="when")
    assert one.kl == other.kl
    assert one.windows == other.windows
    assert [a.window for a in one.alarms] == [a.window for a in other.alarms]


def test_a_stream_is_watched_batch_by_batch(usual):
    monitor = Monitor(usual, rows=200, run=30, window=2)
    calm = [monitor.update(stream(1, 200, seed).select("x", "kind")) for seed in range(10, 20)]
    assert calm == [[]] * 10
    alarms = monitor.update(stream(1, 200, 30, change_at=0).select("x", "kind"))
    assert [alarm.column for alarm in alarms] == ["x"]
    assert alarms[0].window == "11"
    assert alarms[0].rows == 400


def test_a_batch_that_the_profile_does_not_fit_is_refused(usual):
    monitor = Monitor(usual, rows=200, run=5)
    good = stream(1, 200, 1).select("x", "kind")
    for batch, message in (
        (good.drop("kind"), "there is no column 'kind'"),
        (good.with_columns(x=pl.lit("a")), "column 'x' holds numbers in .* and text"),
        (good.with_columns(kind=[["a"]] * 200), "column 'kind' holds List"),
        (good.clear(), "batch 1: holds no rows"),
    ):
        with pytest.raises(BadInput, match=message):
            monitor.update(batch)
    assert monitor.update(good) == []


@pytest.mark.parametrize(("n", "m", "window"), [(1000, 40, 1), (1000, 40, 5), (20_000, 300, 5)])
def test_runs_without_change_see_an_alarm_as_often_as_was_said(n, m, window):
    """Every run has a reference of its own, for that is a sample too; thresholds are those of every hundredth."""
    rng = np.random.default_rng([n, m, window])
    p = {"x": np.concatenate([[0], np.full(10, 0.1), [0, 0, 0]]), "kind": np.array([0.9, 0.08, 0.02, 0, 0])}
    bins = {"x": Numbers(tuple(range(1, 10))), "kind": Categories(("a", "b", "c"))}
    runs, alarms = 600, 0
    for r in range(runs):
        counts = {k: rng.multinomial(n, p[k]) for k in p}
        if r % 100 == 0:
            base = Profile(n, {k: Counted(bins[k], tuple(c.tolist())) for k, c in counts.items()})
            limits = thresholds(base, [m] * 30, window=window, alpha=0.1)
        seen = False
        for k in p:
            slid = _slide(rng.multinomial(m, p[k], size=30).astype(float), window)
            seen |= bool((statistic(np.broadcast_to(counts[k].astype(float), slid.shape), slid) > limits[k]).any())
        alarms += seen
    # four standard errors of a share; below 10 % lie the steps of small counts, and the cells that were never seen
    assert 0.1 - 4 * (0.09 / runs) ** 0.5 - 0.02 <= alarms / runs <= 0.1 + 4 * (0.09 / runs) ** 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time": "wen"}, "no column 'wen'; did you mean when"),
        ({"time": "when", "every": "fortnight"}, "--every is 'fortnight'"),
        ({"time": "tick", "every": "day"}, "--every is 'day'; 'tick' holds whole numbers"),
        ({"time": "x"}, "neither times nor whole numbers|column 'x'"),
        ({"time": "when", "window": 99}, "12 periods of day, fewer than a window of 99"),
        ({"time": "when", "window": 0}, "--window is 0"),
        ({"time": "when", "alpha": 2.0}, "--alpha is 2"),
    ],
)
def test_bad_settings_are_refused(usual, settings, message):
    with pytest.raises(BadInput, match=message):
        watch(usual, stream(12, 20, 1), **settings)
