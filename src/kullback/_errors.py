"""The exceptions that kullback raises.

    KullbackError
    ├── FormError (also ValueError)      an input does not mean what its form says, or has no form
    ├── NoExactMethod (also TypeError)   this pair has no exact method
    └── ToleranceError (also ArithmeticError)   an integral or a sum could not be resolved to its tolerance

Every message says what was given, what is needed, and what to write instead.
"""


class KullbackError(Exception):
    """Base of every error that kullback raises on purpose."""


class FormError(KullbackError, ValueError):
    """An input does not mean what its form says, does not fit its partner, or has no form at all."""


class NoExactMethod(KullbackError, TypeError):
    """No exact method serves this pair."""


class ToleranceError(KullbackError, ArithmeticError):
    """An integral or a sum could not be resolved to its tolerance; no value is better than a wrong one."""
