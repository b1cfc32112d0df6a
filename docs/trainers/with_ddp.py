"""Distillation under DistributedDataParallel: torchrun --nproc_per_node 2 with_ddp.py. Prints the KL."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from shared import models, steps
from torch.nn.parallel import DistributedDataParallel

from kullback import Logits
from kullback.losses import Distillation
from kullback.metrics import Divergence


def train(model, teacher, loss, optimizer, rank, ranks):
    for step in steps(rank, ranks):
        tokens = sum((labels != -100).sum() for _, labels in step)
        dist.all_reduce(tokens)  # of the whole step, over micro-batches and ranks
        for k, (ids, labels) in enumerate(step):
            with nullcontext() if k == len(step) - 1 else model.no_sync():
                part = loss(student=model(ids), teacher=teacher(ids), labels=labels, num_items=tokens)
                (ranks * part).backward()  # DDP takes the mean over ranks; the parts are to be added up
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def evaluate(model, teacher, rank, ranks):
    metric = Divergence()
    for step in steps(rank, ranks):
        for ids, labels in step:
            metric.update(Logits(teacher(ids)), Logits(model(ids)), mask=labels != -100)
    found = metric.compute()  # of the tokens of all ranks
    if rank == 0:
        print(f"kl {found.mean:.9f}", flush=True)


def main():
    dist.init_process_group("gloo")  # on GPUs: "nccl"
    rank, ranks = dist.get_rank(), dist.get_world_size()
    student, teacher = models()
    model = DistributedDataParallel(student)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    evaluate(model, teacher, rank, ranks)
    for _ in range(3):
        train(model, teacher, Distillation(temperature=2.0), optimizer, rank, ranks)
        evaluate(model, teacher, rank, ranks)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
