"""Where the data lie: files, tables, queries and frames as one kind of lazy frame, and what engines do differently.

Everything but the quantiles goes through narwhals. A table is never read into Python: what crosses over is counts.
"""

import glob
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kullback._errors import BadInput
from kullback.kit.extras import extra

Kind = Literal["number", "time", "category", "boolean"]
EXACT_ROWS = 5_000_000  # up to here edges are exact quantiles; beyond, those of a sample
SAMPLE_ROWS = 200_000
MEMORY = "512MB"  # of DuckDB; more than that goes to its temporary folder
SUFFIXES = (".parquet", ".pq", ".csv", ".tsv")


@dataclass(frozen=True)
class Column:
    """A column as it stands in the frame: under a plain alias, whatever its name is.

    Group-by clauses of engines take text, so that no name from outside may reach them.
    """

    name: str
    alias: str
    kind: Kind
    whole: bool = False
    zoned: bool = False


@dataclass
class Source:
    """A table that is ready to be counted.

    Args:
        frame: a narwhals LazyFrame whose columns are aliases.
        columns: those that can be compared, by name.
        skipped: those that cannot, with their type.
        engine: duckdb, spark, pandas, polars or pyarrow.
        label: what the user called it.
        names: of all columns of the table, used or not.
        stamp: size and time of the files behind it, to see that they stay as they are.
    """

    frame: Any
    columns: dict[str, Column]
    skipped: dict[str, str]
    engine: str
    label: str
    names: tuple[str, ...] = ()
    stamp: tuple[Any, ...] = ()
    files: tuple[str, ...] = ()

    def total(self, condition: Any) -> Any:
        """How often a condition holds, as an expression."""
        return self.addend(condition).sum()

    def addend(self, condition: Any) -> Any:
        """A condition as something that can be summed. Spark and arrow cannot add booleans up."""
        import narwhals as nw

        return condition.cast(nw.Int64) if self.engine in ("spark", "pyarrow") else condition

    def key(self, name: str, purpose: str) -> Any:
        """A column to group by, as an expression; NaN is no value. Raises: BadInput: there is no such column."""
        import narwhals as nw

        if name not in self.columns:
            raise BadInput(f"{self.label}: there is no column {name!r} to {purpose} by")
        column = self.columns[name]
        value = nw.col(column.alias)
        return nw.when(~value.is_nan()).then(value) if column.kind == "number" and not column.whole else value

    def only(self, name: str, value: Any) -> "Source":
        """The rows with this value in a column; None is null."""
        key = self.key(name, "group")
        return replace(self, frame=self.frame.filter(key.is_null() if value is None else key == value))

    def recast(self, name: str, kind: Kind) -> bool:
        """Take a column without any value for one of another kind; whether it was one."""
        import narwhals as nw

        column = self.columns[name]
        value = nw.col(column.alias)
        with speaking(self.label):
            found = collect(self.frame.select(n=nw.len(), nulls=self.total(value.is_null())))
            if int(found["n"][0]) == 0:
                raise BadInput(f"{self.label}: holds no rows")
            if int(found["n"][0]) > int(found["nulls"][0] or 0):
                return False
            types: dict[Kind, Any] = {
                "number": nw.Float64,
                "category": nw.String,
                "boolean": nw.Boolean,
                "time": nw.Datetime("us"),
            }
            self.frame = self.frame.with_columns(value.cast(types[kind]).alias(column.alias))
        self.columns[name] = replace(column, kind=kind, whole=False, zoned=False)
        return True

    def check_unchanged(self) -> None:
        """Raises: BadInput: a file is not what it was when it was opened."""
        if self.files and _stamp(self.files) != self.stamp:
            raise BadInput(f"{self.label}: changed while it was read; nothing was concluded. Run again on a copy")


@dataclass(frozen=True)
class Place:
    """Where paths and names are looked up.

    Args:
        database: a DuckDB file in which tables and queries are looked up; it is opened for reading only.
        spark: the master of a Spark session ("local[2]", "spark://host:7077") that reads the paths and tables.
    """

    database: str | None = None
    spark: str | None = None
    threads: int | None = None
    _open: list[Any] = field(default_factory=list, repr=False)

    def connection(self) -> Any:
        """The DuckDB connection, made when first needed: one transaction, hence one state of the database."""
        if not self._open:
            duckdb = extra("duckdb", of="data")
            config: dict[str, Any] = {"memory_limit": MEMORY, "preserve_insertion_order": False}
            if self.threads:
                config["threads"] = self.threads
            if self.database is not None and not Path(self.database).is_file():
                raise BadInput(f"--database {self.database}: there is no such file")
            try:
                made = duckdb.connect(self.database or ":memory:", read_only=self.database is not None, config=config)
            except duckdb.Error as error:
                raise BadInput(f"--database {self.database}: {_first_line(error)}") from None
            made.execute("SET TimeZone = 'UTC'")
            made.execute("SET enable_progress_bar = false")  # it would go to standard output
            made.execute("BEGIN TRANSACTION")
            self._open.append(made)
        return self._open[0]

    def close(self) -> None:
        """Close the connection. A Spark session stays: it is shared by the process."""
        while self._open:
            self._open.pop().close()


@contextmanager
def speaking(label: str) -> Iterator[None]:
    """Errors of an engine as one line that names the table."""
    try:
        yield
    except (BadInput, ImportError, KeyboardInterrupt, MemoryError):
        raise
    except RuntimeError as error:
        if "interrupted" in str(error):  # DuckDB's word for a signal that came during a query
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("duckdb", "_duckdb", "pyspark", "py4j", "narwhals", "polars"):
            raise BadInput(f"{label}: {_first_line(error)}") from None
        raise


def open_source(data: Any, place: Place, columns: Sequence[str] = (), drop: Sequence[str] = ()) -> Source:
    """A path, a table's name, a query or a frame as a `Source`.

    Args:
        data: a CSV or Parquet file, a folder of Parquet, a glob; the name of a table or a query, with `database` or
            Spark; a frame of pandas, polars, pyarrow, DuckDB or PySpark.
        columns: use these only.  drop: leave these out.
    Raises: BadInput, MissingExtra.
    """
    nw = extra("narwhals", of="data")
    native, engine, label, files = _native(data, place)
    stamp = _stamp(files)
    with speaking(label):
        places = {}
        if engine == "spark":  # to Spark a.b is field b of a, and `a` is a
            places = {name: f"s{i}" for i, name in enumerate(native.columns)}
            native = native.toDF(*places.values())
        frame = nw.from_native(native).lazy()
        schema = dict(frame.collect_schema())
        schema = {name: schema[place] for name, place in places.items()} or schema
        chosen = _chosen(label, list(schema), columns, drop)
        found: dict[str, Column] = {}
        skipped: dict[str, str] = {}
        for i, name in enumerate(chosen):
            kind = kind_of(schema[name])
            if kind is None:
                skipped[name] = str(schema[name])
                continue
            zoned = bool(getattr(schema[name], "time_zone", None))
            found[name] = Column(name, f"c{i}", kind, schema[name].is_integer(), zoned)
        expressions = [
            _plain(nw.col(places.get(one.name, one.name)), one, schema[one.name], engine) for one in found.values()
        ]
        # a frame without columns has no rows to count
        frame = frame.select(*(expressions or [nw.lit(1).alias("c0")]))
    return Source(frame, found, skipped, engine, label, tuple(schema), stamp, files)


def kind_of(dtype: Any) -> Kind | None:
    """What a column of this type holds; None for nested and binary types, times of day and durations."""
    import narwhals as nw

    if dtype.is_numeric():
        return "number"
    if dtype in (nw.String, nw.Categorical, nw.Enum):
        return "category"
    if dtype == nw.Boolean:
        return "boolean"
    return "time" if dtype in (nw.Date, nw.Datetime) else None


def quantiles(source: Source, columns: Sequence[Column], levels: Sequence[float], rows: int) -> dict[str, list[float]]:
    """Quantiles of the finite values of columns of numbers, interpolated linearly; [] for a column without any.

    Exact up to 5,000,000 rows; beyond, of a sample of 200,000 rows. One query a column: the values of a column have to
    be held for it.
    """
    import narwhals as nw

    if source.engine == "spark":
        return _spark_quantiles(source, columns, levels, rows)
    frame = source.frame
    if source.engine == "duckdb":
        return _duckdb_quantiles(source, columns, levels, rows)
    found: dict[str, list[float]] = {}
    for column in columns:
        value = nw.col(column.alias).cast(nw.Float64)
        # what lies in this process already is sorted once for all levels; narwhals would sort for each
        values = frame.filter(value.is_finite()).select(x=value).collect("pyarrow").to_native()["x"].to_numpy()
        found[column.name] = np.quantile(values, levels).tolist() if len(values) else []
    return found


def collect(frame: Any) -> dict[str, list[Any]]:
    """The rows of a lazy frame, few by construction, as lists."""
    table = frame.collect("pyarrow").to_native()
    result: dict[str, list[Any]] = table.to_pydict()
    return result


def sampled(source: Source, rows: int) -> bool:
    """Whether edges come from a sample."""
    return rows > EXACT_ROWS and source.engine in ("duckdb", "spark")


def _duckdb_quantiles(
    source: Source, columns: Sequence[Column], levels: Sequence[float], rows: int
) -> dict[str, list[float]]:
    relation = source.frame.to_native()
    wanted = "[" + ", ".join(f"{level!r}" for level in levels) + "]"
    found: dict[str, list[float]] = {}

    def ask(of: Any, picked: Sequence[Column]) -> dict[str, int]:
        """Quantiles go to `found`; how many values they rest on."""
        parts = []
        for one in picked:
            value = f"{one.alias}::DOUBLE"
            parts.append(f"quantile_cont({value}, {wanted}) FILTER (isfinite({value})), sum(isfinite({value}))")
        (row,) = of.aggregate(", ".join(parts)).fetchall()
        found.update({one.name: list(map(float, values or [])) for one, values in zip(picked, row[::2], strict=True)})
        return {one.name: int(n or 0) for one, n in zip(picked, row[1::2], strict=True)}

    if columns and sampled(source, rows):
        # whole blocks of rows first, then single ones: a third of a reservoir's time. One sample serves all columns
        blocks = min(1.0, 5.0 * SAMPLE_ROWS / rows)
        some = f"SELECT * FROM t USING SAMPLE {100.0 * blocks!r}% (system, 1)"
        share = f"{100.0 * SAMPLE_ROWS / rows / blocks!r}% (bernoulli, 2)"
        held = ask(relation.query("t", f"SELECT * FROM ({some}) USING SAMPLE {share}"), columns)
        columns = [
            one for one in columns if held[one.name] < SAMPLE_ROWS // 20
        ]  # of these the sample saw next to nothing
    for column in columns:
        ask(relation, [column])  # the values of a column have to be held: one at a time
    return found


def _spark_quantiles(
    source: Source, columns: Sequence[Column], levels: Sequence[float], rows: int
) -> dict[str, list[float]]:
    functions = extra("pyspark.sql.functions", of="spark")
    frame = source.frame.to_native()

    def finite(column: Column) -> Any:
        value = functions.col(column.alias).cast("double")
        return functions.when(~functions.isnan(value) & (functions.abs(value) != math.inf), value)

    if sampled(source, rows):
        exprs = [functions.percentile_approx(finite(c), list(levels), 10_000).alias(c.alias) for c in columns]
    else:
        exprs = [functions.percentile(finite(c), list(levels)).alias(c.alias) for c in columns]
    row = frame.select(*exprs).collect()[0] if exprs else {}
    return {c.name: [float(v) for v in row[c.alias] or []] for c in columns}


def _plain(expression: Any, column: Column, dtype: Any, engine: str) -> Any:
    """Under its alias, in a type that all engines compare alike."""
    import narwhals as nw

    if column.kind == "number" and not column.whole and dtype != nw.Float64:  # decimals; float32, as which edges differ
        expression = expression.cast(nw.Float64)
    elif column.kind == "category" and dtype != nw.String:
        expression = expression.cast(nw.String)
    elif dtype == nw.Date and engine in ("pandas", "polars", "pyarrow"):
        expression = expression.cast(nw.Datetime("us"))
    elif column.zoned and engine in ("pandas", "polars", "pyarrow"):  # the others compare moments as they are
        expression = expression.dt.convert_time_zone("UTC")
    return expression.alias(column.alias)


def _chosen(label: str, names: list[str], columns: Sequence[str], drop: Sequence[str]) -> list[str]:
    from kullback.kit.ending import near

    for name in columns:
        if name not in names:
            raise BadInput(f"{label}: there is no column {name!r}; did you mean {near(name, names)}?")
    kept = list(dict.fromkeys(columns)) or names
    return [name for name in kept if name not in drop]


def _native(data: Any, place: Place) -> tuple[Any, str, str, tuple[str, ...]]:
    """The native frame, its engine, a label, and the files behind it."""
    if isinstance(data, str | os.PathLike):
        text = os.fspath(data)
        return _spark_read(text, place) if place.spark else _duckdb_read(text, place)
    module, name = type(data).__module__.partition(".")[0], type(data).__name__
    engines = {"pandas": "pandas", "polars": "polars", "pyarrow": "pyarrow", "pyspark": "spark"}
    if module in ("duckdb", "_duckdb") and name == "DuckDBPyRelation":
        return data, "duckdb", "a DuckDB relation", ()
    if module in engines and name in ("DataFrame", "LazyFrame", "Table"):
        return data, engines[module], f"a {module} {name}", ()
    raise BadInput(
        f"data is a {module}.{name}; give a path, a query, or a frame of pandas, polars, pyarrow, DuckDB or PySpark"
    )


def _duckdb_read(text: str, place: Place) -> tuple[Any, str, str, tuple[str, ...]]:
    duckdb = extra("duckdb", of="data")
    extra("pyarrow", of="data")
    path = Path(text)
    if _is_path(text):
        files = _files(text)
        suffix = Path(files[0]).suffix.lower()
        connection = place.connection()
        names = [glob.escape(name) for name in files]
        with speaking(text):
            try:
                if suffix in (".parquet", ".pq"):
                    return connection.read_parquet(names), "duckdb", text, files
                relation = connection.read_csv(names, sample_size=-1)
            except duckdb.Error as error:
                raise BadInput(f"{text}: cannot be read as {suffix[1:]}: {_first_line(error)}") from None
            # text is parsed once, and then counted as often as need be
            table = f"kullback_csv_{len(place._open)}_{abs(hash(files))}"
            relation.create_view(table + "_view")
            connection.execute(f'CREATE TEMP TABLE "{table}" AS SELECT * FROM "{table}_view"')
            return connection.table(table), "duckdb", text, files
    if path.suffix.lower() in (".duckdb", ".db", ".ddb"):
        raise BadInput(f"{text}: is a database; name a table or a query, and write --database {text}")
    connection = place.connection()
    with speaking(text):
        if _is_query(text):
            statements = connection.extract_statements(text)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise BadInput(f"{text}: is not one SELECT; nothing else is run")
            return connection.sql(text), "duckdb", text, ()
        if place.database is None:
            raise BadInput(f"{text}: there is no such file; for a table or a query, write --database FILE as well")
        return connection.table(text), "duckdb", text, ()


def _spark_read(text: str, place: Place) -> tuple[Any, str, str, tuple[str, ...]]:
    session = spark_session(place.spark or "")
    with speaking(text):
        if _is_query(text):
            return session.sql(text), "spark", text, ()
        suffix = Path(text).suffix.lower()
        if suffix in (".csv", ".tsv"):
            reader = session.read.option("header", "true").option("inferSchema", "true")
            return reader.csv(text, sep="\t" if suffix == ".tsv" else ","), "spark", text, ()
        if suffix in (".parquet", ".pq") or "/" in text or Path(text).is_dir():
            return session.read.parquet(text), "spark", text, ()
        return session.table(text), "spark", text, ()


def spark_session(master: str) -> Any:
    """The process's Spark session, made with quiet settings where there is none. Raises: BadInput without Java."""
    import shutil

    sql = extra("pyspark.sql", of="spark")
    running = sql.SparkSession.getActiveSession()
    if running is not None:
        return running
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise BadInput(f"--spark {master}: Spark needs Java 17 (Debian: apt-get install openjdk-17-jre-headless)")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = sql.SparkSession.builder.appName("kullback").master(master)
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.log.level": "ERROR",
    }
    if master.startswith("local"):
        settings["spark.driver.host"] = "127.0.0.1"
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception as error:
        raise BadInput(f"--spark {master}: {_first_line(error)}") from None


def _is_query(text: str) -> bool:
    return text.lstrip("( \t\n").partition(" ")[0].strip().upper() in ("SELECT", "WITH", "FROM")


def _is_path(text: str) -> bool:
    if _is_query(text) and not Path(text).exists():
        return False
    return (Path(text).exists() and Path(text).suffix.lower() not in (".duckdb", ".db", ".ddb")) or (
        Path(text).suffix.lower() in SUFFIXES
    )


def _files(text: str) -> tuple[str, ...]:
    """The files of a path, a folder or a glob, sorted; of one format."""
    path = Path(text)
    if path.is_dir():
        found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    elif path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise BadInput(f"{text}: {path.suffix or 'no suffix'} is not a known format; give .csv, .tsv or .parquet")
        found = [text]
    else:
        found = sorted(glob.glob(text, recursive=True))
    if not found:
        what = "the folder holds no .parquet or .csv file" if path.is_dir() else "there is no such file"
        raise BadInput(f"{text}: {what}")
    formats = {Path(name).suffix.lower() in (".csv", ".tsv") for name in found}
    if len(formats) > 1:
        raise BadInput(
            f"{text}: holds both CSV and Parquet files; write a pattern such as {text.rstrip('/')}/*.parquet"
        )
    return tuple(found)


def _stamp(files: Sequence[str]) -> tuple[Any, ...]:
    try:
        return tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in map(os.stat, files))
    except FileNotFoundError as error:
        raise BadInput(f"{error.filename}: went away while it was read") from None


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n")[0]
    return line or type(error).__name__
