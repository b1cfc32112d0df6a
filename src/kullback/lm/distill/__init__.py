"""Distil a language model into a smaller one: the job behind `kullback lm distill`."""

from kullback._errors import BadInput, MissingExtra

from .job import resume, run
from .results import Results
from .settings import Settings

__all__ = ["BadInput", "MissingExtra", "Results", "Settings", "resume", "run"]
