"""The loop over chunks of hidden states: what it multiplies, what it holds, and where PyTorch takes it."""

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from kullback import Labels, LinearLogits, Logits, Term, explain, kl, total
from kullback.core.readings import Side
from kullback.divergences import CROSS_ENTROPY, KL, TABLE
from kullback.engines import linear, use
from kullback.engines.call import Call
from kullback.engines.linear import Need, plan
from kullback.engines.operators import ask
from kullback.losses import GKD, Distillation, SkewKL

MIB = 1 << 20


def head(rows, hidden, classes, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    h, w = torch.randn(rows, hidden, generator=g), torch.randn(classes, hidden, generator=g) / math.sqrt(hidden)
    return h.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()


# ---------------------------------------------------------------- the plan


def need(row, *, stays=False, more=0, sums=0, free=0):
    return Need(row, stays, more, sums, free)


def test_in_single_precision_chunks_are_what_fits_and_no_more_than_is_fast():
    row = 4 * 32000
    assert plan([need(row), need(row)], 0, 2048, None) == (256, 256, False, 256 * 2 * row)
    assert plan([need(row), need(row)], 0, 2048, 100 * row) == (50, 50, False, 100 * row)
    assert plan([need(row), need(row)], 0, 2048, 1) == (1, 1, False, 2 * row)
    assert plan([need(row), need(row)], 0, 3, None).bytes == 3 * 2 * row
    assert plan([need(row)], 0, 0, None).chunk == 1


def test_in_half_precision_one_product_makes_the_weights_gradient_if_scores_fit():
    row = 2 * 32000
    student, teacher = need(row, stays=True, sums=4 * 32000 * 512, free=2 * 32000 * 512), need(row)
    whole = plan([student, teacher], 0, 2048, None)
    assert whole.block == 2048
    assert not whole.wide
    assert whole.bytes <= 256 * MIB
    # the teacher's scores may lie in the gradient that is made last
    row = 2 * 128256
    student, teacher = need(row, stays=True, sums=4 * 128256 * 1024, free=2 * 128256 * 1024), need(row)
    tight = plan([student, teacher], 0, 1024, None)
    assert tight == (256, 1024, False, 1024 * row)
    assert tight.bytes <= 256 * MIB


def test_what_does_not_fit_is_added_up_in_float32_unless_the_budget_forbids():
    row = 2 * 1000
    student, teacher = need(row, stays=True, sums=4 * 1000 * 64, free=2 * 1000 * 64), need(row)
    many = plan([student, teacher], 0, 10**6, None)
    assert many.wide
    assert many.block < 10**6
    assert many.bytes <= 256 * MIB + 4 * 1000 * 64
    kept = plan([student, teacher], 0, 10**6, 1 * MIB)
    assert kept.wide
    assert kept.bytes <= 1 * MIB
    little = plan([student, teacher], 0, 10**6, 400_000)
    assert not little.wide
    assert little.bytes <= 400_000


# ---------------------------------------------------------------- matrix products


def products(f):
    """(output shape of every matrix product, how many there are) while `f` runs."""
    seen = []

    originals = {name: getattr(torch, name) for name in ("mm", "addmm")}
    method = torch.Tensor.addmm_
    try:
        for name, original in originals.items():
            setattr(torch, name, lambda *a, _o=original, **k: seen.append(tuple((r := _o(*a, **k)).shape)) or r)
        torch.Tensor.addmm_ = lambda self, *a, **k: seen.append(tuple(self.shape)) or method(self, *a, **k)
        f()
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)
        torch.Tensor.addmm_ = method
    return seen


def test_two_terms_of_one_student_take_one_product_a_chunk_and_dropped_rows_none():
    (h, w), (ht, wt) = head(90, 8, 50), head(90, 12, 50, seed=1)
    y, weights = torch.zeros(90, dtype=torch.long), (torch.arange(90) % 3 != 0).double()
    s, t = LinearLogits(h, w, memory=30 * (2 * 50 * 4 + 8)), LinearLogits(ht.detach(), wt.detach(), temperature=2.0)
    terms = [
        Term(KL, t, s.tempered(2.0), weights),
        Term(CROSS_ENTROPY, Labels(y, 50), s, weights),
    ]
    seen = products(lambda: total(terms).backward())
    # 60 rows count, 30 fit: two chunks of scores for either model, and of gradients for hidden states and weight
    assert sorted(seen) == sorted([(30, 50), (30, 50), (30, 8), (50, 8)] * 2)


@pytest.mark.parametrize(
    "loss", [GKD(0.3), GKD(1.0, scaled=True), GKD(0.3, scaled=True), SkewKL(direction="reverse")], ids=repr
)
def test_losses_of_two_models_make_four_products(loss):
    (h, w), (ht, wt) = head(30, 8, 50), head(30, 12, 50, seed=1)
    seen = products(lambda: loss(student=LinearLogits(h, w), teacher=LinearLogits(ht, wt)).backward())
    assert sorted(seen) == sorted([(30, 50), (30, 50), (30, 8), (50, 8)])


def test_a_frozen_head_has_no_gradient_made():
    h, w = head(40, 8, 50)
    frozen = w.detach()
    seen = products(lambda: total([Term(CROSS_ENTROPY, Labels([1] * 40, 50), LinearLogits(h, frozen))]).backward())
    assert sorted(seen) == [(40, 8), (40, 50)]
    seen = products(lambda: total([Term(CROSS_ENTROPY, Labels([1] * 40, 50), LinearLogits(h.detach(), frozen))]))
    assert seen == [(40, 50)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_weights_gradient_of_many_parts_adds_up_in_float32(dtype):
    """2,000 equal parts: in half precision the sum would stop growing at 256 (bfloat16) or 2,048 times a part."""
    h, w = torch.ones(8000, 1, dtype=dtype), torch.zeros(4, 1, dtype=dtype).requires_grad_()
    memory = 4 * 4 * 2 + 2 * 4 * 4  # four rows at a time, and the sums
    form = LinearLogits(h, w, memory=memory)
    how = linear.Chunks((Logits(torch.zeros(8000, 4)).side((8000,)), form.side((8000,))), [w], True).plan(8000, False)
    assert how.wide
    assert how.block <= 8
    value = total([Term(CROSS_ENTROPY, Labels([0] * 8000, 4), form, 1.0)])
    (g,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(
        g.flatten().double(), torch.tensor([-6000.0, 2000, 2000, 2000]).double(), rtol=2**-8, atol=0
    )


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_holds_what_explain_predicts(dtype):
    """Peak resident memory beyond inputs and gradients, of a process of its own."""
    code = f"""
        import torch
        from kullback import LinearLogits, Term, explain, total
        from kullback.divergences import KL
        torch.set_num_threads(1)
        N, H, V, dtype, memory = 1024, 64, 20000, torch.{dtype}, 16 << 20
        def make(rows, grad):
            g = torch.Generator().manual_seed(0)
            h, w = torch.randn(rows, H, generator=g).to(dtype), torch.randn(V, H, generator=g).to(dtype)
            return LinearLogits(h.requires_grad_(grad), w.requires_grad_(grad), memory=memory)
        def run(rows):
            s, t = make(rows, True), make(rows, False)
            open("/proc/self/clear_refs", "w").write("5")
            before = status("VmRSS")
            total([Term(KL, t, s, 1 / N)]).backward()
            return (status("VmHWM") - before) / 1024 - sum(x.grad.nbytes for x in s.tensors) / 2**20
        def status(name):
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
        run(16)
        print(run(N), explain(make(N, False), make(N, True)).temporary_bytes / 2**20)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    peak, predicted = map(float, done.stdout.split())
    # 12 MiB: the extension's blocks, the allocator's slack, and what the library of matrix products packs
    assert peak < 16 + 12, (peak, predicted)
    assert peak < predicted + 12


def test_rows_of_a_shifted_teacher_are_copied_a_chunk_at_a_time(monkeypatch):
    """scores[:, :-1], as language models compare them, has no view of one axis of rows."""
    (h, w), g = head(14, 8, 50), torch.Generator().manual_seed(1)
    scores = torch.randn(2, 8, 50, generator=g)
    copied = []
    rows_of = linear._rows_of
    monkeypatch.setattr(linear, "_rows_of", lambda *a: copied.append(rows_of(*a)) or copied[-1])
    form = LinearLogits(h.reshape(2, 7, 8), w, memory=3 * 50 * 4)
    for weights in (0.5, (torch.arange(14).reshape(2, 7) % 3).double()):
        value = total([Term(KL, Logits(scores[:, :-1]), form, weights)])
        want = total([Term(KL, Logits(scores[:, :-1].contiguous()), form.logits(), weights)])
        close([value, *torch.autograd.grad(value, [h, w])], [want, *torch.autograd.grad(want, [h, w])])
    assert max(x.untyped_storage().nbytes() for x in copied) == 3 * 50 * 4


# ---------------------------------------------------------------- any call


@given(
    rows=st.integers(0, 9),
    classes=st.integers(1, 20),
    hidden=st.integers(1, 5),
    memory=st.sampled_from([1, 300, 2000, None]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    picks=st.lists(
        st.tuples(
            st.sampled_from([row for row in TABLE if row.linear is not None]),
            st.sampled_from("stlxs"),
            st.sampled_from("stlxs"),
            st.sampled_from(["one", "mask", "none"]),
        ),
        min_size=1,
        max_size=4,
    ),
    softcap=st.sampled_from([None, 1.5]),
    seed=st.integers(0, 99),
)
def test_any_total_equals_the_sum_of_its_rows_over_whole_scores(
    rows, classes, hidden, memory, dtype, picks, softcap, seed
):
    """Student, teacher, labels and dense scores on any side of up to four terms, with any weights."""
    g = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    leaves = [
        leaf(rows, hidden),
        leaf(classes, hidden),
        leaf(classes),
        leaf(rows, hidden + 1),
        leaf(classes, hidden + 1),
    ]
    leaves.append(leaf(rows, classes))
    labels = Labels(torch.randint(classes, (rows,), generator=g), classes, 0.2)
    mask = torch.randint(2, (rows,), generator=g).double()
    weights = {"one": 0.7, "mask": mask / 3, "none": 0.0}

    def terms(whole):
        s = LinearLogits(*leaves[:3], softcap=softcap, memory=memory)
        t = LinearLogits(*leaves[3:5], temperature=2.0)
        forms = {"s": s.logits() if whole else s, "t": t.logits() if whole else t, "l": labels, "x": Logits(leaves[5])}
        return [Term(row, forms[p], forms[q], weights[w]) for row, p, q, w in picks]

    found, wanted = (
        [value := total(terms(whole)), *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]
        if any(side != "l" for _, p, q, _ in picks for side in (p, q))
        else [total(terms(whole))]
        for whole in (False, True)
    )
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
        rtol = 1e-11 if dtype == torch.float64 else 1e-4  # 1e-5 of every term, of which several may cancel
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * scale)


# ---------------------------------------------------------------- where PyTorch takes it


def both_ways(f, leaves):
    value = f()
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def close(got, want, rtol=1e-5):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=rtol * b.abs().max().item())


def test_inside_torch_compile_it_is_one_operator():
    (h, w), (ht, wt) = head(20, 8, 30), head(20, 8, 30, seed=1)
    b = torch.linspace(-1, 1, 30).requires_grad_()

    def f(h, w, b, ht, wt):
        hidden = torch.tanh(h)
        return kl(LinearLogits(ht, wt), LinearLogits(hidden, w, b, softcap=3.0, scale=0.5)).mean()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    leaves = [h, w, b]
    arguments = (h, w, b, ht.detach(), wt.detach())
    close(both_ways(lambda: compiled(*arguments), leaves), both_ways(lambda: f(*arguments), leaves))
    loss = Distillation(2.0)
    y = torch.arange(20)

    def distil(h, w, ht, wt, y):
        return loss(student=LinearLogits(h, w), teacher=LinearLogits(ht, wt), labels=y)

    compiled = torch.compile(distil, fullgraph=True, backend="aot_eager")
    arguments = (h, w, ht.detach(), wt.detach(), y)
    close(both_ways(lambda: compiled(*arguments), [h, w]), both_ways(lambda: distil(*arguments), [h, w]))


def test_the_operator_keeps_pytorchs_rules():
    h, w = head(6, 3, 5)
    p, q = Logits(torch.randn(6, 5)), LinearLogits(h, w)
    left, right = p.side((6,)), q.side((6,))
    call = Call(KL.sums[0], left.reading, right.reading, (torch.float32,) * 3, "cpu", 5)
    torch.library.opcheck(torch.ops.kullback.linear_rows.default, (*ask(call, left, right), False))
    wrong = ask(call, left, Side(right.reading, (h, w[:4])))
    with pytest.raises(RuntimeError, match="num_classes is 5"):
        torch.ops.kullback.linear_rows(*wrong, False)


def test_under_autocast_it_casts_as_a_linear_layer_does():
    h, w = head(20, 8, 30)
    b = torch.linspace(-1, 1, 30).requires_grad_()
    other = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        got = both_ways(lambda: kl(Logits(other), LinearLogits(h, w, b)).mean(), [h, w, b])
        want = both_ways(lambda: kl(Logits(other), Logits(nn.functional.linear(h, w, b))).mean(), [h, w, b])
    assert [x.dtype for x in got] == [torch.float32] * 4
    close(got, want, 2**-6)
    with torch.autocast("cpu", torch.bfloat16):  # made outside, used inside: as it was made
        form = LinearLogits(h.double(), w.double())
    assert form.dtype == torch.float64


def test_under_checkpointing():
    h, w = head(20, 8, 30)
    other = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))

    def f(x, w):
        return total([Term(KL, Logits(other), LinearLogits(torch.tanh(x), w), 0.05)])

    want = both_ways(lambda: f(h, w), [h, w])
    for reentrant in (False, True):
        h.grad = w.grad = None
        value = checkpoint(f, h, w, use_reentrant=reentrant)
        value.backward()
        close([value.detach(), h.grad, w.grad], want)


def test_functorch_and_forced_engines_fall_to_the_definition():
    h, w = head(4, 3, 5)
    other = torch.randn(4, 5)

    def f(h, w):
        return kl(Logits(other), LinearLogits(h, w)).sum()

    want = both_ways(lambda: f(h, w), [h, w])
    gradients = torch.func.grad(f, argnums=(0, 1))(h, w)
    close(gradients, want[1:])
    with use("eager"):
        close(both_ways(lambda: f(h, w), [h, w]), want)
        assert "then eager" in explain(Logits(other), LinearLogits(h, w)).manner


def test_other_terms_tensors_get_their_gradients_too():
    """A dense student beside a teacher of hidden states that learns as well (deep mutual learning)."""
    h, w = head(20, 8, 30)
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for weights in (0.05, torch.arange(20).double() % 2):
        for memory in (1, None):
            form = LinearLogits(h, w, memory=memory)
            pairs = [(KL, form, Logits(x, 2.0)), (KL, Logits(x), form)]
            got = both_ways(lambda pairs=pairs, w=weights: total([Term(d, p, q, w) for d, p, q in pairs]), [h, w, x])
            dense = [(KL, form.logits(), Logits(x, 2.0)), (KL, Logits(x), form.logits())]
            want = both_ways(lambda pairs=dense, w=weights: total([Term(d, p, q, w) for d, p, q in pairs]), [h, w, x])
            close(got, want)


def test_on_two_ranks_with_ddp_and_fsdp2_gradients_are_those_of_one_process(tmp_path):
    script = Path(__file__).with_name("data_parallel.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "meeting")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert sorted(what for what, _ in said) == sorted(["ddp", "fsdp2 inside", "fsdp2 outside", "refused"] * 2)
    for what, found in said:
        assert found == "True" if what == "refused" else float(found) < 1e-6, what


def test_what_was_made_under_autocast_is_tempered_outside_of_it():
    hidden, weight = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        form = LinearLogits(hidden, weight)
    halves = LinearLogits(hidden.bfloat16(), weight.bfloat16())
    assert torch.equal(form.tempered(2.0).probabilities(), halves.tempered(2.0).probabilities())
