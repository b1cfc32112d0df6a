"""A form of one's own, of two tensors: p = (1 - s) softmax(x) + s/V, with a share s = sigmoid(gate) for each row."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kullback.extend import FiniteForm, Reading, Weights


@dataclass(frozen=True)
class UniformMixtureReading:
    """x (..., V) and gate (...)."""

    event_dims: ClassVar[tuple[int | None, ...]] = (1, 0)

    def weights(self, data):
        x, gate = (t.double() for t in data)
        log_rest = torch.nn.functional.logsigmoid(-gate).unsqueeze(-1)
        log_each = (torch.nn.functional.logsigmoid(gate) - math.log(x.shape[-1])).unsqueeze(-1)
        log_w = torch.logaddexp(log_rest + torch.log_softmax(x, -1), log_each.expand_as(x))
        return Weights(torch.exp(log_w), log_w)

    def pull_back(self, data, weights, partial, upstream):
        x, gate = (t.double() for t in data)
        soft, share = torch.softmax(x, -1), torch.sigmoid(gate).unsqueeze(-1)
        slope = upstream * (partial.dlog / weights.w - partial.plain)  # ∂f/∂w; w is never 0
        mean = (soft * slope).sum(-1, keepdim=True)
        to_x = (1.0 - share) * soft * (slope - mean)
        to_gate = share * (1.0 - share) * (slope.mean(-1, keepdim=True) - mean)
        return to_x, to_gate.squeeze(-1)


@dataclass(frozen=True, eq=False)
class UniformMixture(FiniteForm):
    """p = (1 - sigmoid(gate)) softmax(x) + sigmoid(gate) / V."""

    data: Tensor
    gate: Tensor

    @property
    def reading(self) -> Reading:
        return UniformMixtureReading()

    @property
    def num_classes(self) -> int:
        return self.data.shape[-1]

    @property
    def tensors(self):
        return self.data, self.gate

    def with_tensors(self, *tensors):
        return UniformMixture(*tensors)
