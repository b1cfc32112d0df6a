"""What `kullback compare` costs on top of running the two models, and how its memory grows with the text.

    python bench/compare.py

Models are random Llamas of stated sizes; the candidate is the reference a little off. Cost: CPU seconds (user and
system, one thread) of a comparison, its per-token Parquet included, over those of the two models' own forward passes to
whole logits on the same batches; both are run in turn, and the median of the ratios is given. Memory: largest resident
set of a process of its own that compares so many tokens and computes all statistics. Writes docs/compare.json and into
docs/compare.md.
"""

import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kullback.kit.files import write_bytes, write_json
from kullback.models.measuring import measure
from kullback.models.sides import ModelSide
from kullback.models.table import Writer
from kullback.models.text import Batch, Piece, batches

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FOUND = DOCS / "compare.md", DOCS / "compare.json"
BEGIN, END = "<!-- written by bench/compare.py -->\n", "<!-- until here -->\n"
# hidden size, layers, classes, tokens in a piece, pieces, rounds
COST = (
    (192, 4, 2048, 128, 8, 5),
    (512, 8, 32000, 256, 1, 3),
    (1024, 16, 32000, 256, 1, 2),
    (1024, 12, 128256, 256, 1, 1),
)
MEMORY = (10_000, 40_000, 160_000, 320_000)
BATCH = 4


class Random:
    """Random tokens in documents of four pieces each."""

    def __init__(self, tokens: int, context: int, classes: int) -> None:
        self.tokens, self.context, self.classes = tokens, context, classes

    def pieces(self) -> Iterator[Piece]:
        generator = torch.Generator().manual_seed(0)
        for i in range(self.tokens // (self.context - 1)):
            ids = torch.randint(self.classes, (self.context,), generator=generator).tolist()
            yield Piece(i // 4, ids, 1, 1 + (i % 4) * (self.context - 1))

    def names(self) -> Iterator[tuple[str, int]]:
        many = self.tokens // (self.context - 1)
        return ((f"document {i}", 4 * self.context) for i in range(-(-many // 4)))


def models(hidden: int, layers: int, classes: int, context: int) -> tuple[ModelSide, ModelSide]:
    config = LlamaConfig(
        vocab_size=classes,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    reference = LlamaForCausalLM(config).eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        for p in candidate.parameters():
            p.add_(0.01 * p.std() * torch.randn_like(p) if p.dim() > 1 else 0.0)
    return ModelSide(reference, "reference"), ModelSide(candidate, "candidate")


@torch.no_grad()
def alone(sides: tuple[ModelSide, ModelSide], batch: Batch) -> float:
    """CPU seconds of both models' forward passes."""
    ids, mask = batch.inputs()
    start = time.process_time()
    for side in sides:
        side.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return time.process_time() - start


def together(sides: tuple[ModelSide, ModelSide], batch: Batch, writer: Writer) -> float:
    """CPU seconds of comparing them."""
    start = time.process_time()
    rows = [side.rows(batch) for side in sides]
    writer.append(measure(batch, rows[0], rows[1:])[0])
    return time.process_time() - start


def cost(hidden: int, layers: int, classes: int, context: int, pieces: int, rounds: int) -> dict[str, Any]:
    sides = models(hidden, layers, classes, context)
    size = min(BATCH, pieces)
    found = list(batches(Random(pieces * (context - 1), context, classes), size))
    ratios, seconds = [], []
    with tempfile.TemporaryDirectory() as folder, Writer(Path(folder, "tokens.parquet")) as writer:
        for round_ in range(rounds + 1):
            one, both = (
                sum(run(batch) for batch in found)
                for run in (lambda b: alone(sides, b), lambda b: together(sides, b, writer))
            )
            if round_:  # the first one warms up
                ratios.append(both / one)
                seconds.append(one)
    return {
        "hidden": hidden, "layers": layers, "classes": classes, "context": context,
        "parameters": sum(p.numel() for p in sides[0].model.parameters()),
        "milliseconds": 1e3 * statistics.median(seconds) / (pieces * (context - 1)),
        "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
    }  # fmt: skip


def peak() -> float:
    """The largest resident set of this process so far, MiB; ru_maxrss would remember what forked it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def memory(tokens: int) -> dict[str, Any]:
    """In this process: compare so many tokens, and compute the statistics."""
    from kullback.models.statistics import summarize
    from kullback.models.table import Columns

    sides = models(64, 2, 2048, 256)
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokens.parquet")
        with Writer(path) as writer:
            for batch in batches(Random(tokens, 256, 2048), BATCH):
                together(sides, batch, writer)
        running = peak()
        size = path.stat().st_size
        summarize(Columns(path))
        after = peak()
    return {"tokens": tokens, "models": before, "running": running, "statistics": after, "parquet": size}


def page(found: dict[str, Any]) -> str:
    """The part of docs/compare.md that holds measured numbers."""
    lines = [
        BEGIN,
        f"`python bench/compare.py`, {found['machine']}, one thread, torch {found['torch']}, {found['date']}; other "
        "work shared the machine.\n\n",
        "| model (hidden, layers, V) | parameters | both models alone, ms a token | comparing adds | in the rounds |\n"
        "| --- | --- | --- | --- | --- |\n",
        *(
            f"| {c['hidden']}, {c['layers']}, {c['classes']:,} | {c['parameters'] / 1e6:.1f} million "
            f"| {c['milliseconds']:.2f} | {100 * (c['ratio'] - 1):.0f} % "
            f"| {100 * (c['least'] - 1):.0f} to {100 * (c['most'] - 1):.0f} % |\n"
            for c in found["cost"]
        ),
        "\n| tokens | largest resident set while running, MiB | after all statistics | Parquet, MiB |\n"
        "| --- | --- | --- | --- |\n",
        *(
            f"| {m['tokens']:,} | {m['running']:.0f} | {m['statistics']:.0f} | {m['parquet'] / 2**20:.0f} |\n"
            for m in found["memory"]
        ),
        END,
    ]
    return "".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--memory"]:
        print(json.dumps(memory(int(sys.argv[2]))))
        return
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": str(torch.__version__),
        "date": date.today().isoformat(),
        "cost": [cost(*each) for each in COST],
        "memory": [],
    }
    for tokens in MEMORY:
        command = [sys.executable, __file__, "--memory", str(tokens)]
        found["memory"].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    write_json(FOUND, found)
    text = PAGE.read_text(encoding="utf-8")
    if BEGIN in text:
        text = text[: text.index(BEGIN)] + page(found) + text[text.index(END) + len(END) :]
        write_bytes(PAGE, text.encode())
    print(page(found))


if __name__ == "__main__":
    main()
