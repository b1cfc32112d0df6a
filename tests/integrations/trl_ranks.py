"""Run by torchrun on two gloo ranks: a step of each trainer of TRL, of theirs and of ours; rank 0 writes them."""

import copy
import random
import sys

import tiny
import torch
import trl_tiny as it


def everyone(batches):
    """The batches of all ranks."""
    found = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, batches)
    return [batch for of_rank in found for batch in of_rank]


def main(out, folder):
    found = {}
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    twice = {"gradient_accumulation_steps": 2}
    for name, of, lmbda in (("theirs", it.TheirGKDTrainer, 0), ("ours", it.RecordedGKD, 0), ("own", it.RecordedGKD, 1)):
        model = copy.deepcopy(student)
        made = it.gkd_trainer(of, model, teacher, lmbda=float(lmbda), per_device_train_batch_size=8, **twice)
        random.seed(0)
        torch.manual_seed(lmbda * torch.distributed.get_rank())  # so that ranks generate differently
        logged, step = it.stepped(made, model)
        found[name] = {"logged": logged, "step": step, "seen": everyone(getattr(made, "seen", []))}
        if name == "ours":
            found[name]["evaluated"] = it.gkd_trainer(of, copy.deepcopy(student), teacher).evaluate()
    model = copy.deepcopy(student)
    made = it.distillation_trainer(it.RecordedDistillation, model, teacher, **twice)
    logged, step = it.stepped(made, model)
    found["distillation"] = {"logged": logged, "step": step, "seen": everyone(made.seen)}
    found["distillation"]["metrics"] = made.evaluate()
    found["distillation"]["evaluated"] = everyone(made.evaluated)
    found["distillation"]["after"] = {n: x.clone() for n, x in model.state_dict().items()}
    reference, policy = it.policies(f"{folder}/reference")
    made = it.grpo_trainer(it.RecordedGRPO, policy, **twice)
    before = copy.deepcopy(policy)
    logged, step = it.stepped(made, policy)
    found["grpo"] = {"logged": logged, "step": step, "seen": everyone(made.seen)}
    if torch.distributed.get_rank() == 0:
        found["grpo"]["models"] = [before.state_dict(), reference.state_dict()]
        torch.save(found, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
