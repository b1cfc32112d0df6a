"""Bootstrap, subsampling, permutation: small pieces that take any statistic and an explicit generator."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback._errors import FormError

from .draws import permutation

Statistic = Callable[..., float | Tensor]


def bootstrap(statistic: Statistic, *samples: Tensor, generator: torch.Generator, replicates: int = 1000) -> Tensor:
    """The statistic of `replicates` resamples, each sample drawn from with replacement, independently.

    Not for nearest neighbours: a resample is full of ties. Use `subsample` there.

    Args:
        statistic: takes as many tensors as there are samples, gives a number or a tensor of numbers.
        samples: tensors (n, ...), each with its own n.
    Returns: Tensor (replicates, ...), float64. Source: Efron 1979.

    >>> import torch
    >>> means = bootstrap(lambda x: x.mean(), torch.arange(100.0), generator=torch.Generator().manual_seed(0))
    >>> bool(abs(means.std() - 2.89) < 0.2)   # √(833.25 / 100) = 2.887
    True
    """
    _check(replicates, samples)

    def resample(x: Tensor) -> Tensor:
        at = torch.randint(len(x), (len(x),), generator=generator, device=generator.device)
        return x[at.to(x.device)]

    return _values(statistic(*(resample(x) for x in samples)) for _ in range(replicates))


def subsample(
    statistic: Statistic,
    *samples: Tensor,
    sizes: tuple[int, ...],
    generator: torch.Generator,
    replicates: int = 200,
) -> Tensor:
    """The statistic of `replicates` subsets, each sample cut to its size without replacement.

    Args:
        statistic, samples: as for `bootstrap`.
        sizes: how many of each sample a subset holds, at least 1 and at most n.
    Returns: Tensor (replicates, ...), float64. Source: Politis & Romano 1994.

    >>> import torch
    >>> x, g = torch.arange(100.0), torch.Generator().manual_seed(0)
    >>> subsample(lambda x: len(set(x.tolist())), x, sizes=(7,), generator=g, replicates=2)
    tensor([7., 7.], dtype=torch.float64)
    """
    _check(replicates, samples)
    if len(sizes) != len(samples) or any(not 1 <= b <= len(x) for b, x in zip(sizes, samples, strict=False)):
        raise FormError(
            f"subsample: sizes is {sizes} for samples of {tuple(len(x) for x in samples)}; "
            "one size a sample is needed, from 1 to its length."
        )

    def cut(x: Tensor, size: int) -> Tensor:
        return x[permutation(len(x), generator)[:size].to(x.device)]

    return _values(statistic(*(cut(x, b) for x, b in zip(samples, sizes, strict=True))) for _ in range(replicates))


def subsample_stderr(values: Tensor, fraction: float) -> float:
    """The standard error at full size from subsets of a fraction f < 1, for a statistic with variance ∝ 1/n.

    Subsets without replacement overlap: about the statistic at n their variance is σ²(1/(f n) - 1/n), so that
    σ/√n = spread · √(f / (1 - f)). Source: Politis, Romano & Wolf 1999, section 2.2.

    >>> import torch
    >>> x, g = torch.randn(1000, generator=torch.Generator().manual_seed(1)), torch.Generator().manual_seed(0)
    >>> values = subsample(lambda x: x.mean(), x, sizes=(250,), generator=g, replicates=400)
    >>> bool(abs(subsample_stderr(values, 0.25) * 1000**0.5 / x.std() - 1) < 0.15)
    True
    """
    return float(values.std()) * math.sqrt(fraction / (1.0 - fraction))


@dataclass(frozen=True)
class PermutationTest:
    """The outcome of a permutation test.

    >>> PermutationTest(statistic=1.5, p_value=0.02, permutations=999).p_value
    0.02
    """

    statistic: float
    p_value: float
    permutations: int


def permutation_test(
    statistic: Statistic, x: Tensor, y: Tensor, *, generator: torch.Generator, permutations: int = 999
) -> PermutationTest:
    """Do x and y come from one distribution? Exact at any sample size: P(p_value <= α) <= α if they do.

    p = (1 + #{statistic of a random relabelling >= statistic}) / (1 + permutations): large statistics speak against.

    Args:
        statistic: takes two tensors (n, ...), (m, ...), gives a number.
        x, y: the samples, with equal trailing shapes.
    Source: Phipson & Smyth 2010.

    >>> import torch
    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(50, generator=g), torch.randn(50, generator=g) + 2
    >>> permutation_test(lambda a, b: abs(a.mean() - b.mean()), x, y, generator=g).p_value
    0.001
    """
    _check(permutations, (x, y))
    if x.shape[1:] != y.shape[1:]:
        raise FormError(f"permutation_test: a draw of x has shape {tuple(x.shape[1:])}, of y {tuple(y.shape[1:])}.")
    observed, pooled, n = float(statistic(x, y)), torch.cat([x, y]), len(x)

    def relabelled() -> float | Tensor:
        order = permutation(len(pooled), generator).to(x.device)
        return statistic(pooled[order[:n]], pooled[order[n:]])

    values = _values(relabelled() for _ in range(permutations))
    # equal up to rounding counts as equal
    reach = observed - 1e-12 * abs(observed) if math.isfinite(observed) else observed
    return PermutationTest(observed, (1 + int((values >= reach).sum())) / (1 + permutations), permutations)


def _values(statistics: Iterable[float | Tensor]) -> Tensor:
    return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in statistics])


def _check(replicates: int, samples: tuple[Tensor, ...]) -> None:
    if replicates < 1:
        raise FormError(f"resample: {replicates} replicates; at least 1 is needed.")
    if not samples or any(len(x) == 0 for x in samples):
        raise FormError("resample: a sample is empty; at least one draw is needed in each.")
