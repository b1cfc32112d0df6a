"""Random command lines for `kullback kl`: random files, random distributions as text, random options.

Whatever is written, it ends with an answer or with one line; never with a traceback, a warning or a NaN.
Longer: python tests/kl_command/test_fuzz.py --examples 10000
"""

import argparse
import contextlib
import io
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("typer")
pl = pytest.importorskip("polars")

from typer.testing import CliRunner  # noqa: E402

from kullback.cli import app  # noqa: E402
from kullback.kl_command.text import ALLOWED  # noqa: E402

COMMAND = app()
# what a person never writes to the command, and so should not be told to write
PYTHON = re.compile(
    r"torch\.|estimate\.kl|kullback\.|\b(Samples|Counts|Probs|Logits|PlugIn|NearestNeighbours)\(|\w=\w|NoneType|Error\b"
)

number = st.one_of(
    st.sampled_from(["0", "1", "2", "-1", "0.5", "1e-300", "1e400", "-1e400", "1e308", "3.7", "100", "1e6", ".3", "7"]),
    st.floats(-10, 10).map(lambda x: f"{x:.3g}"),
    st.floats(0.01, 0.99).map(lambda x: f"{x:.3g}"),
)
junk = st.sampled_from(
    [*"x{}‖", "", "None", "True", "'a'", "1+1", "lambda: 0", "[]", "()", "a.b", "not 1", "*[1]", "1j", "nan"]
)
numbers = st.lists(number, min_size=1, max_size=4).map(lambda xs: f"[{','.join(xs)}]")


def call(argument):
    arguments = st.lists(argument, min_size=0, max_size=3)
    return st.builds(lambda name, xs: f"{name}({','.join(xs)})", st.sampled_from(sorted(ALLOWED)), arguments)


argument = st.one_of(number, number, number, numbers, numbers, junk)
distribution = st.one_of(
    st.builds(lambda a, b: f"Normal({a},{b})", number, number),
    call(number),
    call(argument),
    call(st.one_of(argument, call(argument))),
    st.builds(lambda a, b, n: f"Independent(Normal({a},{b}),{n})", numbers, numbers, argument),
    st.builds(lambda w, a, b: f"MixtureSameFamily(Categorical({w}),Normal({a},{b}))", numbers, numbers, numbers),
    st.builds("{}({})".format, st.sampled_from(["Evil", "Normal", "__import__", "Normal "]), st.text(max_size=12)),
    st.integers(1, 400).map(lambda n: "Normal(" * n + ")" * n),
    st.integers(1, 3000).map(lambda n: "Normal(" + "not " * n + "1,1)"),
    st.integers(1, 3000).map(lambda n: "Categorical([" + ",".join(["0.01"] * n) + "])"),
)

cell = st.one_of(
    number,
    number,
    number,
    st.sampled_from(["a", "b", "nan", "NA", "", "1,5", "$5 % $9", '"q', '"a,b"', "1 2", "x" * 50]),
)
name = st.sampled_from(["x", "y", "count", "prob", "share", "", "0", "$\\frac{$", "é", "_a", "country", "1"])


@st.composite
def csv_bytes(draw):
    width, height = draw(st.integers(1, 4)), draw(st.integers(0, 12))
    separator = draw(st.sampled_from([",", ",", ";", "\t", "|", " "]))
    cells = draw(st.sampled_from([number, cell, st.floats(-3, 3).map(str), st.integers(0, 40).map(str)]))
    rows = [[draw(cells) for _ in range(width)] for _ in range(height)]
    if draw(st.booleans()):
        rows.insert(0, [draw(name) for _ in range(width)])
    if draw(st.integers(0, 5)) == 0 and rows:
        rows[-1] = rows[-1][:-1]
    if draw(st.booleans()) and width == 2:
        rows = [[f"c{i}", row[-1]] for i, row in enumerate(rows)]
    text = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])).join(separator.join(row) for row in rows)
    text += draw(st.sampled_from(["", "\n", "\n\n"]))
    return text.encode(
        draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])), "replace"
    )


@st.composite
def npy_bytes(draw):
    shape = draw(st.sampled_from([(3,), (8,), (1, 3), (6, 2), (20, 2), (5, 1), (2, 2, 2), (0,), ()]))
    dtype = draw(st.sampled_from(["<f8", "<f4", ">f8", "<f2", "<i4", "<u8", "|b1", "<c16", "<U3", "<M8[D]"]))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    values = draw(
        st.sampled_from([random.normal(size=shape), random.poisson(9, shape), random.dirichlet(np.ones(3), shape)])
    )
    if draw(st.integers(0, 3)) == 0:
        values = np.full(shape, draw(st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e308, 1 / 3])))
    with contextlib.suppress(ValueError), np.errstate(all="ignore"):
        values = (
            np.asarray(values, dtype="O").astype(dtype) if dtype.startswith("<M") else np.asarray(values).astype(dtype)
        )
    file = io.BytesIO()
    np.save(file, values)
    return spoilt(draw, file.getvalue())


@st.composite
def parquet_bytes(draw):
    random = np.random.default_rng(draw(st.integers(0, 99)))
    columns = {
        "x": random.normal(size=8),
        "n": random.poisson(9, 8),
        "k": list("abcdefgh"),
        "t": [True, False] * 4,
        "l": [[1.0]] * 8,
        "g": [1.0, None] * 4,
    }
    chosen = draw(st.lists(st.sampled_from(sorted(columns)), min_size=1, max_size=3, unique=True))
    file = io.BytesIO()
    pl.DataFrame({key: columns[key] for key in chosen}).write_parquet(file)
    return file.getvalue()  # spoilt Parquet makes polars write to standard error by itself


def spoilt(draw, data):
    if draw(st.integers(0, 3)):
        return data
    cut, at = draw(st.integers(0, len(data))), draw(st.integers(0, max(0, len(data) - 1)))
    return data[:cut] if draw(st.booleans()) else data[:at] + draw(st.binary(max_size=4)) + data[at + 1 :]


content = st.one_of(csv_bytes(), csv_bytes(), npy_bytes(), parquet_bytes(), st.binary(max_size=60))
path = st.sampled_from(
    ["a.csv", "a.csv", "a.npy", "a.parquet", "a.tsv", "a.xlsx", "b", "-", "none.csv", ".", "a\0b.csv", "x" * 300]
)
flags = ["--both", "--json", "--json", "--rescale", "--by-position", "--contributions"]
flags += ["--drop-unseen", "--header", "--no-header"]
kinds = ["samples", "counts", "probs", "logits", "counts,probs", "probs,logits", "x", ","]
names = ["kl", "js", "renyi", "alpha", "jeffreys", "tv", "chi2", "cross_entropy", "hellinger"]
option = st.one_of(
    st.sampled_from(flags).map(lambda flag: (flag,)),
    st.sampled_from([("--plot", "out.svg"), ("--plot", "out.png"), ("--base", "2"), ("--json",)]),
    st.tuples(st.just("--as"), st.sampled_from(kinds)),
    st.tuples(st.sampled_from(["--base", "--level"]), number),
    st.tuples(st.just("--prior"), st.one_of(number, st.sampled_from(["kt", "laplace", "jeffreys", "nan"]))),
    st.tuples(
        st.sampled_from(["--columns", "--q-columns"]),
        st.sampled_from(["x", "1", "1,2", "x,y", "x,x", ",", '"', "count"]),
    ),
    st.tuples(st.just("--divergence"), st.sampled_from([*names, "foo", ""])),
    st.builds(lambda a, b: ("--divergence", f"{a}:{b}"), st.sampled_from(names), number),
)

# what is answered more often than not
positive = st.floats(0.05, 20).map(lambda x: f"{x:.4g}")
sensible = st.one_of(
    st.builds("Normal({},{})".format, number.filter(lambda x: "00" not in x), positive),
    st.builds("{}({})".format, st.sampled_from(["Poisson", "Exponential", "HalfNormal", "Chi2", "StudentT"]), positive),
    st.builds(
        "{}({},{})".format, st.sampled_from(["Gamma", "Beta", "Laplace", "Weibull", "LogNormal"]), positive, positive
    ),
)


@st.composite
def sensible_files(draw):
    """Two files that go together, by name."""
    random, kind = (
        np.random.default_rng(draw(st.integers(0, 999))),
        draw(st.sampled_from(["npy", "csv", "counts", "words"])),
    )
    rows, width = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    files = {}
    for side in "pq":
        if kind == "npy":
            file = io.BytesIO()
            np.save(file, draw(st.sampled_from([random.normal, random.random]))(size=(rows, width)))
            files[f"{side}.npy"] = file.getvalue()
        elif kind == "csv":
            lines = [",".join("xyzw"[:width]), *(",".join(map(str, row)) for row in random.normal(size=(rows, width)))]
            files[f"{side}.csv"] = "\n".join(lines).encode()
        elif kind == "counts":
            files[f"{side}.csv"] = "\n".join(
                ["k,count", *(f"c{i},{random.poisson(5) + (i == 0)}" for i in range(rows))]
            ).encode()
        else:
            files[f"{side}.csv"] = "\n".join(["word", *(random.choice(list("abc")) for _ in range(rows))]).encode()
    return files


@st.composite
def command_lines(draw):
    """(files, arguments, standard input)"""
    files, sides = {}, []
    kind = draw(st.sampled_from(["sensible", "sensible", "texts", "files", "files", "same", "mixed"]))
    if kind == "sensible":
        files = draw(sensible_files()) if draw(st.booleans()) else {}
        sides = [*files] or [draw(sensible), draw(sensible)]
        return files, [*sides, *(word for words in draw(st.lists(option, max_size=1)) for word in words)], b""
    for side in "pq":
        if kind == "texts" or (kind == "mixed" and draw(st.booleans())):
            sides.append(draw(distribution))
            continue
        if kind == "same" and files:
            sides.append(sides[0])
            continue
        given = draw(path)
        given = f"{side}{given}" if given[0] == "a" and "\0" not in given else given
        if given[0] in "pq":
            files[given] = draw(content)
        sides.append(given)
    options = [word for words in draw(st.lists(option, max_size=3)) for word in words]
    return files, [*sides, *options], draw(content) if "-" in sides else b""


def run(line):
    files, arguments, standard_input = line
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for file, data in files.items():
                Path(file).write_bytes(data)
            return CliRunner().invoke(COMMAND, ["kl", *arguments], input=standard_input)
        finally:
            os.chdir(before)


def check(line):
    found = run(line)
    _, arguments, _ = line
    told = (arguments, found.stdout, found.stderr)
    assert found.exception is None or isinstance(found.exception, SystemExit), told
    assert found.exit_code in (0, 2), told
    if found.exit_code == 2:
        assert found.stdout == "", told
        assert found.stderr.count("\n") == 1, told
        assert found.stderr.startswith("kullback kl: "), told
        own = found.stderr
        for word in arguments:
            own = own.replace(word, "")
        if not any("(" in word for word in arguments[:2]):
            assert not PYTHON.search(own), told
        return "refused"
    assert found.stderr == "", told
    if "--json" in arguments:
        document = json.loads(found.stdout, parse_constant=lambda constant: pytest.fail(f"{constant} in JSON"))
        for result in document["results"]:
            assert (result["value"] is None) == result["infinite"], told
            assert result["value"] is None or result["value"] >= 0.0, told
            low, high = result["interval"] or (0.0, None)
            assert low >= 0.0, told
            assert high is None or high >= low, told
    else:
        first = found.stdout.splitlines()[0]
        assert re.search(r"\)  +(infinite|\d[\d.e+-]*( nats| bits| base \S+)?)$", first), told
        assert not re.search(r"(?m)^(interval|rows) .*(nan|\binf\b)", found.stdout), told
    return "answered"


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(command_lines())
def test_random_command_lines_end_with_an_answer_or_with_one_line(line):
    check(line)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(distribution)
def test_random_texts_are_a_distribution_or_refused(text):
    from kullback._errors import BadInput
    from kullback.kl_command.text import parse_distribution

    with contextlib.suppress(BadInput):
        parse_distribution(text)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content, st.sampled_from(["a.csv", "a.npy"]))
def test_random_files_are_read_or_refused(data, file):
    from kullback._errors import BadInput
    from kullback.kl_command.content import Wanted, read

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BadInput):
        (Path(folder) / file).write_bytes(data)
        read(str(Path(folder) / file), Wanted())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=10_000)
    wanted = parser.parse_args().examples
    ends, slowest, start = Counter(), (0.0, None), time.monotonic()

    failures = []

    @settings(max_examples=wanted, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(command_lines())
    def many(line):
        global slowest
        begun = time.process_time()
        try:
            ends[check(line)] += 1
        except Exception as error:
            ends["failed"] += 1
            failures.append((line, error))
            print(line, repr(error)[:2000], file=sys.stderr, flush=True)
        slowest = max(slowest, (time.process_time() - begun, str(line[1])), key=lambda pair: pair[0])
        if sum(ends.values()) % 500 == 0:
            print(dict(ends), f"{time.monotonic() - start:.0f} s", "slowest:", slowest, file=sys.stderr, flush=True)

    many()
    print(dict(ends), f"{time.monotonic() - start:.0f} s", "slowest:", slowest)
    sys.exit(bool(failures))
