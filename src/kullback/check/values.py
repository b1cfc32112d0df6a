"""What is known of an expression's value."""

import ast
from dataclasses import dataclass, fields, replace
from typing import Literal

Kind = Literal["log-probabilities", "probabilities", "logits", "log-ratio"]


@dataclass(frozen=True, eq=False)
class KLCall:
    """One use of `F.kl_div` or of a `KLDivLoss`.

    Args:
        node: the call.  input, target: its operands; None if they are not visible.
        reduction: None if it is not visible.  log_target: None if it is not visible.
        options: the call whose options these are: `node`, or that which made the `KLDivLoss`.
        scope: the function around it, or the module.
    """

    node: ast.Call
    input: ast.expr | None
    target: ast.expr | None
    reduction: str | None
    log_target: bool | None
    options: ast.Call
    scope: ast.AST


@dataclass(frozen=True, eq=False)
class Module:
    """An `nn.Module` that was made: a softmax, a log_softmax or a KLDivLoss."""

    what: Literal["softmax", "log_softmax", "kl"]
    made: ast.Call


@dataclass(frozen=True)
class Value:
    """What is known of a value; a field that is not set is not known.

    Args:
        kind: what its numbers are.  named: whether only the variable's name says so.
        axes: it has at least so many.
        softmax: the call that made it a distribution.  fresh: nothing but casts has happened since.
        tempered: what its logits were divided by, as source text; "?" for something that cannot be read.
        role: the side it stands for.
        kl: the call of kl_div it comes from.  reduced: whether the classes have been summed up.
        k3: the expression exp(r) - r - 1 that it holds.
        exp_of: source text of x where it is exp(x).
        difference: it is a - b.
        epsilon: something small was added to it, or clamps it from below: that expression.
        module: it is a module of PyTorch.
    """

    kind: Kind | None = None
    named: bool = False
    axes: int = 0
    softmax: ast.Call | None = None
    fresh: bool = False
    tempered: tuple[str, ...] = ()
    role: str | None = None
    kl: KLCall | None = None
    reduced: bool = False
    k3: ast.expr | None = None
    exp_of: str | None = None
    difference: bool = False
    epsilon: ast.expr | None = None
    module: Module | None = None


UNKNOWN = Value()


def join(one: Value, other: Value) -> Value:
    """What holds of both. That something *may* come from a kl_div, a k3 or an epsilon is kept from either."""
    if one is other or one == other:
        return one
    same = {f.name: getattr(one, f.name) for f in fields(Value) if getattr(one, f.name) == getattr(other, f.name)}
    same["axes"] = min(one.axes, other.axes)
    kl = one if one.kl is not None else other
    return Value(
        **{
            **same,
            "kl": kl.kl,
            "reduced": kl.reduced,
            "k3": one.k3 or other.k3,
            "epsilon": one.epsilon or other.epsilon,
        }
    )


def combined(one: Value, other: Value) -> Value:
    """A sum, a difference, a product: a distribution no more, but still what may come from a kl_div or a k3."""
    kl = one if one.kl is not None else other
    return Value(
        axes=max(one.axes, other.axes),
        tempered=one.tempered or other.tempered,
        role=one.role if other.role in (None, one.role) else (other.role if one.role is None else None),
        kl=kl.kl,
        reduced=kl.reduced,
        k3=one.k3 or other.k3,
    )


def recast(value: Value, *, axes: int | None = None, fresh: bool = False) -> Value:
    """The same numbers in another shape, with `fresh` in the same one."""
    return replace(value, axes=value.axes if axes is None else axes, fresh=value.fresh and fresh)
