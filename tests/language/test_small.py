"""The small model and its tokenizer, and what loads models from folders."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from kullback._errors import BadInput
from kullback.language import small
from kullback.language.documents import Document
from kullback.language.loading import load, load_tokenizer, longest
from kullback.language.windows import begins, token_ids, windows

TEXTS = [
    Document(str(i), f"Return the {w} of x, or raise ValueError.\n\n>>> {w}(x)\n")
    for i, w in enumerate(("sum", "mean", "log", "exp", "norm", "root"))
]
TINY = small.Size(hidden=16, layers=1, heads=2)
BUDGET = {"steps": 12, "size": TINY, "vocabulary": 320, "context": 16, "batch": 4, "texts": TEXTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.small_teacher(tmp_path_factory.mktemp("teacher"), **BUDGET)


def test_any_text_comes_back_from_its_tokens(folder):
    tokenizer = load_tokenizer(folder)
    text = "The naïve café: 3.14 ≤ π?\n\tdef f(x):\n        return x # 東京 🙂\r\n"
    ids = token_ids(tokenizer, text)
    assert tokenizer.decode(ids[1:]) == text
    assert len(tokenizer) <= 320
    assert begins(tokenizer)
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.pad_token_id == 0


def test_the_folder_loads_and_the_same_seed_makes_the_same_model(folder, tmp_path):
    found = load(folder)
    assert (found.name, longest(found.model)) == (folder.name, 16)
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    assert found.model.config.vocab_size == len(found.tokenizer)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = load(small.small_teacher(tmp_path / "again", **BUDGET))
    assert torch.equal(torch.get_rng_state(), state)
    for (name, one), (_, other) in zip(found.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    other = load(small.small_teacher(tmp_path / "other", **BUDGET | {"seed": 1}))
    assert not torch.equal(found.model.get_input_embeddings().weight, other.model.get_input_embeddings().weight)
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "other" / "tokenizer.json").read_bytes()


def nll(model, rows):
    with torch.no_grad():
        ids, labels = small.collate(rows)
        return model(input_ids=ids, labels=labels).loss.item()


def test_training_lowers_the_loss(folder):
    found = load(folder)
    rows = [w for d in TEXTS for w in windows(token_ids(found.tokenizer, d.text), 16)]
    model = small.new_model(TINY.config(len(found.tokenizer), 16), seed=0)
    before = nll(model, rows)
    small.train(model, rows, steps=60, batch=4, seed=0, learning_rate=1e-2)
    assert nll(model, rows) < 0.5 * before


class Memory:
    """Keeps every state, and goes on from one."""

    def __init__(self, state=None):
        self.state, self.all = state, []

    def load(self):
        return self.state

    def save(self, state):
        self.all.append(json.loads(json.dumps(state()["steps"])))
        if len(self.all) == 5:
            copy = state()
            self.state = {
                "steps": copy["steps"],
                "model": {k: v.clone() for k, v in copy["model"].items()},
                "optimizer": {
                    "state": {i: {k: v.clone() for k, v in s.items()} for i, s in copy["optimizer"]["state"].items()},
                    "param_groups": [dict(group) for group in copy["optimizer"]["param_groups"]],
                },
            }


def test_a_training_goes_on_where_it_was_kept(folder, tmp_path):
    memory, told = Memory(), []
    small.small_teacher(tmp_path / "whole", **BUDGET, kept=memory, on_step=lambda *at: told.append(at))
    assert told == [(i, 12) for i in range(13)]
    assert memory.all == list(range(1, 12))
    assert memory.state["steps"] == 5
    told.clear()
    rest = load(small.small_teacher(tmp_path / "rest", **BUDGET, kept=memory, on_step=lambda *at: told.append(at)))
    assert told == [(i, 12) for i in range(5, 13)]
    for (name, one), (_, other) in zip(
        load(folder).model.named_parameters(), rest.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_windows_are_filled_up_where_the_model_cannot_see_it(folder):
    found = load(folder)
    rows = list(windows(token_ids(found.tokenizer, TEXTS[0].text), 16))
    rows = [rows[0], rows[0]._replace(ids=rows[0].ids[:5])]
    ids, labels = small.collate(rows)
    assert labels[1].tolist() == [-100, *rows[1].ids[1:], *[-100] * 11]
    with torch.no_grad():
        alone = found.model(input_ids=torch.tensor([rows[1].ids])).logits
        torch.testing.assert_close(found.model(input_ids=ids).logits[1, :5], alone[0], atol=1e-5, rtol=1e-5)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(BadInput, match="write 300 or more"):
        small.train_tokenizer(["a"], 200)
