"""Teacher caches: what is read is what was written, whatever happened in between, and nothing else is accepted."""

import itertools
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("transformers")

import bigrams
import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from kullback import Drawn, FormError, Logits, TopK, draw, estimate, kl, top_k
from kullback._errors import BadInput
from kullback.language.caches import TeacherCache
from kullback.language.caches import writer as cache_writer
from kullback.language.caches.format import KEY
from kullback.language.caches.writer import written
from kullback.language.fingerprints import Fingerprint
from kullback.language.windows import IGNORED
from kullback.losses import Distillation

POLICIES = ["top-k", "drawn"]


def opened(folder, **given):
    tail = {} if given.get("tail") is None and written(folder).settings.policy == "drawn" else {"tail": "bucket"}
    return TeacherCache(folder, **tail | given)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=POLICIES)
def cached(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / request.param
    bigrams.write(folder, bigrams.settings(request.param))
    return folder


# ---------------------------------------------------------------- what is in it


def test_each_scored_token_of_each_document_is_there_once_beside_what_the_teacher_says_before_it(cached):
    cache, seen = opened(cached), {}
    for row in cache.rows():
        teacher = bigrams.Teacher(cache.settings)
        task = next(t for t in bigrams.tasks() if (t.number, t.window.start) == (row.number, row.start))
        assert row.document == f"text {row.number}"
        assert row.input_ids.tolist() == task.window.ids
        assert row.labels.tolist() == task.window.labels
        form, live = cache.form(row), teacher.form(task)
        assert form.batch_shape == (int((row.labels != IGNORED).sum()),)
        if isinstance(live, TopK):
            assert form.ids.tolist() == live.ids.tolist()
            torch.testing.assert_close(form.log_probs, live.log_probs, rtol=2**-10, atol=1e-7)
            torch.testing.assert_close(form.left_out, live.left_out, rtol=0.0, atol=3e-7)
        else:
            for got, sent, count in zip(form.ids, form.log_probs, form.counts, strict=True):
                assert count.sum() == cache.settings.k
                logits = dict(zip(got.tolist(), sent.tolist(), strict=True))
                assert len(logits) <= cache.settings.k
            for i in range(len(live.ids)):
                real = live.counts[i] > 0
                places = form.counts[i] > 0
                assert form.ids[i][places].tolist() == live.ids[i][real].tolist()
                assert form.counts[i][places].tolist() == live.counts[i][real].tolist()
                torch.testing.assert_close(form.log_probs[i][places], live.log_probs[i][real], rtol=2**-11, atol=2**-25)
        for place, label in enumerate(row.labels.tolist()):
            if label != IGNORED:
                at = (row.number, row.start + place)
                assert at not in seen
                seen[at] = label
    assert seen == {(n, i): ids[i] for n, ids in enumerate(bigrams.texts()) for i in range(1, len(ids))}
    assert cache.tokens == len(seen)


def test_the_rows_after_a_repeated_context_are_left_out(tmp_path):
    of = bigrams.settings(overlap=9)
    bigrams.write(tmp_path, of)
    cache = TeacherCache(tmp_path, tail="bucket")
    assert cache.tokens == sum(len(ids) - 1 for ids in bigrams.texts())
    assert all((row.teacher_ids[:8] == -1).all() for row in cache.rows() if row.start)


def test_the_files_say_what_they_are(cached):
    cache = opened(cached)
    names = sorted(path.name for path in cached.iterdir())
    assert len(names) > 2
    assert names == [f"teacher-{i:05d}.parquet" for i in range(len(names))]
    for i, name in enumerate(names):
        schema = pq.read_schema(cached / name)
        found = json.loads(pq.read_metadata(cached / name).metadata[KEY])
        assert found["format"] == "kullback teacher cache"
        assert found["version"] == 1
        assert found["tokenizer_hash"] == "a" * 64
        assert found["teacher"] == {"name": "bigrams", "hash": "7" * 64}
        assert (found["num_classes"], found["k"], found["policy"]) == (300, 8, cache.policy)
        assert (found["temperature"], found["dtype"], found["log_probs"]) == (1.0, "float32", "float16")
        assert found["seed"] == (0 if cache.policy == "drawn" else None)
        assert (found["shard"], found["last"]) == (i, i == len(names) - 1)
        assert "comes after input_ids[j]" in schema.field("teacher_ids").metadata[b"description"].decode()
        assert schema.field("teacher_ids").type == pa.list_(pa.list_(pa.uint16()))
        assert schema.field("teacher_log_probs").type == pa.list_(pa.list_(pa.float16()))
        if cache.policy == "drawn":
            assert schema.field("teacher_counts").type == pa.list_(pa.list_(pa.uint8()))
            assert found["left_out"] is None
        else:
            column = pq.read_table(cached / name, columns=["left_out"]).column(0)
            values = [x for row in column.to_pylist() for x in row if x is not None]
            assert found["left_out"] == pytest.approx(np.mean(values), rel=1e-6)
            assert found["tokens"] == len(values)


@pytest.mark.parametrize(("classes", "dtype"), [(256, pa.uint8()), (65536, pa.uint16()), (65537, pa.uint32())])
def test_ids_take_the_smallest_integers_that_hold_them(classes, dtype):
    from kullback.language.caches.format import schema

    of = replace(bigrams.settings(), num_classes=classes)
    assert schema(of).field("input_ids").type.value_type == dtype
    assert np.iinfo(of.id_dtype).max >= classes - 1


def test_datasets_reads_plain_columns(cached, tmp_path):
    cache = opened(cached)
    table = datasets.load_dataset("parquet", data_dir=str(cached), split="train", cache_dir=str(tmp_path))
    assert len(table) == len(cache)
    for place in (0, 7, len(cache) - 1):
        row, its = cache.row(place), table[place]
        assert its["input_ids"] == row.input_ids.tolist()
        assert (its["document"], its["document_index"], its["start"]) == (row.document, row.number, row.start)
        filled = [j for j, ids in enumerate(its["teacher_ids"]) if ids]
        assert [its["input_ids"][j + 1] for j in filled] == row.labels[row.labels != IGNORED].tolist()
        form = cache.form(row)
        for j, ids, log_probs in zip(filled, form.ids, form.log_probs, strict=True):
            n = len(its["teacher_ids"][j])
            assert its["teacher_ids"][j] == ids[:n].tolist()
            np.testing.assert_allclose(its["teacher_log_probs"][j], log_probs[:n], rtol=2**-10, atol=1e-7)
        if cache.policy == "top-k":
            assert [m is None for m in its["left_out"]] == [j not in filled for j in range(len(its["input_ids"]))]


def test_the_mass_that_is_left_out_survives_half_precision(tmp_path):
    """Where the listed classes have nearly all of it, 1 less the sum of float16 is far from what they leave."""
    documents = [list(range(1, 10))]
    of = bigrams.settings(k=8)
    live = top_k(5.0 * bigrams.scores(range(1, 9)), 8, tail="bucket")
    assert 1e-8 < live.left_out.min() < live.left_out.max() < 2e-4
    bigrams.write(tmp_path, of, documents, teacher=lambda batch: [[live]])
    read = TeacherCache(tmp_path, tail="bucket")
    form = read.form(read.row(0))
    halves = live.log_probs.half().double().exp().sum(-1)
    assert ((1.0 - halves - live.left_out).abs() > live.left_out + 1e-6).any()
    student = Logits(bigrams.scores(range(11, 19)).double())
    torch.testing.assert_close(form.left_out, live.left_out, rtol=1e-6, atol=2e-7)
    torch.testing.assert_close(kl(form, student), kl(live, student), rtol=2e-3, atol=1e-6)


def test_what_no_class_has_stays_without_mass(tmp_path):
    logits = bigrams.scores([1, 2])
    logits[:, 5:] = -torch.inf
    bigrams.write(
        tmp_path,
        documents=[[1, 2, 3]],
        teacher=lambda batch: [[top_k(logits[:1], 8, tail="bucket"), top_k(logits[1:], 8, tail="bucket")]],
    )
    read = TeacherCache(tmp_path, tail="renormalize")
    form = read.form(read.row(0))
    torch.testing.assert_close(form.probabilities(), logits.double().softmax(-1), rtol=2e-3, atol=1e-6)


def test_draws_have_the_teachers_distribution(tmp_path):
    """Counts of one context, drawn anew in each of 400 windows, against its probabilities: chi-squared."""
    of = bigrams.settings("drawn", k=50)
    bigrams.write(tmp_path, of, [[7, 8]] * 400)
    read, counts = TeacherCache(tmp_path), torch.zeros(bigrams.V, dtype=torch.float64)
    for row in read.rows():
        form = read.form(row)
        counts.index_add_(0, form.ids[0], form.counts[0].double())
    p = bigrams.scores([7])[0].double().softmax(-1)
    expected = 400 * 50 * p
    frequent = expected > 5
    chi = ((counts - expected)[frequent].square() / expected[frequent]).sum()
    n = int(frequent.sum())
    assert abs(chi - n) < 5 * (2 * n) ** 0.5
    assert counts.sum() == 400 * 50


# ---------------------------------------------------------------- killed and resumed


class Stops(bigrams.Teacher):
    def __init__(self, of, after):
        super().__init__(of)
        self.after = after

    def __call__(self, batch):
        if self.asked >= self.after:
            raise KeyboardInterrupt
        return super().__call__(batch)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("after", [0, 5, 20, 47, 62])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, policy, after):
    of = bigrams.settings(policy)
    bigrams.write(tmp_path / "whole", of)
    with pytest.raises(KeyboardInterrupt):
        bigrams.write(tmp_path / "cut", of, teacher=Stops(of, after))
    there = written(tmp_path / "cut")
    assert all(not path.name.startswith(".") for path in (tmp_path / "cut").iterdir())
    again = bigrams.Teacher(of)
    progress = []
    found = bigrams.write(tmp_path / "cut", of, teacher=again, on_tokens=progress.append)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert again.asked == found.windows - (0 if there is None else there.windows)
    assert progress == sorted(progress)
    assert progress[-1] == sum(len(task.window.ids) for task in bigrams.tasks())


@pytest.mark.parametrize("policy", ["top-k", pytest.param("drawn", marks=pytest.mark.slow)])
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_again_and_again_it_comes_to_the_same_bytes(tmp_path, policy):
    """SIGKILL at moments of which nobody is told."""
    bigrams.write(tmp_path / "whole", bigrams.settings(policy), batch=2)
    out, draws, kills = tmp_path / "cut", random.Random(1), 0
    command = [sys.executable, bigrams.__file__, str(out), policy]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(20):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        shards = len(list(out.glob("*.parquet")))
        while process.poll() is None and len(list(out.glob("*.parquet"))) < shards + 2:
            time.sleep(0.005)
        time.sleep(draws.uniform(0.0, 0.08))
        if process.poll() is None:
            kills += 1
            process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
        assert "Error" not in stderr, stderr
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 2
    assert contents(out) == contents(tmp_path / "whole")


def test_a_complete_cache_is_left_as_it_is(tmp_path):
    first = bigrams.write(tmp_path)
    before = contents(tmp_path)
    teacher = bigrams.Teacher(bigrams.settings())
    assert bigrams.write(tmp_path, teacher=teacher) == first
    assert teacher.asked == 0
    assert contents(tmp_path) == before


def test_an_end_on_a_files_edge_is_an_end(tmp_path):
    documents = [list(range(17))] * 25  # 16 tokens and 2: the windows of 11 documents fill a file
    of = bigrams.settings(shard_tokens=18 * 5)
    found = bigrams.write(tmp_path, of, documents)
    assert len(list(tmp_path.iterdir())) == 5
    assert found.complete
    assert written(tmp_path) == found


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokenizer_hash": "b" * 64}, "the tokenizer is aaaaaaaaaaaa there and bbbbbbbbbbbb here"),
        (
            {"teacher": Fingerprint("other", "8" * 64)},
            r"the teacher is bigrams \(777777777777\) there and other \(8888",
        ),
        ({"k": 9}, "k is 8 there and 9 here"),
        ({"temperature": 2.0}, "temperature is 1.0 there and 2.0 here"),
        ({"context": 8}, "context is 16 there and 8 here"),
        ({"dtype": "bfloat16"}, "dtype is float32 there and bfloat16 here"),
        ({"policy": "drawn", "seed": 0}, "policy is top-k there and drawn here"),
    ],
)
def test_a_cache_of_something_else_is_not_gone_on_with(tmp_path, changed, said):
    bigrams.write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(BadInput, match=f"holds a cache already, and {said}"):
        bigrams.write(tmp_path, replace(bigrams.settings(), **changed))
    assert contents(tmp_path) == before


def test_the_same_teacher_under_another_name_is_the_same(tmp_path):
    bigrams.write(tmp_path / "whole")
    of = bigrams.settings()
    with pytest.raises(KeyboardInterrupt):
        bigrams.write(tmp_path / "cut", of, teacher=Stops(of, 30))
    bigrams.write(tmp_path / "cut", replace(of, teacher=Fingerprint("moved", "7" * 64), text="elsewhere"))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("stop", [None, 30])
def test_another_text_is_not_gone_on_with(tmp_path, stop):
    of = bigrams.settings()
    if stop:
        with pytest.raises(KeyboardInterrupt):
            bigrams.write(tmp_path, of, teacher=Stops(of, stop))
    else:
        bigrams.write(tmp_path, of)
    one_token, ends, longer = bigrams.texts(), bigrams.texts()[:3], [*bigrams.texts(), [1, 2, 3]]
    one_token[3][5] += 1
    with pytest.raises(BadInput, match="the text is another one from token 0 of 'text 3' on"):
        bigrams.write(tmp_path, of, one_token)
    with pytest.raises(BadInput, match="the text ends before"):
        bigrams.write(tmp_path, of, ends)
    if stop is None:
        with pytest.raises(BadInput, match="the text goes on behind"):
            bigrams.write(tmp_path, of, longer)


def test_a_file_in_which_a_bit_was_changed_is_refused(cached, tmp_path):
    """Any bit of the content: those that Parquet notices itself, and those that only the checksum sees."""
    path = sorted(cached.glob("*.parquet"))[1]
    data = bytearray(path.read_bytes())
    draws, noticed = random.Random(0), 0
    for _ in range(40):
        (tmp_path / "copy").mkdir(exist_ok=True)
        for each in cached.iterdir():
            (tmp_path / "copy" / each.name).write_bytes(each.read_bytes())
        changed = bytearray(data)
        changed[draws.randrange(4, len(data) // 2)] ^= 1 << draws.randrange(8)
        (tmp_path / "copy" / path.name).write_bytes(changed)
        try:
            cache = opened(tmp_path / "copy")
            cache.check()
        except BadInput as error:
            noticed += 1
            assert path.name in str(error)  # noqa: PT017
        else:  # a bit that nothing reads
            rows = zip(cache.rows(), opened(cached).rows(), strict=True)
            assert all(torch.equal(a.teacher_log_probs, b.teacher_log_probs) for a, b in rows)
    assert noticed > 20


def test_content_that_was_written_again_with_other_values_is_refused(cached, tmp_path):
    """A valid Parquet file, in which one number is another."""
    for each in cached.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    path = tmp_path / "teacher-00001.parquet"
    table = pq.read_table(path)
    values = table.column("start").to_pylist()
    values[-1] += 1
    changed = table.set_column(2, table.schema.field("start"), pa.array(values))
    pq.write_table(changed.replace_schema_metadata({KEY: pq.read_metadata(path).metadata[KEY]}), path)
    with pytest.raises(BadInput, match=r"teacher-00001\.parquet: is not what was written"):
        opened(tmp_path).check()


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        TeacherCache(tmp_path / "none", tail="bucket")
    with pytest.raises(BadInput, match="holds no file of a teacher cache"):
        TeacherCache(tmp_path, tail="bucket")
    bigrams.write(tmp_path / "one")
    bigrams.write(tmp_path / "other", bigrams.settings(k=9))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    last, second = tmp_path / "one" / names[-1], tmp_path / "one" / names[1]
    kept = last.read_bytes(), second.read_bytes()
    last.unlink()
    with pytest.raises(BadInput, match="the cache is not complete"):
        TeacherCache(tmp_path / "one", tail="bucket")
    assert len(TeacherCache(tmp_path / "one", tail="bucket", incomplete=True)) > 0
    last.write_bytes(kept[0])
    second.unlink()
    with pytest.raises(BadInput, match=f"{names[2]} is part 2 of a cache but stands in place 1"):
        TeacherCache(tmp_path / "one", tail="bucket")
    second.write_bytes((tmp_path / "other" / names[1]).read_bytes())
    with pytest.raises(BadInput, match=f"{names[1]} is of another cache than {names[0]}: k is 8 there and 9 here"):
        TeacherCache(tmp_path / "one", tail="bucket")
    second.write_bytes(kept[1][:-100])
    with pytest.raises(BadInput, match=f"{names[1]}: cannot be read as Parquet"):
        TeacherCache(tmp_path / "one", tail="bucket")
    pq.write_table(pa.table({"x": [1]}), second)
    with pytest.raises(BadInput, match=f"{names[1]}: is no file of a teacher cache"):
        TeacherCache(tmp_path / "one", tail="bucket")


def test_a_top_k_has_no_tail_by_default_and_what_was_drawn_none_at_all(tmp_path):
    for policy in POLICIES:
        bigrams.write(tmp_path / policy, bigrams.settings(policy))
    with pytest.raises(FormError, match=r"no tail is given, .* Write tail='bucket'"):
        TeacherCache(tmp_path / "top-k")
    with pytest.raises(FormError, match="drawn classes have no tail; leave tail='even' out"):
        TeacherCache(tmp_path / "drawn", tail="even")


def test_forms_that_do_not_fit_the_settings_are_refused(tmp_path):
    logits = bigrams.scores([1, 2])
    for form, said in (
        (top_k(logits, 9, tail="bucket"), "gave 9 classes"),
        (top_k(logits, 8, tail="even").tempered(2.0), "at temperature 2"),
        (top_k(logits[:1], 8, tail="bucket"), r"rows of shapes \[\(1,\)\], but there are 2"),
        (top_k(logits[:, :100], 8, tail="bucket"), "a TopK of 100 classes"),
        (draw(logits, 8), "a Drawn of 300 classes, but a TopK"),
    ):
        with pytest.raises(BadInput, match=said):
            bigrams.write(tmp_path, documents=[[1, 2, 3]], teacher=lambda batch, form=form: [[form]])
    of = bigrams.settings("drawn")
    with pytest.raises(BadInput, match="drew another number of classes than 8"):
        bigrams.write(tmp_path, of, [[1, 2, 3]], teacher=lambda batch: [[draw(logits, 7)]])
    with pytest.raises(BadInput, match="there is no token to describe"):
        bigrams.write(tmp_path, documents=[[1]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"policy": "best"}, "the policy is 'best'"),
        ({"k": 0}, "k is 0"),
        ({"k": 301}, "k is 301; write a number from 1 to 300"),
        ({"temperature": 0.0}, "the temperature is 0.0"),
        ({"seed": 1}, "the likeliest ones have none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, said):
    with pytest.raises(BadInput, match=said):
        bigrams.settings(**given)


# ---------------------------------------------------------------- read by trainers


def test_documents_are_shuffled_by_a_seed_and_their_windows_are_not(cached):
    cache = opened(cached)
    stored = [(row.number, row.start) for row in cache.rows()]
    shuffled = [(row.number, row.start) for row in cache.rows(seed=3)]
    assert sorted(shuffled) == stored == sorted(stored)
    assert cache.documents() == [row.document for row in cache.rows()]
    assert shuffled != stored
    assert shuffled == [(row.number, row.start) for row in cache.rows(seed=3)]
    assert shuffled != [(row.number, row.start) for row in cache.rows(seed=4)]
    numbers = [number for number, _ in shuffled]
    blocks = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n]
    assert len(blocks) == len(set(numbers))
    assert all(a[1] < b[1] for a, b in itertools.pairwise(shuffled) if a[0] == b[0])


def test_reading_keeps_no_more_than_it_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_writer, "GROUP_TOKENS", 64)
    bigrams.write(tmp_path)
    cache = TeacherCache(tmp_path, tail="bucket", memory=10_000)
    assert len(cache._groups) > 12
    most = 0
    for _ in cache.rows(seed=0):
        most = max(most, sum(group.block.nbytes for group in cache._kept.values()))
    assert 2_000 < most <= 10_000
    groups = sum(TeacherCache(tmp_path, tail="bucket")._group(i).block.nbytes for i in range(len(cache._groups)))
    assert groups > 3 * 10_000


def test_workers_read_for_themselves(cached):
    cache = opened(cached)
    data = cache.dataset(seed=1)
    first = data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert not copy.teacher._kept
    assert all(torch.equal(x, first[name]) for name, x in copy[0].items())


@pytest.mark.parametrize("tail", ["bucket", "even", "renormalize"])
def test_a_batch_of_a_cache_has_the_loss_of_the_live_teacher(tmp_path, tail):
    bigrams.write(tmp_path)
    cache = TeacherCache(tmp_path, tail=tail)
    data = cache.dataset()
    batch = cache.collator(pad_token_id=9)([data[i] for i in (0, 1, 5, 12)])
    ids, labels = batch["input_ids"], batch["labels"]
    assert (ids[batch["attention_mask"] == 0] == 9).all()
    assert (batch["attention_mask"] == 0).any()
    g = torch.Generator().manual_seed(0)
    student = torch.randn(*ids.shape, bigrams.V, generator=g)
    next_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    loss = Distillation(temperature=1.0, soft_weight=1.0)
    live = top_k(bigrams.scores(ids.flatten()).reshape(*ids.shape, -1), 8, tail=tail)
    kept = next_labels != IGNORED
    expected = loss(student=student, teacher=live, mask=kept)
    assert loss(student=student, teacher=cache(batch), mask=kept).item() == pytest.approx(
        expected.item(), abs=error_of_float16(live, student)[kept].mean().item()
    )


def error_of_float16(live, student):
    """Of the KL of each row, to first order: each log-probability is off by |log p| / 2048, and the row's shift by the
    mean of that; a listed class weighs p |log p/q - log m/m_q|, of bucket or even shares, 1 more to be safe.
    """
    log_p = live.log_probs.double()
    log_q = student.double().log_softmax(-1).gather(-1, live.ids)
    weight = log_p.exp() * ((log_p - log_q).abs() + 1.0)
    step = log_p.abs() / 2048
    return (weight * (step + (log_p.exp() * step).sum(-1, keepdim=True) / log_p.exp().sum(-1, keepdim=True))).sum(-1)


def test_a_batch_of_drawn_classes_has_the_estimate_of_the_live_draws(tmp_path):
    of = bigrams.settings("drawn")
    bigrams.write(tmp_path, of)
    cache = TeacherCache(tmp_path)
    data = cache.dataset()
    batch = cache.collator()([data[i] for i in (0, 1, 5)])
    form = cache(batch)
    assert isinstance(form, Drawn)
    student = torch.randn(*batch["input_ids"].shape, bigrams.V, generator=torch.Generator().manual_seed(0))
    by_rows = estimate.kl(form, Logits(student)).raw
    all_tasks = list(bigrams.tasks())
    for i, place in enumerate((0, 1, 5)):
        live = bigrams.Teacher(of).form(all_tasks[place])
        where = torch.from_numpy(all_tasks[place].described)
        mine = student[i, : len(where)][where]
        expected = estimate.kl(live, Logits(mine)).raw
        worst = (live.log_probs.double().abs().amax(-1) / 2048).max().item()
        torch.testing.assert_close(by_rows[i, : len(where)][where], expected, rtol=0.0, atol=worst)


def test_a_batch_made_otherwise_is_refused(tmp_path):
    bigrams.write(tmp_path)
    cache = TeacherCache(tmp_path, tail="bucket")
    batch = cache.collator()([cache.dataset()[i] for i in range(8)])
    assert (batch["attention_mask"] == 0).any()
    with pytest.raises(FormError, match=r"has no teacher_ids\. .*remove_unused_columns=False"):
        cache({name: x for name, x in batch.items() if name != "teacher_ids"})
    with pytest.raises(FormError, match="there is a row for each token"):
        cache(batch | {"input_ids": batch["input_ids"][:, :-1]})
    said = r"the token after position \(\d, \d+\) has a label, but the teacher no row for it"
    for moved in (1, -1):
        other_place = {name: batch[name].roll(moved, 1) for name in ("input_ids", "labels")}
        with pytest.raises(FormError, match=said):
            cache(batch | other_place)
    with pytest.raises(FormError, match=said):
        cache(batch | {"labels": batch["input_ids"]})


def test_another_tokenizer_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    from kullback.language.fingerprints import tokenizer_hash

    one, other = (Tokenizer(models.WordLevel({"a": i, "b": 1 - i}, "a")) for i in range(2))
    bigrams.write(tmp_path, replace(bigrams.settings(), tokenizer_hash=tokenizer_hash(one)))
    cache = TeacherCache(tmp_path, tail="bucket")
    cache.check_tokenizer(one)
    with pytest.raises(FormError, match="are of another tokenizer"):
        cache.check_tokenizer(other)


def test_the_example_of_the_page_makes_labels_of_the_columns(cached, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "caches.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^## Read it with datasets\n\n```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names = {}
    exec(block.replace('data_dir="cache"', f'data_dir="{cached}", cache_dir="{tmp_path}"'), names)
    assert names["labels"] == opened(cached).row(0).labels.tolist()
