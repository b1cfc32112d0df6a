"""A run that was stopped, however it was, goes on to the numbers of one that was not; ranks change none of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file

from kullback._errors import BadInput
from kullback.kit import unfinished
from kullback.lm.distill import job, resume, run
from kullback.lm.distill.training import last_checkpoint


def without_times(document):
    """What must be equal."""
    document = json.loads(json.dumps(document))
    for key in ("folder", "started", "seconds"):
        del document[key]
    del document["settings"]["out"]
    for student in document["students"]:
        del student["seconds"]
    return document


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """A run that nothing interrupts, with a teacher of its own."""
    own = replace(settings, teacher=None, teacher_steps=6, seeds=1, steps=10)
    return run(replace(own, out=tmp_path_factory.mktemp("whole") / "out"))


class Stop:
    """Progress that interrupts at the n-th report of a stage."""

    def __init__(self, stage, after):
        self.stage, self.after = stage, after

    def __call__(self, done, total, what):
        if self.stage in what:
            self.after -= 1
            if self.after < 0:
                raise KeyboardInterrupt


def equal(found, whole):
    assert found.complete
    assert without_times(found.to_json()) == without_times(whole.to_json())
    for name in ("student", "teacher"):
        one, other = (load_file(each.folder / name / "model.safetensors") for each in (found, whole))
        assert all(torch.equal(one[key], other[key]) for key in one | other)
    assert not (found.folder / "unfinished").exists()


@pytest.mark.parametrize(
    ("stage", "after", "kept"),
    [
        ("teacher", 4, "what was begun"),
        ("student from the teacher", 6, "the teacher"),
        ("student from labels", 0, "1 finished student"),
        ("student from labels", 5, "1 finished student"),
        ("held-out", 0, "2 finished students"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_numbers(whole, tmp_path, monkeypatch, stage, after, kept):
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as stop:
        run(replace(whole.settings, out=folder), Stop(stage, after))
    partial = stop.value.args[0]
    assert not partial.complete
    assert partial.kept() == kept
    assert json.loads((folder / "results.json").read_text())["status"] == "incomplete"
    assert unfinished.finished(folder) is None
    moved = folder.rename(tmp_path / "elsewhere")
    equal(resume(moved), whole)
    with pytest.raises(BadInput, match="that run is complete"):
        resume(moved)


def test_a_report_that_cannot_be_written_loses_nothing(whole, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            run(replace(whole.settings, out=tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["status"] == "incomplete"
    equal(resume(tmp_path / "out"), whole)


def test_another_text_version_or_thread_count_is_refused(settings, tmp_path, monkeypatch):
    text = Path(shutil.copy(settings.text, tmp_path / "texts.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        run(replace(settings, text=text, out=tmp_path / "out"), Stop("student", 0))
    with monkeypatch.context() as patch:
        patch.setattr(job, "versions", lambda: {"torch": "0.1"})
        with pytest.raises(BadInput, match=r"here is torch 0\.1, which may give other numbers"):
            resume(tmp_path / "out")
        patch.undo()
        patch.setattr(job, "_threads", lambda: 17)
        with pytest.raises(BadInput, match="write OMP_NUM_THREADS=1 before the command"):
            resume(tmp_path / "out")
    text.write_text(text.read_text() + '{"text": "one more"}\n')
    with pytest.raises(BadInput, match="has changed since"):
        resume(tmp_path / "out")
    with pytest.raises(BadInput, match="no such folder"):
        resume(tmp_path / "nothing")
    with pytest.raises(BadInput, match="is no folder of a run"):
        resume(tmp_path)


def started(settings, out, *more):
    """The command in a process of its own, as the settings say."""
    given = ["--text", settings.text, "--out", out, "--held-out", settings.held_out, "--hidden", settings.hidden]
    given += ["--layers", settings.layers, "--heads", settings.heads, "--batch-size", settings.batch_size]
    given += ["--context", settings.context, "--seeds", 1, *more]
    command = [sys.executable, "-m", "kullback.cli", "lm", "distill", settings.teacher, *given]
    return subprocess.Popen(
        list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


def wait_for(process, condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_run_goes_on_to_the_same_numbers(settings, tmp_path):
    """SIGKILL between two checkpoints of the first student."""
    settings = replace(settings, steps=200, seeds=1)
    folder = tmp_path / "killed"
    process = started(settings, folder, "--steps", 200)
    place = folder / "unfinished" / "taught-0" / "checkpoints"
    wait_for(process, lambda: last_checkpoint(place, 1) is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "student").exists()
    assert 20 <= (last := int(last_checkpoint(place, 1).name.partition("-")[2])) < 200
    assert json.loads((folder / "results.json").read_text())["status"] == "incomplete"
    at = []
    found = resume(folder, lambda done, total, what: at.append(done) if "from the teacher" in what else None)
    assert at[1] - at[0] == (last + 1) * job.TAUGHT_STEP  # it went on, and did not begin anew
    whole = run(replace(settings, out=tmp_path / "whole"))
    assert without_times(found.to_json()) == without_times(whole.to_json())
    one, other = (load_file(each.folder / "student" / "model.safetensors") for each in (found, whole))
    assert all(torch.equal(one[key], other[key]) for key in one | other)


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_one(settings, tmp_path, whole):
    """By torchrun on gloo. The sums of two ranks are rounded otherwise than those of one, and twenty steps carry it."""
    settings = replace(settings, seeds=1, fused=None)
    found = [run(replace(settings, ranks=ranks, out=tmp_path / str(ranks))) for ranks in (1, 2)]
    for arm in ("from the teacher", "from labels alone"):
        one, two = (each.of(arm)[0] for each in found)
        assert two.sums.kl == pytest.approx(one.sums.kl, rel=1e-3), arm
        assert two.sums.nll == pytest.approx(one.sums.nll, rel=1e-4), arm
        assert [p.step for p in two.curve] == [p.step for p in one.curve]
        assert [p.train_loss for p in two.curve] == pytest.approx([p.train_loss for p in one.curve], rel=1e-3), arm


@pytest.mark.slow
def test_a_rank_that_fails_is_an_error_that_names_its_log(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nonsense")
    with pytest.raises(BadInput, match=r"--ranks 2: torchrun ended with status 1 .*ranks\.log"):
        run(replace(settings, ranks=2, seeds=1, out=tmp_path / "out"))


@pytest.mark.slow
def test_a_killed_run_of_two_ranks_leaves_no_rank_behind_and_goes_on(settings, tmp_path):
    settings = replace(settings, steps=400, seeds=1, ranks=2)
    folder = tmp_path / "killed"
    process = started(settings, folder, "--steps", 400, "--ranks", 2)
    place = folder / "unfinished" / "taught-0" / "checkpoints"
    wait_for(process, lambda: last_checkpoint(place, 2) is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(5.0)
    last = last_checkpoint(place, 2).name
    time.sleep(3.0)
    assert last_checkpoint(place, 2).name == last != "checkpoint-400"
    found = resume(folder)
    whole = run(replace(settings, out=tmp_path / "whole"))
    for one, other in zip(found.outcomes, whole.outcomes, strict=True):
        assert one.sums.kl == pytest.approx(other.sums.kl, rel=1e-6)
