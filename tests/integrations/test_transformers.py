"""The Trainer with a teacher: its loss and its step against float64 formulas, and everything that it refuses."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import tiny
import transformers

from kullback import FormError, Logits, TopK
from kullback.integrations.transformers import DistillationMixin
from kullback.language.heads import head_of
from kullback.losses import DKD, GKD, Distillation, RDrop, SkewKL


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_over_four_micro_batches_is_that_of_the_formula(fused):
    student, teacher = tiny.model(seed=1), tiny.model(seed=2, hidden_size=24)
    (loss, soft, hard), gradients = tiny.reference(student, teacher, tiny.texts())
    logged, step = tiny.stepped(
        student, teacher, args=tiny.settings(gradient_accumulation_steps=4), fused=fused, loss=Distillation(2.0)
    )
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert logged["soft"] == pytest.approx(soft, rel=1e-6)
    assert logged["hard"] == pytest.approx(hard, rel=1e-6)
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)
    assert tiny.off(step, gradients) < 1e-5


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_from_hidden_states_and_from_logits_are_one_loss(name):
    """Scales, softcaps and tied embeddings: the reference is made of the model's own logits."""
    student, teacher = tiny.model(name, seed=1), tiny.model(name, seed=2)
    (loss, *_), gradients = tiny.reference(student, teacher, tiny.texts(8))
    for fused in (True, False):
        logged, step = tiny.stepped(copy.deepcopy(student), teacher, tiny.texts(8), fused=fused)
        assert logged["loss"] == pytest.approx(loss, rel=1e-6), fused
        assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6), fused
        assert tiny.off(step, gradients) < 2e-5, fused


def gkd(s, t, _):
    p, q = t.softmax(-1), s.softmax(-1)
    m = (0.3 * p + 0.7 * q).log()
    return (0.3 * p * (p.log() - m) + 0.7 * q * (q.log() - m)).sum(-1).mean()


def reversed_skew(s, t, _):
    p, q = t.softmax(-1), s.softmax(-1)
    return (q * (q.log() - (0.2 * q + 0.8 * p).log())).sum(-1).mean()


@pytest.mark.parametrize(
    ("loss", "formula"), [(GKD(0.3), gkd), (SkewKL(0.2, direction="reverse"), reversed_skew)], ids=["GKD", "SkewKL"]
)
def test_losses_without_labels_leave_prompts_and_padding_out(loss, formula):
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    (value,), gradients = tiny.reference(student, teacher, tiny.texts(8), formula)
    args = tiny.settings(gradient_accumulation_steps=4, per_device_train_batch_size=2)
    logged, step = tiny.stepped(student, teacher, tiny.texts(8), args=args, loss=loss)
    assert logged["loss"] == pytest.approx(value, rel=1e-6)
    assert "soft" not in logged
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)


def test_dkd_takes_labels_and_logs_its_own_terms():
    logged, _ = tiny.stepped(tiny.model(seed=1), tiny.model(seed=2), tiny.texts(8), loss=DKD(alpha=1.0, beta=2.0))
    assert logged["loss"] == pytest.approx(logged["target_class"] + 2.0 * logged["other_classes"], rel=1e-6)


def test_a_callable_teacher_returns_logits_or_a_form():
    model = tiny.model(seed=2)

    def logits(inputs):
        assert not torch.is_grad_enabled()
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits

    def listed(inputs):
        top = logits(inputs).log_softmax(-1).topk(tiny.V)
        return TopK(top.indices, top.values, tiny.V, tail="even", validate=False)

    wanted, gradients = tiny.reference(tiny.model(seed=1), model, tiny.texts(8))
    for teacher in (logits, lambda inputs: Logits(logits(inputs)), listed):
        logged, step = tiny.stepped(tiny.model(seed=1), teacher, tiny.texts(8))
        assert logged["loss"] == pytest.approx(wanted[0], rel=1e-6)
        assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)


class Strict(transformers.LlamaForCausalLM):
    """A model that takes no argument whose name it does not know."""

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        labels=None,
        output_hidden_states=None,
        logits_to_keep=0,
        use_cache=None,
    ):
        asked = {"output_hidden_states": output_hidden_states, "logits_to_keep": logits_to_keep}
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **asked)


def strict(seed):
    made = Strict(tiny.model().config)
    made.load_state_dict(tiny.model(seed=seed).state_dict())
    return made


def test_columns_of_the_teacher_do_not_reach_the_student():
    model = tiny.model(seed=2)
    seen = []

    def teacher(inputs):
        seen.append(inputs["noted"])
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits

    trainer = tiny.trainer(
        strict(seed=1),
        teacher,
        tiny.texts(8),
        args=tiny.settings(remove_unused_columns=False),
        teacher_columns=("noted",),
    )
    trainer.data_collator = lambda rows: tiny.collate(rows) | {"noted": torch.arange(len(rows))}
    trainer.train()
    assert [x.tolist() for x in seen] == [list(range(8))]


def test_half_precision_is_within_its_rounding():
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    (loss, *_), gradients = tiny.reference(student, teacher, tiny.texts(8))
    found = {}
    for fused in (True, False):
        logged, step = tiny.stepped(
            copy.deepcopy(student), teacher, tiny.texts(8), args=tiny.settings(bf16=True), fused=fused
        )
        found[fused] = logged["loss"]
        assert logged["loss"] == pytest.approx(loss, rel=1e-2)
        assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=2e-2)
        assert tiny.off(step, gradients) < 0.1
    assert found[True] == pytest.approx(found[False], rel=2e-3)


def test_gradient_checkpointing_changes_nothing():
    (loss, *_), gradients = tiny.reference(tiny.model(seed=1), tiny.model(seed=2), tiny.texts(8))
    args = tiny.settings(activation_checkpointing=True)
    logged, step = tiny.stepped(tiny.model(seed=1), tiny.model(seed=2), tiny.texts(8), args=args, fused=True)
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo looks
def test_a_compiled_model_is_asked_through_its_wrapper():
    (loss, *_), gradients = tiny.reference(tiny.model(seed=1), tiny.model(seed=2), tiny.texts(8))
    args = tiny.settings(torch_compile=True, torch_compile_backend="eager")
    logged, step = tiny.stepped(tiny.model(seed=1), tiny.model(seed=2), tiny.texts(8), args=args, fused=True)
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what inductor imports
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("fused", [True, False])
def test_a_model_that_inductor_compiled_makes_the_same_step(fused):
    (loss, *_), gradients = tiny.reference(tiny.model(seed=1), tiny.model(seed=2), tiny.texts(8))
    args = tiny.settings(torch_compile=True, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    logged, step = tiny.stepped(tiny.model(seed=1), tiny.model(seed=2), tiny.texts(8), args=args, fused=fused)
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)


def test_a_frozen_head_stays_as_it_is():
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    student.lm_head.weight.requires_grad_(False)
    (loss, *_), gradients = tiny.reference(student, teacher, tiny.texts(8))
    logged, step = tiny.stepped(student, teacher, tiny.texts(8), fused=True)
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)
    assert step["lm_head.weight"].abs().max() == 0.0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
@pytest.mark.parametrize("trained", ["adapters", "a copy of the head", "adapters of the head"])
def test_students_of_peft(trained):
    peft = pytest.importorskip("peft")
    more = {"a copy of the head": {"modules_to_save": ["lm_head"]}}.get(trained, {})
    targets = ["q_proj", "lm_head"] if trained == "adapters of the head" else ["q_proj"]
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False, **more)
    student, teacher = peft.get_peft_model(tiny.model(seed=1), config), tiny.model(seed=2)
    student.eval()
    (loss, *_), gradients = tiny.reference(student, teacher, tiny.texts(8))
    if trained == "adapters of the head":
        with pytest.raises(FormError, match=r"fused=True, but the head of LlamaForCausalLM is a Linear, no plain"):
            tiny.trainer(student, teacher, tiny.texts(8), fused=True)
    logged, step = tiny.stepped(student, teacher, tiny.texts(8), fused=None if len(targets) == 2 else True)
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path):
    def trained(where, resume=None, **more):
        args = tiny.settings(
            output_dir=str(where),
            max_steps=4,
            per_device_train_batch_size=4,
            optim="adamw_torch",
            learning_rate=1e-2,
            save_strategy="steps",
            save_steps=2,
            **more,
        )
        trainer = tiny.trainer(tiny.model(seed=1), tiny.model(seed=2), args=args)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained(tmp_path / "whole")
    resumed = trained(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, x), y in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(x, y), name
    logged = [[entry.get("soft") for entry in x.state.log_history if "loss" in entry] for x in (whole, resumed)]
    assert len(logged[0]) == 4
    assert logged[0] == logged[1]


def wanted_of_evaluation(student, teacher, rows):
    with torch.no_grad():
        s, t, y = tiny.per_token(copy.deepcopy(student).double(), copy.deepcopy(teacher).double(), rows)
        loss, soft, hard = tiny.distillation(s, t, y)
        p, q = t.log_softmax(-1), s.log_softmax(-1)
        kl, entropy = (p.exp() * (p - q)).sum(-1).mean(), -(q.exp() * q).sum(-1).mean()
    return {"loss": loss, "soft": soft, "hard": hard, "kl": kl, "student_entropy": entropy}


@pytest.mark.parametrize("fused", [True, False])
def test_evaluation_is_a_mean_over_the_tokens_of_the_whole_set(fused):
    student, teacher, rows = tiny.model("gemma2", seed=1), tiny.model("gemma2", seed=2), tiny.texts(7)
    trainer = tiny.trainer(student, teacher, eval_dataset=rows, fused=fused)
    found = trainer.evaluate()
    for name, value in wanted_of_evaluation(student, teacher, rows).items():
        assert found[f"eval_{name}"] == pytest.approx(value.item(), rel=1e-6), name


def test_metrics_of_predictions_get_whole_logits():
    student, teacher, rows = tiny.model(seed=1), tiny.model(seed=2), tiny.texts(4)
    shapes = []

    def metrics(predicted):
        shapes.append((predicted.predictions.shape, predicted.label_ids.shape))
        return {"seen": 1.0}

    trainer = tiny.trainer(student, teacher, eval_dataset=rows, compute_metrics=metrics)
    found = trainer.evaluate()
    width = max(len(row["input_ids"]) for row in rows)
    assert shapes == [((4, width, tiny.V), (4, width))]
    assert found["eval_seen"] == 1.0
    assert found["eval_kl"] == pytest.approx(wanted_of_evaluation(student, teacher, rows)["kl"].item(), rel=1e-6)
    assert trainer.predict(rows).predictions.shape == (4, width, tiny.V)


def test_evaluation_within_training_leaves_its_means_alone():
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    (_, soft, _), _ = tiny.reference(student, teacher, tiny.texts(8))
    args = tiny.settings(eval_strategy="steps", eval_steps=1, logging_steps=2, max_steps=2, learning_rate=0.0)
    rows = tiny.texts(3, seed=5)
    made = tiny.trainer(student, teacher, tiny.texts(8), args=args, eval_dataset=rows)
    made.train()
    (logged,) = (entry["soft"] for entry in made.state.log_history if "soft" in entry)
    assert logged == pytest.approx(soft, rel=1e-6)
    evaluated = [entry["eval_soft"] for entry in made.state.log_history if "eval_soft" in entry]
    assert evaluated == pytest.approx([wanted_of_evaluation(student, teacher, rows)["soft"].item()] * 2, rel=1e-6)


def test_a_step_without_a_counted_token_moves_nothing():
    rows = [row | {"labels": torch.full_like(row["labels"], -100)} for row in tiny.texts(8)]
    logged, step = tiny.stepped(tiny.model(seed=1), tiny.model(seed=2), rows)
    assert logged["loss"] == 0.0
    assert all(x.abs().max() == 0.0 for x in step.values())


def test_what_a_dropped_position_of_the_teacher_holds_does_not_matter():
    model = tiny.model(seed=2)

    def teacher(inputs):
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        kept = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100) != -100
        return torch.where(kept[..., None], logits, torch.nan)

    (loss, *_), gradients = tiny.reference(tiny.model(seed=1), model, tiny.texts(8))
    logged, step = tiny.stepped(tiny.model(seed=1), teacher, tiny.texts(8))
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)


def test_labels_that_a_collator_shifted_are_taken_as_they_are():
    def collate(rows):
        batch = tiny.collate(rows)
        return batch | {"shift_labels": torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)}

    args = tiny.settings(remove_unused_columns=False)
    trainer = tiny.trainer(strict(seed=1), tiny.model(seed=2), tiny.texts(8), args=args)
    (loss, *_), _ = tiny.reference(trainer.model, tiny.model(seed=2), tiny.texts(8))
    trainer.data_collator = collate
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-6)


def test_padded_vocabularies_are_cut_to_the_real_tokens():
    def cut(s, t, y):
        return tiny.distillation(s[:, :59], t[:, :59], y)

    rows = [{k: x.clamp(max=58) for k, x in row.items()} for row in tiny.texts(8)]
    student, teacher = tiny.model(seed=1, vocab_size=64), tiny.model(seed=2)
    (loss, *_), gradients = tiny.reference(student, teacher, rows, cut)
    for fused in (True, False):
        logged, step = tiny.stepped(copy.deepcopy(student), teacher, rows, fused=fused, num_classes=59)
        assert logged["loss"] == pytest.approx(loss, rel=1e-6)
        assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)
    for given, words in ((None, r"64 classes and the teacher 61.*write num_classes=V"), (62, "from 1 to 61")):
        with pytest.raises(FormError, match=words):
            tiny.stepped(student, teacher, rows, num_classes=given)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"lm_head_multiplier": 0.5}, 0.5),
        ({"output_multiplier": 0.2}, 0.2),
        ({"logit_scale": 0.25}, 0.25),
        ({"logits_scaling": 4.0}, 0.25),
        ({}, 1.0),
    ],
)
def test_the_config_says_how_scores_are_scaled(settings, scale):
    model = tiny.model()
    for name, value in settings.items():
        setattr(model.config, name, value)
    assert head_of(model).scale == scale


class Louder(transformers.LlamaForCausalLM):
    """A model whose scores are more than its config says."""

    factor = 1.01

    def forward(self, input_ids=None, attention_mask=None, labels=None, logits_to_keep=0, **kwargs):
        output = super().forward(input_ids, attention_mask, logits_to_keep=logits_to_keep, **kwargs)
        output.logits = output.logits * self.factor
        return output


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_model_that_makes_its_scores_otherwise_is_found_out(whose):
    louder, plain = Louder(tiny.model(seed=1).config), tiny.model(seed=2)
    both = (louder, plain) if whose == "student" else (plain, louder)
    with pytest.raises(FormError, match=f"the {whose}'s own scores are not what its head.*Write fused=False"):
        tiny.stepped(*copy.deepcopy(both), tiny.texts(8))
    (loss, *_), _ = tiny.reference(*both, tiny.texts(8))
    logged, _ = tiny.stepped(*both, tiny.texts(8), fused=False)
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)


def test_scores_that_are_all_zero_prove_nothing_yet():
    student = tiny.model(seed=1)
    student.lm_head.weight.data.zero_()
    trainer = tiny.trainer(student, tiny.model(seed=2), tiny.texts(8), eval_dataset=tiny.texts(2))
    trainer.evaluate()
    assert trainer._proven == {"teacher"}


class Headless(transformers.LlamaForCausalLM):
    """A model that makes all its scores, whatever it is asked for."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        kwargs.pop("logits_to_keep", None)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)


def test_a_model_that_cannot_leave_its_scores_out_makes_them():
    torch.manual_seed(0)
    student, teacher = Headless(tiny.model().config).float(), tiny.model(seed=2)
    (loss, *_), _ = tiny.reference(student, teacher, tiny.texts(8))
    with pytest.raises(
        FormError, match=r"fused=True, but Headless.forward has no argument logits_to_keep.*fused=False"
    ):
        tiny.trainer(student, teacher, fused=True)
    logged, _ = tiny.stepped(student, teacher, tiny.texts(8))
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)


def test_a_trainer_of_ones_own_takes_the_mixin():
    seen = []

    class Own(transformers.Trainer):
        def compute_loss(self, *args, **kwargs):
            seen.append(self)
            return super().compute_loss(*args, **kwargs)

    class Mine(DistillationMixin, Own):
        pass

    (loss, *_), gradients = tiny.reference(tiny.model(seed=1), tiny.model(seed=2), tiny.texts(8))
    logged, step = tiny.stepped(tiny.model(seed=1), tiny.model(seed=2), tiny.texts(8), of=Mine)
    assert len(seen) == 1
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)


def of_two_ranks(script, out, *more):
    """What the script writes to `out`."""
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, str(here / script), str(out), *map(str, more)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.slow
def test_two_ranks_make_the_step_and_the_means_of_one(tmp_path):
    """Accumulation 2 on each; 7 texts in batches of 2 on 2 ranks, so that the sampler repeats one of them."""
    found = of_two_ranks("two_ranks.py", tmp_path / "found.pt")
    student, teacher = tiny.model("gemma2", seed=1), tiny.model("gemma2", seed=2)
    (loss, soft, hard), gradients = tiny.reference(student, teacher, tiny.texts(32))
    wanted = wanted_of_evaluation(student, teacher, tiny.texts(7))
    for fused in (True, False):
        logged, step, evaluated = (found[fused][name] for name in ("logged", "step", "evaluated"))
        assert logged["loss"] == pytest.approx(loss, rel=1e-6)
        assert logged["soft"] == pytest.approx(soft, rel=1e-6)
        assert logged["hard"] == pytest.approx(hard, rel=1e-6)
        assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)
        assert tiny.off(step, gradients) < 1e-5
        for name, value in wanted.items():
            assert evaluated[f"eval_{name}"] == pytest.approx(value.item(), rel=1e-6), name
    assert "average_tokens_across_devices=False gives ranks with fewer tokens" in found["refused"]


@pytest.mark.slow
def test_students_that_fsdp2_has_sharded_make_the_same_step(tmp_path):
    """Also after an evaluation, which leaves weights whole, of which an optimizer made then would know nothing."""
    found = of_two_ranks("fsdp_ranks.py", tmp_path / "found.pt", tmp_path)
    assert "the student's head is a unit of FSDP2 of its own" in found.pop("refused")
    for (name, layout, fused), run in found.items():
        student, teacher = tiny.model(name, seed=1), tiny.model(name, seed=2)
        (loss, soft, hard), gradients = tiny.reference(student, teacher, tiny.texts(32))
        what = name, layout, fused
        assert run["logged"]["loss"] == pytest.approx(loss, rel=1e-6), what
        assert run["logged"]["soft"] == pytest.approx(soft, rel=1e-6), what
        assert run["logged"]["hard"] == pytest.approx(hard, rel=1e-6), what
        assert tiny.ratio(run["step"], gradients) == pytest.approx(1.0, abs=1e-6), what
        assert tiny.off(run["step"], gradients) < 1e-5, what
        if run["evaluated"]:
            for term, value in wanted_of_evaluation(student, teacher, tiny.texts(7)).items():
                assert run["evaluated"][f"eval_{term}"] == pytest.approx(value.item(), rel=1e-6), (what, term)
    assert len(found) == 12


# ---------------------------------------------------------------- refusals


def encoder_decoder():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=61, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"compute_loss_func": lambda *a, **k: 0}, r"compute_loss_func is given.*write loss=\.\.\."),
        ({"loss": RDrop(1.0)}, r"takes no student, teacher.*Write loss=Distillation\(\)"),
        ({"loss": Distillation}, r"takes no mask, num_items, student, teacher"),
        ({"loss": GKD(reduction="sum")}, r"reduction 'sum'.*Write reduction='mean'"),
        ({"loss": Distillation(ignore_index=0)}, r"ignore_index=0.*Leave ignore_index out"),
        ({"teacher": 3}, r"teacher is a int, but it is a transformers model, or a callable"),
        ({"teacher": encoder_decoder}, r"the teacher, a T5ForConditionalGeneration, has an encoder"),
        ({"num_classes": 6.0}, r"num_classes is 6.0; write the integer"),
        ({"args": {"label_smoothing_factor": 0.1}}, r"Write loss=Distillation\(smoothing=0.1\)"),
        ({"args": {"n_gpu": 2}}, r"2 GPUs in one process.*torchrun --nproc_per_node 2"),
        ({"teacher_tokenizer": object()}, r"not the student's. Write processing_class=\.\.\., too"),
    ],
)
def test_what_is_refused_says_what_to_write(given, words):
    given = dict(given)
    options = given.pop("args", {})
    gpus = options.pop("n_gpu", None)
    args = tiny.settings(**options)
    if gpus:
        args.n_gpu  # noqa: B018  (sets up what the next line overrides)
        args._n_gpu = gpus
    teacher = given.pop("teacher", None) or tiny.model(seed=2)
    with pytest.raises(FormError, match=words):
        tiny.trainer(tiny.model(), teacher() if teacher is encoder_decoder else teacher, args=args, **given)


def test_the_student_is_not_its_own_teacher():
    model = tiny.model()
    with pytest.raises(FormError, match=r"teacher=copy.deepcopy\(model\)"):
        tiny.trainer(model, model)


def test_without_labels_it_says_how_to_get_some():
    rows = [{"input_ids": row["input_ids"]} for row in tiny.texts(8)]
    trainer = tiny.trainer(tiny.model(), tiny.model(seed=2), rows, eval_dataset=rows)
    trainer.data_collator = lambda rows: {"input_ids": torch.stack([row["input_ids"][:4] for row in rows])}
    with pytest.raises(FormError, match=r"labels are missing from the inputs \(input_ids\).*mlm=False"):
        trainer.train()
    with pytest.raises(FormError, match="labels are missing"):
        trainer.evaluate()
    with pytest.raises(FormError, match="num_items_in_batch is missing"):
        trainer.compute_loss(trainer.model, tiny.collate(tiny.texts(2)))


def test_a_teacher_that_returns_an_output_is_told_where_its_scores_are():
    model = tiny.model(seed=2)
    with pytest.raises(FormError, match=r"returned a CausalLMOutputWithPast.*write return output.logits"):
        tiny.stepped(tiny.model(), lambda inputs: model(input_ids=inputs["input_ids"]), tiny.texts(8))


def tokenizer(words):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")


def test_vocabularies_are_compared_by_token_not_by_size():
    words = ["?", *map(chr, range(97, 157))]
    same, swapped = tokenizer(words), tokenizer(["?", "b", "a", *words[3:]])
    lower = tokenizer(words)
    lower.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Replace("naïve", "a b")
    for other, error in (
        (swapped, r"differ in 2 tokens; 'a' has id 1 in the student's and 2"),
        (lower, "split a sample"),
    ):
        with pytest.raises(FormError, match=error):
            tiny.trainer(tiny.model(), tiny.model(seed=2), processing_class=same, teacher_tokenizer=other)
    with pytest.raises(FormError, match=r"num_classes=60 leaves out tokens.*Write num_classes=61"):
        tiny.trainer(tiny.model(), tiny.model(seed=2), processing_class=same, teacher_tokenizer=same, num_classes=60)
    tiny.trainer(tiny.model(), tiny.model(seed=2), processing_class=same, teacher_tokenizer=tokenizer(words))
    with pytest.raises(FormError, match=r"write num_classes=61"):
        tiny.stepped(tiny.model(vocab_size=64), tiny.model(seed=2), tiny.texts(8), processing_class=same)


def test_without_the_library_the_error_names_the_extra():
    for missing in ("transformers", "accelerate"):
        code = f"import sys; sys.modules[{missing!r}] = None\nimport kullback.integrations.transformers"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"the package {missing!r} is not installed; write: pip install 'kullback[lm]'" in result.stderr
