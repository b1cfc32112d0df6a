"""A teacher cache in the Trainer: its own data, batches and columns, and the step of the formula on what is stored."""

import copy
from dataclasses import replace

import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import bigrams
import tiny
from transformers.trainer_callback import PrinterCallback

from kullback import FormError
from kullback.integrations.transformers import DistillationTrainer
from kullback.language.caches import TeacherCache
from kullback.losses import GKD, Distillation


def student(seed=1):
    return tiny.model(seed=seed, vocab_size=bigrams.V)


def trainer(model, cache, args=None, **given):
    made = DistillationTrainer(model, args or tiny.settings(), teacher=cache, **given)
    made.remove_callback(PrinterCallback)
    return made


def reference(model, cache, temperature=1.0, weight=0.5):
    """(loss, KL at the student's temperature, gradients) in float64 over all windows, one by one, by formulas."""
    model = copy.deepcopy(model).double()
    soft, hard = [], []
    for row in cache.rows():
        scores = model(input_ids=row.input_ids[None]).logits[0]
        for t in (row.labels[1:] != -100).nonzero()[:, 0].tolist():
            log_q = (scores[t] / temperature).log_softmax(-1)
            hard.append(-scores[t].log_softmax(-1)[row.labels[t + 1]])
            listed = row.teacher_ids[t] >= 0
            ids, log_p = row.teacher_ids[t][listed], row.teacher_log_probs[t][listed].double()
            if row.teacher_counts is not None:
                share = row.teacher_counts[t][listed].double() / row.teacher_counts[t].sum()
                soft.append((share * (log_p - log_q[ids])).sum())
                continue
            between = (log_p.exp() * (log_p - log_q[ids])).sum()
            rest = [1 - x.exp().sum() for x in (log_p, log_q[ids])]
            soft.append(between + rest[0] * (rest[0] / rest[1]).log())
    kl = torch.stack(soft).mean()
    loss = weight * temperature**2 * kl + (1 - weight) * torch.stack(hard).mean()
    loss.backward()
    return loss.item(), kl.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("policy", "tail"), [("top-k", "bucket"), ("drawn", None)])
def test_a_cache_brings_what_a_step_needs(tmp_path, policy, tail, fused):
    """The Trainer shuffles windows; the rows of the teacher go with their own."""
    bigrams.write(tmp_path, bigrams.settings(policy))
    cache = TeacherCache(tmp_path, tail=tail)
    model = student()
    wanted, kl, gradients = reference(model, cache)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    size = -(-len(cache) // 4)
    args = tiny.settings(per_device_train_batch_size=size, gradient_accumulation_steps=4)
    made = trainer(model, cache, args, loss=Distillation(1.0), fused=fused, eval_dataset=cache.dataset())
    evaluated = made.evaluate()
    made.train()
    step = {n: before[n].double() - p.detach().double() for n, p in model.named_parameters()}
    assert made.state.log_history[-2]["loss"] == pytest.approx(wanted, rel=1e-6)
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)
    assert tiny.off(step, gradients) < 1e-5
    assert evaluated["eval_loss"] == pytest.approx(wanted, rel=1e-6)
    assert evaluated["eval_kl"] == pytest.approx(kl, rel=1e-5)


def test_a_cache_kept_at_a_temperature_is_not_tempered_again(tmp_path):
    bigrams.write(tmp_path, bigrams.settings(temperature=2.0))
    cache = TeacherCache(tmp_path, tail="bucket")
    for loss in (Distillation(2.0), GKD(0.0, scaled=True)):
        with pytest.raises(FormError, match=r"at temperature 2, .*Write loss=Distillation\(2, teacher_temperature=1\)"):
            trainer(student(), cache, loss=loss)
    loss = Distillation(2.0, teacher_temperature=1.0)
    found = trainer(student(), cache, loss=loss, eval_dataset=cache.dataset()).evaluate()
    assert found["eval_loss"] == pytest.approx(reference(student(), cache, temperature=2.0)[0], rel=1e-6)
    assert "eval_kl" not in found


def test_a_cache_of_another_tokenizer_is_refused(tmp_path):
    from test_transformers import tokenizer

    from kullback.language.fingerprints import tokenizer_hash

    words = ["?", *map(chr, range(97, 97 + 60))]
    same, other = tokenizer(words), tokenizer([words[0], *reversed(words[1:])])
    bigrams.write(tmp_path, replace(bigrams.settings(), tokenizer_hash=tokenizer_hash(same)))
    cache = TeacherCache(tmp_path, tail="bucket")
    trainer(student(), cache, processing_class=same)
    with pytest.raises(FormError, match="are of another tokenizer"):
        trainer(student(), cache, processing_class=other)


def test_a_student_of_another_vocabulary_is_told_how_many_tokens_are_real(tmp_path):
    bigrams.write(tmp_path)
    cache = TeacherCache(tmp_path, tail="bucket")
    wider = tiny.model(seed=1, vocab_size=bigrams.V + 20)
    with pytest.raises(FormError, match=r"student scores 320 classes and the teacher 300.*num_classes="):
        trainer(wider, cache, loss=Distillation(1.0)).train()
    narrow = copy.deepcopy(wider)
    narrow.resize_token_embeddings(bigrams.V)
    found = trainer(wider, cache, loss=Distillation(1.0), num_classes=300, eval_dataset=cache.dataset()).evaluate()
    assert found["eval_loss"] == pytest.approx(reference(narrow, cache)[0], rel=1e-6)


def test_columns_of_the_teacher_stay_in_a_dataset(tmp_path):
    """As `datasets` holds them, where the Trainer removes what the student does not take."""
    import datasets

    bigrams.write(tmp_path)
    cache = TeacherCache(tmp_path, tail="bucket")
    rows = datasets.Dataset.from_list([{k: x.tolist() for k, x in cache.dataset()[i].items()} for i in range(6)])
    rows = rows.add_column("said", ["x"] * 6).with_format("torch")
    found = trainer(student(), cache, loss=Distillation(1.0), eval_dataset=rows, train_dataset=rows).evaluate()
    assert found["eval_kl"] > 0.0
