"""The small student and the wide teacher: the same network at two widths, many of them side by side, and how a student
is kept."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kullback._errors import BadInput

from .data import Column, Floats, encode, feature_names
from .extras import extra

WEIGHTS = "student.safetensors"
FORMAT = "kullback student 2"
CHUNK = 16_384  # rows that pass through a network at once when it only predicts


def network(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    """Linear layers with ReLU between them, initialised from `seed`; the global random state is left alone.

    >>> network((64, 32, 10), seed=0)(torch.zeros(2, 64)).shape
    torch.Size([2, 10])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Stack(nn.Module):
    """Networks of the same widths, one a seed, as one module with a leading axis S: a step costs its calls once.

    Member i starts as `network(widths, seeds[i])`, and sees only its own slice of the input.

    >>> stack = Stack((64, 32, 10), seeds=(0, 1))
    >>> stack(torch.zeros(2, 5, 64)).shape, stack.member(1)(torch.zeros(5, 64)).shape
    (torch.Size([2, 5, 10]), torch.Size([5, 10]))
    """

    def __init__(self, widths: tuple[int, ...], seeds: Sequence[int]) -> None:
        super().__init__()
        self.widths, self.seeds = widths, tuple(seeds)
        states = [network(widths, seed).state_dict() for seed in seeds]
        layers = range(0, 2 * len(widths) - 2, 2)  # the places of the linear layers in `network`
        self.weights = nn.ParameterList(torch.stack([state[f"{i}.weight"] for state in states]) for i in layers)
        self.biases = nn.ParameterList(torch.stack([state[f"{i}.bias"] for state in states]) for i in layers)

    def forward(self, x: Tensor) -> Tensor:
        """x (S, N, F) -> (S, N, V)."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias.unsqueeze(1), x if i == 0 else x.relu(), weight.transpose(1, 2))
        return x

    @torch.no_grad()
    def member(self, i: int) -> nn.Sequential:
        """One of them, by itself."""
        model = network(self.widths, self.seeds[i])
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            layer = model[2 * place]
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(weight[i])
            layer.bias.copy_(bias[i])
        return model.to(self.weights[0].device)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """model(x), a bounded number of rows at a time, on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)).cpu() for part in torch.split(x, CHUNK)])


def count_parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Scaling:
    """Standardises features by the mean and standard deviation of the training rows; constant features become 0."""

    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, features: Floats, train: Any = slice(None)) -> "Scaling":
        """Of the rows `train` of `features`, a column at a time, so that large tables are not copied."""
        columns = [column[train] for column in features.T]
        mean, scale = (np.array([f(column) for column in columns]) for f in (np.mean, np.std))
        return cls(mean, np.where(scale > 0, scale, 1.0))

    def __call__(self, features: Floats) -> Floats:
        return (features - self.mean) / self.scale

    def tensor(self, features: Floats) -> Tensor:
        """Standardised, in float32."""
        return torch.cat([torch.from_numpy(self(part)).float() for part in parts(features)])


def parts(features: Floats) -> Iterator[Floats]:
    """A bounded number of rows at a time, and one empty part if there are none."""
    for start in range(0, max(1, len(features)), CHUNK):
        yield features[start : start + CHUNK]


@dataclass(frozen=True)
class Student:
    """A trained student with everything needed to use it on raw features."""

    model: nn.Sequential
    widths: tuple[int, ...]
    scaling: Scaling
    columns: tuple[Column, ...]
    class_names: tuple[str, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns of a feature matrix, in order; a column of text has one for each of its values."""
        return feature_names(self.columns)

    @torch.no_grad()
    def logits(self, features: Any) -> Tensor:
        """Logits (N, V) on the CPU, in the order of `class_names`.

        Args: features: as in `predict_proba`.
        """
        if hasattr(features, "get_column"):
            features = encode(features, self.columns, "the frame")
        matrix = np.asarray(features, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != self.widths[0]:
            raise BadInput(f"features have shape {matrix.shape}, but this student needs (N, {self.widths[0]})")
        return predict(self.model, self.scaling.tensor(matrix))

    def predict_proba(self, features: Any) -> Floats:
        """Class probabilities (N, V).

        Args: features: a polars frame with the columns of the data, or a matrix (N, F) in the order of `feature_names`.
        Raises: BadInput for another number of features, a missing column, a value that no training row had.
        """
        return torch.softmax(self.logits(features).double(), -1).numpy()

    def predict(self, features: Any) -> list[str]:
        """The most probable class of each row."""
        return [self.class_names[i] for i in self.predict_proba(features).argmax(-1)]

    def to_bytes(self) -> bytes:
        """The safetensors file: the layers' weights, the scaling, and as metadata what rebuilds the network."""
        save = extra("safetensors.torch").save
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        tensors["scaling.mean"] = torch.from_numpy(self.scaling.mean.copy())
        tensors["scaling.scale"] = torch.from_numpy(self.scaling.scale.copy())
        about = {
            "format": FORMAT,
            "architecture": "linear layers with ReLU between them",
            "widths": self.widths,
            "columns": [{"name": column.name, "values": column.values} for column in self.columns],
            "class_names": self.class_names,
        }
        data: bytes = save(tensors, {"kullback": json.dumps(about)})  # one key: several come in no fixed order
        return data


def load_student(folder: str | Path) -> Student:
    """The student of a run folder, ready for raw features.

    Args: folder: a run folder, or the student.safetensors in it.
    Returns: a `Student` on the CPU.
    Raises: BadInput when there is no student in it.
    """
    path = Path(folder)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a run folder that holds {WEIGHTS}")
    with extra("safetensors").safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("kullback", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    if about.get("format") != FORMAT:
        raise BadInput(f"{path}: was not written by this version of kullback distill; its metadata names no student")
    scaling = Scaling(tensors.pop("scaling.mean").numpy(), tensors.pop("scaling.scale").numpy())
    widths = tuple(about["widths"])
    model = network(widths, seed=0)
    model.load_state_dict(tensors)
    columns = tuple(Column(c["name"], None if c["values"] is None else tuple(c["values"])) for c in about["columns"])
    return Student(model, widths, scaling, columns, tuple(about["class_names"]))
