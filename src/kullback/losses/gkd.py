"""Distilling sequence models: generalised knowledge distillation and skew KL."""

from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor

from kullback.forms.finite import FiniteForm
from kullback.forms.sparse import Drawn
from kullback.verbs import js, kl, skew

from .average import Reduction, check_reduction
from .base import Loss
from .inputs import flag, forms, one_of, positive, share
from .terms import Divergence, from_teacher, loss_of


class TwoModels(Loss):
    """A loss between student and teacher at one temperature; a subclass names the divergence of the two."""

    temperature: float
    reduction: Reduction

    def _set(self, owner: str, temperature: float, reduction: Reduction) -> None:
        check_reduction(owner, reduction)
        self.temperature = positive(owner, "temperature", temperature)
        self.reduction = reduction

    def forward(
        self,
        *,
        student: Tensor | FiniteForm,
        teacher: Tensor | FiniteForm | Drawn,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """The loss; see the class."""
        rows, (q, p) = forms(type(self).__name__, "teacher", student=student, teacher=teacher)
        p, q = p.detach().tempered(self.temperature), q.tempered(self.temperature)
        between = self._between(p, q)
        keep = rows.mask(mask)
        return loss_of(
            from_teacher(rows, between.divergence, between.p, between.q, keep, num_items, between.factor),
            self.reduction,
        )

    def _between(self, teacher: FiniteForm, student: FiniteForm) -> "Between":
        raise NotImplementedError


class Between(NamedTuple):
    """factor · divergence(p, q): a verb, so that a total knows its row of the table."""

    divergence: Divergence
    p: FiniteForm
    q: FiniteForm
    factor: float = 1.0


class GKD(TwoModels):
    """Generalised knowledge distillation: the weighted Jensen-Shannon divergence of teacher and student.

    JSD_β = β KL(p‖m) + (1-β) KL(q‖m),  m = β p + (1-β) q,  p the teacher, q the student

    Args:
        beta: β in [0, 1].
        scaled: False is the source's JSD_β, continuous in β and 0 at both ends, where it teaches nothing. True divides
            by β(1-β): continuous too, with KL(teacher‖student) at β = 0 and KL(student‖teacher) at β = 1, and gradients
            of one size for all β.
        temperature: of both, without a factor T².
        reduction: "mean", "sum" or "none"; see `average`.

    Call with keywords only:
        student: (..., V) logits, or a form.
        teacher: (..., V) logits, or a form; no gradient flows to it. `Drawn` at β = 0 with scaled=True: an unbiased
            estimate, which may be negative.
        mask: (...) bool, True keeps the token; dropped tokens may hold NaN. There are no labels: where -100 marks what
            does not count, write mask=labels != -100.
        num_items: kept tokens in the whole step, for gradient accumulation.

    Returns: a scalar; a zero connected to the graph if nothing is kept.
    Raises: FormError: settings out of range, inputs that do not fit.

    Where copies differ: as shipped (TRL, Liger and others) the loss is JSD_β inside and KL at the ends, so that it
    jumps: β = 0.999 gives a thousandth of β = 1. `scaled=True` is what agrees with their ends.

    Source: Agarwal et al. 2024, arXiv 2306.13649, equation 1 (JSD_β) and the limit stated below it.

    >>> import torch
    >>> loss = GKD(beta=0.5)
    >>> loss(student=torch.tensor([[2.0, 0.0]]), teacher=torch.tensor([[0.0, 2.0]]))
    tensor(0.3278)
    """

    def __init__(
        self,
        beta: float = 0.5,
        *,
        scaled: bool = False,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self._set("GKD", temperature, reduction)
        self.beta = share("GKD", "beta", beta)
        self.scaled = flag("GKD", "scaled", scaled)

    def _between(self, teacher: FiniteForm, student: FiniteForm) -> Between:
        if self.scaled and self.beta in (0.0, 1.0):
            return Between(kl, teacher, student) if self.beta == 0.0 else Between(kl, student, teacher)
        factor = 1.0 / (self.beta * (1.0 - self.beta)) if self.scaled else 1.0
        return Between(partial(js, weight=self.beta), teacher, student, factor)


class SkewKL(TwoModels):
    """Distillation with a skewed KL (DistiLLM): one side is mixed into the other before comparing.

    "forward": KL(p ‖ a p + (1-a) q).   "reverse": KL(q ‖ a q + (1-a) p).   p the teacher, q the student

    Args:
        weight: a in [0, 1], the share of the first argument in the mixture; 0.1 in the source.
        direction: "forward" or "reverse".
        temperature: of both, without a factor T².
        reduction: "mean", "sum" or "none"; see `average`.

    Call with keywords only: student, teacher, mask, num_items, as for `GKD`. The student stands inside the mixture,
    for "reverse" outside it too: gradients flow through both.

    Returns: a scalar; a zero connected to the graph if nothing is kept. Bounded by log(1/a).
    Raises: FormError: settings out of range, inputs that do not fit.

    Where copies differ: DistiLLM's own forward loss leaves out the teacher's entropy (-Σ p log m: the same gradient,
    another value) and masks infinite logits out of the sum.

    Source: Ko et al. 2024, arXiv 2402.03898, section 3.1.

    >>> import torch
    >>> loss = SkewKL(0.1)
    >>> loss(student=torch.tensor([[2.0, 0.0]]), teacher=torch.tensor([[0.0, 2.0]]))
    tensor(1.0988)
    """

    def __init__(
        self,
        weight: float = 0.1,
        *,
        direction: Literal["forward", "reverse"] = "forward",
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self._set("SkewKL", temperature, reduction)
        one_of("SkewKL", "direction", direction, ("forward", "reverse"))
        self.weight = share("SkewKL", "weight", weight)
        self.direction = direction

    def _between(self, teacher: FiniteForm, student: FiniteForm) -> Between:
        sides = (teacher, student) if self.direction == "forward" else (student, teacher)
        return Between(partial(skew, weight=self.weight), *sides)
