"""What the tests of TRL's trainers share: prompts, a tokenizer, settings, and losses of recorded inputs in float64."""

import copy
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # TRL tells the hub that a trainer was made

import tiny
import torch
import transformers
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback

import kullback.integrations.trl as ours

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trl
    from trl.experimental.gkd import GKDConfig
    from trl.experimental.gkd import GKDTrainer as TheirGKDTrainer

__all__ = ["GKDConfig", "TheirGKDTrainer"]
ENDS = [2, *range(40, 61)]  # a third of the vocabulary ends a completion, so that they differ in length


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", *map(chr, range(97, 97 + tiny.V - 3))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<pad>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def settings(of, **given):
    plain = {"bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 4}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)  # TRL's own default
        return tiny.settings(of, **plain | given)


def prompts(n=16):
    g = torch.Generator().manual_seed(3)
    made = []
    for _ in range(n):
        ids = torch.randint(0, 30, (int(torch.randint(2, 6, (), generator=g)),), generator=g)
        made.append({"prompt": " ".join(chr(97 + int(i)) for i in ids)})
    return Dataset.from_list(made)


def stepped(made, student):
    """(the first log, {name: parameters before less after})."""
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    made.remove_callback(PrinterCallback)
    made.train()
    step = {n: before[n].double() - p.detach().double() for n, p in student.named_parameters()}
    return made.state.log_history[0], step


# ---------------------------------------------------------------- GKD


def completed(n=32):
    """Rows of texts, with a prompt for who generates the rest."""
    return Dataset.from_list([{k: x.tolist() for k, x in row.items()} for row in tiny.texts(n)])


def collate(rows):
    batch = tiny.collate([{k: torch.tensor(row[k]) for k in ("input_ids", "labels")} for row in rows])
    begun = {"input_ids": batch["input_ids"][:, :3], "attention_mask": batch["attention_mask"][:, :3]}
    return batch | {"prompts": begun["input_ids"], "prompt_attention_mask": begun["attention_mask"]}


def gkd_trainer(of, student, teacher, rows=32, **given):
    options = {k: given.pop(k) for k in ("fused", "loss", "num_classes") if k in given}
    made = of(
        student,
        teacher,
        settings(GKDConfig, **{"lmbda": 0.0, "beta": 0.3, "max_new_tokens": 7} | given),
        train_dataset=completed(rows),
        eval_dataset=completed(7),
        processing_class=tokenizer(),
        data_collator=collate,
        **options,
    )
    made.generation_config.eos_token_id = ENDS
    made.remove_callback(PrinterCallback)
    return made


class RecordedGKD(ours.GKDTrainer):
    """Keeps what the loss was taken of."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            self.seen = [*getattr(self, "seen", []), {k: inputs[k] for k in ("input_ids", "attention_mask", "labels")}]
        return super().compute_loss(model, inputs, *args, **kwargs)


def divergence(s, t, beta=0.3, temperature=1.0):
    """(tokens,) TRL's: JSD_beta inside, KL(t‖s) at 0, KL(s‖t) at 1, by their formulas."""
    p, q = (t / temperature).log_softmax(-1), (s / temperature).log_softmax(-1)
    if beta in (0.0, 1.0):
        one, other = (p, q) if beta == 0.0 else (q, p)
        return (one.exp() * (one - other)).sum(-1)
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return (beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)).sum(-1)


def of_batches(student, teacher, batches, formula=divergence):
    """(mean over the tokens of all batches, gradients) in float64; a batch has input_ids, attention_mask, labels."""
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    texts = [text for batch in batches for text in unpadded(batch)]
    s, t, _ = tiny.per_token(student, teacher, texts)
    loss = formula(s, t).mean()
    loss.backward()
    return loss.item(), {n: p.grad for n, p in student.named_parameters() if p.grad is not None}


def unpadded(batch):
    """Its texts one by one. (In float64 a row that attends to padding alone is NaN.)"""
    real = batch["attention_mask"].bool()
    names = ("input_ids", "labels")
    return [dict(zip(names, (batch[n][k][real[k]] for n in names), strict=True)) for k in range(len(real))]


# ---------------------------------------------------------------- on the student's own completions


class RecordedDistillation(ours.DistillationTrainer):
    """Keeps what the loss was taken of."""

    def _compute_loss(self, model, inputs, num_items_in_batch):
        if model.training:
            self.seen = [*getattr(self, "seen", []), as_batch(inputs)]
        else:
            rows = self._counted.nonzero()[:, 0]
            whole = as_batch(inputs)
            self.evaluated = [*getattr(self, "evaluated", []), {k: x[rows] for k, x in whole.items()}]
        return super()._compute_loss(model, inputs, num_items_in_batch)


def as_batch(inputs):
    """A batch whose labels are the completions."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    kept = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], dim=1).bool()
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return {"input_ids": ids, "attention_mask": attention, "labels": torch.where(kept, ids, -100)}


def distillation_trainer(of, student, teacher, **given):
    student.generation_config.eos_token_id = ENDS
    options = {"loss": given.pop("loss")} if "loss" in given else {}
    return of(
        student,
        teacher,
        settings(trl.DistillationConfig, **{"beta": 1.0, "max_completion_length": 7} | given),
        train_dataset=prompts(),
        eval_dataset=prompts(7),
        processing_class=tokenizer(),
        **options,
    )


# ---------------------------------------------------------------- GRPO


def policies(folder):
    """A reference on disk, as TRL loads it, and a policy that has moved away from it."""
    reference = tiny.model(seed=1)
    reference.generation_config.eos_token_id = ENDS
    reference.save_pretrained(folder)  # by rank 0 alone
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    policy = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    torch.manual_seed(7)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return reference, policy


def reward(prompts, completions, completion_ids, **kwargs):
    return [len(set(ids)) + 0.1 * (sum(ids) % 7) for ids in completion_ids]


def grpo_trainer(of, policy, **given):
    plain = {"beta": 0.4, "max_completion_length": 7, "num_generations": 2, "temperature": 1.0}
    return of(
        policy,
        reward_funcs=reward,
        args=settings(trl.GRPOConfig, **plain | given),
        train_dataset=prompts(),
        processing_class=tokenizer(),
    )


class RecordedGRPO(ours.GRPOTrainer):
    """Keeps what the loss was taken of, and what it was."""

    def _compute_loss(self, model, inputs):
        kept = {k: x.clone() for k, x in inputs.items() if isinstance(x, torch.Tensor)}
        self.seen = [*getattr(self, "seen", []), kept]
        return super()._compute_loss(model, inputs)


def log_probs(model, inputs):
    """(batch, length) of the completions; 0 behind their ends."""
    made = []
    for text, mask in zip(unpadded(as_batch(inputs)), inputs["completion_mask"].bool(), strict=True):
        ids, n = text["input_ids"], int(mask.sum())
        scores = model(input_ids=ids[None]).logits[0, -n - 1 : -1].log_softmax(-1)
        found = scores.gather(-1, ids[-n:, None])[:, 0]
        made.append(torch.nn.functional.pad(found, (0, len(mask) - n)))
    return torch.stack(made)


def of_tokens(policy, reference, batches, beta):
    """(loss, gradients) of the first step in float64, a mean over the tokens of all batches (dapo).

    The policy's term is -ratio · advantage; the penalty's value is k3, its gradient that of d²/2.
    """
    policy, reference = copy.deepcopy(policy).double(), copy.deepcopy(reference).double()
    loss, slope, tokens = 0.0, 0.0, 0.0
    for inputs in batches:
        log_p = log_probs(policy, inputs)
        with torch.no_grad():
            log_ref = log_probs(reference, inputs)
        d, mask, advantages = log_p - log_ref, inputs["completion_mask"].double(), inputs["advantages"][:, None]
        loss = loss + ((beta * (torch.exp(-d) - 1 + d) - advantages) * mask).sum().detach()
        slope = slope + ((beta * d**2 / 2 - advantages * log_p) * mask).sum()
        tokens = tokens + mask.sum()
    (slope / tokens).backward()
    return (loss / tokens).item(), {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
