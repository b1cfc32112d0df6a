"""Which engine computes, decided once for a divergence, readings, dtypes and a device, and kept; and the one loop that
reads both sides, sums and finishes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kullback.core.dtypes import result_dtype
from kullback.core.readings import Side
from kullback.core.sharded import shard_of
from kullback.divergences import Divergence

from . import cpu, dtensors, eager, linear, sharded, triton
from .call import Call, Cost, Engine, Rows

ENGINES: tuple[Engine, ...] = (sharded, cpu, triton, eager)
"""Best first; the last one serves everything."""
NAMES = tuple(engine.NAME for engine in ENGINES[1:])
"""Those that sum all columns, or those here of a sharded form."""

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
    before = _forced
    _forced = sharded.only = engine
    forget()
    try:
        yield
    finally:
        _forced = sharded.only = before
        forget()


def forget() -> None:
    """Decide anew from now on."""
    _kept.clear()


@dataclass(frozen=True)
class Decision:
    """Who computes the sums of a divergence, and why the others do not."""

    divergence: Divergence
    engine: Engine
    calls: tuple[Call, ...]
    factor: float | None
    """factor · (the one sum) is the divergence; None: there are more, or more is done to it."""
    dtype: torch.dtype
    """Of the result."""
    not_taken: tuple[tuple[str, str], ...]
    prepared: tuple[Rows, ...] = ()
    """`calls`, for whoever may call the engine bare; the sharded engine's are one."""

    def costs(self, p: Side, q: Side) -> list[Cost]:
        """What the sums will need, one by one or all that share their collectives."""
        if self.engine is sharded:
            return [sharded.Stages(self.calls).cost(p, q)]
        return [self.engine.cost(call, p, q) for call in self.calls]


def decide(divergence: Divergence, p: Side, q: Side, num_classes: int) -> Decision:
    """The best engine that serves every sum of a divergence on these two sides; no value is looked at."""
    p, q, _ = dtensors.local(p, q)
    data = (*p.data, *q.data)
    dtypes, device = tuple(x.dtype for x in data), data[0].device.type
    calls = tuple(Call(total, p.reading, q.reading, dtypes, device, num_classes) for total in divergence.sums)
    if shard_of(p.reading, q.reading) is not None and (why := _transformed(data)) is not None:
        raise NotImplementedError(f"Sharded: a vocabulary that is split over ranks cannot be summed {why}.")
    made = tuple(inner for call in calls if (inner := linear.flat(call)) is not None)
    transformed = _transformed(data)
    reasons = {
        engine.NAME: _not_forced(engine, device)
        or _first(engine.why_not(call) for call in made or calls)
        or transformed
        for engine in ENGINES[:-1]
    }
    taken = next(engine for engine in ENGINES if reasons.get(engine.NAME) is None)
    others = ((name, reason) for name, reason in reasons.items() if name not in (taken.NAME, sharded.NAME))
    not_taken = [(name, reason or f"{taken.NAME} is faster") for name, reason in others]
    if taken is sharded:
        not_taken = [(name, "it sums whole rows") for name in NAMES]
    elif taken.NAME in reasons:
        not_taken.append((ENGINES[-1].NAME, "slower; it serves second derivatives and torch.func"))
    engine: Engine = linear.Linear(taken) if made and transformed is None else taken
    factor = None if divergence.linear is None else divergence.linear[1]
    return Decision(divergence, engine, calls, factor, result_dtype(*dtypes), tuple(not_taken))


def _not_forced(engine: Engine, device: str) -> str | None:
    if _forced is None and engine.NAME == triton.NAME and device == "cpu":
        return "the tensors are on cpu"  # interpreted kernels are for tests, which ask for them
    if engine.NAME == sharded.NAME:
        return None  # it asks the engine in force
    return f"engines.use({_forced!r}) is in force" if _forced not in (None, engine.NAME) else None


def _first(reasons: Iterator[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def measure(divergence: Divergence, p: Side, q: Side, num_classes: int, unit: float = 1.0) -> Tensor:
    """One number per row of sides that share their batch shape, over `unit`: float64 if a tensor is, else float32."""
    if torch.compiler.is_compiling() or not (ordinary(p[1]) and ordinary(q[1])) or traced():
        p, q, whole = dtensors.local(p, q)
        if whole is not None:
            return whole(measure(divergence, p, q, num_classes, unit))
        decision = decide(divergence, p, q, num_classes)
        engine = decision.engine
        if engine is sharded:
            value = divergence.finish(*sharded.traced(decision.calls, p, q))
        else:
            value = divergence.finish(*(engine.traced_rows(call, p, q) for call in decision.calls))
        return (value if unit == 1.0 else value / unit).to(decision.dtype)
    decision = kept_decision(divergence, p, q, num_classes)
    if decision.factor is not None:
        return decision.prepared[0](p, q, decision.factor / unit, decision.dtype)
    stages = decision.prepared[0]
    if isinstance(stages, sharded.Stages):
        value = divergence.finish(*stages.rows(p, q))
    else:
        value = divergence.finish(*(rows(p, q) for rows in decision.prepared))
    return (value if unit == 1.0 else value / unit).to(decision.dtype)


def kept_decision(divergence: Divergence, p: Side, q: Side, num_classes: int) -> Decision:
    """`decide`, remembered; for ordinary tensors outside of every transform."""
    (left, xs), (right, ys) = p, q
    if len(xs) == len(ys) == 1:
        x, y = xs[0], ys[0]
        key: tuple[Any, ...] = (divergence, left, right, num_classes, x.dtype, y.dtype, x.is_cpu)
    else:
        key = (divergence, left, right, num_classes, *[x.dtype for x in (*xs, *ys)], xs[0].is_cpu)
    decision = _kept.get(key)
    if decision is None:
        if len(_kept) > 4096:
            _kept.clear()
        decision = decide(divergence, p, q, num_classes)
        if decision.engine is sharded:
            prepared: tuple[Rows, ...] = (sharded.Stages(decision.calls),)
        else:
            prepared = tuple(decision.engine.prepare(call) for call in decision.calls)
        decision = replace(decision, prepared=prepared)
        _kept[key] = decision
    return decision


_kept: dict[tuple[Any, ...], Decision] = {}


# ---------------------------------------------------------------- what PyTorch is doing


def ordinary(data: Sequence[Tensor]) -> bool:
    """Whether these are plain tensors, and no subclasses that decide for themselves how they compute."""
    for x in data:  # noqa: SIM110  (a generator costs more than the call)
        if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
            return False
    return True


def traced() -> bool:
    """Whether someone watches operators go by, or a transform is at work: then no extension is called bare."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or torch._C._functorch.maybe_current_level() is not None
    )


def _transformed(data: Sequence[Tensor]) -> str | None:
    """Why a custom operator cannot take these tensors now, whatever its device."""
    for x in data:
        if x.layout is not torch.strided:
            return f"the layout is {x.layout}"
    if _inside_functorch():
        return "inside a functorch transform (torch.func), which a custom operator cannot follow"
    if forward_ad._current_level >= 0:
        return "inside forward-mode differentiation, which a custom operator cannot follow"
    if not torch.compiler.is_compiling() and not ordinary(data) and torch._C._len_torch_dispatch_stack() == 0:
        return "a tensor subclass decides for itself how it computes"
    return None


def _inside_functorch() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


_inside_functorch._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler.assume_constant_result, whose import takes seconds
