"""Three trainers of TRL with kullback's losses, on random models: python with_trl.py."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here comes from the hub

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import DistillationConfig, GRPOConfig
from trl.experimental.gkd import GKDConfig

from kullback.integrations.trl import DistillationTrainer, GKDTrainer, GRPOTrainer

PLAIN = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "save_strategy": "no"}
PLAIN |= {"per_device_train_batch_size": 4, "learning_rate": 0.03, "max_steps": 8, "logging_steps": 8}


def letters():
    """A tokenizer whose words are the letters."""
    words = ["<pad>", "<s>", "</s>", *map(chr, range(97, 123))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<pad>"}
    plain = "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=plain, **special)


def model(width, **more):
    size = {"vocab_size": 29, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(hidden_size=width, **size, **special, **more))


def gkd(student, teacher, tokenizer):
    chats = [[{"role": "user", "content": "a b"}, {"role": "assistant", "content": f"c {x} d"}] for x in "efghijkl"]
    trainer = GKDTrainer(
        student,
        teacher,
        GKDConfig(tempfile.mkdtemp(), lmbda=0.5, beta=0.5, max_new_tokens=6, **PLAIN),
        train_dataset=Dataset.from_dict({"messages": chats}),
        eval_dataset=Dataset.from_dict({"messages": chats}),
        processing_class=tokenizer,
    )
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    return before, trainer.evaluate()["eval_kl"]


def on_policy(student, teacher, tokenizer):
    trainer = DistillationTrainer(
        student,
        teacher,
        DistillationConfig(tempfile.mkdtemp(), beta=1.0, max_completion_length=6, **PLAIN),
        train_dataset=Dataset.from_dict({"prompt": [f"a {x}" for x in "bcdefghi"]}),
        eval_dataset=Dataset.from_dict({"prompt": [f"a {x}" for x in "jklmnopq"]}),
        processing_class=tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return before, trainer.evaluate()["eval_loss"]


def grpo(path, tokenizer):
    """TRL loads the reference from where the policy came from."""
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(path),
        reward_funcs=lambda completion_ids, **_: [float(ids.count(5)) for ids in completion_ids],
        args=GRPOConfig(tempfile.mkdtemp(), beta=0.1, num_generations=4, max_completion_length=6, **PLAIN),
        train_dataset=Dataset.from_dict({"prompt": [f"a {x}" for x in "bcdefghi"]}),
        processing_class=tokenizer,
    )
    trainer.train()
    return next(entry["kl"] for entry in trainer.state.log_history if "kl" in entry)


def main():
    set_seed(0)
    tokenizer, teacher = letters(), model(32, initializer_range=0.3)
    print("gkd", *gkd(model(8), teacher, tokenizer))
    print("on-policy", *on_policy(model(8), teacher, tokenizer))
    path = tempfile.mkdtemp()
    model(8).save_pretrained(path)
    print("grpo", grpo(path, tokenizer))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
