"""Distil a teacher into a small student, and see what it brings: the job behind `kullback distill`."""

from kullback._errors import BadInput, MissingExtra
from kullback.kit.numbers import Summary

from .job import resume, run
from .measures import calibration_error
from .models import Student, load_student
from .results import Outcome, Results
from .settings import Settings

__all__ = [
    "BadInput",
    "MissingExtra",
    "Outcome",
    "Results",
    "Settings",
    "Student",
    "Summary",
    "calibration_error",
    "load_student",
    "resume",
    "run",
]
