"""A run that was stopped, however it was, is kept, says so, and goes on to the results of one that was not."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from kullback.distill import BadInput, job, load_student, resume, run
from kullback.distill.training import KINDS
from kullback.kit import unfinished

from .conftest import TINY, blobs

FILES = {"predictions.parquet", "report.html", "results.json", "settings.json", "student.safetensors", "summary.svg"}


def without_times(document):
    """What must be equal."""
    document = json.loads(json.dumps(document))
    for key in ("folder", "started", "seconds"):
        del document[key]
    if document["teacher"]:
        del document["teacher"]["seconds"]
    for student in document["students"].values():
        del student["seconds"]
    return document


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "blobs.csv"
    blobs().write_csv(path)
    return replace(TINY, data=path, target="kind")


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """A run that nothing interrupts."""
    return run(replace(settings, out=tmp_path_factory.mktemp("whole") / "out"))


class Stop:
    """Progress that interrupts when a stage begins, or at its n-th call."""

    def __init__(self, at=None, call=None):
        self.at, self.call, self.calls = at, call, 0

    def __call__(self, done, total, what):
        self.calls += 1
        if what == self.at or self.calls == self.call:
            raise KeyboardInterrupt


STAGES = {  # what is finished when it begins
    "teacher": (0, 0, 0),
    "students from labels, seeds 0 to 1": (0, 0, 0),
    "students from the teacher, seeds 0 to 1": (2, 0, 0),
    "students from both, seeds 0 to 1": (2, 2, 0),
    "temperature 1, seed 0": (2, 2, 2),
    "report": (2, 2, 2),
}


@pytest.mark.parametrize("at", STAGES)
def test_an_interrupt_leaves_what_was_finished_and_a_resume_the_same_results(tmp_path, settings, whole, at):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        run(replace(settings, out=out), Stop(at))
    document = json.loads((out / "results.json").read_text())
    assert document["status"] == "incomplete"
    assert tuple(len(document["students"][kind]["finished_seeds"]) for kind in KINDS) == STAGES[at]
    assert (document["teacher"] is None) == (at == "teacher")
    assert (out / "student.safetensors").exists() == (STAGES[at][2] > 0)
    assert not list(out.glob(".*"))
    if STAGES[at][2]:
        saved = pl.read_parquet(out / "predictions.parquet").select(f"student_{c}" for c in "abc").to_numpy()
        features = blobs().select("x", "y", "flat").to_numpy()
        np.testing.assert_allclose(load_student(out).predict_proba(features), saved, rtol=1e-6)
    assert caught.value.args[0].folder == out

    with pytest.raises(KeyboardInterrupt):
        resume(out, Stop("teacher"))
    if at != "teacher":  # stopped again at once: what was written is still there
        assert without_times(json.loads((out / "results.json").read_text())) == without_times(document)

    again = resume(out)
    assert again.complete
    assert without_times(again.to_json()) == without_times(whole.to_json())
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(again.to_json()))
    assert {path.name for path in out.iterdir()} == FILES
    for name in ("student.safetensors", "predictions.parquet"):
        assert (out / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_run_stopped_again_and_again_within_its_trainings_comes_to_the_same_end(
    tmp_path, settings, whole, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(replace(settings, out=out), Stop(call=5))
    for call in range(6, 30, 3):
        try:
            again = resume(out, Stop(call=call))
        except KeyboardInterrupt:
            continue
        break
    assert again.complete
    assert without_times(again.to_json()) == without_times(whole.to_json())


def test_a_training_is_taken_up_where_it_was_left(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    out, steps = tmp_path / "out", []
    loop = job.StudentLesson.loss
    monkeypatch.setattr(job.StudentLesson, "loss", lambda *a: steps.append(1) or loop(*a))
    monkeypatch.setattr(job, "seconds_per_step", lambda *a: 0.001)
    settings = replace(settings, epochs=4, seeds=1, sweep=(), teacher="GaussianNB", out=out)
    with pytest.raises(KeyboardInterrupt):
        run(settings, Stop(call=7))  # reading, teacher, teacher, labels, and three of its four epochs
    assert len(steps) == 3 * 16
    resume(out)
    assert len(steps) == 3 * 4 * 16


@pytest.mark.parametrize("name", ["report.html", "predictions.parquet", "results.json", "teacher.pt"])
def test_a_write_that_fails_loses_nothing(tmp_path, settings, whole, monkeypatch, name):
    written, full = job.write_bytes, [True]

    def write(path, data):
        if path.name == name and full[0]:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written(path, data)

    for module in (job, unfinished, sys.modules["kullback.kit.files"]):
        monkeypatch.setattr(module, "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):
        run(replace(settings, out=tmp_path / "out"))
    full[0] = False
    assert without_times(resume(tmp_path / "out").to_json()) == without_times(whole.to_json())


def test_what_cannot_be_gone_on_with_is_refused(tmp_path, settings, table_file, monkeypatch):
    settings = replace(settings, data=table_file)
    with pytest.raises(BadInput, match="no such folder"):
        resume(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="is no folder of a run"):
        resume(tmp_path / "empty")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(replace(settings, out=out), Stop("students from both, seeds 0 to 1"))
    with monkeypatch.context() as patch:
        patch.setattr(job, "versions", lambda: {"kullback": "0", "torch": "0"})
        with pytest.raises(BadInput, match="here is kullback 0, torch 0, which may give other numbers"):
            resume(out)
    content = table_file.read_text()
    table_file.write_text(content.replace("a\n", "b\n", 1))
    with pytest.raises(BadInput, match="has changed since it was begun"):
        resume(out)
    table_file.write_text(content)
    assert resume(out).complete
    with pytest.raises(BadInput, match="that run is complete"):
        resume(out)


def test_a_run_goes_on_from_another_folder(tmp_path, settings, table_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = replace(settings, data=table_file.relative_to(tmp_path), out=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(relative, Stop("students from both, seeds 0 to 1"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(tmp_path / "out").table.name == "blobs.csv"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_at_random_moments_it_comes_to_the_same_numbers(tmp_path, table_file):
    """SIGKILL and SIGTERM by turns, within the time that a run takes, and then one that may come to its end."""
    options = ["--target", "kind", "--epochs", "60", "--seeds", "2", "--labels", "12", "--sweep", "1", "--json"]
    command = [sys.executable, "-m", "kullback.cli", "distill"]
    begin = [*command, str(table_file), *options, "--out"]
    start = time.perf_counter()
    whole = subprocess.run([*begin, str(tmp_path / "whole")], capture_output=True, check=True)
    takes = time.perf_counter() - start

    out, draw, kills = tmp_path / "out", random.Random(0), []
    for kind in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            next_of(out, begin, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            process.communicate(timeout=takes * draw.uniform(0.2, 0.6))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(kind)
            _, stderr = process.communicate()
        assert "Traceback" not in stderr
        kills.append(f"{kind.name}: {process.returncode}")
        if "interrupted; " in stderr:
            assert f"--resume {out}" in stderr
            assert json.loads((out / "results.json").read_text())["status"] == "incomplete"
    print(f"{takes:.1f} s undisturbed; {kills}")
    assert kills
    last = subprocess.run(next_of(out, begin, command), capture_output=True, check=True)
    assert without_times(json.loads(last.stdout)) == without_times(json.loads(whole.stdout))
    assert {path.name for path in out.iterdir()} == FILES


def next_of(out, begin, command):
    """The arguments that go on with what is there, or begin."""
    begun = (out / "unfinished" / "run.pt").exists() or (out / "results.json").exists()
    if begun:
        return [*command, "--resume", str(out), "--json"]
    shutil.rmtree(out, ignore_errors=True)  # killed between making the folder and writing into it
    return [*begin, str(out)]
