"""Label smoothing, as in attention decoders."""

from typing import Literal

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Labels
from kullback.verbs import kl

from .base import Loss
from .inputs import a_divergence, flag, forms, integer, one_of, share
from .terms import Divergence, Term, loss_of


class LabelSmoothing(Loss):
    """Relative entropy of the model to the smoothed label: WeNet's and ESPnet's `LabelSmoothingLoss`.

    L = Σ_tokens KL(smoothed label ‖ softmax(x)) / denominator, over the tokens that are not padding.

    Args:
        size: V, the number of classes.
        padding_idx: the label of padding; its rows count for nothing and may hold NaN.
        smoothing: ε in [0, 1], the mass taken from the label. 0 is plain cross-entropy.
        normalize_length: divide by the number of tokens; otherwise by the number of sentences, padding or not.
        spread: where ε goes: "others" to the V-1 other classes (WeNet, ESPnet), "all" to all V (PyTorch).
        divergence: `kl`, which is 0 for a model that predicts the smoothed label, or `cross_entropy`, which is
            larger by the constant entropy of the smoothed label (fairseq, PyTorch). The gradients are the same.

    Call with:
        x: (batch, seqlen, V) logits, or a form such as `LinearLogits`; any leading shape works.
        target: (batch, seqlen) integers.
        num_items: the denominator of the whole step instead (tokens or sentences, as `normalize_length` says).

    Returns:
        A scalar. With nothing but padding it is a zero connected to the graph.

    Raises:
        FormError: another V than `size`, shapes that do not fit, a label outside [0, V) that is not padding.

    Where copies differ: WeNet's and ESPnet's, on `nn.KLDivLoss`, are right for smoothing = 0; copies that write
    y (log y - log q) out are NaN there. With `normalize_length` all of them are NaN for no tokens. fairseq spreads ε
    over V-1 as well but returns a cross-entropy; the Annotated Transformer spreads it over V-2, leaving out the padding
    class too.

    Source: Szegedy et al. 2016, section 7; WeNet, `transformer/label_smoothing_loss.py`.

    >>> import torch
    >>> loss = LabelSmoothing(size=3, padding_idx=-1, smoothing=0.1, normalize_length=True)
    >>> loss(torch.zeros(1, 2, 3), torch.tensor([[2, -1]]))
    tensor(0.7042)
    """

    def __init__(
        self,
        size: int,
        padding_idx: int = -1,
        smoothing: float = 0.1,
        normalize_length: bool = False,
        *,
        spread: Literal["others", "all"] = "others",
        divergence: Divergence = kl,
    ) -> None:
        super().__init__()
        one_of("LabelSmoothing", "spread", spread, ("others", "all"))
        self.size = integer("LabelSmoothing", "size", size, at_least=1)
        self.padding_idx = integer("LabelSmoothing", "padding_idx", padding_idx)
        self.smoothing = share("LabelSmoothing", "smoothing", smoothing)
        self.normalize_length = flag("LabelSmoothing", "normalize_length", normalize_length)
        self.spread = spread
        self.divergence = a_divergence("LabelSmoothing", divergence)
        self._labels(torch.zeros(0, dtype=torch.long))  # the settings fit each other, or say so now

    def forward(self, x: Tensor | FiniteForm, target: Tensor, *, num_items: int | Tensor | None = None) -> Tensor:
        """The loss; see the class."""
        rows, (form,) = forms("LabelSmoothing", x=x)
        if form.num_classes != self.size:
            v = form.num_classes
            raise FormError(f"LabelSmoothing: x has V={v} but size={self.size}. Write size={v}.")
        labels, keep = rows.labels(target, self.padding_idx, name="target")
        if num_items is None and not self.normalize_length:
            num_items = max(target.shape[0], 1) if target.dim() > 0 else 1
        return loss_of(Term(rows, self.divergence, self._labels(labels), form, keep, num_items))

    def _labels(self, target: Tensor) -> Labels:
        return Labels(target, self.size, self.smoothing, self.spread)
