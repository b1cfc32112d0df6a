"""What will be done for a divergence of two arguments, and what it costs: a pure function of the divergence and of
types, dtypes, devices and shapes. It never looks at values. `verbs.measure` does what `route` says.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import exact
from ._errors import FormError
from .core.dtypes import result_dtype
from .core.readings import Side
from .divergences import KL, Divergence
from .engines import choice, dtensors
from .forms.empirical import what_to_estimate
from .forms.finite import FiniteForm
from .forms.linear import LinearLogits
from .forms.sharded import check_split


@dataclass(frozen=True)
class Route:
    """How `kl(p, q)` or a sibling will be computed; `print(explain(p, q))` shows it."""

    divergence: str
    p: str
    q: str
    batch_shape: tuple[int, ...]
    num_classes: int
    method: str
    engine: str
    manner: str
    temporary_bytes: int
    saved_bytes: int
    gradient_to_p: str
    gradient_to_q: str
    result_dtype: str
    error: str
    not_taken: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        memory = (
            f"{_bytes(self.temporary_bytes)} of temporaries; saved for backward: inputs and {_bytes(self.saved_bytes)}"
        )
        lines = [
            f"divergence {self.divergence}",
            f"p          {self.p}",
            f"q          {self.q}",
            f"result     {self.batch_shape} {self.result_dtype}, one number per row of V={self.num_classes}",
            f"method     {self.method}",
            f"engine     {self.engine}: {self.manner}",
            f"memory     {memory}",
            f"error      {self.error}",
            f"gradients  p: {self.gradient_to_p}",
            f"           q: {self.gradient_to_q}",
        ]
        lines += [f"not taken  {name}: {why}" for name, why in self.not_taken]
        return "\n".join(lines)


def explain(p: Any, q: Any, /, divergence: Divergence = KL) -> Route | exact.DensityPlan:
    """Say which exact method serves the pair, what it costs in memory, where gradients go, and what was not taken.

    Args:
        p, q: two forms or distributions, in the order in which a verb would take them.
        divergence: a row of `kullback.divergences`, such as `divergences.js(0.1)`; KL unless given.

    Returns: a `Route`, what the verb does; printing it gives one line a fact.
    Raises: FormError and NoExactMethod, as the verbs do.

    >>> print(explain(Labels([1, 2], num_classes=3), Logits([[0.0, 1.0, 2.0]] * 2)))  # doctest: +ELLIPSIS
    divergence kl
    p          Labels over V=3, batch (2,), torch.int64 on cpu
    q          Logits over V=3, batch (2,), torch.float32 on cpu
    result     (2,) torch.float32, one number per row of V=3
    method     exact sum over the V columns, canonical terms, float...
    ...
    """
    return route(divergence, p, q, verb="explain")


def route(divergence: Divergence, p: Any, q: Any, /, *, verb: str | None = None) -> Route | exact.DensityPlan:
    """What `verbs.measure(divergence, p, q)` will do."""
    if exact.is_measurable(p) or exact.is_measurable(q):
        return exact.explain(divergence, p, q)
    left, right = sides(verb or divergence.family, p, q)
    batch_shape, num_classes = left.batch_shape, p.num_classes
    left, right, _ = dtensors.local(left, right)
    decision = choice.decide(divergence, left, right, num_classes)
    costs = decision.costs(left, right)
    dtype = result_dtype(*decision.calls[0].dtypes)
    precision = "float64" if dtype == torch.float64 else costs[0].precision
    not_taken = (("estimate", "an exact method exists, and an exact call never falls back to an estimate"),)
    return Route(
        divergence=divergence.name,
        p=_describe(p),
        q=_describe(q),
        batch_shape=tuple(batch_shape),
        num_classes=num_classes,
        method=f"exact sum over the V columns, canonical terms, {precision}",
        engine=decision.engine.NAME,
        manner=costs[0].manner,
        temporary_bytes=max(cost.temporary_bytes for cost in costs),
        saved_bytes=sum(cost.saved_bytes for cost in costs),
        gradient_to_p=_gradient(p),
        gradient_to_q=_gradient(q),
        result_dtype=str(dtype),
        error=_error(dtype, p, q),
        not_taken=not_taken + decision.not_taken,
    )


def sides(verb: str, p: Any, q: Any) -> tuple[Side, Side]:
    """Two forms as the sides of a comparison, of one batch shape; or the error that says why there is none."""
    if not (isinstance(p, FiniteForm) and isinstance(q, FiniteForm)):
        name, form = ("q", q) if isinstance(p, FiniteForm) else ("p", p)
        raise FormError(what_to_estimate(verb, p, q) or _no_form(verb, name, form))
    check_split(verb, p, q)
    if p.num_classes != q.num_classes:
        raise FormError(_different_v(p.num_classes, q.num_classes))
    if p.data.device != q.data.device:
        raise FormError(
            f"{verb}: p is on {p.data.device} but q is on {q.data.device}. "
            f"Move one of them: q's tensor .to({str(p.data.device)!r})."
        )
    one, other = p.batch_shape, q.batch_shape
    if one != other:
        try:
            one = torch.Size(torch.broadcast_shapes(one, other))  # type: ignore[no-untyped-call]
        except RuntimeError:
            raise FormError(
                f"{verb}: p has batch shape {tuple(p.batch_shape)} but q has {tuple(q.batch_shape)}, "
                "which do not broadcast. "
                "Forms hold (..., V): check that the class axis is the last, or insert a batch axis with unsqueeze."
            ) from None
    return p.side(one), q.side(one)


def _no_form(verb: str, name: str, value: Any) -> str:
    kind = "a bare Tensor" if isinstance(value, Tensor) else f"a bare {type(value).__name__}"
    if hasattr(value, "logits"):
        return f"{verb}: {name} is {kind}, which does not say what it holds. Write Logits({name}.logits)."
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
    return f"{type(form).__name__} over V={form.num_classes}, batch {batch}, {form.dtype} on {data.device}"


def _error(dtype: torch.dtype, *forms: FiniteForm) -> str:
    said = "relative, below 1e-5" if dtype == torch.float32 else "relative, some units of 1e-16 a column"
    made = next((form for form in forms if isinstance(form, LinearLogits)), None)
    return said if made is None else f"{said}, for scores as {made.dtype} rounds them"


def _gradient(form: FiniteForm) -> str:
    if not any(x.is_floating_point() for x in form.tensors):
        return "none, class indices are integers"
    if not form.requires_grad:
        return "none asked for (the tensor does not require grad)"
    floats = [x for x in form.tensors if x.is_floating_point()]
    asking = [x for x in floats if x.requires_grad]
    if len(floats) == 1:
        return f"to the {asking[0].dtype} tensor inside {type(form).__name__}, written once"
    shapes = ", ".join(str(tuple(x.shape)) for x in asking)
    return f"to {len(asking)} of the tensors inside {type(form).__name__}: {shapes}, {asking[0].dtype}"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
