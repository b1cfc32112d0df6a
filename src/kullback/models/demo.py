"""`kullback compare --demo`: a small model trained here, against its int8 and int4 roundings and a bfloat16 copy."""

import copy
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback._errors import BadInput
from kullback.kit.files import new_folder
from kullback.kit.runs import Begun, Show
from kullback.language import small
from kullback.language.documents import docstrings, split
from kullback.language.loading import load

from . import job
from .results import Comparison
from .settings import Settings

GROUP = 32  # weights of a row that share a scale in int4
TRAINING = 0.6  # share of the time


def run(settings: Settings, out: Path | None, progress: Show, begun: Begun, steps: int = 200) -> Comparison:
    """Train a model on documentation strings of Python's library, round it, and compare on those that it has not seen.

    Models and texts stay in the run folder, beside what is found. `steps` of training take most of the time.
    """
    if settings.dtype is not None:
        raise BadInput("--demo compares models in their own dtypes; leave --dtype out")
    folder = new_folder(out, datetime.now(), job.NAME)
    train, held_out = split(docstrings(), small.HELD_OUT)

    def show(done: float, what: str) -> None:
        progress(round(1000 * done), 1000, what)

    reference = small.small_teacher(
        folder / "models" / "reference",
        steps=steps,
        texts=train,
        on_step=lambda done, total: show(TRAINING * done / total, "training a small model"),
    )
    paths = _save_candidates(reference)
    for document in held_out:
        path = folder / "text" / f"{document.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document.text, encoding="utf-8")
    return job.run(
        str(reference.absolute()),
        [(name, str(path.absolute())) for name, path in paths.items()],
        str((folder / "text").absolute()),
        settings,
        folder,
        lambda done, total, what: show(TRAINING + (1.0 - TRAINING) * done / max(total, 1), what),
        begun,
        prepared=True,
    )


def _save_candidates(reference: Path) -> dict[str, Path]:
    """Copies of a model in bfloat16 and rounded, as folders beside it."""
    loaded = load(reference)
    made = {
        "bfloat16": copy.deepcopy(loaded.model).to(torch.bfloat16),
        "int8": rounded(loaded.model, 8, None),
        "int4": rounded(loaded.model, 4, GROUP),
    }
    return {name: small.save(model, loaded.tokenizer, reference.with_name(name)) for name, model in made.items()}


def rounded(model: Any, bits: int, group: int | None) -> Any:
    """A copy whose linear layers, but for the head, have weights rounded to nearest; see `round_weight`."""
    found = copy.deepcopy(model)
    head = found.get_output_embeddings()
    with torch.no_grad():
        for layer in found.modules():
            if isinstance(layer, nn.Linear) and layer is not head:
                layer.weight.copy_(round_weight(layer.weight, bits, group))
    return found


def round_weight(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """Symmetric rounding to nearest, as weight-only quantisation stores it: w ≈ s·k with whole k, |k| ≤ 2^(bits-1) - 1.

    Args: weight: (rows, columns).  group: columns that share one s = max |w| / (2^(bits-1) - 1); None: a whole row.
    Returns: the values that are stored, (rows, columns), in the weight's dtype.

    >>> round_weight(torch.tensor([[1.0, 0.26, -0.5, 0.1]]), 3, 2)
    tensor([[ 1.0000,  0.3333, -0.5000,  0.1667]])
    """
    largest = 2 ** (bits - 1) - 1
    width = weight.shape[-1] if group is None else group
    parts = weight.double().reshape(*weight.shape[:-1], -1, width)
    scale = parts.abs().amax(-1, keepdim=True) / largest
    codes = torch.where(scale > 0, parts / scale, 0.0).round()
    found: Tensor = (codes * scale).reshape(weight.shape).to(weight.dtype)
    return found
