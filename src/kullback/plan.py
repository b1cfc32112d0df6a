"""Which exact method serves a pair: a pure function of types, dtypes, devices and shapes. It never looks at values."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import exact
from ._errors import FormError
from .engines import choice, cpu, eager, encoding
from .forms.finite import FiniteForm, Labels

_TEMPORARIES = 32  # float64 values per cell alive at once in the eager engine: at most 29 measured (js, forward)


@dataclass(frozen=True)
class Plan:
    """How `kl(p, q)` and its siblings will be computed; `print(explain(p, q))` shows it."""

    p: str
    q: str
    batch_shape: tuple[int, ...]
    num_classes: int
    method: str
    engine: str
    temporary_bytes: int
    saved_bytes: int
    gradient_to_p: str
    gradient_to_q: str
    result_dtype: str
    not_taken: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        memory = (
            f"{_bytes(self.temporary_bytes)} of temporaries; saved for backward: inputs and {_bytes(self.saved_bytes)}"
        )
        lines = [
            f"p          {self.p}",
            f"q          {self.q}",
            f"result     {self.batch_shape} {self.result_dtype}, one number per row of V={self.num_classes}",
            f"method     {self.method}",
            f"engine     {self.engine}",
            f"memory     {memory}",
            f"gradients  p: {self.gradient_to_p}",
            f"           q: {self.gradient_to_q}",
        ]
        lines += [f"not taken  {name}: {why}" for name, why in self.not_taken]
        return "\n".join(lines)


def explain(p: Any, q: Any, /) -> Plan | exact.DensityPlan:
    """Say which exact method serves the pair, what it costs in memory, where gradients go, and what was not taken.

    Args: p, q: two forms, in the order in which a verb would take them.
    Returns: a `Plan`; printing it gives one line a fact.
    Raises: FormError, as the verbs do.

    >>> print(explain(Labels([1, 2], num_classes=3), Logits([[0.0, 1.0, 2.0]] * 2)))  # doctest: +ELLIPSIS
    p          Labels over V=3, batch (2,), torch.int64 on cpu
    q          Logits over V=3, batch (2,), torch.float32 on cpu
    result     (2,) torch.float32, one number per row of V=3
    method     exact sum over the V columns, canonical terms, float...
    ...
    """
    if exact.is_measurable(p) or exact.is_measurable(q):
        return exact.explain(p, q)
    batch_shape = check_pair("explain", p, q)
    num_rows = batch_shape.numel()
    dtype = torch.float64 if torch.float64 in (p.data.dtype, q.data.dtype) else torch.float32
    x, y = p.expand(batch_shape), q.expand(batch_shape)
    parts = x, y, p.reading, q.reading
    why_not = {"cpu": choice.why_not_cpu(*parts), "triton": choice.why_not_triton(*parts)}
    name = next((name for name, why in why_not.items() if why is None), "eager")
    saved_bytes = num_rows * encoding.BYTES_SAVED_PER_ROW
    precision = "float32 with float64 normalisers and sums"
    if name == "cpu":
        threads = torch.get_num_threads()
        engine = f"cpu: C++, {cpu.instruction_set()}, up to {threads} threads, rows in blocks that stay in cache"
        temporary_bytes = cpu.temporary_bytes(p.num_classes)
    elif name == "triton":
        engine = "triton: one kernel a pass, rows read twice forward and once backward"
        temporary_bytes = 0
        precision = "float32 with compensated sums, float64 where a divergence or a form needs it"
    else:
        rows = min(eager.block_rows(p.num_classes), max(num_rows, 1))
        engine = f"eager PyTorch, {rows} of {num_rows} rows at a time (inside torch.compile: all, fused)"
        temporary_bytes = _TEMPORARIES * 8 * rows * p.num_classes
        saved_bytes = 8 * num_rows
        precision = "float64"
    not_taken = [("estimate", "an exact method exists, and an exact call never falls back to an estimate")]
    not_taken += [(other, why) for other, why in why_not.items() if why is not None]
    if name != "eager":
        not_taken.append(("eager", "slower; it serves second derivatives and torch.func"))
    return Plan(
        p=_describe(p),
        q=_describe(q),
        batch_shape=tuple(batch_shape),
        num_classes=p.num_classes,
        method=f"exact sum over the V columns, canonical terms, {'float64' if dtype == torch.float64 else precision}",
        engine=engine,
        temporary_bytes=temporary_bytes,
        saved_bytes=saved_bytes,
        gradient_to_p=_gradient(p),
        gradient_to_q=_gradient(q),
        result_dtype=str(dtype),
        not_taken=tuple(not_taken),
    )


def check_pair(verb: str, p: Any, q: Any) -> torch.Size:
    """The common batch shape of two forms, or the error that says why there is none."""
    for name, form in (("p", p), ("q", q)):
        if not isinstance(form, FiniteForm):
            raise FormError(_no_form(verb, name, form))
    if p.num_classes != q.num_classes:
        raise FormError(_different_v(p.num_classes, q.num_classes))
    if p.data.device != q.data.device:
        raise FormError(
            f"{verb}: p is on {p.data.device} but q is on {q.data.device}. "
            f"Move one of them: q's tensor .to({str(p.data.device)!r})."
        )
    try:
        return torch.Size(torch.broadcast_shapes(p.batch_shape, q.batch_shape))  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise FormError(
            f"{verb}: p has batch shape {tuple(p.batch_shape)} but q has {tuple(q.batch_shape)}, "
            "which do not broadcast. "
            "Forms hold (..., V): check that the class axis is the last, or insert a batch axis with unsqueeze."
        ) from None


def _no_form(verb: str, name: str, value: Any) -> str:
    kind = "a bare Tensor" if isinstance(value, Tensor) else f"a bare {type(value).__name__}"
    return (
        f"{verb}: {name} is {kind}, which does not say what it holds. Write Logits({name}) for scores, "
        f"LogProbs({name}) for log-probabilities, Probs({name}) for probabilities, "
        f"or Labels({name}, num_classes) for class indices."
    )


def _different_v(p: int, q: int) -> str:
    longer, v = ("p", q) if p > q else ("q", p)
    return (
        f"p has V={p} but q has V={q}. If {longer}'s vocabulary is padded, write Logits({longer}[..., :{v}]); "
        "kullback pads nothing: a phantom class with score 0 would take mass from the real ones."
    )


def _describe(form: FiniteForm) -> str:
    batch, data = tuple(form.batch_shape), form.data
    return f"{type(form).__name__} over V={form.num_classes}, batch {batch}, {data.dtype} on {data.device}"


def _gradient(form: FiniteForm) -> str:
    if isinstance(form, Labels):
        return "none, class indices are integers"
    if not form.data.requires_grad:
        return "none asked for (the tensor does not require grad)"
    return f"to the {form.data.dtype} tensor inside {type(form).__name__}, written once"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
