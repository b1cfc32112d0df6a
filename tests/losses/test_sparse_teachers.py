"""Losses whose teacher is the top k: equal to the dense teacher that the form means, masks and labels as before."""

import math

import pytest
import torch

from cases import normal
from kullback import FormError, LinearLogits, Logits, LogProbs, Probs, TopK, js, kl, losses, top_k

V = 29


def pair(n=6, dtype=torch.float64):
    return 2.0 * normal(n, V, seed=1), normal(n, V, seed=2).to(dtype)


LOSSES = {
    "distillation": lambda **k: losses.Distillation(2.0, soft_weight=1.0)(**k),
    "distillation js": lambda **k: losses.Distillation(2.0, soft_weight=1.0, divergence=js)(**k),
    "distillation reverse": lambda **k: losses.Distillation(1.0, soft_weight=1.0, divergence=lambda p, q: kl(q, p))(
        **k
    ),
    "gkd": lambda **k: losses.GKD(0.3)(**k),
    "gkd forward": lambda **k: losses.GKD(0.0, scaled=True)(**k),
    "skew": lambda **k: losses.SkewKL(0.1)(**k),
    "skew reverse": lambda **k: losses.SkewKL(0.1, direction="reverse")(**k),
    "dkd": lambda **k: losses.DKD(temperature=2.0)(labels=torch.arange(6), **k),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("tail", ["even", "renormalize"])
def test_it_is_the_dense_teacher_of_its_tail(name, tail):
    a, b = pair()
    b.requires_grad_()
    kept = top_k(a, V - 1 if tail == "renormalize" and name == "dkd" else 9, tail=tail)
    dense = Probs(kept.probabilities())
    got, want = (LOSSES[name](student=b, teacher=teacher) for teacher in (kept, dense))
    if not bool(want.isfinite()):
        assert torch.equal(got, want)
        return
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(x, b)[0] for x in (got, want)), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("divergence", ["kl", "gkd", "skew"])
def test_a_bucket_is_the_joined_pair(divergence):
    a, b = pair()
    b.requires_grad_()
    kept = top_k(a, 9, tail="bucket")

    def joined(w):
        return torch.cat([w.gather(-1, kept.ids), w.scatter(-1, kept.ids, 0.0).sum(-1, keepdim=True)], -1)

    p, q = Probs(joined(kept.probabilities())), LogProbs(joined(torch.softmax(b, -1)).log())
    make = {
        "kl": lambda s, t: losses.Distillation(1.0, soft_weight=1.0)(student=s, teacher=t),
        "gkd": lambda s, t: losses.GKD(0.3)(student=s, teacher=t),
        "skew": lambda s, t: losses.SkewKL(0.1)(student=s, teacher=t),
    }[divergence]
    got, want = make(b, kept), make(q, p)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, b)[0] for x in (got, want)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tail", ["bucket", "even", "renormalize"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_labels_masks_and_rows_that_hold_nan(tail, dtype):
    a, b = pair(dtype=dtype)
    kept = top_k(a.to(dtype), 9, tail=tail)
    log_p = kept.log_probs.clone()
    log_p[2], b[3] = math.nan, math.nan
    teacher = TopK(kept.ids, log_p, V, tail=tail, validate=False)
    labels = torch.tensor([0, -100, 4, 5, 6, 28])
    mask = torch.tensor([True, True, False, False, True, True])
    rows = torch.tensor([0, 4, 5])
    b.requires_grad_()
    loss = losses.Distillation(1.0, soft_weight=0.5)
    got = loss(student=b, teacher=teacher, labels=labels, mask=mask)
    want = loss(student=b[rows], teacher=teacher[rows], labels=labels[rows])
    torch.testing.assert_close(got, want, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)
    g, want_g = (torch.autograd.grad(x, b)[0] for x in (got, want))
    torch.testing.assert_close(g, want_g, rtol=1e-11 if dtype == torch.float64 else 1e-5, atol=1e-8)
    assert g.isfinite().all()


@pytest.mark.parametrize("tail", ["bucket", "even", "renormalize"])
def test_from_hidden_states(tail):
    a, _ = pair()
    h, w = normal(6, 5, seed=3).requires_grad_(), normal(V, 5, seed=4).requires_grad_()
    kept, labels = top_k(a, 9, tail=tail), torch.arange(6)
    loss = losses.Distillation(1.0, soft_weight=0.5)
    got = loss(student=LinearLogits(h, w), teacher=kept, labels=labels)
    want = loss(student=Logits(h @ w.T), teacher=kept, labels=labels)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    for x, y in zip(torch.autograd.grad(got, (h, w)), torch.autograd.grad(want, (h, w)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-13)


def test_a_top_k_teacher_of_the_weights_gradient_too():
    """Log-probabilities that require grad get it, through verbs and through totals, with or without hidden states."""
    a, b = pair()
    ids, log_p = top_k(a, 9, tail="bucket").tensors
    log_p.requires_grad_()
    h, w = normal(6, 5, seed=3).requires_grad_(), normal(V, 5, seed=4)
    for student in (Logits(b.requires_grad_()), LinearLogits(h, w)):
        leaf = h if isinstance(student, LinearLogits) else b
        direct = kl(TopK(ids, log_p, V, tail="bucket", validate=False), student).mean()
        from kullback import Term, divergences, total

        summed = total([Term(divergences.KL, TopK(ids, log_p, V, tail="bucket", validate=False), student, 1 / 6)])
        torch.testing.assert_close(summed, direct, rtol=1e-12, atol=0)
        for x, y in zip(
            torch.autograd.grad(summed, (log_p, leaf)), torch.autograd.grad(direct, (log_p, leaf)), strict=True
        ):
            torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-14)
            assert (x != 0).any()


def test_a_bucket_says_no_where_it_means_nothing():
    a, b = pair()
    kept = top_k(a, 9, tail="bucket")
    with pytest.raises(FormError, match="teacher_temperature=1 to the loss"):
        losses.Distillation(2.0, soft_weight=1.0)(student=b, teacher=kept)
    soft = losses.Distillation(2.0, teacher_temperature=1.0, soft_weight=1.0)
    cached = top_k(a, 9, tail="bucket", temperature=2.0)
    assert soft(student=b, teacher=cached) <= losses.Distillation(2.0, soft_weight=1.0)(student=b, teacher=a)
    with pytest.raises(FormError, match="does not say how the other classes share the rest"):
        losses.DKD(temperature=1.0)(student=b, teacher=kept, labels=torch.arange(6))


def test_what_does_not_fit_is_named():
    a, b = pair()
    with pytest.raises(FormError, match="student has V=29 but teacher has V=28"):
        losses.GKD()(student=b, teacher=top_k(a[:, :28], 3, tail="even"))
    with pytest.raises(FormError, match="nothing is broadcast"):
        losses.GKD()(student=b, teacher=top_k(a[:3], 3, tail="even"))
