"""The C++ engine as PyTorch sees it: operator, threads, fork, memory, compile, second derivatives, choice."""

import dataclasses
import math
import subprocess
import sys
import textwrap

import pytest
import torch

from cases import call_of
from kullback import Labels, Logits, LogProbs, explain, kl
from kullback.core import generators
from kullback.core.generators import Generator, Tail, Terms
from kullback.core.readings import LabelsReading, LogitsReading, LogProbsReading, ProbsReading, Side
from kullback.core.reduction import GeneratorSum, LogAffinity
from kullback.divergences import HELLINGER, KL, TABLE, TV, Divergence, Scaled, alpha, js, renyi
from kullback.engines import choice, cpu, use
from kullback.engines.call import name_of_reading, name_of_sum, reading_of, sum_of
from kullback.engines.operators import ask
from kullback.verbs import measure

pytestmark = pytest.mark.skipif(cpu.ABSENT is not None, reason=str(cpu.ABSENT))

LOGITS = LogitsReading()


def pair(*shape, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(shape, generator=g)
    return a.to(dtype), (a + 0.3 * torch.randn(shape, generator=g)).to(dtype).requires_grad_()


def rows(a, b, total=KL.sums[0]):
    p, q = Side(LOGITS, (a,)), Side(LOGITS, (b,))
    return cpu.prepare(call_of(total, p, q, a.shape[-1]))(p, q)


def both(a, b, total=KL.sums[0]):
    values = rows(a, b, total)
    upstream = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).reshape(values.shape)
    return values.detach(), *torch.autograd.grad(values, [b], upstream)


def test_the_names_of_sums_and_readings_go_both_ways():
    for divergence in TABLE:
        for total in divergence.sums:
            assert sum_of(*name_of_sum(total)) == total
    for reading in (LogitsReading(0.7), LogProbsReading(), ProbsReading(), LabelsReading(9, 0.1, "others")):
        assert reading_of(*name_of_reading(reading), 9) == reading


def test_both_languages_have_the_same_list():
    assert {*cpu._cpu.formulas()} == {*generators.NAMED, "log_affinity"}
    assert cpu.ABSENT is None


@pytest.mark.parametrize("formulas", ["['kl', 'log_affinity']", "[*generators.NAMED, 'log_affinity', 'more']"])
def test_an_extension_of_other_sources_is_not_used(formulas):
    """One that lacks a generator, or has another beside ours: it is left alone, with a reason."""
    out = run_script(
        f"""
        import sys, types
        import importlib.util, pathlib
        root = pathlib.Path(importlib.util.find_spec("kullback").origin).parent
        spec = importlib.util.spec_from_file_location("generators", root / "core" / "generators.py")
        generators = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(generators)
        old = types.ModuleType("kullback._cpu")
        old.formulas = lambda: {formulas}
        old.max_terms = 8
        sys.modules["kullback._cpu"] = old
        from kullback import Probs, explain, kl
        from kullback.engines import cpu
        p, q = Probs([0.5, 0.5]), Probs([0.75, 0.25])
        print(cpu.ABSENT, "|", explain(p, q).engine, round(kl(p, q).item(), 4))
        """
    )
    assert "was built from other sources" in out
    assert out.strip().endswith("| eager 0.1438")


def doubled(c, _):
    return Terms(*(2.0 * part for part in generators.kl(c)))


DOUBLED = Generator("doubled", doubled, 0.0, 2.0, math.inf, plain=(-2.0, 2.0), tail=Tail(2.0))
TWICE = Divergence("twice", None, "2 KL", (GeneratorSum(DOUBLED),), Scaled(), math.inf, False, "this test")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sum_or_reading_that_no_kernel_knows_goes_to_eager():
    a, b = pair(3, 7)
    p, q = Logits(a), Logits(b)
    assert explain(p, q).engine == "cpu"
    assert dict(explain(p, q, divergence=TWICE).not_taken)["cpu"] == "doubled has no kernel"
    other = Side(SecondReading(), (b,))
    call = call_of(KL.sums[0], p.side(p.batch_shape), other, 7)
    assert cpu.why_not(call) == "SecondReading has no kernel"

    def loss(a, b):
        return measure(TWICE, Logits(a), Logits(b)).sum()

    double, once = loss(a, b), kl(Logits(a), Logits(b)).sum()
    torch.testing.assert_close(double.float(), 2 * once)
    torch.testing.assert_close(*torch.autograd.grad(double, [b]), *(2 * g for g in torch.autograd.grad(once, [b])))
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(a, b), double)
    torch.testing.assert_close(choice.measure(KL, p.side(p.batch_shape), other, 7).sum(), once)


def test_the_name_of_a_kernel_does_not_make_it_that_kernel():
    """A generator of one's own that calls itself kl is not computed as KL."""
    impostor = dataclasses.replace(DOUBLED, name="kl")
    a, b = pair(3, 7)
    p, q = Logits(a), Logits(b)
    row = dataclasses.replace(TWICE, sums=(GeneratorSum(impostor),))
    assert name_of_sum(GeneratorSum(impostor)) is None
    torch.testing.assert_close(measure(row, p, q), 2 * kl(p, q))


def test_a_copy_of_a_row_is_that_row():
    """Dispatch is by value: a copied row takes the same engine, and equals its original."""
    a, b = pair(3, 7)
    for divergence in TABLE:
        copy = dataclasses.replace(divergence, sums=tuple(dataclasses.replace(s) for s in divergence.sums))
        assert copy == divergence
        assert hash(copy) == hash(divergence)
        assert explain(Logits(a), Logits(b), divergence=copy) == explain(Logits(a), Logits(b), divergence=divergence)
        assert torch.equal(measure(copy, Logits(a), Logits(b)), measure(divergence, Logits(a), Logits(b)))


class SecondReading(LogitsReading):
    """A reading of one's own."""


@pytest.mark.parametrize("shape", [(1, 262_144), (3, 40_000), (64, 5_000), (5_000, 10), (17, 16_384), (16, 16_385)])
def test_the_bits_do_not_depend_on_threads(shape):
    a, b = pair(*shape)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append([both(a, b, total) for total in (KL.sums[0], LogAffinity(0.3))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            for x, y in zip(one, two, strict=True):
                assert torch.equal(x, y)


@pytest.mark.parametrize("num_classes", [10, 600])
def test_a_row_does_not_see_its_neighbours(num_classes):
    a, b = pair(100, num_classes)
    a[3, 1] = -math.inf
    with torch.no_grad():
        a[5, 2], b[7, 1] = math.nan, -math.inf
    values, grad = both(a, b)
    for row in (0, 3, 4, 99):
        alone = rows(a[row : row + 20], b[row : row + 20])[0]
        torch.testing.assert_close(alone, values[row], rtol=1e-6 if num_classes == 10 else 0, atol=0)
    assert grad[7].count_nonzero() == 0


@pytest.mark.parametrize("name", cpu.instruction_sets())
def test_every_instruction_set_agrees(name):
    before = cpu.instruction_set()
    a, b = pair(4, 1_000)
    a[0, 3] = -math.inf
    want = [both(a, b, d.sums[0]) for d in TABLE]
    try:
        cpu.use_instruction_set(name)
        got = [both(a, b, d.sums[0]) for d in TABLE]
    finally:
        cpu.use_instruction_set(before)
    for one, two in zip(want, got, strict=True):
        torch.testing.assert_close(one[0], two[0], rtol=3e-6, atol=1e-15)
        torch.testing.assert_close(one[1], two[1], rtol=1e-5, atol=1e-6)


def run_script(text):
    code = textwrap.dedent(text)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fork():
    """A child of fork has none of its parent's OpenMP threads, and does not wait for them."""
    out = run_script(
        """
        import os, torch
        from kullback import Logits, kl
        torch.set_num_threads(4)
        a, b = torch.randn(64, 5000), torch.randn(64, 5000)
        value = kl(Logits(a), Logits(b))
        child = os.fork()
        if child == 0:
            same = torch.equal(kl(Logits(a), Logits(b)), value)
            os._exit(0 if same else 3)
        print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert torch.equal(kl(Logits(a), Logits(b)), value)
        """
    )
    assert out.split() == ["status", "0"]


def test_threads_call_at_once():
    """The interpreter lock is released, and nothing is shared between calls."""
    out = run_script(
        """
        import torch
        from concurrent.futures import ThreadPoolExecutor
        from kullback import Logits, kl
        torch.set_num_threads(2)
        data = [(torch.randn(20, 3000), torch.randn(20, 3000)) for _ in range(8)]
        alone = [kl(Logits(a), Logits(b)) for a, b in data]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda ab: kl(Logits(ab[0]), Logits(ab[1])), data * 5))
        print(all(torch.equal(x, y) for x, y in zip(together, alone * 5)))
        """
    )
    assert out.strip() == "True"


def test_temporaries_do_not_grow_with_the_batch():
    """Peak memory of forward and backward: the gradient, and less than a megabyte beside it."""
    out = run_script(
        """
        import resource, torch
        from kullback import Logits, kl
        torch.set_num_threads(2)
        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        small = [torch.randn(4, 32000) for _ in range(2)]
        kl(Logits(small[0]), Logits(small[1].requires_grad_())).sum().backward()
        a, b = torch.randn(1024, 32000), torch.randn(1024, 32000, requires_grad=True)
        torch.zeros(64, 32000).add_(1)
        start = peak()
        loss = kl(Logits(a, 1.0), Logits(b, 1.0)).sum()
        forward = peak()
        loss.backward()
        print(forward - start, peak() - forward - b.grad.nbytes)
        """
    )
    forward, backward = map(int, out.split())
    assert forward < 4 << 20
    assert backward < 4 << 20


def test_rows_are_read_where_they_lie():
    """A row stride, a broadcast and an offset are followed; nothing is copied for them."""
    wide = torch.randn(6, 5, 700)
    views = (wide[:, 2, :600], wide[::2, :, 50:650], wide[:1, :, :600].expand(6, 5, 600))
    for view in views:
        assert cpu.lie(view, False, view.shape[:-1]).data_ptr() == view.data_ptr()
        p, q = Logits(view).side(view.shape[:-1]), Logits(view.contiguous()).side(view.shape[:-1])
        served = cpu.prepare(call_of(KL.sums[0], p, q, 600))
        assert torch.equal(served(p, q), torch.zeros(view.shape[:-1], dtype=torch.float64))


def asked(p, q, divergence=KL):
    left, right = p.side(p.batch_shape), q.side(q.batch_shape)
    return ask(call_of(divergence.sums[0], left, right, p.num_classes), left, right)


@pytest.mark.filterwarnings("ignore")
def test_opcheck():
    a, b = pair(3, 7)
    torch.library.opcheck(torch.ops.kullback.rows.default, (*asked(Logits(a), Logits(b)), True))
    torch.library.opcheck(torch.ops.kullback.rows.default, (*asked(Logits(a), Logits(b.detach())), False))
    values, stats = torch.ops.kullback.rows(*asked(Logits(a), Logits(b.detach())), True)
    up = torch.ones(3, dtype=torch.float64)
    arguments = (*asked(Logits(a), Logits(b.detach())), values, stats, up, [True, True])
    torch.library.opcheck(torch.ops.kullback.row_gradients.default, arguments)
    labels = Labels([1, 0, 6], 7, 0.1)
    torch.library.opcheck(torch.ops.kullback.rows.default, (*asked(labels, Logits(b)), True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trace", ["export", "make_fx", "jit"])
def test_a_graph_made_without_gradients_still_has_them(trace):
    """It kept nothing for a backward pass: this crashed the process, and now recomputes."""
    from torch.fx.experimental.proxy_tensor import make_fx

    class Module(torch.nn.Module):
        def forward(self, a, b):
            return kl(Logits(a), Logits(b)).sum()

    a, b = pair(3, 7)
    plain = b.detach()
    if trace == "export":
        graph = torch.export.export(Module(), (a, plain)).module()
    elif trace == "make_fx":
        graph = make_fx(Module())(a, plain)
    else:
        graph = torch.jit.trace(Module(), (a, plain))
    value = graph(a, b)
    torch.testing.assert_close(value, Module()(a, b))
    (got,) = torch.autograd.grad(value, [b])
    (want,) = torch.autograd.grad(Module()(a, b), [b])
    torch.testing.assert_close(got, want)


def test_the_operators_refuse_what_does_not_fit():
    """Called directly, with sizes, dtypes, names and ranges that would read out of bounds or compute nonsense."""
    a, b = (x.detach() for x in pair(6, 9))
    good = list(asked(Logits(a), Logits(b)))
    names = ("sum", "parameter", "p", "p_reading", "p_numbers", "q", "q_reading", "q_numbers", "num_classes")
    wrong = [
        ({"num_classes": 10**7}, "num_classes is 10000000"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"p": [a[:3]]}, "p has rows"),
        ({"p": [a.long()]}, "dtype torch.int64"),
        ({"p": [a, a]}, "2 tensors"),
        ({"p": [torch.tensor(1.0)]}, "shape"),
        ({"sum": "no such"}, "no sum is named"),
        ({"q_reading": "no such"}, "no reading is named"),
        ({"q_numbers": [-1.0]}, "temperature is above 0"),
        ({"q_numbers": []}, "has 1 numbers, not 0"),
        ({"p": [torch.tensor([0, 1, 2, 3, 4, 9])], "p_reading": "labels_all", "p_numbers": [0.0]}, "class of row 5"),
        ({"p": [torch.tensor([-1, 1, 2, 3, 4, 8])], "p_reading": "labels_all", "p_numbers": [0.0]}, "class of row 0"),
    ]
    for change, said in wrong:
        arguments = [change.get(name, value) for name, value in zip(names, good, strict=True)]
        with pytest.raises((RuntimeError, ValueError, IndexError), match=said):
            torch.ops.kullback.rows(*arguments, True)
    values, stats = torch.ops.kullback.rows(*good, True)
    up = torch.ones(6, dtype=torch.float64)
    for given in (
        (values[:2], stats, up),
        (values, stats[:0], up),
        (values, stats, up[:1]),
        (values.float(), stats, up),
        (values, stats, up.float()),
    ):
        with pytest.raises(RuntimeError, match="but the forward pass gave"):
            torch.ops.kullback.row_gradients(*good, *given, [True, True])
    with pytest.raises(RuntimeError, match="wanted has 3 entries"):
        torch.ops.kullback.row_gradients(*good, values, stats, up, [True, True, True])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_without_graph_breaks_nor_recompilation(backend):
    torch._dynamo.reset()

    def loss(a, b):
        return (4.0 * kl(Logits(a, 2.0), Logits(b, 2.0)) + kl(Logits(b), Logits(a))).mean()

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for rows in (5, 8, 13):
        a, b = pair(rows, 40)
        torch._dynamo.mark_dynamic(a, 0)
        torch._dynamo.mark_dynamic(b, 0)
        with torch._dynamo.config.patch(error_on_recompile=rows != 5):
            value = compiled(a, b)
        (grad,) = torch.autograd.grad(value, [b])
        (want,) = torch.autograd.grad(loss(a, b), [b])
        torch.testing.assert_close(grad, want)
    torch._dynamo.reset()


def test_second_derivatives():
    a, b = (x.detach().double().requires_grad_() for x in pair(2, 5))
    for divergence in (KL, js(0.5), alpha(0.3)):
        assert torch.autograd.gradgradcheck(lambda x, y, d=divergence: measure(d, Logits(x), Logits(y)), (a, b))


def test_gradcheck():
    a, b = (x.detach().double().requires_grad_() for x in pair(2, 5))
    for divergence in TABLE:
        assert torch.autograd.gradcheck(lambda x, y, d=divergence: measure(d, Logits(x), Logits(y, 0.7)), (a, b))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_functional_transforms_take_the_eager_engine():
    a, b = pair(3, 6)
    f = lambda y: kl(Logits(a), Logits(y)).sum()  # noqa: E731
    b = b.detach()
    want = torch.autograd.grad(f(b.requires_grad_()), [b])[0]
    b = b.detach()
    torch.testing.assert_close(torch.func.grad(f)(b), want)
    torch.testing.assert_close(torch.func.jvp(f, (b,), (want,))[1], (want * want).sum())
    torch.testing.assert_close(torch.func.vmap(lambda x, y: kl(Logits(x), Logits(y)))(a, b), kl(Logits(a), Logits(b)))


def test_inputs_stay_as_they_are():
    a, b = pair(4, 900)
    before = a.clone(), b.detach().clone()
    both(a, b)
    assert torch.equal(a, before[0])
    assert torch.equal(b.detach(), before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_classes", [3, 40, 3_000])
def test_equal_rows_are_exactly_zero(num_classes, dtype):
    a = (20 * torch.randn(40, num_classes)).to(dtype)
    for divergence in TABLE[:-1]:
        for form in (lambda x: Logits(x), lambda x: Logits(x, 0.3), lambda x: LogProbs(x.log_softmax(-1), False)):
            assert measure(divergence, form(a), form(a.clone())).count_nonzero() == 0, divergence.name


@pytest.fixture(params=cpu.instruction_sets())
def instruction_set(request):
    before = cpu.instruction_set()
    cpu.use_instruction_set(request.param)
    yield request.param
    cpu.use_instruction_set(before)


@pytest.mark.parametrize("num_classes", [3, 60, 4_000, 128_256])
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
@pytest.mark.usefixtures("instruction_set")
def test_float32_keeps_five_digits_down_to_1e_9(num_classes, offset):
    for exponent in range(-9, 1):
        g = torch.Generator().manual_seed(exponent + 10)
        a = torch.randn(2, num_classes, generator=g)
        b = a + math.sqrt(2.0 * 10.0**exponent) * torch.randn(2, num_classes, generator=g) + offset
        if offset:
            b = (b - offset) * 1.0 + offset  # whatever float32 keeps of it is the input
        truth = kl(Logits(a.double()), Logits(b.double()))
        value = kl(Logits(a), Logits(b))
        torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-16)
        assert (value >= 0).all()


def test_explain_says_which_engine_and_why():
    a, b = pair(5, 10)
    plan = explain(Logits(a), Logits(b))
    assert plan.engine == "cpu"
    assert plan.manner.startswith("C++")
    with use("eager"):
        plan = explain(Logits(a), Logits(b))
        assert plan.engine == "eager"
        assert ("cpu", "engines.use('eager') is in force") in plan.not_taken
    with pytest.raises(ValueError, match="write one of 'cpu', 'triton'"), use("gpu"):
        pass


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(cpu, "ABSENT", "the C++ extension kullback._cpu is not installed")
    choice.forget()
    a, b = pair(5, 10)
    plan = explain(Logits(a), Logits(b))
    assert plan.engine == "eager"
    assert ("cpu", cpu.ABSENT) in plan.not_taken
    kl(Logits(a), Logits(b)).sum().backward()
    assert b.grad.count_nonzero()
    choice.forget()


def test_an_installation_without_the_extension_imports():
    out = run_script(
        """
        import sys
        sys.modules["kullback._cpu"] = None
        from kullback import Probs, kl, explain
        p, q = Probs([0.5, 0.5]), Probs([0.75, 0.25])
        print(round(kl(p, q).item(), 4), dict(explain(p, q).not_taken)["cpu"][:42])
        """
    )
    assert out.strip() == "0.1438 the C++ extension kullback._cpu is not ins"


def test_labels_make_no_dense_rows():
    """One-hot and smoothed labels at a large vocabulary; memory is measured with everything else above."""
    _, b = pair(4, 50_000)
    y = torch.tensor([0, 7, 49_999, 16_384])
    for smoothing in (0.0, 0.1):
        got = kl(Labels(y, 50_000, smoothing), Logits(b))
        with use("eager"):
            want = kl(Labels(y, 50_000, smoothing), Logits(b))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0)


def test_a_tensor_subclass_is_left_to_itself():
    class Mine(torch.Tensor):
        pass

    a, b = pair(3, 4)
    said = dict(explain(Logits(a.as_subclass(Mine)), Logits(b)).not_taken)["cpu"]
    assert said == "a tensor subclass decides for itself how it computes"
    meta = Logits(a.to("meta"))
    assert dict(explain(meta, meta).not_taken)["cpu"] == "the tensors are on meta"


def test_decisions_are_kept_and_forgotten():
    """Once decided for a divergence, readings and dtypes; `use` decides anew."""
    a, b = pair(3, 4)
    p, q = Logits(a).side(a.shape[:-1]), Logits(b).side(b.shape[:-1])
    first = choice.kept_decision(TV, p, q, 4)
    assert choice.kept_decision(TV, p, q, 4) is first
    assert choice.kept_decision(HELLINGER, p, q, 4) is not first
    assert choice.kept_decision(renyi(0.3), p, q, 4) is choice.kept_decision(renyi(0.3), p, q, 4)
    with use("eager"):
        assert choice.kept_decision(TV, p, q, 4).engine.NAME == "eager"
    assert choice.kept_decision(TV, p, q, 4).engine.NAME == "cpu"
