"""Run by torchrun on two gloo ranks: steps and evaluations of ranks whose shares are uneven; rank 0 writes them."""

import copy
import sys

import tiny
import torch

from kullback import FormError
from kullback.integrations.transformers import DistillationTrainer  # noqa: F401


def main(out):
    student, teacher = tiny.model("gemma2", seed=1), tiny.model("gemma2", seed=2)
    found = {}
    for fused in (True, False):
        model = copy.deepcopy(student)
        args = tiny.settings(gradient_accumulation_steps=2)
        logged, step = tiny.stepped(model, teacher, tiny.texts(32), args=args, fused=fused)
        trainer = tiny.trainer(
            copy.deepcopy(student), teacher, args=tiny.settings(), eval_dataset=tiny.texts(7), fused=fused
        )
        found[fused] = {"logged": logged, "step": step, "evaluated": trainer.evaluate()}
    try:
        tiny.trainer(copy.deepcopy(student), teacher, args=tiny.settings(average_tokens_across_devices=False))
    except FormError as error:
        found["refused"] = str(error)
    if torch.distributed.get_rank() == 0:
        torch.save(found, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
