"""KL(teacher‖student) from classes drawn from the teacher, row by row."""

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm
from kullback.forms.sparse import Drawn

from .result import Estimates

_CELLS = 1 << 20  # of log q at once


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


@torch.no_grad()
def _log_q(q: FiniteForm, ids: Tensor) -> Tensor:
    """log q of the ids (N, n), a block of rows at a time."""
    dims, rows = q.reading.event_dims, q.batch_shape.numel()
    data = [
        x if d is None else x.detach().reshape(rows, *x.shape[x.dim() - d :])
        for x, d in zip(q.tensors, dims, strict=True)
    ]
    step, found = max(1, _CELLS // q.num_classes), [ids.new_zeros((0, ids.shape[-1]), dtype=torch.float64)]
    for start in range(0, rows, step):
        cut = slice(start, start + step)
        block = tuple(x if d is None else x[cut] for x, d in zip(data, dims, strict=True))
        found.append(q.reading.weights(block).log_w.gather(-1, ids[cut]))
    return torch.cat(found)
