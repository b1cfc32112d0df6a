"""What `explain` says of distributions and densities."""

from dataclasses import dataclass
from typing import Any

from kullback import divergences

from .arguments import check, name_of, result_dtype
from .ladder import route
from .shapes import batch_of


@dataclass(frozen=True)
class DensityPlan:
    """How a verb will measure two distributions; `print(explain(p, q))` shows it."""

    p: str
    q: str
    batch_shape: tuple[int, ...]
    method: str
    error: str
    result_dtype: str

    def __str__(self) -> str:
        return "\n".join(
            (
                f"p          {self.p}",
                f"q          {self.q}",
                f"result     {self.batch_shape} {self.result_dtype}",
                f"method     {self.method}",
                f"error      {self.error}",
                "gradients  to every parameter that requires them",
                "not taken  estimate: an exact method exists, and an exact call never falls back to an estimate",
            )
        )


def explain(p: Any, q: Any) -> DensityPlan:
    """The plan of KL(p‖q) for distributions and densities."""
    check("explain", p, q)
    found = route(divergences.KL, p, q)
    batch = tuple(batch_of(p, q))
    dtype = result_dtype(p, q)
    return DensityPlan(name_of(p), name_of(q), batch, found.method, found.error, str(dtype))
