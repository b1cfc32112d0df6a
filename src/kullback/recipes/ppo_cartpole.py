"""PPO on CartPole: what keeps the policy near the one that collected the data, and what if nothing does.

Loss: -E[ratio · advantage] + β KL(old policy ‖ new policy), many epochs on each batch, without ratio clipping; β
fixed, β adapted by `losses.DoubleHalveKL`, β = 0 with `losses.EarlyStop`, β = 0 alone, and a sampled penalty,
`losses.PolicyKL` with value k3 and gradient ratio_k3, which is KL(new ‖ old). The first KL is exact: a policy is a
row of `Logits`.
Source: Schulman et al. 2017, arXiv 1707.06347, section 4 (penalty, doubling and halving); Spinning Up (early stop).
Data: gymnasium's CartPole-v1 (MIT licence), 16 environments at once; an episode ends after 500 steps at the latest.
Expect: without a KL the updates are large and returns collapse now and then; the penalties are steadier and reach the
top. Early stopping looks once an epoch, too late at this learning rate.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kullback import Logits, kl
from kullback.losses import DoubleHalveKL, EarlyStop, PolicyKL, average

from .shared import BLUE, GREEN, INK, ORANGE, PINK, Clock, Result, check, extra, picture, progress, seeded

ENVIRONMENTS, LENGTH, EPOCHS, PARTS = 16, 128, 6, 4  # 2048 transitions an iteration, 24 gradient steps
DISCOUNT, TRACE, TARGET = 0.99, 0.95, 0.01
COLUMNS = {"return, last quarter ↑": ".0f", "return, all ↑": ".0f", "largest KL ↓": ".3f", "worst fall ↓": ".0f"}
METHODS = ("no KL", "fixed KL penalty", "adaptive KL penalty", "early stop", "sampled k3 penalty")


class Batch(NamedTuple):
    """What the old policy did, one row a transition."""

    states: Tensor
    actions: Tensor
    logits: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> "Batch":
        """Some of the transitions."""
        return Batch(*(field[index] for field in self))


class Policy(nn.Module):
    """Action logits and a state value, each a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
        self.critic = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))


class Worker:
    """Steps the environments and remembers the length of every episode that ended."""

    def __init__(self, seed: int) -> None:
        gymnasium = extra("gymnasium")
        self.env = gymnasium.make_vec("CartPole-v1", ENVIRONMENTS, vectorization_mode="vector_entry_point")
        self.state = torch.from_numpy(self.env.reset(seed=seed)[0])
        self.length = torch.zeros(ENVIRONMENTS)
        self.restarting = torch.zeros(ENVIRONMENTS, dtype=torch.bool)

    @torch.no_grad()
    def collect(self, policy: Policy, generator: torch.Generator) -> tuple[Batch, list[float]]:
        """LENGTH steps with generalised advantage estimation; the returns of the episodes that ended."""
        states, actions, logits, ends, real, ended = [], [], [], [], [], []
        for _ in range(LENGTH):
            scores = policy.actor(self.state)
            action = torch.multinomial(torch.softmax(scores, -1), 1, generator=generator).squeeze(1)
            states.append(self.state)
            actions.append(action)
            logits.append(scores)
            real.append(~self.restarting)  # the step after an end only resets, whatever the action
            after, _, terminated, truncated, _ = self.env.step(action.numpy())
            self.state = torch.from_numpy(after)
            self.length = torch.where(self.restarting, 0.0, self.length + 1)
            self.restarting = torch.from_numpy(terminated | truncated)
            ends.append(torch.stack([torch.from_numpy(terminated), self.restarting]))
            ended += self.length[self.restarting].tolist()
        seen = torch.stack([*states, self.state])
        values = policy.critic(seen).squeeze(-1)
        advantages = torch.zeros(LENGTH, ENVIRONMENTS)
        trace = torch.zeros(ENVIRONMENTS)
        for t in reversed(range(LENGTH)):
            terminated, over = ends[t]
            error = 1.0 + DISCOUNT * values[t + 1] * ~terminated - values[t]
            trace = error + DISCOUNT * TRACE * trace * ~over
            advantages[t] = trace
        keep = torch.stack(real)
        centred = (advantages - advantages[keep].mean()) / advantages[keep].std()
        returns = advantages + values[:-1]
        return Batch(
            seen[:-1][keep], torch.stack(actions)[keep], torch.stack(logits)[keep], centred[keep], returns[keep]
        ), ended


def penalty(method: str, beta: float, batch: Batch, logits: Tensor) -> Tensor:
    """β times the KL of the method; a zero where it has none."""
    if method in ("no KL", "early stop"):
        return logits.new_zeros(())
    if method == "sampled k3 penalty":
        new, old = (
            torch.log_softmax(x, -1).gather(1, batch.actions.unsqueeze(1)).squeeze(1) for x in (logits, batch.logits)
        )
        sampled: Tensor = PolicyKL(value="k3", gradient="ratio_k3")(
            log_prob=new, reference_log_prob=old, behaviour_log_prob=old
        )
        return beta * sampled
    return beta * average(kl(Logits(batch.logits), Logits(logits)))


def update(method: str, policy: Policy, optimizer: Any, batch: Batch, beta: float, generator: torch.Generator) -> float:
    """EPOCHS passes over the batch; the exact KL(old ‖ new) that they moved the policy by."""
    stop = EarlyStop(target=TARGET)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(batch.actions), generator=generator).chunk(PARTS):
            part = batch.rows(rows)
            logits = policy.actor(part.states)
            log_ratio = (torch.log_softmax(logits, -1) - torch.log_softmax(part.logits, -1)).gather(
                1, part.actions.unsqueeze(1)
            )
            gain = average(log_ratio.squeeze(1).exp() * part.advantages)
            value_error = average((policy.critic(part.states).squeeze(1) - part.returns) ** 2)
            loss = -gain + penalty(method, beta, part, logits) + 0.002 * value_error
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            moved = average(kl(Logits(batch.logits), Logits(policy.actor(batch.states)))).item()
        if method == "early stop" and stop(moved):
            break
    return moved


def train(method: str, steps: int, seed: int, tick: Any) -> tuple[list[float], list[float]]:
    """Mean return of the episodes that ended in each iteration, and the KL of each update."""
    returns: list[float] = []
    moves: list[float] = []
    controller = DoubleHalveKL(1.0, target=TARGET)
    with seeded(seed) as generator:
        policy, worker = Policy(), Worker(seed)
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
        for _ in range(steps):
            batch, ended = worker.collect(policy, generator)
            returns.append(sum(ended) / len(ended) if ended else returns[-1] if returns else float(LENGTH))
            moves.append(update(method, policy, optimizer, batch, controller.coefficient, generator))
            if method == "adaptive KL penalty":
                controller.update(moves[-1])
            tick()
    return returns, moves


def run(seeds: int = 3, steps: int = 20, out: Path | None = None) -> Result:
    """Train every method with every seed; `Result` compares the adaptive penalty with no KL.

    Args: seeds: initialisations and environments.  steps: iterations of 2048 transitions.  out: picture file.
    Raises: BadInput, MissingExtra.
    """
    check(seeds, steps, out)
    clock = Clock()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    every: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    with progress("ppo_cartpole", seeds * len(METHODS) * steps) as tick:
        for seed in range(seeds):
            for method in METHODS:
                returns, moves = train(method, steps, seed, tick)
                last = returns[-max(1, steps // 4) :]
                best = [max(returns[: i + 1]) - value for i, value in enumerate(returns)]
                rows[method].append(
                    dict(
                        zip(
                            COLUMNS,
                            (sum(last) / len(last), sum(returns) / len(returns), max(moves), max(best)),
                            strict=True,
                        )
                    )
                )
                every[method].append(returns)
    if out is not None:
        picture(out, lambda figure: draw(figure, every, rows))
    return Result(
        "ppo_cartpole",
        f"gymnasium's CartPole-v1 (MIT licence), {steps * ENVIRONMENTS * LENGTH} transitions; falls: from the best",
        {"seeds": seeds, "steps": steps},
        COLUMNS, rows, ("return, last quarter ↑", "adaptive KL penalty", "no KL"),
        {method: [-value for value in curves[0]] for method, curves in every.items()},  # what training minimises
        clock.seconds,
    )  # fmt: skip


def draw(figure: Any, every: dict[str, list[list[float]]], rows: dict[str, list[dict[str, float]]]) -> None:
    """Left the mean return by iteration, right the largest step and the end of every seed."""
    left, right = figure.subplots(1, 2)
    for (method, curves), colour in zip(every.items(), (ORANGE, BLUE, GREEN, PINK, INK), strict=True):
        left.plot([sum(values) / len(values) for values in zip(*curves, strict=True)], color=colour, label=method)
        for number, row in enumerate(rows[method]):
            label = method if number == 0 else None
            right.semilogx(row["largest KL ↓"], row["return, last quarter ↑"], "o", color=colour, label=label)
    left.set(title="While learning", xlabel="iteration", ylabel="mean return", ylim=(0, 510))
    right.set(title="One point a seed", xlabel="largest KL of an update", ylabel="return, last quarter", ylim=(0, 510))
    right.legend(fontsize=8, loc="lower left")
