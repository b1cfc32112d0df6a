"""What must hold before two models can be compared token by token, and what is to be said of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from kullback._errors import BadInput, FormError
from kullback.language.fingerprints import tokenizer_hash
from kullback.language.vocabulary import same_vocabulary, size_of
from kullback.language.windows import begins

from .sides import Side
from .text import Survey


def check_tokenizers(reference: Side, candidates: Sequence[Side]) -> list[str]:
    """Refuse tokenizers that mean different tokens by the same ids; notes on what else differs. Raises: BadInput."""
    notes = []
    without = [side.name for side in (reference, *candidates) if side.tokenizer is None]
    if without:
        has = "have no tokenizers of their own" if len(without) > 1 else "has no tokenizer of its own"
        notes.append(f"{', '.join(without)} {has}: that ids mean the same tokens was not checked.")
    for side in candidates:
        if side.tokenizer is None or reference.tokenizer is None:
            continue
        if tokenizer_hash(side.tokenizer) == tokenizer_hash(reference.tokenizer):
            continue
        names = (reference.name, side.name)
        try:
            same_vocabulary(reference.tokenizer, side.tokenizer, names=names, owner="", advice=_ADVICE)
        except FormError as error:
            raise BadInput(str(error)) from None
        notes.append(
            f"The tokenizers of {names[0]} and {names[1]} are not written alike, but have the same tokens under the "
            f"same ids and split a sample text alike. The text is split by that of {names[0]}."
        )
        if begins(side.tokenizer) != begins(reference.tokenizer):
            one, other = names if begins(reference.tokenizer) else names[::-1]
            notes.append(
                f"The tokenizer of {one} sets a beginning-of-text token and that of {other} does not; all models read "
                f"what that of {names[0]} makes."
            )
    return notes


_ADVICE = (
    "A divergence compares class by class, so the scores of token i must be of the same token on both sides. Compare "
    "models of one tokenizer"
)


def about_beginning(tokenizer: Any) -> str:
    """How documents begin, in a sentence."""
    if begins(tokenizer):
        return (
            f"Each document begins with {tokenizer.bos_token!r} (id {tokenizer.bos_token_id}), as its tokenizer sets "
            "it; that token is not scored."
        )
    return "The tokenizer sets no beginning-of-text token, so the first token of each document is not scored."


def classes(sizes: Mapping[str, int], tokenizer: Any, declared: int | None, survey: Survey) -> tuple[int, list[str]]:
    """(how many classes are compared, notes): rows of a head behind the tokenizer's ids are padding and left out.

    Args: sizes: rows of scores, by the side's name.  declared: by the user.
    Raises: BadInput.
    """
    least, notes = min(sizes.values()), []
    known = None if tokenizer is None else size_of(tokenizer)
    scored = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    n = declared if declared is not None else known
    if n is None:
        if len(set(sizes.values())) > 1:
            raise BadInput(
                f"the models score different numbers of classes ({scored}) and there is no tokenizer that says how "
                f"many are tokens; write --num-classes {least} if the others are padding"
            )
        n = least
    if n < 1 or n > least:
        what = f"--num-classes {n}" if declared is not None else f"the tokenizer has {n:,} tokens"
        raise BadInput(
            f"{what}, but the models score fewer classes ({scored}); write --num-classes {least} if the text has no "
            "other tokens"
        )
    if survey.largest >= n:
        raise BadInput(
            f"the text has token {survey.largest}, but {n:,} classes are compared; write --num-classes "
            f"{survey.largest + 1} or more"
        )
    if known is not None and n < known:
        notes.append(f"{known - n:,} tokens of the tokenizer, from id {n} on, are left out, as --num-classes says.")
    padded = {name: size - n for name, size in sizes.items() if size > n}
    if padded:
        rows = ", ".join(f"{count:,} of {name}" for name, count in padded.items())
        why = "as --num-classes says" if declared is not None else "behind the tokenizer's last token"
        notes.append(f"Rows of scores without a token, {why}, are left out: {rows}.")
    return n, notes


def check_context(context: int, sides: Sequence[Side]) -> None:
    """Raises: BadInput: longer than a model can take."""
    for side in sides:
        if side.longest is not None and context > side.longest:
            raise BadInput(
                f"--context {context} is more than {side.name} can take; write --context {side.longest} or less"
            )
