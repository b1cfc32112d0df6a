"""Consistency training (UDA): which part of SciPy does a docstring come from, learnt from ten labels a class.

Loss: cross-entropy on the few labels + KL(prediction on the original, held fixed ‖ prediction on an augmented copy)
on rows without labels: `losses.UDA`. Beside it the labels alone, and the labels with augmented copies of themselves.
Source: Xie et al. 2020, arXiv 1904.12848; the augmentation is their word replacement by TF-IDF.
Data: docstrings of the installed SciPy (BSD 3-clause), their first 80 words, in seven classes by subpackage. The
names of the subpackages are taken out of the texts.
Expect: with few labels several points of accuracy, since the unlabelled rows say which words go together; with many
labels nothing.
"""

import ast
import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kullback._errors import BadInput
from kullback.losses import UDA

from .shared import BLUE, INK, ORANGE, Clock, Result, check, extra, picture, progress, seeded, smooth

CLASSES = ("interpolate", "linalg", "optimize", "signal", "sparse", "spatial", "stats")
LONGEST = 80  # words of a text
MOST, TEST = 250, 400  # texts of a class at most; texts held out
COLUMNS = {"accuracy ↑": ".3f", "nats a text ↓": ".3f"}
METHODS = ("labels only", "labels, augmented", "UDA")


class Texts(NamedTuple):
    """Word numbers (N, LONGEST), 0 for padding; class (N,); inverse document frequency (V,)."""

    words: Tensor
    classes: Tensor
    idf: Tensor


def docstrings() -> list[tuple[str, int]]:
    """First sentences of SciPy's docstrings, read without importing it, and the number of their subpackage."""
    extra("scipy")
    spec = importlib.util.find_spec("scipy")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root, found = Path(spec.submodule_search_locations[0]), []
    for index, name in enumerate(CLASSES):
        texts = set()
        for file in sorted((root / name).rglob("*.py")):
            if "tests" not in file.parts:
                nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                kinds = (ast.FunctionDef, ast.ClassDef)
                texts |= {ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)}
        found += [(text, index) for text in sorted(texts)]
    return found


def tokenise(found: list[tuple[str, int]], seed: int) -> Texts:
    """At most MOST texts of a class with eight words or more, as numbers of the words that five texts share."""
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    texts, count = [], Counter[int]()
    for i in order:
        text, index = found[i]
        words = [w for w in re.findall(r"[a-z]{2,}", text.lower()) if w not in (*CLASSES, "scipy", "stat")][:LONGEST]
        if len(words) >= 8 and count[index] < MOST:
            count[index] += 1
            texts.append((words, index))
    documents = Counter(word for words, _ in texts for word in set(words))
    vocabulary = {word: 1 + i for i, word in enumerate(sorted(w for w, n in documents.items() if n >= 5))}
    rows = torch.zeros(len(texts), LONGEST, dtype=torch.long)
    for row, (words, _) in zip(rows, texts, strict=True):
        codes = [vocabulary[word] for word in words if word in vocabulary]
        row[: len(codes)] = torch.tensor(codes, dtype=torch.long)
    idf = torch.tensor([0.0, *((len(texts) / documents[word]) for word in vocabulary)]).clamp(min=1).log()
    return Texts(rows, torch.tensor([index for _, index in texts]), idf)


def augment(words: Tensor, idf: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Replace words at a mean rate, uninformative ones (small TF-IDF) most, each by a random uninformative one."""
    here = words > 0
    score = idf[words] * (words.unsqueeze(-1) == words.unsqueeze(-2)).sum(-1)
    excess = torch.where(here, score.amax(-1, keepdim=True) - score, 0.0)
    mean = excess.sum(-1, keepdim=True) / here.sum(-1, keepdim=True).clamp(min=1)
    probability = (rate * excess / mean.clamp(min=1e-6)).clamp(max=1.0)
    swap = here & (torch.rand(words.shape, generator=generator) < probability)
    weights = torch.where(idf > 0, idf.max() - idf, 0.0)
    replacement = torch.multinomial(weights, words.numel(), replacement=True, generator=generator).view_as(words)
    return torch.where(swap, replacement, words)


class Reader(nn.Module):
    """Word vectors added up by their TF-IDF, and a linear layer."""

    def __init__(self, idf: Tensor, width: int = 128) -> None:
        super().__init__()
        self.idf = idf
        self.vectors = nn.EmbeddingBag(len(idf), width, mode="sum", padding_idx=0)
        self.rest = nn.Sequential(nn.Dropout(0.3), nn.ReLU(), nn.Linear(width, len(CLASSES)))

    def forward(self, words: Tensor) -> Tensor:
        """Logits (N, classes) of word numbers (N, LONGEST)."""
        weights = self.idf[words]
        weights = weights / weights.norm(dim=-1, keepdim=True).clamp(min=1e-6)  # a text without known words is zero
        logits: Tensor = self.rest(self.vectors(words, per_sample_weights=weights))
        return logits


def train(
    method: str, texts: Texts, labelled: Tensor, others: Tensor, steps: int, seed: int, tick: Any
) -> tuple[Reader, list[float]]:
    """Adam; 32 labelled and 96 unlabelled rows a step."""
    loss_of = UDA(coefficient=1.0 if method == "UDA" else 0.0)  # sharpening and threshold off, as the paper's code
    losses = []
    with seeded(seed) as generator:
        model = Reader(texts.idf)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = labelled[torch.randint(len(labelled), (32,), generator=generator)]
            words = texts.words[rows]
            if method == "labels, augmented":
                words = augment(words, texts.idf, 0.4, generator)
            pair = {}
            if method == "UDA":
                original = texts.words[others[torch.randint(len(others), (96,), generator=generator)]]
                pair = {"original": model(original), "augmented": model(augment(original, texts.idf, 0.4, generator))}
            loss = loss_of(logits=model(words), labels=texts.classes[rows], **pair)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            tick()
    return model.eval(), losses


def split(texts: Texts, labels: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with a label (`labels` of each class), without, and held out."""
    order = torch.randperm(len(texts.classes), generator=torch.Generator().manual_seed(seed))
    train_rows, held_out = order[TEST:], order[:TEST]
    labelled = torch.cat([train_rows[texts.classes[train_rows] == c][:labels] for c in range(len(CLASSES))])
    return labelled, train_rows, held_out


def run(seeds: int = 3, steps: int = 400, out: Path | None = None, labels: int = 10) -> Result:
    """Train on `labels` labels a class with the three methods; `Result` compares UDA with the labels alone.

    Args: seeds: splits and initialisations.  steps: of 32 labelled rows.  out: picture file.
    Raises: BadInput, MissingExtra.
    """
    check(seeds, steps, out)
    if labels < 1:
        raise BadInput(f"labels is {labels}, but every class needs at least 1")
    clock, found = Clock(), docstrings()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    curves: dict[str, list[float]] = {}
    with progress("uda_text", seeds * len(METHODS) * steps) as tick:
        for seed in range(seeds):
            texts = tokenise(found, seed)
            labelled, others, held_out = split(texts, labels, seed)
            for method in METHODS:
                model, losses = train(method, texts, labelled, others, steps, seed, tick)
                with torch.no_grad():
                    logits, truth = model(texts.words[held_out]), texts.classes[held_out]
                accuracy = (logits.argmax(-1) == truth).double().mean().item()
                rows[method].append(dict(zip(COLUMNS, (accuracy, F.cross_entropy(logits, truth).item()), strict=True)))
                curves.setdefault(method, losses)
    if out is not None:
        picture(out, lambda figure: draw(figure, rows, curves, labels))
    return Result(
        "uda_text",
        f"{len(texts.classes)} docstrings of SciPy (BSD 3-clause), {len(CLASSES)} subpackages, {labels} labels a class",
        {"seeds": seeds, "steps": steps, "labels": labels},
        COLUMNS, rows, ("accuracy ↑", "UDA", "labels only"), curves, clock.seconds,
    )  # fmt: skip


def draw(figure: Any, rows: dict[str, list[dict[str, float]]], curves: dict[str, list[float]], labels: int) -> None:
    """Left the training losses, right the accuracy of every seed."""
    left, right = figure.subplots(1, 2)
    for place, (method, colour) in enumerate(zip(METHODS, (ORANGE, INK, BLUE), strict=True)):
        left.plot(*smooth(curves[method], 20), color=colour, label=method)
        values = [row["accuracy ↑"] for row in rows[method]]
        right.bar(place, sum(values) / len(values), 0.6, color=colour, alpha=0.5)
        right.plot([place] * len(values), values, "o", color=colour)
    left.set(title="Training loss", xlabel="step", ylabel="nats")
    left.legend()
    right.set(
        title=f"Held-out accuracy, {labels} labels a class", xticks=range(3), xticklabels=METHODS, ylabel="accuracy"
    )
