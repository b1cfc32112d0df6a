"""A small f-GAN: a generator and a critic play for different divergences, on the two main directions of the digits.

Loss: `losses.FGAN` with the conjugates of KL, reverse KL, Jensen-Shannon and the original GAN: the critic raises the
lower bound of D(data‖generator), the generator lowers it. Beside them a Gaussian fitted by maximum likelihood.
Source: Nowozin, Cseke & Tomioka 2016, arXiv 1606.00709; Goodfellow et al. 2014 (the non-saturating generator).
Data: scikit-learn's digits (UCI, Alpaydin & Kaynak 1998, CC BY 4.0), 3s, 4s and 7s, projected on two principal
components.
Expect: Jensen-Shannon and the GAN, whose critics are bounded, find the clusters that one Gaussian cannot. KL's critic
goes through an exponential and is unstable: no way to fit a density where maximum likelihood is possible.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback import Probs, js
from kullback.losses import FGAN, fgan

from .shared import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PINK,
    PURPLE,
    Clock,
    Result,
    check,
    extra,
    picture,
    progress,
    seeded,
    smooth,
)

DIGITS = (3, 4, 7)
COLUMNS = {"energy distance ↓": ".4f", "binned JS ↓": ".4f"}
GAUSSIAN = "one Gaussian"
METHODS = {"KL": fgan.KL, "reverse KL": fgan.REVERSE_KL, "JS": fgan.js(0.5), "GAN": fgan.GAN}
BINS = 10  # along each axis, over [-2.5, 2.5]


def points() -> Tensor:
    """(N, 2), centred, unit variance."""
    bunch = extra("sklearn.datasets").load_digits()
    pixels = torch.from_numpy(bunch.data[[digit in DIGITS for digit in bunch.target]])
    pixels = pixels - pixels.mean(0)
    _, _, directions = torch.linalg.svd(pixels, full_matrices=False)
    flat = pixels @ directions[:2].T
    scaled: Tensor = (flat / flat.std(0)).float()
    return scaled


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


def train(method: str, data: Tensor, steps: int, seed: int, tick: Any) -> tuple[Tensor, list[float]]:
    """Alternate a step of the critic with one of the generator; draws, and the generator's distance.

    The game has no loss that must fall, so the curve that is kept is the energy distance of every 20th step's batch.
    """
    loss_of = FGAN(METHODS[method])
    distances = []
    with seeded(seed) as generator:
        make, critic = network(4, 2), network(2, 1)
        make_step = torch.optim.Adam(make.parameters(), lr=3e-4, betas=(0.5, 0.9))
        critic_step = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
        for step in range(steps):
            real = data[torch.randint(len(data), (128,), generator=generator)]
            fake = make(torch.randn(128, 4, generator=generator))
            loss = loss_of(real=critic(real), fake=critic(fake.detach()))
            critic_step.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(critic.parameters(), 1.0)  # exp() in KL's conjugate
            critic_step.step()
            make_step.zero_grad()
            loss_of.generator(fake=critic(fake), saturating=False).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(make.parameters(), 1.0)
            make_step.step()
            if step % 20 == 0:
                distances.append(energy_distance(fake.detach(), real))
            tick()
        with torch.no_grad():
            return make(torch.randn(1000, 4, generator=generator)), distances


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x-y| - E|x-x'| - E|y-y'|: 0 only for equal distributions (Székely & Rizzo 2004); no bins, no critic."""

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


def binned_js(x: Tensor, y: Tensor) -> float:
    """Jensen-Shannon divergence of the two histograms: finite though bins are empty."""
    sides = [Probs(_histogram(z)) for z in (x, y)]
    return js(*sides).item()


def _histogram(x: Tensor) -> Tensor:
    cells = ((x + 2.5) / 5 * BINS).long().clamp(0, BINS - 1)
    counts = torch.bincount(cells[:, 0] * BINS + cells[:, 1], minlength=BINS * BINS)
    return counts.double() / counts.sum()


def gaussian(data: Tensor, seed: int) -> Tensor:
    """1000 draws of the Gaussian of maximum likelihood."""
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(seed))
    factor: Tensor = torch.linalg.cholesky(data.T.cov())
    return data.mean(0) + noise @ factor.T


def run(seeds: int = 3, steps: int = 1000, out: Path | None = None) -> Result:
    """Train for each divergence with every seed; `Result` compares Jensen-Shannon with the Gaussian.

    Args: seeds: splits, initialisations, draws.  steps: one of the critic, one of the generator.  out: picture file.
    Raises: BadInput, MissingExtra.
    """
    check(seeds, steps, out)
    clock, data = Clock(), points()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in (GAUSSIAN, *METHODS)}
    curves: dict[str, list[float]] = {}
    draws: dict[str, Tensor] = {}
    with progress("fgan", seeds * len(METHODS) * steps) as tick:
        for seed in range(seeds):
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
            held_out, train_rows = data[order[: len(data) // 2]], data[order[len(data) // 2 :]]
            for method in rows:
                if method == GAUSSIAN:
                    made = gaussian(train_rows, seed)
                else:
                    made, distances = train(method, train_rows, steps, seed, tick)
                    curves.setdefault(method, distances)
                rows[method].append(
                    dict(zip(COLUMNS, (energy_distance(made, held_out), binned_js(made, held_out)), strict=True))
                )
                draws.setdefault(method, made)
    if out is not None:
        picture(out, lambda figure: draw(figure, curves, {"held out": held_out, **draws}))
    return Result(
        "fgan",
        f"scikit-learn's digits {DIGITS} on two principal components (CC BY 4.0), {len(train_rows)} points to train on",
        {"seeds": seeds, "steps": steps},
        COLUMNS, rows, ("energy distance ↓", "JS", GAUSSIAN), curves, clock.seconds,
    )  # fmt: skip


def draw(figure: Any, curves: dict[str, list[float]], clouds: dict[str, Tensor]) -> None:
    """The way down, then the held-out points and the draws of every method."""
    panels = figure.subplots(2, 4, height_ratios=[1, 1]).flatten()
    colours = dict(zip(("held out", GAUSSIAN, *METHODS), (PURPLE, INK, BLUE, ORANGE, GREEN, PINK), strict=True))
    for method, distances in curves.items():
        steps, means = smooth(distances, 5)
        panels[0].semilogy(
            [20 * step for step in steps], [max(mean, 1e-3) for mean in means], color=colours[method], label=method
        )
    panels[0].set_title("energy distance", fontsize=9)
    panels[0].set_xlabel("step", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    panels[1].legend(handles, labels, loc="center left")
    panels[1].axis("off")
    for panel, (method, cloud) in zip(panels[2:], clouds.items(), strict=True):
        panel.plot(*cloud[:250].T.numpy(), ".", color=colours[method], markersize=2, rasterized=True)
        panel.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[])
        panel.set_title(method, fontsize=9)
