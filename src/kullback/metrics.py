"""A divergence as a metric: rows come batch by batch, and what they come to merges over batches, runs and ranks.

With torchmetrics installed this is one of its metrics, for `MetricCollection`, Lightning and the like; without it the
same class stands alone. Import the module by name: `from kullback.metrics import Divergence`.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._errors import FormError
from .divergences import Divergence as Row
from .forms.finite import FiniteForm
from .losses.inputs import a_divergence, tensors
from .verbs import kl

SMALLEST, LARGEST = 1e-15, 1e6
"""Between them a quantile is known to `ACCURACY`; smaller values count as the smaller one, larger as the larger."""
ACCURACY = 0.01
_RATIO = (1.0 + ACCURACY) / (1.0 - ACCURACY)
_BINS = math.ceil(math.log(LARGEST / SMALLEST) / math.log(_RATIO)) + 1


class Summary(NamedTuple):
    """What the rows came to; scalars in float64.

    mean, standard_error   the sample's, the error as of independent rows; NaN where there are too few
    rows                   how many counted
    quantiles              value of each, in the order in which they were asked for, to 1 %
    maximum                the largest value, exactly
    """

    mean: Tensor
    standard_error: Tensor
    rows: Tensor
    quantiles: Tensor
    maximum: Tensor


def _merged(states: Tensor) -> Tensor:
    """(count, mean, Σ (x - mean)²) of all parts, from theirs, (parts, 3): Chan, Golub & LeVeque 1983."""
    count, mean, squares = states[0]
    for n, m, s in states[1:]:
        both = count + n
        share = torch.where(both > 0, n / both.clamp(min=1.0), 0.0)
        # an empty part's mean is 0 and has no share; inf - inf of two infinite means is infinite still
        step = torch.where(mean == m, 0.0, m - mean)
        squares = squares + s + torch.where(share > 0, step * step * count * share, 0.0)
        mean, count = torch.where(share > 0, mean + step * share, mean), both
    return torch.stack((count, mean, squares))


class _Alone(nn.Module):
    """As much of torchmetrics' `Metric` as `Divergence` needs, where that is not installed."""

    def __init__(self) -> None:
        super().__init__()
        self._reductions: dict[str, Callable[[Tensor], Tensor]] = {}
        self._initial: dict[str, Tensor] = {}

    def add_state(self, name: str, default: Tensor, dist_reduce_fx: str | Callable[[Tensor], Tensor]) -> None:
        named: dict[str, Callable[[Tensor], Tensor]] = {"sum": lambda x: x.sum(0), "max": lambda x: x.amax(0)}
        self._reductions[name] = named[dist_reduce_fx] if isinstance(dist_reduce_fx, str) else dist_reduce_fx
        self._initial[name] = default.clone()
        self.register_buffer(name, default, persistent=False)

    def reset(self) -> None:
        """Forget all rows."""
        for name, initial in self._initial.items():
            setattr(self, name, initial.to(getattr(self, name).device, copy=True))

    def merge_state(self, other: "_Alone") -> None:
        """Count the rows of another metric too."""
        for name, reduce in self._reductions.items():
            mine = getattr(self, name)
            setattr(self, name, reduce(torch.stack((mine, getattr(other, name).to(mine.device)))))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`update`, and what this batch alone came to."""
        before = {name: getattr(self, name) for name in self._reductions}
        self.reset()
        self.update(*args, **kwargs)  # type: ignore[operator]
        found = self._compute()
        for name, reduce in self._reductions.items():
            setattr(self, name, reduce(torch.stack((before[name], getattr(self, name)))))
        return found

    def compute(self) -> Any:
        """What all rows of all ranks came to."""
        return self._compute()

    def _compute(self) -> Any:
        raise NotImplementedError

    def _everywhere(self, name: str) -> Tensor:
        x: Tensor = getattr(self, name)
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return self._reductions[name](torch.stack(parts))


if TYPE_CHECKING:
    _Base = _Alone
else:
    try:
        from torchmetrics import Metric as _Base
    except ImportError:
        _Base = _Alone


class Divergence(_Base):
    """The mean of a divergence over rows, its standard error, quantiles and maximum, as rows stream by.

    Args:
        divergence: a verb, a row of the table, or a callable of two forms that gives one number per row.
        quantiles: shares between 0 and 1.
        kwargs: for torchmetrics' `Metric`, if it is installed.

    `update(p, q, mask=None)` takes two forms of the same rows; a row whose mask is False does not count, and may hold
    NaN. `compute()` gives a `Summary`, over all ranks if there are several. `reset()` forgets; `merge_state(other)`
    adds another metric's rows; a call updates and gives the summary of its batch. Memory does not grow with rows:
    quantiles come from counts in bins whose width is 2 % (Masson, Rim & Lee 2019, DDSketch), from 1e-15 to 1e6.

    A row that is infinite makes mean and maximum infinite, a NaN makes everything NaN: nothing is left out in silence.

    Raises: FormError: quantiles out of range, a mask that does not fit.

    >>> from kullback import Logits
    >>> from kullback.metrics import Divergence
    >>> metric = Divergence(quantiles=(0.5, 0.99))
    >>> for seed in range(3):
    ...     g = torch.Generator().manual_seed(seed)
    ...     metric.update(Logits(torch.randn(100, 8, generator=g)), Logits(torch.randn(100, 8, generator=g)))
    >>> found = metric.compute()
    >>> f"{found.mean:.3f} ± {found.standard_error:.3f} of {found.rows:.0f}, median {found.quantiles[0]:.2f}"
    '0.768 ± 0.025 of 300, median 0.67'
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    moments: Tensor
    bins: Tensor
    largest: Tensor

    def __init__(
        self,
        divergence: Row | Callable[[FiniteForm, FiniteForm], Tensor] = kl,
        *,
        quantiles: Sequence[float] = (0.5, 0.9, 0.99, 0.999),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.divergence: Callable[[FiniteForm, FiniteForm], Tensor] = a_divergence("Divergence", cast(Any, divergence))
        self.quantiles = tuple(float(q) for q in quantiles)
        if any(not 0.0 <= q <= 1.0 for q in self.quantiles):
            raise FormError(f"Divergence: quantiles are {self.quantiles}; write shares from 0 to 1, such as 0.99.")
        self.add_state("moments", torch.zeros(3, dtype=torch.float64), dist_reduce_fx=_merged)
        self.add_state("bins", torch.zeros(_BINS + 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("largest", torch.tensor(-math.inf, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, p: FiniteForm, q: FiniteForm, mask: Tensor | None = None) -> None:
        """Count the rows of two forms."""
        with torch.no_grad():
            values = self.divergence(p, q)
            keep = tensors("Divergence", values=values).mask(mask)
            x = (values if keep is None else values[keep]).reshape(-1).to(self.moments.device, torch.float64)
            if x.numel() == 0:
                return
            mean = x.mean()
            around = torch.where(x == mean, 0.0, x - mean)
            count = mean.new_tensor(float(x.numel()))
            part = torch.stack((count, mean, (around * around).sum()))
            self.moments = _merged(torch.stack((self.moments, part)))
            self.bins = self.bins + torch.bincount(_bin_of(x), minlength=_BINS + 2)
            self.largest = torch.maximum(self.largest, x.amax())

    def _compute(self) -> Summary:
        return _summary(self.moments, self.bins, self.largest, self.quantiles)

    def compute(self) -> Summary:
        """What all rows came to."""
        if _Base is _Alone:
            moments, bins, largest = map(self._everywhere, ("moments", "bins", "largest"))
            return _summary(moments, bins, largest, self.quantiles)
        return self._compute()  # torchmetrics has brought the ranks together


def _bin_of(x: Tensor) -> Tensor:
    """0: at most SMALLEST, zero among them; then bins in a ratio; the last: above LARGEST, infinity among them."""
    inside = (torch.log(x.clamp(SMALLEST, LARGEST) / SMALLEST) / math.log(_RATIO)).nan_to_num(0.0).long() + 1
    found = torch.where(x <= SMALLEST, 0, inside)
    return torch.where(x > LARGEST, _BINS + 1, found)


def _summary(moments: Tensor, bins: Tensor, largest: Tensor, quantiles: Sequence[float]) -> Summary:
    count, mean, squares = moments
    nothing = count == 0
    nan = torch.full_like(mean, math.nan)
    error = torch.where(count > 1, torch.sqrt(squares / (count - 1.0).clamp(min=1.0) / count.clamp(min=1.0)), nan)
    below = bins.cumsum(0)
    found = []
    for q in quantiles:
        rank = torch.ceil(q * count).clamp(min=1.0)
        at = int((below < rank).sum())
        middle = SMALLEST * _RATIO ** (at - 0.5)  # the middle of a bin, in its logarithm
        value = 0.0 if at == 0 else math.inf if at > _BINS else middle
        found.append(torch.minimum(mean.new_tensor(value), largest))
    made = torch.stack(found) if found else mean.new_empty(0)
    broken = nothing | mean.isnan()
    return Summary(
        torch.where(broken, nan, mean),
        torch.where(broken, nan, error),
        count,
        torch.where(broken, nan, made),
        torch.where(broken, nan, largest),
    )
