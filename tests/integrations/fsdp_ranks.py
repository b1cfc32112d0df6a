"""Run by torchrun on two gloo ranks: the Trainer with students that FSDP2 has sharded; rank 0 writes their steps.

Accelerate wraps a model in DistributedDataParallel on a CPU, whatever `TrainingArguments(fsdp=True)` says; so the
Trainer gets models that are sharded when they come: by transformers at load, whose head is a unit of its own and stays
whole, or as accelerate would, a unit for each block and the head with the root.
"""

import copy
import sys

import tiny
import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import fully_shard
from transformers.distributed import DistributedConfig

from kullback import FormError


def loaded(folder):
    config = DistributedConfig(fsdp_size=2)
    made = transformers.AutoModelForCausalLM
    return made.from_pretrained(folder, distributed_config=config, attn_implementation="eager")


def by_blocks(student):
    for block in student.model.layers:
        fully_shard(block)
    return taken_as_it_is(fully_shard(student))


def head_in_shards(student):
    fully_shard(student.lm_head, reshard_after_forward=True)
    return taken_as_it_is(fully_shard(student))


def taken_as_it_is(model):
    """As the Trainer takes a model that transformers has sharded."""
    type(model).is_distributed_loading_by_transformers = True
    model._is_fsdp_managed_module = True
    model.config.distributed_config = DistributedConfig(fsdp_size=2)
    return model


def whole(model):
    return {name: p.detach().full_tensor().clone() for name, p in model.named_parameters()}


def main(out, folder):
    dist.init_process_group("gloo")
    found = {}
    for name in ("llama", "qwen2"):  # a head of its own, and one tied to the embedding
        student, teacher = tiny.model(name, seed=1), tiny.model(name, seed=2)
        student.save_pretrained(f"{folder}/{name}")  # by rank 0 alone
        dist.barrier()
        for layout in ("loaded", "by blocks"):
            for fused in (True, False, None):
                model = loaded(f"{folder}/{name}") if layout == "loaded" else by_blocks(copy.deepcopy(student))
                before = whole(model)
                args = tiny.settings(gradient_accumulation_steps=2)
                made = tiny.trainer(model, teacher, args=args, fused=fused, eval_dataset=tiny.texts(7))
                evaluated = made.evaluate() if fused else None
                made.train()
                (logged,) = (entry for entry in made.state.log_history if "loss" in entry)
                step = {n: before[n].double() - p.double() for n, p in whole(model).items()}
                found[name, layout, fused] = {"logged": logged, "step": step, "evaluated": evaluated}
    try:
        tiny.trainer(head_in_shards(tiny.model(seed=1)), tiny.model(seed=2)).train()
    except FormError as error:
        found["refused"] = str(error)
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
