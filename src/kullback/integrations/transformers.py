"""Distillation in the `Trainer` of Hugging Face transformers."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.divergences import CROSS_ENTROPY
from kullback.forms.finite import FiniteForm, Logits
from kullback.forms.sparse import Drawn
from kullback.kit.extras import extra
from kullback.language.caches.stored import StoredTeacher
from kullback.language.heads import ASKED, Head, cut, head_of, prove
from kullback.language.vocabulary import same_vocabulary, size_of
from kullback.losses import GKD, Distillation
from kullback.terms import Term, total

transformers: Any = extra("transformers", of="lm")
extra("accelerate", of="lm")  # without which transformers has no Trainer

OWNER = "DistillationTrainer"
IGNORED = -100  # what marks a position without a label in every collator, and what the Trainer does not count
LABELS = ("labels", "shift_labels")


class _Step(NamedTuple):
    """What `compute_loss` knows and the loss needs: the model's outputs come with nothing else."""

    head: Head | None
    labels: Tensor
    keep: Tensor
    teacher: FiniteForm | Drawn


class _Means:
    """Sums over tokens on this rank, and how many there were."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, **sums: Tensor) -> None:
        for name, x in sums.items():
            x = x.detach().double()
            self.sums[name] = self.sums[name] + x if name in self.sums else x

    def take(self, accelerator: Any) -> dict[str, float]:
        """The means over all ranks, each of which calls this; then it starts again."""
        if not self.sums:
            return {}
        names = sorted(self.sums.keys() - {"tokens"})
        over_ranks = accelerator.reduce(torch.stack([self.sums[name] for name in ("tokens", *names)]), reduction="sum")
        self.sums = {}
        tokens, *values = over_ranks.tolist()
        return {name: value / max(tokens, 1.0) for name, value in zip(names, values, strict=True)}


class TokenMeans:
    """Evaluation as means over the tokens of the whole set, where the Trainer's loss is a mean of batches."""

    accelerator: Any
    model: Any
    _evaluating = False
    _evaluated: _Means

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The Trainer's; what was added to `_evaluated` meanwhile replaces its metrics of the same name."""
        self._evaluating, self._evaluated = True, _Means()
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        finally:
            self._evaluating = False
            for module in self.model.modules():
                if hasattr(module, "reshard"):  # FSDP2: an optimizer made now would hold weights that it never gathers
                    module.reshard()
        found = self._evaluated.take(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def _no_repeats(self, size: int, device: torch.device) -> Tensor:
        """(size,) bool: False for the sequences that a sampler repeated to fill the last batch of all ranks."""
        if self.accelerator.num_processes == 1:
            return torch.ones(size, dtype=torch.bool, device=device)
        first = self.accelerator.process_index * size
        mine = torch.arange(first, first + size, device=device)
        return torch.isin(mine, self.accelerator.gather_for_metrics(mine))


class DistillationMixin(TokenMeans):
    """`DistillationTrainer` for a Trainer of one's own: `class Mine(DistillationMixin, MyTrainer)`.

    MyTrainer calls `super().compute_loss`, or has none of its own: what divides the loss by the tokens of all ranks and
    undoes DistributedDataParallel's mean stands in the Trainer's, and an override that returns its own loss skips it.
    """

    args: Any
    compute_loss_func: Any
    _signature_columns: Any

    def __init__(
        self,
        *args: Any,
        teacher: Any,
        loss: Any = None,
        fused: bool | None = None,
        num_classes: int | None = None,
        teacher_tokenizer: Any = None,
        teacher_columns: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.loss: Any = Distillation() if loss is None else loss
        self._accepted = accepted(self.loss)
        stored = isinstance(teacher, StoredTeacher)
        columns = (*teacher_columns, *(teacher.columns if stored else ()))
        self.fused, self.num_classes, self.teacher_columns = fused, num_classes, tuple(dict.fromkeys(columns))
        if num_classes is not None and (isinstance(num_classes, bool) or not isinstance(num_classes, int)):
            raise FormError(f"{OWNER}: num_classes is {num_classes!r}; write the integer number of real tokens.")
        self._step: _Step | None = None
        self._trained = _Means()
        self._whole = False
        self._proven: set[str] = set()
        if stored:
            _check_temperature(self.loss, teacher.temperature)
            if len(args) < 3 and kwargs.get("data_collator") is None:
                kwargs["data_collator"] = teacher.collator()
            if len(args) < 4 and kwargs.get("train_dataset") is None:
                kwargs["train_dataset"] = teacher.dataset()
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            raise FormError(
                f"{OWNER}: compute_loss_func is given, but the loss is the trainer's own: write loss=..., any loss of "
                "kullback.losses between a student and a teacher."
            )
        self.compute_loss_func = self._loss_of
        self._loss_shifts_labels = True  # labels are shifted here, so their first column is counted nowhere
        self._check_settings()
        self._take_teacher(teacher)
        self._check_vocabulary(teacher_tokenizer)

    def _take_teacher(self, teacher: Any) -> None:
        self.teacher = teacher
        self._teacher_is_model = isinstance(teacher, transformers.PreTrainedModel) or hasattr(teacher, "get_base_model")
        self._check_models()

    # ------------------------------------------------------------ what is refused before a step

    def _check_settings(self) -> None:
        a = self.args
        if a.label_smoothing_factor:
            raise FormError(
                f"{OWNER}: label_smoothing_factor is {a.label_smoothing_factor}, which only the Trainer's own loss "
                f"reads. Write loss=Distillation(smoothing={a.label_smoothing_factor})."
            )
        if a.n_gpu > 1:
            raise FormError(
                f"{OWNER}: {a.n_gpu} GPUs in one process (nn.DataParallel) average the loss by device, not by token. "
                f"Write torchrun --nproc_per_node {a.n_gpu} script.py, or make one GPU visible."
            )
        if a.world_size > 1 and not a.average_tokens_across_devices:
            raise FormError(
                f"{OWNER}: average_tokens_across_devices=False gives ranks with fewer tokens the same weight. Leave it "
                "out: the loss is a mean over the tokens of all ranks."
            )
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:  # type: ignore[attr-defined]
            raise FormError(f"{OWNER}: sequences split over ranks (context or sequence parallel) are not served.")

    def _check_models(self) -> None:
        if not self._teacher_is_model and not callable(self.teacher):
            raise FormError(
                f"{OWNER}: teacher is a {type(self.teacher).__name__}, but it is a transformers model, or a callable "
                "that takes the inputs and returns logits (batch, length, V) or a form of them."
            )
        both = {"student": self.model, "teacher": self.teacher} if self._teacher_is_model else {"student": self.model}
        if self.teacher is self.model:
            raise FormError(
                f"{OWNER}: teacher is the student itself, which changes as it learns. Write "
                "teacher=copy.deepcopy(model)."
            )
        for whose, model in both.items():
            if not hasattr(model, "get_output_embeddings"):
                raise FormError(
                    f"{OWNER}: the {whose} is a {type(model).__name__}, but a model of transformers is needed."
                )
            if model.config.is_encoder_decoder:
                raise FormError(
                    f"{OWNER}: the {whose}, a {type(model).__name__}, has an encoder and a decoder, whose labels are "
                    "not shifted. Only causal language models are served."
                )
            if self.fused:
                self._head(whose, model)
        if self._teacher_is_model:
            self.teacher.eval()
            if not getattr(self.teacher, "hf_device_map", None) and not getattr(self.teacher, "is_quantized", False):
                self.teacher.to(self.args.device)

    def _check_vocabulary(self, teacher_tokenizer: Any) -> None:
        tokenizer = getattr(self, "processing_class", None)
        if isinstance(self.teacher, StoredTeacher) and hasattr(tokenizer, "get_vocab"):
            self.teacher.check_tokenizer(tokenizer)
        if teacher_tokenizer is not None:
            if tokenizer is None:
                raise FormError(
                    f"{OWNER}: teacher_tokenizer is given, but not the student's. Write processing_class=..., too."
                )
            same_vocabulary(tokenizer, teacher_tokenizer)
            if self.num_classes is not None and self.num_classes < size_of(tokenizer):
                raise FormError(
                    f"{OWNER}: num_classes={self.num_classes} leaves out tokens: the tokenizer's ids reach to "
                    f"{size_of(tokenizer) - 1}. Write num_classes={size_of(tokenizer)}."
                )

    def _head(self, whose: str, model: Any) -> Head | None:
        """The head through which to go, or None for whole logits; an error if `fused` was asked for in vain."""
        if self.fused is False:
            return None
        found: Head | str = head_of(model)
        if whose == "student" and (
            getattr(self, "is_deepspeed_enabled", False)
            or (getattr(self, "is_fsdp_enabled", False) and not self.accelerator.is_fsdp2)
        ):
            found = "DeepSpeed and the first FSDP hold no whole weight after the forward pass"
        if isinstance(found, Head):
            return found
        if self.fused:
            raise FormError(f"{OWNER}: fused=True, but {found}. Write fused=False for the {whose}'s whole logits.")
        return None

    # ------------------------------------------------------------ a step

    def _set_signature_columns_if_needed(self) -> None:
        """The Trainer removes columns that the student does not take; the teacher's stay."""
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, *self.teacher_columns])]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Asks the teacher; the loss itself is made of the student's outputs in the Trainer's own `compute_loss`."""
        labels = _next_labels(inputs)
        if num_items_in_batch is None:
            raise FormError(
                f"{OWNER}: num_items_in_batch is missing, so the tokens of the step are not known. Call compute_loss "
                "with num_items_in_batch=(labels[:, 1:] != -100).sum(), as the Trainer does."
            )
        keep = labels != IGNORED
        if self._evaluating:
            keep = keep & self._no_repeats(len(labels), labels.device)[:, None]
        inner = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        head = None if self._whole else self._head("student", inner)
        self._step = _Step(head, labels, keep, self._ask_teacher(inputs))
        withheld = {"shift_labels", *self.teacher_columns}
        inputs = {name: x for name, x in inputs.items() if name not in withheld}
        try:
            return super().compute_loss(  # type: ignore[misc]
                model, inputs | (ASKED if head else {}), return_outputs, num_items_in_batch
            )
        finally:
            self._step = None

    @torch.no_grad()
    def _ask_teacher(self, inputs: dict[str, Any]) -> FiniteForm | Drawn:
        if not self._teacher_is_model:
            found = self.teacher(dict(inputs))
            if isinstance(found, FiniteForm | Drawn):
                return found
            if isinstance(found, Tensor):
                return Logits(found)
            raise FormError(
                f"{OWNER}: the teacher returned a {type(found).__name__}, but logits (batch, length, V) or a form of "
                "them are needed: write return output.logits."
            )
        self.teacher.eval()
        given = {name: x for name, x in inputs.items() if name not in (*LABELS, *self.teacher_columns)}
        head = self._head("teacher", self.teacher)
        with self.accelerator.autocast():
            outputs = self.teacher(**given, use_cache=False, **(ASKED if head else {}))
        return self._form("teacher", head, outputs)

    def _form(self, whose: str, head: Head | None, outputs: Any) -> FiniteForm:
        if head is None:
            return Logits(outputs.logits)
        hidden = outputs.hidden_states[-1]
        if hasattr(head.linear.weight, "full_tensor") and not hasattr(hidden, "full_tensor"):
            raise FormError(
                f"{OWNER}: the {whose}'s head is a unit of FSDP2 of its own, whose weight is in shards again after the "
                "forward pass. Leave the head in the root module's group, or shard it with "
                "reshard_after_forward=False, or write fused=False."
            )
        with self.accelerator.autocast():
            if whose not in self._proven and prove(whose, head, hidden, outputs.logits):
                self._proven.add(whose)
            return head.form(hidden)

    def _loss_of(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
        """The Trainer's `compute_loss_func`: this part's share of the mean over the tokens of the whole step."""
        if self._step is None:
            raise FormError(f"{OWNER}: the loss is called outside of compute_loss, which asks the teacher first.")
        head, labels, keep, teacher = self._step
        student, teacher = self._one_vocabulary(self._form("student", head, outputs), teacher)
        items = torch.as_tensor(num_items_in_batch, device=keep.device).clamp(min=1)
        given = {"student": student, "teacher": teacher, "mask": keep, "labels": labels}
        given = {name: x for name, x in given.items() if name in self._accepted} | {"num_items": items}
        named: dict[str, Tensor | None] = {}
        loss: Tensor
        if hasattr(self.loss, "parts"):
            parts = self.loss.parts(**given)
            named, loss = parts._asdict(), parts.loss
        else:
            loss = self.loss(**given)
        measured = {name: x * items for name, x in named.items() if name != "loss" and x is not None}
        means = self._evaluated if self._evaluating else self._trained
        if self._evaluating:
            measured["loss"] = loss * items
            if not isinstance(self.teacher, StoredTeacher) or self.teacher.temperature == 1.0:  # else it has none at 1
                measured["kl"] = GKD(0.0, scaled=True)(student=student, teacher=teacher, mask=keep, num_items=1)
            measured["student_entropy"] = total([Term(CROSS_ENTROPY, student, student, keep.double())])
        means.add(tokens=keep.sum(), **measured)
        return loss

    def _one_vocabulary(
        self, student: FiniteForm, teacher: FiniteForm | Drawn
    ) -> tuple[FiniteForm, FiniteForm | Drawn]:
        n, sizes = self.num_classes, (student.num_classes, teacher.num_classes)
        if n is None:
            if sizes[0] == sizes[1]:
                return student, teacher
            tokenizer = getattr(self, "processing_class", None)
            real = f"num_classes={size_of(tokenizer)}" if hasattr(tokenizer, "get_vocab") else "num_classes=V"
            raise FormError(
                f"{OWNER}: the student scores {sizes[0]} classes and the teacher {sizes[1]}. If both have one "
                f"tokenizer and the rest is padding, say how many tokens are real: write {real}."
            )
        if not 1 <= n <= min(sizes):
            raise FormError(
                f"{OWNER}: num_classes={n}, but the student scores {sizes[0]} classes and the teacher {sizes[1]}. "
                f"Write a number from 1 to {min(sizes)}."
            )
        return cut(student, n), teacher if isinstance(teacher, Drawn) else cut(teacher, n)

    # ------------------------------------------------------------ logs and evaluation

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With the means of the loss's terms where the Trainer logs a loss, which it does on every rank."""
        if {"loss", "learning_rate"} <= logs.keys():
            logs |= self._trained.take(self.accelerator)
            self._proven = set()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kw: Any
    ) -> Any:
        """Whole logits only where predictions are asked for."""
        if prediction_loss_only:
            _next_labels(inputs)
        self._whole = not prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kw)  # type: ignore[misc]
        finally:
            self._whole = False


class DistillationTrainer(DistillationMixin, transformers.Trainer):  # type: ignore[misc]
    """The Trainer of Hugging Face transformers, with a teacher.

    Args, beside the Trainer's own:
        teacher: a causal language model of transformers, run without gradient on the student's device and in its
            autocast; or a callable that takes the inputs and returns logits (batch, length, V) or a form of them, one
            row for each position: row t is the distribution of token t + 1, as in a model's own logits. Or a cache
            (`kullback.language.caches.TeacherCache`), which brings its own `train_dataset`, `data_collator` and
            `teacher_columns` where they are not given.
        loss: a loss of `kullback.losses` between `student` and `teacher`, a mean: `Distillation()`, `GKD`, `SkewKL`,
            `DKD`.
        fused: True goes from hidden states to the loss, without logits of all positions (`LinearLogits`); False makes
            them; None is True for each of the two models where possible: `logits_to_keep` in its forward's signature, a
            plain `nn.Linear` as output embedding, no DeepSpeed. Scale and softcap are read from the config (Gemma,
            Granite, Cohere, Falcon-H1), and the scores so made are compared with the model's own of one position in the
            first step and after each log.
        num_classes: how many classes are tokens, where V is padded; both sides are cut to it.
        teacher_tokenizer: compared with `processing_class`: the same tokens under the same ids.
        teacher_columns: names of inputs, or columns of the data, that the teacher takes and the student does not.

    The loss is a mean over the tokens that have a label, of all micro-batches and all ranks of a step. Labels are
    shifted here, as in transformers; where they are -100, neither term counts the position.

    Logs: the terms of the loss as means over the tokens since the last log (`soft`, `hard` of `Distillation`). In
    evaluation, over the tokens of the whole set: the loss, its terms, `kl` = KL(teacher‖student) in nats at
    temperature 1, and `student_entropy`.

    Raises: FormError: no labels, models or vocabularies that do not fit, settings that would weigh tokens unequally.

    >>> import tempfile
    >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
    >>> size = dict(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    >>> student, teacher = LlamaForCausalLM(LlamaConfig(**size)), LlamaForCausalLM(LlamaConfig(**size))
    >>> texts = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]} for _ in range(4)]
    >>> settings = dict(output_dir=tempfile.mkdtemp(), report_to="none", use_cpu=True, dataloader_pin_memory=False)
    >>> trainer = DistillationTrainer(student, TrainingArguments(**settings), eval_dataset=texts, teacher=teacher)
    >>> sorted(name for name in trainer.evaluate() if name[5:] in ("loss", "soft", "hard", "kl", "student_entropy"))
    ['eval_hard', 'eval_kl', 'eval_loss', 'eval_soft', 'eval_student_entropy']
    """


def _check_temperature(loss: Any, temperature: float) -> None:
    """An error if the loss would temper again what a cache keeps at a temperature."""
    if temperature != 1.0 and getattr(loss, "teacher_temperature", None) != 1.0:
        raise FormError(
            f"{OWNER}: the cache keeps its teacher at temperature {temperature:g}, and the loss takes one at 1, which "
            f"it tempers itself. Write loss=Distillation({temperature:g}, teacher_temperature=1), or cache the teacher "
            "at temperature 1."
        )


def _next_labels(inputs: dict[str, Any]) -> Tensor:
    """(batch, length): the label of the token that follows each position; -100 after the last."""
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor):
        raise FormError(
            f"{OWNER}: labels are missing from the inputs ({', '.join(inputs)}): they say which tokens count. Use "
            "DataCollatorForLanguageModeling(tokenizer, mlm=False), or a column labels: input_ids with -100 where a "
            "token is prompt or padding."
        )
    shifted = inputs.get("shift_labels")
    if isinstance(shifted, Tensor):
        return shifted
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORED)


def accepted(loss: Any) -> set[str]:
    """The arguments of a loss, which is between a student and a teacher, and a mean whose denominator is given."""
    call = getattr(loss, "parts", None) or getattr(loss, "forward", loss)
    names = set(inspect.signature(call).parameters) if callable(call) and not inspect.isclass(loss) else set()
    if missing := {"student", "teacher", "mask", "num_items"} - names:
        raise FormError(
            f"{OWNER}: loss is {loss!r}, which takes no {', '.join(sorted(missing))}. Write loss=Distillation(), "
            "GKD(), SkewKL() or DKD(), or a callable of the same arguments."
        )
    if getattr(loss, "reduction", "mean") != "mean":
        raise FormError(
            f"{OWNER}: the loss has reduction {loss.reduction!r}, but the step is a mean over its tokens. Write "
            "reduction='mean'."
        )
    if getattr(loss, "ignore_index", IGNORED) != IGNORED:
        raise FormError(
            f"{OWNER}: the loss has ignore_index={loss.ignore_index}, but the Trainer counts the labels that are not "
            "-100. Leave ignore_index out."
        )
    return names
