"""The small student and the wide teacher: the same network at two widths, and how a student is kept."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kullback._errors import BadInput

from .data import Floats
from .extras import extra

WEIGHTS = "student.safetensors"
FORMAT = "kullback student 1"


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


def count_parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Scaling:
    """Standardises features by the mean and standard deviation of the training rows; constant features become 0."""

    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, train: Floats) -> "Scaling":
        mean, scale = train.mean(0), train.std(0)
        return cls(mean, np.where(scale > 0, scale, 1.0))

    def __call__(self, features: Floats) -> Floats:
        return (features - self.mean) / self.scale


@dataclass(frozen=True)
class Student:
    """A trained student with everything needed to use it on raw features."""

    model: nn.Sequential
    widths: tuple[int, ...]
    scaling: Scaling
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]

    @torch.no_grad()
    def logits(self, features: Floats) -> Tensor:
        """Logits (N, V) on the CPU for raw features (N, F), in the order of `feature_names` and `class_names`."""
        device = next(self.model.parameters()).device
        x = torch.as_tensor(self.scaling(np.asarray(features, dtype=np.float64)), dtype=torch.float32)
        out: Tensor = self.model(x.to(device))
        return out.cpu()

    def predict_proba(self, features: Floats) -> Floats:
        """Class probabilities (N, V) for raw features (N, F).

        Raises: BadInput for another number of features.
        """
        if np.ndim(features) != 2 or np.shape(features)[1] != self.widths[0]:
            raise BadInput(f"features have shape {np.shape(features)}, but this student needs (N, {self.widths[0]})")
        return torch.softmax(self.logits(features).double(), -1).numpy()

    def predict(self, features: Floats) -> list[str]:
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
            "feature_names": self.feature_names,
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
        raise BadInput(f"{path}: was not written by kullback distill; its metadata names no student")
    scaling = Scaling(tensors.pop("scaling.mean").numpy(), tensors.pop("scaling.scale").numpy())
    widths = tuple(about["widths"])
    model = network(widths, seed=0)
    model.load_state_dict(tensors)
    feature_names, class_names = (tuple(about[key]) for key in ("feature_names", "class_names"))
    return Student(model, widths, scaling, feature_names, class_names)
