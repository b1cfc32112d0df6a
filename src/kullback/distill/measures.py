"""How good predictions are on held-out rows: each function takes forms and gives plain numbers."""

from dataclasses import dataclass

from torch import Tensor

from kullback import Labels, cross_entropy, kl
from kullback.forms.finite import FiniteForm

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram."""

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


def divergence_per_class(teacher: FiniteForm, student: FiniteForm, labels: Tensor) -> list[float]:
    """Mean KL(teacher‖student) in nats over the rows of each class; each class must have a row."""
    rows = kl(teacher, student).double()
    return [rows[labels == c].mean().item() for c in range(student.num_classes)]


def reliability(form: FiniteForm, labels: Tensor, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Rows sorted into equal-width bins of confidence (the largest probability); empty bins are left out."""
    confidence, guess = probabilities(form).max(-1)
    hit = (guess == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bin b holds (b/bins, (b+1)/bins]
    result = []
    for b in sorted(set(index.tolist())):
        inside = index == b
        result.append(Bin(int(inside.sum()), confidence[inside].mean().item(), hit[inside].mean().item()))
    return result


def calibration_error(form: FiniteForm, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error Σ_b (n_b/n) |accuracy_b - confidence_b|. Source: Guo et al. 2017, section 2.

    >>> round(calibration_error(Probs([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1])), 4)
    0.3
    """
    return sum(b.count * abs(b.accuracy - b.confidence) for b in reliability(form, labels, bins)) / len(labels)
