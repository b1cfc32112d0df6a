"""Listed classes in the C++ engine: totals, accuracy near zero, rests that are tiny or nothing, threads."""

import math

import pytest
import torch

from cases import normal
from kullback import (
    Drawn,
    Labels,
    Logits,
    LogProbs,
    Probs,
    Term,
    TopK,
    divergences,
    draw,
    engines,
    measure,
    top_k,
    total,
)
from kullback.divergences import TABLE
from kullback.engines import cpu, operators
from kullback.forms.sparse import Draws

pytestmark = pytest.mark.skipif(cpu.ABSENT is not None, reason=str(cpu.ABSENT))
TAILS = ("bucket", "even", "renormalize")
LINEAR = [row for row in TABLE if row.linear is not None]


def by_core(row, p, q, x, weights=None):
    """Value of every row and the gradient of their weighted sum, by the eager definition in float64."""
    with engines.use("eager"):
        wide = x.detach().double().requires_grad_()
        values = measure(row, p, q(wide))
        kept = values if weights is None else torch.where(weights != 0, values, 0.0) * weights
        (g,) = torch.autograd.grad(kept.sum(), wide)
    return values.detach(), g


def close(got, want, rtol):
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=rtol * float(want.abs().max()))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("columns", [7, 513, 3001])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_distillation_in_one_pass(tail, columns, dtype):
    """Soft and hard terms at temperatures whose exponentials are powers of each other; dropped rows hold NaN."""
    n = 6
    a, x = 2.0 * normal(n, columns, seed=1), normal(n, columns, seed=2).to(dtype)
    weights = torch.tensor([0.5, 0.0, 1.0, 0.25, 0.0, 2.0], dtype=torch.float64)
    kept = top_k(a, min(20, columns - 1), tail=tail)
    log_p = kept.log_probs.clone()
    log_p[1] = x[4] = math.nan
    log_p[4], x[1] = math.nan, math.nan
    teacher = TopK(kept.ids, log_p, columns, tail=tail, validate=False)
    labels = torch.randint(columns, (n,), generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    soft = Term(divergences.KL, teacher, Logits(x, 2.0), 4.0 * weights)
    hard = Term(divergences.CROSS_ENTROPY, Labels(labels, columns), Logits(x), weights)
    for terms in ([soft], [soft, hard], [hard, soft]):
        value = total(terms)
        (g,) = torch.autograd.grad(value, x)
        want, want_g = 0.0, 0.0
        for term in terms:
            t = 2.0 if term is soft else 1.0
            one, one_g = by_core(term.divergence, term.p, lambda y, t=t: Logits(y, t), x, term.weights)
            want = want + torch.where(weights != 0, one * term.weights, 0.0).sum()
            want_g = want_g + one_g
        torch.testing.assert_close(value.double(), want, rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=0)
        close(g, want_g, {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype])
        assert (g[[1, 4]] == 0).all()


@pytest.mark.parametrize("row", LINEAR, ids=lambda row: row.name)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("dense_first", [False, True])
def test_every_term_of_the_table(row, tail, dense_first):
    a, x = 2.0 * normal(5, 1201, seed=1), normal(5, 1201, seed=2).float().requires_grad_()
    teacher = top_k(a, 30, tail=tail)
    pair = (Logits(x), teacher) if dense_first else (teacher, Logits(x))
    value = total([Term(row, *pair, 0.2)])
    with engines.use("eager"):
        wide = x.detach().double().requires_grad_()
        want = 0.2 * measure(row, *((Logits(wide), teacher) if dense_first else (teacher, Logits(wide)))).sum()
    torch.testing.assert_close(value.double(), want.detach(), rtol=1e-5, atol=0)
    (g,) = torch.autograd.grad(value, x)
    (want_g,) = torch.autograd.grad(want, wide)
    close(g, want_g, 1e-5)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("columns", [600, 32_000])
@pytest.mark.parametrize("step", [3e-5, 1e-3, 1e-1])
def test_float32_keeps_the_law_down_to_1e_9(tail, columns, step):
    """A student beside the very distribution that the form stands for: KL from 1e-9 on, relative error 1e-5."""
    kept = top_k(3.0 * normal(3, columns, seed=1).float(), 50, tail=tail)
    like = torch.log(kept.probabilities()) if tail == "even" else 3.0 * normal(3, columns, seed=1)
    if tail == "renormalize":
        like = like.scatter_add(-1, kept.ids, torch.full_like(kept.ids, 30, dtype=torch.float64))
    x = (like + step * normal(3, columns, seed=2)).float()
    for row in (divergences.KL, divergences.JEFFREYS, divergences.js(0.1), divergences.CHI2, divergences.TV):
        for flip in (False, True):
            pair = (Logits(x), kept) if flip else (kept, Logits(x))
            exact = (Logits(x.double()), kept) if flip else (kept, Logits(x.double()))
            with engines.use("eager"):
                want = measure(row, *exact)
            got = measure(row, *pair)
            finite = want.isfinite()
            torch.testing.assert_close(got.double()[finite], want[finite], rtol=1e-5, atol=0)
            assert (got.double()[~finite] == want[~finite]).all()


@pytest.mark.parametrize("gap", [20.0, 40.0, 100.0, 800.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rest_that_is_next_to_nothing(gap, dtype):
    """A student so sure of the listed classes that single exponentials cannot tell what is left."""
    x = normal(4, 2000, seed=2)
    ids = torch.arange(10, 2000, 190).expand(4, 11)
    x = x.scatter_add(-1, ids, torch.full((4, 11), gap, dtype=torch.float64)).to(dtype)
    log_p = torch.log_softmax(normal(4, 11, seed=3), -1) + math.log(0.9)
    x.requires_grad_()
    for tail in ("bucket", "renormalize"):
        p = TopK(ids, log_p, 2000, tail=tail)
        want, want_g = by_core(divergences.KL, p, Logits, x)
        value = total([Term(divergences.KL, p, Logits(x), 1.0)])
        (g,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(value.double(), want.sum(), rtol=1e-5, atol=0)
        rows = measure(divergences.KL, p, Logits(x))
        torch.testing.assert_close(rows.double(), want, rtol=1e-5, atol=0)
        (by_rows,) = torch.autograd.grad(rows.sum(), x)
        for got in (g, by_rows):
            torch.testing.assert_close(got.double(), want_g, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rest_without_mass_is_nothing_exactly(dtype):
    x = torch.full((3, 700), -math.inf, dtype=dtype)
    ids = torch.tensor([[3, 600, 699]]).expand(3, 3)
    x = x.scatter(-1, ids, normal(3, 3, seed=1).to(dtype)).requires_grad_()
    log_p = torch.log_softmax(normal(3, 3, seed=2), -1)
    whole, part = TopK(ids, log_p, 700, tail="renormalize"), TopK(ids, log_p - 0.5, 700, tail="bucket")
    listed = measure(divergences.KL, Logits(log_p), Logits(x.gather(-1, ids)))
    for measured in (measure(divergences.KL, whole, Logits(x)), total([Term(divergences.KL, whole, Logits(x), 1.0)])):
        torch.testing.assert_close(measured.sum().double(), listed.sum().double(), rtol=1e-6, atol=0)
        (g,) = torch.autograd.grad(measured.sum(), x)
        assert (g.scatter(-1, ids, 0.0) == 0).all()
        assert (g.gather(-1, ids) != 0).all()
    infinite = total([Term(divergences.KL, part, Logits(x), 1.0)])
    assert infinite == math.inf
    (g,) = torch.autograd.grad(infinite, x)
    assert (g == 0).all()


@pytest.mark.parametrize("tail", TAILS)
def test_threads_that_share_rows_change_no_bit(tail):
    a, x = normal(2, 40_000, seed=1), normal(2, 40_000, seed=2).float().requires_grad_()
    teacher = top_k(a, 700, tail=tail)  # more than a block of cells
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rows = measure(divergences.KL, teacher, Logits(x))
            value = total([Term(divergences.KL, teacher, Logits(x), 1.0)])
            found.append((rows.detach(), *torch.autograd.grad(rows.sum(), x), value, *torch.autograd.grad(value, x)))
    finally:
        torch.set_num_threads(before)
    want, want_g = by_core(divergences.KL, teacher, Logits, x)
    for one in found:
        assert all(torch.equal(a, b) for a, b in zip(one, found[0], strict=True))
        close(one[0], want, 1e-6)
        close(one[1], want_g, 1e-6)
        close(one[3], want_g, 1e-6)


def test_the_gradient_is_written_over_the_scores_that_it_is_of():
    a, x = normal(3, 2000, seed=1), normal(3, 2000, seed=2).float()
    teacher = top_k(a, 20, tail="bucket")
    want = x.clone().requires_grad_()
    total([Term(divergences.KL, teacher, Logits(want), 1.0)]).backward()
    buffer = x.clone().requires_grad_()
    with torch.no_grad():
        over = buffer.detach()
    value = total([Term(divergences.KL, teacher, Logits(buffer), 1.0)], out=[(buffer, over)])
    value.backward()
    torch.testing.assert_close(over, want.grad, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_drawn_classes_may_repeat(dtype):
    x = normal(3, 900, seed=2).to(dtype).requires_grad_()
    ids = torch.tensor([[5, 5, 899, 0], [0, 1, 2, 3], [7, 7, 7, 7]])
    counts = torch.tensor([[2, 1, 4, 0], [1, 1, 1, 1], [1, 0, 3, 0]])
    form = Draws(Drawn(ids, torch.full((3, 4), -1.0), 900, counts=counts))
    log_q = torch.log_softmax(x.double(), -1).gather(-1, ids)
    want = -(counts.double() / counts.sum(-1, keepdim=True) * log_q).sum()
    got = total([Term(divergences.CROSS_ENTROPY, form, Logits(x), 1.0)])
    torch.testing.assert_close(got.double(), want, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)
    (g,) = torch.autograd.grad(got, x)
    close(g, torch.autograd.grad(want, x)[0].double(), 1e-6 if dtype == torch.float32 else 1e-13)
    rows = measure(divergences.CROSS_ENTROPY, form, Logits(x))
    torch.testing.assert_close(rows.sum().double(), want, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)


def test_no_dense_copy_is_made():
    """Beyond the gradient, what a total with listed classes takes does not grow with N·V."""
    a, x = normal(64, 50_000, seed=1).float(), normal(64, 50_000, seed=2).float().requires_grad_()
    teacher = top_k(a, 16, tail="bucket")
    total([Term(divergences.KL, teacher, Logits(x), 1.0)]).backward()  # each thread's room is made
    x.grad = None
    with torch.profiler.profile(profile_memory=True) as profile:
        total([Term(divergences.KL, teacher, Logits(x), 1.0)]).backward()
    taken = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert x.numel() * 4 <= taken < 1.1 * x.numel() * 4


@pytest.mark.parametrize("tail", TAILS)
def test_it_compiles_and_is_an_operator(tail):
    a, x = normal(4, 100, seed=1), normal(4, 100, seed=2).requires_grad_()
    teacher = top_k(a, 7, tail=tail)
    side = teacher.side(teacher.batch_shape)
    found = engines.choice.decide(divergences.KL, side, Logits(x).side(x.shape[:1]), 100)
    (call,) = found.calls
    asked = operators.ask(call, side, Logits(x).side(x.shape[:1]))
    torch.library.opcheck(torch.ops.kullback.rows.default, (*asked, True))
    value, _ = torch.ops.kullback.rows(*asked, True)
    want, want_g = by_core(divergences.KL, teacher, Logits, x)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=0)
    close(torch.autograd.grad(value.sum(), x)[0], want_g, 1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # said by the import of PyTorch's own compiler
@pytest.mark.parametrize("tail", TAILS)
def test_under_torch_compile(tail):
    a, x = normal(4, 100, seed=1), normal(4, 100, seed=2)
    ids, log_p = top_k(a, 7, tail="even").tensors

    @torch.compile(fullgraph=True)
    def loss(ids, log_p, x):
        return measure(divergences.KL, TopK(ids, log_p, 100, tail=tail), Logits(x)).mean()

    x.requires_grad_()
    value = loss(ids, log_p, x)
    want, want_g = by_core(divergences.KL, TopK(ids, log_p, 100, tail=tail), Logits, x)
    torch.testing.assert_close(value.double(), want.mean(), rtol=1e-12, atol=0)
    close(torch.autograd.grad(value, x)[0], want_g / 4, 1e-12)


@pytest.mark.parametrize("form", [LogProbs, lambda x: Probs(x.exp()), lambda x: Draws(draw(x, 5))])
def test_a_reading_without_numbers_has_a_gradient_as_an_operator(form):
    p, x = form(torch.log_softmax(normal(3, 9, seed=1), -1)), normal(3, 9, seed=2).requires_grad_()
    sides = p.side(p.batch_shape), Logits(x).side(x.shape[:1])
    (call,) = engines.choice.decide(divergences.CROSS_ENTROPY, *sides, 9).calls
    value, _ = torch.ops.kullback.rows(*operators.ask(call, *sides), True)
    want, want_g = by_core(divergences.CROSS_ENTROPY, p, Logits, x)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=0)
    close(torch.autograd.grad(value.sum(), x)[0], want_g, 1e-12)
