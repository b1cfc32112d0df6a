"""The command: options, what it prints, exit codes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kullback.models.demo import round_weight
from kullback.models.terminal import number, value

OPTIONS = "--context 48 --noise 200"


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    """(exit code, what it printed and said) of a line of options, in a folder of its own."""
    testing = pytest.importorskip("typer.testing")
    from kullback.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(line):
        found = testing.CliRunner().invoke(app(), ["compare", *shlex.split(line)], prog_name="kullback")
        return found.exit_code, found.output

    return run


def test_one_screen_says_what_matters(invoke, folders, text_folder, page):
    code, said = invoke(f"{folders['reference']} {folders['near']} b={folders['far']} --text {text_folder} {OPTIONS}")
    assert code == 0, said
    assert len(said.splitlines()) < 45
    header = next(line for line in said.splitlines() if "reference, other batches" in line)
    assert header.split()[:2] == ["near", "b"]
    for name in ("Mean KLD, nats", "99.9% KLD", "Mean ln(PPL(Q)/PPL(base))", "Same top p", "Mean JS"):
        assert name in said
    assert re.search(r"near - b +-0\.\d+ ± 0\.\d+ \(0\.\d+\)", said)
    assert "The largest KLD of b" in said
    assert "came" in said
    assert "Errors: by document (as if tokens were independent)" in " ".join(said.split())
    folder = re.search(r"Report: (kullback-compare-[\d-]+)/report.html", said)[1]
    assert os.path.getsize(f"{folder}/report.html") > 50_000
    assert json.loads(Path(folder, "results.json").read_text())["candidates"][1]["name"] == "b"


def test_full_prints_llama_cpps_blocks(invoke, folders, text_folder):
    code, said = invoke(f"{folders['reference']} {folders['near']} --text {text_folder} {OPTIONS} --full")
    assert code == 0
    for title in ("Perplexity statistics", "KL divergence statistics", "Token probability", "Other divergences"):
        assert title in said
    for name in ("Mean PPL(Q)", "Cor(ln(PPL(Q)), ln(PPL(base)))", "Median KLD", "Minimum KLD", "25.0% Δp"):
        assert name in said


def test_json_is_the_document_of_the_folder(invoke, folders, text_folder):
    code, said = invoke(f"{folders['reference']} {folders['near']} --text {text_folder} {OPTIONS} --json --out run")
    document = json.loads(said[said.index("{\n") :])
    assert code == 0
    assert document == json.loads(Path("run/results.json").read_text())


def test_a_stored_run_compares_without_its_model(invoke, folders, text_folder):
    code, said = invoke(f"{folders['reference']} --text {text_folder} {OPTIONS} --save-reference kept --out a")
    assert code == 0
    assert "is kept in kept" in said.replace("\n", " ")
    code, said = invoke(f"kept {folders['near']} --out b")
    assert code == 0
    assert "stored run (hidden states and head)" in said.replace("\n", " ")


LOG = """
====== Perplexity statistics ======
Mean PPL(Q)                   :  12.345678 ±   0.123456
====== KL divergence statistics ======
Mean    KLD:   0.004321 ±   0.000123
99.9%   KLD:   0.040000
====== Token probability statistics ======
Mean    Δp:  0.012 ± 0.003 %
Same top p: 97.123 ± 0.100 %
"""


def test_what_llama_cpp_printed_stands_beside(invoke, folders, text_folder, tmp_path):
    (tmp_path / "log.txt").write_text(LOG, encoding="utf-8")
    code, said = invoke(
        f"{folders['reference']} {folders['near']} --text {text_folder} {OPTIONS} --llama-log log.txt --out run"
    )
    assert code == 0
    row = next(line for line in said.splitlines() if line.startswith("Mean KLD, nats"))
    assert row.endswith("0.004321 ± 0.000123")
    assert next(line for line in said.splitlines() if line.startswith("Same top p")).endswith("97.123 ± 0.1")
    assert json.loads(Path("run/results.json").read_text())["llama_cpp"]["statistics"]["99.9% KLD"] == "0.04"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("", "two models are needed"),
        ("{reference}", "there is no candidate"),
        ("{reference} {near}", "no text to compare on"),
        ("nowhere {near} --text {text}", "nowhere: no such folder"),
        ("{reference} {near} --text nowhere", "nowhere: no such file or folder"),
        ("--demo {near}", "--demo brings its own models"),
        ("--resume nowhere", "no such folder"),
        ("--resume nowhere --limit 5", "leave --limit out"),
        ("{reference} {near} --text {text} --device cuda:77", "cannot be used"),
    ],
)
def test_bad_input_is_one_line_and_2(invoke, folders, text_folder, line, what):
    code, said = invoke(line.format(text=text_folder, **folders))
    assert code == 2
    assert what in said
    assert said.count("\n") == 1


def test_without_the_packages_it_names_the_extra():
    code = "import sys; sys.modules['transformers'] = None; from kullback.cli import main; main()"
    made = subprocess.run(
        [sys.executable, "-c", code, "compare", "a", "b", "--text", "c"], capture_output=True, text=True
    )
    assert made.returncode == 2
    assert "pip install 'kullback[lm]'" in made.stderr


def test_the_package_does_not_import_transformers():
    code = "import kullback.models, sys; print('transformers' in sys.modules, 'pyarrow' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["False", "False"]


def test_numbers_have_the_places_of_their_errors():
    assert value({"value": 98.552, "clustered": 0.049, "iid": 0.0471}) == "98.552 ± 0.049 (0.047)"
    assert value({"value": None, "clustered": None, "iid": None}) == "–"
    assert value({"value": 0.5, "clustered": None, "iid": None}) == "0.5"
    assert value({"value": 2.1e-16, "clustered": 1e-16, "iid": None}) == "2.100e-16 ± 1.0e-16 (–)"
    assert number(0.0) == "0"


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
def test_rounding_is_to_nearest_in_each_group(bits, group):
    import torch

    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    weight[2] = 0.0
    found = round_weight(weight, bits, group)
    width = group or 64
    for row, made in zip(weight.split(1), found.split(1), strict=True):
        for part, rounded in zip(row.split(width, -1), made.split(width, -1), strict=True):
            step = part.abs().max() / (2 ** (bits - 1) - 1)
            assert (rounded - part).abs().max() <= step * (0.5 + 1e-6)
            codes = rounded / step if step else rounded
            assert (codes - codes.round()).abs().max() < 1e-4
            assert rounded.unique().numel() <= 2**bits - 1


DOCS = Path(__file__).resolve().parents[2] / "docs" / "compare.md"


def test_the_documents_commands_run_as_they_stand(invoke, models, tokenizer, text_folder, tmp_path):
    """After the demo, for which a folder with its names stands in."""
    from kullback.language.small import new_model, save

    root = tmp_path / "demo" / "models"
    root.mkdir(parents=True)
    config = models[0].config.__class__(**{**models[0].config.to_dict(), "max_position_embeddings": 128})
    for seed, name in enumerate(("reference", "int8", "int4")):  # one of the commands asks for a context of 128 tokens
        save(new_model(config, seed), tokenizer, root / name)
    text = tmp_path / "demo" / "text"
    text.mkdir()
    for path in sorted(text_folder.iterdir())[:3]:
        (text / path.name).write_text(path.read_text())
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert commands[0] == "kullback compare --demo --out demo"
    assert len(commands) == 8
    for command in commands[1:]:
        code, said = invoke(command.removeprefix("kullback compare "))
        assert code == 0, (command, said)
    means = {
        name: json.loads(Path(name, "results.json").read_text())["candidates"][0]["statistics"][
            "KL divergence statistics"
        ][0]["value"]
        for name in ("run", "from-kept", "from-likeliest", "from-kld")
    }
    assert means["from-kept"] == means["run"]
    assert 0.0 < means["from-likeliest"] <= means["run"]
    assert means["from-kld"] > 0.0
