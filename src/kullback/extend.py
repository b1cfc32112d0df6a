"""What it takes to add a divergence or a form of one's own, without touching the package.

A divergence is data: a `Generator` (one formula with its two derivatives), a `GeneratorSum` of it, and a `Divergence`
row. `measure(row, p, q)` then works on every form, with gradients once and twice, under `torch.compile` and
`torch.func`, in `total` and in every loss that takes a divergence. It runs eager, in float64; `explain` says so. A form
is a `FiniteForm` with a `Reading`: how its tensors become probabilities, and how derivatives go back. A closed form for
distributions is entered with `closed_form`.

`kullback.testing` holds them against the laws that the package's own keep. tests/extension/ of the project is a worked
example of both.
"""

from .core.generators import Cells, Generator, Power, Tail, Terms, excess, growth
from .core.readings import Partial, Reading, Side, Weights
from .core.reduction import GeneratorSum, LogAffinity
from .divergences import Divergence, LogSum, Root, Scaled
from .exact.registry import closed_form
from .forms.finite import FiniteForm
from .verbs import measure

__all__ = [
    "Cells",
    "Divergence",
    "FiniteForm",
    "Generator",
    "GeneratorSum",
    "LogAffinity",
    "LogSum",
    "Partial",
    "Power",
    "Reading",
    "Root",
    "Scaled",
    "Side",
    "Tail",
    "Terms",
    "Weights",
    "closed_form",
    "excess",
    "growth",
    "measure",
]
