"""Distillation with heads split by classes: torchrun --nproc_per_node 2 with_tensor_parallel.py. Prints the KL."""

import torch
import torch.distributed as dist
from shared import models, steps
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from kullback import Logits, kl
from kullback.losses import Distillation


def split(model, mesh):
    """Each rank holds the weights of some classes; scores are DTensors, whose class axis is split over the mesh."""
    return parallelize_module(model, mesh, {"head": ColwiseParallel(use_local_output=False)})


def train(student, teacher, loss, optimizer, mesh):
    for step in steps():  # all ranks see the same texts
        tokens = sum((labels != -100).sum() for _, labels in step)
        for ids, labels in step:
            labels = DTensor.from_local(labels, mesh, [Replicate()])
            loss(student=student(ids), teacher=teacher(ids), labels=labels, num_items=tokens).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def evaluate(student, teacher):
    rows = []
    for step in steps():
        for ids, labels in step:
            between = kl(Logits(teacher(ids)), Logits(student(ids))).full_tensor()
            rows.append(between[labels != -100])
    if dist.get_rank() == 0:
        print(f"kl {torch.cat(rows).double().mean():.9f}", flush=True)


def main():
    dist.init_process_group("gloo")  # on GPUs: "nccl"
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))  # on GPUs: "cuda"
    student, teacher = (split(model, mesh) for model in models())
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0, foreach=False)
    evaluate(student, teacher)
    for _ in range(3):
        train(student, teacher, Distillation(temperature=2.0), optimizer, mesh)
        evaluate(student, teacher)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
