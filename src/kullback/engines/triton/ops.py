"""The operators of the Triton engine, as PyTorch sees them: `torch.compile`, export and autograd need no GPU for them.

Forward saves three numbers per row and side, (max, log Σ exp, Σ ∂f/∂log w); backward recomputes the terms and writes
each requested gradient once. A second derivative goes through the eager definition. Nothing here waits for the device.
"""

import os
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from kullback.core.readings import Reading
from kullback.core.reduction import Sum
from kullback.engines import encoding

OLDEST = (3, 4)  # before it, float64 arguments reach a kernel as float32


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
    codes, numbers = encoding.encode(total, left, right)
    keep = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    values: Tensor = torch.ops.kullback.triton_rows(x, y, codes, numbers, num_classes, keep)[0]
    return values


_library = encoding.define("triton_")


def _rows(
    x: Tensor, y: Tensor, codes: list[int], numbers: list[float], num_classes: int, keep: bool
) -> tuple[Tensor, Tensor]:
    from . import launch

    launch.check_device(x)
    return launch.forward(*encoding.decode(codes, numbers, num_classes), x, y, num_classes, keep)


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

    sums = encoding.decode(codes, numbers, num_classes)
    return launch.backward(*sums, x, y, num_classes, values, stats, upstream, (to_x, to_y))


# "CPU" is for Triton's interpreter (TRITON_INTERPRET=1), which the tests use; nothing chooses it by itself
for _device in ("CUDA", "CPU"):
    _library.impl("triton_rows", _rows, _device)  # type: ignore[no-untyped-call]
    _library.impl("triton_row_gradients", _row_gradients, _device)  # type: ignore[no-untyped-call]
