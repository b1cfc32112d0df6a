"""What the library says, in the language of the command: its flags instead of Python."""

import re

from kullback.estimate import Jackknife, MillerMadow, MonteCarlo, NearestNeighbours, PlugIn

_FLAGS = (
    (
        "Write PlugIn(prior=JEFFREYS_PRIOR), or unseen='drop', or merge",
        "Write --prior jeffreys, or --drop-unseen, or merge",
    ),
    (", or replicates=0", ""),
    ("compare Counts", "compare them as counts, with --as counts or counted by category"),
    (", pass a generator", ""),
    ("NearestNeighbours()", "the nearest-neighbour estimate"),
)
_PYTHON = re.compile(
    r"\b[A-Za-z_][\w.]*\([^)]*\)|\b[a-z_]+=\S|\btorch\.|\bnp\.|`|\[[^\]]*\]|\bvalidate\b|\b[A-Z]\w+ on both"
)


def in_flags(text: str) -> str:
    """A message of the library without the lines of Python that it advises to write, or with flags for them.

    >>> in_flags("estimate.kl: there are fewer. Write a smaller k, such as NearestNeighbours(k=1), or give more draws.")
    'there are fewer'
    """
    line = re.sub(r"^(?:estimate\.\w+|[a-z_]\w*): ", "", " ".join(text.split()))
    for python, flags in _FLAGS:
        line = line.replace(python, flags)
    sentences = re.split(r"(?<=[.;]) (?=[A-Zw])", line)
    kept = [one for one in sentences if not (one.lower().startswith("write ") and _PYTHON.search(one))]
    return " ".join(kept).rstrip(" .;")


def method_in_words(method: object, name: str) -> str:
    """How an estimate was made; `name` for a method that has no words here."""
    if isinstance(method, NearestNeighbours):
        return f"nearest neighbours (k={method.k})"
    if isinstance(method, MonteCarlo):
        return f"Monte Carlo, {method.n} draws"
    if not isinstance(method, PlugIn):
        return re.sub(r"^PlugIn, bootstrap\((\d+)\)$", r"observed shares, \1 bootstrap resamples", name)
    words = ["observed shares"]
    if method.prior is not None:
        words.append(f"{method.prior.alpha:g} added to each count")
    if isinstance(method.correction, MillerMadow):
        words.append("Miller-Madow correction")
    if isinstance(method.correction, Jackknife):
        words.append("jackknife correction")
    if method.unseen == "drop":
        words.append("without what Q has not seen")
    return ", ".join(words)
