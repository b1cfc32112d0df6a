"""Classes drawn from a teacher: unbiased in value and gradient, with an honest standard error; all else refused."""

import io
import math

import pytest
import torch

from cases import normal
from kullback import (
    Drawn,
    FormError,
    Labels,
    Logits,
    Probs,
    cross_entropy,
    draw,
    entropy,
    estimate,
    explain,
    js,
    kl,
    losses,
    top_k,
)

V = 17


def pair(n=3):
    return 1.5 * normal(n, V, seed=1), normal(n, V, seed=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_formula_and_its_standard_error():
    """Mean and s/√n of log p - log q over the draws, written out draw by draw."""
    _, b = pair(1)
    ids, counts = torch.tensor([[3, 9, 11]]), torch.tensor([[2, 1, 3]])
    log_p = torch.tensor([[-0.5, -2.0, -1.5]], dtype=torch.float64)
    found = estimate.kl(Drawn(ids, log_p, V, counts=counts), Logits(b))
    log_q = torch.log_softmax(b, -1)
    draws = torch.tensor([(log_p[0, k] - log_q[0, ids[0, k]]).item() for k in range(3) for _ in range(counts[0, k])])
    assert found.raw.item() == pytest.approx(draws.double().mean().item(), rel=1e-6)
    assert found.stderr.item() == pytest.approx(draws.double().std().item() / math.sqrt(6), rel=1e-6)
    assert found.n.tolist() == [6]
    assert found.raw.shape == (1,)
    bits = estimate.kl(Drawn(ids, log_p, V, counts=counts), Logits(b), base=2)
    assert bits.raw.item() == pytest.approx(found.raw.item() / math.log(2))
    assert bits.unit == "bits"


def test_the_mean_over_draws_is_the_dense_value_and_the_errors_are_right():
    a, b = pair()
    truth = kl(Logits(a), Logits(b))
    raw, stderr = [], []
    g = generator()
    for _ in range(400):
        found = estimate.kl(draw(a, 20, generator=g), Logits(b))
        raw.append(found.raw)
        stderr.append(found.stderr)
    raw, stderr = torch.stack(raw), torch.stack(stderr)
    mean, spread = raw.mean(0), raw.std(0)
    assert ((mean - truth).abs() < 4 * spread / math.sqrt(400)).all()
    torch.testing.assert_close((stderr**2).mean(0).sqrt(), spread, rtol=0.15, atol=0)


@pytest.mark.parametrize("student", ["Logits", "Logits at T=2", "Probs", "Labels", "TopK"])
def test_any_student(student):
    a, b = pair()
    q = {
        "Logits": Logits(b),
        "Logits at T=2": Logits(b, 2.0),
        "Probs": Probs(torch.softmax(b, -1)),
        "Labels": Labels(b.argmax(-1), V, 0.2),
        "TopK": top_k(b, 5, tail="even"),
    }[student]
    drawn = draw(a, 9, generator=generator())
    log_q = q.probabilities().log().gather(-1, drawn.ids)
    want = (drawn.counts * (drawn.log_probs - log_q)).sum(-1) / 9
    torch.testing.assert_close(estimate.kl(drawn, q).raw, want, rtol=1e-12, atol=1e-13)


def test_an_impossible_draw_is_infinite():
    b = torch.zeros(1, 4).scatter(-1, torch.tensor([[2]]), -math.inf)
    found = estimate.kl(Drawn([[2, 0]], [[-1.0, -1.0]], 4), Logits(b))
    assert found.raw.item() == math.inf
    assert found.stderr.isnan().all()
    assert estimate.kl(Drawn([[0]], [[-1.0]], 4), Logits(b)).stderr.isnan().all()  # one draw has no spread


def test_drawing_merges_what_was_drawn_twice():
    a = torch.tensor([[0.0, 3.0, 0.0], [5.0, -math.inf, -math.inf]])
    drawn = draw(a, 100, generator=generator())
    assert drawn.counts.sum(-1).tolist() == [100, 100]
    assert (drawn.counts > 0).sum(-1).tolist() == [3, 1]
    for row in range(2):
        seen = drawn.ids[row][drawn.counts[row] > 0]
        assert len(seen) == len(set(seen.tolist()))
        want = torch.log_softmax(a.double(), -1)[row][seen]
        torch.testing.assert_close(drawn.log_probs[row][drawn.counts[row] > 0].double(), want, rtol=1e-6, atol=1e-9)
    again = draw(a, 100, generator=generator())
    assert torch.equal(again.ids, drawn.ids)
    assert draw(torch.zeros(0, 3), 4).batch_shape == (0,)
    assert draw(torch.zeros(2, 5, 3), 4).batch_shape == (2, 5)
    hot = draw(a, 4000, generator=generator(), temperature=2.0)
    share = hot.counts[0] / 4000
    torch.testing.assert_close(share.double(), torch.softmax(a[0].double() / 2, -1)[hot.ids[0]], rtol=0.1, atol=0.02)


# ---------------------------------------------------------------- losses


def test_a_distillation_from_draws_is_its_formula():
    a, b = pair()
    b.requires_grad_()
    drawn, labels = draw(a, 30, generator=generator()), torch.tensor([0, 5, 16])
    loss = losses.Distillation(1.0, soft_weight=0.7)
    parts = loss.parts(student=b, teacher=drawn, labels=labels)
    log_q = torch.log_softmax(b, -1)
    soft = ((drawn.counts * (drawn.log_probs - log_q.gather(-1, drawn.ids))).sum(-1) / 30).mean()
    hard = torch.nn.functional.cross_entropy(b, labels)
    torch.testing.assert_close(parts.loss, 0.7 * soft + 0.3 * hard, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.soft, soft.detach(), rtol=1e-12, atol=0)
    (g,) = torch.autograd.grad(parts.loss, b)
    (want,) = torch.autograd.grad(0.7 * soft + 0.3 * hard, b)
    torch.testing.assert_close(g, want, rtol=1e-11, atol=1e-14)
    by_rows = losses.Distillation(1.0, soft_weight=0.7, reduction="none")(student=b, teacher=drawn, labels=labels)
    torch.testing.assert_close(by_rows.mean(), parts.loss, rtol=1e-12, atol=0)
    gkd = losses.GKD(0.0, scaled=True)(student=b, teacher=drawn)
    torch.testing.assert_close(gkd, soft, rtol=1e-12, atol=0)


def test_a_dropped_row_may_hold_anything():
    a, b = pair()
    drawn = draw(a, 30, generator=generator())
    log_probs = drawn.log_probs.clone()
    log_probs[1] = math.nan
    b[1] = math.nan
    b.requires_grad_()
    odd = Drawn(drawn.ids, log_probs, V, counts=drawn.counts, validate=False)
    keep = torch.tensor([True, False, True])
    loss = losses.Distillation(1.0, soft_weight=1.0)
    got = loss(student=b, teacher=odd, mask=keep)
    want = loss(student=b[keep], teacher=drawn[keep])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    (g,) = torch.autograd.grad(got, b)
    assert g.isfinite().all()
    nothing = loss(student=b, teacher=odd, mask=torch.zeros(3, dtype=torch.bool))
    assert nothing.item() == 0.0
    assert (torch.autograd.grad(nothing, b)[0] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_and_gradient_are_unbiased(temperature):
    """Over many draws, within four standard errors of the dense loss and its gradient, cell by cell."""
    a, b = pair()
    b.requires_grad_()
    dense = losses.Distillation(temperature, soft_weight=1.0)(student=b, teacher=a)
    (want,) = torch.autograd.grad(dense, b)
    loss = losses.Distillation(temperature, teacher_temperature=1.0, soft_weight=1.0)
    g, values, gradients = generator(), [], []
    for _ in range(600):
        value = loss(student=b, teacher=draw(a, 10, generator=g, temperature=temperature))
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, b)[0])
    for found, truth in ((torch.stack(values), dense.detach()), (torch.stack(gradients), want)):
        error = found.std(0) / math.sqrt(len(found))
        assert ((found.mean(0) - truth).abs() < 4 * error + 1e-15).all()


def test_float32_keeps_its_dtype():
    a, b = (x.float() for x in pair())
    b.requires_grad_()
    assert losses.Distillation(1.0)(student=b, teacher=draw(a, 5), labels=torch.zeros(3).long()).dtype == torch.float32


# ---------------------------------------------------------------- refused, in words


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d, b: kl(d, Logits(b)), r"Write estimate.kl\(Drawn\(...\), q\)"),
        (lambda d, b: kl(Logits(b), d), "none of the reverse KL"),
        (lambda d, b: js(d, Logits(b)), "Jensen-Shannon or any other"),
        (lambda d, b: cross_entropy(d, Logits(b)), "unbiased estimate of KL"),
        (lambda d, b: entropy(d), "entropy: p holds Drawn"),
        (lambda d, b: kl(Logits(b), d), "kl: q holds Drawn"),
        (lambda d, b: explain(d, Logits(b)), "holds Drawn"),
        (lambda d, b: estimate.kl(Logits(b), d), "q is Drawn"),
        (lambda d, b: estimate.kl(d, Logits(b), method=estimate.K1()), "takes no method"),
        (lambda d, b: estimate.kl(d, b), r"Write Logits\(q\)"),
        (lambda d, b: estimate.kl(d, Logits(b[:2])), "share their rows"),
        (lambda d, b: estimate.kl(d, Logits(b[:, :5])), "share their V"),
        (lambda d, b: estimate.kl(d, top_k(b, 3, tail="bucket")), "Write tail='even'"),
        (lambda d, b: losses.GKD(0.5)(student=b, teacher=d), "KL.teacher‖student. alone has an unbiased"),
        (lambda d, b: losses.GKD(1.0, scaled=True)(student=b, teacher=d), "alone has an unbiased"),
        (lambda d, b: losses.SkewKL(0.1)(student=b, teacher=d), "alone has an unbiased"),
        (lambda d, b: losses.Distillation(1.0, soft_weight=1.0, divergence=js)(student=b, teacher=d), "alone has an"),
        (lambda d, b: losses.Distillation(2.0, soft_weight=1.0)(student=b, teacher=d), "teacher_temperature=1"),
        (lambda d, b: losses.Distillation(1.0, soft_weight=1.0)(student=d, teacher=b), "student is Drawn"),
        (lambda d, b: losses.DKD()(student=b, teacher=d, labels=torch.zeros(3).long()), "teacher is Drawn"),
        (lambda d, b: losses.Consistency()(original=d, augmented=b), "original is Drawn"),
    ],
)
def test_what_has_no_unbiased_form_is_refused(make, says):
    a, b = pair()
    with pytest.raises(FormError, match=says):
        make(draw(a, 5, generator=generator()), b)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Drawn([[0, 4]], [[-1.0, -1.0]], 4), "the id 4"),
        (lambda: Drawn([[0, 1]], [[-1.0, 0.5]], 4), "NaN, above 0, or -inf"),
        (lambda: Drawn([[0, 1]], [[-1.0, -math.inf]], 4), "which is never drawn"),
        (lambda: Drawn([[0, 1]], [[-1.0, -1.0]], 4, counts=[[1, -1]]), "negative count"),
        (lambda: Drawn([[0, 1]], [[-1.0, -1.0]], 4, counts=[[0, 0]]), "no draws"),
        (lambda: Drawn([[0, 1]], [[-1.0, -1.0]], 4, counts=[[1.0, 1.0]]), "counts have dtype"),
        (lambda: Drawn([[0, 1]], [[-1.0, -1.0]], 4, counts=[1, 1]), "there is one for each"),
        (lambda: Drawn([[0, 1]], [[-1.0]], 4), "one log-probability for each id"),
        (lambda: draw(torch.zeros(2, 3), 0), "n is 0; write an integer from 1"),
        (lambda: draw(torch.full((1, 3), math.nan), 2), "holds NaN"),
    ],
)
def test_bad_input_is_told_what_to_write(make, says):
    with pytest.raises(FormError, match=says):
        make()


def test_padding_counts_for_nothing():
    _, b = pair(1)
    found = estimate.kl(Drawn([[3, 9]], [[-0.5, -math.inf]], V, counts=[[2, 0]]), Logits(b))
    want = -0.5 - torch.log_softmax(b, -1)[0, 3]
    torch.testing.assert_close(found.raw[0], want, rtol=1e-12, atol=0)


def test_rows_in_blocks_saved_and_moved():
    """Many rows go some at a time; the helper's results are those of single rows."""
    a = normal(5000, 700, seed=1)
    kept = top_k(a, 3, tail="bucket")
    assert torch.equal(kept.ids[4321], top_k(a[4321], 3, tail="bucket").ids)
    torch.testing.assert_close(kept.left_out[4321], top_k(a[4321], 3, tail="bucket").left_out, rtol=1e-14, atol=0)
    drawn = draw(a, 4, generator=generator())
    want = torch.log_softmax(a, -1).gather(-1, drawn.ids)
    torch.testing.assert_close(drawn.log_probs, want, rtol=1e-12, atol=1e-12)
    assert (drawn.counts.sum(-1) == 4).all()
    found = estimate.kl(drawn, Logits(a + 1.0))
    assert found.raw.abs().max() < 1e-10
    assert drawn.to(torch.float32).log_probs.dtype == torch.float32
    file = io.BytesIO()
    torch.save(drawn, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True).counts, drawn.counts)
