"""Two contents, column by column or category by category."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from kullback._errors import BadInput
from kullback.kit.tables import shortened

from .content import Content


def matched(p: Content, q: Content, *, by_position: bool = False) -> tuple[Content, Content]:
    """Both with the same columns or categories in the same order: by name where both have names, else by position.

    Raises: BadInput: names that differ between samples, or between logits; no name in common; different numbers of
        unnamed columns.
    """
    what = "columns" if p.kind == "samples" else "categories"
    width, other = p.values.shape[-1], q.values.shape[-1]
    if p.names is None or q.names is None or by_position:
        if width != other:
            unnamed = "" if by_position else "; not both name them, so they cannot be matched"
            raise BadInput(f"{p.source} has {width} {what} and {q.source} has {other}{unnamed}")
        one = p.names or q.names
        note = () if p.names == q.names else (f"{what} matched by position",)
        return replace(p, names=one), replace(q, names=one, notes=(*q.notes, *note))
    if p.names == q.names:
        return p, q
    if p.kind == "samples" or "logits" in (p.kind, q.kind):
        missing = sorted(set(p.names) ^ set(q.names))
        if missing:
            raise BadInput(_other_names(p, q, what))
        order = [q.names.index(name) for name in p.names]
        note = (f"{what} matched by name, in another order",)
        return p, replace(q, values=q.values[..., order], names=p.names, notes=(*q.notes, *note))
    if not set(p.names) & set(q.names):
        raise BadInput(
            f"{p.source} and {q.source} share no category: {shortened(p.names[0], 30)!r}, ... and "
            f"{shortened(q.names[0], 30)!r}, ..."
        )
    names = tuple(dict.fromkeys([*p.names, *q.names]))
    return _spread(p, names), _spread(q, names)


def _other_names(p: Content, q: Content, what: str) -> str:
    def some(names: Sequence[str]) -> str:
        return shortened(", ".join(names), 60)

    assert p.names is not None
    assert q.names is not None
    shared = [name for name in p.names if name in q.names]
    instead = f"--columns {shortened(','.join(shared), 60)}, or " if shared and what == "columns" else ""
    return (
        f"{p.source} has the {what} {some(p.names)} and {q.source} has {some(q.names)}; write {instead}--by-position "
        "if they mean the same in this order"
    )


def _spread(content: Content, names: tuple[str, ...]) -> Content:
    """Over more categories, with 0 for those that the file does not name."""
    at = {name: i for i, name in enumerate(content.labels)}
    values = content.values.new_zeros(*content.values.shape[:-1], len(names))
    for i, name in enumerate(names):
        if name in at:
            values[..., i] = content.values[..., at[name]]
    absent = len(names) - len(at)
    note = (f"{absent} categor{'y' if absent == 1 else 'ies'} of the other side counted as 0",) if absent else ()
    return replace(content, values=values, names=names, notes=(*content.notes, *note))


def same_numbers(p: Content, q: Content) -> bool:
    """Whether both hold the same, in any order of the samples: then no two draws are independent."""
    if p.kind != q.kind or p.values.shape != q.values.shape:
        return False
    if torch.equal(p.values, q.values):
        return True
    if p.kind != "samples":
        return False
    first, second = (c.values.numpy() for c in (p, q))
    return bool((first[np.lexsort(first.T)] == second[np.lexsort(second.T)]).all())
