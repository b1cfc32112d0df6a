"""Distributions of a model's head: hidden states and a weight matrix, whose scores exist only a few rows at a time."""

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.core.readings import LinearReading

from .finite import Array, FiniteForm, Logits, floating_tensor, positive_number


@dataclass(frozen=True, eq=False)
class LinearLogits(FiniteForm):
    """Hidden states and the weight that makes scores of them: p = softmax(s / temperature), with

        z = scale (hidden Wᵀ + bias),   s = z, or softcap · tanh(z / softcap)

    The scores (..., V) are never held: they are made for as many rows at a time as `memory` has room for, and where a
    loss wants gradients (`total`, every loss of `kullback.losses`) they are overwritten by their gradient, from which
    those of hidden states, weight and bias are made at once.

    Args:
        hidden: (..., H), float64, float32, bfloat16 or float16.
        weight: (V, H), of the same dtype, as `nn.Linear` holds it. A gradient flows to it if it requires one.
        bias: (V,), or None.
        scale: a number > 0 that multiplies the scores (Granite divides: write 1/logits_scaling).
        softcap: a number > 0, the scores' bound (Gemma), or None.
        temperature: a number > 0.
        memory: bytes that may be used beside the inputs and the gradients that are asked for; what does not fit is
            done in more, smaller parts. None: 256 MiB for scores, and, in half precision and for many rows, the sums of
            the weight's gradient in float32. A number is kept to, and where those sums would take more than half of
            it, the parts of a weight's gradient are added up in its own dtype. `explain` says what will be used.

    Under autocast, tensors are cast as `F.linear` would. In half precision scores are rounded to their dtype, as a
    model's own are; sums are not. With FSDP2 the head's weight is whole after the model's forward pass, if it belongs
    to the root module's group.

    Gradients: to hidden states, weight and bias, on both sides, once and twice; the second derivative goes through the
    definition in float64, which holds the scores.
    Raises: FormError: shapes or dtypes that do not fit, settings out of range.

    >>> import torch
    >>> from kullback import LinearLogits, Logits, kl
    >>> hidden, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> kl(LinearLogits(hidden, weight), Logits([[0.0, 0.0, 0.0]]))
    tensor([0.2662])
    """

    hidden: Array
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    memory: int | None = None
    data: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tensors = [floating_tensor("LinearLogits", self.hidden, "hidden"), *self._parameters()]
        tensors = _autocast(tensors)
        hidden, weight, *bias = tensors
        _check(hidden, weight, *bias)
        for name in ("scale", "temperature"):
            object.__setattr__(self, name, positive_number("LinearLogits", name, getattr(self, name)))
        if self.softcap is not None:
            object.__setattr__(self, "softcap", positive_number("LinearLogits", "softcap", self.softcap))
        if self.memory is not None:
            object.__setattr__(self, "memory", _bytes(self.memory))
        object.__setattr__(self, "hidden", hidden)
        object.__setattr__(self, "data", hidden)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "bias", bias[0] if bias else None)

    def _parameters(self) -> list[Tensor]:
        given = {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}
        for name, x in given.items():
            if not isinstance(x, Tensor):
                if isinstance(x, torch.nn.Module):
                    raise FormError(
                        f"LinearLogits: {name} is a module, {type(x).__name__}. Write {name}=head.weight, and "
                        "bias=head.bias if it has one."
                    )
                raise FormError(f"LinearLogits: {name} is a {type(x).__name__}, but a tensor is needed.")
            if hasattr(x, "full_tensor"):
                raise FormError(
                    f"LinearLogits: {name} is a DTensor, of which this rank holds a shard, beside plain hidden states. "
                    "With FSDP2, leave the head in the root module's group (no fully_shard of its own): after the "
                    "model's forward pass its weight is whole. With a vocabulary split over ranks, write "
                    f"Sharded(LinearLogits(hidden, {name}.to_local()), ...)."
                )
        return list(given.values())

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        return self.weight.shape[0]

    @property
    def batch_shape(self) -> torch.Size:
        return self.data.shape[:-1]

    @property
    def reading(self) -> LinearReading:
        return LinearReading(self.bias is not None, self.scale, self.softcap, self.temperature, self.memory)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.data, self.weight) if self.bias is None else (self.data, self.weight, self.bias)

    def with_tensors(self, *tensors: Tensor) -> "LinearLogits":
        hidden, weight, *bias = tensors
        return replace(self, hidden=hidden, weight=weight, bias=bias[0] if bias else None)

    def tempered(self, temperature: float) -> "LinearLogits":
        return self if temperature == 1.0 else replace(self, temperature=self.temperature * temperature)

    def logits(self) -> Logits:
        """The same distributions with all their scores at once, (..., V), in the dtype of the hidden states."""
        z = torch.nn.functional.linear(*self.tensors)
        z = z if self.scale == 1.0 else z * self.scale
        return Logits(z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap), self.temperature)


def _check(hidden: Tensor, weight: Tensor, *bias: Tensor) -> None:
    if weight.dim() != 2:
        raise FormError(
            f"LinearLogits: weight has shape {tuple(weight.shape)}, but it is a matrix (V, H), as nn.Linear holds it."
        )
    if weight.shape[1] != hidden.shape[-1]:
        turned = " Write weight.T, if it holds one column a class." if weight.shape[0] == hidden.shape[-1] else ""
        raise FormError(
            f"LinearLogits: hidden has H={hidden.shape[-1]} (its last axis) but weight (V, H) has shape "
            f"{tuple(weight.shape)}.{turned or ' Give the weight of the head that these hidden states go through.'}"
        )
    if weight.shape[0] == 0:
        raise FormError("LinearLogits: weight has no rows, so V=0; a distribution needs at least one class.")
    for b in bias:
        if b.shape != weight.shape[:1]:
            raise FormError(
                f"LinearLogits: bias has shape {tuple(b.shape)}, but the weight has V={weight.shape[0]} classes: "
                f"({weight.shape[0]},) is needed."
            )
    for name, x in zip(("weight", "bias"), (weight, *bias), strict=False):
        if x.dtype != hidden.dtype:
            raise FormError(
                f"LinearLogits: hidden is {hidden.dtype} but {name} is {x.dtype}. Write hidden.to({name}.dtype), or "
                "use torch.autocast, as for the model itself."
            )
        if x.device != hidden.device:
            raise FormError(
                f"LinearLogits: hidden is on {hidden.device} but {name} is on {x.device}. "
                f"Write {name}.to({str(hidden.device)!r})."
            )


def _autocast(tensors: list[Tensor]) -> list[Tensor]:
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [x if x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def _bytes(memory: Any) -> int:
    try:
        count = operator.index(memory)
    except TypeError:
        count = 0
    if count < 1:
        raise FormError(f"LinearLogits: memory is {memory!r}, but it is a number of bytes: write 64 << 20 for 64 MiB.")
    return count


torch.serialization.add_safe_globals([LinearLogits])
