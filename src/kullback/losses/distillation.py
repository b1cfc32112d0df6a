"""Knowledge distillation."""

from typing import Literal, NamedTuple

from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Labels
from kullback.forms.sparse import Drawn
from kullback.verbs import cross_entropy, kl

from .average import Reduction, check_num_items, check_reduction
from .base import LossOfParts
from .inputs import a_divergence, flag, forms, integer, one_of, positive, share
from .terms import Divergence, Term, from_teacher, mixed


class DistillationParts(NamedTuple):
    """The loss and its two terms, before their weights and with T²; None where the weight is 0."""

    loss: Tensor
    soft: Tensor | None
    hard: Tensor | None


class Distillation(LossOfParts):
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
        ignore_index: rows with this label have none.
        unlabelled: where such rows go: "drop" leaves them out of both terms, for -100 marks padding and prompts in
            every trainer; "soft" keeps them in the soft term, as labels that nobody gave.
        reduction: "mean", "sum" (over rows), or "none": per row, zero where the mask drops it.

    Call with keywords only, so that the direction cannot be mistaken:
        student: (..., V) tensor of logits, or a form.
        teacher: (..., V) tensor of logits, or a form (`Probs`, `LogProbs`, `TopK`); no gradient flows to it. For KL
            also `Drawn`, with teacher_temperature=1, since it was drawn at a temperature: the soft term is then
            unbiased in value and gradient, and may be negative.
        labels: (...) integers; needed unless w = 1. With w = 1 they only tell which rows to drop.
        mask: (...) bool, True keeps the row; dropped rows may hold NaN.
        num_items: rows of the soft term in the whole step, for gradient accumulation; see `average`.
        num_labels: rows of the hard term in the whole step; num_items unless given, and the same unless "soft".

    Returns:
        A scalar; `parts(...)` takes the same arguments and returns it with its terms. With every row dropped it is a
        zero connected to the graph.

    Raises:
        FormError: settings out of range, a missing teacher or labels, inputs that do not fit: every tensor has the
            student's rows, and nothing is broadcast.

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
        divergence: Divergence = kl,
        smoothing: float = 0.0,
        ignore_index: int = -100,
        unlabelled: Literal["drop", "soft"] = "drop",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        one_of("Distillation", "unlabelled", unlabelled, ("drop", "soft"))
        check_reduction("Distillation", reduction)
        self.temperature = positive("Distillation", "temperature", temperature)
        self.teacher_temperature = positive(
            "Distillation", "teacher_temperature", temperature if teacher_temperature is None else teacher_temperature
        )
        self.soft_weight = share("Distillation", "soft_weight", soft_weight)
        self.t_squared = flag("Distillation", "t_squared", t_squared)
        self.divergence = a_divergence("Distillation", divergence)
        self.smoothing = share("Distillation", "smoothing", smoothing)
        self.ignore_index = integer("Distillation", "ignore_index", ignore_index)
        self.unlabelled = unlabelled
        self.reduction = reduction

    def parts(
        self,
        *,
        student: Tensor | FiniteForm,
        teacher: Tensor | FiniteForm | Drawn | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
        num_labels: int | Tensor | None = None,
    ) -> DistillationParts:
        """The loss with its terms; the arguments are those of the call."""
        if teacher is None and self.soft_weight > 0.0:
            raise FormError(
                "Distillation: teacher is missing. Write teacher=..., or soft_weight=0 for the labels alone."
            )
        if labels is None and self.soft_weight < 1.0:
            raise FormError(
                "Distillation: labels are missing. Write labels=..., or soft_weight=1 for the teacher alone."
            )
        for count in (num_items, num_labels):
            check_num_items(count, self.reduction)
        given = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
        rows, (q, *others) = forms("Distillation", "teacher", **given)
        kept = labelled = rows.mask(mask)
        terms: dict[str, tuple[float, Term]] = {}
        if labels is not None:
            classes, labelled = rows.labels(labels, self.ignore_index, kept)
            if self.soft_weight < 1.0:
                truth = Labels(classes, q.num_classes, self.smoothing)
                of_all = num_items if num_labels is None else num_labels
                terms["hard"] = 1.0 - self.soft_weight, Term(rows, cross_entropy, truth, q, labelled, of_all)
        if self.soft_weight > 0.0:
            p = others[0].detach().tempered(self.teacher_temperature)
            scale = self.temperature**2 if self.t_squared else 1.0
            keep = labelled if self.unlabelled == "drop" else kept
            soft = from_teacher(rows, self.divergence, p, q.tempered(self.temperature), keep, num_items, scale)
            terms["soft"] = self.soft_weight, soft
        loss, values = mixed(list(terms.values()), self.reduction)
        named = dict(zip(terms, values, strict=True))
        return DistillationParts(loss, named.get("soft"), named.get("hard"))
