"""Hashes of tokenizers and models: equal where ids and logits are equal, different where they are not."""

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

import tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from kullback._errors import BadInput, FormError
from kullback.language.fingerprints import model_fingerprint, tokenizer_hash

TEXT = ["the cat sat on the mat and the dog on the log, and the cat ran"] * 3


def trained(size=300, lower=False):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if lower:
        made.normalizer = normalizers.Lowercase()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


def fast(rust=None, **roles):
    return PreTrainedTokenizerFast(
        tokenizer_object=rust or trained(), **{"bos_token": "<s>", "eos_token": "</s>"} | roles
    )


def without_merge(rust):
    """The same vocabulary, but two merges in the other order."""
    made = json.loads(rust.to_str())
    merges = made["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    return Tokenizer.from_str(json.dumps(made))


def test_a_tokenizer_keeps_its_hash_when_it_is_saved_used_and_padded(tmp_path):
    tokenizer = fast()
    first = tokenizer_hash(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path)) == first
    tokenizer.pad_token = "</s>"
    tokenizer(["the cat", "the"], padding=True, truncation=True, max_length=1)  # leaves its settings in the backend
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.model_max_length = 7
    assert tokenizer_hash(tokenizer) == first
    code = (
        "import sys; from transformers import AutoTokenizer; from kullback.language.fingerprints import tokenizer_hash;"
        "print(tokenizer_hash(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == first


def test_a_processor_has_the_hash_of_its_tokenizer():
    class Processor:
        tokenizer = fast()

    assert tokenizer_hash(Processor()) == tokenizer_hash(fast())


def test_tokenizers_that_give_other_ids_have_other_hashes():
    plain = trained()
    added = fast()
    added.add_tokens(["cat"])
    others = {
        "as it is": fast(plain),
        "smaller": fast(trained(264)),
        "merges in another order": fast(without_merge(plain)),
        "lower case": fast(trained(lower=True)),
        "a token more": added,
        "another token begins a text": fast(plain, bos_token="</s>"),
        "in Python": ByT5Tokenizer(),
        "in Python, other tokens added": ByT5Tokenizer(extra_ids=3),
    }
    hashes = {name: tokenizer_hash(tokenizer) for name, tokenizer in others.items()}
    assert len(set(hashes.values())) == len(hashes), hashes
    assert tokenizer_hash(ByT5Tokenizer()) == hashes["in Python"]


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(FormError, match="a dict is given, but a tokenizer is needed"):
        tokenizer_hash({})


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2", "cohere"])  # tied and not
def test_a_model_has_the_hash_of_the_folder_it_is_saved_to(tmp_path, name):
    model = tiny.model(name)
    in_memory = model_fingerprint(model)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "cut", max_shard_size="8KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert model_fingerprint(tmp_path / "whole") == ("whole", in_memory.hash)
    assert model_fingerprint(tmp_path / "cut") == ("cut", in_memory.hash)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert model_fingerprint(loaded) == ("cut", in_memory.hash)
    assert model_fingerprint(loaded.bfloat16()).hash != in_memory.hash


def test_one_bit_two_layers_exchanged_or_another_config_change_a_models_hash(tmp_path):
    model = tiny.model()
    model.save_pretrained(tmp_path)
    before = model_fingerprint(tmp_path).hash
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)

    one, other = (f"model.layers.{i}.input_layernorm.weight" for i in range(2))
    for changed in (
        {one: tensors[one].clone().index_fill_(0, torch.tensor([3]), 1.0 + 2**-23)},
        {f"model.layers.{i}.mlp.up_proj.weight": tensors[f"model.layers.{1 - i}.mlp.up_proj.weight"] for i in range(2)},
        {other: tensors[other].bfloat16()},
    ):
        save_file(tensors | changed, path)
        assert model_fingerprint(tmp_path).hash != before
    save_file(dict(reversed(tensors.items())), path, metadata={"format": "pt", "note": "the same tensors"})
    assert model_fingerprint(tmp_path).hash == before

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_version": "0", "use_cache": False}))
    assert model_fingerprint(tmp_path).hash == before
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert model_fingerprint(tmp_path).hash != before


def test_pickled_weights_are_hashed_as_files(tmp_path):
    model = tiny.model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    before = model_fingerprint(tmp_path).hash
    assert model_fingerprint(tmp_path).hash == before
    torch.save(tiny.model(seed=1).state_dict(), tmp_path / "pytorch_model.bin")
    assert model_fingerprint(tmp_path).hash != before


def test_folders_without_whole_weights_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        model_fingerprint(tmp_path / "none")
    with pytest.raises(BadInput, match="holds no weights"):
        model_fingerprint(tmp_path)
    tiny.model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadInput, match="is cut off"):
        model_fingerprint(tmp_path)
    with pytest.raises(FormError, match="is a meta tensor, whose content is not at hand"):
        model_fingerprint(tiny.model().to("meta"))
