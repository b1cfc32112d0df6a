"""The specification in `core`, made fit for large inputs. Each engine computes the same functions."""

from .choice import use

__all__ = ["use"]
