"""A teacher asked once, with `kullback lm cache`, and students that learn from the folder: python with_cache.py."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed
from with_trl import letters, model

from kullback.integrations.transformers import DistillationTrainer
from kullback.language.caches import TeacherCache
from kullback.losses import Distillation


def cached(teacher, text, out):
    """`kullback lm cache TEACHER --text FILE --out FOLDER`, in a terminal."""
    command = [sys.executable, "-m", "kullback.cli", "lm", "cache", teacher, "--text", text, "--out", out]
    subprocess.run([*map(str, command), "--policy", "top-k", "--k", "12", "--context", "32"], check=True)


def distilled(student, folder):
    cache = TeacherCache(folder, tail="bucket")  # what the 17 other classes have: as one event, of the mass left over
    settings = {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "learning_rate": 0.03,
    }
    trainer = DistillationTrainer(
        student,
        TrainingArguments(tempfile.mkdtemp(), max_steps=30, **settings),
        teacher=cache,  # which brings its own texts and batches
        eval_dataset=cache.dataset(),
        loss=Distillation(temperature=1.0),
    )
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    return before, trainer.evaluate()["eval_kl"]


def main():
    set_seed(0)
    folder = Path(tempfile.mkdtemp())
    model(32, initializer_range=0.3).save_pretrained(folder / "teacher")
    letters().save_pretrained(folder / "teacher")
    words = "".join(chr(97 + int(i)) + " " for i in torch.randint(26, (2000,)))
    (folder / "text.txt").write_text(words)
    cached(folder / "teacher", folder / "text.txt", folder / "cache")
    print("cached", *distilled(model(8), folder / "cache"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
