"""Consistency training: unsupervised data augmentation (UDA)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Labels
from kullback.forms.sharded import Sharded
from kullback.verbs import cross_entropy, kl

from .average import average, check_num_items
from .base import Loss, LossOfParts
from .inputs import a_divergence, forms, integer, not_negative, one_of, positive, share
from .schedules import training_signal
from .terms import Divergence, Term, loss_of


class Consistency(Loss):
    """The prediction on an augmented example is drawn to the (fixed) prediction on the original.

    L = Σ_confident KL(original at T_t ‖ augmented at T_p) / denominator

    Args:
        target_temperature: T_t; below 1 it sharpens the target, as the paper's code does (0.4 in its image runs).
        prediction_temperature: T_p; the PyTorch port by SanghunYun applies its temperature here instead.
        threshold: keep rows whose largest original probability, at temperature 1, exceeds it; None keeps all.
        denominator: "all" rows of the batch, as the paper's code, or the "kept" (confident) ones, as the port.
        divergence: D(p, q) with p the target: any verb of two forms.

    Call with keywords only:
        original: (..., V) logits, or a form; no gradient flows to it.
        augmented: (..., V) logits, or a form.
        mask: (...) bool, True for rows that count at all; the others may hold NaN.
        num_items: the denominator for the whole step; see `average`.

    Returns:
        A scalar; a zero connected to the graph if no row is kept.

    Raises:
        FormError: settings out of range, inputs that do not fit.

    Source: Xie et al. 2020, arXiv 1904.12848, equation 1 and section 2.3; google-research/uda, `text/uda.py`.

    >>> import torch
    >>> loss = Consistency(target_temperature=0.5)
    >>> loss(original=torch.tensor([[1.0, 0.0]]), augmented=torch.tensor([[0.0, 0.0]]))
    tensor(0.3278)
    """

    def __init__(
        self,
        *,
        target_temperature: float = 1.0,
        prediction_temperature: float = 1.0,
        threshold: float | None = None,
        denominator: Literal["all", "kept"] = "all",
        divergence: Divergence = kl,
    ) -> None:
        super().__init__()
        one_of("Consistency", "denominator", denominator, ("all", "kept"))
        self.target_temperature = positive("Consistency", "target_temperature", target_temperature)
        self.prediction_temperature = positive("Consistency", "prediction_temperature", prediction_temperature)
        self.threshold = None if threshold is None else share("Consistency", "threshold", threshold)
        self.denominator = denominator
        self.divergence = a_divergence("Consistency", divergence)

    def forward(
        self,
        *,
        original: Tensor | FiniteForm,
        augmented: Tensor | FiniteForm,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """The loss; see the class."""
        rows, (target, prediction) = forms("Consistency", original=original, augmented=augmented)
        counted = rows.mask(mask)
        keep = self._confident(target.detach(), counted)
        if num_items is None and self.denominator == "all":
            num_items = max(rows.shape.numel(), 1) if counted is None else counted.sum().clamp(min=1)
        p = target.detach().tempered(self.target_temperature)
        q = prediction.tempered(self.prediction_temperature)
        return loss_of(Term(rows, self.divergence, p, q, keep, num_items))

    def _confident(self, target: FiniteForm, counted: Tensor | None) -> Tensor | None:
        """The rows that count and whose largest probability exceeds the threshold."""
        if self.threshold is None:
            return counted
        if isinstance(target, Sharded):
            raise FormError(
                "Consistency: a threshold looks at the largest of all probabilities, of which each rank holds some. "
                "Write threshold=None, or Logits of the whole."
            )
        sure = target.probabilities().amax(-1) > self.threshold
        return sure if counted is None else sure & counted


class UDAParts(NamedTuple):
    """What a step of UDA consists of: the loss, its two terms, how many labelled examples the annealing left in and
    the probability above which it left them out."""

    loss: Tensor
    supervised: Tensor
    consistency: Tensor
    labelled_kept: Tensor
    signal: float


class UDA(LossOfParts):
    """Unsupervised data augmentation: annealed cross-entropy plus coefficient × consistency.

    L = Σ_left H(label, model) / max(left, 1) + λ · Consistency

    An example is left in while the model gives its label at most the probability η(step) of `training_signal`.

    Args:
        consistency: a `Consistency`; the default is the paper's code with its flags at their defaults: no sharpening,
            no threshold, mean over all rows.
        coefficient: λ >= 0.
        signal: "linear", "log", "exp", or None for no annealing (the default flag of the paper's code).
        total_steps: length of the schedule; needed with a signal.
        ignore_index: rows with this label leave the supervised term. The pairs are other rows and have no labels;
            `mask` tells which of them are padding.

    Call with keywords only:
        logits: (..., V) predictions on the labelled examples.
        labels: (...) integers.
        original, augmented: (..., V) predictions on the unlabelled pairs; leave both out for a supervised step.
        step: the training step from 0; needed with a signal.
        mask: (...) bool over the pairs, True keeps.
        num_items: denominator of the consistency term for the whole step.
        num_labels: denominator of the supervised term for the whole step.

    Returns:
        A scalar; `parts(...)` takes the same arguments and returns it with its terms.

    Raises:
        FormError: settings out of range, a missing step or one of a pair, inputs that do not fit.

    Where copies differ: the port by SanghunYun tempers the prediction and not the target, and divides by the rows
    kept: `Consistency(prediction_temperature=0.85, threshold=0.45, denominator="kept")`. Copies of that port that
    drop `detach` train the target too.

    Source: Xie et al. 2020, arXiv 1904.12848; google-research/uda, `text/uda.py`.

    >>> import torch
    >>> loss = UDA(signal="linear", total_steps=100)
    >>> loss(logits=torch.tensor([[9.0, 0.0], [0.0, 0.0]]), labels=torch.tensor([0, 0]), step=50)
    tensor(0.6931)
    """

    def __init__(
        self,
        consistency: Consistency | None = None,
        *,
        coefficient: float = 1.0,
        signal: Literal["linear", "log", "exp"] | None = None,
        total_steps: int | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        one_of("UDA", "signal", signal, (None, "linear", "log", "exp"))
        if signal is not None and total_steps is None:
            raise FormError(f"UDA: signal={signal!r} needs the length of training. Write total_steps=...")
        if consistency is not None and not isinstance(consistency, Consistency):
            raise FormError(f"UDA: consistency is {consistency!r}. Write UDA(Consistency(...)).")
        self.consistency = Consistency() if consistency is None else consistency
        self.coefficient = not_negative("UDA", "coefficient", coefficient)
        self.signal = signal
        self.total_steps = None if total_steps is None else integer("UDA", "total_steps", total_steps, at_least=1)
        self.ignore_index = integer("UDA", "ignore_index", ignore_index)

    def parts(
        self,
        *,
        logits: Tensor | FiniteForm,
        labels: Tensor,
        original: Tensor | FiniteForm | None = None,
        augmented: Tensor | FiniteForm | None = None,
        step: int | None = None,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
        num_labels: int | Tensor | None = None,
    ) -> UDAParts:
        """The loss with its terms; the arguments are those of the call."""
        if (original is None) != (augmented is None):
            raise FormError("UDA: original= and augmented= belong together. Write both, or neither.")
        if original is None and mask is not None:
            raise FormError(
                "UDA: mask is over the pairs, but there are none. Write ignore_index into the labels that do not count."
            )
        check_num_items(num_items)
        rows, (model,) = forms("UDA", logits=logits)
        classes, keep = rows.labels(labels, self.ignore_index)
        per_row = cross_entropy(Labels(classes, model.num_classes), model)
        eta = self._threshold(step, model.num_classes)
        if self.signal is not None:
            keep = keep & ~(torch.exp(-per_row.detach()) > eta)
        supervised = average(per_row, mask=keep, num_items=num_labels)
        if original is None or augmented is None:
            unsupervised = supervised.new_zeros(())
        else:
            _, (_, pair) = forms("UDA", original=original, augmented=augmented)
            if pair.num_classes != model.num_classes:
                raise FormError(
                    f"UDA: logits has V={model.num_classes} but augmented has V={pair.num_classes}. "
                    "One model gives all three: check that the class axis is the last."
                )
            unsupervised = self.consistency(original=original, augmented=augmented, mask=mask, num_items=num_items)
        loss = supervised + self.coefficient * unsupervised
        return UDAParts(loss, supervised, unsupervised, keep.sum(), eta)

    def _threshold(self, step: int | None, num_classes: int) -> float:
        if self.signal is None or self.total_steps is None:
            return 1.0
        if step is None:
            raise FormError(f"UDA: signal={self.signal!r} anneals over training. Write step=..., counted from 0.")
        return training_signal(step, steps=self.total_steps, num_classes=num_classes, schedule=self.signal)
