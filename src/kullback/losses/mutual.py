"""Deep mutual learning: several students teach each other."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Labels
from kullback.verbs import cross_entropy, kl

from .average import average
from .inputs import as_form, labelled, not_negative


class MutualLearning(nn.Module):
    """One loss per peer: its cross-entropy, plus the mean KL from every other peer to it.

    L_k = H(label, p_k) + weight · 1/(K-1) Σ_{l≠k} KL(p_l ‖ p_k)

    Args:
        weight: of the KL term; 1 in the paper.
        divergence: D(p, q) with p the peer that teaches, q the one that learns.
        detach: the teaching peer takes no gradient from another's loss (the paper updates one network at a time with
            the others fixed). False lets the KL pull both sides: another, symmetric, game.
        ignore_index: rows with this label have none: they take part in the KL alone.

    Call with keywords only:
        peers: two or more (..., V) logits, or forms.
        labels: (...) integers.
        mask: (...) bool, True keeps the row; dropped rows may hold NaN.
        num_items, num_labels: denominators for the whole step; see `average`.

    Returns: (K,), the loss of every peer in order. Call `.sum().backward()`: with detach each peer gets its own
        gradient only. Zeros connected to the graph if nothing is kept.
    Raises: FormError: fewer than two peers, inputs that do not fit.

    Source: Zhang et al. 2018, arXiv 1706.00384, equations 4-8.

    >>> import torch
    >>> a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> MutualLearning()(peers=[a, b], labels=torch.tensor([0]))
    tensor([1.7754, 0.7754])
    """

    def __init__(
        self,
        weight: float = 1.0,
        *,
        divergence: Callable[[FiniteForm, FiniteForm], Tensor] = kl,
        detach: bool = True,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.weight = not_negative("MutualLearning", "weight", weight)
        self.divergence = divergence
        self.detach = detach
        self.ignore_index = ignore_index

    def forward(
        self,
        *,
        peers: Sequence[Tensor | FiniteForm],
        labels: Tensor,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
        num_labels: int | Tensor | None = None,
    ) -> Tensor:
        """The losses; see the class."""
        forms = [as_form(peer) for peer in peers]
        if len(forms) < 2:
            raise FormError(f"MutualLearning: {len(forms)} peer has nobody to learn from. Write peers=[a, b, ...].")
        classes, keep = labelled(labels, self.ignore_index, mask)
        num_labels = num_items if num_labels is None else num_labels
        losses = []
        for k, learner in enumerate(forms):
            nll = cross_entropy(Labels(classes, learner.num_classes), learner)
            taught = [
                self.divergence(teacher.detach() if self.detach else teacher, learner)
                for other, teacher in enumerate(forms)
                if other != k
            ]
            from_peers = torch.stack(taught).mean(0)
            losses.append(
                average(nll, mask=keep, num_items=num_labels)
                + self.weight * average(from_peers, mask=mask, num_items=num_items)
            )
        return torch.stack(losses)

    def extra_repr(self) -> str:
        """The settings, for `print(module)`."""
        return f"weight={self.weight:g}, detach={self.detach}"
