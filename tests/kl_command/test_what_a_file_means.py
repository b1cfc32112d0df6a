"""What `kullback kl` takes a file for, and how it says so: each test is named after a behaviour that was once wrong."""

import io
import json
import math
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from kullback import divergences, kl
from kullback.cli import app
from kullback.forms.finite import Logits, Probs
from kullback.kl_command import choices

pytest.importorskip("matplotlib")


def run(*arguments, stdin=b""):
    return CliRunner().invoke(app(), ["kl", *map(str, arguments)], input=stdin)


def document(*arguments, stdin=b""):
    found = run(*arguments, "--json", stdin=stdin)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def value(*arguments, stdin=b""):
    return document(*arguments, stdin=stdin)["results"][0]["value"]


def refused(*arguments, stdin=b""):
    found = run(*arguments, stdin=stdin)
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert found.exception is None or isinstance(found.exception, SystemExit)
    return found.stderr.removeprefix("kullback kl: ").rstrip()


def csv(file, names, rows, separator=","):
    lines = [separator.join(names)] if names else []
    lines += [separator.join(f"{x:.6f}" for x in row) for row in rows]
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def draws(here):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(300, 2)) * [1, 5], random.normal(size=(300, 2)) * [1, 5] + [0.3, 0]
    csv(here / "a.csv", ["x", "y"], x)
    csv(here / "b.csv", ["x", "y"], y)
    csv(here / "turned.csv", ["y", "x"], y[:, ::-1])
    csv(here / "other.csv", ["age", "height"], y)
    csv(here / "more.csv", ["x", "y", "z"], np.column_stack([y, y[:, 0]]))
    csv(here / "bare.csv", [], y)
    return here


# W1: columns are matched by name


def test_columns_in_another_order_give_the_same_number(draws):
    turned = document("a.csv", "turned.csv")
    assert turned["results"][0]["value"] == value("a.csv", "b.csv")
    assert turned["q"]["notes"] == ["columns matched by name, in another order"]


def test_columns_with_other_names_are_refused_with_the_flag_that_decides(draws):
    assert refused("a.csv", "other.csv") == (
        "a.csv has the columns x, y and other.csv has age, height; write --by-position if they mean the same in this "
        "order"
    )
    assert "write --columns x,y, or --by-position" in refused("a.csv", "more.csv")
    assert value("a.csv", "other.csv", "--by-position") == value("a.csv", "b.csv")
    assert value("a.csv", "more.csv", "--columns", "x,y") == value("a.csv", "b.csv")


def test_a_file_without_names_is_matched_by_position_and_says_so(draws):
    found = document("a.csv", "bare.csv")
    assert found["results"][0]["value"] == value("a.csv", "b.csv")
    assert "columns matched by position" in found["q"]["notes"]


def test_one_table_can_be_both_sides_by_its_columns(here):
    (here / "both.csv").write_text("desk,p,q\nsport,0.5,0.3\npolitics,0.3,0.6\nculture,0.2,0.1\n")
    found = value("both.csv", "both.csv", "--columns", "desk,p", "--q-columns", "desk,q", "--as", "probs")
    assert found == pytest.approx(0.186098093827, abs=1e-12)
    assert "each column sums to 1" in refused("both.csv", "both.csv", "--columns", "p,q")


# W4: what looks like two things is refused


def test_probabilities_that_sum_to_nearly_one_are_ambiguous(here):
    p = np.full(20, 0.05)
    p[0], q = 0.06, np.roll(p, 1)
    np.save("p.npy", p)
    np.save("q.npy", np.roll(p, 3) + np.roll(q, 5) * 0)
    assert refused("p.npy", "q.npy") == (
        "p.npy: no number is below 0 and their sum, 1.01, is near 1, which does not tell what they are; write "
        "--as probs --rescale or --as samples or --as counts"
    )
    assert refused("p.npy", "q.npy", "--as", "probs").startswith("p.npy: sums to 1.01, but probabilities sum to 1")
    found = document("p.npy", "q.npy", "--as", "probs", "--rescale")
    exact = kl(Probs(torch.from_numpy(p / p.sum())), Probs(torch.from_numpy(np.roll(p, 3) / p.sum())))
    assert found["results"][0]["value"] == pytest.approx(float(exact), rel=1e-9)
    assert "divided by their sum, 1.01, as asked" in found["p"]["notes"][0]


@pytest.mark.parametrize("shape", [(8,), (8, 2)])
@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint8])
def test_whole_numbers_in_an_array_are_ambiguous(here, shape, dtype):
    np.save("n.npy", np.arange(1, 1 + math.prod(shape)).reshape(shape).astype(dtype))
    assert "all numbers are whole" in refused("n.npy", "n.npy")
    assert "--as samples or --as counts" in refused("n.npy", "n.npy")
    assert document("n.npy", "n.npy", "--as", "samples")["p"]["held"] == "samples"
    if len(shape) == 1:
        assert document("n.npy", "n.npy", "--as", "counts")["p"]["held"] == "counts"


def test_a_row_of_zeros_and_one_beside_names_is_ambiguous(here):
    (here / "one.csv").write_text("c,amount\na,0\nb,1\n")
    assert "--as counts or --as probs" in refused("one.csv", "one.csv")


def test_why_a_file_is_taken_for_what_it_is(here):
    (here / "p.csv").write_text("0.5\n0.3\n0.2\n")
    (here / "n.csv").write_text("desk,count\nsport,3\npolitics,5\n")
    (here / "w.csv").write_text("desk\nsport\npolitics\nsport\n")
    (here / "x.csv").write_text("height\n" + "\n".join(map(str, range(20))) + "\n")
    assert document("p.csv", "p.csv")["p"]["because"] == "the numbers sum to 1 and none is below 0"
    assert document("n.csv", "n.csv")["p"]["because"] == "the heading 'count' says so"
    assert document("w.csv", "w.csv")["p"]["because"] == "one column of text, under the heading 'desk', is counted"
    assert document("x.csv", "x.csv")["p"]["because"] == "columns under names"
    assert "; taken for counts: the heading 'count' says so" in run("n.csv", "n.csv").stdout
    assert document("p.csv", "p.csv", "--as", "probs")["p"]["because"] == ""


def test_a_first_line_that_may_be_a_heading_or_a_row_is_refused(here):
    (here / "bare.csv").write_text("FR,120\nDE,80\n")  # the first row was once lost as a heading
    (here / "numbered.csv").write_text("0,1\n0.5,0.25\n0.75,1.5\n")
    for file in ("bare.csv", "numbered.csv"):
        assert "write --header or --no-header" in refused(file, file)
    assert document("bare.csv", "bare.csv", "--no-header")["p"]["shape"] == [2]
    assert document("numbered.csv", "numbered.csv", "--header")["p"]["shape"] == [2, 2]
    (here / "words.csv").write_text("b\na\nb\n")
    assert document("words.csv", "words.csv")["p"]["because"] == "one column of text, without a heading, is counted"


def test_saved_row_numbers_are_no_column(here):
    (here / "i.csv").write_text(",x\n0,1.5\n1,2.5\n2,3.25\n")
    assert "column 1 has no name, as saved row numbers have none" in refused("i.csv", "i.csv")
    assert document("i.csv", "i.csv", "--columns", "x")["p"]["shape"] == [3, 1]


def test_columns_of_an_array_are_chosen_by_number(here):
    np.save("a.npy", np.random.default_rng(0).normal(size=(50, 3)))
    assert document("a.npy", "a.npy", "--columns", "3,1")["p"]["shape"] == [50, 2]
    assert "an array has columns 1 to 3" in refused("a.npy", "a.npy", "--columns", "4")


@pytest.mark.parametrize("text", ["1e308;1e308\n", "x,y\n1e308,1e308\n1e308,2.5\n", "a,1e308\nb,1e308\n"])
def test_numbers_whose_sum_overflows_warn_nobody(here, text):
    (here / "huge.csv").write_text(text)
    found = run("huge.csv", "huge.csv")  # an answer or a refusal; a warning is an error here
    assert found.exit_code in (0, 2), found.output
    assert found.exception is None or isinstance(found.exception, SystemExit)


def test_an_array_of_huge_numbers_and_a_picture_of_two_warn_nobody(here):
    np.save("huge.npy", np.full((4, 2), 1e308))
    (here / "two.csv").write_text("1\n-8.34\n")
    for found in (run("huge.npy", "huge.npy"), run("two.csv", "two.csv", "--plot", "out.svg")):
        assert found.exit_code in (0, 2), found.output
        assert found.exception is None or isinstance(found.exception, SystemExit)


def test_a_prior_that_overflows_is_refused_in_the_commands_words(here):
    (here / "p.csv").write_text("k,count\na,4\nb,7\n")
    assert "--prior is '1e308'" in refused("p.csv", "p.csv", "--prior", "1e308")
    assert "above 0 and below 2^53" in refused("p.csv", "p.csv", "--prior", "0")


@pytest.mark.parametrize("order", ["0.892", "0.01", "2.5"])
def test_no_divergence_is_printed_as_minus_zero(here, order):
    assert "-0 " not in run("Poisson(9.83)", "Poisson(9.83)", "--divergence", f"renyi:{order}").stdout


def test_an_array_that_python_2_wrote_warns_nobody(here):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (2L, 1L), }"
    numbers = np.array([1.5, 2.5]).tobytes()
    (here / "old.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + numbers)
    assert document("old.npy", "old.npy")["p"]["shape"] == [2, 1]


# W12, C6, C8: distributions as text


@pytest.mark.parametrize("number", ["1.5", "[1,2]", "1e400", "Normal(0,1)", "-1", "9e99"])
def test_a_number_of_axes_is_a_whole_number(number):
    told = refused(f"Independent(Normal([0,1],[1,1]),{number})", "Normal(0,1)")
    assert "reinterpreted_batch_ndims is " in told
    assert "it must be a whole number" in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Binomial(1e400,.5)", "total_count is inf, but it must be a whole number"),
        ("Binomial(2.5,.5)", "total_count is 2.5"),
        ("Normal(1e400,1)", "beyond the range of double precision"),
        (f"Normal(1{'0' * 400},1)", "beyond the range of double precision"),
        ("Normal(" + "not " * 2000 + "1,1)", "is not a number, a list of numbers or a distribution"),
        ("Normal(" + "-" * 100 + "1,1)", "nested more than 20 deep"),
        ("Dirichlet([])", "a list needs at least one number"),
        ("Normal([0,1],1)", "a batch of 2 distributions; write one number a parameter, or Independent("),
        ("Normal(0 is 1,1)", "nothing else may be written"),
    ],
)
def test_texts_that_are_no_distribution_are_refused_in_one_line(text, words):
    assert words in refused(text, "Normal(0,1)")


def test_a_long_text_that_is_a_distribution_is_one():
    text = f"Categorical([{','.join(['0.01'] * 100)}])"
    assert value(text, text) == 0.0


# C14, and its class: nothing that is no number is printed as an answer


def test_an_order_beyond_double_precision_is_refused():
    assert "a number beyond 1e+12 is lost" in refused("Normal(0,1)", "Normal(1,2)", "--divergence", "renyi:1e308")


def test_a_value_that_is_no_number_is_refused(monkeypatch):
    from kullback import verbs

    nan = torch.tensor(math.nan, dtype=torch.float64)
    monkeypatch.setattr(verbs, "kl", lambda p, q: nan)
    assert "has no number in double precision" in refused("Laplace(0,1e-300)", "Normal(0,1)")


def test_an_infinite_value_is_said_in_a_word(here):
    (here / "p.csv").write_text("0.5\n0.5\n0.0\n")
    (here / "q.csv").write_text("0.5\n0.0\n0.5\n")
    assert run("p.csv", "q.csv").stdout.splitlines()[0].split() == ["KL(P‖Q)", "infinite"]
    found = document("p.csv", "q.csv")["results"][0]
    assert (found["value"], found["infinite"]) == (None, True)


# C8: files that lie


def npy(header, data=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            npy("{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000,), }"),
            "its header promises (100000000000,)",
        ),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': ((((("), "its header cannot be read"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", b"12345678"), "but 8 follow"),
        (b"\x93NUMPY", "its header cannot be read"),
        (b"", "cannot be read as CSV: it is empty"),
        (b"PK\x03\x04....", "is a zip archive"),
        (b"\x1f\x8b....", "compressed with gzip"),
    ],
)
def test_a_file_that_lies_is_refused_by_name(here, data, words):
    (here / "a.npy").write_bytes(data)
    assert words in refused("a.npy", "a.npy")


@pytest.mark.parametrize(("dtype", "words"), [("c16", "complex numbers"), ("?", "truth values"), ("U3", "text")])
def test_values_that_are_no_real_numbers_are_refused_by_name(here, dtype, words):
    np.save("a.npy", np.ones(3).astype(dtype))
    assert f"it holds {words}, and real numbers are needed" in refused("a.npy", "a.npy")


def test_a_cell_of_any_length_is_one_line(here):
    (here / "a.csv").write_text("x" * 140_000 + "\n1\n2\n")
    assert "line 1 cannot be read as CSV (a cell is longer than any number or name)" in refused("a.csv", "a.csv")


def test_a_column_named_twice_is_refused(draws):
    assert refused("a.csv", "b.csv", "--columns", "x,x") == "--columns names 'x' twice; name each column once"
    (draws / "twice.csv").write_text("x,x\n1.5,2\n2.5,4\n")
    assert "two columns have the name 'x'" in refused("twice.csv", "b.csv")


def test_a_file_that_cannot_be_written_is_one_line(draws):
    (draws / "out.svg").mkdir()
    assert "--plot out.svg: is a folder" in refused("a.csv", "b.csv", "--plot", "out.svg")


# C5, C7: pictures


def test_names_with_dollars_are_text_in_pictures(here):
    (here / "a.csv").write_text("k,$\\frac{$\n$5 % $9,3\n<b>,4\n")
    (here / "b.csv").write_text("k,$\\frac{$\n$5 % $9,5\n<b>,1\n")
    assert run("a.csv", "b.csv", "--plot", "out.svg").exit_code == 0
    text = (here / "out.svg").read_text()
    assert "<!-- $5 % $9 -->" in text
    (here / "x.csv").write_text("$\\frac{$\n" + "".join(f"{x}\n" for x in np.random.default_rng(0).normal(size=50)))
    (here / "y.csv").write_text("$\\frac{$\n" + "".join(f"{x}\n" for x in np.random.default_rng(1).normal(size=50)))
    assert run("x.csv", "y.csv", "--plot", "line.svg").exit_code == 0
    assert "<!-- $\\frac{$ -->" in (here / "line.svg").read_text()


@pytest.mark.parametrize("rate", ["1e5", "1e6"])
def test_a_picture_has_a_bounded_number_of_marks(here, rate):
    start = time.process_time()
    assert run(f"Poisson({rate})", f"Poisson({2 * float(rate):g})", "--plot", "out.svg").exit_code == 0
    assert time.process_time() - start < 20
    assert (here / "out.svg").stat().st_size < 300_000


def test_few_whole_numbers_are_drawn_each(here):
    assert run("Poisson(3)", "Poisson(5)", "--plot", "out.svg").exit_code == 0
    places = ElementTree.fromstring((here / "out.svg").read_text()).findall(".//{*}use")
    assert len(places) > 40  # a mark for each whole number, twice above and once below, and the ticks


# P9: nothing below 0, and the same file is recognised


def test_the_same_file_is_recognised(draws):
    found = document("a.csv", "a.csv")["results"][0]
    assert (found["value"], found["interval"], found["exact"]) == (0.0, None, True)
    assert "the same draws" in found["verdict"]
    lines = (draws / "a.csv").read_text().splitlines()
    (draws / "shuffled.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    assert value("a.csv", "shuffled.csv") == 0.0


def test_the_same_counts_have_no_divergence(here):
    (here / "n.csv").write_text("k,count\na,30\nb,50\nc,20\n")
    found = document("n.csv", "n.csv", "--both")["results"]
    assert [one["value"] for one in found] == [0.0, 0.0]
    entropy = -(0.3 * math.log(0.3) + 0.5 * math.log(0.5) + 0.2 * math.log(0.2))
    assert value("n.csv", "n.csv", "--divergence", "cross_entropy") == pytest.approx(entropy, rel=1e-12)


def test_intervals_stop_at_zero_in_text_and_picture(here):
    (here / "a.csv").write_text("k,count\na,30\nb,50\nc,20\n")
    (here / "b.csv").write_text("k,count\na,31\nb,50\nc,19\n")
    found = document("a.csv", "b.csv")["results"][0]
    assert found["value"] >= 0.0
    assert found["interval"][0] == 0.0 < found["interval"][1]
    assert run("a.csv", "b.csv", "--plot", "out.svg").exit_code == 0
    assert re.search(r"<!-- KL\(P‖Q\) = \d[^-]*\(0 to ", (here / "out.svg").read_text())


# P10: logits, and a row for each distribution


def test_a_batch_of_rows_gives_its_mean_with_a_standard_error(here):
    random = np.random.default_rng(0)
    a = random.normal(size=(40, 5)).astype(np.float32)
    b = a + 0.3 * random.normal(size=(40, 5)).astype(np.float32)
    np.save("a.npy", a)
    np.save("b.npy", b)
    rows = kl(Logits(torch.from_numpy(a).double()), Logits(torch.from_numpy(b).double()))
    found = document("a.npy", "b.npy", "--as", "logits", "--base", "2")["results"][0]
    assert found["value"] == pytest.approx(rows.mean().item() / math.log(2), rel=1e-12)
    assert found["stderr"] == pytest.approx(rows.std().item() / math.sqrt(40) / math.log(2), rel=1e-12)
    assert found["rows"]["number"] == 40
    assert found["rows"]["low"] == pytest.approx(rows.min().item() / math.log(2), rel=1e-12)
    np.save("p.npy", torch.softmax(torch.from_numpy(a).double(), -1).numpy())
    assert value("p.npy", "b.npy", "--as", "probs,logits") == pytest.approx(rows.mean().item(), rel=1e-12)
    assert "mean of 40 (standard error" in run("a.npy", "b.npy", "--as", "logits").stdout
    np.save("one.npy", b[0])
    first = kl(Logits(torch.from_numpy(a).double()), Logits(torch.from_numpy(b[0]).double())).mean().item()
    assert value("a.npy", "one.npy", "--as", "logits") == pytest.approx(first, rel=1e-12)


def test_batches_of_other_lengths_are_refused(here):
    np.save("a.npy", np.zeros((3, 4)))
    np.save("b.npy", np.zeros((2, 4)))
    assert "3" in refused("a.npy", "b.npy", "--as", "logits")
    np.save("c.npy", np.full((2, 4), 0.25))
    (here / "n.csv").write_text("3\n4\n5\n6\n")
    assert "Q holds 2 rows; beside counts it must be one" in refused("n.csv", "c.npy", "--as", "counts,probs")


def test_some_infinite_rows_are_counted(here):
    np.save("p.npy", np.array([[0.5, 0.5], [0.5, 0.5]]))
    np.save("q.npy", np.array([[0.5, 0.5], [1.0, 0.0]]))
    found = document("p.npy", "q.npy")["results"][0]
    assert (found["value"], found["infinite"], found["rows"]["infinite"]) == (None, True, 1)
    assert "1 of 2 are infinite, the others from 0 to 0" in run("p.npy", "q.npy").stdout


# P11: numbers rounded to float32


def test_a_float32_softmax_held_in_float64_is_recognised(here):
    x = torch.randn(200, 3000, generator=torch.Generator().manual_seed(0))
    p, q = (torch.softmax(y, -1).double() for y in (x, x.flip(0)))
    assert (p.sum(-1) - 1).abs().max() > 1e-8
    np.save("p.npy", p.numpy())
    np.save("q.npy", q.numpy())
    found = document("p.npy", "q.npy")
    assert "each row was divided by its sum" in found["p"]["notes"][0]
    assert found["p"]["notes"][0].endswith("rounded to float32")
    exact = kl(Logits(x.double()), Logits(x.flip(0).double())).mean().item()
    assert found["results"][0]["value"] == pytest.approx(exact, rel=1e-6)


# P16: what each category adds


def test_contributions_sum_to_the_value(here):
    (here / "p.csv").write_text("desk,prob\nsport,0.5\npolitics,0.3\nculture,0.2\n")
    (here / "q.csv").write_text("desk,prob\nculture,0.1\nsport,0.3\npolitics,0.6\n")
    found = document("p.csv", "q.csv", "--contributions", "--base", "2")
    terms = {one["category"]: one["value"] for one in found["contributions"]}
    assert terms["politics"] == pytest.approx(0.3 * math.log2(0.3 / 0.6), rel=1e-12)
    assert sum(terms.values()) == pytest.approx(found["results"][0]["value"], rel=1e-12)
    lines = run("p.csv", "q.csv", "--contributions").stdout.splitlines()
    assert lines[-3].split() == ["+0.255413", "sport"]
    assert "contributions are those of categories" in refused("Normal(0,1)", "Normal(1,1)", "--contributions")


def test_a_batch_has_the_mean_contributions(here):
    a = np.random.default_rng(0).normal(size=(7, 4))
    np.save("a.npy", a)
    np.save("b.npy", a[::-1] * 0.5)
    found = document("a.npy", "b.npy", "--as", "logits", "--contributions")
    total = sum(one["value"] for one in found["contributions"])
    assert total == pytest.approx(found["results"][0]["value"], rel=1e-12)


# P17: as people expect


def test_the_version():
    import kullback

    found = CliRunner().invoke(app(), ["--version"])
    assert (found.exit_code, found.stdout) == (0, f"kullback {kullback.__version__}\n")


def test_flags_are_shown_as_flags():
    shown = CliRunner().invoke(app(), ["kl", "--help"]).stdout
    assert "--both " in shown
    assert "<bool>" not in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["kl", "a.csv"], "kullback kl: Missing argument 'Q'.\n"),
        (["kl", "a.csv", "b.csv", "--bse", "2"], "kullback kl: No such option: --bse"),
        (["kl", "a.csv", "b.csv", "--level", "high"], "kullback kl: Invalid value for '--level'"),
        (["lk"], "kullback: No such command 'lk'."),
    ],
)
def test_what_is_wrong_with_the_line_is_one_line_too(arguments, line):
    found = CliRunner().invoke(app(), arguments)
    assert found.exit_code == 2
    assert found.stderr.startswith(line)
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("option", [("--prior", "jeffreys"), ("--drop-unseen",)])
def test_options_of_counts_are_refused_for_probabilities(here, option):
    (here / "p.csv").write_text("0.5\n0.3\n0.2\n")
    assert f"{option[0]} is for counts, and P is taken for probs" in refused("p.csv", "p.csv", *option)


def test_standard_input_is_a_dash(draws):
    data = (draws / "a.csv").read_bytes()
    assert value("-", "b.csv", stdin=data) == value("a.csv", "b.csv")
    file = io.BytesIO()
    np.save(file, np.array([0.5, 0.3, 0.2]))
    (draws / "p.csv").write_text("0.5\n0.3\n0.2\n")
    assert value("p.csv", "-", stdin=file.getvalue()) == 0.0
    assert "cannot both be standard input" in refused("-", "-")


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_pipe_can_be_read(draws):
    command = f"{sys.executable} -m kullback.cli kl <(cat a.csv) b.csv --json"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["results"][0]["value"] == value("a.csv", "b.csv")


def test_a_unit_is_refused_for_what_has_none():
    assert (
        refused("Normal(0,1)", "Normal(1,1)", "--divergence", "tv", "--base", "2")
        == "--base: tv has no unit; leave it out"
    )


# P24: CSV of all kinds


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_recognised(draws, separator):
    random = np.random.default_rng(5)
    rows = random.normal(size=(60, 2))
    csv(draws / "comma.csv", ["x", "y"], rows)
    csv(draws / "other.csv", ["x", "y"], rows, separator)
    assert value("a.csv", "other.csv") == value("a.csv", "comma.csv")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_are_recognised(draws, encoding, end):
    text = (draws / "b.csv").read_text().replace("\n", end)
    (draws / "other.csv").write_bytes(text.encode(encoding))
    assert value("a.csv", "other.csv") == value("a.csv", "b.csv")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("x,y\n1,2\n".encode("utf-16-le"), "UTF-16 without its mark"),
        ("café,count\nthé,3\n".encode("latin-1"), "line 1 is not UTF-8 (byte 0xe9)"),
        (b"x;y\n1,5;2,5\n1,25;2,5\n", "nearly a number"),
        (b"x\n1 000\n2 000\n", "nearly a number"),
        (b"1.0 2.0\n3.0 4.0\n", "nearly a number"),
        (b"x,y\n1,2\n\n3,4\n", "line 3 is blank"),
        (b"x,y\n1,2\n3\n", "line 3 has 1 cells but the first line 2"),
        (b'x,y\n1,"2\n', "its quotes"),
        (b"x,y\n1,2\n3,NA\n", "row 1 has 'NA' in column 'y'"),
        (b"x\n1\n1e999\n", "row 1 holds inf"),
        (b"x\n1_000\n2_000\n", "nearly a number"),
    ],
)
def test_other_csv_is_refused_by_name(here, data, words):
    (here / "a.csv").write_bytes(data)
    assert words in refused("a.csv", "a.csv")


def test_parquet_of_other_kinds_is_refused_by_name(here):
    pl.DataFrame({"l": [[1.0], [2.0]], "d": [1, 2]}).write_parquet("a.parquet")
    assert "column 'l' holds List(Float64), but numbers or text are needed" in refused("a.parquet", "a.parquet")
    pl.DataFrame({"g": [1.5, None]}).write_parquet("g.parquet")
    assert "row 1 has no value in column 'g'" in refused("g.parquet", "g.parquet")


def test_large_files_are_read_as_fast_as_numbers_can_be(here):
    random = np.random.default_rng(0)
    csv(here / "big.csv", ["x", "y"], random.normal(size=(200_000, 2)))
    from kullback.kl_command.content import Wanted, read

    start = time.process_time()
    assert read("big.csv", Wanted()).values.shape == (200_000, 2)
    assert time.process_time() - start < 5


# P5: the command speaks of its flags


def test_advice_is_in_flags_and_not_in_python(here):
    (here / "p.csv").write_text("k,count\na,30\nb,50\nc,20\n")
    (here / "q.csv").write_text("k,count\na,31\nb,50\n")
    found = document("p.csv", "q.csv")["results"][0]
    assert "Write --prior jeffreys, or --drop-unseen, or merge categories; the first is 'c'" in found["verdict"]
    assert "PlugIn" not in run("p.csv", "q.csv").stdout
    (here / "probs.csv").write_text("k,prob\na,0.5\nb,0.5\n")
    beside = document("p.csv", "probs.csv")["results"][0]
    assert beside["verdict"] == "P has seen 'c', to which Q gives no probability"


# C9: a terminal with ASCII only


def test_an_ascii_terminal_gets_two_bars(here):
    (here / "p.csv").write_text("0.5\n0.3\n0.2\n")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "kullback.cli", "kl", "p.csv", "Normal(0,1", "--both"],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    done = subprocess.run(
        [sys.executable, "-m", "kullback.cli", "kl", "p.csv", "p.csv", "--both"],
        capture_output=True,
        env=environment,
        check=True,
    )
    assert done.stdout.decode("ascii").splitlines()[0].split() == ["KL(P||Q)", "0", "nats"]


# the table of divergences is the command's


def test_every_divergence_of_the_table_is_offered(here):
    (here / "p.csv").write_text("0.5\n0.3\n0.2\n")
    (here / "q.csv").write_text("0.3\n0.6\n0.1\n")
    p, q = (Probs(torch.tensor(x, dtype=torch.float64)) for x in ([0.5, 0.3, 0.2], [0.3, 0.6, 0.1]))
    from kullback import verbs

    for row in divergences.TABLE:
        name, _, number = row.name.rstrip(")").partition("(")
        text = f"{name}:{number}" if number else name
        expected = float(verbs.measure(row, p, q))
        assert value("p.csv", "q.csv", "--divergence", text) == pytest.approx(expected, rel=1e-12), text
        assert any(each.partition(":")[0] == name for each in choices.written())
