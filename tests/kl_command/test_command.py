import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from kullback import Samples, estimate
from kullback.cli import app
from kullback.kl_command.text import ALLOWED, parse_distribution


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    write = {
        "a.csv": "x\n" + "\n".join(f"{v:.6f}" for v in random.normal(0, 1, 800)),
        "b.csv": "\n".join(f"{v:.6f}" for v in random.normal(1, 1, 900)),  # no header
        "c1.csv": "country,count\nFR,120\nDE,80\nIT,40\nES,60\n",
        "c2.csv": "country,count\nDE,70\nFR,140\nIT,60\nUK,30\nES,50\n",
        "news_p.csv": "0.5\n0.3\n0.2\n",
        "news_q.csv": "0.3\n0.6\n0.1\n",
        "long.csv": "0.25\n0.25\n0.25\n0.25\n",
        "named.csv": "desk,share\nsport,0.3\npolitics,0.5\nentertainment,0.2\n",
        "words.csv": "g\n" + "b\na\nb\n" * 20,
        "nan.csv": "x\n1\nnan\n2\n",
        "gap.csv": "x,y\n1,2\n,3\n2,3\n",
        "typo.csv": "x\n1\n2\n3x\n4\n",
        "empty.csv": "",
        "header.csv": "x\n",
        "text.csv": "a,b,c\n1,2,x\n3,4,y\n",
        "twice.csv": "country,count\nFR,1\nFR,2\n",
        "half.csv": "country,amount\nFR,1.5\nDE,2.5\n",
        "data.xlsx": "",
    }
    for name, text in write.items():
        (tmp_path / name).write_text(text)
    np.save("a2.npy", random.normal(0, 1, (400, 2)))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    pl.DataFrame({"u": random.normal(0.5, 1, 400), "v": random.normal(0, 1, 400)}).write_parquet("b2.parquet")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app(), ["kl", *arguments])


def document(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_samples_in_csv_with_and_without_header(files):
    (found,) = document("a.csv", "b.csv")["results"]
    assert found["direction"] == "KL(P‖Q)"
    assert found["unit"] == "nats"
    assert (found["n"], found["m"], found["exact"]) == (800, 900, False)
    assert found["interval"][0] < 0.5 < found["interval"][1]
    assert found["method"] == "NearestNeighbours()"


def test_samples_in_npy_and_parquet_both_ways_in_bits(files):
    there, back = document("a2.npy", "b2.parquet", "--both", "--base", "2")["results"]
    assert (there["direction"], back["direction"]) == ("KL(P‖Q)", "KL(Q‖P)")
    assert there["unit"] == "bits"
    for found in (there, back):
        assert abs(found["value"] - 0.125 / math.log(2)) < 4 * found["stderr"]


def test_probabilities_are_exact(files):
    answer = document("news_p.csv", "news_q.csv", "--base", "2")
    assert answer["results"][0]["value"] == pytest.approx(0.268482797083, abs=1e-12)
    assert answer["results"][0]["exact"] is True
    assert answer["p"] == {
        "given": "news_p.csv",
        "held": "probs",
        "because": "the numbers sum to 1 and none is below 0",
        "notes": [],
        "shape": [3],
    }
    shown = run("news_p.csv", "news_q.csv").stdout
    assert shown.splitlines()[0].split() == ["KL(P‖Q)", "0.186098", "nats"]
    reverse = document("news_q.csv", "news_p.csv")["results"][0]["value"]
    assert document("news_p.csv", "news_q.csv", "--both")["results"][1]["value"] == reverse


def test_divergences_of_probabilities(files):
    def value(name):
        return document("news_p.csv", "news_q.csv", "--divergence", name)["results"][0]["value"]

    assert value("tv") == pytest.approx(0.3, abs=1e-12)
    assert value("chi2") == pytest.approx(0.04 / 0.3 + 0.09 / 0.6 + 0.01 / 0.1, rel=1e-12)
    affinity = math.sqrt(0.15) + math.sqrt(0.18) + math.sqrt(0.02)
    assert value("hellinger") == pytest.approx(math.sqrt(1 - affinity), rel=1e-9)
    assert value("renyi:0.5") == pytest.approx(-2 * math.log(affinity), rel=1e-9)
    assert value("alpha:1") == pytest.approx(0.186098093827, abs=1e-12)


def test_counts_are_matched_by_name(files):
    (found,) = document("c1.csv", "c2.csv")["results"]
    p, q = np.array([120, 80, 40, 60]) / 300, np.array([140, 70, 60, 50]) / 350
    bias = 3 / 600 + ((p / q).sum() - 1) / 700
    assert found["value"] == pytest.approx((p * np.log(p / q)).sum() - bias, rel=1e-9)
    (back,) = document("c2.csv", "c1.csv")["results"]
    assert back["value"] is None
    assert back["infinite"] is True
    assert "0.0857 of p unseen by q" in back["verdict"]
    (dropped,) = document("c2.csv", "c1.csv", "--drop-unseen")["results"]
    assert math.isfinite(dropped["value"])
    (prior,) = document("c2.csv", "c1.csv", "--prior", "jeffreys")["results"]
    assert prior["value"] == document("c2.csv", "c1.csv", "--prior", "0.5")["results"][0]["value"]
    assert document("c1.csv", "c2.csv", "--divergence", "js")["results"][0]["stderr"] > 0


def test_a_column_of_words_is_counted(files):
    assert document("words.csv", "words.csv")["p"]["held"] == "counts"
    assert "60 observations in 2 categories" in run("words.csv", "words.csv").stdout


def test_what_a_file_holds_can_be_said(files):
    assert document("news_p.csv", "news_q.csv", "--as", "probs")["p"]["held"] == "probs"
    assert document("named.csv", "named.csv")["p"]["held"] == "probs"


def test_distributions_as_text(files):
    (found,) = document("Normal(0,1)", "StudentT(3)")["results"]
    within = 1e-6 if found["exact"] else 5 * found["stderr"]
    assert found["value"] == pytest.approx(0.06915159848517566, abs=within)
    (one_sample,) = document("a.csv", "Normal(1, 1)")["results"]
    assert abs(one_sample["value"] - 0.5) < 4 * one_sample["stderr"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Normal(0, 1)", "Normal(loc: 0.0, scale: 1.0)"),
        ("Normal(loc=-1.5, scale=2e-3)", "Normal(loc: -1.5, scale: 0.002)"),
        ("Binomial(10, 0.5)", "Binomial"),
        ("Poisson(rate=3)", "Poisson(rate: 3.0)"),
        ("MultivariateNormal([0, 1], [[1, 0], [0, 2]])", "MultivariateNormal"),
        ("MixtureSameFamily(Categorical([0.5, 0.5]), Normal([-1, 1], [1, 2]))", "MixtureSameFamily"),
        ("Independent(Normal([0, 0], [1, 1]), 1)", "Independent"),
    ],
)
def test_text_is_read(text, shown):
    made = parse_distribution(text)
    assert shown in repr(made)
    assert made.sample().dtype == torch.float64


def test_only_known_classes_may_be_written():
    assert {"Normal", "StudentT", "Poisson", "MixtureSameFamily"} <= set(ALLOWED)
    assert "TransformedDistribution" not in ALLOWED


PLOTS = [
    ("a.csv", "b.csv"),
    ("a2.npy", "b2.parquet"),
    ("c2.csv", "c1.csv"),
    ("Normal(0,1)", "StudentT(3)"),
    ("Poisson(3)", "Geometric(0.3)"),
    ("a.csv", "Normal(0,2)"),
]


@pytest.mark.parametrize("pair", PLOTS)
def test_the_picture_is_svg_that_names_both(files, pair):
    result = run(*pair, "--plot", "out.svg")
    assert result.exit_code == 0, result.output
    text = (files / "out.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    for side, name in zip("PQ", pair, strict=True):
        assert f"<!-- {side}: {name} -->" in text  # matplotlib writes each text as a comment beside its outlines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nan.csv", "a.csv"), "nan.csv: row 1 holds nan"),
        (("gap.csv", "a2.npy"), "gap.csv: row 1 has no value in column 'x'"),
        (("typo.csv", "a.csv"), "row 2 has '3x' in column 'x'"),
        (("empty.csv", "a.csv"), "empty.csv: cannot be read as CSV: it is empty"),
        (("header.csv", "a.csv"), "no rows"),
        (("text.csv", "a.csv"), "column 'c' holds text"),
        (("twice.csv", "c1.csv"), "names 1 categories twice"),
        (("half.csv", "c1.csv"), "neither whole numbers"),
        (("objects.npy", "a.csv"), "not an .npy file of numbers"),
        (("data.xlsx", "a.csv"), ".xlsx is not a known format"),
        (("missing.csv", "a.csv"), "there is no such file"),
        (("a.csv", "a2.npy"), "a.csv has 1 columns and a2.npy has 2"),
        (("a.csv", "c1.csv"), "samples and counts cannot be compared"),
        (("news_p.csv", "long.csv"), "cannot be matched"),
        (("words.csv", "c1.csv"), "share no category"),
        (("a2.npy", "a2.npy", "--as", "counts"), "one row"),
        (("a2.npy", "a2.npy", "--as", "numbers"), "samples, counts, probs or logits"),
        (("b2.parquet", "a.csv", "--columns", "w"), "no column 'w'"),
        (("Normal(0,-1)", "Normal(0,1)"), "Normal refuses these arguments"),
        (("Normal(0,1,2,3)", "Normal(0,1)"), "Normal refuses"),
        (("Evil(3)", "Normal(0,1)"), "Evil is not a known distribution"),
        (("__import__('os').system('true')", "Normal(0,1)"), "is not a known distribution"),
        (("Normal(0, ().__class__)", "Normal(0,1)"), "nothing else may be written"),
        (("Normal(0, 1 + 1)", "Normal(0,1)"), "nothing else may be written"),
        (("Normal(*[0, 1])", "Normal(0,1)"), "cannot be written"),
        (("Normal(0, True)", "Normal(0,1)"), "nothing else may be written"),
        (("Normal([[1], [1, 2]], 1)", "Normal(0,1)"), "rectangle"),
        (("Normal(" * 300 + ")" * 300, "Normal(0,1)"), "kullback kl: "),
        (("a.csv", "b.csv", "--base", "1"), "--base is 1"),
        (("a.csv", "b.csv", "--level", "1.5"), "--level is 1.5"),
        (("a.csv", "b.csv", "--plot", "out.png"), ".svg"),
        (("a.csv", "b.csv", "--plot", "nowhere/out.svg"), "there is no folder"),
        (("a.csv", "b.csv", "--divergence", "foo"), "'foo' is not known"),
        (("a.csv", "b.csv", "--divergence", "renyi:-1"), "order is -1.0, but it must be"),
        (("a.csv", "b.csv", "--divergence", "tv"), "from samples only kl and jeffreys"),
        (("c1.csv", "c2.csv", "--prior", "mine"), "jeffreys, kt, laplace"),
        (("c1.csv", "c2.csv", "--prior", "kt", "--drop-unseen"), "without --drop-unseen"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(files, arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("kullback kl: ")
    assert words in result.stderr


def test_jeffreys_wherever_kl_can_be_had(files):
    """Both directions estimated: samples against a density, and densities that no exact method serves."""
    (found,) = document("a.csv", "Normal(1, 1)", "--divergence", "jeffreys")["results"]
    assert abs(found["value"] - 1.0) < 4.0 * found["stderr"]
    mixture = "MixtureSameFamily(Categorical([0.5, 0.5]), Independent(Normal([[0, 0], [1, 1]], 1), 1))"
    normal = "Independent(Normal([0, 0], 1), 1)"
    both = document(mixture, normal, "--both")["results"]
    (found,) = document(mixture, normal, "--divergence", "jeffreys")["results"]
    assert not found["exact"]
    spread = found["stderr"] + both[0]["stderr"] + both[1]["stderr"]
    assert abs(found["value"] - both[0]["value"] - both[1]["value"]) < 4.0 * spread
    refused = run(mixture, normal, "--divergence", "tv")
    assert refused.exit_code == 2
    assert "Write --divergence kl or jeffreys" in refused.output


def test_jeffreys_of_samples_has_the_intervals_of_both_directions(files):
    """Ends that allow for the bias included; what is said of either is said."""
    (found,) = document("a.csv", "Normal(2, 0.5)", "--divergence", "jeffreys", "--seed", "3")["results"]
    x = torch.tensor(pl.read_csv("a.csv")["x"].to_numpy()).unsqueeze(-1)
    q = torch.distributions.Normal(torch.tensor(2.0).double(), torch.tensor(0.5).double())
    g = torch.Generator().manual_seed(3)
    there, back = estimate.kl(Samples(x), q, generator=g), estimate.kl(q, Samples(x), generator=g)
    assert there.corrected is not None
    assert back.corrected is not None
    ends = [[one.interval().low, one.interval().high] for one in (there, back)]
    assert found["interval"] == pytest.approx([sum(end) for end in zip(*ends, strict=True)], rel=1e-12)
    assert found["value"] == pytest.approx(there.value + back.value, rel=1e-12)
    assert found["stderr"] == pytest.approx(there.stderr + back.stderr, rel=1e-12)
    for one in (there, back):
        assert one.bias in found["bias"]


def test_a_batch_or_a_mismatch_is_an_error_not_an_estimate(files):
    for pair, words in (
        (("Normal([0, 1], 1)", "Normal(0, 1)"), "is a batch"),
        (("Poisson(1)", "Normal(0, 1)"), "integers and the other on the line"),
    ):
        found = run(*pair)
        assert found.exit_code == 2
        assert words in found.output
