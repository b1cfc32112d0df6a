"""Exact values for distributions and densities: closed forms, sums with a proven tail bound, quadrature."""

from .ladder import DensityPlan, explain, is_measurable, measure

__all__ = ["DensityPlan", "explain", "is_measurable", "measure"]
