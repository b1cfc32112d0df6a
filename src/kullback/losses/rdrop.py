"""R-Drop: two dropout passes of one model agree."""

from typing import Literal

from torch import Tensor, nn

from kullback.forms.finite import FiniteForm, Labels
from kullback.verbs import cross_entropy, jeffreys

from .average import average
from .inputs import as_form, labelled, not_negative, one_of, share


class RDrop(nn.Module):
    """Cross-entropy of both passes plus a symmetric KL between them.

    L = H(label, p₁) + H(label, p₂) + α · ½ (KL(p₁‖p₂) + KL(p₂‖p₁)),  a mean over rows

    Args:
        alpha: α >= 0; 1 to 5 in the paper, larger for small classification sets.
        nll: "sum" of the two cross-entropies (the paper), or their "mean" (its published code's example): the same as
            doubling α and halving the loss.
        smoothing: label smoothing of the cross-entropies, over all classes.
        ignore_index: rows with this label have none: they take part in the KL alone.

    Call with keywords only:
        first, second: (..., V) logits of two passes over the same input; gradients flow to both, into both KL terms.
        labels: (...) integers.
        mask: (...) bool, True keeps the row; dropped rows may hold NaN.
        num_items, num_labels: denominators for the whole step; see `average`.

    Returns: a scalar, symmetric under a swap of the passes; a zero connected to the graph if nothing is kept.
    Raises: FormError: settings out of range, inputs that do not fit.

    Where copies differ: some leave out the ½, detach one side, or average the KL over classes too (`reduction="mean"`).
    A concatenated batch through one call needs two different dropout masks; the same mask twice gives KL 0.

    Source: Liang et al. 2021, arXiv 2106.14448, equations 2-4.

    >>> import torch
    >>> loss = RDrop(alpha=1.0)
    >>> loss(first=torch.tensor([[0.0, 1.0]]), second=torch.tensor([[1.0, 0.0]]), labels=torch.tensor([0]))
    tensor(2.0886)
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        nll: Literal["sum", "mean"] = "sum",
        smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        one_of("RDrop", "nll", nll, ("sum", "mean"))
        self.alpha = not_negative("RDrop", "alpha", alpha)
        self.nll = nll
        self.smoothing = share("RDrop", "smoothing", smoothing)
        self.ignore_index = ignore_index

    def forward(
        self,
        *,
        first: Tensor | FiniteForm,
        second: Tensor | FiniteForm,
        labels: Tensor,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
        num_labels: int | Tensor | None = None,
    ) -> Tensor:
        """The loss; see the class."""
        p, q = as_form(first), as_form(second)
        classes, keep = labelled(labels, self.ignore_index, mask)
        targets = Labels(classes, p.num_classes, self.smoothing)
        nll = average(
            cross_entropy(targets, p) + cross_entropy(targets, q),
            mask=keep,
            num_items=num_items if num_labels is None else num_labels,
        )
        apart = average(jeffreys(p, q), mask=mask, num_items=num_items)
        return (1.0 if self.nll == "sum" else 0.5) * nll + self.alpha * 0.5 * apart

    def extra_repr(self) -> str:
        """The settings, for `print(module)`."""
        return f"alpha={self.alpha:g}, nll={self.nll!r}, smoothing={self.smoothing:g}"
