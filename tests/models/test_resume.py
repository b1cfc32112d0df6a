"""A comparison that is stopped keeps what it measured, and goes on to the same results."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kullback._errors import BadInput
from kullback.kit.unfinished import finished
from kullback.models import compare, job, resume
from kullback.models.table import Columns, recorded

OPTIONS = {"context": 48, "batch_size": 2, "noise": 200}


def same(one, other):
    """All results but times, places and speed."""
    left, right = ({k: v for k, v in x.to_json().items() if k not in TIMES} for x in (one, other))
    left["settings"].pop("save_reference"), right["settings"].pop("save_reference")
    assert left == right
    for name in one.plan.names:
        assert one.tokens(name).read_bytes() == other.tokens(name).read_bytes()


TIMES = ("folder", "started", "seconds", "speed")


@pytest.fixture(scope="module")
def whole(folders, text_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return compare(
        folders["reference"], [folders["near"], folders["far"]], text=text_folder, out=out / "run",
        save_reference=out / "stored", **OPTIONS,
    )  # fmt: skip


def stopping(monkeypatch, after, error=KeyboardInterrupt):
    calls, measure = [], job.measure

    def stop(*given):
        calls.append(1)
        if len(calls) > after:
            raise error
        return measure(*given)

    monkeypatch.setattr(job, "measure", stop)


def test_an_interrupt_keeps_what_was_measured(folders, text_folder, tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        stopping(patch, 7)
        with pytest.raises(KeyboardInterrupt) as stop:
            compare(
                folders["reference"], [folders["near"], folders["far"]], text=text_folder, out=tmp_path / "run",
                save_reference=tmp_path / "stored", **OPTIONS,
            )  # fmt: skip
    partial = stop.value.args[0]
    document = json.loads((tmp_path / "run" / "results.json").read_text())
    assert document["status"] == "interrupted"
    assert 0 < document["text"]["measured"] < document["text"]["scored"]
    columns = Columns(partial.tokens("near"))
    assert len(columns["kl"]) == document["text"]["measured"]
    np.testing.assert_array_equal(columns["kl"], Columns(whole.tokens("near"))["kl"][: len(columns["kl"])])
    assert document["candidates"][0]["measured"]["tokens"] == document["text"]["measured"]
    assert (tmp_path / "run" / "report.html").is_file()
    assert partial.kept() in f"{document['text']['measured']:,} of {document['text']['scored']:,} tokens"

    again = resume(tmp_path / "run")
    same(again, whole)
    assert finished(tmp_path / "run") is not None
    for path in (whole.folder.parent / "stored").iterdir():
        if path.name != "reference.json" and not path.name.startswith("part-"):
            assert path.read_bytes() == (tmp_path / "stored" / path.name).read_bytes()
    found = compare(tmp_path / "stored", folders["near"])
    np.testing.assert_array_equal(Columns(found.tokens("near"))["kl"], Columns(whole.tokens("near"))["kl"])


SCRIPT = """
import sys, time
from pathlib import Path
from kullback.models import compare, job
import kullback.models.store as store
store.BYTES = 2000
measure = job.measure
def slow(*given):
    time.sleep(0.15)
    return measure(*given)
job.measure = slow
reference, near, far, text, out = sys.argv[1:]
compare(reference, [near, far], text=text, out=out + "/run", save_reference=Path(out) / "stored",
        context=48, batch_size=2, noise=200)
"""


def test_sigkill_loses_nothing_that_was_measured(folders, text_folder, tmp_path, whole):
    given = [str(x) for x in (folders["reference"], folders["near"], folders["far"], text_folder, tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *given], env={**os.environ, "OMP_NUM_THREADS": "1"})
    path = tmp_path / "run" / whole.tokens("near").name
    try:
        deadline = time.monotonic() + 120
        while recorded(path) < 500 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    there = recorded(path)
    assert 500 <= there < whole.measured
    again = resume(tmp_path / "run")
    same(again, whole)
    found = compare(tmp_path / "stored", folders["far"])
    np.testing.assert_array_equal(Columns(found.tokens("far"))["kl"], Columns(whole.tokens("far"))["kl"])


def test_going_on_measures_only_what_is_missing(folders, text_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            compare(folders["reference"], folders["near"], text=text_folder, out=tmp_path / "run", **OPTIONS)
    batches, measure = [], job.measure
    monkeypatch.setattr(job, "measure", lambda batch, *given: batches.append(batch.start) or measure(batch, *given))
    resume(tmp_path / "run")
    assert batches[0] == 5 * OPTIONS["batch_size"]


def test_an_error_of_the_disk_keeps_it_too(folders, text_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 4, OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space"):
            compare(folders["reference"], folders["near"], text=text_folder, out=tmp_path / "run", **OPTIONS)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["text"]["measured"] > 0


def test_a_finished_comparison_has_nothing_left(whole):
    with pytest.raises(BadInput, match="complete, and has nothing left"):
        resume(whole.folder)


def test_no_comparison_is_no_comparison(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        resume(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is no folder of a comparison"):
        resume(tmp_path)


def test_another_text_or_model_is_refused(folders, texts, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(texts[5])
    with monkeypatch.context() as patch:
        stopping(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            compare(folders["reference"], folders["near"], text=path, out=tmp_path / "run", **OPTIONS)
    path.write_text(texts[5] + " and more words")
    with pytest.raises(BadInput, match="the text has changed"):
        resume(tmp_path / "run")
    path.write_text(texts[5])
    weights = folders["near"] / "model.safetensors"
    stat = weights.stat()
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    try:
        with pytest.raises(BadInput, match="a model has changed"):
            resume(tmp_path / "run")
    finally:
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    resume(tmp_path / "run")


def test_models_in_memory_cannot_be_opened_again(models, tokenizer, texts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            compare(models[0], models[1], text=texts, tokenizer=tokenizer, out=tmp_path / "run", **OPTIONS)
    with pytest.raises(BadInput, match="begun from Python"):
        resume(tmp_path / "run")
