"""Distil a teacher into a small student, and see what it brings: the job behind `kullback distill`."""

from .errors import BadInput, MissingExtra
from .job import Outcome, Results, run
from .measures import Summary, calibration_error
from .models import Student, load_student
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
    "run",
]
