"""The laws that every divergence and every form keeps, for those of one's own.

    check_divergence(row)     a row of `extend.Divergence`
    check_form(make)          a form, made by a function of its tensors

Each raises an `AssertionError` that says which law is broken, where, and by how much; both are deterministic and take a
few seconds. The package's own rows and forms pass them, as a part of much longer tests.
"""

import math
import pickle
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .core.reduction import GeneratorSum
from .divergences import KL, Divergence
from .forms.finite import FiniteForm, Logits, LogProbs, Probs
from .verbs import measure

__all__ = ["check_divergence", "check_form"]

_NO = -math.inf


def check_divergence(row: Divergence, *, classes: int = 6) -> None:
    """Hold a divergence to the laws of CONVENTIONS.md.

    Never negative, exactly 0 for equal rows, not above `row.upper`; indifferent to the order of the classes, to a
    constant added to scores, to a class without mass on both sides; symmetric if it says so; joining classes never
    increases it; gradients to both sides equal finite differences of the value, once and twice, in every form, at
    ordinary rows, nearly equal ones and rows with classes that have no mass; float32 agrees with float64; equal rows
    are equal values: the row can be hashed, copied and pickled.

    Args:
        row: the divergence.
        classes: V of the rows that are tried.

    Raises: AssertionError, which names the law.

    >>> from kullback import divergences
    >>> check_divergence(divergences.TRIANGULAR)
    """
    for name, a, b in _pairs(classes):
        p, q = Logits(a), Logits(b)
        value = measure(row, p, q)
        _hold(row, f"is NaN for {name}", not bool(value.isnan().any()))
        _hold(row, f"is negative for {name}: {value.min().item():g}", bool((value >= 0).all()))
        _hold(row, f"exceeds upper={row.upper:g} for {name}", bool((value <= row.upper * (1 + 1e-9)).all()))
        turn = torch.roll(torch.arange(classes), 1)
        _same(
            row,
            f"the order of the classes matters for {name}",
            measure(row, Logits(a[..., turn]), Logits(b[..., turn])),
            value,
        )
        _same(
            row,
            f"a constant added to scores matters for {name}",
            measure(row, Logits(a + 3.0), Logits(b - 5.0)),
            value,
            1e-9,
        )
        wide = [torch.nn.functional.pad(x, (0, 1), value=_NO) for x in (a, b)]
        _same(row, f"a class without mass matters for {name}", measure(row, *map(Logits, wide)), value, 1e-12)
        if row.symmetric:
            _same(row, f"symmetric=True is wrong for {name}", measure(row, q, p), value, 1e-9)
        single = measure(row, Logits(a.float()), Logits(b.float()))
        truth = measure(row, Logits(a.float().double()), Logits(b.float().double()))
        _same(row, f"float32 is off for {name}", single.double(), truth, 1e-5)
    for a in (torch.linspace(-2, 3, classes).double(), torch.tensor([0.0, _NO, *[1.0] * (classes - 2)]).double()):
        equal = measure(row, Logits(a), Logits(a.clone())).item()
        _hold(row, f"is {equal:g} and not 0 for equal rows", equal == 0.0)
    _check_coarse(row, classes)
    _check_gradients(row, classes)
    copy = pickle.loads(pickle.dumps(row))
    _hold(row, "is another value after pickling", copy == row and hash(copy) == hash(row))


def check_form(make: Callable[..., FiniteForm], *tensors: Tensor) -> None:
    """Hold a form to what verbs rely on.

    Its probabilities are >= 0 and sum to one; KL between it and a dense form is that of its probabilities; rows can be
    indexed and broadcast, and computed a few at a time; gradients to every floating tensor equal finite differences, on
    both sides; integers get none; `detach`, `to` and pickling keep what it means.

    Args:
        make: makes the form of its tensors, such as `lambda x: MyForm(x, temperature=2.0)`.
            Where a row of the tensors might not sum to one, let it normalise: gradients are checked along the simplex,
            since off it KL is the textbook formula's, as CONVENTIONS.md says.
        tensors: float64 (or integer) tensors with one batch axis of two rows or more.

    Raises: AssertionError, which names what is broken.

    >>> check_form(lambda x: Logits(x, temperature=2.0), torch.randn(3, 5, dtype=torch.float64))
    """
    form = make(*tensors)
    name = type(form).__name__
    w = form.probabilities()
    rows = form.batch_shape
    assert w.shape == form.shape, f"{name}: probabilities have shape {tuple(w.shape)}, not {tuple(form.shape)}"
    assert len(rows) == 1, f"{name}: give tensors with one batch axis of two rows or more, not {tuple(rows)}"
    assert rows[0] >= 2, f"{name}: give tensors with two rows or more"
    assert bool((w >= 0).all()), f"{name}: a probability is negative"
    assert torch.allclose(w.sum(-1), torch.ones(rows, dtype=torch.float64), atol=1e-12), f"{name}: rows do not sum to 1"
    g = torch.Generator().manual_seed(0)
    other = torch.randn(form.shape, generator=g, dtype=torch.float64)
    dense = Probs(w, validate=False)
    for one, two, side in ((form, Logits(other), "p"), (Logits(other), form, "q")):
        got = measure(KL, one, two)
        want = measure(KL, *(dense if x is form else x for x in (one, two)))
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-14), (
            f"{name}: KL with it as {side} is not that of its weights"
        )
        last = measure(KL, one[-1], two[-1])
        assert torch.allclose(last, got[-1], rtol=1e-9, atol=1e-14), (
            f"{name}: a row alone, as {side}, has another value"
        )
        spread = measure(KL, one[:1], two)
        assert spread.shape == rows, f"{name}: one row does not broadcast, as {side}"
    floats = [k for k, x in enumerate(tensors) if x.is_floating_point()]
    leaves = [x.detach().clone().requires_grad_() if k in floats else x for k, x in enumerate(tensors)]
    for left in (True, False):

        def value(*moving: Tensor, left: bool = left) -> Tensor:
            given = list(leaves)
            for k, x in zip(floats, moving, strict=True):
                given[k] = x
            mine = make(*given)
            return measure(KL, mine, Logits(other)) if left else measure(KL, Logits(other), mine)

        moving = tuple(leaves[k] for k in floats)
        if moving:
            torch.autograd.gradcheck(value, moving)
            torch.autograd.gradgradcheck(value, moving)
    detached = make(*leaves).detach()
    assert not detached.requires_grad, f"{name}: detach leaves a gradient"
    assert torch.equal(detached.probabilities(), make(*tensors).probabilities()), f"{name}: detach changes it"
    assert form.to("cpu").device.type == "cpu", f"{name}: to() does not move it"
    again = pickle.loads(pickle.dumps(form))
    assert torch.equal(again.probabilities(), w), f"{name}: it does not pickle"


# ---------------------------------------------------------------- rows to try


def _pairs(classes: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    a, noise = (torch.randn(4, classes, generator=g, dtype=torch.float64) for _ in range(2))
    yield "ordinary rows", a, a + noise
    yield "nearly equal rows", a, a + 1e-4 * noise
    yield "rows far apart", 8.0 * a, -8.0 * a
    for name, left, right in (("p", True, False), ("q", False, True), ("both", True, True)):
        x, y = a.clone(), a + noise
        if left:
            x[:, 1] = _NO
        if right:
            y[:, 1] = _NO
        yield f"rows where {name} lacks a class", x, y


def _check_coarse(row: Divergence, classes: int) -> None:
    """Data processing: two classes told as one are told apart less."""
    for name, a, b in _pairs(classes):
        p, q = torch.softmax(a, -1), torch.softmax(b, -1)
        fine = measure(row, Probs(p, validate=False), Probs(q, validate=False))
        joined = [torch.cat([w[..., :1] + w[..., 1:2], w[..., 2:]], -1) for w in (p, q)]
        coarse = measure(row, *(Probs(w, validate=False) for w in joined))
        room = 1e-9 * fine.abs() + 1e-13
        _hold(row, f"grows when classes are joined, for {name}", bool(((coarse <= fine + room) | fine.isinf()).all()))


def _check_gradients(row: Divergence, classes: int) -> None:
    kinds: Sequence[tuple[str, Callable[[Tensor], FiniteForm], Callable[[Tensor], Tensor]]] = (
        ("Logits", Logits, lambda x: x),
        ("LogProbs", lambda x: LogProbs(x, validate=False), lambda x: torch.log_softmax(x, -1)),
        ("Probs", lambda x: Probs(x, validate=False), lambda x: torch.softmax(x, -1)),
    )
    # beside a corner finite differences step over it
    corner = any(isinstance(total, GeneratorSum) and total.generator.corner for total in row.sums)
    for name, a, b in _pairs(classes):
        value = measure(row, Logits(a), Logits(b))
        if "far apart" in name or ("nearly" in name and corner) or not bool(torch.isfinite(value).all()):
            continue
        masked = "lacks" in name
        for kind, form, data in kinds[:1] if masked else kinds:
            x, y = (data(s[:2]).detach().requires_grad_() for s in (a, b))

            def f(u: Tensor, v: Tensor, form: Callable[[Tensor], FiniteForm] = form) -> Tensor:
                return measure(row, form(u), form(v))

            if masked:  # finite differences of -inf are not numbers: the gradients must be
                grads = torch.autograd.grad(f(x, y).sum(), (x, y))
                _hold(
                    row, f"has a gradient that is no number, for {name}", all(bool(g.isfinite().all()) for g in grads)
                )
                continue
            try:
                along = _along_the_simplex(f, kind)
                torch.autograd.gradcheck(along, (x, y), atol=1e-6 if "nearly" not in name else 1e-8)
                if "nearly" not in name:
                    torch.autograd.gradgradcheck(along, (x, y))
            except RuntimeError as error:
                raise AssertionError(f"{row.name}: the gradient to {kind} is wrong for {name}: {error}") from None


def _along_the_simplex(f: Callable[..., Tensor], kind: str) -> Callable[..., Tensor]:
    """Rows that stay normalised: off the simplex the canonical and the textbook sum differ, and gradients are the
    textbook's.
    """
    if kind == "Logits":
        return f
    if kind == "LogProbs":
        return lambda x, y: f(torch.log_softmax(x, -1), torch.log_softmax(y, -1))
    return lambda x, y: f(x / x.sum(-1, keepdim=True), y / y.sum(-1, keepdim=True))


def _hold(row: Divergence, broken: str, holds: bool) -> None:
    if not holds:
        raise AssertionError(f"{row.name} {broken}")


def _same(row: Divergence, broken: str, got: Tensor, want: Tensor, rel: float = 1e-10) -> None:
    same = (got == want) | ((got - want).abs() <= rel * want.abs() + 1e-14)
    if not bool(same.all()):
        worst = (got - want).abs()[~same].max().item()
        raise AssertionError(f"{row.name}: {broken} (by {worst:.2g})")
