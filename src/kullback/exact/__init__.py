"""Exact values for distributions and densities: closed forms, sums with a proven tail bound, quadrature."""

from .arguments import is_measurable
from .ladder import Decision, decide, measure
from .plan import DensityPlan, explain

__all__ = ["Decision", "DensityPlan", "decide", "explain", "is_measurable", "measure"]
