"""The operators of the Triton engine, as PyTorch sees them: `torch.compile`, export and autograd need no GPU for them.

Forward saves three numbers per row and side, (max, log Σ exp, Σ ∂f/∂log w); backward recomputes the terms and writes
each requested gradient once. A second derivative goes through the eager definition. Nothing here waits for the device.
"""

import os
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from kullback.core.readings import Side
from kullback.engines import eager, listed, operators
from kullback.engines.call import BYTES_SAVED_PER_ROW, Call, Cost, Rows, why_no_kernel
from kullback.engines.listed import LISTED, is_coarse, is_listed

NAME = "triton"
OLDEST = (3, 4)  # before it, float64 arguments reach a kernel as float32


def why_not(call: Call) -> str | None:
    """Why the Triton engine cannot serve a call, or None. Triton is looked up once per process, and not imported."""
    if call.device != "cuda" and not (call.device == "cpu" and interpreted()):
        return f"the tensors are on {call.device}"
    return _absent() or why_no_kernel(call, LISTED) or _why_not_listed(call)


def _why_not_listed(call: Call) -> str | None:
    for reading in (call.p, call.q):
        if is_listed(reading) and not is_coarse(reading):
            return "a tail of even shares has no kernel"
    return listed.why_not(call)


def cost(call: Call, p: Side, q: Side) -> Cost:
    """Nothing beside the result, unless rows without a common stride are copied first."""
    return Cost(
        0,
        p.batch_shape.numel() * BYTES_SAVED_PER_ROW,
        "one kernel a pass, rows read twice forward and once backward",
        "float32 with compensated sums, float64 where a divergence or a form needs it",
    )


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


def _absent() -> str | None:
    return _look()


_absent._dynamo_marked_constant = True  # type: ignore[attr-defined]


def interpreted() -> bool:
    """Whether Triton interprets kernels in this process, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


interpreted._dynamo_marked_constant = True  # type: ignore[attr-defined]


def prepare(call: Call) -> Rows:
    """Nothing is to be prepared: Triton keeps its kernels."""
    return partial(rows, call)


def rows(call: Call, p: Side, q: Side, factor: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """factor · value of every row, in a dtype; differentiable twice. Both sides share their batch shape."""
    values = traced_rows(call, p, q)
    return (values if factor == 1.0 else factor * values).to(dtype)


def traced_rows(call: Call, p: Side, q: Side) -> Tensor:
    """The value of every row in float64, as an operator that tracers see."""
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (*p.data, *q.data))
    values: Tensor = torch.ops.kullback.triton_rows(*operators.ask(call, p, q), keep)[0]
    return values


def _forward(call: Call, p: Side, q: Side, keep: bool) -> tuple[Tensor, Tensor]:
    from . import launch

    launch.check_device(p.data[0])
    if is_coarse(call.p) or is_coarse(call.q):
        from . import listed as coarse

        return coarse.forward(call, p, q, keep)
    return launch.forward(call, p.data[0], q.data[0], keep)


def _backward(
    call: Call, p: Side, q: Side, values: Tensor, stats: Tensor, upstream: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor, ...]:
    from . import launch

    if not is_coarse(call.p) and not is_coarse(call.q):
        return launch.backward(call, p.data[0], q.data[0], values, stats, upstream, wanted)
    from . import listed as coarse

    data, at = (*p.data, *q.data), len(p.data) if is_coarse(call.p) else 0
    found = [x.new_empty(0) for x in data]
    if wanted[at]:
        found[at] = coarse.backward(call, p, q, values, stats, upstream)
    left = [want and k != at for k, want in enumerate(wanted)]
    if any(left):  # log-probabilities of listed classes
        by_core = eager.gradients(call, p, q, values, upstream, left)
        found = [g if more is None else more for g, more in zip(found, by_core, strict=True)]
    return tuple(found)


# "CPU" is for Triton's interpreter (TRITON_INTERPRET=1), which the tests use; nothing chooses it by itself
_library = operators.define("triton_", ("CUDA", "CPU"), _forward, _backward)
