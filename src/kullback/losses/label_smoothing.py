"""Label smoothing, as in attention decoders."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Labels, Logits
from kullback.verbs import kl

from .average import average
from .inputs import one_of, share


class LabelSmoothing(nn.Module):
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
        x: (batch, seqlen, V) logits; any leading shape works.
        target: (batch, seqlen) integers.
        num_items: the denominator of the whole step instead (tokens or sentences, as `normalize_length` says).

    Returns:
        A scalar. With nothing but padding it is a zero connected to the graph.

    Raises:
        FormError: another V than `size`, shapes that do not fit, a label outside [0, V) that is not padding.

    Where copies differ: WeNet's is NaN for smoothing = 0, and for no tokens with `normalize_length`; ESPnet's is
    right at 0. fairseq spreads ε over V-1 as well but returns a cross-entropy; the Annotated
    Transformer spreads it over V-2, leaving out the padding class too.

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
        divergence: Callable[[FiniteForm, FiniteForm], Tensor] = kl,
    ) -> None:
        super().__init__()
        one_of("LabelSmoothing", "spread", spread, ("others", "all"))
        self.size = size
        self.padding_idx = padding_idx
        self.smoothing = share("LabelSmoothing", "smoothing", smoothing)
        self.normalize_length = normalize_length
        self.spread = spread
        self.divergence = divergence
        self._labels(torch.zeros(0, dtype=torch.long))  # the settings fit each other, or say so now

    def forward(self, x: Tensor, target: Tensor, *, num_items: int | Tensor | None = None) -> Tensor:
        """The loss; see the class."""
        if x.shape[-1] != self.size:
            raise FormError(f"LabelSmoothing: x has V={x.shape[-1]} but size={self.size}. Write size={x.shape[-1]}.")
        if x.shape[:-1] != target.shape:
            raise FormError(
                f"LabelSmoothing: x has batch shape {tuple(x.shape[:-1])} but target has {tuple(target.shape)}. "
                "x holds (batch, seqlen, V) and target (batch, seqlen)."
            )
        keep = target != self.padding_idx
        per_token = self.divergence(self._labels(torch.where(keep, target, 0)), Logits(x))
        if num_items is None and not self.normalize_length:
            num_items = max(target.shape[0], 1) if target.dim() > 0 else 1
        return average(per_token, mask=keep, num_items=num_items)

    def _labels(self, target: Tensor) -> Labels:
        return Labels(target, self.size, self.smoothing, self.spread)

    def extra_repr(self) -> str:
        """The settings, for `print(module)`."""
        return (
            f"size={self.size}, padding_idx={self.padding_idx}, smoothing={self.smoothing:g}, "
            f"normalize_length={self.normalize_length}, spread={self.spread!r}"
        )
