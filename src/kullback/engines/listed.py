"""Sides that list a few classes, as compiled engines take them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core.readings import DrawnReading, LogitsReading, Reading, Side, TopKReading

from .call import Call

LISTED = (TopKReading, DrawnReading)


def is_listed(reading: Reading) -> bool:
    """Whether a side lists classes: two tensors, of which compiled engines make what they read."""
    return isinstance(reading, TopKReading | DrawnReading)


def is_coarse(reading: Reading) -> bool:
    """Whether the classes that are not listed are one cell, as they may be where they have nothing: sums are linear."""
    return isinstance(reading, DrawnReading) or (isinstance(reading, TopKReading) and reading.tail != "even")


def why_not(call: Call) -> str | None:
    """Beside logits, any; beside another side, those that say what every class has; of what was drawn, one sum."""
    p, q = call.p, call.q
    if isinstance(q, DrawnReading) or (isinstance(p, DrawnReading) and str(call.total) != "cross_entropy"):
        return "what was drawn has a kernel for the cross-entropy of another side alone"
    if is_coarse(p) != is_coarse(q) and isinstance(q if is_coarse(p) else p, LogitsReading):
        return None
    if is_coarse(p) or is_coarse(q):
        return f"{type(p).__name__} beside {type(q).__name__} has no kernel, unless the tail is even"
    return None


class Parts(NamedTuple):
    """A listed side, row by row: how many classes, (..., 1); their ids in ascending order and log w of each, (..., k);
    and log w of each other class if the tail is even, else of all others together, (..., 1).
    """

    size: Tensor
    ids: Tensor
    log_w: Tensor
    rest: Tensor


@torch.no_grad()
def parts(side: Side) -> Parts:
    """What a listed side lists. Behind `size` places ids are 0 and log w is -inf."""
    reading, (ids, given) = side
    ids, order = ids.long().sort(-1)
    count = torch.full_like(ids[..., :1], ids.shape[-1])
    if isinstance(reading, TopKReading):
        mine, rest = reading.logs(given)
        if reading.tail == "bucket":
            rest = rest + math.log(max(reading.num_classes - ids.shape[-1], 1))
        return Parts(count, ids, mine.gather(-1, order), rest)
    # a class may have been drawn at several places
    shares = (given.double() / given.sum(-1, keepdim=True)).gather(-1, order)
    place = torch.cat([torch.zeros_like(count), (ids[..., 1:] != ids[..., :-1]).long()], -1).cumsum(-1)
    mine = torch.log(torch.zeros_like(shares).scatter_add(-1, place, shares))
    ids = torch.zeros_like(ids).scatter(-1, place, ids)
    return Parts(place[..., -1:] + 1, ids, mine, torch.full_like(mine[..., :1], -math.inf))
