"""LinearLogits mean the same as Logits of the scores that they would make, in value and in every gradient."""

import itertools
import math
import pickle

import pytest
import torch
from torch import nn

from kullback import (
    FormError,
    Labels,
    LinearLogits,
    Logits,
    Probs,
    Term,
    contributions,
    entropy,
    explain,
    kl,
    total,
    verbs,
)
from kullback.core.readings import LinearReading
from kullback.divergences import CROSS_ENTROPY, HELLINGER, KL, js
from kullback.losses import DKD, GKD, Distillation, LabelSmoothing, PolicyKL, RDrop, SkewKL
from kullback.testing import check_form
from kullback.verbs import measure

N, H, V = 11, 6, 13  # V is no multiple of anything
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
SETTINGS = [{}, {"scale": 0.5}, {"softcap": 2.0, "scale": 1.5, "temperature": 2.0}]
MEMORY = [1, 7 * 2 * V * 8, None]  # one row at a time, some, all

# What the two ways may differ by, relative to the largest entry. float64, float32: sums of H products in another order,
# under a softmax. Half precision: dense scores are rounded after every step (product, scale, tanh), chunked ones too
# but elsewhere, and gradients of scores are rounded once more on their way to the weight.
TOLERANCE = {F64: 1e-12, F32: 2e-5, BF16: 2**-4, F16: 2**-7}


def head(dtype=F64, rows=N, seed=0, hidden=H, bias=True):
    g = torch.Generator().manual_seed(seed)
    made = [
        (0.7 * torch.randn(shape, generator=g, dtype=F64)).to(dtype).requires_grad_()
        for shape in ((rows, hidden), (V, hidden), (V,))
    ]
    return made if bias else made[:2]


def dense(dtype=F64, rows=N, seed=9):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, V, generator=g, dtype=F64).to(dtype).requires_grad_()


def agree(got, want, tolerance, what=""):
    assert got.dtype == want.dtype, what
    assert got.shape == want.shape, what
    scale = want.detach().abs().max().item() if want.numel() else 0.0
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance * scale, msg=lambda m: f"{what}: {m}")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_divergence_on_both_sides_equals_the_dense_form(divergence, settings, dtype):
    for memory, side in itertools.product(MEMORY, (0, 1)):
        leaves = [*head(dtype), dense(dtype)]
        form = LinearLogits(*leaves[:3], memory=memory, **settings)
        other = Logits(leaves[3])
        pairs = [((form, other), (form.logits(), other)), ((other, form), (other, form.logits()))]
        (p, q), (r, s) = pairs[side]
        got, want = measure(divergence, p, q), measure(divergence, r, s)
        upstream = torch.linspace(-1, 2, N, dtype=got.dtype)
        agree(got, want, TOLERANCE[dtype], "value")
        gradients = torch.autograd.grad(got, leaves, upstream)
        for name, a, b in zip(
            ("hidden", "weight", "bias", "other"),
            gradients,
            torch.autograd.grad(want, leaves, upstream),
            strict=True,
        ):
            agree(a, b, TOLERANCE[dtype], f"{name}, memory {memory}, side {side}")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("memory", MEMORY)
def test_a_total_of_several_terms_equals_the_dense_one(settings, dtype, memory):
    """Two heads of different widths, three divergences, labels, weights with zeros among them."""
    student, teacher = head(dtype), head(dtype, seed=1, hidden=H + 3, bias=False)
    g = torch.Generator().manual_seed(2)
    y, w = torch.randint(V, (N,), generator=g), torch.rand(N, generator=g, dtype=F64).round(decimals=1) / N
    w[:3] = 0.0

    def terms(s, t):
        return [
            Term(KL, t.tempered(2.0), s.tempered(2.0), 4 * w),
            Term(CROSS_ENTROPY, Labels(y, V, 0.1), s, 0.5 / N),
            Term(js(0.3), t, s, w),
        ]

    s, t = LinearLogits(*student, memory=memory, **settings), LinearLogits(*teacher, memory=memory)
    got, want = total(terms(s, t)), total(terms(s.logits(), t.logits()))
    agree(got, want, TOLERANCE[dtype])
    leaves = [*student, *teacher]
    scale = 3.0
    for a, b in zip(torch.autograd.grad(scale * got, leaves), torch.autograd.grad(scale * want, leaves), strict=True):
        agree(a, b, TOLERANCE[dtype])


def test_the_form_keeps_the_laws_of_forms():
    for settings in SETTINGS:
        check_form(
            lambda h, w, b, settings=settings: LinearLogits(h, w, b, **settings), *(x.detach() for x in head(F64))
        )


def test_float64_gradients_are_those_of_the_formula_written_out():
    """softmax(c tanh(k (hWᵀ+b) / c) / T), by autograd, in no words of ours."""
    h, w, b = head()
    other = dense()
    z = 2.0 * torch.tanh(1.5 * (h @ w.T + b) / 2.0) / 0.7
    log_q, log_p = torch.log_softmax(z, -1), torch.log_softmax(other, -1)
    want = (log_p.exp() * (log_p - log_q)).sum(-1)
    got = kl(Logits(other), LinearLogits(h, w, b, scale=1.5, softcap=2.0, temperature=0.7))
    agree(got, want, 1e-12)
    for a, r in zip(
        torch.autograd.grad(got.sum(), (h, w, b, other)), torch.autograd.grad(want.sum(), (h, w, b, other)), strict=True
    ):
        agree(a, r, 1e-12)


def test_gradcheck_once_and_twice():
    h, w, b = (x.detach()[:4].clone().requires_grad_() for x in head())
    other = dense(rows=4)[:, :4].detach().clone().requires_grad_()
    w4 = w[:4]

    def value(h, w, b, other):
        return kl(Logits(other), LinearLogits(h, w, b, softcap=3.0, memory=64))

    arguments = (h, w4.detach().clone().requires_grad_(), b, other)
    assert torch.autograd.gradcheck(value, arguments)
    assert torch.autograd.gradgradcheck(value, arguments)

    def loss(h, w, b, other):
        return total([Term(KL, Logits(other), LinearLogits(h, w, b, memory=64), 0.3)])

    assert torch.autograd.gradcheck(loss, arguments)
    assert torch.autograd.gradgradcheck(loss, arguments)


def test_a_second_backward_pass_over_the_same_graph():
    leaves = head()
    for value in (
        kl(Logits(dense()), LinearLogits(*leaves, memory=1)).sum(),
        total([Term(KL, Logits(dense()), LinearLogits(*leaves, memory=1))]),
    ):
        first = [x.clone() for x in torch.autograd.grad(value, leaves, retain_graph=True)]
        second = torch.autograd.grad(2 * value, leaves)
        for a, b in zip(first, second, strict=True):
            agree(b, 2 * a, 1e-15)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("memory", [1, None])
def test_rows_that_do_not_count_may_hold_anything_and_get_zeros(dtype, memory):
    student, teacher = head(dtype), head(dtype, seed=1)
    keep = torch.arange(N) % 3 != 0
    clean = LinearLogits(student[0].detach()[keep].requires_grad_(), *student[1:])
    with torch.no_grad():
        student[0][~keep] = math.nan
        teacher[0][~keep] = math.inf
    weights = keep.double() / keep.sum()
    form = LinearLogits(*student, memory=memory)
    value = total([Term(KL, LinearLogits(*teacher), form, weights)])
    want = total([Term(KL, LinearLogits(teacher[0][keep], *teacher[1:]), clean, 1.0 / int(keep.sum()))])
    agree(value, want, TOLERANCE[dtype])
    gradients = torch.autograd.grad(value, [*student, *teacher])
    right = torch.autograd.grad(want, [clean.data, *student[1:], *teacher])
    assert gradients[0][~keep].abs().max() == 0.0
    assert gradients[3][~keep].abs().max() == 0.0
    agree(gradients[0][keep], right[0], TOLERANCE[dtype])
    for a, b in zip(gradients[1:3], right[1:3], strict=True):
        agree(a, b, TOLERANCE[dtype])
    by_rows = torch.where(keep, kl(LinearLogits(*teacher), form), 0.0).sum()
    for g in torch.autograd.grad(by_rows, [*student, *teacher]):
        assert bool(g.isfinite().all())


def test_no_rows_and_no_row_that_counts_give_connected_zeros():
    for rows, weights in ((0, 1.0), (N, torch.zeros(N, dtype=F64)), (N, 0.0)):
        leaves = head(F32, rows=rows)
        value = total([Term(KL, Logits(dense(F32, rows=rows)), LinearLogits(*leaves), weights)])
        assert value.item() == 0.0
        for x, g in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
            assert g.shape == x.shape
            assert g.abs().sum() == 0.0
    leaves = head(F32, rows=0)
    assert kl(LinearLogits(*leaves), LinearLogits(*leaves)).shape == (0,)


def test_one_weight_in_two_products_and_one_hidden_state_on_both_sides():
    """R-Drop's shape, and tied embeddings': gradients of all the places add up."""
    h, w, b = head()
    other = head(seed=3)[0]
    p, q = LinearLogits(h, w, b), LinearLogits(other, w, b, softcap=5.0)
    got, want = kl(p, q).sum(), kl(p.logits(), q.logits()).sum()
    agree(got, want, 1e-12)
    for value in (got, total([Term(KL, p, q), Term(KL, q, p)])):
        right = want if value is got else kl(p.logits(), q.logits()).sum() + kl(q.logits(), p.logits()).sum()
        for a, r in zip(
            torch.autograd.grad(value, (h, other, w, b)), torch.autograd.grad(right, (h, other, w, b)), strict=True
        ):
            agree(a, r, 1e-12)
    embedding = nn.Embedding(V, H, dtype=F64)
    ids = torch.arange(N) % V
    hidden = torch.tanh(embedding(ids))
    tied = total([Term(CROSS_ENTROPY, Labels(ids, V), LinearLogits(hidden, embedding.weight), 1.0)])
    (got,) = torch.autograd.grad(tied, embedding.weight, retain_graph=True)
    plain = nn.functional.cross_entropy(hidden @ embedding.weight.T, ids, reduction="sum")
    agree(got, torch.autograd.grad(plain, embedding.weight)[0], 1e-12)


def test_batch_shapes_broadcast_index_and_move():
    h, w, b = (x.detach() for x in head())
    form = LinearLogits(h.reshape(1, N, H), w, b)
    assert form.shape == (1, N, V)
    other = Logits(torch.stack([dense().detach(), dense(seed=4).detach()]))
    agree(kl(form, other), kl(form.logits(), other), 1e-12)
    agree(kl(form[0, 2:5], other[1, 2:5]), kl(form.logits(), other)[1, 2:5], 1e-12)
    assert form.to(F32).tensors[1].dtype == F32
    again = pickle.loads(pickle.dumps(form))
    agree(kl(again, other), kl(form, other), 1e-15)
    assert not LinearLogits(*head()).detach().requires_grad
    agree(entropy(form), entropy(form.logits()), 1e-12)
    agree(contributions(form, other), contributions(form.logits(), other), 1e-12)
    agree(form.tempered(2.0).probabilities(), form.logits().tempered(2.0).probabilities(), 1e-12)


def losses():
    y = torch.arange(N) % V
    y[3] = -100
    p = {"labels": y}
    return [
        (Distillation(2.0, smoothing=0.1), p),
        (Distillation(2.0, soft_weight=1.0), {}),
        (Distillation(3.0, divergence=verbs.js), p),
        (GKD(0.3), {"mask": y >= 0}),
        (SkewKL(0.1, direction="reverse"), {}),
        (DKD(temperature=2.0), p),
    ]


@pytest.mark.parametrize(("loss", "given"), losses(), ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("memory", [1, None])
def test_losses_of_two_models_take_it_by_name(loss, given, memory):
    student, teacher = head(), [x.detach() for x in head(seed=1, hidden=H + 1)]
    s, t = LinearLogits(*student, memory=memory), LinearLogits(*teacher)
    got, want = loss(student=s, teacher=t, **given), loss(student=s.logits(), teacher=t.logits(), **given)
    agree(got, want, 1e-12)
    for a, r in zip(torch.autograd.grad(got, student), torch.autograd.grad(want, student), strict=True):
        agree(a, r, 1e-12)


def test_losses_of_one_model_take_it_too():
    leaves, other = head(), head(seed=1)
    form, second = LinearLogits(*leaves), LinearLogits(*other)
    y = torch.arange(N) % V
    pairs = [
        (LabelSmoothing(V, -1, smoothing=0.1)(form, y), LabelSmoothing(V, -1, smoothing=0.1)(form.logits(), y)),
        (RDrop()(first=form, second=second, labels=y), RDrop()(first=form.logits(), second=second.logits(), labels=y)),
    ]
    policy = PolicyKL("exact", "exact")
    pairs.append((policy(logits=a, reference_logits=b) for a, b in ((form, second), (form.logits(), second.logits()))))
    for got, want in pairs:
        agree(got, want, 1e-12)
        for a, r in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
            agree(a, r, 1e-12)


def test_a_divergence_that_is_no_sum_goes_row_by_row():
    leaves = head()
    form, other = LinearLogits(*leaves, memory=1), Logits(dense())
    got, want = (total([Term(HELLINGER, other, f, 0.5), Term(KL, other, f, 0.25)]) for f in (form, form.logits()))
    agree(got, want, 1e-12)
    for a, r in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        agree(a, r, 1e-12)


def test_gradients_in_float16_wait_for_the_loss_scale():
    """1/N of a probability is below float16's smallest number; times the scale of a GradScaler it is not."""
    rows = 4096
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, V, generator=g).half().requires_grad_()
    t = torch.randn(rows, V, generator=g).half()
    h = torch.randn(rows, H, generator=g).half().requires_grad_()
    w = torch.randn(V, H, generator=g).half().requires_grad_()
    scale = 65536.0
    for value, leaves, plain in (
        (total([Term(KL, Logits(t), Logits(x), 1e-3 / rows)]), [x], kl(Logits(t.double()), Logits(x.double()))),
        (
            total([Term(KL, Logits(t), LinearLogits(h, w), 1e-3 / rows)]),
            [h],
            kl(Logits(t.double()), Logits((h.double() @ w.double().T).half().double())),
        ),
    ):
        want = torch.autograd.grad(1e-3 / rows * scale * plain.sum(), leaves)[0].double()
        got = torch.autograd.grad(scale * value, leaves)[0].double()
        assert (got - want).norm() < 2**-9 * want.norm()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda h, w, b: LinearLogits(h, w.T, b), "Write weight.T"),
        (
            lambda h, w, b: LinearLogits(h[:, :4], w, b),
            r"hidden has H=4 .* shape \(13, 6\)",
        ),
        (lambda h, w, b: LinearLogits(h, w[0], b), "a matrix"),
        (lambda h, w, b: LinearLogits(h, w, b[:5]), r"bias has shape \(5,\).*\(13,\) is needed"),
        (lambda h, w, b: LinearLogits(h.float(), w, b), r"hidden.to\(weight.dtype\)"),
        (lambda h, w, b: LinearLogits(h, w, b.float()), r"hidden.to\(bias.dtype\)"),
        (lambda h, w, b: LinearLogits(h.long(), w), r"LinearLogits\(hidden.float\(\)\)"),
        (lambda h, w, b: LinearLogits(h, w, softcap=0.0), "softcap is 0.0, but it must be a finite number above 0"),
        (lambda h, w, b: LinearLogits(h, w, softcap=-3.0), "softcap is -3.0"),
        (lambda h, w, b: LinearLogits(h, w, scale=0), "scale is 0"),
        (lambda h, w, b: LinearLogits(h, w, scale=torch.tensor(1.0)), "scale is a tensor"),
        (lambda h, w, b: LinearLogits(h, w, temperature=math.inf), "temperature is inf"),
        (lambda h, w, b: LinearLogits(h, w, memory=0), "a number of bytes"),
        (lambda h, w, b: LinearLogits(h, w, memory=0.5), "a number of bytes"),
        (lambda h, w, b: LinearLogits(h, nn.Linear(H, V)), "head.weight"),
        (lambda h, w, b: LinearLogits(h, w.tolist()), "a tensor is needed"),
        (lambda h, w, b: LinearLogits(h, w[:0]), "V=0"),
        (lambda h, w, b: LinearLogits(h.to("meta"), w), "on meta but weight is on cpu"),
        (lambda h, w, b: kl(LinearLogits(h, w), Logits(torch.zeros(N, V + 1))), "V=13 but q has V=14"),
        (lambda h, w, b: kl(LinearLogits(h, w), h), "bare Tensor"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_write(make, words):
    with pytest.raises(FormError, match=words):
        make(*(x.detach() for x in head()))


def test_explain_says_who_computes_and_what_it_takes():
    route = explain(Probs(torch.full((N, V), 1 / V)), LinearLogits(*head(F32)))
    assert route.engine == "linear"
    assert f"scores of {N} of {N} rows at a time" in route.manner
    assert "none asked for" in route.gradient_to_p
    assert "3 of the tensors" in route.gradient_to_q
    assert "float32 rounds them" in route.error
    assert dict(route.not_taken)["eager"]
    assert 0 < route.temporary_bytes < 8 << 20


def test_a_reading_without_settings_is_the_softmax_of_the_product():
    h, w = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    found = LinearReading().weights((h, w))
    torch.testing.assert_close(found.w, torch.softmax(h @ w.T, -1), rtol=1e-13, atol=0.0)
    torch.testing.assert_close(found.log_w, torch.log_softmax(h @ w.T, -1), rtol=1e-13, atol=1e-14)
