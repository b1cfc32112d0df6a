"""Consistency training: unsupervised data augmentation (UDA)."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Labels, positive_number
from kullback.verbs import cross_entropy, kl

from .average import average
from .inputs import as_form, kept, labelled, not_negative, one_of, share
from .schedules import training_signal


class Consistency(nn.Module):
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
        divergence: Callable[[FiniteForm, FiniteForm], Tensor] = kl,
    ) -> None:
        super().__init__()
        one_of("Consistency", "denominator", denominator, ("all", "kept"))
        self.target_temperature = positive_number("Consistency", "target_temperature", target_temperature)
        self.prediction_temperature = positive_number("Consistency", "prediction_temperature", prediction_temperature)
        self.threshold = None if threshold is None else share("Consistency", "threshold", threshold)
        self.denominator = denominator
        self.divergence = divergence

    def forward(
        self,
        *,
        original: Tensor | FiniteForm,
        augmented: Tensor | FiniteForm,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """The loss; see the class."""
        target = as_form(original).detach()
        per_row = self.divergence(
            target.tempered(self.target_temperature), as_form(augmented).tempered(self.prediction_temperature)
        )
        counted = kept(mask, per_row.shape)
        keep = self.confident(target, per_row.shape, counted)
        if num_items is None and self.denominator == "all":
            num_items = per_row.numel() if counted is None else counted.sum()
            num_items = max(num_items, 1) if isinstance(num_items, int) else num_items.clamp(min=1)
        return average(per_row, mask=keep, num_items=num_items)

    def confident(self, original: FiniteForm, shape: torch.Size, counted: Tensor | None = None) -> Tensor:
        """The rows that count and whose largest original probability exceeds the threshold."""
        every = torch.ones(shape, dtype=torch.bool, device=original.data.device) if counted is None else counted
        if self.threshold is None:
            return every
        return every & (original.probabilities().amax(-1) > self.threshold)

    def extra_repr(self) -> str:
        """The settings, for `print(module)`."""
        return (
            f"target_temperature={self.target_temperature:g}, prediction_temperature={self.prediction_temperature:g}, "
            f"threshold={self.threshold}, denominator={self.denominator!r}"
        )


class UDAParts(NamedTuple):
    """What a step of UDA consists of: the loss, its two terms, how many labelled examples the annealing left in and
    the probability above which it left them out."""

    loss: Tensor
    supervised: Tensor
    consistency: Tensor
    labelled_kept: Tensor
    signal: float


class UDA(nn.Module):
    """Unsupervised data augmentation: annealed cross-entropy plus coefficient × consistency.

    L = Σ_left H(label, model) / max(left, 1) + λ · Consistency

    An example is left in while the model gives its label at most the probability η(step) of `training_signal`.

    Args:
        consistency: a `Consistency`; the default is the paper's code with its flags at their defaults: no sharpening,
            no threshold, mean over all rows.
        coefficient: λ >= 0.
        signal: "linear", "log", "exp", or None for no annealing (the default flag of the paper's code).
        total_steps: length of the schedule; needed with a signal.
        ignore_index: rows with this label have none.

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
        self.consistency = Consistency() if consistency is None else consistency
        self.coefficient = not_negative("UDA", "coefficient", coefficient)
        self.signal = signal
        self.total_steps = total_steps
        self.ignore_index = ignore_index

    def forward(
        self,
        *,
        logits: Tensor,
        labels: Tensor,
        original: Tensor | FiniteForm | None = None,
        augmented: Tensor | FiniteForm | None = None,
        step: int | None = None,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
        num_labels: int | Tensor | None = None,
    ) -> Tensor:
        """The loss; see the class."""
        return self.parts(
            logits=logits,
            labels=labels,
            original=original,
            augmented=augmented,
            step=step,
            mask=mask,
            num_items=num_items,
            num_labels=num_labels,
        ).loss

    def parts(
        self,
        *,
        logits: Tensor,
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
        model = as_form(logits)
        classes, keep = labelled(labels, self.ignore_index, None)
        per_row = cross_entropy(Labels(classes, model.num_classes), model)
        eta = self._threshold(step, model.num_classes)
        if self.signal is not None:
            keep = keep & ~(torch.exp(-per_row.detach()) > eta)
        supervised = average(per_row, mask=keep, num_items=num_labels)
        if original is None or augmented is None:
            unsupervised = supervised.new_zeros(())
        else:
            unsupervised = self.consistency(original=original, augmented=augmented, mask=mask, num_items=num_items)
        loss = supervised + self.coefficient * unsupervised
        return UDAParts(loss, supervised, unsupervised, keep.sum(), eta)

    def _threshold(self, step: int | None, num_classes: int) -> float:
        if self.signal is None or self.total_steps is None:
            return 1.0
        if step is None:
            raise FormError(f"UDA: signal={self.signal!r} anneals over training. Write step=..., counted from 0.")
        return training_signal(step, steps=self.total_steps, num_classes=num_classes, schedule=self.signal)

    def extra_repr(self) -> str:
        """The settings, for `print(module)`."""
        return f"coefficient={self.coefficient:g}, signal={self.signal!r}, total_steps={self.total_steps}"
