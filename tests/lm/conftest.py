"""A tiny teacher on a few texts, shared by the tests of the session."""

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from kullback.language import small
from kullback.language.documents import documents, split
from kullback.lm.distill.settings import Settings

WORDS = ["sum", "mean", "log", "exp", "norm", "root", "sign", "floor", "edge", "path", "node", "tree"]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Twelve documents of uneven lengths."""
    path = tmp_path_factory.mktemp("text") / "texts.jsonl"
    rows = [f"Return the {w} of x, or raise ValueError.\n\n>>> {w}(x)\n" * (1 + i % 3) for i, w in enumerate(WORDS)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def teacher(text, tmp_path_factory):
    train, _ = split(list(documents(text)), 0.25)
    return small.small_teacher(
        tmp_path_factory.mktemp("models") / "teacher",
        texts=train,
        steps=40,
        size=small.Size(16, 1, 2),
        vocabulary=320,
        context=16,
        batch=8,
    )


@pytest.fixture(scope="session")
def settings(text, teacher):
    """Seconds of work."""
    return Settings(
        teacher=teacher, text=text, held_out=0.25, hidden=8, layers=1, heads=2, steps=20, batch_size=4, context=16
    )
