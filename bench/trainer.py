"""DistillationTrainer from hidden states and from whole logits, beside the formula in plain PyTorch: tokens a
second of processor time and peak memory, in the Trainer of transformers itself.

    python bench/trainer.py                 both cells, in a process each, written to docs/performance-trainer.md, .json
    python bench/trainer.py --rounds 2 --only float32

Student and teacher are Llamas of 4 layers, width 256 and V = 32000 with random weights; a step is 4 texts of 256 tokens
of which three quarters have labels, with SGD. The contenders take turns in one process: time is that of the processor
(user and system, one thread unless --threads says otherwise), the median over the rounds; peak memory is the process's
own (VmHWM) beyond what it held before the step, the least over the rounds.
"""

import argparse
import copy
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers
from transformers.trainer_callback import PrinterCallback

from kullback.integrations.transformers import DistillationTrainer
from kullback.losses import Distillation

DOCS = Path(__file__).resolve().parents[1] / "docs"
MIB = 1 << 20
LIBC = ctypes.CDLL(None)
CELLS = ("float32", "bf16")
V, WIDTH, LAYERS, TEXTS, LENGTH = 32000, 256, 4, 4, 256
NAMES = {
    "fused": "`DistillationTrainer`, from hidden states (`fused=True`)",
    "whole": "`DistillationTrainer`, from whole logits (`fused=False`)",
    "plain": "the formula in PyTorch, from whole logits",
}


def model(seed):
    torch.manual_seed(seed)
    size = {"vocab_size": V, "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": LAYERS}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, num_attention_heads=4))


def texts(n):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, V, (n, LENGTH), generator=g)
    labels = ids.clone()
    labels[:, : LENGTH // 4] = -100
    return [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]


class Plain(transformers.Trainer):
    """The two terms as they are mostly written."""

    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, compute_loss_func=self.loss_of, **kwargs)
        self.teacher = teacher.eval()

    def compute_loss(self, model, inputs, *args, **kwargs):
        with torch.no_grad(), self.accelerator.autocast():
            self.said = self.teacher(input_ids=inputs["input_ids"]).logits
        return super().compute_loss(model, inputs, *args, **kwargs)

    def loss_of(self, outputs, labels, num_items_in_batch):
        kept = labels[:, 1:] != -100
        s, t, y = outputs.logits[:, :-1][kept].float(), self.said[:, :-1][kept].float(), labels[:, 1:][kept]
        log_q, log_p = torch.log_softmax(s / 2.0, -1), torch.log_softmax(t / 2.0, -1)
        soft = 4.0 * torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
        return (0.5 * soft + 0.5 * torch.nn.functional.cross_entropy(s, y, reduction="sum")) / num_items_in_batch


class Watch(transformers.TrainerCallback):
    """Processor time and memory of a step."""

    def on_step_begin(self, *args, **kwargs):
        gc.collect()
        LIBC.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before, self.start = resident("VmRSS"), time.process_time()

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.seconds, self.peak = time.process_time() - self.start, resident("VmHWM") - self.before


def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure(cell, rounds, threads):
    torch.set_num_threads(threads)
    teacher, student = model(1), model(2)
    settings = {"report_to": "none", "use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True}
    settings |= {"optim": "sgd", "learning_rate": 1e-3, "max_steps": 1, "per_device_train_batch_size": TEXTS}
    settings |= {"logging_steps": 1, "save_strategy": "no", "bf16": cell == "bf16"}
    seconds, peaks, losses = ({name: [] for name in NAMES} for _ in range(3))
    for turn in range(rounds + 1):
        for name in NAMES:
            of = Plain if name == "plain" else DistillationTrainer
            more = {} if name == "plain" else {"fused": name == "fused", "loss": Distillation(2.0)}
            args = transformers.TrainingArguments(output_dir=tempfile.mkdtemp(), **settings)
            watch = Watch()
            made = of(
                copy.deepcopy(student),
                args,
                train_dataset=texts(TEXTS),
                callbacks=[watch],
                data_collator=lambda rows: {k: torch.stack([row[k] for row in rows]) for k in rows[0]},
                teacher=teacher,
                **more,
            )
            made.remove_callback(PrinterCallback)
            made.train()
            losses[name].append(made.state.log_history[0]["loss"])
            if turn:  # the first round warms up
                seconds[name].append(watch.seconds)
                peaks[name].append(watch.peak)
            del made
    return {
        "cell": cell,
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "peak_mib": {name: min(found) / MIB for name, found in peaks.items()},
        "loss": {name: found[0] for name, found in losses.items()},
    }


def page(results, command):
    tokens = TEXTS * LENGTH
    lines = [
        "# In the Trainer: time and memory",
        "",
        f"Made by `{command}`.",
        "",
        f"A step of distillation in the Trainer of transformers: student and teacher of {LAYERS} layers, width",
        f"{WIDTH}, V = {V}; {TEXTS} texts of {LENGTH} tokens, three quarters of them with labels; soft and hard term.",
        "Tokens per second of processor time, medians of contenders that take turns; in brackets, peak memory beyond",
        "the models, weights' gradients included.",
        "",
        "| | " + " | ".join(r["cell"] for r in results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    for name, shown in NAMES.items():
        cells = [f"{tokens / r['seconds'][name]:.0f} ({r['peak_mib'][name]:.0f} MiB)" for r in results]
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "On a GPU nothing was measured.", ""])


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="one cell, printed as JSON", choices=CELLS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given.rounds, given.threads)))
        return
    results = []
    options = ["--rounds", str(given.rounds), "--threads", str(given.threads)]
    for cell in CELLS:
        done = subprocess.run(
            [sys.executable, __file__, *options, "--only", cell],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB)},  # large blocks go back at once
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(results[-1]), flush=True)
    command = " ".join(["python bench/trainer.py", *options])
    (DOCS / "performance-trainer.json").write_text(
        json.dumps({"command": command, "results": results}, indent=1) + "\n"
    )
    (DOCS / "performance-trainer.md").write_text(page(results, command))


if __name__ == "__main__":
    main()
