"""The job behind `kullback lm distill`: what it leaves, and that its numbers are those of the models it leaves."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from kullback._errors import BadInput
from kullback.language import small
from kullback.language.documents import documents, split
from kullback.lm.distill import run, training
from kullback.lm.distill.material import Material, Texts
from kullback.lm.distill.measures import scores
from kullback.lm.distill.settings import ARMS
from kullback.lm.distill.training import last_checkpoint

FILES = {"report.html", "results.json", "settings.json", "student"}


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    return run(replace(settings, seeds=2, out=tmp_path_factory.mktemp("run") / "out"))


def by_hand(folder, text, teacher, share=0.25, context=16):
    """(tokens, NLL, KL) sums of each held-out document, in float64, window by window."""
    model, teacher = (AutoModelForCausalLM.from_pretrained(f).double().eval() for f in (folder, teacher))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for document in split(list(documents(text)), share)[1]:
        ids, sums = tokenizer(document.text)["input_ids"], np.zeros(3)
        for start in range(0, len(ids) - 1, context - 1):
            window = torch.tensor([ids[start : start + context]])
            with torch.no_grad():
                p, q = (m(window).logits[0, :-1].log_softmax(-1) for m in (teacher, model))
            came = -q.gather(-1, window[0, 1:, None])
            sums += [came.numel(), came.sum().item(), (p.exp() * (p - q)).sum().item()]
        found.append(sums)
    return np.array(found).T


def test_the_folder_holds_a_model_that_transformers_loads_and_the_numbers_are_its_own(whole, settings):
    folder = whole.folder
    assert {path.name for path in folder.iterdir()} == FILES
    document = json.loads((folder / "results.json").read_text())
    assert document["status"] == "complete"
    counts, nll, kl = by_hand(folder / "student", settings.text, settings.teacher)
    data, (taught, alone) = document["data"], document["students"]
    assert data["held_out_tokens"] == counts.sum()
    assert (data["documents"], data["held_out_documents"]) == (12, 3)
    assert taught["name"] == "from the teacher"
    assert alone["name"] == "from labels alone"
    assert taught["kl"]["by_seed"][0] == pytest.approx(kl.sum() / counts.sum(), rel=1e-5)
    assert taught["perplexity"]["by_seed"][0] == pytest.approx(math.exp(nll.sum() / counts.sum()), rel=1e-6)
    _, own, zero = by_hand(settings.teacher, settings.text, settings.teacher)
    assert document["teacher"]["perplexity"]["value"] == pytest.approx(math.exp(own.sum() / counts.sum()), rel=1e-6)
    assert abs(zero.sum()) < 1e-9


def test_errors_are_clustered_by_document_and_differences_paired(whole):
    document, counts = whole.to_json(), whole.counts
    taught, alone = ([o.sums for o in whole.of(arm)] for arm in ("from the teacher", "from labels alone"))
    difference = sum(a.kl - b.kl for a, b in zip(taught, alone, strict=True)) / 2
    mean = difference.sum() / counts.sum()
    error = math.sqrt(len(counts) / (len(counts) - 1) * ((difference - mean * counts) ** 2).sum()) / counts.sum()
    found = document["difference"]["kl"]
    assert found["value"] == pytest.approx(mean, rel=1e-12)
    assert found["stderr"] == pytest.approx(error, rel=1e-12)
    assert found["high"] - found["value"] == pytest.approx(stats.t.ppf(0.975, len(counts) - 1) * error, rel=1e-9)
    kl = document["students"][0]["kl"]
    assert kl["value"] == pytest.approx(np.mean(kl["by_seed"]), rel=1e-12)
    assert kl["stderr_over_seeds"] == pytest.approx(abs(kl["by_seed"][0] - kl["by_seed"][1]) / 2, rel=1e-9)
    ratio = document["difference"]["perplexity_ratio"]
    logs = [math.log(x["perplexity"]["value"]) for x in document["students"]]
    assert math.log(ratio["value"]) == pytest.approx(logs[0] - logs[1], rel=1e-6)


def test_curves_and_examples_are_of_the_students(whole, settings):
    document = whole.to_json()
    curve = document["students"][0]["curve"]
    assert [point["step"] for point in curve] == list(range(2, 21, 2))
    assert curve[-1]["kl"] < curve[0]["kl"]
    assert all(point["train_loss"] > 0 for point in curve)
    last = document["students"][0]["kl"]["by_seed"][0]  # curves look at all of so little text
    assert curve[-1]["kl"] == pytest.approx(last, rel=1e-5)
    example = document["examples"][0]
    pieces, teacher = example["pieces"], example["teacher"]
    student = example["students"]["from the teacher"]
    assert len(pieces) == len(teacher["came"]) == len(student["kl"]) == 16
    assert pieces[0] == "<s>"
    assert teacher["came"][0] is student["kl"][0] is None
    assert all(len(choices) == 3 for choices in teacher["choices"][1:])
    assert teacher["choices"][1][0][1] >= teacher["choices"][1][1][1]
    tokenizer = AutoTokenizer.from_pretrained(settings.teacher)
    text = next(d.text for d in split(list(documents(settings.text)), 0.25)[1] if d.name == example["title"])
    ids = tokenizer(text)["input_ids"][:16]
    window = torch.tensor([ids])
    p = AutoModelForCausalLM.from_pretrained(settings.teacher)(window).logits[0].softmax(-1)
    assert teacher["came"][5] == pytest.approx(p[4, ids[5]].item(), abs=2e-5)


def test_students_of_a_seed_read_the_same_text_in_the_same_order(settings, tmp_path):
    material = Material.of(settings, Texts.of(settings), settings.teacher)

    def read(arm, seed):
        data = training._trainer(material, arm, seed, material.student(seed), tmp_path).train_dataset
        return [data[i]["window"] for i in range(len(data))]

    one = read(ARMS[0], 0)
    assert len(one) == settings.steps * settings.batch_size
    assert read(ARMS[1], 0) == one
    assert read(ARMS[0], 1) != one
    assert {tuple(window.ids) for window in one} <= {tuple(window.ids) for window in material.train}


def test_students_of_a_seed_begin_alike(settings, tmp_path):
    """With one step at almost no learning rate both kinds are what they began as."""
    found = run(replace(settings, steps=1, learning_rate=1e-12, seeds=2, out=tmp_path / "out"))
    taught, alone = (found.of(arm) for arm in ("from the teacher", "from labels alone"))
    for one, other in zip(taught, alone, strict=True):
        assert one.sums.kl == pytest.approx(other.sums.kl, rel=1e-6)
    assert taught[0].sums.kl.sum() != pytest.approx(taught[1].sums.kl.sum(), rel=1e-4)


def test_from_hidden_states_and_from_logits_are_one_student(settings, tmp_path):
    found = [run(replace(settings, seeds=1, fused=f, out=tmp_path / str(f))) for f in (True, False)]
    one, other = (f.of("from the teacher")[0].sums.kl for f in found)
    assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize(
    "other", [{"divergence": "js"}, {"temperature": 3.0}, {"soft_weight": 0.2}, {"epochs": 1.0, "steps": None}]
)
def test_settings_reach_the_training(settings, whole, tmp_path, other):
    found = run(replace(settings, seeds=1, out=tmp_path / "out", **other))
    for arm, moved in (("from the teacher", True), ("from labels alone", "epochs" in other)):
        same = found.of(arm)[0].sums.kl == pytest.approx(whole.of(arm)[0].sums.kl, rel=1e-6)
        assert same is not moved, arm


def test_a_student_may_begin_with_weights_of_its_own(settings, teacher, tmp_path):
    found = run(replace(settings, student=teacher, steps=1, learning_rate=1e-12, seeds=1, out=tmp_path / "out"))
    assert found.to_json()["students"][0]["kl"]["value"] == pytest.approx(0.0, abs=1e-9)


def test_a_padded_vocabulary_is_cut_to_the_tokens(settings, teacher, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer) + 7, mean_resizing=False)
        model.get_input_embeddings().weight.data[len(tokenizer) :] = 3.0
    small.save(model, tokenizer, tmp_path / "padded")
    found = [
        run(replace(settings, teacher=folder, seeds=1, out=tmp_path / f"out{i}"))
        for i, folder in enumerate((teacher, tmp_path / "padded"))
    ]
    assert found[1].data["vocabulary"] == len(tokenizer)
    one, other = (f.of("from the teacher")[0].sums.kl for f in found)
    assert one == pytest.approx(other, rel=1e-3)


def test_what_a_context_hides_is_scored_once(settings, teacher):
    from kullback.language.windows import Window

    model = AutoModelForCausalLM.from_pretrained(teacher)
    ids = list(range(2, 18))
    whole, tokens = scores(model, [Window(ids, 0, 1)], 300)
    later, rest = scores(model, [Window(ids, 0, 9), Window(ids[:4], 0, 1)], 300)
    assert tokens.tolist() == ids[1:]
    assert rest.tolist() == ids[9:] + ids[1:4]
    torch.testing.assert_close(later.data, torch.cat([whole.data[8:], whole.data[:3]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "--steps is 0"),
        ({"soft_weight": 0.0}, "--soft-weight is 0"),
        ({"held_out": 1.0}, "--held-out is 1"),
        ({"context": 1}, "--context is 1"),
        ({"context": 17}, "the teacher teacher takes 16 tokens; write 16"),
        ({"epochs": 1.0}, "leave one out"),
        ({"ranks": 3}, "write --batch-size 6"),
        ({"hidden": 6}, "write --hidden 8"),
        ({"divergence": "lk"}, "choose one of kl"),
        ({"tail": "none"}, "choose one of bucket"),
        ({"temperature": 0.0}, "--temperature is 0"),
        ({"device": "nonsense"}, "--device 'nonsense' cannot be used"),
        ({"cache": "c", "teacher": None}, "write kullback lm distill TEACHER --cache FOLDER"),
        ({"student": "s", "teacher": None}, "--student needs a teacher"),
        ({"cache": "no-such"}, "no-such: no such folder"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(settings, tmp_path, wrong, says):
    with pytest.raises(BadInput) as caught:
        run(replace(settings, out=tmp_path / "out", **wrong))
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_student_of_another_tokenizer_is_refused(settings, tmp_path):
    tokenizer = small.train_tokenizer(["other words, other merges"], 310)
    small.save(small.new_model(small.Size(8, 1, 2).config(310, 16), 0), tokenizer, tmp_path / "other")
    with pytest.raises(BadInput, match="has another tokenizer than the teacher"):
        run(replace(settings, student=tmp_path / "other", out=tmp_path / "out"))


def test_a_checkpoint_that_was_half_written_is_not_gone_on_from(tmp_path):
    for step, state in ((5, "{}"), (10, "{}"), (15, "{"), (20, None)):
        place = tmp_path / f"checkpoint-{step}"
        place.mkdir()
        if step != 10:
            (place / "rng_state.pth").touch()
        if state is not None:
            (place / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path, 1).name == "checkpoint-5"
    assert last_checkpoint(tmp_path, 2) is None
    assert last_checkpoint(tmp_path / "none", 1) is None
