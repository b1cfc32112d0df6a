"""Calibrated recommendation: lists that keep a user's mix of tastes, at what cost in hits.

Loss: the recommender is trained on KL(a user's items ‖ softmax of the scores); its lists are re-ranked for (1-λ) Σ
scores - λ KL(history's genres ‖ list's genres) with `recommend.rerank`; beside it λ = 0, the plain top ten.
Source: Steck 2018, "Calibrated recommendations", RecSys; Liang et al. 2018 (multinomial likelihood).
Data: a user is a Python file of the standard library (PSF licence) or of PyTorch (BSD 3-clause), an item a function
it calls, such as `os.path` or `re.compile`, and its genre is the module. A third of a file's functions are hidden.
Expect: calibration improves by much at no cost in hits. Scores are probabilities, small beside the KL, so that a
small λ already decides.
"""

import importlib.util
import math
import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kullback import Logits, Probs, kl
from kullback.losses import average
from kullback.recommend import calibration, genre_distribution, rerank

from .shared import BLUE, INK, ORANGE, Clock, Result, check, picture, progress, seeded, smooth

LENGTH = 10  # of a list
COMMON, BUSY = 8, 12  # users that an item needs, items that a user needs
TRADEOFFS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
COLUMNS = {"calibration KL ↓": ".3f", "hidden items found ↑": ".3f", "genres in a list": ".1f"}


class Histories(NamedTuple):
    """Which user has which item (U, I) bool; the genre of an item (I, G), one-hot; their names."""

    has: Tensor
    genres: Tensor
    items: list[str]


def histories() -> Histories:
    """Functions of the standard library that files call by `module.name`, found by pattern, no file is run."""
    modules = sorted((name for name in sys.stdlib_module_names if not name.startswith("_")), key=len, reverse=True)
    calls = re.compile(rf"(?<![\w.])({'|'.join(modules)})\.([A-Za-z_]\w*)")
    imports = re.compile(r"^\s*import (\w+)$", re.MULTILINE)
    users = []
    for file in _files():
        text = file.read_text(encoding="utf-8", errors="ignore")
        imported = set(imports.findall(text))
        users.append({f"{module}.{name}" for module, name in calls.findall(text) if module in imported})
    count = Counter(item for user in users for item in user)
    items = sorted(item for item, number in count.items() if number >= COMMON)
    column = {item: i for i, item in enumerate(items)}
    known = [[column[item] for item in sorted(user) if item in column] for user in users]
    known = [user for user in known if len(user) >= BUSY]
    has = torch.zeros(len(known), len(items), dtype=torch.bool)
    for row, user in zip(has, known, strict=True):
        row[user] = True
    names = sorted({item.partition(".")[0] for item in items})
    genres = torch.zeros(len(items), len(names))
    genres[torch.arange(len(items)), [names.index(item.partition(".")[0]) for item in items]] = 1.0
    return Histories(has, genres, items)


def _files() -> list[Path]:
    library = Path(sysconfig.get_paths()["stdlib"])
    torch_spec = importlib.util.find_spec("torch")
    assert torch_spec is not None
    assert torch_spec.submodule_search_locations is not None
    own = [f for f in sorted(library.rglob("*.py")) if not {"site-packages", "dist-packages"} & set(f.parts)]
    return own + sorted(Path(torch_spec.submodule_search_locations[0]).rglob("*.py"))


class Recommender(nn.Module):
    """Scores of all items from the items seen, through a narrow layer."""

    def __init__(self, items: int, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.Linear(items, width), nn.Tanh(), nn.Linear(width, items))

    def forward(self, seen: Tensor) -> Tensor:
        """Logits (U, I) of a row of zeros and ones, scaled to length one."""
        logits: Tensor = self.layers(seen / seen.norm(dim=-1, keepdim=True))
        return logits


def train(seen: Tensor, steps: int, seed: int, tick: Any) -> tuple[Recommender, list[float]]:
    """Adam on batches of 128 users; the target is uniform over a user's items."""
    losses = []
    with seeded(seed) as generator:
        model = Recommender(seen.shape[1])
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-5)
        for _ in range(steps):
            x = seen[torch.randint(len(seen), (128,), generator=generator)]
            loss = average(kl(Probs(x / x.sum(-1, keepdim=True)), Logits(model(x))))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            tick()
    return model.eval(), losses


@torch.no_grad()
def measure(model: Recommender, data: Histories, seen: Tensor, hidden: Tensor, tradeoff: float) -> dict[str, float]:
    """The columns for the lists of all users; what a user already has is never shown. Scores are probabilities."""
    scores = torch.softmax(model(seen).masked_fill(seen > 0, -torch.inf), -1)
    scores = scores.masked_fill(seen > 0, -torch.inf)
    taste = genre_distribution(data.genres.expand(len(seen), -1, -1), seen)
    lists = rerank(scores, data.genres, taste, length=LENGTH, tradeoff=tradeoff).items
    shown = genre_distribution(data.genres[lists])
    found = hidden.gather(1, lists).sum(1) / hidden.sum(1).clamp(max=LENGTH)
    return dict(zip(COLUMNS, (
        calibration(taste, shown).mean().item(), found.mean().item(), (shown > 0).sum(-1).double().mean().item()
    ), strict=True))  # fmt: skip


def name_of(tradeoff: float) -> str:
    """The row of a trade-off."""
    return "top ten (λ = 0)" if tradeoff == 0 else f"λ = {tradeoff:g}"


def run(seeds: int = 5, steps: int = 400, out: Path | None = None) -> Result:
    """Train a recommender with every seed, re-rank at every trade-off; `Result` compares λ = 0.9 with the top ten.

    Args: seeds: choices of hidden items and initialisations.  steps: batches of 128 users.  out: picture file.
    Raises: BadInput, MissingExtra.
    """
    check(seeds, steps, out)
    clock, data = Clock(), histories()
    rows: dict[str, list[dict[str, float]]] = {name_of(tradeoff): [] for tradeoff in TRADEOFFS}
    curve: list[float] = []
    with progress("calibrated_recommendation", seeds * steps) as tick:
        for seed in range(seeds):
            lottery = torch.rand(data.has.shape, generator=torch.Generator().manual_seed(seed))
            hidden = data.has & (lottery < 1 / 3)
            one = torch.where(data.has, lottery, -1.0).argmax(-1, keepdim=True)  # so that everybody hides something
            hidden = hidden.scatter(1, torch.where(data.has, lottery, 2.0).argmin(-1, keepdim=True), True)
            hidden = hidden.scatter(1, one, False)  # and has seen something
            seen = (data.has & ~hidden).float()
            model, losses = train(seen, steps, seed, tick)
            curve = curve or losses
            for tradeoff in TRADEOFFS:
                rows[name_of(tradeoff)].append(measure(model, data, seen, hidden.float(), tradeoff))
    if out is not None:
        picture(out, lambda figure: draw(figure, curve, rows))
    return Result(
        "calibrated_recommendation",
        f"{len(data.has)} Python files (PSF, BSD 3-clause) as users, {len(data.items)} functions as items",
        {"seeds": seeds, "steps": steps, "tradeoffs": list(TRADEOFFS)},
        COLUMNS, rows, ("calibration KL ↓", name_of(0.9), name_of(0.0)), {"recommender": curve}, clock.seconds,
    )  # fmt: skip


def draw(figure: Any, curve: list[float], rows: dict[str, list[dict[str, float]]]) -> None:
    """Left the recommender's loss, right hits against calibration along the trade-off."""
    left, right = figure.subplots(1, 2)
    left.plot(*smooth(curve, 10), color=BLUE)
    left.set(title="Training loss", xlabel="step", ylabel="KL(items ‖ scores), nats")
    points = [
        tuple(sum(row[name] for row in each) / len(each) for name in ("calibration KL ↓", "hidden items found ↑"))
        for each in rows.values()
    ]
    right.plot(*zip(*points, strict=True), "o-", color=ORANGE)
    height = max(y for _, y in points) - min(y for _, y in points)
    last = -math.inf
    for method, (x, y) in sorted(zip(rows, points, strict=True), key=lambda pair: pair[1][1]):
        last = max(y, last + 0.09 * height)  # in a column to the right, none over another
        line = {"arrowstyle": "-", "color": INK, "linewidth": 0.6}
        right.annotate(
            method, (x, y), (1.08 * max(x for x, _ in points), last), fontsize=8, va="center", arrowprops=line
        )
    right.set(title="Hits against calibration", xlabel="KL(taste ‖ list), nats", ylabel="hidden items found")
    right.margins(x=0.05, y=0.12)
    right.set_xlim(right=1.55 * max(x for x, _ in points))
