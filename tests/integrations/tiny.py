"""Random models of a few thousand weights, texts of uneven lengths, and the loss of a step written out in float64."""

import copy
import tempfile

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from kullback.integrations.transformers import DistillationTrainer

V = 61
SIZE = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": lambda **kw: LlamaConfig(**SIZE | kw),
    "qwen2": lambda **kw: Qwen2Config(**SIZE | {"tie_word_embeddings": True} | kw),
    "qwen3": lambda **kw: Qwen3Config(**SIZE | {"head_dim": 8} | kw),
    "gemma2": lambda **kw: Gemma2Config(**SIZE | {"head_dim": 8, "final_logit_softcapping": 3.0} | kw),
    "gemma3": lambda **kw: Gemma3TextConfig(**SIZE | {"head_dim": 8, "final_logit_softcapping": 3.0} | kw),
    "granite": lambda **kw: GraniteConfig(**SIZE | {"logits_scaling": 2.5} | kw),
    "hyperclovax": lambda **kw: HyperCLOVAXConfig(**SIZE | {"logits_scaling": 2.5} | kw),
    "cohere": lambda **kw: CohereConfig(**SIZE | {"logit_scale": 0.25} | kw),
    "gpt2": lambda **kw: GPT2Config(
        **{"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
        | kw
    ),
}


def model(name="llama", seed=0, **settings):
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(CONFIGS[name](**settings), attn_implementation="eager")
    return made.float()


def texts(n=32, seed=0):
    """Of 4 to 14 tokens, whose first few are a prompt, which has no labels."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        length = int(torch.randint(4, 15, (), generator=g))
        ids = torch.randint(3, V, (length,), generator=g)
        labels = ids.clone()
        labels[: int(torch.randint(0, length - 1, (), generator=g))] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def collate(rows):
    def padded(name, value):
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    mask = [{"mask": torch.ones_like(row["input_ids"])} for row in rows]
    attention = torch.nn.utils.rnn.pad_sequence([row["mask"] for row in mask], batch_first=True)
    return {"input_ids": padded("input_ids", 0), "attention_mask": attention, "labels": padded("labels", -100)}


def per_token(student, teacher, rows):
    """(tokens, V) float64 logits of both and (tokens,) labels, text by text without padding."""
    s, t, y = [], [], []
    for row in rows:
        ids, labels = row["input_ids"][None], row["labels"][1:]
        kept = labels != -100
        s.append(student(input_ids=ids).logits[0, :-1][kept])
        with torch.no_grad():
            t.append(teacher(input_ids=ids).logits[0, :-1][kept])
        y.append(labels[kept])
    return torch.cat(s).double(), torch.cat(t).double(), torch.cat(y)


def distillation(s, t, y, temperature=2.0, soft_weight=0.5):
    """Loss, soft and hard term by their formulas."""
    p, log_p = (t / temperature).softmax(-1), (t / temperature).log_softmax(-1)
    soft = temperature**2 * (p * (log_p - (s / temperature).log_softmax(-1))).sum(-1).mean()
    hard = -s.log_softmax(-1)[torch.arange(len(y)), y].mean()
    return soft_weight * soft + (1 - soft_weight) * hard, soft, hard


def reference(student, teacher, rows, formula=distillation):
    """(the formula's values, {name: gradient}) in float64."""
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    values = formula(*per_token(student, teacher, rows))
    values = values if isinstance(values, tuple) else (values,)
    values[0].backward()
    return [x.item() for x in values], {n: p.grad for n, p in student.named_parameters() if p.grad is not None}


PLAIN = {
    "report_to": "none",
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "max_steps": 1,
    "save_strategy": "no",
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 2,
}


def settings(of=TrainingArguments, **given):
    """One step of SGD with learning rate 1, in which parameters move by their gradient."""
    return of(**PLAIN | {"output_dir": tempfile.mkdtemp()} | given)


class Gradients(TrainerCallback):
    """The gradients with which the optimizer steps, of all steps."""

    def __init__(self):
        self.of = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        inner = getattr(model, "module", model)
        self.of.append({n: p.grad.clone() for n, p in inner.named_parameters() if p.grad is not None})


def trainer(student, teacher, data=None, of=DistillationTrainer, args=None, **given):
    made = of(
        model=student,
        args=args or settings(),
        train_dataset=texts() if data is None else data,
        data_collator=collate,
        teacher=teacher,
        **given,
    )
    made.remove_callback(PrinterCallback)
    return made


def stepped(student, teacher, data=None, **given):
    """(what was logged of the first step, {name: parameters before less after}) of one step."""
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    made = trainer(student, teacher, data, **given)
    made.train()
    return made.state.log_history[0], {
        n: before[n].double() - p.detach().double() for n, p in student.named_parameters()
    }


def ratio(step, gradients):
    """<step, gradient> / <gradient, gradient> over all parameters: 1 for SGD with learning rate 1."""
    return float(
        sum((step[n] * g).sum() for n, g in gradients.items()) / sum((g * g).sum() for g in gradients.values())
    )


def off(step, gradients):
    """‖step - gradient‖ / ‖gradient‖ over all parameters."""
    return float(
        (
            sum((step[n] - g).square().sum() for n, g in gradients.items())
            / sum(g.square().sum() for g in gradients.values())
        ).sqrt()
    )
