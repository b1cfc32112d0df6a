"""The trainer learns from a cache what it learns from the live teacher's top k, to the error of float16."""

import functools

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import tiny

from kullback import draw, top_k
from kullback.language.caches import TeacherCache
from kullback.language.caches.format import CacheSettings
from kullback.language.caches.teacher import ModelTeacher
from kullback.language.caches.writer import Task, write_cache
from kullback.language.fingerprints import model_fingerprint
from kullback.language.windows import IGNORED, windows
from kullback.losses import Distillation

TEXTS = [row["input_ids"].tolist() for row in tiny.texts(24)]


@functools.cache
def teacher():
    return tiny.model(seed=2, hidden_size=24).eval()


def write(folder, policy, k):
    seed = 5 if policy == "drawn" else None
    of = CacheSettings(model_fingerprint(teacher()), "", tiny.V, policy, k, context=9, seed=seed)
    tasks = [Task(str(i), i, window) for i, ids in enumerate(TEXTS) for window in windows(ids, 9)]
    write_cache(folder, of, tasks, ModelTeacher(teacher(), of))
    return of, tasks


def trained(rows, collate, of, columns=(), **loss):
    """(what was logged of one step over four micro-batches, the step)."""
    student = tiny.model(seed=1)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    settings = tiny.settings(gradient_accumulation_steps=4, per_device_train_batch_size=8, remove_unused_columns=False)
    made = tiny.trainer(student, of, rows, args=settings, loss=Distillation(1.0, **loss), teacher_columns=columns)
    made.data_collator = collate
    made.train()
    step = {n: before[n].double() - p.detach().double() for n, p in student.named_parameters()}
    return made.state.log_history[0], step


@pytest.mark.parametrize("tail", ["bucket", "even", "renormalize"])
def test_a_step_from_the_cache_is_that_from_the_live_top_k(tmp_path, tail):
    write(tmp_path, "top-k", 9)
    cache = TeacherCache(tmp_path, tail=tail)

    @torch.no_grad()
    def live(inputs):
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return top_k(teacher()(**given).logits, 9, tail=tail)

    rows = [{name: row.item()[name] for name in ("input_ids", "labels")} for row in cache.rows()]
    assert sum(len(row["input_ids"]) < 9 for row in rows) > 3  # so that batches are padded
    of_live, live_step = trained(rows, tiny.collate, live)
    of_cache, cache_step = trained(cache.dataset(), cache.collator(), cache, cache.columns)
    # |log p| / 2048 in each log-probability, weighed by p: at most H(p) / 2048 twice, and H(p) < log V = 4.2
    error = 2 * torch.tensor(float(tiny.V)).log().item() / 2048
    assert of_cache["soft"] == pytest.approx(of_live["soft"], abs=error * max(1.0, of_live["soft"]))
    assert of_cache["hard"] == pytest.approx(of_live["hard"], rel=1e-6)
    assert of_cache["soft"] != of_live["soft"]
    assert tiny.off(cache_step, live_step) < 2 * error


def test_a_step_from_the_drawn_cache_is_that_of_its_draws(tmp_path):
    of, tasks = write(tmp_path, "drawn", 20)
    cache = TeacherCache(tmp_path)
    places = {tuple(task.window.ids): task for task in tasks}

    @torch.no_grad()
    def live(inputs):
        """The same draws, from logits at hand, in float32."""
        found = []
        for ids, mask, labels in zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], strict=True):
            task = places[tuple(ids[mask.bool()].tolist())]
            scores = teacher()(input_ids=ids[mask.bool()][None]).logits[0][torch.from_numpy(task.described)]
            drawn = draw(scores, 20, generator=task.generator(of.seed))
            found.append(((labels[1:] != IGNORED).nonzero().flatten(), drawn))
        return joined(found, inputs["input_ids"].shape)

    rows = [{name: row.item()[name] for name in ("input_ids", "labels")} for row in cache.rows()]
    of_live, live_step = trained(rows, tiny.collate, live)
    of_cache, cache_step = trained(cache.dataset(), cache.collator(), cache, cache.columns)
    # the draws are the same, so the gradient is; the value is off by the mean error of their log-probabilities
    assert of_cache["soft"] == pytest.approx(of_live["soft"], abs=8.0 / 2048)
    assert of_cache["soft"] != of_live["soft"]
    assert tiny.off(cache_step, live_step) < 1e-5


def joined(found, shape):
    from kullback import Drawn

    width = max(drawn.ids.shape[-1] for _, drawn in found)
    ids, logs, counts = (torch.zeros(*shape, width, dtype=of) for of in (torch.long, torch.float32, torch.long))
    counts[..., 0] = 1
    for i, (places, drawn) in enumerate(found):
        n = drawn.ids.shape[-1]
        ids[i, places, :n], logs[i, places, :n], counts[i, places, :n] = drawn.ids, drawn.log_probs, drawn.counts
    return Drawn(ids, logs, tiny.V, counts=counts)
