"""The same data give the same cells, the same counts and the same numbers to the last digit, whatever engine counts."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from kullback._errors import BadInput
from kullback.data import drift, profile, watch
from kullback.data.engines import Place, open_source, quantiles

JOINT = ("whole", "a.b", "flag")
NAME = 'kind"; DROP TABLE t; --'


def as_pandas(table):
    import pandas as pd

    return table.to_pandas(types_mapper=pd.ArrowDtype)


def as_polars(table):
    import polars as pl

    return pl.from_arrow(table)


def as_duckdb(table):
    import duckdb

    return duckdb.connect().from_arrow(table)


ENGINES = {
    "polars": as_polars,
    "polars, lazily": lambda table: as_polars(table).lazy(),
    "pandas": as_pandas,
    "pyarrow": lambda table: table,
    "duckdb": as_duckdb,
}


def document(reference, current, **where):
    """All that is said of two tables, in several ways, as text; without what they are called."""
    some = ["real", "single, rounded", "whole with nulls", NAME, "a.b", "moment in UTC"]
    ways = [
        {"joint_of": JOINT},
        {"by": NAME, "columns": some},
        {"cluster": "whole with nulls", "by": "a.b", "columns": some},
        {"categories": 3, "bins": 4, "columns": some},
    ]
    found = [drift(reference, current, **way, **where).to_json() for way in ways]
    for time, every in (("moment in UTC", "week"), ("whole", "5")):
        columns = ["real", NAME, "flag"]
        found.append(watch(reference, current, time=time, every=every, columns=columns, window=2, **where).to_json())
    for one in found:
        del one["reference"], one["current"]
    return json.dumps(found, sort_keys=True)


def by_hand(table, name):
    return table[name].to_pylist()


@pytest.fixture(scope="module")
def expected(files):
    return document(*files)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree_to_the_last_digit(tables, expected, engine):
    assert document(*map(ENGINES[engine], tables)) == expected


def test_sides_on_different_engines_agree_too(tables, files, expected):
    for one, other in (("pandas", "polars"), ("pyarrow", "pandas")):
        assert document(ENGINES[one](tables[0]), ENGINES[other](tables[1])) == expected
    assert document(files[0], tables[1]) == expected
    assert document(tables[0], files[1]) == expected


def test_numpys_frames_say_the_same_but_that_nan_and_null_are_one(tables, files):
    columns = [
        "real",
        "real with nulls",
        "single",
        "whole",
        "money",
        NAME,
        "a.b",
        "moment",
        "moment in UTC",
        "constant",
    ]
    frames = [table.to_pandas().astype({"money": float}) for table in tables]
    ours, others = drift(*frames, columns=columns), drift(*files, columns=columns)

    def counts(cells):
        found = {cell.label: (cell.reference, cell.current) for cell in cells}
        gone = [found.pop(label) for label in ("NaN", "null", "NaN or null") if label in found]
        return found, [sum(side) for side in zip(*gone, strict=True)]

    for name in columns:
        assert counts(ours[name].cells) == counts(others[name].cells), name


def test_counts_are_those_of_a_loop_over_the_rows(tables, files):
    made = profile(files[0])
    rows = tables[0].num_rows
    assert made.rows == rows
    for name, column in made.columns.items():
        values = by_hand(tables[0], name)
        assert column.counts[-1] == sum(v is None for v in values), name
        assert sum(column.counts) == rows
        held = [v for v in values if v is not None]
        if column.bins.kind == "number":
            floats = np.array([float(v) for v in held])
            finite = floats[np.isfinite(floats)]
            counted = np.histogram(finite, [-np.inf, *column.bins.edges, np.inf])[0]
            assert column.counts[1:-3] == tuple(counted.tolist()), name
            expected = ((floats == -np.inf).sum(), (floats == np.inf).sum(), np.isnan(floats).sum())
            assert (column.counts[0], *column.counts[-3:-1]) == expected, name
        elif column.bins.kind == "category":
            assert dict(zip(column.bins.names, column.counts, strict=False)) == {v: held.count(v) for v in set(held)}
        elif column.bins.kind == "boolean":
            assert column.counts[:2] == (held.count(False), held.count(True))
        else:
            edges = column.bins.edges
            moments = [
                v if hasattr(v, "hour") else edges[0].replace(year=v.year, month=v.month, day=v.day) for v in held
            ]
            edges = [e.replace(tzinfo=moments[0].tzinfo) for e in edges]
            counted = [sum(a <= m < b for m in moments) for a, b in pairwise(edges)]
            assert column.counts[1:-2] == tuple(counted), name
            assert column.counts[0] == column.counts[-2] == 0


def test_edges_leave_equal_shares_of_the_reference(files):
    made = profile(files[0], columns=["money"], bins=10)
    inside = made.columns["money"].counts[1:-3]
    assert len(inside) == 10
    assert max(inside) - min(inside) <= 0.02 * made.rows


def test_zeros_that_fill_most_of_a_column_have_a_cell_of_their_own():
    import polars as pl

    before = pl.DataFrame({"x": [0.0] * 950 + [1.0 + i / 10 for i in range(50)]})
    after = pl.DataFrame({"x": [0.0] * 850 + [1.0 + i / 50 for i in range(150)]})
    found = drift(before, after)["x"]
    assert [(cell.label, cell.reference, cell.current) for cell in found.cells] == [
        ("= 0", 950, 850),
        ("> 0", 50, 150),
    ]
    assert found.drift


def test_values_in_float32_keep_cells_of_their_own():
    """0.7 in float32 lies below 0.7."""
    import polars as pl

    frame = pl.DataFrame({"x": [i % 8 / 10 for i in range(800)]}, schema={"x": pl.Float32})
    counts = profile(frame).columns["x"].counts
    assert [n for n in counts if n] == [100] * 8


def test_a_table_in_a_database_a_query_and_a_folder_are_read(tables, files, expected, tmp_path):
    import duckdb

    database = str(tmp_path / "store.duckdb")
    with duckdb.connect(database) as made:
        for name, path in zip(("before", "after"), files, strict=True):
            made.execute(f"CREATE TABLE {name} AS SELECT * FROM read_parquet('{path}')")
    assert document("before", "after", database=database) == expected
    assert document("SELECT * FROM before", "FROM after", database=database) == expected
    for name, path in zip(("before", "after"), files, strict=True):
        (tmp_path / name / "part").mkdir(parents=True)
        shutil.copy(path, tmp_path / name / "part" / "0.parquet")
    assert document(tmp_path / "before", tmp_path / "after") == expected
    assert document(str(tmp_path / "before" / "*" / "*.parquet"), tmp_path / "after") == expected


def test_csv_is_read_with_its_types(tmp_path):
    for name, shift in (("a", 0), ("b", 3)):
        lines = [
            f"{i % 20 + shift},{'x' if i % 3 else 'y'},2024-01-{1 + i % 28:02d},{str(i % 2 == 0).lower()}"
            for i in range(500)
        ]
        (tmp_path / f"{name}.csv").write_text("n,kind,day,flag\n" + "\n".join(lines) + "\n")
    found = drift(tmp_path / "a.csv", tmp_path / "b.csv")
    assert {one.name: one.kind for one in found.columns} == {
        "n": "number", "kind": "category", "day": "time", "flag": "boolean",
    }  # fmt: skip
    assert [one.name for one in found.drifted] == ["n"]


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_and_null_are_one_group(engine):
    import pyarrow as pa

    values = [0.5, 1.5, float("nan"), None] * 30
    table = pa.table({"site": pa.array(values, pa.float64()), "x": pa.array(range(120), pa.int64())})
    found = drift(*[ENGINES[engine](table)] * 2, by="site")
    assert found.groups == {"0.5": (30, 30), "1.5": (30, 30), "(null)": (60, 60)}
    assert {one.group for one in found.columns} == set(found.groups)


def test_brackets_in_a_file_name_are_no_pattern(files, tmp_path):
    odd = tmp_path / "table [1] 'x'.parquet"
    shutil.copy(files[0], odd)
    assert profile(odd).rows == 3000


def test_names_of_columns_are_never_read_as_sql(tmp_path):
    import duckdb

    database = str(tmp_path / "store.duckdb")
    names = ['x"; DROP TABLE t; --', "sum(1)", "a.b", "select", "'", "c0", "kullback_key", "x, y"]
    with duckdb.connect(database) as made:
        columns = ", ".join('"' + name.replace('"', '""') + '" VARCHAR' for name in names)
        made.execute(f"CREATE TABLE t ({columns})")
        made.executemany(
            f"INSERT INTO t VALUES ({', '.join('?' * len(names))})",
            [["v'; --" if i >> (j % 3) & 1 else "w" for j in range(len(names))] for i in range(100)],
        )
    found = drift("t", "t", database=database, by="a.b", columns=names)
    assert {one.name for one in found.columns} == set(names) - {"a.b"}
    with duckdb.connect(database, read_only=True) as made:
        assert made.execute("SELECT count(*) FROM t").fetchone() == (100,)
    clustered = drift("t", "t", database=database, cluster="c0", columns=["c0", "x, y"])
    assert clustered["x, y"].test.law == "clusters"


def test_a_large_table_takes_its_edges_from_a_sample_and_counts_every_row(monkeypatch, tmp_path):
    import duckdb

    from kullback.data import engines

    path, rows = str(tmp_path / "large.parquet"), 400_000
    rare = "CASE WHEN range % 2000 = 0 THEN range END"
    query = f"SELECT (range * 7919 % 400009)::DOUBLE AS x, -range AS y, {rare} AS rare FROM range({rows})"
    duckdb.sql(f"COPY ({query}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 40960)")
    monkeypatch.setattr(engines, "EXACT_ROWS", 100_000)
    monkeypatch.setattr(engines, "SAMPLE_ROWS", 20_000)
    made = profile(path)
    assert made.columns["x"].bins.origin == "quantiles of a sample"
    assert made.rows == rows
    inside = {name: np.array(made.columns[name].counts[1:-3]) for name in ("x", "y")}
    for counts in inside.values():
        assert len(counts) == 10
        assert counts.sum() == rows
    # x is as good as shuffled: four standard errors of a quantile. y is sorted, and blocks of it are drawn as wholes
    assert (abs(inside["x"] - 40_000) < 4 * rows * (0.25 / 20_000) ** 0.5).all()
    assert (inside["y"] > 4_000).all()
    assert made.columns["rare"].counts == (0, *[20] * 10, 0, 0, rows - 200)  # too few in a sample: exact
    assert profile(path) == made


def test_quantiles_are_numpys(files, tables):
    place = Place()
    source = open_source(files[0], place)
    levels = [0.0, 0.1, 0.5, 0.9]
    found = quantiles(source, [source.columns["money"], source.columns["real"]], levels, 3000)
    place.close()
    money = np.array([float(v) for v in by_hand(tables[0], "money")])
    real = np.array(by_hand(tables[0], "real"))
    assert found["money"] == pytest.approx(np.quantile(money, levels).tolist(), rel=1e-14)
    assert found["real"] == pytest.approx(np.quantile(real[np.isfinite(real)], levels).tolist(), rel=1e-14)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_spark_agrees_to_the_last_digit(spark, files, expected):
    assert document(*files, spark="local[2]") == expected
    frames = [spark.read.parquet(path) for path in files]
    found = drift(*frames, joint_of=JOINT).to_json()
    del found["reference"], found["current"]
    assert json.dumps(found, sort_keys=True) == json.dumps(json.loads(expected)[0], sort_keys=True)
    for bad, message in (
        ("/nowhere/none.parquet", "none.parquet: .*PATH_NOT_FOUND"),
        ("no_table", "no_table: .*TABLE_OR_VIEW_NOT_FOUND"),
        ("SELECT x FROM nowhere", "SELECT x FROM nowhere: "),
    ):
        with pytest.raises(BadInput, match=message) as told:
            drift(bad, files[1], spark="local[2]")
        assert "\n" not in str(told.value)


SCRIPT = """
import json, sys
from kullback.data import drift
reference, current, master = sys.argv[1:]
found = drift(reference, current, spark=master, joint_of=("whole", "a.b", "flag")).to_json()
del found["reference"], found["current"]
from pyspark.sql import SparkSession
workers = SparkSession.getActiveSession().sparkContext._jsc.sc().getExecutorMemoryStatus().size() - 1
print("found:" + json.dumps([workers, found], sort_keys=True))
"""


@pytest.mark.slow
def test_spark_on_a_cluster_of_two_workers_agrees_to_the_last_digit(java, files, expected):
    command = [sys.executable, "-c", SCRIPT, *files, "local-cluster[2,1,1024]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    workers, found = json.loads(done.stdout.partition("found:")[2])
    assert workers == 2
    assert found == json.loads(expected)[0]
