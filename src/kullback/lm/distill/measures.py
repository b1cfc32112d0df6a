"""Held-out measures: sums by document, from which means and their clustered standard errors are made."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kullback import Labels, Logits, cross_entropy, kl
from kullback.kit.clustered import Clustered, clustered_mean
from kullback.kit.numbers import finite
from kullback.language import small
from kullback.language.windows import Window

LEVEL = 0.95
BATCH_BYTES = 128 << 20  # of scores of one model at once

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Of one model over the scored tokens of each held-out document: (D,) each."""

    nll: Floats
    kl: Floats  # KL(teacher‖model)
    same_top: Floats


def measure(
    teacher: Any,
    students: Sequence[Any],
    held_out: Sequence[Sequence[Window]],
    classes: int,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[npt.NDArray[np.int64], list[Sums]]:
    """(scored tokens of each document, sums of the teacher and of each student), reading the text once."""
    rows = [(i, window) for i, document in enumerate(held_out) for window in document]
    counts = np.zeros(len(held_out), np.int64)
    sums = [Sums(*(np.zeros(len(held_out)) for _ in range(3))) for _ in (teacher, *students)]
    size = batch_size(rows, classes)
    for start in range(0, len(rows), size):
        on_batch(start, len(rows))
        part = rows[start : start + size]
        batch = [window for _, window in part]
        document = np.repeat([i for i, _ in part], [len(window.ids) - window.scored for window in batch])
        p, tokens = scores(teacher, batch, classes)
        np.add.at(counts, document, 1)
        for into, model in zip(sums, (teacher, *students), strict=True):
            q = p if model is teacher else scores(model, batch, classes)[0]
            nll, apart, same = per_token(p, q, tokens)
            np.add.at(into.nll, document, nll.numpy())
            np.add.at(into.kl, document, apart.numpy())
            np.add.at(into.same_top, document, same.numpy())
    on_batch(len(rows), len(rows))
    return counts, sums


@torch.no_grad()
def scores(model: Any, rows: Sequence[Window], classes: int) -> tuple[Logits, Tensor]:
    """((N, V) scores of the scored tokens, (N,) these tokens), window after window, on the CPU."""
    ids, labels = small.collate(rows)
    was_training = model.training
    model.eval()
    found = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1, :classes]
    model.train(was_training)
    kept = labels[:, 1:] != -100
    return Logits(found[kept.to(found.device)].float().cpu()), labels[:, 1:][kept]


def per_token(p: Logits, q: Logits, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(-log q of the token, KL(p‖q), whether both hold the same token likeliest), float64 in nats."""
    nll = cross_entropy(Labels(tokens, q.num_classes), q)
    return nll.double(), kl(p, q).double(), (p.data.argmax(-1) == q.data.argmax(-1)).double()


def batch_size(rows: Sequence[Any], classes: int) -> int:
    """Windows at once, so that their scores fit into `BATCH_BYTES`."""
    longest = max(len(window.ids) for _, window in rows)
    return max(1, min(32, BATCH_BYTES // (4 * classes * longest)))


def number(found: Clustered, scale: float = 1.0) -> dict[str, Any]:
    """value, stderr, low and high at `LEVEL`, by Student's t over the documents."""
    half = _half(found)
    low, high = (None, None) if half is None else (found.mean - half, found.mean + half)
    return {"value": finite(found.mean), "stderr": finite(found.stderr), "low": finite(low), "high": finite(high)}


def exponential(found: Clustered) -> dict[str, Any]:
    """The same of exp(mean): its error to first order, its interval that of the mean, exponentiated."""
    half, value = _half(found), math.exp(min(found.mean, 700.0))
    if half is None or found.stderr is None:
        return {"value": finite(value), "stderr": None, "low": None, "high": None}
    low, high = (math.exp(min(found.mean + x, 700.0)) for x in (-half, half))
    return {"value": finite(value), "stderr": finite(value * found.stderr), "low": finite(low), "high": finite(high)}


def pooled(sums: Sequence[Floats], counts: npt.NDArray[np.int64]) -> Clustered:
    """The mean over documents and students alike; its error is over the documents, for these students."""
    return clustered_mean(np.sum(sums, axis=0).tolist(), (len(sums) * counts).tolist())


def _half(found: Clustered) -> float | None:
    from scipy import special  # type: ignore[import-untyped]

    if found.stderr is None:
        return None
    return float(special.stdtrit(found.groups - 1, (1 + LEVEL) / 2)) * found.stderr
