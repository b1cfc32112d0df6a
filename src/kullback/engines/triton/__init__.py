"""The Triton engine: `core`, transcribed to one forward and one backward kernel for GPUs, behind a PyTorch operator.

`ops` is what PyTorch and the other engines see, and needs no Triton; `launch` (the only importer of the kernels) is
loaded at the first call.
"""

from .ops import NAME, cost, interpreted, prepare, rows, traced_rows, why_not

__all__ = ["NAME", "cost", "interpreted", "prepare", "rows", "traced_rows", "why_not"]
