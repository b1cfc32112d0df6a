"""What every loss owes: gradients that are derivatives, rows that do not count, parts that add up."""

import json
import math
from pathlib import Path

import pytest
import torch

from kullback.losses import (
    DKD,
    FGAN,
    GKD,
    NWJ,
    UDA,
    Consistency,
    DiagonalGaussian,
    Distillation,
    DonskerVaradhan,
    ForwardKL,
    FullGaussian,
    LabelSmoothing,
    MutualLearning,
    PolicyKL,
    RDrop,
    ReverseKL,
    SkewKL,
    VAELoss,
    fgan,
)

N, V, D = 6, 4, 3
TEACHER = (2.0 * torch.cos(2.1 * torch.arange(N * V, dtype=torch.float64) + 1.0)).reshape(N, V)
LABELS = torch.tensor([0, 3, 2, 2, 1, 3])
REFERENCE = TEACHER[:, 0] - 1.0
BEHAVIOUR = TEACHER[:, 1] - 1.0
TARGET = (0.5 + 0.5 * torch.sin(3.3 * torch.arange(N * D, dtype=torch.float64))).reshape(N, D)
PRIOR = FullGaussian(torch.ones(D).double(), torch.eye(D).double() + 0.3 * torch.ones(D, D).double().tril(-1))


def smoothing(x, mask, num_items=None):
    target = LABELS[: x.shape[0]] if mask is None else torch.where(mask, LABELS[: x.shape[0]], -1)
    return LabelSmoothing(V, -1, 0.1, normalize_length=True)(x, target, num_items=num_items)


def with_teacher(loss):
    return lambda x, mask, num_items=None: loss(
        student=x, teacher=TEACHER[: x.shape[0]], mask=mask, num_items=num_items
    )


def with_labels(loss, **names):
    def call(x, mask, num_items=None):
        more = {key: value[: x.shape[0]] for key, value in names.items()}
        return loss(student=x, labels=LABELS[: x.shape[0]], mask=mask, num_items=num_items, **more)

    return call


def mutual(x, mask, num_items=None):
    labels = LABELS[: x.shape[0]]
    # detach=False: with it the value depends on peers through which no gradient is sent, on purpose
    losses = MutualLearning(detach=False)(peers=[x, 0.5 * x.flip(-1)], labels=labels, mask=mask, num_items=num_items)
    return losses.sum()


def uda(x, mask, num_items=None):
    logits = 0.7 * x if mask is None else torch.where(mask.unsqueeze(-1), 0.7 * x, 0.0)
    labels = LABELS[: x.shape[0]] if mask is None else torch.where(mask, LABELS[: x.shape[0]], -100)
    return UDA(Consistency(target_temperature=0.4), signal="linear", total_steps=10)(
        logits=logits,
        labels=labels,
        original=TEACHER[: x.shape[0]],
        augmented=x,
        step=9,
        mask=mask,
        num_items=num_items,
        num_labels=num_items,
    )


def policy(value, gradient):
    def call(x, mask, num_items=None):
        n = x.shape[0]
        return PolicyKL(value, gradient)(
            log_prob=0.5 * x[:, 0] - 2.0,
            reference_log_prob=REFERENCE[:n],
            behaviour_log_prob=BEHAVIOUR[:n],
            logits=x,
            reference_logits=TEACHER[:n],
            mask=mask,
            num_items=num_items,
        )

    return call


def vae(likelihood, full=False, **options):
    def call(x, mask, num_items=None):
        if full:
            # a masked factor must still be one when the form is made; its mean may be anything
            kept = x if mask is None else torch.where(mask.unsqueeze(-1), x, 0.0)
            below = 0.1 * kept[:, :1, None] * torch.ones(D, D).double().tril(-1)
            factor = torch.diag_embed(torch.exp(kept[:, 1:])) + below
            posterior = FullGaussian(x[:, :D], factor)
        else:
            posterior = DiagonalGaussian(x[:, :D], x[:, 1:])
        return VAELoss(likelihood, **options)(
            decoded=x[:, :D],
            target=TARGET[: x.shape[0]],
            posterior=posterior,
            prior=PRIOR if full else None,
            mask=mask,
            num_items=num_items,
        )

    return call


def critic(loss):
    return lambda x, mask, num_items=None: loss(real=x[:, 0], fake=x[:, 1], real_mask=mask, fake_mask=mask)


def forward_kl(weighted):
    def call(x, mask, num_items=None):
        weights = TEACHER[: x.shape[0], 2] if weighted else None
        return ForwardKL()(log_q=x[:, 0], log_weights=weights, mask=mask)

    return call


PER_ROW = {  # each takes (x (n, V), mask, num_items)
    "label_smoothing": smoothing,
    "distillation": with_labels(Distillation(), teacher=TEACHER),
    "consistency": lambda x, mask, num_items=None: Consistency(target_temperature=0.4)(
        original=TEACHER[: x.shape[0]], augmented=x, mask=mask, num_items=num_items
    ),
    "uda": uda,
    "rdrop": lambda x, mask, num_items=None: RDrop(alpha=2.0)(
        first=x, second=x.flip(-1), labels=LABELS[: x.shape[0]], mask=mask, num_items=num_items
    ),
    "mutual": mutual,
    "gkd": with_teacher(GKD(0.3)),
    "gkd_scaled": with_teacher(GKD(0.3, scaled=True)),
    "skew": with_teacher(SkewKL(0.1)),
    "skew_reverse": with_teacher(SkewKL(0.3, direction="reverse", temperature=2.0)),
    "dkd": with_labels(DKD(1.0, 2.0, temperature=2.0), teacher=TEACHER),
    "policy_k1": policy("k1", "ratio_k1"),
    "policy_k2": policy("k2", "ratio_k2"),
    "policy_k3": policy("k3", "ratio_k3"),
    "policy_exact": policy("exact", "exact"),
    "vae_bernoulli": vae("bernoulli", beta=0.5),
    "vae_gaussian": vae("gaussian", scale=0.5, free_bits=0.3, free_bits_over="example"),
    "vae_full": vae("gaussian", full=True),
}
WHOLE_BATCH = {
    "vae_free_bits": vae("bernoulli", free_bits=0.3),
    "forward_kl": forward_kl(False),
    "forward_kl_weighted": forward_kl(True),
    "nwj": critic(NWJ()),
    "donsker_varadhan": critic(DonskerVaradhan()),
    **{
        f"fgan_{c.name}": critic(FGAN(c))
        for c in (
            fgan.KL,
            fgan.REVERSE_KL,
            fgan.JEFFREYS,
            fgan.CHI2,
            fgan.SQUARED_HELLINGER,
            fgan.TV,
            fgan.GAN,
            fgan.js(0.1),
            fgan.alpha(0.3),
        )
    },
}
EVERY = {**PER_ROW, **WHOLE_BATCH}


@pytest.fixture
def x():
    return torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


MASK = torch.tensor([True, False, True, True, False, True])


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck(name, x):
    assert torch.autograd.gradcheck(lambda t: EVERY[name](t, None), (x,))
    assert torch.autograd.gradcheck(lambda t: EVERY[name](t, MASK), (x,))


@pytest.mark.parametrize("name", EVERY)
def test_second_derivatives(name, x):
    assert torch.autograd.gradgradcheck(lambda t: EVERY[name](t, None), (x[:2].detach().requires_grad_(),))


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", EVERY)
def test_masked_rows_may_hold_anything(name, junk, x):
    clean = EVERY[name](x, MASK)
    (expected,) = torch.autograd.grad(clean, x)
    dirty = torch.where(MASK.unsqueeze(-1), x.detach(), junk).requires_grad_()
    loss = EVERY[name](dirty, MASK)
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert loss.item() == pytest.approx(clean.item(), rel=1e-14)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)
    assert (gradient[~MASK] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_everything_masked_is_a_connected_zero(name, x):
    dirty = (x.detach() * math.nan).requires_grad_()
    loss = EVERY[name](dirty, torch.zeros(N, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert loss.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_masking_is_the_same_as_leaving_out(name, x):
    first = torch.arange(N) < 4
    loss, shorter = EVERY[name](x, first), EVERY[name](x[:4], None)
    assert loss.item() == pytest.approx(shorter.item(), rel=1e-12)


@pytest.mark.parametrize("name", PER_ROW)
def test_accumulated_parts_add_up(name, x):
    part = PER_ROW[name](x[:4], None, 6)
    whole, last_two_masked = PER_ROW[name](x, None), PER_ROW[name](x, torch.arange(N) < 4, 6)
    rest = PER_ROW[name](x, torch.arange(N) >= 4, 6)
    assert part.item() == pytest.approx(last_two_masked.item(), rel=1e-12)
    assert (part + rest).item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by PyTorch's own tracer
@pytest.mark.parametrize(
    "name", ["distillation", "label_smoothing", "uda", "rdrop", "skew", "dkd", "policy_k3", "vae_free_bits", "nwj"]
)
def test_compiles_whole(name, x):
    loss = EVERY[name](x, None)
    torch._dynamo.reset()  # one lambda serves all losses, and would reach the limit of its recompilations
    compiled = torch.compile(lambda t: EVERY[name](t, None), fullgraph=True, backend="aot_eager")(x)
    (g,), (h,) = torch.autograd.grad(loss, x), torch.autograd.grad(compiled, x)
    assert compiled.item() == pytest.approx(loss.item(), rel=1e-14)
    torch.testing.assert_close(h, g, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "vae_full"])  # its prior is float64
def test_float32_gives_float32(name, x):
    single = x.detach().float().requires_grad_()
    loss = EVERY[name](single, None)
    assert loss.isfinite()
    assert loss.item() == pytest.approx(EVERY[name](x, None).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, single)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in EVERY if name != "vae_full"])
def test_half_precision_in_single_precision_out(name, x):
    half = x.detach().bfloat16().requires_grad_()
    loss = EVERY[name](half, None)
    (gradient,) = torch.autograd.grad(loss, half)
    exact = EVERY[name](half.detach().double(), None)
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()
    # what the test's own arithmetic does in half precision before the loss (0.7 x, exp of it) costs some 2^-8 each
    assert loss.item() == pytest.approx(exact.item(), rel=3e-2)
    assert loss.dtype != torch.bfloat16


def test_one_class_costs_nothing():
    x = torch.randn(N, 1, dtype=torch.float64, requires_grad=True)
    labels, teacher = torch.zeros(N, dtype=torch.long), torch.randn(N, 1, dtype=torch.float64)
    losses = [
        LabelSmoothing(1, -1, 0.0)(x, labels),
        LabelSmoothing(1, -1, 0.1, spread="all")(x, labels),
        Distillation()(student=x, teacher=teacher, labels=labels),
        UDA(signal="exp", total_steps=5)(logits=x, labels=labels, original=teacher, augmented=x, step=1),
        RDrop()(first=x, second=2 * x, labels=labels),
        MutualLearning()(peers=[x, 2 * x], labels=labels).sum(),
        GKD()(student=x, teacher=teacher),
        GKD(0.5, scaled=True)(student=x, teacher=teacher),
        SkewKL()(student=x, teacher=teacher),
        PolicyKL("exact", "exact")(logits=x, reference_logits=teacher),
    ]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert loss.item() == 0
        assert (gradient == 0).all()


def test_reverse_kl_gradcheck():
    base = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(mu, logvar):
        generator = torch.Generator().manual_seed(3)
        q = DiagonalGaussian(mu, logvar)
        return ReverseKL(8)(q, lambda z: -(z - base.mean(0)).pow(4).sum(-1), generator=generator)

    mu, logvar = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(loss, (mu, logvar))


FROZEN = Path(__file__).with_name("values.json")
WITH = {"all": {"mask": None}, "masked": {"mask": MASK}, "accumulated": {"mask": MASK, "num_items": 9}}


def measured(name, how):
    """The value of a loss, and its gradient along two fixed directions."""
    # no random numbers: what is frozen must not depend on a generator
    x = (1.7 * torch.sin(1.3 * torch.arange(N * V, dtype=torch.float64) + 0.4)).reshape(N, V).requires_grad_()
    along = torch.cos(torch.arange(2 * N * V, dtype=torch.float64)).reshape(2, N, V)
    loss = EVERY[name](x, **WITH[how])
    (gradient,) = torch.autograd.grad(loss, x)
    return [loss.item(), *(along * gradient).sum((1, 2)).tolist()]


def frozen_cases():
    return [(name, how) for name in EVERY for how in WITH if how != "accumulated" or name in PER_ROW]


@pytest.mark.parametrize(("name", "how"), frozen_cases())
def test_values_and_gradients_are_what_they_were(name, how):
    """values.json was written by the first implementation, which averages the verbs' rows (`make_values` below)."""
    expected = json.loads(FROZEN.read_text())[f"{name}/{how}"]
    # each number is a sum of a few dozen terms of order one
    assert measured(name, how) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def make_values():
    """Write values.json anew, on purpose only: a new loss adds lines, an old one changes none."""
    lines = {f"{name}/{how}": measured(name, how) for name, how in frozen_cases()}
    FROZEN.write_text("{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in lines.items()) + "\n}\n")


def test_a_term_of_weight_zero_adds_nothing_and_keeps_its_value():
    """Of a total, its value would be 0/0, and an infinite one would make the loss infinite or NaN."""
    p, q = (torch.randn(4, 5, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (1, 2))
    labels = torch.tensor([0, 1, 2, 3])
    whole, without = (RDrop(alpha).parts(first=p, second=q, labels=labels) for alpha in (1.0, 0.0))
    assert without.loss.item() == pytest.approx(whole.nll.item(), rel=1e-12)
    assert without.kl.item() == pytest.approx(whole.kl.item(), rel=1e-12) != 0.0
    impossible = q.clone()
    impossible[0, 4] = -torch.inf
    far = RDrop(0.0).parts(first=p, second=impossible, labels=labels)
    assert far.kl.item() == torch.inf
    assert far.loss.isfinite()
    whole, without = (DKD(alpha, beta=2.0).parts(student=q, teacher=p, labels=labels) for alpha in (1.0, 0.0))
    assert without.target_class.item() == pytest.approx(whole.target_class.item(), rel=1e-12) != 0.0
    assert without.loss.item() == pytest.approx(2.0 * whole.other_classes.item(), rel=1e-12)
    whole, without = (DKD(a, beta=2.0).parts(student=q[:, :2], teacher=p[:, :2], labels=labels % 2) for a in (0.5, 0.0))
    assert without.target_class.item() == pytest.approx(whole.target_class.item(), rel=1e-12) != 0.0
    assert without.loss.item() == 0.0  # of two classes, one is left, which is certain
