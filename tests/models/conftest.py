"""Two tiny models of one tokenizer, and a few texts, for all tests of comparisons."""

import copy

import pytest
import torch

from kullback.language.documents import docstrings
from kullback.language.small import Size, new_model, save, train_tokenizer

SIZE = Size(hidden=32, layers=2, heads=2)


@pytest.fixture(scope="session")
def texts():
    """Short documents of different lengths."""
    return [document.text[: 300 + 120 * i] for i, document in enumerate(docstrings()[20:28])]


@pytest.fixture(scope="session")
def tokenizer(texts):
    return train_tokenizer(texts, 400)


@pytest.fixture(scope="session")
def models(tokenizer):
    """(reference, candidates): random weights, and the same a little off."""
    reference = new_model(SIZE.config(len(tokenizer), 64), 0).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        with torch.no_grad():
            for p in reference.parameters():  # so that some tokens are likely
                p.mul_(3.0)
        near, far = copy.deepcopy(reference), copy.deepcopy(reference)
        with torch.no_grad():
            for model, by in ((near, 0.02), (far, 0.2)):
                for p in model.parameters():
                    p.add_(by * p.std() * torch.randn_like(p) if p.dim() > 1 else 0.0)
    return reference, {"near": near, "far": far}


@pytest.fixture(scope="session")
def folders(models, tokenizer, tmp_path_factory):
    """{name: folder} of reference, near and far."""
    root = tmp_path_factory.mktemp("models")
    reference, others = models
    return {name: save(model, tokenizer, root / name) for name, model in {"reference": reference, **others}.items()}


@pytest.fixture(scope="session")
def text_folder(texts, tmp_path_factory):
    """The texts as files."""
    root = tmp_path_factory.mktemp("texts")
    for i, text in enumerate(texts):
        (root / f"{i:02}.txt").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def _page(request, monkeypatch):
    """The page takes a second: only tests that ask for it (`page`) draw it."""
    if "page" not in request.fixturenames:
        monkeypatch.setattr("kullback.models.job.render", lambda *given: "<!doctype html>")


@pytest.fixture
def page():
    """Draw the report."""
