"""KL penalties for policies: what the value estimates and what the gradient estimates are two questions."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.core.dtypes import result_dtype
from kullback.core.generators import excess
from kullback.forms.finite import FiniteForm
from kullback.verbs import kl

from .average import Reduction, average, check_reduction
from .base import LossOfParts
from .inputs import Rows, emptied, forms, one_of, positive, tensors
from .terms import Term, loss_of

Value = Literal["k1", "k2", "k3", "exact"]
Gradient = Literal["k1", "k2", "k3", "ratio_k1", "ratio_k2", "ratio_k3", "exact", "none"]


class PolicyParts(NamedTuple):
    """The loss; the estimate of KL(policy‖reference) without the gradient; the shares of the kept rows whose importance
    ratio, and whose log-ratio, were clipped; and the effective share of the sample, (Σρ)² / (n Σρ²), 1 on-policy."""

    loss: Tensor
    value: Tensor
    ratio_clipped: Tensor
    log_ratio_clipped: Tensor
    effective_share: Tensor


class PolicyKL(LossOfParts):
    """KL(policy ‖ reference) from sampled actions, as a penalty to minimise.

    With d = log π(a) - log ref(a) at the sampled action a, and ρ = π(a)/μ(a) for actions drawn from μ (1 on-policy):

        k1 = d      k2 = d²/2      k3 = e^(-d) - 1 + d      exact = Σ_a π(a) log(π(a)/ref(a)), from the logits

    The number that the loss shows is the mean of ρ·(value estimator). Its gradient is that of the gradient estimator:

        "k1" "k2" "k3"                        ρ held fixed, the estimator differentiated
        "ratio_k1" "ratio_k2" "ratio_k3"      the product ρ·estimator differentiated, through ρ too
        "exact"                               the exact divergence differentiated; needs logits
        "none"                                no gradient: to watch, or to subtract from a reward

    Which of them is right: E∇ of "k2", "ratio_k1" and "ratio_k3" is ∇KL(policy‖reference). "k1" has mean gradient 0,
    "k3" gives ∇KL(reference‖policy), "ratio_k2" gives ∇E[d²/2]. The tests prove the table in
    docs/losses.md by enumeration.

    Args:
        value: "k1", "k2", "k3" or "exact". k1 and k3 are unbiased; k3 is never negative; k2 is biased.
        gradient: as above. The default is right on- and off-policy.
        ratio_clip: upper bound of ρ, or None. It biases, is never silent (see `parts`), and still leaves a gradient.
        log_ratio_clip: bound of |d|, or None. A clipped row has no gradient through it: a dead zone, reported.
        reduction: "mean", "sum", or "none" (per row, zero where the mask drops it: what a reward subtracts).

    Call with keywords only:
        log_prob: (...) log π(a), with gradient.
        reference_log_prob: (...) log ref(a); no gradient flows to it.
        behaviour_log_prob: (...) log μ(a) of the policy that acted; None means on-policy. No gradient flows to it.
        logits, reference_logits: (..., V) or forms; only for "exact", which needs no log-probabilities.
        mask: (...) bool, True keeps the row; dropped rows may hold NaN.
        num_items: kept rows in the whole step; see `average`.

    Returns:
        A scalar; `parts(...)` takes the same arguments and reports what was clipped. With every row dropped a zero
        connected to the graph. Multiply it by the coefficient, for example `AdaptiveKL.coefficient`.

    Raises:
        FormError: a missing argument, shapes that differ, settings out of range.

    A row is one action. In a sequence each token's gradient counts its own step only; the effect of a token on later
    states needs the penalty in the reward (value with gradient="none"), as in Ziegler et al.

    Where copies differ: GRPO implementations differentiate k3 at fixed ρ (the gradient of the other direction); many
    clamp d to ±20 or k3 to ±10 without saying so.

    Source: Schulman, "Approximating KL divergence" (2020); arXiv 2510.01555 and 2512.21852 (gradients).

    >>> import torch
    >>> loss = PolicyKL(value="k3")
    >>> loss(log_prob=torch.tensor([0.5]).log(), reference_log_prob=torch.tensor([0.25]).log())
    tensor(0.1931)
    """

    def __init__(
        self,
        value: Value = "k1",
        gradient: Gradient = "k2",
        *,
        ratio_clip: float | None = None,
        log_ratio_clip: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        one_of("PolicyKL", "value", value, ("k1", "k2", "k3", "exact"))
        one_of(
            "PolicyKL",
            "gradient",
            gradient,
            ("k1", "k2", "k3", "ratio_k1", "ratio_k2", "ratio_k3", "exact", "none"),
        )
        check_reduction("PolicyKL", reduction)
        self.value = value
        self.gradient = gradient
        self.reduction = reduction
        self.ratio_clip = None if ratio_clip is None else positive("PolicyKL", "ratio_clip", ratio_clip)
        self.log_ratio_clip = None if log_ratio_clip is None else positive("PolicyKL", "log_ratio_clip", log_ratio_clip)

    def parts(
        self,
        *,
        log_prob: Tensor | None = None,
        reference_log_prob: Tensor | None = None,
        behaviour_log_prob: Tensor | None = None,
        logits: Tensor | FiniteForm | None = None,
        reference_logits: Tensor | FiniteForm | None = None,
        mask: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> PolicyParts:
        """The loss with its value and what was clipped; the arguments are those of the call."""
        sampled = {
            "log_prob": log_prob,
            "reference_log_prob": reference_log_prob,
            "behaviour_log_prob": behaviour_log_prob,
        }
        rows, both = self._exact(logits, reference_logits)
        if rows is not None:
            rows.fit(**sampled)
        if both is not None and rows is not None and {self.value, self.gradient} <= {"exact", "none"}:
            policy, other = both if self.gradient == "exact" else (both[0].detach(), both[1])
            loss = loss_of(Term(rows, kl, policy, other, rows.mask(mask), num_items), self.reduction)
            none = loss.new_zeros(())
            return PolicyParts(loss, loss.detach(), none, none, none + 1.0)
        exact = None if both is None else kl(*both)
        if log_prob is None or reference_log_prob is None:
            raise FormError(
                f"PolicyKL: value={self.value!r} with gradient={self.gradient!r} needs log_prob= and "
                "reference_log_prob= of the sampled actions."
            )
        keep = tensors("PolicyKL", **sampled).mask(mask)
        log_pi = emptied(log_prob, keep).double()
        log_mu = log_pi.detach() if behaviour_log_prob is None else emptied(behaviour_log_prob, keep).detach().double()
        d = log_pi - emptied(reference_log_prob, keep).detach().double()
        ratio = torch.exp(log_pi.detach() - log_mu)
        far = torch.zeros_like(d, dtype=torch.bool) if self.log_ratio_clip is None else d.abs() > self.log_ratio_clip
        heavy = torch.zeros_like(far) if self.ratio_clip is None else ratio > self.ratio_clip
        d = d if self.log_ratio_clip is None else d.clamp(-self.log_ratio_clip, self.log_ratio_clip)
        weight = ratio if self.ratio_clip is None else ratio.clamp(max=self.ratio_clip)
        value = exact.double() if exact is not None and self.value == "exact" else _weighted(self.value, weight, d)
        slope = self._slope(weight, log_pi, d, exact)
        per_row = value.detach() + slope  # the value of one, the gradient of the other
        out = result_dtype(log_prob.dtype, reference_log_prob.dtype)
        shown = average(value.detach(), mask=keep, num_items=num_items, reduction=self.reduction)
        counts = ratio if keep is None else torch.where(keep, ratio, 0.0)
        return PolicyParts(
            average(per_row, mask=keep, num_items=num_items, reduction=self.reduction).to(out),
            shown.to(out),
            average(heavy.double(), mask=keep).to(out),
            average(far.double(), mask=keep).to(out),
            _effective_share(counts, keep).to(out),
        )

    def _exact(
        self, logits: Tensor | FiniteForm | None, reference: Tensor | FiniteForm | None
    ) -> tuple[Rows | None, tuple[FiniteForm, FiniteForm] | None]:
        """The rows of the logits, if they are given, and both policies, if their exact divergence is asked for."""
        asked = "exact" in (self.value, self.gradient)
        if logits is None or reference is None:
            if asked:
                raise FormError('PolicyKL: "exact" sums over the vocabulary. Write logits= and reference_logits=.')
            return None, None
        rows, (policy, other) = forms("PolicyKL", logits=logits, reference_logits=reference)
        return rows, (policy, other.detach()) if asked else None

    def _slope(self, weight: Tensor, log_pi: Tensor, d: Tensor, exact: Tensor | None) -> Tensor:
        """Zeros that carry the gradient; like an infinite row of a verb, a row that is not finite carries none."""
        if self.gradient == "none":
            return torch.zeros_like(d)
        if self.gradient == "exact" and exact is not None:
            return _zero(exact.double())
        name = self.gradient.removeprefix("ratio_")
        finite = _weighted(name, weight, d.detach()).isfinite() & d.isfinite()
        weight, d, log_pi = (torch.where(finite, x, 0.0) for x in (weight, d, log_pi))
        if name != self.gradient:  # weight times 1, with the derivative weight·∇log π
            weight = weight * torch.exp(log_pi - log_pi.detach())
        return _zero(weight * _estimator(name, d))


def _estimator(name: str, d: Tensor) -> Tensor:
    if name == "k1":
        return d
    if name == "k2":
        return d * d / 2
    return excess(torch.ones_like(d), torch.exp(-d), -d)


def _weighted(name: str, weight: Tensor, d: Tensor) -> Tensor:
    """weight · estimator, 0 where the policy never takes the action."""
    return torch.where(weight == 0, 0.0, weight * _estimator(name, d))


def _zero(x: Tensor) -> Tensor:
    """0 with the derivative of x, at infinite x too."""
    return torch.where(x.isfinite(), x - x.detach(), 0.0 * torch.where(x.isfinite(), x, 0.0))


def _effective_share(ratio: Tensor, keep: Tensor | None) -> Tensor:
    count = torch.tensor(float(ratio.numel())) if keep is None else keep.sum().double()
    squares = (ratio * ratio).sum()
    some = squares > 0
    share = ratio.sum().square() / torch.where(some, count.to(ratio.device) * squares, 1.0)
    return torch.where(some, share, 1.0)
