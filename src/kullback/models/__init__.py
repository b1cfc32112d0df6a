"""Two language models compared token by token: `kullback compare`, and `compare` from Python."""

from .job import compare, resume
from .results import Comparison
from .settings import Settings

__all__ = ["Comparison", "Settings", "compare", "resume"]
