"""A table with everything in it, the same in every engine."""

import atexit
import importlib.util
import os
import shutil
import sys
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest

from here import lacking

pytest.importorskip("duckdb", reason="needs kullback[data]")
pytest.importorskip("narwhals", reason="needs kullback[data]")


@atexit.register
def hush():
    """As the command does: DuckDB ends a process with a page about leaks of its own."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@pytest.fixture(scope="session")
def java():
    """What Spark needs."""
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        lacking("spark", "needs Java 17 for Spark (Debian: apt-get install openjdk-17-jre-headless)")
    if importlib.util.find_spec("pyspark") is None:
        lacking("spark", "needs kullback[spark]")


@pytest.fixture(scope="session")
def spark(java):
    """A session on two threads."""
    from kullback.data.engines import spark_session

    session = spark_session("local[2]")
    yield session
    session.stop()


def everything(rows: int, seed: int, shift: float = 0.0):
    """An arrow table: nulls, NaN, infinities, unicode, decimals, dates, times with and without a zone, odd names."""
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    real = rng.normal(shift, size=rows)
    real[rng.random(rows) < 0.03] = np.nan
    real[rng.random(rows) < 0.01] = np.inf
    real[rng.random(rows) < 0.01] = -np.inf
    start = datetime(2024, 1, 1)
    moments = [start + timedelta(minutes=int(k)) for k in rng.integers(0, 300_000, rows)]
    names = np.array(["café", "naïve", "日本", "x'y", 'a"b', "NULL", "", "🙂"])
    gone = rng.random(rows) < 0.1

    def holes(values):
        return [None if hole else value for hole, value in zip(gone, values, strict=True)]

    return pa.table(
        {
            "real": pa.array(real, pa.float64()),
            "real with nulls": pa.array(holes(real.tolist()), pa.float64()),
            "single": pa.array(real.astype(np.float32), pa.float32()),
            "single, rounded": pa.array(real.round(1).astype(np.float32), pa.float32()),
            "whole": pa.array(rng.poisson(3 + shift, rows), pa.int64()),
            "whole with nulls": pa.array(holes(rng.integers(-5, 200, rows).tolist()), pa.int32()),
            "money": pa.array(
                [Decimal(int(k)).scaleb(-2) for k in rng.integers(0, 10_000, rows)], pa.decimal128(10, 2)
            ),
            'kind"; DROP TABLE t; --': pa.array(holes(rng.choice(names, rows, p=np.arange(8, 0, -1) / 36).tolist())),
            "a.b": pa.array(rng.choice(["u", "v"], rows).tolist()),
            "flag": pa.array(holes((rng.random(rows) < 0.3).tolist())),
            "day": pa.array([m.date() for m in moments], pa.date32()),
            "moment": pa.array(moments, pa.timestamp("us")),
            "moment in UTC": pa.array([m.replace(tzinfo=timezone.utc) for m in moments], pa.timestamp("us", "UTC")),
            "constant": pa.array([7] * rows, pa.int64()),
            "nothing": pa.array([None] * rows, pa.float64()),
        }
    )


@pytest.fixture(scope="session")
def tables():
    return everything(3000, 1), everything(2000, 2, shift=0.2)


@pytest.fixture(scope="session")
def files(tables, tmp_path_factory):
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("tables")
    paths = [folder / "reference.parquet", folder / "current.parquet"]
    for table, path in zip(tables, paths, strict=True):
        pq.write_table(table, path, row_group_size=500)
    return [str(path) for path in paths]
