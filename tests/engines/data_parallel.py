"""A model of which every rank sees some rows: DDP and FSDP2 around a loss of hidden states. Run by test_linear.py.

Each rank prints the largest difference of any gradient from that of one process which sees all rows.
"""

import copy
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from kullback import LinearLogits, Logits
from kullback.losses import Distillation

RANKS, ROWS, CLASSES, HIDDEN = 2, 12, 23, 8


class Student(nn.Module):
    """Gives hidden states, or the loss of its head's distributions, whose scores are never whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, HIDDEN)
        self.body = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, ids: Tensor, teacher: Logits | None = None, labels: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(self.body(self.embedding(ids)))
        return hidden if teacher is None else loss_of(self, hidden, teacher, labels)


def loss_of(student: Student, hidden: Tensor, teacher: Logits, labels: Tensor | None) -> Tensor:
    form = LinearLogits(hidden, student.head.weight, student.head.bias)
    return Distillation(2.0)(student=form, teacher=teacher, labels=labels, num_items=ROWS)


def work(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    whole = Student()
    ids, scores = torch.randint(CLASSES, (ROWS,)), torch.randn(ROWS, CLASSES)
    labels = torch.randint(CLASSES, (ROWS,))
    plain = whole.head(whole(ids))
    Distillation(2.0)(student=plain, teacher=scores, labels=labels, num_items=ROWS).backward()
    mine = slice(0, 5) if rank == 0 else slice(5, ROWS)
    asked = ids[mine], Logits(scores[mine]), labels[mine]

    def differ(model: nn.Module) -> float:
        found = (p.grad for p in model.parameters())
        pairs = zip(found, whole.parameters(), strict=True)
        return max(
            float(((g.full_tensor() if hasattr(g, "full_tensor") else g) - p.grad).abs().max()) for g, p in pairs
        )

    def fresh() -> Student:
        model = copy.deepcopy(whole)
        model.zero_grad()
        return model

    ddp = DistributedDataParallel(fresh())
    (RANKS * ddp(*asked)).backward()  # both average over the ranks
    said = [f"ddp {differ(ddp.module)}"]
    for where in ("inside", "outside"):
        model = fresh()
        fully_shard(model.body)
        fully_shard(model)
        loss = model(*asked) if where == "inside" else loss_of(model, model(asked[0]), *asked[1:])
        (RANKS * loss).backward()
        said.append(f"fsdp2 {where} {differ(model)}")
    alone = fresh()
    fully_shard(alone.head)
    fully_shard(alone)
    try:
        loss_of(alone, alone(asked[0]), *asked[1:])
    except ValueError as error:
        said.append(f"refused {'root' in str(error)}")
    dist.destroy_process_group()
    sys.stdout.write("".join(f"{line}\n" for line in said))  # in one piece


if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[1],), nprocs=RANKS)
