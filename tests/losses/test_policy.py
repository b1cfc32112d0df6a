"""What each estimator's value and gradient estimate, by enumerating six actions: exact expectations, no sampling."""

import math

import pytest
import torch

from kullback import FormError, Logits, Probs, kl
from kullback.losses import PolicyKL

GENERATOR = torch.Generator().manual_seed(0)
THETA, REF, MU = (1.5 * torch.randn(6, generator=GENERATOR, dtype=torch.float64) for _ in range(3))
ESTIMATORS = ("k1", "k2", "k3", "ratio_k1", "ratio_k2", "ratio_k3", "exact", "none")


def expected(value, gradient, off_policy, **options):
    """(E[value], E[gradient with respect to the logits]) over all actions, each weighted with its probability."""
    theta = THETA.clone().requires_grad_()
    log_pi, log_ref, log_mu = theta.log_softmax(-1), REF.log_softmax(-1), MU.log_softmax(-1)
    behaviour = log_mu if off_policy else log_pi.detach()
    loss = PolicyKL(value, gradient, **options)
    needs_logits = "exact" in (value, gradient)
    mean, slope = torch.zeros(()).double(), torch.zeros(6).double()
    for action in range(6):
        row = loss(
            log_prob=log_pi[action],
            reference_log_prob=log_ref[action],
            behaviour_log_prob=log_mu[action] if off_policy else None,
            logits=theta if needs_logits else None,
            reference_logits=REF if needs_logits else None,
        )
        mean = mean + behaviour[action].exp() * row.detach()
        if gradient == "none":
            assert not row.requires_grad
            continue
        slope = slope + behaviour[action].exp() * torch.autograd.grad(row, theta, retain_graph=True)[0]
    return mean, slope


def gradient_of(function):
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad(function(theta), theta)[0]


def written_out(theta):
    """Σ π log(π/ref), in plain float64."""
    return (theta.softmax(-1) * (theta.log_softmax(-1) - REF.log_softmax(-1))).sum()


TRUE = gradient_of(written_out)
FORWARD = gradient_of(lambda t: (REF.softmax(-1) * (REF.log_softmax(-1) - t.log_softmax(-1))).sum())
HALF_SQUARE = gradient_of(lambda t: (t.softmax(-1) * (t.log_softmax(-1) - REF.log_softmax(-1)).square() / 2).sum())
WHAT = {
    "k1": torch.zeros(6).double(),
    "k2": TRUE,
    "k3": FORWARD,
    "ratio_k1": TRUE,
    "ratio_k2": HALF_SQUARE,
    "ratio_k3": TRUE,
    "exact": TRUE,
    "none": torch.zeros(6).double(),
}


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("gradient", ESTIMATORS)
def test_expected_gradients(gradient, off_policy):
    """The table of docs/losses.md, to 1e-12, whatever the value estimator is."""
    for value in ("k1", "k3"):
        _, slope = expected(value, gradient, off_policy)
        torch.testing.assert_close(slope, WHAT[gradient], rtol=0, atol=1e-12)


def test_the_targets_of_the_table_differ():
    """So that no row of the table can pass for another."""
    targets = [WHAT["k1"], TRUE, FORWARD, HALF_SQUARE]
    assert min((a - b).abs().max() for i, a in enumerate(targets) for b in targets[:i]) > 0.05


@pytest.mark.parametrize("off_policy", [False, True])
def test_expected_values(off_policy):
    truth = written_out(THETA).item()
    half = (THETA.softmax(-1) * (THETA.log_softmax(-1) - REF.log_softmax(-1)).square() / 2).sum().item()
    for value, expectation in (("k1", truth), ("k2", half), ("k3", truth), ("exact", truth)):
        mean, _ = expected(value, "k2", off_policy)
        assert mean.item() == pytest.approx(expectation, rel=1e-12)
    assert abs(half / truth - 1) > 0.1


def test_verbs_agree_with_the_enumeration():
    assert kl(Logits(THETA), Logits(REF)).item() == pytest.approx(written_out(THETA).item(), rel=1e-12)


def test_ratio_k3_and_ratio_k1_have_the_gradient_of_k2_action_by_action_up_to_a_mean_zero_term():
    theta = THETA.clone().requires_grad_()
    log_pi, log_ref = theta.log_softmax(-1), REF.log_softmax(-1)
    arguments = {"log_prob": log_pi, "reference_log_prob": log_ref}
    k2, k3 = (
        torch.autograd.grad(PolicyKL("k1", g)(**arguments), theta, retain_graph=True)[0] for g in ("k2", "ratio_k3")
    )
    torch.testing.assert_close(k2, k3, rtol=1e-12, atol=1e-14)


def test_a_token_level_penalty_misses_the_effect_on_later_states():
    """Two steps: the gradient of the sequence's KL has a part that per-token gradients lack; the reward has it."""
    first, ref_first = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    second, ref_second = 3 * torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    first.requires_grad_()
    later = kl(Logits(second), Logits(ref_second))
    whole = kl(Logits(first), Logits(ref_first)) + (first.softmax(-1) * later).sum()
    (truth,) = torch.autograd.grad(whole, first, retain_graph=True)
    per_token = in_reward = torch.zeros(2).double()
    for a in range(2):
        log_pi = first.log_softmax(-1)
        weight = log_pi[a].exp().item()
        loss = PolicyKL("k1", "k2")(log_prob=log_pi[a], reference_log_prob=ref_first.log_softmax(-1)[a])
        per_token = per_token + weight * torch.autograd.grad(loss, first)[0]
        cost = loss.item() + later[a].item()  # what the reward subtracts from here on
        (score,) = torch.autograd.grad(first.log_softmax(-1)[a], first)
        in_reward = in_reward + weight * cost * score
    torch.testing.assert_close(in_reward, truth, rtol=0, atol=1e-12)
    assert (per_token - truth).abs().max() > 0.01


def test_values_per_action_are_schulmans():
    log_pi, log_ref = THETA.log_softmax(-1), REF.log_softmax(-1)
    log_r = log_ref - log_pi  # his r = p/q with q the sampler
    for value, source in (("k1", -log_r), ("k2", log_r.square() / 2), ("k3", log_r.exp() - 1 - log_r)):
        ours = PolicyKL(value, "none")(log_prob=log_pi, reference_log_prob=log_ref)
        assert ours.item() == pytest.approx(source.mean().item(), rel=1e-12)


def test_k3_keeps_its_digits_where_the_plain_formula_has_none():
    d = torch.tensor([1e-5])
    ours = PolicyKL("k3", "none")(log_prob=d, reference_log_prob=torch.zeros(1))
    assert ours.item() == pytest.approx(d.item() ** 2 / 2 - d.item() ** 3 / 6, rel=1e-6)
    assert ((-d).exp() - 1 + d).item() != pytest.approx(ours.item(), rel=0.1)


def test_ratio_clip_is_reported_and_leaves_a_gradient():
    log_prob = torch.tensor([0.0, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    arguments = {
        "log_prob": log_prob,
        "reference_log_prob": torch.tensor([-1.0, -1.5, -1.0]).double(),
        "behaviour_log_prob": torch.tensor([-3.0, -1.0, -2.0]).double(),
    }
    free, clipped = (
        PolicyKL("k1", "ratio_k1").parts(**arguments),
        PolicyKL("k1", "ratio_k1", ratio_clip=2.0).parts(**arguments),
    )
    rho = torch.tensor([math.exp(3.0), 1.0, 1.0], dtype=torch.float64)
    d = torch.tensor([1.0, 0.5, -1.0]).double()
    assert free.value.item() == pytest.approx((rho * d).mean().item(), rel=1e-12)
    assert clipped.value.item() == pytest.approx((rho.clamp(max=2.0) * d).mean().item(), rel=1e-12)
    assert (free.ratio_clipped.item(), clipped.ratio_clipped.item()) == (0.0, pytest.approx(1 / 3))
    assert free.effective_share.item() == pytest.approx((rho.sum() ** 2 / (3 * rho.square().sum())).item(), rel=1e-12)
    (g,) = torch.autograd.grad(clipped.loss, log_prob)
    torch.testing.assert_close(g, rho.clamp(max=2.0) * (d + 1) / 3, rtol=1e-12, atol=0)


def test_log_ratio_clip_is_reported_and_is_a_dead_zone():
    """T5: the copies that clamp at ±20 have gradient 0 beyond; here nothing is clamped unless asked for."""
    log_prob = torch.tensor([-30.0, 0.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, -1.0]).double()
    free = PolicyKL("k3", "k3").parts(log_prob=log_prob, reference_log_prob=reference)
    (g,) = torch.autograd.grad(free.loss, log_prob)
    torch.testing.assert_close(g, (1 - torch.tensor([30.0, -1.0]).double().exp()) / 2, rtol=1e-12, atol=0)
    clipped = PolicyKL("k3", "k3", log_ratio_clip=20.0).parts(log_prob=log_prob, reference_log_prob=reference)
    (g,) = torch.autograd.grad(clipped.loss, log_prob)
    assert g[0] == 0
    assert (free.log_ratio_clipped.item(), clipped.log_ratio_clipped.item()) == (0.0, 0.5)


@pytest.mark.parametrize("gradient", ["k1", "k2", "k3", "ratio_k1", "ratio_k2", "ratio_k3"])
def test_an_infinite_row_shows_and_sends_back_nothing(gradient):
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    parts = PolicyKL("k1", gradient).parts(log_prob=log_prob, reference_log_prob=torch.tensor([-math.inf, -1.0]))
    (g,) = torch.autograd.grad(parts.loss, log_prob)
    assert parts.loss.item() == math.inf
    assert g[0] == 0
    assert g[1].isfinite()


def test_exact_with_an_excluded_action_has_no_nan():
    theta = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, -math.inf]], requires_grad=True)
    reference = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, -math.inf]])
    loss = PolicyKL("exact", "exact")(logits=theta, reference_logits=reference)
    mixed = PolicyKL("k1", "exact")(
        logits=theta,
        reference_logits=reference,
        log_prob=torch.zeros(2),
        reference_log_prob=torch.zeros(2),
    )
    for value in (loss, mixed):
        (g,) = torch.autograd.grad(value, theta)
        assert (g[0] == 0).all()
        assert g.isfinite().all()
    assert loss.item() == math.inf


def test_forms_may_be_given_for_the_exact_sum():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.25]])
    loss = PolicyKL("exact", "exact")(logits=Probs(p), reference_logits=Probs(q))
    assert loss.item() == pytest.approx(0.14384103622589045, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PolicyKL("k4"), "value is 'k4'"),
        (lambda: PolicyKL("k1", "k4"), "gradient is 'k4'"),
        (lambda: PolicyKL(ratio_clip=0.0), "ratio_clip is 0.0"),
        (lambda: PolicyKL(log_ratio_clip=-1.0), "log_ratio_clip is -1.0"),
        (lambda: PolicyKL()(log_prob=torch.zeros(2)), "reference_log_prob="),
        (lambda: PolicyKL("exact", "exact")(logits=torch.zeros(1, 2)), "reference_logits="),
        (
            lambda: PolicyKL()(log_prob=torch.zeros(2), reference_log_prob=torch.zeros(3)),
            r"log_prob has rows of shape \(2,\) but reference_log_prob has \(3,\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(FormError, match=message):
        call()
