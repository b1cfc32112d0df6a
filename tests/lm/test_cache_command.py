"""`kullback lm cache`: what it writes, what it says, and that it goes on where it was killed."""

import inspect
import json
import os
import random
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("datasets")

import tiny
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from kullback import top_k
from kullback.kit.unfinished import Unfinished
from kullback.language import small
from kullback.language.caches import TeacherCache
from kullback.language.caches import teacher as cache_teacher
from kullback.language.caches.format import CacheSettings
from kullback.language.caches.teacher import ModelTeacher
from kullback.language.caches.writer import Task
from kullback.language.documents import Document, split
from kullback.language.fingerprints import Fingerprint, model_fingerprint, tokenizer_hash
from kullback.language.windows import Window, token_ids, windows
from kullback.lm.cache import job as cache_job
from kullback.lm.cache.command import cache

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "no", "dog", "had", "come", "to", "eat", "all")


def passages(many, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 60))) for _ in range(many)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "passages.jsonl"
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in passages(60)))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder with a tokenizer, and a model that was not trained."""
    tokenizer = small.train_tokenizer(passages(100, seed=1), 300)
    model = small.new_model(small.Size(16, 1, 2).config(len(tokenizer), 32), seed=0)
    return small.save(model, tokenizer, tmp_path_factory.mktemp("teacher") / "untaught")


class Outcome:
    def __init__(self, arguments):
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(cache)
        found = CliRunner().invoke(app, [str(each) for each in arguments])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        self.code, self.out, self.err = found.exit_code, found.stdout, found.stderr


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("policy", ["top-k", "drawn"])
def test_it_keeps_what_the_model_says_of_every_token(tmp_path, teacher, text, policy):
    found = Outcome([teacher, "--text", text, "--policy", policy, "--k", 5, "--out", tmp_path / "out", "--json"])
    assert found.code == 0, found.err
    document = json.loads(found.out)
    read = TeacherCache(tmp_path / "out", tail="even" if policy == "top-k" else None)
    model, tokenizer = (of.from_pretrained(teacher) for of in (AutoModelForCausalLM, AutoTokenizer))
    assert document["status"] == "complete"
    assert document["teacher"] == model_fingerprint(teacher)._asdict()
    assert document["tokenizer_hash"] == tokenizer_hash(tokenizer) == read.tokenizer_hash
    assert (document["policy"], document["k"], document["num_classes"]) == (policy, 5, len(tokenizer))
    assert document["dtype"] == "float32"
    assert document["context"] == 32
    assert document["tokens"] == sum(len(token_ids(tokenizer, each)) - 1 for each in passages(60))
    assert document["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert document["bytes_per_token"] == pytest.approx(document["bytes"] / document["tokens"])
    assert document["dense_bytes_per_token"] == 2 * len(tokenizer)
    assert (document["left_out"] is None) == (policy == "drawn")
    left = []
    for row in read.rows():
        assert row.document == f"{text}:{row.number}"
        ids = token_ids(tokenizer, passages(60)[row.number])
        assert row.input_ids.tolist() == ids[row.start : row.start + 32]
        with torch.no_grad():
            log_p = model(input_ids=row.input_ids[None]).logits[0].double().log_softmax(-1)[row.labels.roll(-1) != -100]
        form = read.form(row)
        places = form.counts > 0 if policy == "drawn" else torch.ones_like(form.ids, dtype=torch.bool)
        torch.testing.assert_close(
            form.log_probs[places].double(), log_p.gather(-1, form.ids)[places], rtol=2**-10, atol=1e-5
        )
        if policy == "top-k":
            best = log_p.topk(5, -1)
            left += (1 - best.values.exp().sum(-1)).tolist()
    if policy == "top-k":
        assert document["left_out"] == pytest.approx(sum(left) / len(left), rel=1e-5)
    assert not (tmp_path / "out" / "unfinished").exists()


def test_it_says_what_it_costs(tmp_path, teacher, text):
    out = tmp_path / "out"
    found = Outcome([teacher, "--text", text, "--k", 3, "--out", out])
    assert found.code == 0, found.err
    size = sum(path.stat().st_size for path in out.iterdir())
    tokens = TeacherCache(out, tail="even").tokens
    assert f"{size / tokens:.1f} bytes a token; dense float16 would take 600" in found.out
    assert f"{tokens:,} tokens" in found.out
    assert "left out" in found.out
    assert "3 likeliest of 300 classes" in found.out
    assert f"kept in {out}" in found.err


def test_the_temperature_is_the_teachers(tmp_path, teacher, text):
    Outcome([teacher, "--text", text, "--k", 300, "--temperature", 2, "--out", tmp_path / "out"])
    read = TeacherCache(tmp_path / "out", tail="even")
    assert read.temperature == 2.0
    row, model = read.row(0), AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        p = (model(input_ids=row.input_ids[None]).logits[0, :-1].double() / 2).softmax(-1)
    torch.testing.assert_close(read.form(row).probabilities(), p, rtol=2**-9, atol=1e-6)


def test_the_same_command_again_and_resume_go_on(tmp_path, teacher, text, monkeypatch):
    options = ["--text", text, "--k", 5, "--shard-tokens", 200]
    whole = Outcome([teacher, *options, "--out", tmp_path / "whole"])
    assert whole.code == 0
    ask = ModelTeacher.__call__

    def interrupted_after(batches):
        left = [batches]

        def call(self, tasks):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return ask(self, tasks)

        return call

    for way in ("again", "resume"):
        out = tmp_path / way
        monkeypatch.setattr(ModelTeacher, "__call__", interrupted_after(4))
        stopped = Outcome([teacher, *options, "--out", out])
        assert stopped.code == 130
        assert f"Go on with: kullback lm cache --resume {out}" in stopped.err
        assert "tokens, as incomplete" in stopped.err
        assert (out / "unfinished").is_dir()
        monkeypatch.setattr(ModelTeacher, "__call__", ask)
        other = Outcome([teacher, *options, "--overlap", 2, "--out", out])
        assert other.code == 2
        assert "overlap is 1 there and 2 here. Name another folder" in other.err
        last = Outcome([teacher, *options, "--out", out] if way == "again" else ["--resume", out])
        assert last.code == 0, last.err
        assert files(out) == files(tmp_path / "whole")
        once_more = Outcome(["--resume", out, "--json"])
        assert json.loads(once_more.out)["status"] == "complete"
    assert Outcome([teacher, *options, "--out", out]).code == 0
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("policy", ["top-k", "drawn"])
def test_killed_at_random_moments_it_comes_to_the_same_files(tmp_path, teacher, text, policy):
    options = ["--text", str(text), "--policy", policy, "--k", "5", "--shard-tokens", "100", "--batch-size", "1"]
    command = [sys.executable, "-m", "kullback.cli", "lm", "cache", str(teacher), *options, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    out, draws, kills = tmp_path / "out", random.Random(0), []
    for _ in range(10):
        process = subprocess.Popen([*command, str(out)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        files_before = len(list(out.glob("*.parquet")))
        while process.poll() is None and len(list(out.glob("*.parquet"))) < files_before + 4:
            time.sleep(0.002)
        time.sleep(draws.uniform(0.0, 0.05))
        ended = process.poll() is not None
        process.kill()
        _, stderr = process.communicate()
        assert "Traceback" not in stderr
        if ended:
            assert process.returncode == 0, stderr
            break
        kills.append(len(list(out.glob("*.parquet"))))
    assert len(kills) >= 2
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert files(out) == files(tmp_path / "whole")


def test_the_small_teacher_is_trained_once_beside_the_cache(tmp_path, text, monkeypatch):
    some = tuple(Document(f"{i}.py", each) for i, each in enumerate(passages(30)))
    monkeypatch.setattr(small, "docstrings", lambda: some)
    arguments = ["small", "--text", text, "--teacher-steps", 2, "--k", 4, "--out", tmp_path / "out", "--json"]
    first = Outcome(arguments)
    assert first.code == 0, first.err
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out-teacher"}
    before = files(tmp_path / "out-teacher")
    assert json.loads(first.out)["teacher"] == {
        "name": "out-teacher",
        "hash": model_fingerprint(tmp_path / "out-teacher").hash,
    }
    assert Outcome(arguments).code == 0
    assert files(tmp_path / "out-teacher") == before
    assert all(path.suffix == ".parquet" for path in (tmp_path / "out").iterdir())


def test_without_a_text_it_reads_what_distilling_trains_on(monkeypatch):
    some = tuple(Document(f"{i}.py", each) for i, each in enumerate(passages(30)))
    monkeypatch.setattr(cache_job, "docstrings", lambda: some)
    train, held_out = split(some, small.HELD_OUT)
    assert list(cache_job._texts(cache_job.Settings("small"))()) == train
    assert held_out


def test_bad_input_is_one_line(tmp_path, teacher, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    (tmp_path / "short.txt").write_text("")
    for arguments, said in (
        ([], "TEACHER is missing"),
        ([tmp_path / "none"], "no such folder"),
        ([teacher, "--text", tmp_path / "none.txt"], "no such file or folder"),
        ([teacher, "--text", text, "--policy", "best"], "--policy best: write top-k or drawn"),
        ([teacher, "--text", text, "--k", 0], "--k is 0"),
        ([teacher, "--text", text, "--k", 301], "k is 301; write a number from 1 to 300"),
        ([teacher, "--text", text, "--temperature", 0], "the temperature is 0"),
        ([teacher, "--text", text, "--context", 33], "takes 32 tokens; write 32"),
        ([teacher, "--text", text, "--context", 1], "the context is 1 tokens"),
        ([teacher, "--text", text, "--dtype", "int3"], "dtype 'int3' is unknown"),
        ([teacher, "--text", text, "--out", tmp_path / "full"], "exists and is not empty"),
        ([teacher, "--text", tmp_path / "short.txt"], "holds no text"),
        (["--resume", tmp_path / "full"], "no run of kullback lm cache was stopped there"),
        (["--resume", tmp_path / "none"], "no such folder"),
        (["--resume", tmp_path / "full", "--k", 3], "leave --k out"),
    ):
        found = Outcome(arguments)
        assert found.code == 2, (arguments, found.err)
        assert said in found.err
        assert found.err.count("\n") == 1, found.err
    assert {path.name for path in tmp_path.iterdir()} == {"full", "short.txt"}
    assert files(tmp_path / "full") == {"a.txt": b"mine"}


# ---------------------------------------------------------------- asking models


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize("cells", [100, 1 << 22])
def test_every_head_gives_the_models_own_top_k(name, cells, monkeypatch):
    monkeypatch.setattr(cache_teacher, "CELLS", cells)
    model = tiny.model(name).eval()
    of = CacheSettings(Fingerprint(name, ""), "", tiny.V, "top-k", 7, temperature=1.5)
    g = torch.Generator().manual_seed(0)
    tasks = [
        Task("a", 0, Window(torch.randint(tiny.V, (length,), generator=g).tolist(), 0, scored))
        for length, scored in ((9, 1), (5, 3), (12, 1))
    ]
    teacher = ModelTeacher(model, of)
    for task, parts in zip(tasks, teacher(tasks), strict=True):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([task.window.ids])).logits[0, task.window.scored - 1 : -1]
        live = top_k(scores, 7, tail="bucket", temperature=1.5)
        assert len(parts) == (1 if cells > 100 else len(scores))
        assert torch.equal(torch.cat([part.ids for part in parts]), live.ids)
        torch.testing.assert_close(torch.cat([part.log_probs for part in parts]), live.log_probs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat([part.left_out for part in parts]), live.left_out, rtol=1e-5, atol=1e-7)


def test_a_model_that_makes_its_scores_otherwise_is_asked_for_them():
    model = tiny.model().eval()
    forward = model.forward

    def shifted(*args, **kwargs):
        found = forward(*args, **kwargs)
        found.logits = 3.0 * found.logits
        return found

    shifted.__signature__ = inspect.signature(forward)
    model.forward = shifted
    of = CacheSettings(Fingerprint("x", ""), "", tiny.V, "top-k", 7)
    task = Task("a", 0, next(windows([5, 6, 7, 8], 4)))
    ((part,),) = ModelTeacher(model, of)([task])
    with torch.no_grad():
        live = top_k(3.0 * forward(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, :-1], 7, tail="bucket")
    assert torch.equal(part.ids, live.ids)
    torch.testing.assert_close(part.log_probs, live.log_probs)


def test_draws_do_not_depend_on_what_was_asked_before():
    model = tiny.model().eval()
    of = CacheSettings(Fingerprint("x", ""), "", tiny.V, "drawn", 20, seed=3)
    one, other = (Task("a", i, next(windows([5, 6, 7, 8], 4))) for i in range(2))
    teacher = ModelTeacher(model, of)
    both, alone = teacher([one, other]), teacher([other])
    assert torch.equal(both[1][0].ids, alone[0][0].ids)
    assert both[0][0].ids.shape != both[1][0].ids.shape or not torch.equal(both[0][0].ids, both[1][0].ids)


def test_a_run_that_was_begun_without_a_whole_file_is_remembered(tmp_path, teacher, text, monkeypatch):
    def stop(self, tasks):
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelTeacher, "__call__", stop)
    found = Outcome([teacher, "--text", text, "--k", 5, "--out", tmp_path / "out"])
    assert found.code == 130
    assert "holds what was begun" in found.err
    assert Unfinished(tmp_path / "out").has("run")
    monkeypatch.undo()
    assert Outcome(["--resume", tmp_path / "out"]).code == 0
    assert TeacherCache(tmp_path / "out", tail="bucket").settings.k == 5
