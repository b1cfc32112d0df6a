"""KL(teacher‖student) from classes drawn from the teacher, row by row."""

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm
from kullback.forms.sparse import Drawn, weights_by_rows

from .result import Estimates


def kl_of_drawn(p: Drawn, q: FiniteForm) -> Estimates:
    """mean_i (log p_i - log q_i) over the draws of each row, with its standard error."""
    if not isinstance(q, FiniteForm):
        raise FormError(
            f"estimate.kl: p is Drawn, and q is a {type(q).__name__}. Write Logits(q), or another form of the student."
        )
    if p.num_classes != q.num_classes:
        raise FormError(f"estimate.kl: p has V={p.num_classes} but q has V={q.num_classes}; they share their V.")
    if p.batch_shape != q.batch_shape:
        raise FormError(
            f"estimate.kl: p has rows {tuple(p.batch_shape)} but q has {tuple(q.batch_shape)}; they share their rows."
        )
    if p.device != q.device:
        raise FormError(f"estimate.kl: p is on {p.device} but q is on {q.device}. Write p.to({str(q.device)!r}).")
    if q.side(q.batch_shape).alone() is not None:
        raise FormError(
            "estimate.kl: q is a TopK with a bucket, which does not say what a drawn class has. Write tail='even'."
        )
    ids, log_p, counts = (x.detach().reshape(-1, x.shape[-1]) for x in p.tensors)
    ratio = log_p.double() - _log_q(q, ids.long())
    n, drawn = counts.sum(-1), counts > 0
    raw = torch.where(drawn, counts * ratio, 0.0).sum(-1) / n
    spread = torch.where(drawn, counts * (ratio - raw.unsqueeze(-1)) ** 2, 0.0).sum(-1) / n
    stderr = torch.where((n > 1) & raw.isfinite(), torch.sqrt(spread / (n - 1)), torch.nan)
    rows = p.batch_shape
    return Estimates(raw.reshape(rows), stderr.reshape(rows), n.reshape(rows), "none", "mean of log p - log q")


def _log_q(q: FiniteForm, ids: Tensor) -> Tensor:
    """log q of the ids (N, n), some rows at a time."""
    found, start = [], 0
    for weights in weights_by_rows(q):
        cut = ids[start : start + len(weights.w)]
        found.append(weights.log_w.gather(-1, cut))
        start += len(weights.w)
    return torch.cat(found)
