"""Training losses: choose forms, call a verb, average."""

from .average import average
from .distillation import Distillation

__all__ = ["Distillation", "average"]
