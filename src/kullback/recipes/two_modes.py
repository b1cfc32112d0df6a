"""Forward against reverse KL: one Gaussian fitted to a target with two modes, in both directions.

Loss: `losses.ReverseKL`, KL(q‖p) from reparameterised draws of q, and `losses.ForwardKL`, KL(p‖q) from draws of a
wide proposal with self-normalised importance weights. Both only see the unnormalised density. Beside them the exact
optimum of forward KL: the mean and covariance of the target.
Source: Minka 2005; Bishop 2006, section 10.1.2; Roeder, Wu & Duvenaud 2017 (path gradient); Bornschein & Bengio 2015
(importance weights).
Data: the target is a kernel density estimate of petal length and width of scikit-learn's iris flowers (Fisher 1936,
CC BY 4.0): setosa is one mode, the other two species the other.
Expect: forward KL covers both modes and puts mass between them, where there are no flowers; reverse KL settles on one
mode, which one depends on the start. Neither is wrong: they answer different questions.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback import Probs, kl
from kullback.kit.threads import one_thread
from kullback.losses import ForwardKL, FullGaussian, ReverseKL

from .shared import BLUE, GREEN, INK, ORANGE, Clock, Result, check, extra, picture, progress, seeded, smooth

BANDWIDTH = 0.3  # cm
LOW, HIGH, CELLS = (-2.0, -2.0), (10.0, 5.0), (240, 140)  # the grid of the exact numbers, 0.05 cm
COLUMNS = {"KL(p‖q)": ".3f", "KL(q‖p)": ".3f", "q near setosa": ".2f", "q between": ".2f", "q near the others": ".2f"}
METHODS = ("moments (exact)", "forward KL", "reverse KL")


class Target:
    """p̃(x) = Σ_i exp(-|x - x_i|²/2h²), 50/50 over the two groups of flowers, not normalised."""

    def __init__(self) -> None:
        iris = extra("sklearn.datasets").load_iris()
        self.flowers = torch.from_numpy(iris.data[:, 2:]).float()
        self.setosa = torch.from_numpy(iris.target == 0)
        self.log_share = torch.where(self.setosa, 1 / 100.0, 1 / 200.0).log()

    def log_p(self, z: Tensor) -> Tensor:
        """log p̃ at z (..., 2)."""
        square = ((z.unsqueeze(-2) - self.flowers) ** 2).sum(-1)
        return torch.logsumexp(self.log_share - square / (2 * BANDWIDTH**2), -1)

    def moments(self) -> FullGaussian:
        """The Gaussian with the target's mean and covariance: the optimum of forward KL."""
        share = self.log_share.exp().unsqueeze(-1)
        mean = (share * self.flowers).sum(0)
        centred = self.flowers - mean
        return FullGaussian(mean, torch.linalg.cholesky(centred.T @ (share * centred) + BANDWIDTH**2 * torch.eye(2)))


class Fit(nn.Module):
    """A Gaussian with free mean and Cholesky factor."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(start)
        self.log_diagonal = nn.Parameter(torch.zeros(2))
        self.below = nn.Parameter(torch.zeros(()))

    def forward(self) -> FullGaussian:
        """q."""
        corner = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        return FullGaussian(self.mean, torch.diag_embed(self.log_diagonal.exp()) + self.below * corner)


def train(method: str, target: Target, steps: int, seed: int, tick: Any) -> tuple[FullGaussian, list[float]]:
    """Adam, 256 draws a step, from a random start around the flowers."""
    reverse, forward = ReverseKL(num_samples=256, path_gradient=True), ForwardKL()
    proposal = FullGaussian(torch.tensor([3.5, 1.2]), torch.diag(torch.tensor([2.5, 1.2])))
    losses = []
    with seeded(seed) as generator:
        fit = Fit(proposal.rsample(generator=generator))
        optimizer = torch.optim.Adam(fit.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            if method == "reverse KL":
                loss = reverse(fit(), target.log_p, generator=generator)
            else:
                z = proposal.rsample((256,), generator=generator)
                loss = forward(log_q=fit().log_prob(z), log_weights=target.log_p(z) - proposal.log_prob(z))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            tick()
    return fit().detach(), losses


def grid() -> Tensor:
    """Cell centres (cells, 2)."""
    axes = [torch.arange(n) * ((b - a) / n) + a + (b - a) / (2 * n) for a, b, n in zip(LOW, HIGH, CELLS, strict=True)]
    return torch.cartesian_prod(*axes)


@torch.no_grad()
def measure(q: FullGaussian, target: Target) -> dict[str, float]:
    """Exact over the grid: both divergences, and where the mass of q lies (cuts at 2.2 and 2.8 cm of petal length)."""
    cells = grid()
    p_cells = torch.softmax(target.log_p(cells).double(), 0)
    q_cells = torch.softmax(q.log_prob(cells).double(), 0)
    length = cells[:, 0]
    return dict(zip(COLUMNS, (
        kl(Probs(p_cells), Probs(q_cells)).item(),
        kl(Probs(q_cells), Probs(p_cells)).item(),
        q_cells[length < 2.2].sum().item(),
        q_cells[(length >= 2.2) & (length < 2.8)].sum().item(),
        q_cells[length >= 2.8].sum().item(),
    ), strict=True))  # fmt: skip


def run(seeds: int = 6, steps: int = 600, out: Path | None = None) -> Result:
    """Fit from every start; `Result` compares reverse with forward KL in KL(q‖p).

    Args: seeds: starts and draws.  steps: of 256 draws.  out: picture file.
    Raises: BadInput, MissingExtra.
    """
    check(seeds, steps, out)
    clock, target = Clock(), Target()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    curves: dict[str, list[float]] = {}
    fits: dict[str, list[FullGaussian]] = {name: [] for name in METHODS}
    with one_thread(), progress("two_modes", seeds * 2 * steps) as tick:
        for seed in range(seeds):
            for method in METHODS:
                if method == METHODS[0]:
                    q = target.moments()
                else:
                    q, losses = train(method, target, steps, seed, tick)
                    curves.setdefault(method, losses)
                rows[method].append(measure(q, target))
                fits[method].append(q)
    if out is not None:
        picture(out, lambda figure: draw(figure, curves, fits, target))
    return Result(
        "two_modes",
        "kernel density of petal length and width of scikit-learn's iris (CC BY 4.0); nats",
        {"seeds": seeds, "steps": steps},
        COLUMNS, rows, ("KL(q‖p)", "reverse KL", "forward KL"), curves, clock.seconds,
    )  # fmt: skip


def draw(figure: Any, curves: dict[str, list[float]], fits: dict[str, list[FullGaussian]], target: Target) -> None:
    """Left the losses, right the target with the fitted ellipses of two standard deviations."""
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    colours = dict(zip(METHODS, (GREEN, BLUE, ORANGE), strict=True))
    colors = extra("matplotlib.colors")
    for method, losses in curves.items():
        left.plot(*smooth(losses, 10), color=colours[method], label=method)
    left.set(title="Training loss", xlabel="step", ylabel="nats, up to a constant")
    left.legend()
    p = target.log_p(grid()).exp().view(CELLS).T.numpy()
    faint = (*colors.to_rgb(INK), 0.0)
    shade = colors.LinearSegmentedColormap.from_list("density", [faint, INK])
    right.imshow(p, cmap=shade, origin="lower", extent=(LOW[0], HIGH[0], LOW[1], HIGH[1]), aspect="auto")
    turn = torch.linspace(0, 2 * math.pi, 40)
    circle = torch.stack([turn.cos(), turn.sin()])
    for method in METHODS:
        for number, q in enumerate(fits[method]):
            x, y = 2 * q.scale_tril @ circle + q.mu.unsqueeze(-1)
            exact = method == METHODS[0]
            if exact and number:
                continue
            style = {"linestyle": (0, (4, 3)), "linewidth": 2.4, "zorder": 3} if exact else {"linewidth": 1.2}
            right.plot(x, y, color=colours[method], label=method if number == 0 else None, **style)
    right.set(
        title="Fits from every start (2 σ)",
        xlabel="petal length (cm)",
        ylabel="petal width (cm)",
        xlim=(-1, 9),
        ylim=(-1, 4),
    )
    right.legend(fontsize=8, loc="upper left")
