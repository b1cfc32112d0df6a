"""What is asked of an engine, and what it costs. No tensor is held: a call is decided once and kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from kullback.core import generators
from kullback.core.readings import (
    DrawnReading,
    LabelsReading,
    LinearReading,
    LogitsReading,
    LogProbsReading,
    ProbsReading,
    Reading,
    Side,
    TopKReading,
)
from kullback.core.reduction import GeneratorSum, LogAffinity, Sum


@dataclass(frozen=True)
class Call:
    """A sum over the rows of two sides.

    dtypes   of every tensor of p, then of q
    device   "cpu", "cuda", ...
    """

    total: Sum  # type: ignore[type-arg]
    p: Reading
    q: Reading
    dtypes: tuple[torch.dtype, ...]
    device: str
    num_classes: int


class Cost(NamedTuple):
    """What a call needs beside its inputs, its result and its gradients; and how it computes."""

    temporary_bytes: int
    saved_bytes: int
    manner: str
    precision: str


class Engine(Protocol):
    """Who computes: `core`'s functions, made fit for large inputs."""

    @property
    def NAME(self) -> str:  # noqa: N802
        """What messages and `use` call it."""
        ...

    def why_not(self, call: Call) -> str | None:
        """Why this engine cannot serve a call, or None."""
        ...

    def prepare(self, call: Call) -> "Rows":
        """All that can be decided before the tensors come."""
        ...

    def traced_rows(self, call: Call, p: Side, q: Side) -> Tensor:
        """The same value in float64, made of what tracers see."""
        ...

    def cost(self, call: Call, p: Side, q: Side) -> Cost:
        """What `rows` and its backward pass will need."""
        ...


class Rows(Protocol):
    """A call, prepared."""

    def __call__(self, p: Side, q: Side, factor: float = 1.0, dtype: torch.dtype = torch.float64, /) -> Tensor:
        """factor · value of every row, in a dtype; differentiable twice. Both sides share their batch shape."""
        ...


# ---------------------------------------------------------------- what compiled engines know, by name

DTYPES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
KERNELS = (LogitsReading, LogProbsReading, ProbsReading, LabelsReading)
"""The readings that compiled engines have kernels for."""
STATS = 6  # per row: (max, log Σ exp, Σ ∂f/∂log w) of p, then of q
BYTES_SAVED_PER_ROW = 8 + 8 * STATS


class NamedSum(NamedTuple):
    """A sum as an operator takes it: a name and its parameter."""

    name: str
    number: float


class NamedReading(NamedTuple):
    """A reading as an operator takes it: a name and its numbers."""

    name: str
    numbers: tuple[float, ...] = ()


def name_of_sum(total: Sum) -> NamedSum | None:  # type: ignore[type-arg]
    """The name under which compiled engines know a sum, or None: a generator of one's own has none, even if it
    takes the name of another.
    """
    if isinstance(total, LogAffinity):
        return NamedSum("log_affinity", total.order)
    if isinstance(total, GeneratorSum):
        f = total.generator
        if f.name in generators.NAMED and generators.NAMED[f.name](f.parameter) == f:
            return NamedSum(f.name, f.parameter)
    return None


def sum_of(name: str, number: float) -> Sum:  # type: ignore[type-arg]
    """The sum of a name; see `name_of_sum`."""
    if name == "log_affinity":
        return LogAffinity(number)
    if name not in generators.NAMED:
        raise ValueError(f"kullback: no sum is named {name!r}; there are log_affinity, {', '.join(generators.NAMED)}.")
    return GeneratorSum(generators.NAMED[name](number))


def name_of_reading(reading: Reading) -> NamedReading | None:
    """The name under which compiled engines know a reading, or None."""
    if type(reading) is LogitsReading:
        return NamedReading("logits", (reading.temperature,))
    if type(reading) is LinearReading:
        name = "linear_bias" if reading.bias else "linear"
        return NamedReading(name, (reading.scale, reading.softcap or 0.0, reading.temperature, reading.memory or 0))
    if type(reading) is LogProbsReading:
        return NamedReading("log_probs")
    if type(reading) is ProbsReading:
        return NamedReading("probs")
    if type(reading) is LabelsReading:
        return NamedReading(f"labels_{reading.spread}", (reading.smoothing,))
    if type(reading) is TopKReading:
        return NamedReading(f"top_k_{reading.tail}", (reading.temperature,))
    if type(reading) is DrawnReading:
        return NamedReading("drawn")
    return None


def _logits(num_classes: int, temperature: float) -> Reading:
    if not temperature > 0.0:
        raise ValueError(f"kullback: a temperature is above 0, not {temperature}.")
    return LogitsReading(temperature)


def _linear(bias: bool, scale: float, softcap: float, temperature: float, memory: float) -> Reading:
    if not (scale > 0.0 and temperature > 0.0 and softcap >= 0.0):
        raise ValueError(f"kullback: scale {scale}, temperature {temperature} and softcap {softcap} are above 0.")
    return LinearReading(bias, scale, softcap or None, temperature, int(memory) or None)


def _top_k(tail: Literal["bucket", "even", "renormalize"]) -> Callable[..., Reading]:
    def make(num_classes: int, temperature: float) -> Reading:
        if not temperature > 0.0 or (tail == "bucket" and temperature != 1.0):
            raise ValueError(f"kullback: a temperature is above 0, and that of a bucket 1, not {temperature}.")
        return TopKReading(num_classes, tail, temperature)

    return make


_READINGS: dict[str, tuple[int, Callable[..., Reading]]] = {
    "logits": (1, _logits),
    "linear": (4, lambda _, *numbers: _linear(False, *numbers)),
    "linear_bias": (4, lambda _, *numbers: _linear(True, *numbers)),
    "log_probs": (0, lambda _: LogProbsReading()),
    "probs": (0, lambda _: ProbsReading()),
    "labels_all": (1, lambda num_classes, smoothing: LabelsReading(num_classes, smoothing, "all")),
    "labels_others": (1, lambda num_classes, smoothing: LabelsReading(num_classes, smoothing, "others")),
    "top_k_bucket": (1, _top_k("bucket")),
    "top_k_even": (1, _top_k("even")),
    "top_k_renormalize": (1, _top_k("renormalize")),
    "drawn": (0, DrawnReading),
}
"""Name of a reading -> how many numbers it has, and what makes it of the number of classes and these."""


def reading_of(name: str, numbers: Sequence[float], num_classes: int) -> Reading:
    """The reading of a name; see `name_of_reading`."""
    if name not in _READINGS:
        raise ValueError(f"kullback: no reading is named {name!r}; there are {', '.join(_READINGS)}.")
    count, make = _READINGS[name]
    if len(numbers) != count:
        raise ValueError(f"kullback: the reading {name!r} has {count} numbers, not {len(numbers)}.")
    return make(num_classes, *numbers)


def why_no_kernel(call: Call, also: tuple[type, ...] = ()) -> str | None:
    """Why no kernel knows the sum, a reading or a dtype of a call, or None; `also`: readings beside `KERNELS`."""
    if name_of_sum(call.total) is None:
        what = call.total.generator.name if isinstance(call.total, GeneratorSum) else type(call.total).__name__
        return f"{what} has no kernel"
    for reading in (call.p, call.q):
        if type(reading) not in (*KERNELS, *also):
            return f"{type(reading).__name__} has no kernel"
    for dtype in call.dtypes:
        if dtype.is_floating_point and dtype not in DTYPES:
            return f"{dtype} has no kernel"
    return None
