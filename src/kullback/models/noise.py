"""The noise floor: the reference against itself, run otherwise. A candidate nearer than that cannot be told from it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kullback.forms.finite import FiniteForm
from kullback.language.loading import DTYPES

from .measuring import Rows, measure
from .plan import Plan
from .scores import Scores, join
from .sides import ModelSide
from .text import Batch, batches


@dataclass(frozen=True)
class Floor:
    """One way in which the reference was run otherwise."""

    name: str
    about: str
    scores: Scores


def floors(plan: Plan, tokens: int, dtype: str | None, tell: Callable[[int], None]) -> Iterator[Floor]:
    """The reference against itself on the first `tokens` tokens: with other batches and threads, and in another dtype.

    Args: tell: called with the tokens that were scored.
    """
    if not isinstance(plan.reference, ModelSide) or not tokens:
        return
    threads = torch.get_num_threads()
    other_threads = 1 if threads > 1 else 2
    other_batch = 1 if plan.batch_size > 1 else 2
    on_cpu = plan.reference.device.type == "cpu"
    computed = f", {other_threads} threads against {threads}" if on_cpu else ""
    about = f"pieces of text in batches of {other_batch} against {plan.batch_size}{computed}"
    yield Floor("other batches", about, _apart(plan, plan.reference, tokens, tell, other_batch, other_threads))
    if dtype is not None:
        model = copy.deepcopy(plan.reference.model).to(DTYPES[dtype])
        other = ModelSide(model, f"{plan.reference.name} in {dtype}")
        about = f"the model in {dtype} against {plan.reference.about.rpartition(', ')[2]}"
        yield Floor(dtype, about, _apart(plan, other, tokens, tell, plan.batch_size, threads))


@dataclass(frozen=True)
class _Otherwise(Rows):
    """Rows whose scores are made with another number of threads."""

    threads: int = 1

    def part(self, rows: slice) -> FiniteForm:
        with _threads(self.threads):
            return super().part(rows)


def _apart(
    plan: Plan, other: ModelSide, tokens: int, tell: Callable[[int], None], batch_size: int, threads: int
) -> Scores:
    found, count = [], 0
    for batch in batches(plan.text, max(plan.batch_size, batch_size)):
        p = _in_batches(plan.reference, batch, plan.batch_size, plan.num_classes)
        with _threads(threads):
            q = _in_batches(other, batch, batch_size, plan.num_classes)
        found += measure(batch, p, [_Otherwise(q.form, threads=threads)])
        count += batch.rows
        tell(batch.rows)
        if count >= tokens:
            break
    return join(found)


def _in_batches(side: Any, whole: Batch, size: int, num_classes: int) -> Rows:
    """A batch's rows, made in smaller batches."""
    parts = [
        side.rows(Batch(whole.start + i, whole.pieces[i : i + size]), num_classes).form
        for i in range(0, len(whole.pieces), size)
    ]
    form = parts[0]
    return Rows(form.with_tensors(torch.cat([part.data for part in parts]), *form.tensors[1:]))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
