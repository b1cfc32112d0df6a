"""Is the Triton engine right on this device? Every sum, dtype and reading against float64 eager, value and gradient.

The first part of bench/gpu.py. What is wrong comes back in words, one line a difference, and so does what fails.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kullback import Labels, Logits, LogProbs, Probs, engines, explain
from kullback.divergences import KL, TABLE, Divergence, js
from kullback.verbs import measure

ROWS = 4
HALF = (torch.bfloat16, torch.float16)
Case = tuple[str, Divergence, Any, Any]


def check(
    device: str, widths: tuple[int, ...] = (1, 2, 3, 33, 1000, 1025, 32_000), many_rows: int = 70_000
) -> list[str]:
    """All differences from float64 that are more than rounding, in words."""
    x = Logits(torch.zeros(1, 2, device=device))
    plan = explain(x, x)
    if not plan.engine.startswith("triton"):
        return [f"the Triton engine does not serve {device}: {plan.engine}; {dict(plan.not_taken).get('triton')}"]
    wrong: list[str] = []
    for what, divergence, p, q in cases(device, widths, many_rows):
        attempt(wrong, what, lambda d=divergence, p=p, q=q: compare(d, p, q))
    if torch.device(device).type == "cuda":
        attempt(wrong, "more than 2^31 cells", long_offsets)
        attempt(wrong, "another stream", other_stream)
        attempt(wrong, "a second device", second_device)
        attempt(wrong, "CUDA graph", graph)  # last: a capture that fails may take the process with it
    return wrong


def attempt(wrong: list[str], what: str, act: Callable[[], str | None]) -> None:
    """One line for a difference, and one for an exception: one kernel that fails must not hide the others."""
    try:
        said = act()
    except Exception as error:
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    if said:
        wrong.append(f"{what}: {said}")


# ------------------------------------------------------------------ cases


def cases(device: str, widths: tuple[int, ...], many_rows: int) -> Iterator[Case]:
    """What is compared. Each line compiles two kernels, so that not everything meets everything."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for columns in widths:
            p, q = (Logits(s.to(dtype)) for s in edges(columns, device))
            yield f"kl {dtype} V={columns}", KL, p, q
    for divergence in TABLE:
        for dtype, columns in ((torch.float32, 33), (torch.float32, widths[-2]), (torch.bfloat16, widths[-2])):
            p, q = (Logits(s.to(dtype)) for s in edges(columns, device))
            yield f"{divergence.name} {dtype} V={columns}", divergence, p, q
        p, q = (Logits(s, 0.7) for s in edges(33, device))
        yield f"{divergence.name} float64 V=33 T=0.7", divergence, p, q
    yield from readings(widths[-2], device)
    for columns in (3, widths[-2]):
        for step in (1e-2, 1e-3, 4.5e-5):  # true values down to 1e-9
            p, q = near(columns, step, device)
            for temperature in (1.0, 3.0):
                sides = Logits(p, temperature), Logits(q, temperature)
                yield f"kl at step {step:g}, V={columns}, T={temperature:g}", KL, *sides
    p, q = near(widths[-2], 0.3, device)
    for weight in (1e-5, 1.0 - 1e-5):
        yield f"js({weight:g})", js(weight), Logits(p), Logits(q)
    p = torch.linspace(-3.0, 3.0, 5 * many_rows, device=device).reshape(many_rows, 5)
    yield f"kl, {many_rows} rows", KL, Logits(p), Logits(p.flip(0, 1).sin())


def readings(columns: int, device: str) -> Iterator[Case]:
    """Every kind of form and of layout, under KL."""
    p, q = edges(columns, device)
    a, b = p.float(), q.float()
    labels = torch.arange(ROWS, device=device)
    logs = [LogProbs(torch.log_softmax(s, -1).float(), validate=False) for s in (p, q)]
    probs = [Probs(torch.softmax(s, -1).float(), validate=False) for s in (p, q)]
    yield "two temperatures", KL, Logits(a, 2.5), Logits(b, 0.7)
    yield "one temperature", KL, Logits(a, 3.0), Logits(b, 3.0)
    yield "LogProbs/Logits", KL, logs[0], Logits(b)
    yield "LogProbs/LogProbs", KL, *logs
    yield "Probs/Probs", KL, *probs
    yield "Logits/Probs", KL, Logits(a), probs[1]
    yield "smooth Labels", KL, Labels(labels, columns, 0.1, validate=False), Logits(b)
    yield "one-hot Labels", KL, Labels(labels, columns, validate=False), Logits(b)
    yield "an offset", KL, Logits((p + 1000.0).float()), Logits((q - 1000.0).float())
    yield "columns apart", KL, Logits(a.mT.contiguous().mT), Logits(b)
    yield "rows apart", KL, Logits(torch.cat([a, a], -1)[:, 1 : columns + 1]), Logits(b)
    yield "one row for all", KL, Logits(a[:1]), Logits(b)
    yield "mixed dtypes", KL, Logits(p), Logits(b.bfloat16())


def edges(columns: int, device: str) -> tuple[Tensor, Tensor]:
    """Rows: ordinary, a hole in p, holes in both, far apart."""
    g = torch.Generator(device).manual_seed(columns)
    p, q = torch.randn(2, ROWS, columns, generator=g, device=device, dtype=torch.float64)
    if columns > 2:
        p[1, 0] = p[2, 1] = q[2, 1] = -math.inf
    p[3] *= 8.0
    return p, q


def near(columns: int, step: float, device: str) -> tuple[Tensor, Tensor]:
    """Two rows that differ by `step` a score, in float32."""
    g = torch.Generator(device).manual_seed(columns + 1)
    p, noise = torch.randn(2, ROWS, columns, generator=g, device=device, dtype=torch.float64)
    return p.float(), (p.float().double() + step * noise).float()


def compare(divergence: Divergence, p: Any, q: Any) -> str | None:
    """The first cell of a value or a gradient that is off, or None."""
    results = []
    for engine in ("triton", "eager"):
        leaves = [side.data.detach().requires_grad_(side.data.is_floating_point()) for side in (p, q)]
        with engines.use(engine):
            value = measure(divergence, *(_with_data(side, leaf) for side, leaf in zip((p, q), leaves, strict=True)))
            value.backward(torch.linspace(0.5, 1.5, value.numel(), device=value.device, dtype=value.dtype))
        results.append([value.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)])
    narrow = any(side.data.dtype in HALF for side in (p, q))
    for kind, mine, truth in zip(("value", "gradient", "gradient"), *results, strict=False):
        same = (mine == truth) | (mine.isnan() & truth.isnan())
        size = truth.abs().nan_to_num(posinf=0.0)
        if kind == "value":
            room = 1e-5 * size + 1e-15
        else:  # one rounding to the gradient's dtype; a few units in the last place of the terms of a difference
            room = (2**-7 if narrow else 1e-4) * size.amax(-1, keepdim=True) + 4e-6
        off = ~(same | ((mine - truth).abs() <= room))
        if off.any():
            return f"{kind} {mine[off][0].item():.9g}, float64 says {truth[off][0].item():.9g}"
    return None


def _with_data(side: Any, data: Tensor) -> Any:
    if isinstance(side, Logits):
        return Logits(data, side.temperature)
    return side if isinstance(side, Labels) else type(side)(data, validate=False)


# ------------------------------------------------------------------ what only a GPU can show


def value_and_gradient(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    q = q.detach().requires_grad_()
    value = measure(KL, Logits(p), Logits(q))
    return value.detach(), torch.autograd.grad(value.sum(), q)[0]


def graph() -> str | None:
    """Captured once, replayed on other data: nothing in the call waits for the device or looks at values."""
    p, q = edges(1000, "cuda")
    p, q = p.bfloat16(), q.bfloat16()
    expected = value_and_gradient(q, p)
    x, y = p.clone(), q.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        value_and_gradient(x, y)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        found = value_and_gradient(x, y)
    x.copy_(q)
    y.copy_(p)
    captured.replay()
    torch.cuda.synchronize()
    return _differ(found, expected, "a replay differs from a call")


def other_stream() -> str | None:
    """Inputs made on a stream of their own, behind a long copy, are not read before they are there."""
    p, q = edges(1000, "cuda")
    expected = value_and_gradient(p, q)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.empty(1 << 29, device="cuda").fill_(1.0)
        found = value_and_gradient(p.clone(), q.clone())
    side.synchronize()
    return _differ(found, expected, "it differs from the default stream")


def second_device() -> str | None:
    """Tensors of a device that is not the current one."""
    if torch.cuda.device_count() < 2:
        return None
    p, q = edges(1000, "cuda:0")
    found = value_and_gradient(p.to("cuda:1"), q.to("cuda:1"))
    return _differ([t.to("cuda:0") for t in found], value_and_gradient(p, q), "it differs from the first device")


def long_offsets() -> str | None:
    """The last rows of more than 2^31 cells equal the same rows alone."""
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        print("skipped: more than 2^31 cells (needs 20 GiB of free memory)", flush=True)
        return None
    p, q = torch.randn(2, 17_000, 131_072, device="cuda", dtype=torch.bfloat16)
    found = [t[-2:] for t in value_and_gradient(p, q)]
    return _differ(found, value_and_gradient(p[-2:], q[-2:]), "the last rows differ from the same rows alone")


def _differ(found: Any, expected: Any, otherwise: str) -> str | None:
    return None if all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) else otherwise
