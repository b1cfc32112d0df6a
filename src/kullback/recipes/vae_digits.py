"""Variational autoencoder: what the weight of the KL term buys, on handwritten digits.

Loss: -log p(x|z) + β KL(q(z|x) ‖ N(0, I)), `losses.VAELoss`: β = 1 (the ELBO), β = 0 (an autoencoder), β = 4, free
bits, and cyclical annealing; beside them independent pixels, the model without any latent variable.
Source: Kingma & Welling 2014; Higgins et al. 2017; Kingma et al. 2016 (free bits); Fu et al. 2019 (cycles); Burda et
al. 2016 (the importance-weighted estimate of -log p(x)).
Data: scikit-learn's digits, 8 × 8, black and white at half grey (UCI, Alpaydin & Kaynak 1998, CC BY 4.0).
Expect: β = 1 gives the best likelihood. β = 0 reconstructs best and is useless as a model of digits: its codes lie
where the prior never draws. Larger β pays likelihood for a lower rate and fewer used coordinates.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback.losses import DiagonalGaussian, VAELoss, cyclical, gaussian_kl_per_dimension, reconstruction_nll

from .shared import BLUE, GREEN, INK, ORANGE, PINK, Clock, Result, check, extra, picture, progress, seeded, smooth

LATENT = 10
HELD_OUT = 500
ACTIVE = 0.05  # nats of mean KL from which a latent coordinate counts as used
COLUMNS = {
    "-log p(x) ↓": ".2f", "-ELBO ↓": ".2f", "reconstruction": ".2f", "KL": ".2f", "coordinates used": ".1f",
}  # fmt: skip
METHODS: dict[str, tuple[VAELoss, Callable[[int, int], float]]] = {
    "β = 0": (VAELoss(beta=0.0), lambda step, steps: 0.0),
    "β = 1": (VAELoss(), lambda step, steps: 1.0),
    "β = 4": (VAELoss(beta=4.0), lambda step, steps: 4.0),
    "free bits 0.5": (VAELoss(free_bits=0.5), lambda step, steps: 1.0),
    "cyclical β": (VAELoss(), lambda step, steps: cyclical(step, steps=steps, cycles=min(4, steps))),
}
PIXELS = "independent pixels"


class VAE(nn.Module):
    """One hidden layer on either side."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, width), nn.ReLU(), nn.Linear(width, 64))

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x)."""
        mu, logvar = self.encoder(x).chunk(2, -1)
        return DiagonalGaussian(mu, logvar)


def train(method: str, data: Tensor, steps: int, seed: int, tick: Any) -> tuple[VAE, list[float]]:
    """Adam on batches of 128."""
    loss_of, beta = METHODS[method]
    losses = []
    with seeded(seed) as generator:
        model = VAE()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for step in range(steps):
            x = data[torch.randint(len(data), (128,), generator=generator)]
            posterior = model.posterior(x)
            decoded = model.decoder(posterior.rsample(generator=generator))
            loss = loss_of(decoded=decoded, target=x, posterior=posterior, beta=beta(step, steps))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            tick()
    return model, losses


@torch.no_grad()
def measure(model: VAE, data: Tensor, seed: int, draws: int = 200) -> dict[str, float]:
    """The columns on held-out digits; -log p(x) by importance sampling from q(z|x), an upper bound in the mean."""
    posterior = model.posterior(data)
    z = posterior.rsample((draws,), generator=torch.Generator().manual_seed(seed))
    nll = torch.stack([reconstruction_nll(model.decoder(each), data) for each in z])
    prior = DiagonalGaussian(torch.zeros(LATENT), torch.zeros(LATENT))
    log_weights = prior.log_prob(z) - nll - posterior.log_prob(z)
    per_coordinate = gaussian_kl_per_dimension(posterior).mean(0)
    return dict(zip(COLUMNS, (
        -(torch.logsumexp(log_weights, 0) - math.log(draws)).mean().item(),
        nll.mean().item() + per_coordinate.sum().item(),
        nll.mean().item(),
        per_coordinate.sum().item(),
        float((per_coordinate > ACTIVE).sum()),
    ), strict=True))  # fmt: skip


def independent_pixels(train_rows: Tensor, held_out: Tensor) -> dict[str, float]:
    """Every pixel a coin of its own, Laplace's rule of succession."""
    share = (train_rows.sum(0) + 1) / (len(train_rows) + 2)
    nll = reconstruction_nll(torch.logit(share).expand_as(held_out), held_out).mean().item()
    return dict(zip(COLUMNS, (nll, nll, nll, 0.0, 0.0), strict=True))


def run(seeds: int = 3, steps: int = 1000, out: Path | None = None) -> Result:
    """Train every method with every seed; `Result` compares β = 1 with independent pixels.

    Args: seeds: splits and initialisations.  steps: batches of 128.  out: picture file.
    Raises: BadInput, MissingExtra.
    """
    check(seeds, steps, out)
    clock = Clock()
    digits = torch.from_numpy(extra("sklearn.datasets").load_digits().data >= 8).float()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in (PIXELS, *METHODS)}
    curves: dict[str, list[float]] = {}
    samples: dict[str, Tensor] = {}
    with progress("vae_digits", seeds * len(METHODS) * steps) as tick:
        for seed in range(seeds):
            order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
            train_rows, held_out = digits[order[HELD_OUT:]], digits[order[:HELD_OUT]]
            rows[PIXELS].append(independent_pixels(train_rows, held_out))
            for method in METHODS:
                model, losses = train(method, train_rows, steps, seed, tick)
                rows[method].append(measure(model, held_out, seed))
                curves.setdefault(method, losses)
                samples.setdefault(method, sample(model))
    if out is not None:
        picture(out, lambda figure: draw(figure, curves, samples))
    return Result(
        "vae_digits",
        f"scikit-learn's digits in black and white (CC BY 4.0), {len(train_rows)} to train on; nats a picture",
        {"seeds": seeds, "steps": steps},
        COLUMNS, rows, ("-log p(x) ↓", "β = 1", PIXELS), curves, clock.seconds,
    )  # fmt: skip


@torch.no_grad()
def sample(model: VAE) -> Tensor:
    """Twelve digits (8, 8) decoded from draws of the prior."""
    z = torch.randn(12, LATENT, generator=torch.Generator().manual_seed(0))
    return torch.sigmoid(model.decoder(z)).view(12, 8, 8)


def draw(figure: Any, curves: dict[str, list[float]], samples: dict[str, Tensor]) -> None:
    """Left the training losses, right digits decoded from draws of the prior."""
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    for (method, losses), colour in zip(curves.items(), (ORANGE, BLUE, GREEN, INK, PINK), strict=True):
        left.plot(*smooth(losses, 50), color=colour, label=method)
    left.set(title="Training loss", xlabel="step", ylabel="nats a digit", ylim=(0, 45))
    left.legend(fontsize=8, ncols=2)
    framed = [nn.functional.pad(tiles, (1, 1, 1, 1)) for tiles in samples.values()]
    shown = torch.cat([torch.cat(list(tiles), 1) for tiles in framed], 0)
    right.imshow(1 - shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    for row in range(1, len(samples)):
        right.axhline(10 * row - 0.5, color=BLUE, linewidth=0.8)
    right.set(title="Decoded draws of the prior", xticks=[], yticks=[10 * i + 4.5 for i in range(len(samples))])
    right.set_yticklabels(list(samples))
