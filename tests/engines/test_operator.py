"""The C++ engine as PyTorch sees it: operator, threads, fork, memory, compile, second derivatives, choice."""

import math
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import pytest
import torch

from kullback import Labels, Logits, LogProbs, Probs, explain, kl
from kullback.core import generators
from kullback.core.generators import Terms
from kullback.core.readings import LabelsReading, LogitsReading, LogProbsReading, ProbsReading
from kullback.core.reduction import GeneratorSum
from kullback.divergences import TABLE
from kullback.engines import choice, cpu, encoding, use
from kullback.verbs import measure

pytestmark = pytest.mark.skipif(cpu.ABSENT is not None, reason=str(cpu.ABSENT))

KL = TABLE[0].sums[0]
LOGITS = LogitsReading()


def pair(*shape, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(shape, generator=g)
    return a.to(dtype), (a + 0.3 * torch.randn(shape, generator=g)).to(dtype).requires_grad_()


def both(a, b, total=KL, left=LOGITS, right=LOGITS):
    values = cpu.rows(total, left, right, a, b, a.shape[-1])
    upstream = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).reshape(values.shape)
    return values.detach(), *torch.autograd.grad(values, [b], upstream)


def test_the_table_of_codes_goes_both_ways():
    readings = (LogitsReading(0.7), LogProbsReading(), ProbsReading(), LabelsReading(9, 0.1, "others"))
    for divergence in TABLE:
        for total in divergence.sums:
            for left in readings:
                for right in readings:
                    codes, numbers = encoding.encode(total, left, right)
                    assert encoding.decode(codes, numbers, 9) == (total, left, right)


@dataclass(frozen=True)
class Doubled:
    """A generator of one's own: 2 KL."""

    factor: float

    def __call__(self, c):
        return Terms(*(self.factor * part for part in generators.kl(c)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sum_or_reading_that_no_kernel_knows_goes_to_eager():
    total = GeneratorSum(Doubled(2.0), 2.0, math.inf, (-2.0, 2.0))
    a, b = pair(3, 7)
    assert choice.why_not_cpu(a, b, KL, LOGITS, LOGITS) is None
    assert choice.why_not_cpu(a, b, total, LOGITS, LOGITS) == "the generator Doubled has no kernel"
    assert choice.why_not_cpu(a, b, KL, LOGITS, SecondReading()) == "SecondReading has no kernel"
    with use("triton"):  # interpreted or not, it says why before it is asked to compute
        assert choice.why_not_triton(a, b, total, LOGITS, LOGITS) is not None

    def loss(a, b):
        return choice.rows(total, LOGITS, LOGITS, a, b, 7).sum()

    double, once = loss(a, b), kl(Logits(a), Logits(b)).sum()
    torch.testing.assert_close(double.float(), 2 * once)
    torch.testing.assert_close(*torch.autograd.grad(double, [b]), *(2 * g for g in torch.autograd.grad(once, [b])))
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(a, b), double)
    torch.testing.assert_close(choice.rows(KL, LOGITS, SecondReading(), a, b, 7).sum().float(), once)


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
            results.append([both(a, b, total) for total in (KL, TABLE[11].sums[-1])])
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
        alone = cpu.rows(KL, LOGITS, LOGITS, a[row : row + 20], b[row : row + 20], num_classes)[0]
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
        _, ((rows, strides),) = cpu._lay_out(view.shape[:-1], (view,), (0,))
        assert rows.data_ptr() == view.data_ptr()
        assert list(strides) == list(view.stride()[:-1])


@pytest.mark.filterwarnings("ignore")
def test_opcheck():
    a, b = pair(3, 7)
    codes, numbers = encoding.encode(KL, LOGITS, LOGITS)
    torch.library.opcheck(torch.ops.kullback.rows.default, (a, b, codes, numbers, 7, True))
    torch.library.opcheck(torch.ops.kullback.rows.default, (a, b.detach(), codes, numbers, 7, False))
    values, stats = torch.ops.kullback.rows(a, b.detach(), codes, numbers, 7, True)
    up = torch.ones(3, dtype=torch.float64)
    arguments = (a, b.detach(), values, stats, up, codes, numbers, 7, True, True)
    torch.library.opcheck(torch.ops.kullback.row_gradients.default, arguments)
    y = torch.tensor([1, 0, 6])
    codes, numbers = encoding.encode(KL, LabelsReading(7, 0.1), LOGITS)
    torch.library.opcheck(torch.ops.kullback.rows.default, (y, b, codes, numbers, 7, True))


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
    for divergence in (TABLE[0], TABLE[2], TABLE[6]):
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
    assert plan.engine.startswith("cpu: C++")
    with use("eager"):
        plan = explain(Logits(a), Logits(b))
        assert plan.engine.startswith("eager")
        assert ("cpu", "engines.use('eager') is in force") in plan.not_taken
    with pytest.raises(ValueError, match="write one of 'eager', 'cpu'"), use("gpu"):
        pass


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(cpu, "ABSENT", "the C++ extension kullback._cpu is not installed")
    a, b = pair(5, 10)
    plan = explain(Logits(a), Logits(b))
    assert plan.engine.startswith("eager")
    assert ("cpu", cpu.ABSENT) in plan.not_taken
    kl(Logits(a), Logits(b)).sum().backward()
    assert b.grad.count_nonzero()


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
    assert choice.why_not_cpu(a.as_subclass(Mine), b) is not None
    assert choice.why_not_cpu(a.to("meta"), b.to("meta")) is not None
    assert choice.why_not_cpu(a, b) is None
    assert Probs([0.5, 0.5]).data.dtype == torch.float32
