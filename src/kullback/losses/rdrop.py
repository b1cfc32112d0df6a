"""R-Drop: two dropout passes of one model agree."""

from typing import Literal, NamedTuple

from torch import Tensor

from kullback.forms.finite import FiniteForm, Labels
from kullback.verbs import cross_entropy, jeffreys

from .base import LossOfParts
from .inputs import forms, integer, not_negative, one_of, share
from .terms import Term, mixed


class RDropParts(NamedTuple):
    """The loss and its two terms: the cross-entropies, summed or averaged as `nll` says, and the symmetric KL, halved,
    before α."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


class RDrop(LossOfParts):
    """Cross-entropy of both passes plus a symmetric KL between them.

    L = H(label, p₁) + H(label, p₂) + α · ½ (KL(p₁‖p₂) + KL(p₂‖p₁)),  a mean over rows

    Args:
        alpha: α >= 0; 1 to 5 in the paper, larger for small classification sets.
        nll: "sum" of the two cross-entropies (the paper), or their "mean" (its published code's example): the same as
            doubling α and halving the loss.
        smoothing: label smoothing of the cross-entropies, over all classes.
        ignore_index: rows with this label have none.
        unlabelled: where such rows go: "drop" leaves them out of both terms, as the paper's code does with padding;
            "kl" keeps them in the KL, which needs no label.

    Call with keywords only:
        first, second: (..., V) logits of two passes over the same input; gradients flow to both, into both KL terms.
        labels: (...) integers.
        mask: (...) bool, True keeps the row; dropped rows may hold NaN.
        num_items, num_labels: denominators of the KL and of the cross-entropies for the whole step; see `average`.
            num_labels is num_items unless given, and the same unless "kl".

    Returns: a scalar, symmetric under a swap of the passes; a zero connected to the graph if nothing is kept.
        `parts(...)` takes the same arguments and returns it with its terms.
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
        unlabelled: Literal["drop", "kl"] = "drop",
    ) -> None:
        super().__init__()
        one_of("RDrop", "unlabelled", unlabelled, ("drop", "kl"))
        one_of("RDrop", "nll", nll, ("sum", "mean"))
        self.alpha = not_negative("RDrop", "alpha", alpha)
        self.nll = nll
        self.smoothing = share("RDrop", "smoothing", smoothing)
        self.ignore_index = integer("RDrop", "ignore_index", ignore_index)
        self.unlabelled = unlabelled

    def parts(
        self,
        *,
        first: Tensor | FiniteForm,
        second: Tensor | FiniteForm,
        labels: Tensor,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
        num_labels: int | Tensor | None = None,
    ) -> RDropParts:
        """The loss with its terms; the arguments are those of the call."""
        rows, (p, q) = forms("RDrop", first=first, second=second)
        kept = rows.mask(mask)
        classes, labelled = rows.labels(labels, self.ignore_index, kept)
        truth = Labels(classes, p.num_classes, self.smoothing)
        share_of_each = 1.0 if self.nll == "sum" else 0.5
        of_all = num_items if num_labels is None else num_labels
        ours, theirs = (Term(rows, cross_entropy, truth, x, labelled, of_all, share_of_each) for x in (p, q))
        in_kl = labelled if self.unlabelled == "drop" else kept
        apart = Term(rows, jeffreys, p, q, in_kl, num_items, 0.5)
        loss, (one, other, agreement) = mixed([(1.0, ours), (1.0, theirs), (self.alpha, apart)])
        return RDropParts(loss, one + other, agreement)
