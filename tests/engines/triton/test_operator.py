"""What PyTorch sees of the Triton engine: the operator, its fake kernel, autograd, compile, and who is chosen when."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'kullback[triton]'")

from triton_common import leaf, scores, with_tile

from cases import call_of
from kullback import Labels, Logits, engines, explain, hellinger, js, kl, renyi
from kullback.divergences import KL
from kullback.engines import choice
from kullback.engines.operators import ask
from kullback.engines.triton import launch, ops

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning:triton.runtime.interpreter", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(autouse=True)
def _small_tile(monkeypatch):
    with_tile(monkeypatch, 8, 16)


def pair(rows=3, columns=10, dtype=torch.float64):
    a, b = (s.to(dtype) for s in scores(rows, columns))
    return leaf(a), leaf(b)


@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
def test_opcheck(wanted):
    x, y = (s.detach().requires_grad_(w) for s, w in zip(pair(), wanted, strict=True))
    p, q = Logits(x).side(x.shape[:-1]), Logits(y).side(y.shape[:-1])
    torch.library.opcheck(torch.ops.kullback.triton_rows, (*ask(call_of(KL.sums[0], p, q, 10), p, q), True))


def test_compile_follows_the_operator():
    with engines.use("triton"):
        compiled = torch.compile(
            lambda a, b: kl(Logits(a, 2.0), Logits(b, 2.0)).sum(), fullgraph=True, backend="aot_eager"
        )
        for rows in (3, 5):
            x, y = pair(rows, dtype=torch.float32)
            u, v = leaf(x), leaf(y)
            compiled(x, y).backward()
            kl(Logits(u, 2.0), Logits(v, 2.0)).sum().backward()
            torch.testing.assert_close(x.grad, u.grad, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(y.grad, v.grad, rtol=1e-6, atol=1e-8)


def test_gradients_by_finite_differences_once_and_twice():
    with engines.use("triton"):
        x, y = pair(2, 4)
        assert torch.autograd.gradcheck(lambda a, b: kl(Logits(a), Logits(b, 2.0)), (x, y), fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda a, b: kl(Logits(a), Logits(b, 2.0)), (x, y), fast_mode=True)


def test_backward_again_and_through_one_side_only():
    with engines.use("triton"):
        x, y = pair()
        value = js(Logits(x.detach()), Logits(y), weight=0.3).sum()
        value.backward(retain_graph=True)
        once = y.grad.clone()
        value.backward()
        torch.testing.assert_close(y.grad, 2 * once)
        assert x.grad is None


@pytest.mark.parametrize("verb", [kl, js, hellinger, lambda p, q: renyi(p, q, 0.3), lambda p, q: renyi(p, q, 0.0)])
def test_verbs_give_what_eager_gives(verb):
    results = []
    for name in ("triton", "eager"):
        x, y = pair(3, 20, torch.float32)
        with engines.use(name):
            value = verb(Logits(x), Logits(y))
            value.sum().backward()
        results.append((value.detach(), x.grad, y.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_functorch_goes_to_eager():
    x, y = (s.detach() for s in pair())
    with engines.use("triton"):
        gradient = torch.func.grad(lambda b: kl(Logits(x), Logits(b)).sum())(y)
        per_row = torch.func.vmap(lambda a, b: kl(Logits(a), Logits(b)))(x, y)
    torch.testing.assert_close(gradient, torch.softmax(y, -1) - torch.softmax(x, -1))
    torch.testing.assert_close(per_row, kl(Logits(x), Logits(y)))


def test_it_is_the_engine_that_runs(monkeypatch):
    """`use` forces it, and only `use` does on a CPU."""
    seen = []
    forward = launch.forward
    monkeypatch.setattr(launch, "forward", lambda *a: seen.append(1) or forward(*a))
    x, y = (s.detach() for s in pair())
    kl(Logits(x), Logits(y))
    assert seen == []
    with engines.use("triton"):
        kl(Logits(x), Logits(y))
        assert explain(Logits(x), Logits(y)).engine == "triton"
    assert seen == [1]
    assert dict(explain(Logits(x), Logits(y)).not_taken)["triton"] == "the tensors are on cpu"


def test_the_plan_picks_it_by_device(monkeypatch):
    """A tensor without storage says what a GPU's tensor would get, down to the fake kernels."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # elsewhere a tensor subclass goes to eager
    with torch._subclasses.fake_tensor.FakeTensorMode():
        p, q = (Logits(torch.empty(2, 8, device="cuda", dtype=torch.bfloat16)) for _ in range(2))
        plan = explain(p, q)
        values = choice.measure(KL, p.side(p.batch_shape), q.side(q.batch_shape), 8)
    assert plan.engine == "triton"
    assert dict(plan.not_taken)["cpu"] == "the tensors are on cuda"
    assert dict(plan.not_taken).keys() == {"estimate", "cpu", "eager"}
    assert (values.shape, values.dtype, values.device.type) == ((2,), torch.float32, "cuda")


def test_labels_make_no_dense_row(monkeypatch):
    """The kernel is handed the class indices as they are, one a row."""
    handed = []
    rows_of = launch.as_rows
    monkeypatch.setattr(launch, "as_rows", lambda *a: handed.append(rows_of(*a)) or handed[-1])
    _, y = pair()
    labels = Labels([0, 3, 9], 10, 0.1)
    with engines.use("triton"):
        kl(labels, Logits(y)).sum().backward()
    assert [tuple(data.shape) for data, _ in handed] == [(3,), (3, 10), (3,), (3, 10)]


def test_a_tensor_without_a_gpu_is_refused_outside_the_interpreter():
    code = (
        "import torch\n"
        "from kullback import Logits\n"
        "from kullback.divergences import KL\n"
        "from kullback.engines.call import Call\n"
        "from kullback.engines.triton import ops\n"
        "x = torch.zeros(2, 3)\n"
        "side = Logits(x).side(x.shape[:-1])\n"
        "try:\n"
        "    ops.rows(Call(KL.sums[0], side.reading, side.reading, (x.dtype,) * 2, 'cpu', 3), side, side)\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    said = _python(code)
    assert "given a tensor on cpu" in said
    assert "TRITON_INTERPRET=1" in said


def test_importing_and_using_kullback_leaves_triton_alone():
    code = (
        "import sys, torch\n"
        "from kullback import Logits, explain, kl\n"
        "x = torch.zeros(2, 3)\n"
        "kl(Logits(x), Logits(x)); explain(Logits(x), Logits(x))\n"
        "print('triton' in sys.modules, 'kullback.engines.triton.kernels' in sys.modules)\n"
    )
    assert _python(code).split() == ["False", "False"]


def test_an_absent_triton_has_a_reason(monkeypatch):
    ops._look.cache_clear()
    monkeypatch.setattr(ops, "find_spec", lambda name: None)
    try:
        assert ops._look() == "Triton is not installed (pip install 'kullback[triton]')"
        monkeypatch.setattr(ops, "find_spec", lambda name: object())
        ops._look.cache_clear()
        monkeypatch.setattr(ops, "version", lambda name: "3.3.1")
        assert ops._look() == "Triton 3.3.1 is older than 3.4"
    finally:
        ops._look.cache_clear()


def _python(code):
    import os

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout
