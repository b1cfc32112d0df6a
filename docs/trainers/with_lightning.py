"""Distillation in Lightning: python with_lightning.py [ranks]. Prints the KL before the first epoch and after each."""

import sys

import lightning
import torch
from shared import batch_of, models, texts

from kullback import Logits
from kullback.losses import Distillation
from kullback.metrics import Divergence


class Distil(lightning.LightningModule):
    """The mean over the tokens of a step: sums are added up, and divided where all of its tokens are known."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.loss, self.kl = Distillation(temperature=2.0, reduction="sum"), Divergence()
        self.tokens = 0

    def training_step(self, batch, _):
        ids, labels = batch
        self.tokens += (labels != -100).sum()
        return self.loss(student=self.student(ids), teacher=self.teacher(ids), labels=labels)

    def on_before_optimizer_step(self, optimizer):
        """Undo the two means that Lightning takes, over micro-batches and over ranks, and take the one over tokens."""
        tokens = self.trainer.strategy.reduce(self.tokens, reduce_op="sum")
        for p in self.student.parameters():
            p.grad *= self.trainer.accumulate_grad_batches * self.trainer.world_size / tokens
        self.tokens = 0

    def validation_step(self, batch, _):
        ids, labels = batch
        self.kl.update(Logits(self.teacher(ids)), Logits(self.student(ids)), mask=labels != -100)

    def on_validation_epoch_end(self):
        found = self.kl.compute()  # of the tokens of all ranks
        self.log_dict({"kl": found.mean, "kl_error": found.standard_error}, sync_dist=True)
        self.print(f"kl {found.mean:.9f}")
        self.kl.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=1.0)


def main(ranks=1):
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        accumulate_grad_batches=3,  # of 8 micro-batches: two steps of 3 and one of 2
        max_epochs=3,
        num_sanity_val_steps=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = texts()
    in_order = torch.utils.data.DistributedSampler(rows, ranks, trainer.global_rank, shuffle=False)
    data = torch.utils.data.DataLoader(rows, 4 // ranks, sampler=in_order, collate_fn=batch_of)
    trainer.fit(Distil(*models()), data, data)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
