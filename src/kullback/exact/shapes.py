"""Broadcasting, with types."""

from typing import Any

import torch
from torch import Tensor


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, expanded to their common shape."""
    return tuple(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]


def batch_of(p: Any, q: Any) -> torch.Size:
    """The common batch shape of two distributions or forms."""
    return torch.Size(torch.broadcast_shapes(p.batch_shape, q.batch_shape))  # type: ignore[no-untyped-call]


def is_traced(*tensors: Tensor) -> bool:
    """Whether the compiler or a functorch transform looks on, to whom values are unknown."""
    return torch.compiler.is_compiling() or any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)
