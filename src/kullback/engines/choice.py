"""Which engine computes: the best one that can, unless `use` names one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kullback.core.readings import Reading
from kullback.core.reduction import Sum

from . import cpu, eager, encoding, triton

NAMES = ("eager", "cpu", "triton")

_forced: str | None = None


@contextmanager
def use(engine: str) -> Iterator[None]:
    """Let "eager", "cpu" or "triton" compute all that it can inside a `with` block; for tests and benchmarks.

    It holds for the whole process, and a backward pass stays with the engine of its forward pass. Where that engine
    cannot serve (another device, a functorch transform) "eager" does, as always. "triton" takes tensors on the CPU too
    if Triton interprets its kernels (TRITON_INTERPRET=1).

    >>> from kullback import engines
    >>> with engines.use("eager"):
    ...     kl(Probs([0.5, 0.5]), Probs([0.75, 0.25]))
    tensor(0.1438)
    """
    global _forced
    if engine not in NAMES:
        raise ValueError(f"use: {engine!r} names no engine; write one of {', '.join(map(repr, NAMES))}.")
    before, _forced = _forced, engine
    try:
        yield
    finally:
        _forced = before


def forced() -> str | None:
    """The engine that `use` names, if any."""
    return _forced


def why_not_cpu(x: Tensor, y: Tensor, *parts: Sum | Reading) -> str | None:
    """Why the C++ engine cannot serve these tensors, sums and readings, or None: from types, dtypes and devices."""
    if _forced not in (None, "cpu"):
        return f"engines.use({_forced!r}) is in force"
    if cpu.ABSENT is not None:
        return cpu.ABSENT
    if x.device.type != "cpu" or y.device.type != "cpu":
        return f"the tensors are on {x.device}"
    return _why_not_operator(x, y, *parts)


def why_not_triton(x: Tensor, y: Tensor, *parts: Sum | Reading) -> str | None:
    """Why the Triton engine cannot serve these tensors, sums and readings, or None: from types, dtypes and devices."""
    if _forced not in (None, "triton"):
        return f"engines.use({_forced!r}) is in force"
    interpreted = _forced == "triton" and triton.interpreted()
    if not interpreted and (x.device.type != "cuda" or y.device.type != "cuda"):
        return f"the tensors are on {x.device}"
    return triton.why_not() or _why_not_operator(x, y, *parts)


def _why_not_operator(x: Tensor, y: Tensor, *parts: Sum | Reading) -> str | None:
    """Why a custom operator cannot take these, whatever its device."""
    for part in parts:
        if (reason := encoding.why_not(part)) is not None:
            return reason
    for data in (x, y):
        if data.is_floating_point() and data.dtype not in encoding.DTYPES:
            return f"{data.dtype} has no kernel"
        if data.is_sparse or data.layout is not torch.strided:
            return f"the layout is {data.layout}"
    if _inside_functorch():
        return "inside a functorch transform (torch.func), which a custom operator cannot follow"
    if forward_ad._current_level >= 0:
        return "inside forward-mode differentiation, which a custom operator cannot follow"
    if not torch.compiler.is_compiling() and not all(type(data) in (Tensor, torch.nn.Parameter) for data in (x, y)):
        return "a tensor subclass decides for itself how it computes"
    return None


def rows(total: Sum, left: Reading, right: Reading, x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """One float64 number per row of x and y, which already share their batch shape, from the engine that serves."""
    given = x, y, total, left, right
    engine = cpu if why_not_cpu(*given) is None else triton if why_not_triton(*given) is None else eager
    values: Tensor = engine.rows(total, left, right, x, y, num_classes)
    return values


def _inside_functorch() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


_inside_functorch._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler.assume_constant_result, whose import takes seconds
