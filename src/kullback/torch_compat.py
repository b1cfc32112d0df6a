"""Drop-in replacements for `torch.nn.functional.kl_div` and `torch.nn.KLDivLoss`: the same values without the NaNs.

For new code write `kl`, which says its direction and takes what you hold.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["KLDivLoss", "kl_div"]


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """The signature and values of `torch.nn.functional.kl_div`, without its NaNs.

    It computes KL(target‖exp(input)), pointwise target · (log target - input): the *second* argument is the
    reference p, and `input` holds log-probabilities of q. With `log_target=True` it is exp(target) · (target - input).

    Where `F.kl_div` gives NaN though the mathematics is finite, this gives the limit:

        target 0, input -inf     value 0, gradients 0
        log_target -inf          value 0, gradients 0
        target 0                 gradient to target 0, standing for the infinite slope log target + 1 - input

    Nothing is normalised: terms may be negative, as in PyTorch. `kl(Probs(target), LogProbs(input))` is the same
    quantity per row, never negative, and 1e-5 accurate when the two are close.

    Args:
        input: log-probabilities of q, any shape.
        target: probabilities of p (log-probabilities with `log_target`), broadcastable with `input`.
        size_average, reduce: deprecated, with PyTorch's warning and meaning.
        reduction: "none", "sum", "batchmean" (sum / input.size(0)), or "mean": over every element, classes included,
            which is not a mean over the batch; PyTorch's warning says so, and so does this one.
        log_target: whether `target` is given in logarithms.

    Returns: a scalar, or with "none" a tensor of the broadcast shape, in the promoted dtype.
    Gradients: to both.
    Raises: ValueError: an unknown reduction.
    Source: the documentation of `torch.nn.functional.kl_div`.

    >>> import torch
    >>> kl_div(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]), reduction="batchmean")
    tensor(0.1438)
    """
    if size_average is not None or reduce is not None:
        reduction = nn.KLDivLoss(size_average, reduce).reduction  # PyTorch's own translation, with its warning
    elif reduction == "mean":
        _warn_of_mean()
    # each masks its inputs as well as its result, so that no derivative multiplies 0 by inf
    terms = _log_target_terms(input, target) if log_target else _target_terms(input, target)
    if reduction == "none":
        return terms
    if reduction == "sum":
        return terms.sum()
    if reduction == "mean":
        return terms.mean()
    if reduction == "batchmean":
        return terms.sum() / input.size(0) if input.dim() else terms.sum()
    raise ValueError(f"{reduction} is not a valid value for reduction; write 'none', 'mean', 'sum' or 'batchmean'.")


class KLDivLoss(nn.KLDivLoss):
    """The signature and values of `torch.nn.KLDivLoss`, without its NaNs; see `kl_div`.

    >>> import torch
    >>> KLDivLoss(reduction="batchmean")(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]))
    tensor(0.1438)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """KL(target‖exp(input)), reduced."""
        return kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


def _warn_of_mean() -> None:
    """PyTorch's own warning, in the words of the installed version."""
    nothing = torch.empty(0)
    F.kl_div(nothing, nothing, reduction="mean")  # noqa: KLB001


def _target_terms(log_q: Tensor, p: Tensor) -> Tensor:
    none = (p == 0) & ~log_q.isnan()
    safe_p, safe_log_q = torch.where(none, 1.0, p), torch.where(none, 0.0, log_q)
    return torch.where(none, 0.0, safe_p * (torch.log(safe_p) - safe_log_q))


def _log_target_terms(log_q: Tensor, log_p: Tensor) -> Tensor:
    none = (log_p == -torch.inf) & ~log_q.isnan()
    safe_log_p, safe_log_q = torch.where(none, 0.0, log_p), torch.where(none, 0.0, log_q)
    return torch.where(none, 0.0, torch.exp(safe_log_p) * (safe_log_p - safe_log_q))
