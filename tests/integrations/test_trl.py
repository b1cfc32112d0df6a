"""TRL's trainers with kullback's losses: equal to TRL's where it is right, and to float64 formulas everywhere."""

import copy
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

import tiny
import trl
import trl_tiny as it

from kullback import FormError
from kullback._errors import MissingExtra
from kullback.integrations import trl as ours
from kullback.losses import GKD, Distillation, SkewKL

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # TRL reads it


def close(step, gradients):
    assert tiny.ratio(step, gradients) == pytest.approx(1.0, abs=1e-6)
    assert tiny.off(step, gradients) < 2e-5


# ---------------------------------------------------------------- GKD


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gkd_on_the_data_is_the_formula_and_trl_itself(beta, fused):
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    rows = [it.collate(it.completed(8).to_list())]
    wanted, gradients = it.of_batches(student, teacher, rows, lambda s, t: it.divergence(s, t, beta))
    more = {"rows": 8, "beta": beta, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    found = {}
    for of, options in ((it.TheirGKDTrainer, {}), (ours.GKDTrainer, {"fused": fused})):
        model = copy.deepcopy(student)
        logged, step = it.stepped(it.gkd_trainer(of, model, teacher, **more, **options), model)
        assert logged["loss"] == pytest.approx(wanted, rel=1e-6)
        close(step, gradients)
        found[of] = logged
    theirs, own = found.values()
    assert own["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_gkd_counts_the_tokens_that_were_generated(whose):
    """Four micro-batches of unequal completions; TRL divides by the tokens of the data's completions."""
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    more = {"lmbda": 1.0} if whose == "student" else {"seq_kd": True}
    model = copy.deepcopy(student)
    made = it.gkd_trainer(it.RecordedGKD, model, teacher, gradient_accumulation_steps=4, **more)
    logged, step = it.stepped(made, model)
    counts = [(batch["labels"][:, 1:] != -100).sum().item() for batch in made.seen]
    assert len(counts) == 4
    assert len(set(counts)) > 1
    wanted, gradients = it.of_batches(student, teacher, made.seen)
    assert logged["loss"] == pytest.approx(wanted, rel=1e-6)
    close(step, gradients)


def test_gkd_takes_another_loss():
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)

    def skewed(s, t):
        p, q = t.softmax(-1), s.softmax(-1)
        return (q * (q.log() - (0.2 * q + 0.8 * p).log())).sum(-1)

    wanted, gradients = it.of_batches(student, teacher, [it.collate(it.completed(4).to_list())], skewed)
    logged, step = it.stepped(
        it.gkd_trainer(ours.GKDTrainer, student, teacher, rows=4, loss=SkewKL(0.2, direction="reverse")), student
    )
    assert logged["loss"] == pytest.approx(wanted, rel=1e-6)
    close(step, gradients)


def test_gkd_evaluates_by_tokens():
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    rows = [it.collate(it.completed(7).to_list())]
    found = it.gkd_trainer(ours.GKDTrainer, student, teacher).evaluate()
    for name, beta in (("eval_loss", 0.3), ("eval_kl", 0.0)):
        wanted, _ = it.of_batches(student, teacher, rows, lambda s, t, beta=beta: it.divergence(s, t, beta))
        assert found[name] == pytest.approx(wanted, rel=1e-6), name


def test_gkd_says_what_is_missing():
    with pytest.raises(FormError, match=r"args is missing. Write args=GKDConfig"):
        ours.GKDTrainer(tiny.model(), tiny.model())
    with pytest.raises(FormError, match=r"teacher_model is missing"):
        ours.GKDTrainer(tiny.model(), args=it.settings(it.GKDConfig))


# ---------------------------------------------------------------- on the student's own completions


@pytest.mark.parametrize(("beta", "temperature"), [(1.0, 1.0), (0.0, 1.0), (0.3, 1.5)])
def test_distillation_is_the_formula_and_trl_itself(beta, temperature):
    student, teacher = tiny.model("gemma2", seed=1), tiny.model("gemma2", seed=2)
    found = {}
    for of in (trl.DistillationTrainer, it.RecordedDistillation):
        model = copy.deepcopy(student)
        made = it.distillation_trainer(
            of, model, teacher, beta=beta, temperature=temperature, gradient_accumulation_steps=4
        )
        found[of] = it.stepped(made, model)
    assert len(made.seen) == 4
    wanted, gradients = it.of_batches(student, teacher, made.seen, lambda s, t: it.divergence(s, t, beta, temperature))
    for logged, step in found.values():
        assert logged["loss"] == pytest.approx(wanted, rel=1e-6)
        close(step, gradients)
    theirs, own = (logged for logged, _ in found.values())
    assert own["entropy"] == pytest.approx(theirs["entropy"], rel=1e-5)


def evaluated_by_tokens(metrics, student, teacher, batches):
    assert sum(len(batch["labels"]) for batch in batches) == 7
    for name, beta in (("eval_loss", 1.0), ("eval_kl", 0.0)):
        wanted, _ = it.of_batches(student, teacher, batches, lambda s, t, beta=beta: it.divergence(s, t, beta))
        assert metrics[name] == pytest.approx(wanted, rel=1e-6), name


def test_distillation_evaluates_by_tokens():
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    made = it.distillation_trainer(it.RecordedDistillation, student, teacher)
    evaluated_by_tokens(made.evaluate(), student, teacher, made.evaluated)


def test_distillation_takes_another_loss_that_needs_no_labels():
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    before = copy.deepcopy(student)
    made = it.distillation_trainer(it.RecordedDistillation, student, teacher, loss=GKD(0.3, temperature=2.0))
    logged, _ = it.stepped(made, student)
    wanted, _ = it.of_batches(before, teacher, made.seen, lambda s, t: it.divergence(s, t, 0.3, 2.0))
    assert logged["loss"] == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(FormError, match="labels are missing"):
        it.stepped(it.distillation_trainer(ours.DistillationTrainer, student, teacher, loss=Distillation()), student)


def test_distillation_refuses_what_it_cannot_read():
    with pytest.raises(FormError, match=r"teacher_model is missing"):
        it.distillation_trainer(ours.DistillationTrainer, tiny.model(), None)
    louder = tiny.model(seed=2)
    forward = louder.forward
    louder.forward = lambda *args, **kwargs: louder_by(forward(*args, **kwargs))
    with pytest.raises(FormError, match=r"the teacher: .*no argument logits_to_keep.*Use trl.DistillationTrainer"):
        it.distillation_trainer(ours.DistillationTrainer, tiny.model(), louder)


def louder_by(output):
    output.logits = 1.01 * output.logits
    return output


def test_distillation_compares_a_head_with_the_scores_of_its_model():
    teacher = tiny.model(seed=2)
    teacher.register_forward_hook(lambda module, args, output: louder_by(output))
    student = tiny.model(seed=1)
    with pytest.raises(FormError, match="the teacher's own scores are not what its head"):
        it.stepped(it.distillation_trainer(ours.DistillationTrainer, student, teacher), student)


# ---------------------------------------------------------------- GRPO

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    return it.policies(tmp_path_factory.mktemp("reference"))


def test_grpo_is_the_formula(policies):
    reference, policy = policies
    model = copy.deepcopy(policy)
    made = it.grpo_trainer(it.RecordedGRPO, model, gradient_accumulation_steps=4)
    logged, step = it.stepped(made, model)
    assert len(made.seen) == 4
    wanted, gradients = it.of_tokens(policy, reference, made.seen, 0.4)
    assert logged["loss"] == pytest.approx(wanted, rel=1e-5)
    close(step, gradients)


def losses(trainer, inputs):
    """(loss, gradients) of one micro-batch, twice: first with the trainer's penalty, then with none."""
    found = []
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    for beta in (trainer.beta, 0.0):
        trainer.beta = beta
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, copy.copy(inputs))
        loss.backward()
        found.append((loss.item(), {n: p.grad.double() for n, p in trainer.model.named_parameters()}))
    trainer.beta = 0.4
    return found


@pytest.fixture(scope="module")
def generated(policies):
    """A micro-batch as TRL makes it."""
    model = copy.deepcopy(policies[1])
    made = it.grpo_trainer(it.RecordedGRPO, model)
    made.train()
    return made.seen[0]


@pytest.mark.parametrize("kind", LOSSES)
def test_grpo_counts_tokens_as_trl_does(policies, generated, kind):
    """On-policy the value is TRL's, and with its correction the gradient too."""
    for corrected in (False, True):
        found = {}
        for of in (trl.GRPOTrainer, ours.GRPOTrainer):
            sequence = {"importance_sampling_level": "sequence"} if kind == "luspo" and not corrected else {}
            made = it.grpo_trainer(
                of, copy.deepcopy(policies[1]), loss_type=kind, use_bias_correction_kl=corrected, **sequence
            )
            found[of] = losses(made, generated), made._metrics["train"]["kl"][0]
        (theirs, their_kl), (own, own_kl) = found.values()
        penalty = theirs[0][0] - theirs[1][0]
        assert own[0][0] - own[1][0] == pytest.approx(penalty, rel=1e-4)  # differences of two losses in float32
        assert own_kl == pytest.approx(their_kl, rel=1e-5)
        assert own[1][0] == theirs[1][0]
        off = tiny.off(own[0][1], theirs[0][1])
        assert off < 1e-5 if corrected else off > 1e-3


def test_grpo_weighs_tokens_by_their_ratio_when_the_policy_has_moved(policies, generated):
    reference, policy = policies
    model = copy.deepcopy(policy)
    made = it.grpo_trainer(ours.GRPOTrainer, model)
    acted = generated["ref_per_token_logps"] + 0.3  # of another policy than today's
    inputs = generated | {"old_per_token_logps": acted}
    (loss, gradients), (bare, bare_gradients) = losses(made, inputs)
    exact = copy.deepcopy(policy).double()
    log_p = it.log_probs(exact, generated)
    d = log_p - it.log_probs(copy.deepcopy(reference).double(), generated).detach()
    rho = (log_p - acted).exp().detach()
    weights = generated["completion_mask"].double() / generated["num_items_in_batch"] / 2
    (0.4 * weights * rho * d * d / 2).sum().backward()
    wanted = 0.4 * (weights * rho * (torch.exp(-d) - 1 + d)).sum().item()
    assert loss - bare == pytest.approx(wanted, rel=1e-4)
    of_penalty = {n: gradients[n] - bare_gradients[n] for n in gradients}
    assert tiny.off(of_penalty, {n: p.grad for n, p in exact.named_parameters()}) < 1e-4


def test_grpo_without_a_penalty_is_trls(policies, generated):
    made = it.grpo_trainer(ours.GRPOTrainer, copy.deepcopy(policies[1]), beta=0.0)
    theirs = it.grpo_trainer(trl.GRPOTrainer, copy.deepcopy(policies[1]), beta=0.0)
    assert losses(made, generated)[0][0] == losses(theirs, generated)[0][0]
    assert "kl" not in made._metrics["train"]


def test_grpo_refuses_a_correction_by_sequences(policies):
    with pytest.raises(FormError, match=r"mean ratio of its sequence.*Leave use_bias_correction_kl out"):
        it.grpo_trainer(
            ours.GRPOTrainer,
            copy.deepcopy(policies[1]),
            use_bias_correction_kl=True,
            importance_sampling_level="sequence",
        )


# ---------------------------------------------------------------- two ranks


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, str(HERE / "trl_ranks.py"), str(out / "found.pt"), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(out / "found.pt", weights_only=True)


@pytest.mark.slow
def test_two_ranks_of_gkd_make_the_step_of_one_where_trls_make_half(of_two_ranks):
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    wanted, gradients = it.of_batches(student, teacher, [it.collate(it.completed(32).to_list())])
    own, theirs = of_two_ranks["ours"], of_two_ranks["theirs"]
    assert own["logged"]["loss"] == pytest.approx(wanted, rel=1e-6)
    close(own["step"], gradients)
    assert theirs["logged"]["loss"] == pytest.approx(wanted / 2, rel=1e-6)
    assert tiny.ratio(theirs["step"], gradients) == pytest.approx(0.5, abs=1e-6)
    evaluated = [it.collate(it.completed(7).to_list())]
    for name, beta in (("eval_loss", 0.3), ("eval_kl", 0.0)):
        value, _ = it.of_batches(student, teacher, evaluated, lambda s, t, beta=beta: it.divergence(s, t, beta))
        assert own["evaluated"][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "beta"), [("own", 0.3), ("distillation", 1.0)])
def test_two_ranks_of_completions_make_the_mean_over_all_tokens(of_two_ranks, name, beta):
    found = of_two_ranks[name]
    assert len(found["seen"]) == 4
    assert len({(batch["labels"] != -100).sum().item() for batch in found["seen"]}) > 1
    wanted, gradients = it.of_batches(
        tiny.model(seed=1), tiny.model(seed=2), found["seen"], lambda s, t: it.divergence(s, t, beta)
    )
    assert found["logged"]["loss"] == pytest.approx(wanted, rel=1e-6)
    close(found["step"], gradients)


@pytest.mark.slow
def test_two_ranks_evaluate_every_completion_once(of_two_ranks):
    found = of_two_ranks["distillation"]
    student = tiny.model()
    student.load_state_dict(found["after"])
    evaluated_by_tokens(found["metrics"], student, tiny.model(seed=2), found["evaluated"])


@pytest.mark.slow
def test_two_ranks_of_grpo_make_the_mean_over_all_tokens(of_two_ranks):
    found = of_two_ranks["grpo"]
    policy, reference = tiny.model(), tiny.model()
    for model, state in zip((policy, reference), found["models"], strict=True):
        model.load_state_dict(state)
    wanted, gradients = it.of_tokens(policy, reference, found["seen"], 0.4)
    assert found["logged"]["loss"] == pytest.approx(wanted, rel=1e-5)
    close(found["step"], gradients)


def test_without_trl_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "kullback.integrations.trl")
    with pytest.raises(MissingExtra, match=r"the package 'trl' is not installed; write: pip install 'kullback\[lm\]'"):
        importlib.import_module("kullback.integrations.trl")
