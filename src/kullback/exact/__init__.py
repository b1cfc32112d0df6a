"""Exact values for distributions and densities: closed forms, sums with a proven tail bound, quadrature."""

from .ladder import is_measurable, measure
from .plan import DensityPlan, explain

__all__ = ["DensityPlan", "explain", "is_measurable", "measure"]
