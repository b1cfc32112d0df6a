"""Lower bounds from critics: below the divergence for any critic and equal to it at the named one, by enumeration."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.special import lambertw

import kullback
from kullback import FormError, Probs
from kullback.losses import FGAN, NWJ, DonskerVaradhan, fgan

GENERATOR = torch.Generator().manual_seed(0)
P, Q = (torch.randn(6, generator=GENERATOR, dtype=torch.float64).softmax(-1) for _ in range(2))
RATIO = (P / Q).log()
V = torch.linspace(-3.0, 3.0, 41, dtype=torch.float64)


def truth(c):
    """The row's own words, evaluated: kl(p, q), 2 js(p, q) - log 4, ..."""
    names = {name: getattr(kullback, name) for name in ("kl", "js", "jeffreys", "alpha", "tv", "hellinger", "chi2")}
    text = c.estimates.replace("2 js(p, q) - log 4", f"2 * js(p, q) - {math.log(4)}")
    return float(eval(text, {"__builtins__": {}}, {**names, "p": Probs(P), "q": Probs(Q)}))


ROWS = [
    fgan.KL,
    fgan.REVERSE_KL,
    fgan.JEFFREYS,
    fgan.CHI2,
    fgan.SQUARED_HELLINGER,
    fgan.TV,
    fgan.GAN,
    fgan.js(),
    fgan.js(0.1),
    *(fgan.alpha(a) for a in (-1.0, 0.0, 0.3, 0.5, 1.0, 2.0)),
]


@pytest.mark.parametrize("c", ROWS, ids=lambda c: c.name)
def test_the_best_critic_reaches_the_divergence_and_no_other_exceeds_it(c):
    def bound(v):
        return ((P * c.output(v)).sum() - (Q * c.conjugate(v)).sum()).item()

    best = c.best(RATIO)
    assert bound(best) == pytest.approx(truth(c), rel=1e-12, abs=1e-15)
    for _ in range(50):
        v = torch.randn(6, generator=GENERATOR, dtype=torch.float64)
        assert bound(v) <= truth(c) + 1e-12
        if best.isfinite().all():
            assert bound(best + 0.1 * v) < truth(c)


def conjugates():
    """Nowozin, Cseke & Tomioka 2016, table 6: output activations g(v) and conjugates f*(t), as printed."""
    log2 = math.log(2)
    return {
        "kl": (lambda v: v, lambda t: (t - 1).exp()),
        "reverse_kl": (lambda v: -(-v).exp(), lambda t: -1 - (-t).log()),
        "chi2": (lambda v: v, lambda t: t * t / 4 + t),
        "squared_hellinger": (lambda v: 1 - (-v).exp(), lambda t: t / (1 - t)),
        "js(0.5)": (lambda v: log2 - (1 + (-v).exp()).log(), lambda t: -(2 - t.exp()).log()),
        "gan": (lambda v: -(1 + (-v).exp()).log(), lambda t: -(1 - t.exp()).log()),
        "tv": (lambda v: v.tanh() / 2, lambda t: t),
    }


@pytest.mark.parametrize("name", conjugates())
def test_equals_nowozins_table(name):
    """Ours are half of theirs where kullback's divergence is (hellinger², js)."""
    output, conjugate = conjugates()[name]
    ours = next(c for c in ROWS if c.name == name)
    scale = 0.5 if name in ("squared_hellinger", "js(0.5)") else 1.0
    torch.testing.assert_close(ours.output(V), scale * output(V), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.conjugate(V), scale * conjugate(output(V)), rtol=1e-11, atol=1e-13)


def test_jeffreys_equals_nowozins_lambert_form():
    t = fgan.JEFFREYS.output(V)
    w = torch.from_numpy(lambertw((1 - t).exp().numpy()).real)
    torch.testing.assert_close(fgan.JEFFREYS.conjugate(V), w + 1 / w + t - 2, rtol=1e-10, atol=1e-12)


def test_sampled_objective_written_out():
    real, fake = (torch.randn(n, generator=GENERATOR, dtype=torch.float64) for n in (9, 5))
    assert FGAN(fgan.KL)(real=real, fake=fake).item() == pytest.approx(
        ((fake - 1).exp().mean() - real.mean()).item(), rel=1e-12
    )
    gan = F.binary_cross_entropy_with_logits(real, torch.ones(9).double()) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros(5).double()
    )
    assert FGAN(fgan.GAN)(real=real, fake=fake).item() == pytest.approx(gan.item(), rel=1e-12)
    assert NWJ()(real=real, fake=fake).item() == FGAN(fgan.KL)(real=real, fake=fake).item()
    generator = FGAN(fgan.GAN)
    assert generator.generator(fake=fake).item() == pytest.approx(-F.softplus(fake).mean().item(), rel=1e-12)
    assert generator.generator(fake=fake, saturating=False).item() == pytest.approx(
        F.softplus(-fake).mean().item(), rel=1e-12
    )


def test_far_outputs_stay_finite():
    far = torch.tensor([-500.0, 500.0], dtype=torch.float64, requires_grad=True)
    for c in (fgan.GAN, fgan.js(0.3), fgan.TV):
        (g,) = torch.autograd.grad(FGAN(c)(real=far, fake=far), far)
        assert g.isfinite().all()


def weighted(v):
    """Draws in the proportions of P and Q, 2,000 of each, so that means are expectations to 1e-3."""
    real = v.repeat_interleave((P * 2000).round().long())
    fake = v.repeat_interleave((Q * 2000).round().long())
    return real, fake


def test_donsker_varadhan_is_tight_for_any_constant():
    kl = kullback.kl(Probs(P), Probs(Q)).item()
    for constant in (0.0, 5.0, -700.0, 700.0):
        real, fake = weighted(RATIO + constant)
        assert DonskerVaradhan().bound(real=real, fake=fake).item() == pytest.approx(kl, abs=3e-3)
        written = real.mean() - constant - (fake - constant).exp().mean().log()
        assert DonskerVaradhan().bound(real=real, fake=fake).item() == pytest.approx(written.item(), rel=1e-9)
    real, fake = weighted(0.3 * RATIO)
    nwj, dv = NWJ().bound(real=real, fake=fake), DonskerVaradhan().bound(real=real, fake=fake)
    assert nwj < dv < kl


def test_moving_average_gradient_is_mines_equation_12():
    loss = DonskerVaradhan(moving_average=0.1)
    average = None
    for _ in range(3):
        real, fake = (torch.randn(8, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
        fake.requires_grad_()
        value = loss(real=real, fake=fake)
        now = fake.detach().exp().mean()
        average = now if average is None else 0.9 * average + 0.1 * now
        (g,) = torch.autograd.grad(value, fake)
        torch.testing.assert_close(g, fake.detach().exp() / 8 / average, rtol=1e-10, atol=0)
        assert value.item() == pytest.approx(DonskerVaradhan()(real=real, fake=fake).item(), rel=1e-12)
    copy = DonskerVaradhan(moving_average=0.1)
    copy.load_state_dict(loss.state_dict())
    assert copy.log_average.item() == pytest.approx(average.log().item(), rel=1e-12)
    before = copy.log_average.item()
    copy.eval()(real=real, fake=fake)
    assert copy.log_average.item() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FGAN("kl"), "conjugate is needed"),
        (lambda: fgan.js(1.0), "weight is 1"),
        (lambda: fgan.js(-0.5), "weight is -0.5"),
        (lambda: fgan.alpha(math.inf), "order is inf"),
        (lambda: DonskerVaradhan(moving_average=0.0), "moving_average is 0.0"),
        (
            lambda: NWJ()(real=torch.zeros(3), fake=torch.zeros(2), real_mask=torch.ones(2).bool()),
            r"fake has rows of shape \(3,\)|real has rows of shape \(3,\) but real_mask has \(2,\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(FormError, match=message):
        call()


def test_no_fakes_at_all_are_a_connected_zero():
    real, fake = torch.tensor([1.0, 2.0], requires_grad=True), torch.zeros(0, requires_grad=True)
    value = DonskerVaradhan().bound(real=real, fake=fake)
    assert value.item() == 1.5
    to_real, to_fake = torch.autograd.grad(value, (real, fake))
    assert to_real.tolist() == [0.5, 0.5]
    assert to_fake.shape == (0,)
