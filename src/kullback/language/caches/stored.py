"""A teacher whose answers are stored: windows of tokens with the classes that the teacher gave to each position.

`StoredTeacher` is what a trainer sees of a cache, whatever wrote it: a dataset, a collator, and a callable that turns
the teacher's columns of a batch into a form.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kullback._errors import FormError
from kullback.forms.sparse import TAILS, Drawn, Tail, TopK
from kullback.language.windows import IGNORED

from .format import Numbers, Policy

IDS, LOG_PROBS, COUNTS = "teacher_ids", "teacher_log_probs", "teacher_counts"
TOKENS = "teacher_tokens"  # the tokens again, by which a batch is checked: rows stand beside their tokens
NONE = -1  # stands in teacher_ids where a position has no row, or fewer classes than another


class Row(NamedTuple):
    """A window of L tokens. teacher_ids (L, m) long, NONE where there is nothing; log_probs (L, m); counts or None."""

    document: str
    number: int
    """Of the document."""
    start: int
    """The window's first token, in its document."""
    input_ids: Tensor
    labels: Tensor
    """(L,), -100 where the token is not scored; not shifted."""
    teacher_ids: Tensor
    teacher_log_probs: Tensor
    teacher_counts: Tensor | None

    def item(self) -> dict[str, Tensor]:
        """What a trainer takes."""
        found = {"input_ids": self.input_ids, "labels": self.labels}
        found |= {TOKENS: self.input_ids, IDS: self.teacher_ids, LOG_PROBS: self.teacher_log_probs}
        return found if self.teacher_counts is None else found | {COUNTS: self.teacher_counts}


class StoredTeacher:
    """Windows by number, and forms of them. What stores them says `num_classes`, `policy`, `row`, and their documents.

    Args: tail: what a `TopK` says of the classes that are not listed; None for drawn ones.
    """

    num_classes: int
    policy: Policy
    temperature: float
    """At which the teacher was kept: a loss that is given these forms takes teacher_temperature=1."""
    tail: Tail | None
    tokenizer_hash: str | None

    def __len__(self) -> int:
        raise NotImplementedError

    def row(self, place: int) -> Row:
        """The window of that number, from 0."""
        raise NotImplementedError

    def document_numbers(self) -> Numbers:
        """(len,): the document of each window, in order."""
        raise NotImplementedError

    @property
    def columns(self) -> tuple[str, ...]:
        """What the teacher takes of a batch, and the student does not."""
        return (TOKENS, IDS, LOG_PROBS, COUNTS)[: 4 if self.policy == "drawn" else 3]

    def order(self, seed: int | None = None) -> Numbers:
        """The windows' numbers, with the documents shuffled by a seed and each document's windows in their order."""
        documents = self.document_numbers()
        if seed is None:
            return np.arange(len(documents))
        different, place = np.unique(documents, return_inverse=True)
        rank = np.random.default_rng(seed).permutation(len(different))
        found: Numbers = np.argsort(rank[place], kind="stable")
        return found

    def rows(self, seed: int | None = None) -> Iterator[Row]:
        """All windows, once, in the order of `order`."""
        return (self.row(int(place)) for place in self.order(seed))

    def dataset(self, seed: int | None = None) -> "Windows":
        """For a `DataLoader` or a Trainer: items with input_ids, labels and `columns`, in the order of `order`."""
        return Windows(self, self.order(seed))

    def form(self, row: Row) -> TopK | Drawn:
        """The distributions of a window, one for each position that is scored: the token after it is labels[t + 1]."""
        kept = row.teacher_ids[:, 0] != NONE
        counts = None if row.teacher_counts is None else row.teacher_counts[kept]
        return self._form(row.teacher_ids[kept], row.teacher_log_probs[kept], counts)

    def collator(self, pad_token_id: int = 0) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]:
        """Makes a batch of items: filled up on the right, with attention_mask, labels -100 and no teacher there."""
        return Collator(pad_token_id)

    def __call__(self, inputs: Mapping[str, Any]) -> TopK | Drawn:
        """The teacher of a batch, (batch, length): row t is of the token t + 1, as in a model's own logits.

        Positions without a row hold a distribution that means nothing; their labels are -100, and a loss drops them.

        Raises: FormError: a column is missing, or does not stand beside its tokens.
        """
        if missing := [name for name in self.columns if not isinstance(inputs.get(name), Tensor)]:
            raise FormError(
                f"{type(self).__name__}: the batch has no {', '.join(missing)}. Take it from dataset() through "
                "collator(), and keep its columns (remove_unused_columns=False)."
            )
        ids, log_probs, tokens = inputs[IDS], inputs[LOG_PROBS], inputs["input_ids"]
        if ids.shape[:-1] != tokens.shape or inputs[TOKENS].shape != tokens.shape:
            raise FormError(
                f"{type(self).__name__}: {IDS} have rows of shape {tuple(ids.shape[:-1])}, but input_ids "
                f"{tuple(tokens.shape)}: there is a row for each token. Batch them by collator()."
            )
        if isinstance(labels := inputs.get("labels"), Tensor):
            wanted = torch.nn.functional.pad(labels[..., 1:] != IGNORED, (0, 1))
            lost = wanted & ((ids[..., 0] == NONE) | (inputs[TOKENS] != tokens))
            if bool(lost.any()):
                where = tuple(int(i) for i in lost.nonzero()[0])
                raise FormError(
                    f"{type(self).__name__}: the token after position {where} has a label, but the teacher no row for "
                    "it. Labels are those of dataset(), or -100 in more places; batches are made by collator()."
                )
        return self._form(*_filled(ids, log_probs, inputs.get(COUNTS)))

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises: FormError: the cache is of another tokenizer. One that does not know its own accepts any."""
        from kullback.language.fingerprints import tokenizer_hash

        if self.tokenizer_hash is not None and (here := tokenizer_hash(tokenizer)) != self.tokenizer_hash:
            raise FormError(
                f"{type(self).__name__}: the teacher's ids are of another tokenizer ({self.tokenizer_hash[:12]}) than "
                f"the student's ({here[:12]}): class i must be the same token on both sides. Distil between models of "
                "one tokenizer."
            )

    def check_tail(self) -> None:
        """Raises: FormError: no tail for a top k, or one for what was drawn."""
        if self.policy == "drawn" and self.tail is not None:
            raise FormError(f"{type(self).__name__}: drawn classes have no tail; leave tail={self.tail!r} out.")
        if self.policy == "top-k" and self.tail not in TAILS:
            said = "no tail is given" if self.tail is None else f"tail is {self.tail!r}"
            raise FormError(
                f"{type(self).__name__}: {said}, but what the classes that are not listed have changes the number. "
                "Write tail='bucket' (one event: a lower bound), tail='even' (equal shares) or tail='renormalize' "
                "(nothing)."
            )

    def _form(self, ids: Tensor, log_probs: Tensor, counts: Tensor | None) -> TopK | Drawn:
        if self.policy == "top-k":
            return TopK(ids, log_probs, self.num_classes, tail=self.tail, validate=False)
        return Drawn(ids.clamp(min=0), log_probs, self.num_classes, counts=counts, validate=False)


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of a stored teacher in an order: what `StoredTeacher.dataset` gives."""

    def __init__(self, teacher: StoredTeacher, order: Numbers) -> None:
        self.teacher, self.order = teacher, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return self.teacher.row(int(self.order[place])).item()


class Collator:
    """See `StoredTeacher.collator`."""

    def __init__(self, pad_token_id: int = 0) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        length = max(len(item["input_ids"]) for item in items)
        width = max(item[IDS].shape[-1] for item in items)

        def padded(name: str, value: float, wide: bool = False) -> Tensor:
            rows = [torch.as_tensor(item[name]) for item in items]
            made = rows[0].new_full((len(rows), length, width) if wide else (len(rows), length), value)
            for into, row in zip(made, rows, strict=True):
                into[tuple(slice(n) for n in row.shape)] = row
            return made

        batch = {"input_ids": padded("input_ids", self.pad_token_id), "labels": padded("labels", IGNORED)}
        seen = torch.tensor([len(item["input_ids"]) for item in items])
        batch["attention_mask"] = (torch.arange(length) < seen[:, None]).long()
        batch |= {TOKENS: padded(TOKENS, NONE), IDS: padded(IDS, NONE, True), LOG_PROBS: padded(LOG_PROBS, 0.0, True)}
        return batch | {COUNTS: padded(COUNTS, 0, True)} if COUNTS in items[0] else batch


def _filled(ids: Tensor, log_probs: Tensor, counts: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """With a distribution where there is no row: equal shares of the first classes, or the first one drawn once."""
    none = (ids[..., :1] == NONE).expand_as(ids)
    if isinstance(counts, Tensor):
        return ids, torch.where(none, 0.0, log_probs), torch.where(none, 1, counts)
    k = ids.shape[-1]
    return (
        torch.where(none, torch.arange(k, device=ids.device), ids),
        torch.where(none, -float(np.log(k)), log_probs),
        None,
    )


def unpadded(entries: Numbers, values: Numbers, fill: float) -> Tensor:
    """(L, m) of values in a row, of which position j has entries[j]; m is the largest of them, and at least 1."""
    width = max(int(entries.max(initial=0)), 1)
    made = np.full((len(entries), width), fill, values.dtype)
    made[np.arange(width) < entries[:, None]] = values
    return torch.from_numpy(made)
