"""The command: exit codes, one line for bad input, JSON, the page in a real browser."""

import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from kullback import cli
from kullback.data import drift, profile
from kullback.data.report import render


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, shift in (("before", 0.0), ("same", 0.0), ("after", 0.6)):
        rows = 1500
        pl.DataFrame(
            {
                "age": rng.normal(40 + 10 * shift, 10, rows).round(1),
                "site": rng.choice(["north", "south", "<b>east</b>"], rows),
                "income": rng.lognormal(8, 1, rows),
            }
        ).write_csv(f"{name}.csv")
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(cli.app(), ["drift", *arguments])


def test_exit_code_0_without_drift(folder):
    result = call("before.csv", "same.csv")
    assert result.exit_code == 0, result.output
    assert "No drift: none of 3 columns" in " ".join(result.stdout.split())


def test_exit_code_1_with_drift_and_a_folder_with_page_and_numbers(folder):
    result = call("before.csv", "after.csv", "--out", "found", "--joint", "age,site")
    assert result.exit_code == 1, result.output
    assert re.search(r"^age +DRIFT ", result.stdout, re.MULTILINE)
    assert sorted(p.name for p in (folder / "found").iterdir()) == ["drift.json", "report.html"]
    page = (folder / "found" / "report.html").read_text()
    assert len(page) < 60_000
    assert "Drift in 1 of 3 columns (age)" in page
    assert "&lt;b&gt;east&lt;/b&gt;" in page
    assert "<b>east" not in page
    assert "http" not in page
    document = json.loads((folder / "found" / "drift.json").read_text())
    assert [c["column"] for c in document["columns"] if c["drift"]] == ["age"]
    assert document["joint"]["columns"] == ["age", "site"]


def test_json_is_one_document_and_nothing_else(folder):
    result = call("before.csv", "after.csv", "--json", "--columns", "age,site", "--adjust", "bh")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["drift"] is True
    assert {c["column"] for c in document["columns"]} == {"age", "site"}
    age = next(c for c in document["columns"] if c["column"] == "age")
    assert set(age["effects"]) == {"kl", "kl_reverse", "js", "psi"}
    assert age["effects"]["kl"]["low"] < age["effects"]["kl"]["value"] < age["effects"]["kl"]["high"]
    assert sum(cell["contribution"] for cell in age["cells"]) == pytest.approx(age["effects"]["kl"]["raw"], rel=1e-9)


def test_groups(folder):
    result = call("before.csv", "after.csv", "--by", "site", "--json")
    document = json.loads(result.stdout)
    groups = {c["group"] for c in document["columns"]}
    assert groups == {"north", "south", "<b>east</b>"}
    assert len(document["columns"]) == 6
    rows = pl.read_csv("before.csv")["site"].value_counts()
    assert document["groups"]["north"]["reference"] == dict(rows.rows())["north"]
    direct = drift(
        pl.read_csv("before.csv").filter(pl.col("site") == "north"),
        pl.read_csv("after.csv").filter(pl.col("site") == "north"),
        columns=["age"],
    )["age"]
    grouped = next(c for c in document["columns"] if (c["group"], c["column"]) == ("north", "age"))
    assert grouped["effects"]["kl"]["value"] == pytest.approx(direct.effects["kl"].value, rel=0.2)


def test_profiles_by_command(folder):
    assert call("profile", "before.csv", "--out", "a.json").exit_code == 0
    assert call("profile", "same.csv", "--out", "b.json", "--like", "a.json").exit_code == 0
    assert call("profile", "a.json", "b.json", "--out", "both.json").exit_code == 0
    assert json.loads((folder / "both.json").read_text())["rows"] == 3000
    assert call("both.json", "after.csv").exit_code == 1
    assert call("a.json", "b.json").exit_code == 0


def test_watch_by_command(folder):
    rng = np.random.default_rng(0)
    rows = 3000
    hours = np.sort(rng.integers(0, 24 * 10, rows))
    moved = hours >= 24 * 7
    frame = pl.DataFrame({"x": rng.normal(size=rows) + moved}).with_columns(
        when=pl.datetime(2024, 5, 1) + pl.duration(hours=pl.Series(hours))
    )
    frame.filter(pl.Series(~moved)).drop("when").write_parquet("usual.parquet")
    frame.write_parquet("stream.parquet")
    assert call("profile", "usual.parquet", "--out", "usual.json").exit_code == 0
    result = call("watch", "usual.json", "stream.parquet", "--time", "when", "--json")
    assert result.exit_code == 1, result.output
    assert {a["window"] for a in json.loads(result.stdout)["alarms"]} == {"2024-05-08", "2024-05-09", "2024-05-10"}
    text = call("watch", "usual.json", "stream.parquet", "--time", "when")
    assert "3 alarms in 10 windows of 1 columns" in " ".join(text.stdout.split())


def spoil(folder):
    """Files that no comparison can use, beside `before.csv`."""
    (folder / "empty.csv").write_text("age,site,income\n")
    (folder / "one.csv").write_text("age,site,income\n1,a,2\n")
    (folder / "text.csv").write_text("age,site,income\n" + "old,north,5\n" * 50)
    (folder / "fewer.csv").write_text("age,site\n" + "40,north\n" * 50)
    (folder / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    (folder / "notes.txt").write_text("hello")
    (folder / "hollow").mkdir()
    pl.DataFrame({"x": [None] * 100}, schema={"x": pl.Float64}).write_parquet(folder / "nulls.parquet")
    pl.DataFrame({"id": [f"row {i}" for i in range(1000)]}).write_parquet(folder / "ids.parquet")
    pl.DataFrame({"x": [[1, 2]] * 20}).write_parquet(folder / "lists.parquet")
    document = json.loads(
        '{"format": "kullback drift profile", "schema": 99, "rows": 1, "source": "", "engine": "", "columns": {}}'
    )
    (folder / "old.json").write_text(json.dumps(document))
    profile("before.csv").write(folder / "kept.json")
    profile("after.csv").write(folder / "other.json")


BAD = [
    (["none.csv", "before.csv"], "none.csv: there is no such file"),
    (["before.csv"], "two tables are needed"),
    (["before.csv", "empty.csv"], "empty.csv: holds no rows"),
    (["empty.csv", "before.csv"], "empty.csv: holds no rows"),
    (["before.csv", "one.csv"], "no column can be compared: 1,500 against 1 rows"),
    (["before.csv", "text.csv"], "column 'age' holds numbers in before.csv and text in text.csv"),
    (["before.csv", "fewer.csv"], "fewer.csv: column 'income' of before.csv is missing there; write --drop income"),
    (["before.csv", "broken.parquet"], "broken.parquet: cannot be read as parquet"),
    (["before.csv", "notes.txt"], "notes.txt: .txt is not a known format"),
    (["hollow", "before.csv"], "hollow: the folder holds no .parquet or .csv file"),
    (["nulls.parquet", "nulls.parquet"], "no column can be compared: one cell holds every row (null)"),
    (["ids.parquet", "ids.parquet"], "no column can be compared: one cell holds every row ((other))"),
    (["lists.parquet", "lists.parquet"], "has no column that can be compared"),
    (["old.json", "before.csv"], "old.json: has schema version 99"),
    (["before.csv", "after.csv", "--columns", "ag"], "there is no column 'ag'; did you mean age?"),
    (["before.csv", "after.csv", "--drop", "wage"], "--drop wage: there is no such column"),
    (["before.csv", "after.csv", "--by", "wage"], "there is no column 'wage' to group by"),
    (["before.csv", "after.csv", "--cluster", "wage"], "there is no column 'wage' to cluster by"),
    (["before.csv", "after.csv", "--joint", "age"], "--joint needs at least two columns"),
    (["before.csv", "after.csv", "--joint", "age,wage"], "there is no column 'wage' (--joint)"),
    (["before.csv", "after.csv", "--by", "site", "--cluster", "site"], "--by and --cluster are both 'site'"),
    (["before.csv", "after.csv", "--by", "income"], "more than 100 different values to group by"),
    (["kept.json", "after.csv", "--by", "site"], "--by needs the rows of both sides, and before.csv is a profile"),
    (["kept.json", "after.csv", "--cluster", "site"], "--cluster needs the rows of both sides"),
    (["kept.json", "after.csv", "--joint", "age,site"], "--joint needs the rows of both sides"),
    (["before.csv", "kept.json"], "the current side is a profile and the reference, before.csv, a table"),
    (["kept.json", "other.json"], "has other cells in the profile of after.csv than in that of before.csv"),
    (["kept.json", "fewer.csv"], "fewer.csv: column 'income' of before.csv is missing there"),
    (["kept.json", "text.csv"], "column 'age' holds numbers in before.csv and text in text.csv"),
    (["profile", "text.csv", "--like", "kept.json", "--out", "p.json"], "holds numbers in before.csv and text"),
    (
        ["profile", "after.csv", "--like", "kept.json", "--columns", "wage", "--out", "p.json"],
        "after.csv: there is no column 'wage'",
    ),
    (["profile", "kept.json", "other.json", "--out", "p.json"], "make all but the first profile with --like FIRST"),
    (["before.csv", "after.csv", "--alpha", "7"], "--alpha is 7"),
    (["before.csv", "after.csv", "--adjust", "bonferroni"], "--adjust is 'bonferroni'"),
    (["before.csv", "after.csv", "--measure", "tv"], "--measure is 'tv'"),
    (["before.csv", "after.csv", "--bins", "1"], "--bins is 1"),
    (["before.csv", "after.csv", "--out", "hollow/.."], "exists and is not empty"),
    (["SELECT 1 AS x", "DELETE FROM t"], "DELETE FROM t: there is no such file"),
    (["SELECT 1 AS x; DROP TABLE t", "before.csv"], "is not one SELECT"),
    (["SELECT nothing FROM nowhere", "before.csv"], "SELECT nothing FROM nowhere: "),
    (["profile", "before.csv", "--out", "hollow"], "--out hollow: its name must end in .json"),
    (["profile", "before.csv", "after.csv", "--out", "p.json"], "2 tables were given"),
    (["watch", "old.json", "before.csv", "--time", "age"], "old.json: has schema version 99"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(folder, arguments, message):
    spoil(folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.strip().splitlines() if " so far" not in line]  # of a slow machine
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("kullback drift")
    assert message in lines[0]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before  # nothing lost, nothing left


def test_a_file_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    from kullback.data import job

    pl.read_csv("before.csv").write_parquet("moving.parquet")
    real = job.make_groups

    def slow(source, **settings):
        found = real(source, **settings)
        if source.label == "moving.parquet":
            os.utime("moving.parquet", ns=(1, 1))
        return found

    monkeypatch.setattr(job, "make_groups", slow)
    result = call("moving.parquet", "after.csv")
    assert result.exit_code == 2
    assert "moving.parquet: changed while it was read" in result.stderr


def test_a_table_whose_counts_contradict_each_other_is_refused(folder, monkeypatch):
    """As one that grows between two queries, where no file shows it."""
    from kullback._errors import BadInput
    from kullback.data import counting, profile

    real = counting._grouped
    calls = []

    def growing(*arguments):
        keys, table = real(*arguments)
        calls.append(1)
        return keys, {name: values + (len(calls) > 1 and name == "n") for name, values in table.items()}

    monkeypatch.setattr(counting, "_grouped", growing)
    monkeypatch.setattr(counting, "EXPRESSIONS", 5)
    with pytest.raises(BadInput, match="changed while it was read"):
        profile(pl.read_csv("before.csv").drop("site"))


def test_a_million_categories_are_bounded(tmp_path):
    import duckdb

    for name, size in (("a", 400_000), ("b", 1_000_000)):
        # half of the rows share 5 values, the others are all different
        value = "CASE WHEN range % 2 = 0 THEN 'v' || range % 10 ELSE 'id ' || range END"
        query = f"SELECT {value} AS kind FROM range({2 * size})"
        duckdb.sql(f"COPY ({query}) TO '{tmp_path}/{name}.parquet' (FORMAT parquet)")
    found = drift(tmp_path / "a.parquet", tmp_path / "b.parquet", categories=50)["kind"]
    assert [cell.label for cell in found.cells] == ["v0", "v2", "v4", "v6", "v8", "(other)"]
    assert found.cells[-1].current == 1_000_000
    assert not found.drift


def test_nulls_that_come_up_are_drift(tmp_path):
    before = pl.DataFrame({"x": [float(i % 97) for i in range(2000)]})
    after = before.with_columns(x=pl.when(pl.int_range(2000) % 10 == 0).then(None).otherwise(pl.col("x")))
    gone = before.with_columns(x=pl.lit(None, dtype=pl.Float64))
    assert drift(before, after)["x"].drift
    found = drift(before, gone)["x"]
    assert found.drift
    assert "null: 0 % against 100 %" in found.marks


def test_what_is_constant_infinite_or_nan_is_named_with_its_mass():
    rows = 1000
    before = pl.DataFrame({"still": [7] * rows, "x": [float(i % 50) for i in range(rows)], "same": ["a"] * rows})
    wild = [float("nan")] * 50 + [float("inf")] * 20 + [float("-inf")] * 10 + [float(i % 50) for i in range(rows - 80)]
    after = pl.DataFrame({"still": [7] * 600 + [8] * 400, "x": wild, "same": ["a"] * rows})
    found = drift(before, after)
    assert "constant in the reference" in found["still"].marks
    assert found["still"].drift
    assert "NaN: 0 % against 5 %" in found["x"].marks
    assert "infinite: 0 against 30 rows" in found["x"].marks
    assert {c.label: c.current for c in found["x"].cells if c.reference == 0} == {"-inf": 10, "inf": 20, "NaN": 50}
    assert found["same"].test is None
    assert "one cell holds every row (a)" in found["same"].marks[0]
    assert "constant in the current table" in drift(after, before)["still"].marks


def test_a_column_without_values_has_the_kind_of_the_other_side(folder):
    """In CSV a column without values reads as text."""
    rows = "".join(f"{i % 7},{i % 2}\n" for i in range(200))
    (folder / "full.csv").write_text("x,y\n" + rows)
    (folder / "hollow.csv").write_text("x,y\n" + "".join(f",{i % 2}\n" for i in range(200)))
    found = drift("full.csv", "hollow.csv")
    assert found["x"].kind == "number"
    assert found["x"].cells[-1].label == "null"
    assert (found["x"].cells[-1].reference, found["x"].cells[-1].current) == (0, 200)
    assert [one.name for one in found.drifted] == ["x"]
    assert [one.name for one in drift("hollow.csv", "full.csv").drifted] == ["x"]


def test_a_signal_during_a_query_ends_with_130(folder, monkeypatch):
    from kullback.data import job

    def interrupted(*arguments, **settings):
        from kullback.data.engines import speaking

        with speaking("before.csv"):
            raise RuntimeError("Query interrupted")

    monkeypatch.setattr(job, "make_groups", interrupted)
    result = call("before.csv", "after.csv")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_the_demo_shows_real_data_within_a_minute(folder):
    result = call("--demo", "--out", "shown")
    assert result.exit_code in (0, 1), result.output
    said = " ".join(result.stdout.split())
    assert "public domain" in said
    assert (folder / "shown" / "report.html").stat().st_size < 90_000


def packages(folder, monkeypatch, **files):
    """Packages that hold nothing but these files, in place of those that are installed."""
    from kullback.data import demo

    for name, path in files.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        (folder / name / path).parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.setattr(demo, "install", lambda of: f"pip install 'kullback[{of}]'")


def test_the_demo_takes_the_census_where_nannyml_is_installed(folder, monkeypatch):
    rng = np.random.default_rng(0)
    path = "datasets/data/employment_MA_reference.pq"
    with monkeypatch.context() as patched:
        packages(folder, patched, nannyml=path)
        for name, shift in (("reference", 0), ("analysis", 30)):
            rows = 2000
            columns = {"AGEP": 40 + shift, "SCHL": 12, "MAR": 3, "id": 9, "year": 9, "prediction": 2}
            frame = {key: rng.poisson(mean, rows) for key, mean in columns.items()} | {"predicted_probability": 0.5}
            frame |= {"employed": 1} if name == "reference" else {}
            pl.DataFrame(frame).write_parquet(folder / "nannyml" / path.replace("reference", name))
        result = call("--demo", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert {one["column"]: one["drift"] for one in document["columns"]} == {"AGEP": True, "SCHL": False, "MAR": False}
    assert document["joint"]["columns"] == ["AGEP", "SCHL", "MAR"]
    assert "US Census Bureau" in document["notes"][-1]


def test_the_demo_says_what_to_install_where_it_finds_no_data(folder, monkeypatch):
    with monkeypatch.context() as patched:
        packages(folder, patched)
        result = call("--demo")
    assert result.exit_code == 2
    assert (
        result.stderr == "kullback drift: --demo needs the data of vega_datasets; write: pip install 'kullback[data]'\n"
    )


def test_help_names_all_three(folder):
    text = call("--help").stdout
    assert all(word in text for word in ("tables", "profile", "watch"))


def lightness(colour):
    """Relative luminance of "rgb(r, g, b)", by WCAG."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")])
def test_the_page_opens_in_a_browser_fits_and_can_be_read(folder, browser, width, scheme):
    """A script added for the test writes down what the browser laid out; the page itself has none."""
    page = render(drift("before.csv", "after.csv", joint_of=["age", "site"]))
    assert "<script" not in page
    probe = """<script>window.onload = () => { const wide = document.documentElement;
      const bars = [...document.querySelectorAll('.cells i')].filter(b => b.getBoundingClientRect().width > 1).length;
      const figures = document.querySelectorAll('figure').length;
      const told = [...document.querySelectorAll('td')].filter(t => t.innerText == 'DRIFT');
      const seen = told.length == 1 && told[0].getBoundingClientRect().right <= wide.clientWidth;
      const ink = getComputedStyle(document.body).color, ground = getComputedStyle(document.body).backgroundColor;
      document.title = JSON.stringify({fits: wide.scrollWidth <= wide.clientWidth, figures, bars, seen, ink, ground}) }
      </script>"""
    inner = folder / "inner.html"
    inner.write_text(page.replace("</body>", probe + "</body>"))
    # headless windows are no narrower than 500: a frame is
    outer = folder / "outer.html"
    outer.write_text(
        f'<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe><script>'
        "onload = () => setTimeout(() => document.body.append('laid out: ' + frames[0].document.title), 300)</script>"
    )
    with tempfile.TemporaryDirectory() as user:
        command = [
            *browser,
            "--allow-file-access-from-files",
            f"--user-data-dir={user}",
            "--virtual-time-budget=4000",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        ]
        done = subprocess.run(
            [*command, "--window-size=1400,1000", "--dump-dom", outer.as_uri()],
            capture_output=True, text=True, timeout=180, check=True,
        )  # fmt: skip
    found = json.loads(re.search(r"laid out: ({.*?})", done.stdout)[1])
    assert found["fits"], "the page is wider than its window"
    assert found["seen"], "the decision is out of sight"
    assert found["figures"] == 3
    assert found["bars"] >= 40
    ink, ground = lightness(found["ink"]), lightness(found["ground"])
    assert (ground < 0.1) == (scheme == "dark")
    assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 7.0


def test_the_process_says_one_line_and_nothing_of_duckdbs(folder):
    done = subprocess.run(
        [sys.executable, "-m", "kullback.cli", "drift", "before.csv", "none.csv"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "kullback drift: none.csv: there is no such file\n"


def test_without_the_extra_it_is_named(folder):
    code = (
        "import sys; sys.modules['narwhals'] = None; from kullback.data import drift; drift('before.csv', 'same.csv')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'kullback[data]'" in done.stderr
