"""Passages of held-out text, token by token: what the teacher held likely, and how far each student is from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kullback import Logits
from kullback.kit.numbers import finite
from kullback.language.pieces import pieces
from kullback.language.windows import Window

from . import measures
from .material import Material
from .settings import Arm

PASSAGES, CHOICES = 3, 3


def examples(material: Material, names: Sequence[str], students: Mapping[Arm, Any]) -> list[dict[str, Any]]:
    """The first window of the first documents that fill one, or of the first ones.

    Args: names: of the held-out documents.  students: one of each kind.
    """
    first = [(name, each[0]) for name, each in zip(names, material.held_out, strict=True) if each]
    full = [(name, window) for name, window in first if len(window.ids) == material.settings.context]
    return [_passage(material, name, window, students) for name, window in (full or first)[:PASSAGES]]


def _passage(material: Material, title: str, window: Window, students: Mapping[Arm, Any]) -> dict[str, Any]:
    tokenizer, classes = material.teacher.tokenizer, material.classes
    p, tokens = measures.scores(material.teacher.model, [window], classes)
    unscored: list[Any] = [None] * window.scored

    def said(form: Logits) -> dict[str, Any]:
        log = form.data.log_softmax(-1)
        likely = log.topk(min(CHOICES, classes))
        came = log.gather(-1, tokens[:, None])[:, 0].exp()
        return {
            "came": unscored + _numbers(came),
            "choices": unscored
            + [
                [[text, round(x, 4)] for text, x in zip(pieces(tokenizer, ids), values, strict=True)]
                for ids, values in zip(likely.indices.tolist(), likely.values.exp().tolist(), strict=True)
            ],
        }

    found = {}
    for arm, model in students.items():
        q = measures.scores(model, [window], classes)[0]
        found[arm] = {"kl": unscored + _numbers(measures.per_token(p, q, tokens)[1])} | said(q)
    return {"title": title, "pieces": pieces(tokenizer, window.ids), "teacher": said(p), "students": found}


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [finite(round(x, 5)) for x in values.tolist()]
