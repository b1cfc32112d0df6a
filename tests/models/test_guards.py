"""What is refused before two models are compared, with what to write; and what is said."""

import copy

import pytest
import torch

from kullback._errors import BadInput
from kullback.language.small import Size, new_model, save, train_tokenizer
from kullback.models import compare
from kullback.models.guards import about_beginning
from kullback.models.sides import CallableSide
from kullback.models.text import Batch, Piece

OPTIONS = {"context": 48, "noise": 0}


def run(models, tokenizer, texts, candidate=None, **options):
    return compare(
        models[0], {"candidate": candidate if candidate is not None else models[1]["near"]}, text=texts[:3],
        tokenizer=tokenizer, **OPTIONS | options,
    )  # fmt: skip


def test_another_vocabulary_is_refused_by_a_token(folders, models, texts, text_folder, tmp_path):
    other = train_tokenizer([text[::-1] for text in texts], 400)
    path = save(models[1]["near"], other, tmp_path / "near")
    with pytest.raises(BadInput, match=r"differ in \d+ tokens; .* has id \d+ in reference's and .*one tokenizer"):
        compare(folders["reference"], path, text=text_folder, **OPTIONS)


def test_a_tokenizer_without_beginning_is_noted(folders, models, tokenizer, text_folder, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = __import__("tokenizers").processors.ByteLevel(trim_offsets=False)
    path = save(models[1]["near"], other, tmp_path / "near")
    found = compare(folders["reference"], path, text=text_folder, limit=100, **OPTIONS)
    notes = found.to_json()["notes"]
    assert any("not written alike" in note for note in notes)
    assert any("reference sets a beginning-of-text token and that of near does not" in note for note in notes)


def test_how_documents_begin_is_said(models, tokenizer, texts):
    notes = run(models, tokenizer, texts).to_json()["notes"]
    assert notes[0] == ("Each document begins with '<s>' (id 1), as its tokenizer sets it; that token is not scored.")
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = __import__("tokenizers").processors.ByteLevel(trim_offsets=False)
    assert about_beginning(bare) == (
        "The tokenizer sets no beginning-of-text token, so the first token of each document is not scored."
    )


def test_a_smaller_vocabulary_than_the_tokenizers_is_refused(models, tokenizer, texts):
    small = new_model(Size(hidden=32, layers=1, heads=2).config(len(tokenizer) - 9, 64), 0)
    with pytest.raises(BadInput, match="write --num-classes 391"):
        run(models, tokenizer, texts, small)


def test_declared_classes_hold_the_texts_tokens(models, tokenizer, texts):
    with pytest.raises(BadInput, match=r"the text has token \d+, but 300 classes are compared"):
        run(models, tokenizer, texts, num_classes=300)
    with pytest.raises(BadInput, match="--num-classes 500, but the models score fewer"):
        run(models, tokenizer, texts, num_classes=500)


def test_declared_classes_that_leave_out_tokens_are_noted(models, tokenizer, texts):
    ids = [i for text in texts[:3] for i in tokenizer(text)["input_ids"]]
    n = max(ids) + 1
    found = run(models, tokenizer, texts, num_classes=n)
    assert any(f"{len(tokenizer) - n} tokens of the tokenizer, from id {n} on" in x for x in found.plan.notes) == (
        n < len(tokenizer)
    )


def test_a_context_that_a_model_cannot_take_is_refused(models, tokenizer, texts):
    with pytest.raises(BadInput, match="--context 65 is more than LlamaForCausalLM can take; write --context 64"):
        run(models, tokenizer, texts, context=65)


@pytest.mark.parametrize("whose", ["reference", "candidate"])
@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_name_document_and_position(models, tokenizer, texts, whose, what):
    """The candidate breaks at one token of the second document only."""
    ids = tokenizer(texts[1])["input_ids"]
    good, bad = models[0], 31

    def broken(x):
        logits = good(input_ids=x).logits.clone()
        if x[0, : bad + 1].tolist() == ids[: bad + 1]:
            logits[0, bad - 1, 7] = what
        return logits

    sides = {"reference": good, "candidate": lambda x: good(input_ids=x).logits} | {whose: broken}
    name = {"reference": "broken", "candidate": "spoilt"}[whose]
    with pytest.raises(BadInput, match=rf"{name}: its scores are not finite at document 1 \(text 1\), position {bad}"):
        compare(
            sides["reference"], {"spoilt" if whose == "candidate" else "fine": sides["candidate"]}, text=texts[:3],
            tokenizer=tokenizer, **OPTIONS,
        )  # fmt: skip


def test_what_was_measured_before_a_broken_score_is_kept(models, tokenizer, texts, tmp_path):
    good, calls = models[0], []

    def broken(x):
        calls.append(1)
        logits = good(input_ids=x).logits.clone()
        return logits * float("nan") if len(calls) > 12 else logits

    with pytest.raises(BadInput, match="not finite"):
        compare(good, {"broken": broken}, text=texts, tokenizer=tokenizer, out=tmp_path / "run", **OPTIONS)
    assert '"status": "interrupted"' in (tmp_path / "run" / "results.json").read_text()
    assert list((tmp_path / "run").glob("tokens-*.parquet"))


def test_masked_classes_are_no_broken_scores(models, tokenizer, texts):
    """-inf on both sides is a class without mass, on the candidate's side only an infinite divergence."""
    good = models[0]

    def masked(x):
        logits = good(input_ids=x).logits.clone()
        logits[..., 0] = -torch.inf
        return logits

    found = compare(masked, {"both": masked}, text=texts[:2], tokenizer=tokenizer, **OPTIONS)
    assert found["both"]["statistics"]["KL divergence statistics"][0]["value"] == 0.0
    found = compare(good, {"one": masked}, text=texts[:2], tokenizer=tokenizer, **OPTIONS)
    mean = found["one"]["statistics"]["KL divergence statistics"][0]
    assert mean["value"] is None
    assert found["one"]["worst"][0]["kl"] is None


def test_sides_without_a_tokenizer_of_one_size_need_a_tokenizer_for_the_text(models, texts):
    with pytest.raises(BadInput, match="no model has a tokenizer"):
        compare(models[0], models[1]["near"], text=texts)


def test_no_text_no_candidate(models, folders, tokenizer):
    with pytest.raises(BadInput, match="no text to compare on"):
        compare(folders["reference"], folders["near"])
    with pytest.raises(BadInput, match="there is no candidate"):
        compare(folders["reference"], [], text=["some text"])
    with pytest.raises(BadInput, match="no token that follows another"):
        compare(folders["reference"], folders["near"], text=[""])


@pytest.mark.parametrize("given", [3, None, object()])
def test_what_is_no_model_is_refused(models, given, tokenizer, texts):
    with pytest.raises(BadInput, match="but the folder of a model"):
        compare(models[0], {"x": given}, text=texts, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"context": 1}, "--context is 1"),
        ({"limit": 0}, "--limit is 0"),
        ({"noise": -1}, "--noise is -1"),
        ({"dtype": "int8"}, "--dtype is 'int8'"),
        ({"top_k": 5}, "write --save-reference DIR too"),
        ({"llama_log": __import__("pathlib").Path("nowhere.log")}, "no such file"),
    ],
)
def test_settings_out_of_range_are_refused(models, texts, tokenizer, options, what):
    with pytest.raises(BadInput, match=what):
        run(models, tokenizer, texts, **options)


def test_a_callable_gives_a_row_a_token():
    batch = Batch(0, (Piece(0, [1, 2, 3], 1, 1),))
    with pytest.raises(BadInput, match="returned a str"):
        CallableSide(lambda ids: "no", "f").rows(batch)
    with pytest.raises(BadInput, match=r"batch shape \(2,\) for ids of shape \(1, 3\)"):
        CallableSide(lambda ids: torch.zeros(2, 5), "f").rows(batch)


def test_two_models_of_one_name_are_told_apart(folders, text_folder):
    found = compare(
        folders["reference"], [folders["near"], folders["near"], folders["reference"]], text=text_folder, limit=50,
        **OPTIONS,
    )  # fmt: skip
    assert found.plan.names == ["near", "near (2)", "reference (2)"]
