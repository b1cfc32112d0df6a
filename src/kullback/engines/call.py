"""What is asked of an engine, and what it costs. No tensor is held: a call is decided once and kept."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kullback.core import generators
from kullback.core.readings import LabelsReading, LogitsReading, LogProbsReading, ProbsReading, Reading, Side
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

    NAME: str

    def why_not(self, call: Call) -> str | None:
        """Why this engine cannot serve a call, or None."""
        ...

    def prepare(self, call: Call) -> "Rows":
        """All that can be decided before the tensors come."""
        ...

    def traced_rows(self, call: Call, p: Side, q: Side) -> Tensor:
        """The same value in float64, made of what tracers see."""
        ...

    def cost(self, call: Call, num_rows: int) -> Cost:
        """What `rows` and its backward pass will need."""
        ...


class Rows(Protocol):
    """A call, prepared."""

    def __call__(self, p: Side, q: Side, factor: float = 1.0, dtype: torch.dtype = torch.float64, /) -> Tensor:
        """factor · value of every row, in a dtype; differentiable twice. Both sides share their batch shape."""
        ...


# ---------------------------------------------------------------- what compiled engines know, by name

DTYPES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
STATS = 6  # per row: (max, log Σ exp, Σ ∂f/∂log w) of p, then of q
BYTES_SAVED_PER_ROW = 8 + 8 * STATS


class Named(NamedTuple):
    """A sum or a reading as an operator takes it: a name and one number."""

    name: str
    number: float


def name_of_sum(total: Sum) -> Named | None:  # type: ignore[type-arg]
    """The name under which compiled engines know a sum, or None: a generator of one's own has none, even if it
    takes the name of another.
    """
    if isinstance(total, LogAffinity):
        return Named("log_affinity", total.order)
    if isinstance(total, GeneratorSum):
        f = total.generator
        if f.name in generators.NAMED and generators.NAMED[f.name](f.parameter) == f:
            return Named(f.name, f.parameter)
    return None


def sum_of(name: str, number: float) -> Sum:  # type: ignore[type-arg]
    """The sum of a name; see `name_of_sum`."""
    if name == "log_affinity":
        return LogAffinity(number)
    if name not in generators.NAMED:
        raise ValueError(f"kullback: no sum is named {name!r}; there are log_affinity, {', '.join(generators.NAMED)}.")
    return GeneratorSum(generators.NAMED[name](number))


def name_of_reading(reading: Reading) -> Named | None:
    """The name under which compiled engines know a reading, or None."""
    if type(reading) is LogitsReading:
        return Named("logits", reading.temperature)
    if type(reading) is LogProbsReading:
        return Named("log_probs", 0.0)
    if type(reading) is ProbsReading:
        return Named("probs", 0.0)
    if type(reading) is LabelsReading:
        return Named(f"labels_{reading.spread}", reading.smoothing)
    return None


def reading_of(name: str, number: float, num_classes: int) -> Reading:
    """The reading of a name; see `name_of_reading`."""
    if name == "logits":
        if not number > 0.0:
            raise ValueError(f"kullback: a temperature is above 0, not {number}.")
        return LogitsReading(number)
    if name == "log_probs":
        return LogProbsReading()
    if name == "probs":
        return ProbsReading()
    if name == "labels_all":
        return LabelsReading(num_classes, number, "all")
    if name == "labels_others":
        return LabelsReading(num_classes, number, "others")
    raise ValueError(
        f"kullback: no reading is named {name!r}; there are logits, log_probs, probs, labels_all and labels_others."
    )


def why_no_kernel(call: Call) -> str | None:
    """Why no kernel knows the sum, a reading or a dtype of a call, or None."""
    if name_of_sum(call.total) is None:
        what = call.total.generator.name if isinstance(call.total, GeneratorSum) else type(call.total).__name__
        return f"{what} has no kernel"
    for reading in (call.p, call.q):
        if name_of_reading(reading) is None:
            return f"{type(reading).__name__} has no kernel"
    for dtype in call.dtypes:
        if dtype.is_floating_point and dtype not in DTYPES:
            return f"{dtype} has no kernel"
    return None
