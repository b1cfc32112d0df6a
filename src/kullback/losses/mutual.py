"""Deep mutual learning: several students teach each other."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Labels
from kullback.verbs import cross_entropy, kl

from .base import LossOfParts
from .inputs import a_divergence, flag, forms, integer, not_negative, one_of
from .terms import Divergence, Term, mixed


class MutualParts(NamedTuple):
    """The losses of the peers and their two terms before the weight, each (K,)."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


class MutualLearning(LossOfParts):
    """One loss per peer: its cross-entropy, plus the mean KL from every other peer to it.

    L_k = H(label, p_k) + weight · 1/(K-1) Σ_{l≠k} KL(p_l ‖ p_k)

    Args:
        weight: of the KL term; 1 in the paper.
        divergence: D(p, q) with p the peer that teaches, q the one that learns.
        detach: the teaching peer takes no gradient from another's loss (the paper updates one network at a time with
            the others fixed). False lets the KL pull both sides: another, symmetric, game.
        ignore_index: rows with this label have none.
        unlabelled: where such rows go: "drop" leaves them out of both terms, as the padding that -100 marks; "kl" keeps
            them in the KL, for peers that also learn from rows without a label.

    Call with keywords only:
        peers: two or more (..., V) logits, or forms.
        labels: (...) integers.
        mask: (...) bool, True keeps the row; dropped rows may hold NaN.
        num_items, num_labels: denominators of the KL and of the cross-entropies for the whole step; see `average`.
            num_labels is num_items unless given, and the same unless "kl".

    Returns: (K,), the loss of every peer in order; `parts(...)` takes the same arguments and returns it with its terms.
        Call `.sum().backward()`: with detach each peer gets its own gradient only. Zeros connected to the graph if
        nothing is kept.
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
        divergence: Divergence = kl,
        detach: bool = True,
        ignore_index: int = -100,
        unlabelled: Literal["drop", "kl"] = "drop",
    ) -> None:
        super().__init__()
        one_of("MutualLearning", "unlabelled", unlabelled, ("drop", "kl"))
        self.weight = not_negative("MutualLearning", "weight", weight)
        self.divergence = a_divergence("MutualLearning", divergence)
        self.detach = flag("MutualLearning", "detach", detach)
        self.ignore_index = integer("MutualLearning", "ignore_index", ignore_index)
        self.unlabelled = unlabelled

    def parts(
        self,
        *,
        peers: Sequence[Tensor | FiniteForm],
        labels: Tensor,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
        num_labels: int | Tensor | None = None,
    ) -> MutualParts:
        """The losses with their terms; the arguments are those of the call."""
        if not isinstance(peers, Sequence) or len(peers) < 2:
            given = f"a list of {len(peers)}" if isinstance(peers, Sequence) else f"a {type(peers).__name__}"
            raise FormError(f"MutualLearning: peers is {given}, who has nobody to learn from. Write peers=[a, b, ...].")
        rows, learners = forms("MutualLearning", **{f"peers[{k}]": peer for k, peer in enumerate(peers)})
        kept = rows.mask(mask)
        classes, labelled = rows.labels(labels, self.ignore_index, kept)
        in_kl = labelled if self.unlabelled == "drop" else kept
        truth = Labels(classes, learners[0].num_classes)
        of_all = num_items if num_labels is None else num_labels
        teachers = [peer.detach() for peer in learners] if self.detach else learners
        each = 1.0 / (len(learners) - 1)
        losses, nll, from_peers = [], [], []
        for k, learner in enumerate(learners):
            hard = Term(rows, cross_entropy, truth, learner, labelled, of_all)
            taught = [
                Term(rows, self.divergence, teacher, learner, in_kl, num_items, each)
                for other, teacher in enumerate(teachers)
                if other != k
            ]
            loss, (surprise, *taken) = mixed([(1.0, hard), *((self.weight, term) for term in taught)])
            losses.append(loss)
            nll.append(surprise)
            from_peers.append(torch.stack(taken).sum(0))
        return MutualParts(torch.stack(losses), torch.stack(nll), torch.stack(from_peers))
