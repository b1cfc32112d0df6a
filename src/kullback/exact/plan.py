"""What `explain` says of distributions and densities."""

from dataclasses import dataclass
from typing import Any

from kullback.divergences import Divergence

from .arguments import check, name_of, result_dtype
from .ladder import decide
from .shapes import batch_of


@dataclass(frozen=True)
class DensityPlan:
    """How a verb will measure two distributions; `print(explain(p, q))` shows it."""

    divergence: str
    p: str
    q: str
    batch_shape: tuple[int, ...]
    method: str
    error: str
    result_dtype: str

    def __str__(self) -> str:
        return "\n".join(
            (
                f"divergence {self.divergence}",
                f"p          {self.p}",
                f"q          {self.q}",
                f"result     {self.batch_shape} {self.result_dtype}",
                f"method     {self.method}",
                f"error      {self.error}",
                "gradients  to every parameter that requires them",
                "not taken  estimate: an exact method exists, and an exact call never falls back to an estimate",
            )
        )


def explain(divergence: Divergence, p: Any, q: Any) -> DensityPlan:
    """What `measure(divergence, ..., p, q)` will do."""
    check("explain", p, q)
    found = decide(divergence, p, q)
    batch = tuple(batch_of(p, q))
    dtype = result_dtype(p, q)
    return DensityPlan(divergence.name, name_of(p), name_of(q), batch, found.method, found.error, str(dtype))
