"""Distillation under FSDP2, from hidden states: torchrun --nproc_per_node 2 with_fsdp2.py. Prints the KL."""

import torch
import torch.distributed as dist
from shared import models, steps
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from kullback import LinearLogits
from kullback.losses import Distillation
from kullback.metrics import Divergence


def sharded(model):
    """Blocks are units of their own; the head is not: it stays in the root's group, whole while the loss reads it."""
    fully_shard(model.body)
    fully_shard(model)
    register_fsdp_forward_method(model, "hidden")
    return model


def scores(model, ids):
    """The distributions of the next tokens; their logits exist a few rows at a time, inside the loss."""
    hidden = model.hidden(ids)  # first: it gathers the weights
    return LinearLogits(hidden, model.head.weight)


def train(model, teacher, loss, optimizer, rank, ranks):
    for step in steps(rank, ranks):
        tokens = sum((labels != -100).sum() for _, labels in step)
        dist.all_reduce(tokens)  # of the whole step, over micro-batches and ranks
        for k, (ids, labels) in enumerate(step):
            model.set_requires_gradient_sync(k == len(step) - 1)
            part = loss(student=scores(model, ids), teacher=scores(teacher, ids), labels=labels, num_items=tokens)
            (ranks * part).backward()  # FSDP2 takes the mean over ranks; the parts are to be added up
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def evaluate(model, teacher, rank, ranks):
    metric = Divergence()
    for step in steps(rank, ranks):
        for ids, labels in step:
            metric.update(scores(teacher, ids), scores(model, ids), mask=labels != -100)
    found = metric.compute()  # of the tokens of all ranks
    if rank == 0:
        print(f"kl {found.mean:.9f}", flush=True)


def main():
    dist.init_process_group("gloo")  # on GPUs: "nccl"
    rank, ranks = dist.get_rank(), dist.get_world_size()
    student, teacher = map(sharded, models())
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    evaluate(student, teacher, rank, ranks)
    for _ in range(3):
        train(student, teacher, Distillation(temperature=2.0), optimizer, rank, ranks)
        evaluate(student, teacher, rank, ranks)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
