"""Knowledge distillation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Labels, positive_number
from kullback.verbs import cross_entropy, kl

from .average import Reduction, average
from .inputs import as_form, labelled, share


class Distillation(nn.Module):
    """Hinton's distillation loss: the student learns the teacher's softened probabilities and the labels.

    L = w T² D(teacher at T_t ‖ student at T) + (1 - w) H(labels, student)

    each term a mean over its rows. The gradient of KL with respect to the student's logits shrinks like 1/T²; the
    factor T² undoes that, so that w means the same at every temperature.

    Args:
        temperature: T, of the student and, unless `teacher_temperature` is given, of the teacher.
        teacher_temperature: T_t.
        soft_weight: w in [0, 1]; 1 learns from the teacher alone, 0 from the labels alone.
        t_squared: multiply the soft term by T² (the student's T).
        divergence: D(p, q) with p the teacher: any verb of two forms, or a callable of your own such as
            `lambda p, q: kl(q, p)` (mode-seeking) or `functools.partial(js, weight=0.1)`.
        smoothing: label smoothing of the hard term, over all classes.
        ignore_index: rows with this label have no label: they take part in the soft term alone.
        reduction: "mean", "sum" (over rows), or "none": per row, zero where the mask drops it.

    Call with keywords only, so that the direction cannot be mistaken:
        student: (..., V) tensor of logits, or a form.
        teacher: (..., V) tensor of logits, or a form (`Probs`, `LogProbs`); no gradient flows to it.
        labels: (...) integers; needed unless w = 1.
        mask: (...) bool, True keeps the row; dropped rows may hold NaN.
        num_items: kept rows in the whole step, for gradient accumulation; see `average`.
        num_labels: labelled kept rows in the whole step; num_items unless given.

    Returns:
        A scalar. With every row dropped it is a zero connected to the graph.

    Raises:
        FormError: a missing teacher or labels, or inputs that do not fit; see the verbs.

    Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2.

    >>> import torch
    >>> loss = Distillation(temperature=2.0, soft_weight=0.5)
    >>> loss(student=torch.tensor([[2.0, 0.0]]), teacher=torch.tensor([[0.0, 0.0]]), labels=torch.tensor([0]))
    tensor(0.3037)
    """

    def __init__(
        self,
        temperature: float = 2.0,
        *,
        teacher_temperature: float | None = None,
        soft_weight: float = 0.5,
        t_squared: bool = True,
        divergence: Callable[[FiniteForm, FiniteForm], Tensor] = kl,
        smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.temperature = positive_number("Distillation", "temperature", temperature)
        self.teacher_temperature = positive_number(
            "Distillation", "teacher_temperature", temperature if teacher_temperature is None else teacher_temperature
        )
        self.soft_weight = share("Distillation", "soft_weight", soft_weight)
        self.t_squared = t_squared
        self.divergence = divergence
        self.smoothing = smoothing
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(
        self,
        *,
        student: Tensor | FiniteForm,
        teacher: Tensor | FiniteForm | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
        num_labels: int | Tensor | None = None,
    ) -> Tensor:
        """The loss; see the class."""
        learner = as_form(student)
        parts = []
        if self.soft_weight > 0.0:
            if teacher is None:
                raise FormError(
                    "Distillation: teacher is missing. Write teacher=..., or soft_weight=0 for the labels alone."
                )
            parts.append(self._soft(learner, as_form(teacher), mask, num_items))
        if self.soft_weight < 1.0:
            if labels is None:
                raise FormError(
                    "Distillation: labels are missing. Write labels=..., or soft_weight=1 for the teacher alone."
                )
            parts.append(self._hard(learner, labels, mask, num_items if num_labels is None else num_labels))
        return torch.stack(parts).sum(0)

    def _soft(
        self, student: FiniteForm, teacher: FiniteForm, mask: Tensor | None, num_items: int | Tensor | None
    ) -> Tensor:
        p, q = teacher.detach().tempered(self.teacher_temperature), student.tempered(self.temperature)
        scale = self.temperature**2 if self.t_squared else 1.0
        per_row = self.divergence(p, q)
        return self.soft_weight * scale * average(per_row, mask=mask, num_items=num_items, reduction=self.reduction)

    def _hard(
        self, student: FiniteForm, labels: Tensor, mask: Tensor | None, num_labels: int | Tensor | None
    ) -> Tensor:
        classes, keep = labelled(labels, self.ignore_index, mask)
        targets = Labels(classes, student.num_classes, self.smoothing)
        per_row = cross_entropy(targets, student)
        return (1.0 - self.soft_weight) * average(per_row, mask=keep, num_items=num_labels, reduction=self.reduction)

    def extra_repr(self) -> str:
        """The settings, for `print(module)`."""
        return (
            f"temperature={self.temperature:g}, teacher_temperature={self.teacher_temperature:g}, "
            f"soft_weight={self.soft_weight:g}, t_squared={self.t_squared}, "
            f"divergence={getattr(self.divergence, '__name__', self.divergence)}"
        )
