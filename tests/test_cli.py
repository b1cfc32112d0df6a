"""The command line: what is printed where, exit codes, signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from kullback import cli

SMALL = ["--epochs", "2", "--seeds", "2", "--labels", "12", "--sweep", "", "--teacher", "GaussianNB"]


@pytest.fixture
def table(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    rng = np.random.default_rng(3)
    label = np.arange(60) % 3
    frame = pl.DataFrame({"x": rng.normal(size=60) + 4 * label, "y": rng.normal(size=60), "kind": label})
    path = tmp_path / "table.csv"
    frame.write_csv(path)
    return str(path)


def call(*arguments: str):
    return CliRunner().invoke(cli.app(), ["distill", *arguments])


def test_a_table_on_stdout_and_a_folder_in_the_current_one(table, tmp_path):
    result = call(table, "--target", "kind", *SMALL)
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "cwd").iterdir()
    assert re.fullmatch(r"kullback-distill-\d{8}-\d{6}", folder.name)
    assert f"{folder.name}/report.html" in result.stdout
    for words in ("labels only", "teacher only", "both", "36 training rows", "standard error"):
        assert words in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines()[:9])) <= 80


def test_json_is_one_document_and_nothing_else(table, tmp_path):
    result = call(table, "--target", "kind", *SMALL, "--json", "--out", "here")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["status"] == "complete"
    assert document == json.loads((tmp_path / "cwd" / "here" / "results.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv", "--target", "kind"], "none.csv: no such file"),
        (["TABLE"], "write --target COLUMN"),
        (["TABLE", "--target", "knd"], "--target 'knd' is not a column; did you mean kind?"),
        (["TABLE", "--target", "kind", "--labels", "1000"], "--labels is 1000"),
        (["TABLE", "--target", "kind", "--divergence", "kld"], "--divergence 'kld' is unknown"),
        (["TABLE", "--target", "kind", "--teacher", "Forest"], "--teacher 'Forest' is neither"),
        (["TABLE", "--target", "kind", "--device", "cuda:77"], "--device 'cuda:77' cannot be used"),
        (["TABLE", "--target", "kind", "--sweep", "1,two"], "--sweep '1,two' is no list"),
        (["TABLE", "--target", "kind", "--out", ".."], "exists and is not empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(table, tmp_path, arguments, message):
    result = call(*[table if a == "TABLE" else a for a in arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip() and "━" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("kullback distill: ")
    assert message in lines[0]
    assert list((tmp_path / "cwd").iterdir()) == []


def test_unknown_options_are_refused(table):
    assert call(table, "--target", "kind", "--temprature", "2").exit_code == 2


def test_without_typer_the_command_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; from kullback.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "kullback: the package 'typer' is not installed; write: pip install typer\n"


def test_a_missing_package_of_the_extra_is_one_line(table, monkeypatch):
    commands = cli.app()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = CliRunner().invoke(commands, ["distill", table, "--target", "kind"])
    assert result.exit_code == 2
    assert "pip install 'kullback[distill]'" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_a_valid_folder_says_how_to_go_on_and_ends_with_130(table, tmp_path, kind):
    out = tmp_path / "out"
    arguments = [
        table,
        "--target",
        "kind",
        "--epochs",
        "100000",
        "--teacher",
        "GaussianNB",
        "--out",
        str(out),
        "--json",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "kullback.cli", "distill", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    results = out / "results.json"
    while time.monotonic() < deadline and process.poll() is None:
        if results.exists() and json.loads(results.read_text())["teacher"] is not None:
            break
        time.sleep(0.05)
    time.sleep(0.3)  # into the first student's training
    process.send_signal(getattr(signal, kind))
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "36 training rows, 24 held out; 24 students of 100000 epochs of 16 steps of 64 rows; about" in stderr
    assert f"interrupted; {out} holds the teacher, as incomplete" in stderr
    assert f"Go on with: kullback distill --resume {out}" in stderr
    document = json.loads(results.read_text())
    assert document["status"] == "incomplete"
    assert document["teacher"]["accuracy"] > 0.8
    assert json.loads(stdout) == document
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "settings.json", "unfinished"]


def test_resume_goes_on_and_then_says_that_nothing_is_left(table, tmp_path, monkeypatch):
    from kullback.distill import job

    render = job.render
    monkeypatch.setattr(job, "render", lambda results: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    stopped = call(table, "--target", "kind", *SMALL, "--out", "here")
    assert stopped.exit_code == 1
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("kullback distill: No space left on device; here holds 6 finished students, as incomplete.")
    assert last.endswith("Go on with: kullback distill --resume here")
    assert "Traceback" not in stopped.stderr
    monkeypatch.setattr(job, "render", render)

    refused = call("--resume", "here", "--seeds", "3")
    assert refused.exit_code == 2
    assert "--resume goes on with the settings of its folder; leave --seeds out" in refused.stderr
    again = call("--resume", "here")
    assert again.exit_code == 0, again.output
    assert "Best student:" in again.stdout
    document = json.loads((tmp_path / "cwd" / "here" / "results.json").read_text())
    assert document["status"] == "complete"
    once_more = call("--resume", "here")
    assert (once_more.exit_code, once_more.stdout) == (0, "Complete already. Report: here/report.html\n")
    assert json.loads(call("--resume", "here", "--json").stdout) == document
