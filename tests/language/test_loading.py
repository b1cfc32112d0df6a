"""Folders that hold no model, or not all of one."""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from safetensors import torch as safetensors

from kullback._errors import BadInput
from kullback.language import small
from kullback.language.loading import load


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    tokenizer = small.train_tokenizer(["a text, and another text"], 300)
    model = small.new_model(small.Size(8, 1, 2).config(len(tokenizer), 8), 0)
    return small.save(model, tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def refused(folder, **options):
    with pytest.raises(BadInput) as caught:
        load(folder, **options)
    return str(caught.value)


def test_what_is_no_folder_of_a_model_is_refused(tmp_path):
    assert "no such folder; give the folder of a transformers model" in refused(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(tmp_path / "file")
    assert "holds no config.json" in refused(tmp_path)


def test_a_name_on_a_hub_is_not_looked_up():
    assert "no such folder; give the folder of a transformers model, nothing is downloaded" in refused("gpt2")


def test_a_model_without_tokenizer_is_refused(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "holds no tokenizer" in refused(folder)


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{")
    assert "its tokenizer cannot be loaded" in refused(folder)


def test_missing_and_broken_weights_are_refused(folder):
    path = folder / "model.safetensors"
    weights = safetensors.load_file(path)
    some = {name: x for name, x in weights.items() if "q_proj" not in name}
    safetensors.save_file(some, path, {"format": "pt"})
    said = refused(folder)
    assert "1 weights of the model are not stored in it, model.layers.0.self_attn.q_proj.weight" in said
    path.write_bytes(path.read_bytes()[:100])
    assert "that transformers can load" in refused(folder)
    path.unlink()
    assert "that transformers can load" in refused(folder)


def test_an_unknown_kind_of_model_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonsense"}))
    assert "nonsense" in refused(folder) or "cannot be loaded" in refused(folder)


def test_dtype_and_device_are_as_asked(folder):
    assert load(folder).model.dtype == torch.float32
    assert load(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    assert "choose one of float32" in refused(folder, dtype="float8")
    assert "device 'nonsense' cannot be used" in refused(folder, device="nonsense")
