"""How good predictions are on held-out rows: each function takes forms and gives plain numbers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback import Labels, cross_entropy
from kullback.forms.finite import FiniteForm

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: rows whose confidence is in (place/bins, (place + 1)/bins]."""

    place: int
    count: int
    confidence: float
    accuracy: float


def probabilities(form: FiniteForm) -> Tensor:
    """(N, V) in float64."""
    return form.detach().probabilities()


def accuracy(form: FiniteForm, labels: Tensor) -> float:
    """Share of rows whose most probable class is the label.

    >>> accuracy(Probs([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
    0.5
    """
    return (probabilities(form).argmax(-1) == labels).double().mean().item()


def negative_log_likelihood(form: FiniteForm, labels: Tensor) -> float:
    """Mean of -log p(label), in nats; +inf if a label was given no mass.

    >>> round(negative_log_likelihood(Probs([[0.5, 0.5]]), torch.tensor([1])), 4)
    0.6931
    """
    return cross_entropy(Labels(labels, form.num_classes), form).double().mean().item()


def mean_per_class(rows: Tensor, labels: Tensor, num_classes: int) -> list[float]:
    """Mean of the values (N,) of the rows of each class; each class must have a row.

    >>> mean_per_class(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 1]), 2)
    [1.0, 3.0]
    """
    totals = torch.zeros(num_classes, dtype=torch.float64).index_add(0, labels, rows.double())
    return (totals / labels.bincount(minlength=num_classes)).tolist()


def reliability(form: FiniteForm, labels: Tensor, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Rows sorted into equal-width bins of confidence (the largest probability); empty bins are left out."""
    confidence, guess = probabilities(form).max(-1)
    hit = (guess == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bin b holds (b/bins, (b+1)/bins]
    result = []
    for b in sorted(set(index.tolist())):
        inside = index == b
        result.append(Bin(b, int(inside.sum()), confidence[inside].mean().item(), hit[inside].mean().item()))
    return result


def pooled(parts: list[list[Bin]]) -> list[Bin]:
    """The bins of all rows together, from those of each part.

    >>> pooled([[Bin(13, 1, 0.9, 1.0)], [Bin(13, 3, 0.9, 0.0), Bin(4, 2, 0.3, 0.5)]])
    [Bin(place=4, count=2, confidence=0.3, accuracy=0.5), Bin(place=13, count=4, confidence=0.9, accuracy=0.25)]
    """
    together: dict[int, list[Bin]] = {}
    for one in (b for part in parts for b in part):
        together.setdefault(one.place, []).append(one)
    result = []
    for place, group in sorted(together.items()):
        count = sum(b.count for b in group)
        confidence = math.fsum(b.count * b.confidence for b in group) / count
        result.append(Bin(place, count, confidence, math.fsum(b.count * b.accuracy for b in group) / count))
    return result


def calibration_error(form: FiniteForm, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error Σ_b (n_b/n) |accuracy_b - confidence_b|. Source: Guo et al. 2017, section 2.

    >>> round(calibration_error(Probs([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1])), 4)
    0.3
    """
    return gap(reliability(form, labels, bins))


def gap(bins: list[Bin]) -> float:
    """The calibration error of the rows in these bins."""
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / sum(b.count for b in bins)
