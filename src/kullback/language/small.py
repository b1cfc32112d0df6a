"""A small language model with its tokenizer, trained here in about a minute: for demonstrations and tests."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kullback._errors import BadInput
from kullback.kit.extras import extra

from .documents import Document, docstrings, split
from .loading import quiet
from .windows import IGNORED, Window, token_ids, windows

VOCABULARY = 2048
CONTEXT = 128
HELD_OUT = 0.1  # of the documents
PAD, BEGIN = "<pad>", "<s>"
STEPS = 500
WARM_UP = 0.05  # of the steps
FEWEST_TOKENS = 300  # of a byte-level vocabulary: 256 bytes, two special tokens, a few merges


@dataclass(frozen=True)
class Size:
    """Of a Llama."""

    hidden: int
    layers: int
    heads: int

    def config(self, vocabulary: int, context: int) -> Any:
        """LlamaConfig; embeddings are tied to the head."""
        return extra("transformers", of="lm").LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )


TEACHER = Size(hidden=128, layers=3, heads=4)


class Kept(Protocol):
    """Where a training that may be interrupted leaves how far it came."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: Callable[[], dict[str, Any]]) -> None: ...


def small_teacher(
    out: str | Path,
    *,
    seed: int = 0,
    steps: int = STEPS,
    texts: Sequence[Document] | None = None,
    size: Size = TEACHER,
    vocabulary: int = VOCABULARY,
    context: int = CONTEXT,
    batch: int = 16,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    kept: Kept | None = None,
) -> Path:
    """Train a tokenizer and a small Llama, and save both as a folder that transformers loads.

    With the defaults about a minute on two cores. Without `texts` it learns from the training part of `docstrings()`;
    the held-out part is `split(docstrings(), HELD_OUT)[1]`.

    Args:
        out: the folder; made if need be.
        texts: the documents to train on, all of them.
        on_step: called with (steps done, steps in all).
        kept: a training that was interrupted goes on from there, to the same weights.
    Returns: `out`.
    """
    if texts is None:
        texts, _ = split(docstrings(), HELD_OUT)
    tokenizer = train_tokenizer((document.text for document in texts), vocabulary)
    rows = [window for document in texts for window in windows(token_ids(tokenizer, document.text), context)]
    model = new_model(size.config(len(tokenizer), context), seed)
    train(model, rows, steps=steps, batch=batch, seed=seed, on_step=on_step, kept=kept)
    return save(model, tokenizer, out)


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """A byte-level BPE tokenizer of at most so many tokens: any text becomes tokens and comes back as it was.

    It sets `<s>` before each text; ids 0 and 1 are `<pad>` and `<s>`.
    """
    if vocabulary < FEWEST_TOKENS:
        raise BadInput(
            f"the vocabulary is {vocabulary} tokens, but 256 of them are bytes: write {FEWEST_TOKENS} or more"
        )
    parts = extra("tokenizers", of="lm")
    tokenizer = parts.Tokenizer(parts.models.BPE())
    tokenizer.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = parts.decoders.ByteLevel()
    trainer = parts.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN],
        initial_alphabet=parts.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = parts.processors.TemplateProcessing(f"{BEGIN} $A", special_tokens=[(BEGIN, 1)])
    return extra("transformers", of="lm").PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=BEGIN,
        clean_up_tokenization_spaces=False,
    )


def new_model(config: Any, seed: int) -> Any:
    """A causal language model with weights drawn from `seed`; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return extra("transformers", of="lm").AutoModelForCausalLM.from_config(config).float()


def train(
    model: Any,
    rows: Sequence[Window],
    *,
    steps: int,
    batch: int,
    seed: int,
    learning_rate: float = 4e-3,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    kept: Kept | None = None,
) -> None:
    """AdamW on the labels of windows, `batch` a step, in an order drawn from `seed`; a warm-up, then a cosine to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    order, first = draw_order(len(rows), steps * batch, seed), 0
    if kept is not None and (before := kept.load()) is not None:
        first = before["steps"]
        model.load_state_dict(before["model"])
        optimizer.load_state_dict(before["optimizer"])
    model.train()
    for step in range(first, steps):
        on_step(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps)
        ids, labels = collate([rows[i] for i in order[step * batch : (step + 1) * batch]])
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if kept is not None and step + 1 < steps:
            done = step + 1
            kept.save(
                lambda done=done: {  # type: ignore[misc]
                    "steps": done,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
            )
    on_step(steps, steps)
    model.eval()


def draw_order(many: int, count: int, seed: int) -> list[int]:
    """`count` places among `many`, each as often as any other but for the last round.

    >>> sorted(draw_order(3, 6, seed=0))
    [0, 0, 1, 1, 2, 2]
    """
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(many, generator=generator) for _ in range(-(-count // many))]
    found: list[int] = torch.cat(rounds)[:count].tolist() if rounds else []
    return found


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: rises over the first twentieth of the steps, then falls along a cosine.

    >>> [round(schedule(step, 100), 3) for step in (0, 4, 5, 52, 99)]
    [0.2, 1.0, 1.0, 0.508, 0.0]
    """
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def collate(rows: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """(B, T) ids and labels, filled up on the right, where a causal model cannot see it; labels are -100 there."""
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (length - len(row.ids)) for row in rows])
    return ids, labels


def save(model: Any, tokenizer: Any, out: str | Path) -> Path:
    """As a folder of transformers: config.json, model.safetensors, tokenizer.json."""
    out = Path(out)
    with quiet():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return out
