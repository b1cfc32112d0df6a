"""The optional packages of `kullback distill`."""

from functools import partial

from kullback.kit import extras

extra = partial(extras.extra, of="distill")
