"""`kullback lm distill` on the command line."""

import json
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from typer.testing import CliRunner

from kullback import cli

TINY = ["--held-out", 0.25, "--hidden", 8, "--layers", 1, "--heads", 2, "--steps", 4, "--batch-size", 4]
TINY += ["--context", 16, "--seeds", 1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*arguments):
    return CliRunner().invoke(cli.app(), ["lm", "distill", *map(str, arguments)])


def test_a_table_and_a_folder_in_the_current_one_then_nothing_is_left_to_do(text, teacher, tmp_path):
    result = call(teacher, "--text", text, *TINY)
    assert result.exit_code == 0, result.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("kullback-lm-distill-")
    shown = " ".join(result.stdout.split())
    for words in (
        "the teacher",
        "from labels alone",
        "clustered by document",
        "Note: One seed",
        "perplexity times",
        f"{folder.name}/report.html",
    ):
        assert words in shown
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "9 documents to train on, 3 held out; 2 students" in result.stderr
    again = call("--resume", folder)
    assert again.stdout.strip() == f"Complete already. Report: {folder / 'report.html'}"
    assert json.loads(call("--resume", folder, "--json").stdout)["status"] == "complete"
    assert "leave --steps out" in call("--resume", folder, "--steps", 3).stderr


def test_json_is_one_document_and_every_option_is_in_it(text, teacher, tmp_path):
    more = "--divergence js --temperature 2 --soft-weight 0.5 --no-fused --learning-rate 0.001 --seed 3 --device cpu"
    result = call(teacher, "--text", text, *TINY, *more.split(), "--json", "--out", "here")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "here" / "results.json").read_text())
    found = document["settings"]
    assert (found["divergence"], found["temperature"], found["soft_weight"], found["fused"]) == ("js", 2.0, 0.5, False)
    assert (found["learning_rate"], found["seed"], found["batch_size"], found["held_out"]) == (0.001, 3, 4, 0.25)
    assert found == json.loads((tmp_path / "here" / "settings.json").read_text())
    page = (tmp_path / "here" / "report.html").read_text()
    assert "from labels alone" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt2"], "gpt2: no such folder; give the folder of a transformers model, nothing is downloaded"),
        (["TEACHER", "--text", "none.txt"], "none.txt: no such file or folder"),
        (["TEACHER", "--text", "TEXT", "--divergence", "lk"], "--divergence 'lk' is unknown"),
        (["TEACHER", "--text", "TEXT", "--steps", "3", "--epochs", "1"], "leave one out"),
        (["TEACHER", "--text", "TEXT", "--cache", "none"], "none: no such folder"),
        (["TEACHER", "--text", "TEXT", "--student", "none"], "none: no such folder"),
        (["--cache", "none"], "kullback lm distill TEACHER --cache FOLDER"),
        (["--resume", "none"], "none: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(text, teacher, tmp_path, arguments, message):
    result = call(*[{"TEACHER": teacher, "TEXT": text}.get(a, a) for a in arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if " s so far" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("kullback lm distill: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def _stopped(process):
    """What it printed. An interrupt that falls into a callback of the interpreter's own is lost."""
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("it does not stop")


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(text, teacher, tmp_path):
    given = [teacher, "--text", text, *TINY, "--steps", "100000", "--out", "here", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kullback.cli", "lm", "distill", *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "here" / "unfinished" / "taught-0").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.05)
        out, said = _stopped(process)
    finally:
        process.kill()
    assert process.returncode == 130
    assert json.loads(out)["status"] == "incomplete"
    last = said.splitlines()[-1]
    assert last == (
        "kullback lm distill: interrupted; here holds the teacher, as incomplete. Go on with: kullback lm distill "
        "--resume here"
    )
