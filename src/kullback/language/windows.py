"""A document's tokens, cut into windows that a model can take, in which each token is scored once."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from kullback._errors import BadInput

IGNORED = -100  # what marks a position without a label in every collator


class Window(NamedTuple):
    """Tokens start ... start + len(ids) - 1 of a document; those from `scored` on are scored here and nowhere else."""

    ids: list[int]
    start: int
    scored: int

    @property
    def labels(self) -> list[int]:
        """One a token, for a trainer that shifts them: -100 for the tokens that are not scored."""
        return [IGNORED] * self.scored + self.ids[self.scored :]


def windows(ids: list[int], context: int, overlap: int = 1) -> Iterator[Window]:
    """At most `context` tokens each; the first `overlap` tokens of a window are the last ones of the window before.

    They are there to be seen, and not scored again. Every token but the first is scored once. Nothing comes before the
    first: where the tokenizer sets a beginning-of-text token (see `token_ids`) it is that one, so that all tokens of
    the text are scored; without one, the text's first token is not.

    Args: overlap: from 1, which costs least, to context - 1, where each token sees as many before it as can be.
    Raises: BadInput.

    >>> for window in windows([10, 11, 12, 13, 14], context=3): print(window.ids, window.start, window.labels)
    [10, 11, 12] 0 [-100, 11, 12]
    [12, 13, 14] 2 [-100, 13, 14]
    """
    if context < 2:
        raise BadInput(f"the context is {context} tokens, but a token is predicted from at least one: write 2 or more")
    if not 1 <= overlap < context:
        raise BadInput(f"the overlap is {overlap} tokens; with a context of {context} write 1 to {context - 1}")
    for start in range(0, max(len(ids) - overlap, int(len(ids) > 1)), context - overlap):
        yield Window(ids[start : start + context], start, overlap if start else 1)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens, after the beginning-of-text token where the tokenizer sets one by itself; none at the end."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [tokenizer.bos_token_id, *ids] if begins(tokenizer) else ids


def begins(tokenizer: Any) -> bool:
    """Whether the tokenizer sets a beginning-of-text token before each text."""
    first: list[int] = tokenizer("", verbose=False)["input_ids"][:1]
    return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
