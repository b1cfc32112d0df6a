"""Asking a model of transformers for what a cache keeps, without ever holding the scores of all positions."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.sparse import draw, top_k
from kullback.language.heads import ASKED, Head, head_of, prove

from .format import CacheSettings
from .writer import Forms, Task

CELLS = 1 << 22  # scores at once


class ModelTeacher:
    """Describes windows as the settings say. Where the head is a plain linear one, scores are made of the last hidden
    states, some rows at a time, and compared with the model's own in the first batch; else of one window at a time.
    """

    def __init__(self, model: Any, settings: CacheSettings) -> None:
        self.model, self.settings = model, settings
        found = head_of(model)
        self._head: Head | None = found if isinstance(found, Head) else None
        self._proven = False

    @torch.no_grad()
    def __call__(self, tasks: Sequence[Task]) -> list[Forms]:
        """See `writer.Teacher`."""
        ids, mask = self._batch(tasks)
        if self._head is not None:
            outputs = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **ASKED)
            hidden = outputs.hidden_states[-1]
            if self._proves(hidden, outputs.logits):
                return [self._kept(task, hidden[i, : len(task.window.ids)]) for i, task in enumerate(tasks)]
        found = []
        for i, task in enumerate(tasks):
            length = len(task.window.ids)
            scores = self.model(input_ids=ids[i : i + 1, :length], use_cache=False).logits[0]
            found.append(self._kept(task, scores))
        return found

    def _batch(self, tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
        """Filled up on the right, which a causal model does not see."""
        lengths = torch.tensor([len(task.window.ids) for task in tasks])
        ids = torch.zeros(len(tasks), int(lengths.max()), dtype=torch.long)
        for row, task in zip(ids, tasks, strict=True):
            row[: len(task.window.ids)] = torch.tensor(task.window.ids)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return ids.to(self.model.device), mask.to(self.model.device)

    def _proves(self, hidden: Tensor, scores: Tensor) -> bool:
        if not self._proven and self._head is not None:
            try:
                self._proven = prove("teacher", self._head, hidden, scores)
            except FormError:  # it makes its scores in a way of its own
                self._head = None
        return self._head is not None

    def _kept(self, task: Task, states: Tensor) -> Forms:
        """Of hidden states, or of scores, of each position."""
        settings = self.settings
        states = states[torch.from_numpy(task.described).to(states.device)]
        if settings.policy == "top-k":
            return [top_k(x, settings.k, tail="bucket", temperature=settings.temperature) for x in self._scores(states)]
        assert settings.seed is not None
        generator = task.generator(settings.seed, states.device)
        return [
            draw(x, settings.k, generator=generator, temperature=settings.temperature) for x in self._scores(states)
        ]

    def _scores(self, states: Tensor) -> Iterator[Tensor]:
        step = max(1, CELLS // self.settings.num_classes)
        for start in range(0, len(states), step):
            part = states[start : start + step]
            yield part if self._head is None else self._head.form(part).logits().data
