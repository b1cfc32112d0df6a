"""Decoupled knowledge distillation."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.core.dtypes import result_dtype
from kullback.core.readings import Side
from kullback.forms.finite import FiniteForm, Labels, Logits
from kullback.forms.linear import LinearLogits
from kullback.verbs import kl

from .base import LossOfParts
from .inputs import emptied, flag, forms, integer, not_negative, positive
from .terms import Term, mixed


class DKDParts(NamedTuple):
    """The loss and its two terms, before their weights and with T²."""

    loss: Tensor
    target_class: Tensor
    other_classes: Tensor


class DKD(LossOfParts):
    """Hinton's KL split in two: how sure the target class is, and how the other classes share the rest.

    L = T² ( α KL(b_teacher‖b_student) + β KL(r_teacher‖r_student) )

    with b = (p_target, 1 - p_target) and r = p over the other V-1 classes, renormalised; both at temperature T. The
    plain KL is the same with α = 1 and β = 1 - p_target of the teacher, which silences the second term where the
    teacher is sure.

    Args:
        alpha, beta: the weights, >= 0; 1 and 8 in the source's CIFAR-100 runs.
        temperature: T, 4 in the source.
        t_squared: multiply by T².
        ignore_index: rows with this label do not count.

    Call with keywords only:
        student: (..., V) logits. teacher: (..., V) logits; no gradient flows to it. Or forms.
        labels: (...) integers: the target classes.
        mask: (...) bool, True keeps the row; dropped rows may hold NaN.
        num_items: kept rows in the whole step; see `average`.

    Returns: a scalar; `parts(...)` gives its terms. The labels' cross-entropy is not included: add it. A zero connected
        to the graph if nothing is kept.
    Raises: FormError: V = 1, settings out of range, inputs that do not fit.

    A row whose target is the only class with mass has no distribution over the others: its value is NaN.

    Where copies differ: the source masks the target with -1000 instead of leaving it out, takes the log of a sum
    of softmaxes (infinite once it underflows, for a gap of 104 in float32), and warms the loss up over 20 epochs.

    Source: Zhao et al. 2022, arXiv 2203.08679, equations 5-7.

    >>> import torch
    >>> loss = DKD(alpha=1.0, beta=2.0, temperature=1.0)
    >>> teacher, student = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    >>> loss(student=student, teacher=teacher, labels=torch.tensor([0]))
    tensor(0.4510)
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        *,
        temperature: float = 4.0,
        t_squared: bool = True,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.alpha = not_negative("DKD", "alpha", alpha)
        self.beta = not_negative("DKD", "beta", beta)
        self.temperature = positive("DKD", "temperature", temperature)
        self.t_squared = flag("DKD", "t_squared", t_squared)
        self.ignore_index = integer("DKD", "ignore_index", ignore_index)

    def parts(
        self,
        *,
        student: Tensor | FiniteForm,
        teacher: Tensor | FiniteForm,
        labels: Tensor,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> DKDParts:
        """The loss with its terms; the arguments are those of the call."""
        rows, (q, p) = forms("DKD", student=student, teacher=teacher)
        if q.num_classes < 2:
            raise FormError("DKD: V=1 leaves no other classes to share the rest.")
        classes, keep = rows.labels(labels, self.ignore_index, rows.mask(mask))
        classes = Labels(classes, q.num_classes).data  # checked: every kept label is in [0, V)
        (b_p, r_p), (b_q, r_q) = self._split(p.detach(), classes, keep), self._split(q, classes, keep)
        scale = self.temperature**2 if self.t_squared else 1.0
        target = Term(rows, kl, b_p, b_q, keep, num_items, scale)
        others = Term(rows, kl, r_p, r_q, keep, num_items, scale)
        loss, values = mixed([(self.alpha, target), (self.beta, others)])
        dtype = result_dtype(q.dtype, p.dtype)
        return DKDParts(*(x.to(dtype) for x in (loss, *values)))

    def _split(self, form: FiniteForm, labels: Tensor, keep: Tensor) -> tuple[Logits, Logits]:
        """Target against the rest, and the rest among themselves, as logits at temperature T."""
        scores = self._scores(form, labels, keep)
        at = labels.unsqueeze(-1)
        rest = scores.scatter(-1, at, -math.inf)
        rest_together = torch.logsumexp(rest, -1, keepdim=True)
        return Logits(torch.cat([scores.gather(-1, at), rest_together], -1)), Logits(rest)

    def _scores(self, form: FiniteForm, labels: Tensor, keep: Tensor) -> Tensor:
        """log p at temperature T, up to a constant per row."""
        # a class is left out of every row, so that all scores are needed at once
        tempered = (form.logits() if isinstance(form, LinearLogits) else form).tempered(self.temperature)
        if isinstance(tempered, Logits):
            return emptied(tempered.expand(labels.shape), keep).double() / tempered.temperature
        side = tempered.side(labels.shape)
        if side.alone() is not None:
            raise FormError(
                f"DKD: a {type(form).__name__} with a bucket does not say how the other classes share the rest. Write "
                "tail='even' or tail='renormalize'."
            )
        data = (emptied(x, keep) if x.is_floating_point() else x for x in side.data)
        return Side(side.reading, tuple(data)).weights().log_w
