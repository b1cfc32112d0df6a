"""Exact values for distributions and densities: closed forms, sums with a proven tail bound, quadrature."""

from .arguments import is_measurable
from .ladder import measure
from .plan import DensityPlan, explain

__all__ = ["DensityPlan", "explain", "is_measurable", "measure"]
