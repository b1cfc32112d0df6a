"""R-Drop: two dropout passes of one network are trained to agree, on handwritten digits with few labels.

Loss: both cross-entropies + α · ½ (KL(p₁‖p₂) + KL(p₂‖p₁)), `losses.RDrop`; beside it α = 0, which is the same
network, dropout and budget (two passes a step) without the KL.
Source: Liang et al. 2021, arXiv 2106.14448.
Data: scikit-learn's digits (UCI, Alpaydin & Kaynak 1998, CC BY 4.0), 100 with a label.
Expect: not much. With a hundred labels and two layers, dropout alone does as well in accuracy, and the KL, which
flattens predictions that are right, costs likelihood. It does what it says: two passes disagree less.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kullback.losses import RDrop

from .shared import BLUE, INK, ORANGE, Clock, Result, check, extra, picture, progress, seeded, smooth

LABELS, HELD_OUT = 100, 1000
COLUMNS = {"accuracy ↑": ".4f", "nats a digit ↓": ".3f", "passes apart ↓": ".4f"}
METHODS = {"dropout, α = 0": (0.3, 0.0), "R-Drop, α = 1": (0.3, 1.0), "R-Drop, α = 5": (0.3, 5.0)}  # dropout rate, α


def network(rate: float) -> nn.Sequential:
    """Two hidden layers with dropout."""
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Dropout(rate),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Dropout(rate),
        nn.Linear(128, 10),
    )


def train(method: str, data: tuple[Tensor, Tensor], steps: int, seed: int, tick: Any) -> tuple[nn.Module, list[float]]:
    """Adam, batches of 50, two passes each."""
    rate, alpha = METHODS[method]
    loss_of = RDrop(alpha=alpha, nll="mean")
    pictures, digits = data
    losses = []
    with seeded(seed) as generator:
        model = network(rate)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(steps):
            rows = torch.randint(len(digits), (50,), generator=generator)
            first, second = model(pictures[rows]), model(pictures[rows])
            loss = loss_of(first=first, second=second, labels=digits[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            tick()
    return model, losses


@torch.no_grad()
def measure(model: nn.Module, data: tuple[Tensor, Tensor], seed: int) -> dict[str, float]:
    """The columns on held-out digits; the last is the share on which two dropout passes name different digits."""
    pictures, digits = data
    with seeded(seed):
        model.train()
        apart = (model(pictures).argmax(-1) != model(pictures).argmax(-1)).double().mean().item()
    logits = model.eval()(pictures)
    accuracy = (logits.argmax(-1) == digits).double().mean().item()
    return dict(zip(COLUMNS, (accuracy, F.cross_entropy(logits, digits).item(), apart), strict=True))


def run(seeds: int = 5, steps: int = 500, out: Path | None = None) -> Result:
    """Train the three methods with every seed; `Result` compares R-Drop with dropout alone.

    Args: seeds: splits and initialisations.  steps: batches of 50.  out: picture file.
    Raises: BadInput, MissingExtra.
    """
    check(seeds, steps, out)
    clock = Clock()
    bunch = extra("sklearn.datasets").load_digits()
    pictures, digits = torch.from_numpy(bunch.data / 16).float(), torch.from_numpy(bunch.target).long()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    curves: dict[str, list[float]] = {}
    with progress("rdrop", seeds * len(METHODS) * steps) as tick:
        for seed in range(seeds):
            order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
            labelled, held_out = order[:LABELS], order[-HELD_OUT:]
            for method in METHODS:
                model, losses = train(method, (pictures[labelled], digits[labelled]), steps, seed, tick)
                rows[method].append(measure(model, (pictures[held_out], digits[held_out]), seed))
                curves.setdefault(method, losses)
    if out is not None:
        picture(out, lambda figure: draw(figure, curves, rows))
    return Result(
        "rdrop",
        f"scikit-learn's digits (CC BY 4.0), {LABELS} labels, {HELD_OUT} held out",
        {"seeds": seeds, "steps": steps},
        COLUMNS, rows, ("accuracy ↑", "R-Drop, α = 1", "dropout, α = 0"), curves, clock.seconds,
    )  # fmt: skip


def draw(figure: Any, curves: dict[str, list[float]], rows: dict[str, list[dict[str, float]]]) -> None:
    """Left the training losses, right accuracy and likelihood of every seed."""
    left, right = figure.subplots(1, 2)
    for (method, losses), colour in zip(curves.items(), (INK, ORANGE, BLUE), strict=True):
        left.semilogy(*smooth(losses, 20), color=colour, label=method)
        accuracy, nats = ([row[name] for row in rows[method]] for name in ("accuracy ↑", "nats a digit ↓"))
        right.plot(accuracy, nats, "o", color=colour, label=method)
    left.set(title="Training loss", xlabel="step", ylabel="nats")
    right.set(title="Held out, one point a seed", xlabel="accuracy", ylabel="nats a digit")
    left.legend()
