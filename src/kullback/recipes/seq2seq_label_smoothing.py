"""Label smoothing: an attention decoder learns where words begin, `setdefaulttimeout` → `set_default_timeout`.

Loss: KL(smoothed label ‖ model), `losses.LabelSmoothing`, as WeNet and ESPnet train their attention decoders, beside
the same network on plain cross-entropy (smoothing = 0).
Source: Szegedy et al. 2016, section 7; Müller, Kornblith & Hinton 2019 (calibration).
Data: the snake_case identifiers of Python's own standard library, as installed (PSF licence). The network reads one
without its underscores and writes it with them, letter by letter. The test identifiers occur nowhere in training.
Expect: smoothing costs likelihood always (the model is asked to be unsure) and helps accuracy only where the plain
network overfits; it trades over-confidence for under-confidence, so the calibration error can go either way.
"""

import re
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback.losses import LabelSmoothing

from .shared import BLUE, INK, ORANGE, Clock, Result, check, picture, progress, seeded, smooth

ALPHABET = "abcdefghijklmnopqrstuvwxyz_"
PAD, START, END = 0, 1, 2  # letters count from 3
NUM_TOKENS = 3 + len(ALPHABET)
LONGEST = 14  # letters of an identifier
TRAIN, TEST = 2000, 1000
COLUMNS = {"names right ↑": ".3f", "letters right ↑": ".4f", "nats a letter ↓": ".4f", "calibration error ↓": ".4f"}


def identifiers() -> list[str]:
    """snake_case names of two words or more in the standard library's modules, each once, sorted."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [*folder.glob("*.py"), *(f for name in PACKAGES for f in sorted((folder / name).rglob("*.py")))]
    text = "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    names = set(re.findall(r"(?<![A-Za-z0-9_])[a-z]{2,}(?:_[a-z]{2,})+(?![A-Za-z0-9_])", text))
    return sorted(name for name in names if len(name) <= LONGEST)


PACKAGES = ("asyncio", "collections", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing",
            "unittest", "urllib", "xml")  # fmt: skip


def encode(words: list[str]) -> Tensor:
    """(N, LONGEST + 2): start, letters, end, padding."""
    rows = torch.full((len(words), LONGEST + 2), PAD)
    for row, word in zip(rows, words, strict=True):
        codes = [START, *(3 + ALPHABET.index(letter) for letter in word), END]
        row[: len(codes)] = torch.tensor(codes)
    return rows


class Speller(nn.Module):
    """A bidirectional GRU reads, a GRU writes and attends to what was read."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.letters = nn.Embedding(NUM_TOKENS, width, padding_idx=PAD)
        self.places = nn.Embedding(LONGEST + 2, width)
        self.reader = nn.GRU(width, width, bidirectional=True, batch_first=True)
        self.writer = nn.GRU(2 * width, width, batch_first=True)
        self.query = nn.Linear(width, 2 * width)
        self.out = nn.Sequential(nn.Linear(3 * width, width), nn.Tanh(), nn.Linear(width, NUM_TOKENS))

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        """Logits (batch, length, tokens) for the letter after each of `written`."""
        read, _ = self.reader(self.letters(source) + self.places(torch.arange(source.shape[1])))
        used = (written >= 3) & (written != 3 + ALPHABET.index("_"))
        place = self.places(used.long().cumsum(1))  # the letters written so far: where reading should be
        state, _ = self.writer(torch.cat([self.letters(written), place], -1))
        scores = self.query(state) @ read.transpose(1, 2) / read.shape[-1] ** 0.5
        scores = scores.masked_fill((source == PAD).unsqueeze(1), -torch.inf)
        logits: Tensor = self.out(torch.cat([state, torch.softmax(scores, -1) @ read], -1))
        return logits


@torch.no_grad()
def spell(model: Speller, source: Tensor) -> Tensor:
    """The most probable letter each time, until every row has ended."""
    written = torch.full((len(source), 1), START)
    for _ in range(LONGEST + 1):
        following = model(source, written)[:, -1].argmax(-1)
        done = (written == END).any(1)
        written = torch.cat([written, torch.where(done, PAD, following).unsqueeze(1)], 1)
    return written


def train(
    pairs: tuple[Tensor, Tensor], smoothing: float, steps: int, seed: int, tick: Any
) -> tuple[Speller, list[float]]:
    """Adam on batches of 64; the losses are those of the method itself."""
    loss_of = LabelSmoothing(size=NUM_TOKENS, padding_idx=PAD, smoothing=smoothing, normalize_length=True)
    source, target = pairs
    losses = []
    with seeded(seed) as generator:
        model = Speller()
        optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps + 1)
        for _ in range(steps):
            rows = torch.randint(len(source), (64,), generator=generator)
            loss = loss_of(model(source[rows], target[rows, :-1]), target[rows, 1:])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            tick()
    return model.eval(), losses


@torch.no_grad()
def measure(model: Speller, pairs: tuple[Tensor, Tensor]) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """The columns, and (confidence, share right) of ten equally filled bins of the letters."""
    source, target = pairs
    following = target[:, 1:]
    log_probs = torch.log_softmax(model(source, target[:, :-1]), -1)[following != PAD]
    letters = following[following != PAD]
    confidence, guess = log_probs.exp().max(-1)
    right = (guess == letters).double()
    bins = [(confidence[part].mean().item(), right[part].mean().item()) for part in confidence.argsort().chunk(10)]
    spelled = spell(model, source)
    return dict(zip(COLUMNS, (
        (spelled == target).all(1).double().mean().item(),
        right.mean().item(),
        -log_probs.gather(-1, letters.unsqueeze(-1)).mean().item(),
        sum(abs(a - b) for a, b in bins) / len(bins),
    ), strict=True)), bins  # fmt: skip


def run(
    seeds: int = 3, steps: int = 200, out: Path | None = None, smoothings: tuple[float, ...] = (0.0, 0.1)
) -> Result:
    """Train with each smoothing and seed on the same identifiers; `Result` compares the first two.

    Args: seeds: how many splits and initialisations.  steps: batches of 64.  out: picture file.
    Raises: BadInput, MissingExtra.
    """
    check(seeds, steps, out)
    clock, names = Clock(), identifiers()
    methods = {("cross-entropy" if s == 0 else f"label smoothing {s:g}"): s for s in smoothings}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    curves: dict[str, list[float]] = {}
    reliability: dict[str, list[tuple[float, float]]] = {}
    with progress("seq2seq_label_smoothing", seeds * len(methods) * steps) as tick:
        for seed in range(seeds):
            order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
            words = [names[i] for i in order[: TRAIN + TEST]]
            target, source = encode(words), encode([word.replace("_", "") for word in words])
            held_out = source[-TEST:], target[-TEST:]
            for method, smoothing in methods.items():
                model, losses = train((source[:-TEST], target[:-TEST]), smoothing, steps, seed, tick)
                measured, bins = measure(model, held_out)
                rows[method].append(measured)
                curves.setdefault(method, losses)
                reliability.setdefault(method, bins)
    if out is not None:
        picture(out, lambda figure: draw(figure, curves, reliability))
    baseline, ours, *_ = methods
    return Result(
        "seq2seq_label_smoothing",
        f"{len(names)} snake_case identifiers of Python's standard library (PSF licence), {TRAIN} to train on",
        {"seeds": seeds, "steps": steps, "smoothings": list(smoothings)},
        COLUMNS, rows, ("names right ↑", ours, baseline), curves, clock.seconds,
    )  # fmt: skip


def draw(figure: Any, curves: dict[str, list[float]], reliability: dict[str, list[tuple[float, float]]]) -> None:
    """Left the training losses, right the reliability of the letters."""
    left, right = figure.subplots(1, 2)
    for (method, losses), colour in zip(curves.items(), (ORANGE, BLUE, INK), strict=False):
        left.semilogy(*smooth(losses, 20), color=colour, label=method)
        right.plot(*zip(*reliability[method], strict=True), "o-", color=colour, label=method)
    left.set(title="Training loss", xlabel="step", ylabel="KL(smoothed label ‖ model), nats")
    right.plot([0.3, 1], [0.3, 1], ":", color=INK)
    right.set(title="Held-out letters: confidence and truth", xlabel="confidence", ylabel="share right")
    left.legend()
