"""Closed forms, family by family; importing this package fills the registry."""

from . import affinity, bounded, counts, gamma, location, multivariate, structure, to_gumbel, to_normal

__all__ = ["affinity", "bounded", "counts", "gamma", "location", "multivariate", "structure", "to_gumbel", "to_normal"]
