"""Distilling sequence models: generalised knowledge distillation and skew KL."""

from typing import Literal

from torch import Tensor, nn

from kullback.forms.finite import FiniteForm, positive_number
from kullback.verbs import js, kl, skew

from .average import Reduction, average
from .inputs import as_form, one_of, share


class GKD(nn.Module):
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
        teacher: (..., V) logits, or a form; no gradient flows to it.
        mask: (...) bool, True keeps the token; dropped tokens may hold NaN.
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
        self.beta = share("GKD", "beta", beta)
        self.scaled = scaled
        self.temperature = positive_number("GKD", "temperature", temperature)
        self.reduction = reduction

    def forward(
        self,
        *,
        student: Tensor | FiniteForm,
        teacher: Tensor | FiniteForm,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """The loss; see the class."""
        p = as_form(teacher).detach().tempered(self.temperature)
        q = as_form(student).tempered(self.temperature)
        return average(self._per_row(p, q), mask=mask, num_items=num_items, reduction=self.reduction)

    def _per_row(self, p: FiniteForm, q: FiniteForm) -> Tensor:
        if not self.scaled:
            return js(p, q, weight=self.beta)
        if self.beta in (0.0, 1.0):
            return kl(p, q) if self.beta == 0.0 else kl(q, p)
        return js(p, q, weight=self.beta) / (self.beta * (1.0 - self.beta))

    def extra_repr(self) -> str:
        """The settings, for `print(module)`."""
        return f"beta={self.beta:g}, scaled={self.scaled}, temperature={self.temperature:g}"


class SkewKL(nn.Module):
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
        one_of("SkewKL", "direction", direction, ("forward", "reverse"))
        self.weight = share("SkewKL", "weight", weight)
        self.direction = direction
        self.temperature = positive_number("SkewKL", "temperature", temperature)
        self.reduction = reduction

    def forward(
        self,
        *,
        student: Tensor | FiniteForm,
        teacher: Tensor | FiniteForm,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """The loss; see the class."""
        p = as_form(teacher).detach().tempered(self.temperature)
        q = as_form(student).tempered(self.temperature)
        first, second = (p, q) if self.direction == "forward" else (q, p)
        per_row = skew(first, second, self.weight)
        return average(per_row, mask=mask, num_items=num_items, reduction=self.reduction)

    def extra_repr(self) -> str:
        """The settings, for `print(module)`."""
        return f"weight={self.weight:g}, direction={self.direction!r}, temperature={self.temperature:g}"
