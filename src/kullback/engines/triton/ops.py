"""The operators of the Triton engine, as PyTorch sees them: `torch.compile`, export and autograd need no GPU for them.

Forward saves three numbers per row and side, (max, log Σ exp, Σ ∂f/∂log w); backward recomputes the terms and writes
each requested gradient once. A second derivative goes through the eager definition. Nothing here waits for the device.
"""

import os
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from kullback.core import reduction
from kullback.core.readings import Reading
from kullback.core.reduction import Sum
from kullback.engines.cpu import _decode as decode
from kullback.engines.cpu import _encode as encode
from kullback.engines.cpu import _fake_row_gradients, _fake_rows, _setup_context

BYTES_SAVED_PER_ROW = 8 + 2 * 3 * 8
OLDEST = (3, 2)


def why_not() -> str | None:
    """Why Triton cannot be used here, or None. Looked up without importing it, once per process."""
    return _look()


@lru_cache(maxsize=1)
def _look() -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed (pip install 'kullback[triton]')"
    try:
        found = version("triton")
    except PackageNotFoundError:
        return None  # under another name, such as pytorch-triton-rocm: a build of PyTorch brought it
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        return f"Triton {found} is older than {'.'.join(map(str, OLDEST))}"
    return None


why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


def interpreted() -> bool:
    """Whether Triton interprets kernels in this process, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


interpreted._dynamo_marked_constant = True  # type: ignore[attr-defined]


def rows(total: Sum, left: Reading, right: Reading, x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """One float64 number per row of x and y, which already share their batch shape; differentiable twice."""
    codes, numbers = encode(total, left, right)
    keep = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    values: Tensor = torch.ops.kullback.triton_rows(x, y, codes, numbers, num_classes, keep)[0]
    return values


_library = torch.library.Library("kullback", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "triton_rows(Tensor x, Tensor y, int[] codes, float[] numbers, SymInt num_classes, bool keep) -> (Tensor, Tensor)"
)
_library.define(  # type: ignore[no-untyped-call]
    "triton_row_gradients(Tensor x, Tensor y, Tensor values, Tensor stats, Tensor upstream, int[] codes, "
    "float[] numbers, SymInt num_classes, bool to_x, bool to_y) -> (Tensor, Tensor)"
)


def _rows(
    x: Tensor, y: Tensor, codes: list[int], numbers: list[float], num_classes: int, keep: bool
) -> tuple[Tensor, Tensor]:
    from . import launch

    launch.check_device(x)
    return launch.forward(*decode(codes, numbers, num_classes), x, y, num_classes, keep)


def _row_gradients(
    x: Tensor,
    y: Tensor,
    values: Tensor,
    stats: Tensor,
    upstream: Tensor,
    codes: list[int],
    numbers: list[float],
    num_classes: int,
    to_x: bool,
    to_y: bool,
) -> tuple[Tensor, Tensor]:
    from . import launch

    sums = decode(codes, numbers, num_classes)
    return launch.backward(*sums, x, y, num_classes, values, stats, upstream, (to_x, to_y))


def _backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, y, values, stats = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    to_x: Tensor | None = None
    to_y: Tensor | None = None
    if upstream is not None and torch.is_grad_enabled():  # create_graph: the eager definition, differentiable again
        total, left, right = decode(ctx.codes, ctx.numbers, ctx.num_classes)
        to_x, to_y = reduction.gradients(total, left, right, x, y, values, upstream, wanted)
    elif upstream is not None:
        grads = torch.ops.kullback.triton_row_gradients(
            x, y, values, stats, upstream, ctx.codes, ctx.numbers, ctx.num_classes, *wanted
        )
        to_x, to_y = grads[0] if wanted[0] else None, grads[1] if wanted[1] else None
    return to_x, to_y, None, None, None, None


# "CPU" is for Triton's interpreter (TRITON_INTERPRET=1), which the tests use; nothing chooses it by itself
for _device in ("CUDA", "CPU"):
    _library.impl("triton_rows", _rows, _device)  # type: ignore[no-untyped-call]
    _library.impl("triton_row_gradients", _row_gradients, _device)  # type: ignore[no-untyped-call]
torch.library.register_fake("kullback::triton_rows", _fake_rows, lib=_library)
torch.library.register_fake("kullback::triton_row_gradients", _fake_row_gradients, lib=_library)
torch.library.register_autograd("kullback::triton_rows", _backward, setup_context=_setup_context, lib=_library)
