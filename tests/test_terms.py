"""Totals: weighted sums over rows of several divergences equal the same sums made by hand, in value and gradient."""

import copy
import math

import pytest
import torch

from kullback import (
    FormError,
    Labels,
    LinearLogits,
    Logits,
    LogProbs,
    Probs,
    Term,
    cross_entropy,
    divergences,
    js,
    kl,
    total,
)
from kullback.divergences import CROSS_ENTROPY, HELLINGER, JEFFREYS, KL, TABLE, TV
from kullback.engines import use
from kullback.terms import rows, total_and_parts
from kullback.verbs import measure, row_of

LINEAR = [row for row in TABLE if row.linear is not None]
NAN, INF = math.nan, math.inf


def scores(*shape, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(shape, generator=g, dtype=torch.float64)
    return a.to(dtype), (a + torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()


def by_hand(terms):
    """Σ weights · rows through the verbs, leaving rows of weight 0 out."""
    parts = []
    for divergence, p, q, weights in terms:
        rows = measure(divergence, p, q)
        w = torch.as_tensor(weights, dtype=rows.dtype).expand(rows.shape)
        parts.append((torch.where(w != 0, rows, 0.0) * w).sum())
    return sum(parts)


def agree(terms, leaves, rtol, atol=0.0):
    value, want = total(terms), by_hand(terms)
    torch.testing.assert_close(value, want, rtol=rtol, atol=atol)
    for got, right in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(want, leaves), strict=True):
        assert got.dtype == right.dtype
        scale = right.abs().max().item() if right.numel() else 0.0
        torch.testing.assert_close(got, right, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("shape", [(5, 9), (40, 10), (3, 700), (2, 3, 130), (20_000,), (1, 20_000), (0, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_soft_and_a_hard_term_over_the_same_scores(shape, dtype):
    """The shape of a distillation: two temperatures, one student, labels, a mask."""
    t, s = scores(*shape, dtype=dtype)
    g = torch.Generator().manual_seed(1)
    y = torch.randint(shape[-1], shape[:-1], generator=g)
    w = torch.rand(shape[:-1], generator=g, dtype=torch.float64).round(decimals=1)
    terms = [
        Term(KL, Logits(t, 2.0), Logits(s, 2.0), 4.0 * w),
        Term(CROSS_ENTROPY, Labels(y, shape[-1], 0.1), Logits(s), 0.25),
    ]
    # by hand each term's gradient is rounded to bfloat16 before they are added
    agree(terms, [s], {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-6}[dtype])


@pytest.mark.parametrize("row", LINEAR, ids=lambda row: row.name)
def test_every_divergence_that_adds_up(row):
    a, b = scores(4, 60)
    a.requires_grad_()
    w = torch.tensor([0.5, 0.0, -1.0, 2.0])
    agree([Term(row, Logits(a), Logits(b), w), Term(KL, Logits(b), Logits(a), 0.1)], [a, b], 1e-11)


@pytest.mark.parametrize("left", [Logits, lambda x: Logits(x, 0.7), lambda x: LogProbs(x.log_softmax(-1), False)])
def test_every_reading(left):
    a, b = scores(4, 30)
    w = torch.tensor([1.0, 2.0, 0.0, 0.5])
    probs = torch.softmax(a, -1)
    terms = [
        Term(KL, left(a), Logits(b), w),
        Term(TV, Probs(probs, False), Logits(b)),
        Term(JEFFREYS, Logits(b, 3.0), left(a), 0.2),
    ]
    agree(terms, [b], 1e-11)


def test_a_dropped_row_may_hold_anything_and_sends_zeros():
    t, s = scores(4, 50, dtype=torch.float32)
    with torch.no_grad():
        t[1, 3], s[1, 7], s[2, 2] = NAN, INF, NAN
    w = torch.tensor([1.0, 0.0, 0.0, 2.0])
    value = total([Term(KL, Logits(t), Logits(s), w), Term(CROSS_ENTROPY, Labels([0, 1, 2, 3], 50), Logits(s), w)])
    keep = [0, 3]
    alone = total([Term(KL, Logits(t[keep]), Logits(s[keep]), w[keep]),
                   Term(CROSS_ENTROPY, Labels([0, 3], 50), Logits(s[keep]), w[keep])])  # fmt: skip
    torch.testing.assert_close(value, alone)
    (grad,) = torch.autograd.grad(value, [s])
    assert grad[[1, 2]].count_nonzero() == 0
    assert grad.isfinite().all()


def test_a_row_that_is_kept_and_nan_is_seen():
    t, s = scores(3, 20)
    t[1, 3] = NAN
    assert total([Term(KL, Logits(t), Logits(s), 0.5)]).isnan()


def test_an_infinite_row_makes_the_total_infinite_and_sends_nothing():
    t, s = scores(2, 6)
    with torch.no_grad():
        s[0, 1] = -INF
    value = total([Term(KL, Logits(t), Logits(s))])
    assert value.item() == INF
    (grad,) = torch.autograd.grad(value, [s])
    assert grad[0].count_nonzero() == 0
    assert grad[1].count_nonzero() > 0


@pytest.mark.parametrize("engine", ["cpu", "eager"])
def test_nothing_kept_is_a_connected_zero(engine):
    t, s = scores(3, 5)
    with use(engine):
        value = total(
            [Term(KL, Logits(t), Logits(s), torch.zeros(3)), Term(CROSS_ENTROPY, Labels([0, 1, 2], 5), Logits(s), 0.0)]
        )
        value.backward()
    assert value.item() == 0.0
    assert torch.equal(s.grad, torch.zeros_like(s))


def test_upstream_numbers_a_second_backward_pass_and_no_grad():
    t, s = scores(3, 8)
    terms = [Term(KL, Logits(t), Logits(s)), Term(CROSS_ENTROPY, Labels([0, 1, 2], 8), Logits(s))]
    (once,) = torch.autograd.grad(total(terms), [s])
    (-3.0 * total(terms)).backward()
    torch.testing.assert_close(s.grad, -3.0 * once)
    s.grad = None
    value = total(terms)
    value.backward(retain_graph=True)
    kept = s.grad.clone()
    value.backward()
    torch.testing.assert_close(s.grad, 2.0 * kept)
    with torch.no_grad():
        assert not total(terms).requires_grad


def test_gradcheck_once_and_twice():
    t, s = scores(3, 5)
    t.requires_grad_()
    w = torch.tensor([1.0, 0.5, 2.0])

    def f(t, s):
        return total(
            [Term(KL, Logits(t, 2.0), Logits(s, 2.0), w), Term(divergences.js(0.3), Logits(s), Logits(t), 0.7)]
        )

    assert torch.autograd.gradcheck(f, (t, s))
    assert torch.autograd.gradgradcheck(f, (t, s))


def test_broadcast_and_strided_sides():
    a = torch.randn(1, 4, 12, dtype=torch.float64, requires_grad=True)
    b = torch.randn(12, 3, 4, dtype=torch.float64).permute(1, 2, 0).detach().requires_grad_()
    w = torch.rand(4, 3, dtype=torch.float64).T
    agree([Term(KL, Logits(a), Logits(b), w), Term(JEFFREYS, Logits(b, 2.0), Logits(a))], [a, b], 1e-11)


def test_both_sides_may_be_the_same_tensor():
    _, s = scores(3, 7)
    agree([Term(KL, Logits(s, 3.0), Logits(s), 0.5), Term(TV, Logits(s), Logits(s, 0.5))], [s], 1e-11)


def test_the_gradient_goes_into_a_buffer_that_is_given():
    t, s = scores(4, 300, dtype=torch.float32)
    terms = [Term(KL, Logits(t), Logits(s), 0.25)]
    (want,) = torch.autograd.grad(total(terms), [s])
    buffer = torch.full_like(s, NAN)
    value = total(terms, out=[(s, buffer)])
    assert torch.equal(buffer, want)
    value.backward()
    assert torch.equal(s.grad, want)
    with pytest.raises(FormError, match="they are alike"):
        total(terms, out=[(s, buffer[:2])])


def test_parts_are_each_terms_own_value():
    t, s = scores(3, 8)
    y = torch.tensor([1, 0, 7])
    value, parts = total_and_parts(
        [Term(KL, Logits(t), Logits(s), 0.5), Term(CROSS_ENTROPY, Labels(y, 8), Logits(s), 2.0)]
    )
    assert parts.tolist() == pytest.approx(
        [0.5 * kl(Logits(t), Logits(s)).sum().item(), 2.0 * cross_entropy(Labels(y, 8), Logits(s)).sum().item()]
    )
    assert value.item() == pytest.approx(parts.sum().item())
    assert not parts.requires_grad


def test_what_no_pass_serves_goes_through_its_rows():
    """A root, a logarithm, another engine, a compiled graph: the same value, term by term."""
    t, s = scores(3, 8)
    terms = [Term(HELLINGER, Logits(t), Logits(s), 0.5), Term(divergences.renyi(0.3), Logits(t), Logits(s), 2.0)]
    agree(terms, [s], 1e-12)
    plain = [Term(KL, Logits(t), Logits(s), 0.5)]
    with use("eager"):
        eager = total(plain)
    torch.testing.assert_close(eager, total(plain), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile():
    t, s = scores(3, 8)

    def f(s):
        return total([Term(KL, Logits(t, 2.0), Logits(s, 2.0), 0.5), Term(KL, Logits(s), Logits(t), 0.1)])

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")(s)
    torch.testing.assert_close(compiled, f(s))
    for one, two in zip(torch.autograd.grad(compiled, [s]), torch.autograd.grad(f(s), [s]), strict=True):
        torch.testing.assert_close(one, two)


def test_more_terms_than_one_pass_takes():
    t, s = scores(3, 8)
    agree([Term(KL, Logits(t, 1.0 + k), Logits(s, 1.0 + k), 0.1) for k in range(11)], [s], 1e-12)


def test_results_do_not_depend_on_threads():
    t, s = scores(100, 3_000, dtype=torch.float32)
    y = torch.randint(3_000, (100,))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            value = total([Term(KL, Logits(t, 2.0), Logits(s, 2.0)), Term(CROSS_ENTROPY, Labels(y, 3_000), Logits(s))])
            found.append((value.detach(), *torch.autograd.grad(value, [s])))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (lambda t, s: [], "there are no terms"),
        (lambda t, s: [Term(KL, Logits(t), Logits(s), torch.ones(3, 1))], "weights of term 0 have shape"),
        (lambda t, s: [Term(KL, Logits(t), Logits(s), torch.ones(3, requires_grad=True))], "none flows to weights"),
        (lambda t, s: [Term(KL, Logits(t), Logits(s)), Term(KL, Logits(t[:, :4]), Logits(s[:, :4]))], "share their V"),
        (lambda t, s: [Term(KL, Logits(t), Logits(s)), Term(KL, Logits(t[:2]), Logits(s[:2]))], "share their rows"),
        (lambda t, s: [Term(KL, t, Logits(s))], "p is a bare Tensor"),
    ],
)
def test_errors_say_what_to_write(terms, said):
    t, s = scores(3, 5)
    with pytest.raises(FormError, match=said):
        total(terms(t, s))
    with pytest.raises(FormError, match=said):
        rows(terms(t, s))


# ---------------------------------------------------------------- rows


def rows_by_hand(terms):
    found = []
    for divergence, p, q, weights in terms:
        values = measure(divergence, p, q).detach()
        w = torch.as_tensor(weights, dtype=values.dtype).expand(values.shape)
        found.append(torch.where(w != 0, values, 0.0) * w)
    return torch.stack(found)


@pytest.mark.parametrize("shape", [(5, 9), (40, 10), (3, 700), (2, 3, 130), (20_000,), (2, 70_000), (0, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rows_of_several_divergences_are_those_of_the_verbs(shape, dtype):
    a, b = (x.detach() for x in scores(*shape, dtype=dtype))
    y = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(1))
    p, q, labels = Logits(a), Logits(b), Labels(y, shape[-1])
    w = torch.arange(math.prod(shape[:-1]), dtype=torch.float64).reshape(shape[:-1]) % 3
    terms = [
        Term(KL, p, q),
        Term(KL, q, p, -0.5),
        Term(divergences.js(0.5), p, q, w),
        Term(TV, p, q),
        Term(CROSS_ENTROPY, p, p),
        Term(CROSS_ENTROPY, labels, q, w),
    ]
    found = rows(terms)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rtol = 1e-13 if dtype == torch.float64 else 3e-7
    torch.testing.assert_close(found, rows_by_hand(terms), rtol=rtol, atol=0.0)


def test_rows_from_hidden_states_chunk_by_chunk():
    g = torch.Generator().manual_seed(0)
    h, weight, other = (torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (50, 40, 40))
    w = torch.arange(50) % 4
    p, q = LinearLogits(h, weight, memory=40 * 8 * 12), LinearLogits(h, other, memory=40 * 8 * 12)
    labels = Labels(torch.arange(50) % 40, 40)
    terms = [
        Term(KL, p, q, w),
        Term(HELLINGER, q, p),
        Term(CROSS_ENTROPY, labels, q),
        Term(divergences.renyi(2.0), p, q),
    ]
    whole = [
        t._replace(**{k: x.logits() if isinstance(x, LinearLogits) else x for k, x in (("p", t.p), ("q", t.q))})
        for t in terms
    ]
    torch.testing.assert_close(rows(terms[:3]), rows_by_hand(whole[:3]), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(rows(terms), rows_by_hand(whole), rtol=1e-12, atol=0.0)


def test_rows_of_equal_sides_are_exactly_zero_and_a_dropped_row_may_hold_anything():
    a, _ = scores(4, 3_000, dtype=torch.float32)
    p, q = Logits(a), Logits(a.clone())
    assert (rows([Term(KL, p, q), Term(KL, q, p), Term(divergences.js(0.5), p, q), Term(TV, p, q)]) == 0).all()
    broken = a.clone()
    broken[1] = NAN
    w = torch.tensor([1.0, 0.0, 1.0, 1.0])
    found = rows([Term(KL, Logits(a), Logits(broken), w)])
    assert torch.equal(found, torch.zeros(1, 4))
    assert rows([Term(KL, Logits(a), Logits(broken))]).isnan().tolist()[0][1]


def test_rows_carry_gradients():
    t, s = scores(3, 8)
    terms = [Term(KL, Logits(t), Logits(s), 2.0), Term(TV, Logits(t), Logits(s))]
    up = torch.tensor([[1.0, -1.0, 2.0], [0.5, 0.0, 1.0]], dtype=torch.float64)
    (got,) = torch.autograd.grad(rows(terms), s, up)
    want = torch.autograd.grad(2.0 * (up[0] * kl(Logits(t), Logits(s))).sum(), s)[0]
    want = want + torch.autograd.grad((up[1] * measure(TV, Logits(t), Logits(s))).sum(), s)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0.0)


def test_rows_do_not_depend_on_threads():
    t, s = (x.detach() for x in scores(2, 100_000, dtype=torch.float32))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(rows([Term(KL, Logits(t), Logits(s)), Term(TV, Logits(t), Logits(s))]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_a_verb_says_which_row_it_measures():
    from functools import partial

    assert row_of(kl) == KL
    assert row_of(js) == divergences.js(0.5)
    assert row_of(partial(js, weight=0.1)) == divergences.js(0.1)
    assert row_of(partial(measure, TV)) == TV
    assert row_of(copy.copy(KL)) == KL
    for other in (lambda p, q: kl(q, p), partial(kl, base=2), divergences.js, print, "kl"):
        assert row_of(other) is None
    with pytest.raises(FormError, match="weight"):
        row_of(partial(js, weight=2.0))
