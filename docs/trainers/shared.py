"""What the scripts beside this one train: a student and a teacher of some hundred weights, and uneven texts."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

V, WIDTH = 50, 16


class Model(nn.Module):
    """A causal language model in small: the scores of the next token from the mean of the tokens so far."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, WIDTH)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, V, bias=False)

    def hidden(self, ids: Tensor) -> Tensor:
        seen = torch.arange(1, ids.shape[1] + 1)[:, None]
        return torch.tanh(self.body(self.embedding(ids).cumsum(1) / seen))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(ids))


def models() -> tuple[Model, Model]:
    """(student, teacher), the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, teacher = Model(), Model()
    teacher.head.weight.data *= 6
    return student, teacher.requires_grad_(False)


def texts() -> list[Tensor]:
    """Token ids, 3 to 12 each."""
    g = torch.Generator().manual_seed(1)
    return [torch.randint(V, (int(torch.randint(3, 13, (), generator=g)),), generator=g) for _ in range(32)]


def batch_of(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(ids, labels), padded: labels are the tokens that follow, -100 where none does."""
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = nn.utils.rnn.pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=-100)
    return ids, nn.functional.pad(labels, (0, ids.shape[1] - labels.shape[1]), value=-100)


def steps(rank: int = 0, ranks: int = 1) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The micro-batches of each step on this rank: of 4 texts on all ranks together, in steps of 3, 3 and 2."""
    rows = texts()
    batches = [batch_of(rows[k + rank : k + 4 : ranks]) for k in range(0, 32, 4)]
    yield from (batches[k : k + 3] for k in (0, 3, 6))
