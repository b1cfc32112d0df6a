"""The top k of a teacher: what its tails mean, against dense forms; bad input, one by one."""

import io
import math

import pytest
import torch

from cases import normal
from kullback import (
    FormError,
    Labels,
    Logits,
    LogProbs,
    Probs,
    TopK,
    contributions,
    divergences,
    engines,
    entropy,
    explain,
    js,
    kl,
    measure,
    top_k,
)
from kullback.core.readings import LogitsReading, TopKReading
from kullback.divergences import TABLE
from kullback.engines import cpu
from kullback.testing import check_form

TAILS = ("bucket", "even", "renormalize")
V, K = 23, 5


def teacher(shape=(4,), seed=1, scale=2.0):
    return scale * normal(*shape, V, seed=seed)


def listed(scores, k=K, dtype=torch.float64):
    log_p, ids = torch.log_softmax(scores, -1).topk(k, -1)
    return ids, log_p.to(dtype)


def joined(w, ids):
    """Weights of the listed classes, and of all others together: written out anew."""
    rest = w.clone().scatter(-1, ids, 0.0)
    return torch.cat([w.gather(-1, ids), rest.sum(-1, keepdim=True)], -1)


def dense(ids, log_p, tail, temperature=1.0):
    """The dense weights that a form stands for: written out anew, class by class."""
    rows = []
    for row_ids, row in zip(ids.reshape(-1, ids.shape[-1]).tolist(), log_p.reshape(-1, ids.shape[-1]), strict=True):
        p = row.double().exp()
        left = 1.0 - float(p.sum())
        w = torch.full((V,), left / (V - len(row_ids)) if tail != "renormalize" else 0.0, dtype=torch.float64)
        for i, c in enumerate(row_ids):
            w[c] = p[i]
        w = w ** (1.0 / temperature)
        rows.append(w / w.sum())
    return torch.stack(rows).reshape(*ids.shape[:-1], V)


OTHERS = {
    "Logits": lambda x: Logits(x),
    "Logits at T=2": lambda x: Logits(x, 2.0),
    "LogProbs": lambda x: LogProbs(torch.log_softmax(x, -1)),
    "Probs": lambda x: Probs(torch.softmax(x, -1)),
    "Labels": lambda x: Labels(x.argmax(-1), V, 0.1),
    "one-hot": lambda x: Labels(x.argmax(-1), V),
    "TopK even": lambda x: top_k(x, 7, tail="even"),
    "TopK renormalize": lambda x: top_k(x, 7, tail="renormalize"),
}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("other", OTHERS)
def test_it_is_what_its_tail_says(row, tail, other):
    """Every divergence, both sides, against every form: the dense value; of a bucket, of the joined classes."""
    ids, log_p = listed(teacher())
    p, q = TopK(ids, log_p, V, tail=tail), OTHERS[other](normal(4, V, seed=2))
    if tail == "bucket":
        exact = log_p.exp()
        w_p = torch.cat([exact, 1.0 - exact.sum(-1, keepdim=True)], -1)
        w_q = joined(q.probabilities(), ids)
    else:
        w_p, w_q = dense(ids, log_p, tail), q.probabilities()
    a, b = Probs(w_p, validate=False), Probs(w_q, validate=False)
    torch.testing.assert_close(
        measure(row, p, q), measure(row, a, b).to(measure(row, p, q).dtype), rtol=1e-12, atol=1e-13
    )
    torch.testing.assert_close(
        measure(row, q, p), measure(row, b, a).to(measure(row, q, p).dtype), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_two_buckets_tell_apart_what_both_list(row):
    (ids_p, log_p), (ids_q, log_q) = listed(teacher()), listed(teacher(seed=5), 7)
    p, q = TopK(ids_p, log_p, V, tail="bucket"), TopK(ids_q, log_q, V, tail="bucket")
    value = measure(row, p, q)
    for n in range(4):
        both = sorted({*ids_p[n].tolist()} & {*ids_q[n].tolist()})
        at = torch.tensor(both, dtype=torch.int64)
        w = [dense(i[n], x[n], "even")[at] for i, x in ((ids_p, log_p), (ids_q, log_q))]
        a, b = (Probs(torch.cat([x, 1.0 - x.sum(-1, keepdim=True)]), validate=False) for x in w)
        torch.testing.assert_close(value[n], measure(row, a, b), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("tail", ["even", "renormalize"])
def test_a_temperature_re_tempers_the_whole_form(tail):
    ids, log_p = listed(teacher())
    p = TopK(ids, log_p, V, tail=tail)
    for form in (p.tempered(2.0), TopK(ids, log_p, V, tail=tail, temperature=2.0), p.tempered(4.0).tempered(0.5)):
        torch.testing.assert_close(form.probabilities(), dense(ids, log_p, tail, 2.0), rtol=1e-12, atol=1e-15)


def test_a_bucket_has_no_temperature():
    p = top_k(teacher(), K, tail="bucket")
    assert p.tempered(1.0) is p
    with pytest.raises(FormError, match="teacher_temperature=1 to the loss"):
        p.tempered(2.0)
    with pytest.raises(FormError, match="Write tail='even'"):
        TopK(p.ids, p.log_probs, V, tail="bucket", temperature=2.0)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_bucket_is_never_above_the_dense_value(row):
    a, b = 3.0 * normal(200, V, seed=3), 3.0 * normal(200, V, seed=4)
    whole = measure(row, Logits(a), Logits(b))
    for k in (1, 4, V - 1):
        kept = top_k(a, k, tail="bucket")
        # of one class that is left out the bucket is the dense row, up to the digits of 1 - Σ p
        room = 1e-12 if k < V - 1 else 1e-7
        assert (measure(row, kept, Logits(b)) <= whole * (1 + room) + 1e-14).all()
        assert (measure(row, Logits(b), kept) <= measure(row, Logits(b), Logits(a)) * (1 + room) + 1e-14).all()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("tail", TAILS)
def test_with_every_class_listed_it_is_the_dense_row(row, tail):
    a, b = teacher(), normal(4, V, seed=2)
    order = torch.argsort(normal(4, V, seed=9), -1)
    p = TopK(order, torch.log_softmax(a, -1).gather(-1, order), V, tail=tail)
    torch.testing.assert_close(measure(row, p, Logits(b)), measure(row, Logits(a), Logits(b)), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(measure(row, Logits(b), p), measure(row, Logits(b), Logits(a)), rtol=1e-11, atol=1e-13)
    assert (p.left_out == 0).all()


@pytest.mark.parametrize("tail", TAILS)
def test_half_precision_keeps_every_class_listed_whatever_its_mass_rounds_to(tail):
    """Rounding leaves a mass of 1.0005 or 0.9995 of all classes: there is no tail for the difference to be in."""
    a, b = teacher(), normal(4, V, seed=2)
    ids, log_p = listed(a, V, torch.float16)
    p = TopK(ids, log_p, V, tail=tail)
    w = log_p.double().exp()
    w = w / w.sum(-1, keepdim=True) if tail == "renormalize" else w
    want = measure(
        divergences.KL, Probs(w, validate=False), Probs(torch.softmax(b, -1).gather(-1, ids), validate=False)
    )
    torch.testing.assert_close(kl(p, Logits(b)).double(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_weights_sum_to_one(tail, temperature):
    if tail == "bucket" and temperature != 1.0:
        return
    p = top_k(teacher((3, 2)), K, tail=tail).tempered(temperature)
    torch.testing.assert_close(p.probabilities().sum(-1), torch.ones(3, 2, dtype=torch.float64), rtol=1e-14, atol=0)


def test_equal_forms_are_at_distance_zero_exactly():
    p = top_k(teacher(), K, tail="bucket")
    for row in TABLE:
        if row.family != "cross_entropy":
            assert (measure(row, p, p) == 0).all(), row.name


def test_the_forms_laws():
    ids, log_p = listed(teacher((3,)))
    check_form(lambda i, x: TopK(i, x, V, tail="even", validate=False), ids, log_p)


# ---------------------------------------------------------------- gradients


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("other", ["logits", "probs", "log_probs"])
def test_gradients_to_both_sides(row, tail, other):
    ids, log_p = listed(teacher((2,)))
    log_p = log_p.requires_grad_()
    x = normal(2, V, seed=2)
    form = {
        "logits": Logits,
        "probs": lambda x: Probs(torch.softmax(x, -1), validate=False),
        "log_probs": lambda x: LogProbs(torch.log_softmax(x, -1), validate=False),
    }[other]
    x.requires_grad_()

    def f(log_p, x):
        return measure(row, TopK(ids, log_p, V, tail=tail, validate=False), form(x))

    def back(log_p, x):
        return measure(row, form(x), TopK(ids, log_p, V, tail=tail, validate=False))

    for way in (f, back):
        if not bool(way(log_p, x).isfinite().all()):  # finite differences of infinity are no numbers: both are silent
            assert all((g == 0).all() for g in torch.autograd.grad(way(log_p, x).sum(), (log_p, x)))
            continue
        torch.autograd.gradcheck(way, (log_p, x))
        if other == "logits":
            torch.autograd.gradgradcheck(way, (log_p, x))


@pytest.mark.parametrize("tail", TAILS)
def test_gradients_of_kl(tail):
    test_gradients_to_both_sides(divergences.KL, tail, "logits")


@pytest.mark.parametrize("tail", ["even", "renormalize"])
def test_gradients_through_a_temperature(tail):
    ids, log_p = listed(teacher((2,)))
    x = normal(2, V, seed=2).requires_grad_()
    log_p.requires_grad_()
    torch.autograd.gradcheck(
        lambda log_p, x: js(TopK(ids, log_p, V, tail=tail, temperature=2.0, validate=False), Logits(x)), (log_p, x)
    )


def test_probs_see_the_slope_of_the_joined_rest():
    """A class without mass, in a rest that has some: the derivative of the textbook sum in the rest's mass."""
    ids = torch.tensor([[0, 1]])
    p = TopK(ids, torch.log(torch.tensor([[0.5, 0.25]], dtype=torch.float64)), 5, tail="bucket")
    w = torch.tensor([[0.4, 0.3, 0.0, 0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(kl(p, Probs(w)).sum(), w)[0]
    rest = -0.25 / 0.3
    torch.testing.assert_close(got, torch.tensor([[-0.5 / 0.4, -0.25 / 0.3, rest, rest, rest]], dtype=torch.float64))


def test_a_leftover_of_zero_sends_nothing_through_itself():
    ids = torch.tensor([[0, 1]])
    log_p = torch.log(torch.tensor([[0.5, 0.5]], dtype=torch.float64)).requires_grad_()
    for tail in ("bucket", "even"):
        value = kl(TopK(ids, log_p, 4, tail=tail), Probs([[0.25, 0.25, 0.25, 0.25]]))
        got = torch.autograd.grad(value.sum(), log_p)[0]
        want = 0.5 * (math.log(2.0) + 1.0)  # of Σ p log(p/q), as for LogProbs
        torch.testing.assert_close(got, torch.full((1, 2), want, dtype=torch.float64))


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize("tail", TAILS)
def test_edges_without_mass(tail):
    ids = torch.tensor([[2, 0], [1, 3]])
    log_p = torch.tensor([[math.log(0.6), -math.inf], [math.log(0.5), math.log(0.5)]], dtype=torch.float64)
    p = TopK(ids, log_p, 4, tail=tail)
    x = torch.tensor(
        [[0.0, -math.inf, 1.0, 2.0], [-math.inf, 1.0, -math.inf, 2.0]], dtype=torch.float64
    ).requires_grad_()
    for engine in ("eager", "cpu"):
        with engines.use(engine):
            value = kl(p, Logits(x))
            (g,) = torch.autograd.grad(value.sum(), x)
            assert value[1].isfinite()
            assert g.isfinite().all()
            assert value[0].isfinite() == (tail != "even")  # even gives mass to the class at -inf
            back = kl(Logits(x), p)
            assert back[1].isfinite()
            assert back[0] == math.inf  # logits have mass at class 0, which p lists without any


@pytest.mark.parametrize("tail", TAILS)
def test_a_confident_teacher_keeps_the_digits_of_its_leftover(tail):
    log_p = torch.tensor([[-1e-14, math.log(4e-15)]], dtype=torch.float64)
    p = TopK(torch.tensor([[0, 1]]), log_p, 4, tail=tail)
    torch.testing.assert_close(p.left_out, torch.tensor([6e-15], dtype=torch.float64), rtol=1e-4, atol=0)


def test_no_rows_and_one_class():
    empty = TopK(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3), V, tail="bucket")
    assert kl(empty, Logits(torch.zeros(0, V))).shape == (0,)
    one = TopK([[0]], [[0.0]], 1, tail="bucket")
    assert kl(one, Logits([[3.0]])).item() == 0.0


def test_nan_reaches_its_row_alone():
    ids, log_p = listed(teacher())
    log_p[1, 2] = math.nan
    x = normal(4, V, seed=2)
    x[2, 20] = math.nan
    for tail in TAILS:
        p = TopK(ids, log_p, V, tail=tail, validate=False)
        for engine in ("eager", "cpu"):
            with engines.use(engine):
                assert kl(p, Logits(x)).isnan().tolist() == [False, True, True, False]
                assert js(Logits(x), p).isnan().tolist() == [False, True, True, False]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TopK([[0, 1]], [[-1.0, -2.0]], 4), "no tail is given.*tail='bucket'"),
        (lambda: TopK([[0, 1]], [[-1.0, -2.0]], 4, tail="drop"), "tail is 'drop'"),
        (lambda: TopK([[0, 4]], [[-1.0, -2.0]], 4, tail="even"), "the id 4, but num_classes=4 allows 0 to 3"),
        (lambda: TopK([[0, -1]], [[-1.0, -2.0]], 4, tail="even"), "the id -1"),
        (lambda: TopK([[0, 1], [3, 3]], [[-1.0, -2.0]] * 2, 4, tail="even"), "row 1 holds the id 3 twice"),
        (lambda: TopK([[0, 1]], [[-0.5, -0.5]], 4, tail="even"), r"has the mass 1.213.*log_softmax over all V"),
        (lambda: TopK([[0, 1]], [[-1.0]], 4, tail="even"), r"ids have shape \(1, 2\) but log_probs \(1, 1\)"),
        (lambda: TopK([[0, 1, 2]], [[-9.0] * 3], 2, tail="even"), "k=3 classes are listed, but there are only"),
        (lambda: TopK(torch.zeros(2, 0).long(), torch.zeros(2, 0), 4, tail="even"), "list at least one class"),
        (lambda: TopK([[0.0, 1.0]], [[-1.0, -2.0]], 4, tail="even"), "ids have dtype torch.float32"),
        (lambda: TopK([[0, 1]], torch.tensor([[-1, -2]]), 4, tail="even"), "log_probs have dtype torch.int64"),
        (lambda: TopK([[0, 1]], [[-1.0, math.nan]], 4, tail="even"), "holds NaN.*validate=False"),
        (lambda: TopK([[0, 1]], [[-math.inf] * 2], 4, tail="renormalize"), "no mass to renormalize"),
        (lambda: TopK([[0, 1]], [[-1.0, -2.0]], 4.0, tail="even"), "num_classes is 4.0"),
        (lambda: TopK([[0, 1]], [[-1.0, -2.0]], 4, tail="even", temperature=0.0), "temperature is 0.0"),
        (lambda: top_k(torch.zeros(2, 4), 5, tail="even"), "k is 5; write an integer from 1 to 4"),
        (lambda: top_k(torch.zeros(2, 4), 0, tail="even"), "k is 0"),
        (lambda: top_k(torch.zeros(2, 4).long(), 2, tail="even"), "floating dtype"),
    ],
)
def test_bad_input_is_told_what_to_write(make, says):
    with pytest.raises(FormError, match=says):
        make()


def test_different_v_and_unvalidated_ids():
    p = TopK([[0, 9]], [[-1.0, -2.0]], 4, tail="bucket", validate=False)
    with pytest.raises(FormError, match="V=4 but q has V=5"):
        kl(p, Logits(torch.zeros(1, 5)))
    with pytest.raises(
        (IndexError, RuntimeError), match=r"outside of 0 to 3|out of bounds"
    ):  # never read out of bounds
        kl(p, Logits(torch.zeros(1, 4)))


# ---------------------------------------------------------------- as tensors


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16])
def test_any_integer_ids_and_floating_logs(dtype):
    ids, log_p = listed(teacher())
    want = kl(TopK(ids, log_p, V, tail="bucket"), Logits(normal(4, V, seed=2)))
    got = kl(TopK(ids.to(dtype), log_p, V, tail="bucket"), Logits(normal(4, V, seed=2)))
    assert torch.equal(got, want)


def test_shape_rows_and_saving():
    p = top_k(teacher((2, 3)), K, tail="even")
    assert p.shape == (2, 3, V)
    assert p.dtype == torch.float64
    assert p[1].shape == (3, V)
    assert torch.equal(p[..., 1].left_out, p.left_out[..., 1])
    assert torch.equal(p[0, 2].probabilities(), p.probabilities()[0, 2])
    assert p.to(torch.float32).dtype == torch.float32
    assert p.detach().requires_grad is False
    file = io.BytesIO()
    torch.save(p, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert torch.equal(again.probabilities(), p.probabilities())
    assert again.tail == "even"


def test_batches_broadcast():
    p, x = top_k(teacher((3, 1)), K, tail="bucket"), normal(2, V, seed=2)
    got = kl(p, Logits(x))
    assert got.shape == (3, 2)
    torch.testing.assert_close(got[1, 0], kl(p[1, 0], Logits(x[0])), rtol=1e-14, atol=0)


def test_vmap_and_compile_free_transforms():
    ids, log_p = listed(teacher())
    x = normal(4, V, seed=2)
    want = kl(TopK(ids, log_p, V, tail="bucket"), Logits(x))
    for tail in TAILS:
        want = kl(TopK(ids, log_p, V, tail=tail), Logits(x))
        got = torch.func.vmap(lambda i, y, x, tail=tail: kl(TopK(i, y, V, tail=tail), Logits(x)))(ids, log_p, x)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
        grad = torch.func.grad(lambda x, tail=tail: kl(TopK(ids, log_p, V, tail=tail), Logits(x)).sum())(x)
        leaf = x.clone().requires_grad_()
        kl(TopK(ids, log_p, V, tail=tail), Logits(leaf)).sum().backward()
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-11, atol=1e-13)


def test_contributions_and_entropy():
    ids, log_p = listed(teacher())
    q = Logits(normal(4, V, seed=2))
    p = TopK(ids, log_p, V, tail="bucket")
    parts = contributions(p, q)
    torch.testing.assert_close(parts.sum(-1), kl(p, q), rtol=1e-12, atol=1e-14)
    rest = torch.ones(4, V, dtype=torch.bool).scatter(-1, ids, False)
    for n in range(4):
        assert len({*parts[n][rest[n]].tolist()}) == 1  # shared out evenly
    exact = log_p.exp()
    w = torch.cat([exact, 1.0 - exact.sum(-1, keepdim=True)], -1)
    torch.testing.assert_close(entropy(p), -(w * w.log()).sum(-1), rtol=1e-12, atol=0)


def test_top_k_counts_what_it_leaves_out():
    a = teacher((3, 2)).float()
    kept = top_k(a, K, tail="bucket")
    w = torch.softmax(a.double(), -1)
    torch.testing.assert_close(kept.left_out, w.sort(-1).values[..., : V - K].sum(-1), rtol=1e-13, atol=0)
    assert kept.log_probs.dtype == torch.float32
    sure = torch.tensor([[100.0, 0.0, -1.0, -2.0]])
    torch.testing.assert_close(
        top_k(sure, 1, tail="bucket").left_out, torch.softmax(sure.double(), -1)[..., 1:].sum(-1), rtol=1e-13, atol=0
    )
    soft = top_k(a, K, tail="bucket", temperature=2.0)
    torch.testing.assert_close(
        soft.probabilities().gather(-1, soft.ids),
        torch.softmax(a.double() / 2, -1).gather(-1, soft.ids),
        rtol=1e-6,
        atol=0,
    )
    assert not top_k(a.requires_grad_(), K, tail="even").requires_grad


@pytest.mark.skipif(cpu.ABSENT is not None, reason=str(cpu.ABSENT))
def test_explain_says_who_serves():
    p, x = top_k(teacher().float(), K, tail="bucket"), normal(4, V, seed=2).float()
    assert "TopK over V=23, batch (4,)" in str(explain(p, Logits(x)))
    beside = explain(p, Probs(torch.softmax(x, -1)))
    assert beside.engine == "eager"
    assert "unless the tail is even" in str(beside)


# ---------------------------------------------------------------- others' formulas


def test_the_tail_bucket_is_what_verl_and_trl_compute():
    """Their published formula, Σ_k p (log p - log q) + p_tail (log p_tail - log q_tail), written out."""
    ids, log_p = listed(teacher())
    x = normal(4, V, seed=2)
    log_q = torch.log_softmax(x, -1).gather(-1, ids)
    p_tail, q_tail = 1.0 - log_p.exp().sum(-1), 1.0 - log_q.exp().sum(-1)
    want = (log_p.exp() * (log_p - log_q)).sum(-1) + p_tail * (p_tail.log() - q_tail.log())
    torch.testing.assert_close(kl(TopK(ids, log_p, V, tail="bucket"), Logits(x)), want, rtol=1e-10, atol=1e-12)


def test_renormalizing_is_what_distillkit_and_axolotl_compute():
    ids, log_p = listed(teacher())
    x = normal(4, V, seed=2)
    log_q = torch.log_softmax(x, -1).gather(-1, ids)
    log_r = torch.log_softmax(log_p, -1)
    want = (log_r.exp() * (log_r - log_q)).sum(-1)
    torch.testing.assert_close(kl(TopK(ids, log_p, V, tail="renormalize"), Logits(x)), want, rtol=1e-10, atol=1e-12)


def test_verls_gradient_outside_of_the_list():
    """q_j (m_p - p_tail m_q / q_tail), m the mass of the list."""
    ids, log_p = listed(teacher())
    x = normal(4, V, seed=2).requires_grad_()
    (g,) = torch.autograd.grad(kl(TopK(ids, log_p, V, tail="bucket"), Logits(x)).sum(), x)
    q = torch.softmax(x.detach(), -1)
    m_p, m_q = log_p.exp().sum(-1, keepdim=True), q.gather(-1, ids).sum(-1, keepdim=True)
    want = q * (m_p - (1 - m_p) * m_q / (1 - m_q))
    outside = torch.ones(4, V, dtype=torch.bool).scatter(-1, ids, False)
    torch.testing.assert_close(g[outside], want[outside], rtol=1e-10, atol=1e-13)


def test_a_reading_without_a_temperature_leaves_what_it_reads():
    log_p = torch.log(torch.tensor([[0.5, 0.3]], dtype=torch.float64))
    mine, each = TopKReading(4, "even").logs(log_p)
    assert torch.equal(mine, log_p)
    assert each.exp().tolist() == [[pytest.approx(0.1)]]
    found = LogitsReading().weights((log_p,)).w
    assert found.tolist() == [[pytest.approx(5 / 8), pytest.approx(3 / 8)]]
