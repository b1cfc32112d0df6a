"""Drop-in replacements for `torch.nn.functional.kl_div` and `torch.nn.KLDivLoss`: the same values without the NaNs.

For new code write `kl`, which says its direction and takes what you hold. `kullback check` finds in code what
`check=True` finds in values.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ._errors import FormError

__all__ = ["KLDivLoss", "check_operands", "kl_div"]


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
    *,
    check: bool = False,
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
        check: refuse what is no divergence over the last axis: `input` that holds no log-probabilities, `target` that
            holds no probabilities. It reads both, and waits for a GPU; off, it costs one `if`. Not inside `compile`.

    Returns: a scalar, or with "none" a tensor of the broadcast shape, in the promoted dtype.
    Gradients: to both.
    Raises: ValueError: an unknown reduction. FormError, with `check`: what was given, which row, what to write.
    Source: the documentation of `torch.nn.functional.kl_div`.

    >>> import torch
    >>> kl_div(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]), reduction="batchmean")
    tensor(0.1438)
    """
    if check:
        check_operands(input, target, log_target)
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

    Args: check: as for `kl_div`.

    >>> import torch
    >>> KLDivLoss(reduction="batchmean")(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]))
    tensor(0.1438)
    """

    check: bool = False

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        log_target: bool = False,
        *,
        check: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction, log_target)
        self.check = check

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """KL(target‖exp(input)), reduced."""
        return kl_div(input, target, reduction=self.reduction, log_target=self.log_target, check=self.check)


def check_operands(input: Tensor, target: Tensor, log_target: bool = False) -> None:
    """Refuse what `F.kl_div` would take without a word: operands that are no distributions over the last axis.

    Rows of `exp(input)` may sum to less than one (a class left out), not to more; rows of `target` sum to one, up to
    √eps of their dtype, as for `Probs`.

    Raises: FormError: the rule of `kullback check` that is broken, the row, and what to write.

    >>> import torch
    >>> check_operands(torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5]))
    Traceback (most recent call last):
    ...
    kullback._errors.FormError: KLB003: input holds probabilities (row 0 sums to 1), but kl_div reads it as \
log-probabilities. Write F.log_softmax(logits, dim=-1).
    """
    with torch.no_grad():
        _check_input(input)
        _check_target(target, log_target)


def _check_input(input: Tensor) -> None:
    rows, sums, tolerance = _rows(input)
    mass = rows.exp().sum(-1)
    bad = ~(mass <= 1.0 + tolerance)
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0])
    if bool(((rows[row] >= 0) & (rows[row] <= 1)).all()) and abs(float(sums[row]) - 1.0) <= tolerance:
        what = f"probabilities (row {row} sums to {float(sums[row]):.6g})"
    else:
        what = f"no log-probabilities (exp of row {row} sums to {float(mass[row]):.6g})"
    raise FormError(
        f"KLB003: input holds {what}, but kl_div reads it as log-probabilities. Write F.log_softmax(logits, dim=-1)."
    )


def _check_target(target: Tensor, log_target: bool) -> None:
    rows, sums, tolerance = _rows(target)
    if not log_target and bool((rows < 0).any()):
        row = int((rows < 0).any(-1).nonzero()[0])
        logs = abs(float(rows[row].exp().sum()) - 1.0) <= tolerance
        raise FormError(
            f"KLB004: target holds {'log-probabilities' if logs else 'a negative number'} in row {row}, but is read as "
            f"probabilities. Write {'log_target=True' if logs else 'F.softmax(logits, dim=-1)'}."
        )
    mass = rows.exp().sum(-1) if log_target else sums
    bad = ~((mass - 1.0).abs() <= tolerance)
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0])
    if log_target and abs(float(sums[row]) - 1.0) <= tolerance and bool((rows[row] >= 0).all()):
        raise FormError(
            f"KLB004: target holds probabilities in row {row}, but log_target=True. Write log_target=False."
        )
    raise FormError(
        f"KLB004: target is no distribution: row {row} sums to {float(mass[row]):.6g}. Write "
        "F.softmax(logits, dim=-1), or kullback.kl(Logits(target), ...)."
    )


def _rows(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """The rows over the last axis in float64, their sums, and how far from one a sum may be."""
    x = x.detach() if x.dim() else x.detach().reshape(1)
    rows = x.double().reshape(x.shape[:-1].numel(), x.shape[-1])
    return rows, rows.sum(-1), torch.finfo(x.dtype).eps ** 0.5


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
