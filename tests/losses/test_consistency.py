import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from kullback import FormError, Logits, js
from kullback.losses import UDA, Consistency, cyclical, linear, training_signal


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits, original, augmented = (2 * torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    return logits.requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2]), original, augmented.requires_grad_()


def google(logits, labels, original, augmented, temp, thresh, coefficient, eta):
    """google-research/uda text/uda.py, written out; temp and thresh are -1 for off."""
    log_probs = logits.log_softmax(-1)
    ce = -log_probs[torch.arange(len(labels)), labels]
    mask = torch.ones_like(ce)
    if eta is not None:
        mask = mask * (1 - (ce.neg().exp() > eta).double())
    supervised = (ce * mask).sum() / max(mask.sum().item(), 1.0)
    target = (original / temp if temp != -1 else original).log_softmax(-1).detach()
    prediction = augmented.log_softmax(-1)
    kl = (target.exp() * target).sum(-1) - (target.exp() * prediction).sum(-1)
    if thresh != -1:
        kl = kl * (original.softmax(-1).amax(-1) > thresh).double()
    return supervised + coefficient * kl.mean()


def port(logits, labels, original, augmented, temp, thresh, coefficient, eta):
    """SanghunYun/UDA_pytorch main.py, written out."""
    ce = F.cross_entropy(logits, labels, reduction="none")
    mask = 1 - (torch.exp(-ce) > eta).double()
    supervised = (ce * mask).sum() / torch.maximum(mask.sum(), torch.ones(()))
    p = original.softmax(-1).detach()
    kept = (p.max(-1)[0] > thresh).double()
    kl = F.kl_div((augmented / temp).log_softmax(-1), p, reduction="none").sum(-1)
    return supervised + coefficient * (kl * kept).sum() / torch.maximum(kept.sum(), torch.ones(()))


@pytest.mark.parametrize("temp", [-1, 0.4])
@pytest.mark.parametrize("thresh", [-1, 0.6, 0.999])
@pytest.mark.parametrize("schedule", [None, "linear", "log", "exp"])
def test_equals_the_papers_code(batch, temp, thresh, schedule):
    logits, labels, original, augmented = batch
    eta = None if schedule is None else training_signal(30, steps=100, num_classes=5, schedule=schedule)
    consistency = Consistency(
        target_temperature=1.0 if temp == -1 else temp, threshold=None if thresh == -1 else thresh
    )
    loss = UDA(consistency, coefficient=0.7, signal=schedule, total_steps=100)
    ours = loss(logits=logits, labels=labels, original=original, augmented=augmented, step=30)
    source = google(logits, labels, original, augmented, temp, thresh, 0.7, eta)
    assert ours.item() == pytest.approx(source.item(), rel=1e-12)
    for x in (logits, augmented):
        (g,), (s,) = (torch.autograd.grad(v, x, retain_graph=True) for v in (ours, source))
        torch.testing.assert_close(g, s, rtol=1e-10, atol=1e-14)


def test_the_default_is_the_papers_code_with_its_flags_off(batch):
    logits, labels, original, augmented = batch
    ours = UDA()(logits=logits, labels=labels, original=original, augmented=augmented)
    assert ours.item() == pytest.approx(google(*batch, -1, -1, 1.0, None).item(), rel=1e-12)


def test_equals_the_popular_port_by_named_options(batch):
    eta = training_signal(50, steps=100, num_classes=5)
    consistency = Consistency(prediction_temperature=0.85, threshold=0.6, denominator="kept")
    logits, labels, original, augmented = batch
    ours = UDA(consistency, signal="linear", total_steps=100).parts(
        logits=logits, labels=labels, original=original, augmented=augmented, step=50
    )
    source = port(*batch, 0.85, 0.6, 1.0, eta)
    assert ours.loss.item() == pytest.approx(source.item(), rel=1e-12)
    (g,), (s,) = (torch.autograd.grad(v, augmented, retain_graph=True) for v in (ours.loss, source))
    torch.testing.assert_close(g, s, rtol=1e-10, atol=1e-14)
    # the two differ: the test can fail
    assert abs(source.item() - google(*batch, 0.85, 0.6, 1.0, eta).item()) > 0.01
    assert ours.signal == eta
    assert ours.labelled_kept == (logits.softmax(-1)[torch.arange(8), labels] <= eta).sum()
    assert (ours.supervised + ours.consistency).item() == pytest.approx(ours.loss.item(), rel=1e-14)


def test_no_gradient_reaches_the_original(batch):
    _, _, original, augmented = batch
    original.requires_grad_()
    loss = Consistency(target_temperature=0.5)(original=original, augmented=augmented)
    assert torch.autograd.grad(loss, original, allow_unused=True) == (None,)


def test_threshold_looks_at_the_untempered_probability():
    original = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # 0.731, sharpened at 0.4: 0.924
    augmented = torch.zeros(1, 2, dtype=torch.float64)
    assert Consistency(target_temperature=0.4, threshold=0.8)(original=original, augmented=augmented) == 0
    assert Consistency(target_temperature=0.4, threshold=0.7)(original=original, augmented=augmented) > 0


def test_nothing_confident_is_a_connected_zero(batch):
    *_, original, augmented = batch
    for denominator in ("all", "kept"):
        loss = Consistency(threshold=1.0, denominator=denominator)(original=original, augmented=augmented)
        (g,) = torch.autograd.grad(loss, augmented)
        assert loss == 0
        assert (g == 0).all()


def test_any_divergence_and_forms(batch):
    *_, original, augmented = batch
    ours = Consistency(divergence=js)(original=Logits(original), augmented=Logits(augmented))
    assert ours.item() == pytest.approx(js(Logits(original), Logits(augmented)).mean().item(), rel=1e-12)


def test_masked_pairs_leave_the_denominator(batch):
    *_, original, augmented = batch
    mask = torch.arange(8) < 5
    loss = Consistency(threshold=0.6)
    assert loss(original=original, augmented=augmented, mask=mask).item() == pytest.approx(
        loss(original=original[:5], augmented=augmented[:5]).item(), rel=1e-12
    )


def test_rows_without_a_label_leave_the_supervised_term_alone(batch):
    """The pairs are other rows: their own mask tells what does not count."""
    logits, labels, original, augmented = batch
    partly = torch.where(torch.arange(8) < 5, labels, -100)
    parts = UDA().parts(logits=logits, labels=partly, original=original, augmented=augmented)
    assert parts.supervised.item() == pytest.approx(F.cross_entropy(logits[:5], labels[:5]).item(), rel=1e-12)
    whole = Consistency()(original=original, augmented=augmented)
    assert parts.consistency.item() == whole.item()
    assert parts.labelled_kept == 5
    with pytest.raises(FormError, match="mask is over the pairs"):
        UDA()(logits=logits, labels=labels, mask=partly != -100)


def test_schedules():
    for step in (0, 17, 50, 100):
        t, start = step / 100, 1 / 5
        for schedule, a in (
            ("linear", t),
            ("log", 1 - math.exp(-5 * t)),
            ("exp", math.exp(5 * (t - 1))),
        ):
            ours = training_signal(step, steps=100, num_classes=5, schedule=schedule)
            assert ours == pytest.approx(a * (1 - start) + start, rel=1e-15)
    assert training_signal(500, steps=100, num_classes=5) == 1.0
    # Fu et al. 2019, equations 6-7, with t counted from 1
    total, cycles, ratio = 40, 4, 0.5
    for t in range(1, total + 1):
        tau = ((t - 1) % math.ceil(total / cycles)) / (total / cycles)
        assert cyclical(t - 1, steps=total, cycles=cycles, ratio=ratio) == (tau / ratio if tau <= ratio else 1.0)
    assert linear(3, steps=4, start=1.0, stop=0.2) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Consistency(threshold=2.0), "threshold is 2.0"),
        (lambda: Consistency(denominator="some"), "denominator is 'some'"),
        (lambda: Consistency(target_temperature=-1.0), "target_temperature is -1.0"),
        (lambda: UDA(signal="linear"), "total_steps"),
        (lambda: UDA(coefficient=-1.0), "coefficient is -1.0"),
        (
            lambda: UDA(signal="exp", total_steps=9)(logits=torch.zeros(1, 2), labels=torch.tensor([0])),
            "Write step=",
        ),
        (
            lambda: UDA()(logits=torch.zeros(1, 2), labels=torch.tensor([0]), original=torch.zeros(1, 2)),
            "belong together",
        ),
        (lambda: training_signal(-1, steps=10, num_classes=2), "step is -1"),
        (lambda: linear(0, steps=0), "steps=0"),
        (lambda: cyclical(0, steps=3, cycles=4), "cycles is 4"),
        (lambda: cyclical(0, steps=3, cycles=1, ratio=0.0), "ratio is 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(FormError, match=message):
        call()
