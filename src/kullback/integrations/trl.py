"""Kullback's losses in the trainers of TRL: thin subclasses, for TRL 1.16 and its signatures.

Programs that use them, which tests run: docs/trainers/trl.md.
"""

import inspect
import random
import warnings
from typing import Any

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.divergences import CROSS_ENTROPY
from kullback.forms.finite import FiniteForm
from kullback.integrations.transformers import DistillationMixin, TokenMeans, accepted
from kullback.kit.extras import extra
from kullback.language.heads import ASKED, Head, head_of, prove
from kullback.losses import GKD, PolicyKL
from kullback.terms import Term, total

transformers: Any = extra("transformers", of="lm")
trl: Any = extra("trl", of="lm")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is experimental is said below; who wants GRPO alone need not hear it
    gkd: Any = extra("trl.experimental.gkd", of="lm")


def _gkd(beta: float, temperature: float = 1.0) -> GKD:
    """TRL's divergence: JSD_β inside, KL(teacher‖student) at 0 and KL(student‖teacher) at 1."""
    return GKD(beta, scaled=beta in (0.0, 1.0), temperature=temperature)


class _PlainSteps:
    """The Trainer's own steps, around what TRL puts over them."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return transformers.Trainer.compute_loss(self, *args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        return transformers.Trainer.prediction_step(self, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return trl.SFTTrainer.training_step(self, *args, **kwargs)


class GKDTrainer(DistillationMixin, _PlainSteps, gkd.GKDTrainer):  # type: ignore[misc]
    """TRL's GKDTrainer (of `trl.experimental`, which TRL may change), whose step is a mean over its tokens.

    Args, beside TRL's own:
        loss: a loss of `kullback.losses` between `student` and `teacher`; None is TRL's divergence at `args.beta`,
            which is read only then.
        fused, num_classes, teacher_tokenizer: as in `kullback.integrations.transformers.DistillationTrainer`, whose
            logs and evaluation this has.

    The loss is TRL's on one process with the data's own completions. Where TRL's is not the mean over the tokens:

        several ranks               TRL's loss and gradient are divided by their number once more
        completions by the student  TRL divides by the tokens of the data's completions in place of the generated ones
        evaluation                  TRL's is a mean of batches; here of tokens

    To count what is generated, the completions of all micro-batches of a step are generated before the first of them.

    Source: Agarwal et al. 2024, arXiv 2306.13649.
    """

    def __init__(
        self,
        model: Any = None,
        teacher_model: Any = None,
        args: Any = None,
        *more: Any,
        loss: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            raise FormError("GKDTrainer: args is missing. Write args=GKDConfig(output_dir=...).")
        if teacher_model is None:
            raise FormError("GKDTrainer: teacher_model is missing. Write teacher_model=..., a model or its path.")
        loss = _gkd(args.beta) if loss is None else loss
        super().__init__(model, teacher_model, args, *more, teacher=teacher_model, loss=loss, **kwargs)

    def _take_teacher(self, teacher: Any) -> None:
        super()._take_teacher(self.teacher_model)  # which TRL has loaded, if it was a path

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The batches of a step with the completions that they are to have, and their tokens over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self._completed(batch) for batch in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    def _completed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if random.random() < self.lmbda:
            model = self.model_wrapped
        elif self.seq_kd:
            model = self.teacher_model
        else:
            return inputs
        with trl.models.utils.unwrap_model_for_generation(
            model,
            self.accelerator,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as whole:
            made = self.generate_on_policy_outputs(whole, inputs, self.generation_config)
        return dict(zip(("input_ids", "attention_mask", "labels"), made, strict=True))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's with a teacher; prompts alone are for generation."""
        inputs = {name: x for name, x in inputs.items() if name not in ("prompts", "prompt_attention_mask")}
        return super().compute_loss(model, inputs, *args, **kwargs)


class DistillationTrainer(TokenMeans, trl.DistillationTrainer):  # type: ignore[misc]
    """TRL's DistillationTrainer (on the student's own completions) with a loss of kullback in place of its chunked one.

    Args, beside TRL's own:
        loss: a loss of `kullback.losses` between `student` and `teacher` that needs no labels; None is TRL's
            divergence at `args.beta` and `args.temperature`, which the loss reads only then.

    The step is TRL's, on any number of ranks. Both go from hidden states to the loss; this one makes no tile of scores
    larger than `LinearLogits` does, reads scale and softcap by the same rules as the Trainer's (and compares them with
    the models' own scores before the first step). Evaluation is a mean over tokens in place of TRL's of batches, with
    `eval_kl`, KL(teacher‖student) in nats at temperature 1, beside it.

    Refused: FSDP and DeepSpeed, models whose head is no plain `nn.Linear`, a loss that needs labels.
    """

    def __init__(self, *args: Any, loss: Any = None, **kwargs: Any) -> None:
        self._accepted = None if loss is None else accepted(loss)
        super().__init__(*args, **kwargs)
        if self.teacher_model is None:
            raise FormError(
                "DistillationTrainer: teacher_model is missing. Write teacher_model=..., a model or a path."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise FormError(
                "DistillationTrainer: under FSDP and DeepSpeed the teacher's head is no whole weight outside of its "
                "forward pass. Use trl.DistillationTrainer there, or the DistillationTrainer of "
                "kullback.integrations.transformers."
            )
        self.loss = _gkd(self.beta, self.temperature) if loss is None else loss
        self._proven: set[str] = set()
        self._counted: Tensor | None = None
        for whose, model in (("student", self.model), ("teacher", self.teacher_model)):
            self._head(whose, self.accelerator.unwrap_model(model))

    def _head(self, whose: str, model: Any) -> Head:
        found = head_of(model)
        if isinstance(found, Head):
            return found
        raise FormError(f"DistillationTrainer: the {whose}: {found}. Use trl.DistillationTrainer for it.")

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's, which calls `_compute_loss` within the model's forward pass, where no rank may wait for another."""
        mask = inputs["completion_mask"]
        self._counted = self._no_repeats(len(mask), mask.device) if self._evaluating else None
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _compute_loss(self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        """(loss, Σ entropy of the student, tokens); the last two are logged."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        keep = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            keep = keep & inputs["tool_mask"].bool()
        length = inputs["completion_ids"].shape[1]
        named = inspect.signature(self._get_last_hidden_state).parameters
        images = {name: inputs[name] for name in named if name in inputs}
        teacher_model = self.accelerator.unwrap_model(self.teacher_model)
        student = self._form("student", unwrapped_student, ids, attention, length, images)
        self.teacher_model.eval()
        with torch.no_grad():
            teacher = self._form("teacher", teacher_model, ids, attention, length, images)
        loss = self.loss(student=student, teacher=teacher, mask=keep, num_items=num_items_in_batch)
        with torch.no_grad():
            tempered = student.tempered(self.temperature)
            entropy = total([Term(CROSS_ENTROPY, tempered, tempered, keep.double())])
        if self._evaluating and self._counted is not None:
            counted = keep & self._counted[:, None]
            given = {"student": student, "teacher": teacher, "mask": counted, "num_items": 1}
            self._evaluated.add(tokens=counted.sum(), loss=self.loss(**given), kl=GKD(0.0, scaled=True)(**given))
        return loss, entropy, keep.sum()

    def _form(
        self, whose: str, model: Any, ids: Tensor, attention: Tensor, length: int, images: dict[str, Any]
    ) -> FiniteForm:
        head = self._head(whose, model)
        if whose not in self._proven and not images:
            with torch.no_grad():
                row = model(input_ids=ids[:1], attention_mask=attention[:1], use_cache=False, **ASKED)
            if prove(whose, head, row.hidden_states[-1], row.logits):
                self._proven.add(whose)
        return head.form(self._get_last_hidden_state(model, ids, attention, length, **images))


class GRPOTrainer(trl.GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer, whose KL penalty pulls towards the reference by the gradient of KL(policy‖reference).

    Its arguments are TRL's; `args.beta` is the penalty's coefficient, and 0 leaves everything to TRL. The penalty's
    value is TRL's k3 per token. Its gradient is where copies differ: TRL differentiates k3 itself, which on average is
    the gradient of KL(reference‖policy); here it is that of `PolicyKL("k3", "k2")`, and of `PolicyKL("k3",
    "ratio_k3")` with `use_bias_correction_kl`, which is TRL's own. When the policy has moved since it acted (several
    steps per generation), every token is weighed by its importance ratio, in the value too.

    What a token counts for is TRL's for each `loss_type`. The log `policy_loss` is without the penalty.

    Refused: `use_bias_correction_kl` with `importance_sampling_level="sequence"`; a `loss_type` that is not known.

    Source: arXiv 2402.03300 (GRPO); arXiv 2510.01555 and 2512.21852 (gradients).
    """

    beta: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._log_prob: Tensor | None = None
        if self.beta == 0.0:
            return
        corrected = self.args.use_bias_correction_kl
        if corrected and self.importance_sampling_level != "token":
            raise FormError(
                f"GRPOTrainer: use_bias_correction_kl with importance_sampling_level="
                f"{self.importance_sampling_level!r} would weigh every token by the mean ratio of its sequence, which "
                "estimates no KL. Leave use_bias_correction_kl out: tokens are weighed by their own ratio."
            )
        if self.loss_type not in _WEIGHTS:
            raise FormError(
                f"GRPOTrainer: loss_type={self.loss_type!r} is not one of {', '.join(_WEIGHTS)}; what a token counts "
                "for in it is not known. Use trl.GRPOTrainer."
            )
        self.penalty = PolicyKL("k3", "ratio_k3" if corrected else "k2", reduction="none")

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._log_prob = found[0]  # `_compute_loss` asks for the policy's alone
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.beta == 0.0:
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]
        beta, self.beta = self.beta, 0.0
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        log_prob, self._log_prob = self._log_prob, None
        mask = inputs["completion_mask"]
        mask = mask if "tool_mask" not in inputs else mask * inputs["tool_mask"]
        penalty = self.penalty(
            log_prob=log_prob,
            reference_log_prob=inputs["ref_per_token_logps"],
            behaviour_log_prob=inputs.get("old_per_token_logps"),
            mask=mask.bool(),
        )
        mode = "train" if self.model.training else "eval"
        sums = self.accelerator.reduce(torch.stack([penalty.detach().sum(), mask.sum()]), reduction="sum")
        self._metrics[mode]["kl"].append((sums[0] / sums[1].clamp(min=1.0)).item())
        return loss + beta * (self._weights(mask, inputs, mode) * penalty).sum()

    def _weights(self, mask: Tensor, inputs: dict[str, Any], mode: str) -> Tensor:
        """(batch, length): what a token counts for in this micro-batch's loss, as in TRL's `_compute_loss`."""
        steps: float = self.current_gradient_accumulation_steps if mode == "train" else 1.0
        if self.loss_type in ("grpo", "sapo"):
            return mask / mask.sum(-1, keepdim=True).clamp(min=1.0) / len(mask) / steps
        if self.loss_type == "bnpo":
            return mask / mask.sum().clamp(min=1.0) / steps
        if self.loss_type == "dr_grpo":
            return mask / float(len(mask) * self.max_completion_length) / steps
        if self.loss_type == "luspo":
            return mask / len(mask) / steps
        tokens: Tensor = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if mode == "train":
            tokens = tokens * steps / self.args.steps_per_generation
        return mask / tokens


_WEIGHTS = ("grpo", "sapo", "bnpo", "dr_grpo", "luspo", "cispo", "dapo", "vespo")
