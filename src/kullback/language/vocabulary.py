"""Whether two tokenizers mean the same by the same ids. Two models of one V may number their tokens differently."""

from typing import Any

from kullback._errors import FormError

SAMPLE = "The naïve café: 3.14 ≤ π?\n\tdef f(x):\n        return x[0] # Übung, Ελλάδα, 東京, مرحبا, 🙂\r\n  1234567890"


def same_vocabulary(
    one: Any,
    other: Any,
    *,
    names: tuple[str, str] = ("the student", "the teacher"),
    owner: str = "DistillationTrainer",
    advice: str = (
        "A divergence compares class by class, so the scores of token i must be of the same token on both sides. "
        "Distil between models of one tokenizer."
    ),
) -> None:
    """An error unless both tokenizers have the same tokens under the same ids, and make the same ids of a text."""
    owner = f"{owner}: " if owner else ""
    tokens = [_tokens(owner, name, x) for name, x in zip(names, (one, other), strict=True)]
    if tokens[0] != tokens[1]:
        differ = sorted(
            token for token in tokens[0].keys() | tokens[1].keys() if tokens[0].get(token) != tokens[1].get(token)
        )
        first = differ[0]
        where = " and ".join(f"{having.get(first)} in {name}'s" for name, having in zip(names, tokens, strict=True))
        raise FormError(f"{owner}the tokenizers differ in {len(differ)} tokens; {first!r} has id {where}. {advice}")
    ids = [_plain(x)(SAMPLE, add_special_tokens=False)["input_ids"] for x in (one, other)]
    if ids[0] != ids[1]:
        raise FormError(
            f"{owner}the tokenizers have the same tokens but split a sample text differently, into "
            f"{len(ids[0])} and {len(ids[1])}. {advice}"
        )


def size_of(tokenizer: Any) -> int:
    """One more than the largest id of a token."""
    return max(_plain(tokenizer).get_vocab().values(), default=-1) + 1


def _plain(tokenizer: Any) -> Any:
    """A processor's tokenizer, or the tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def _tokens(owner: str, name: str, tokenizer: Any) -> dict[str, int]:
    if not hasattr(_plain(tokenizer), "get_vocab"):
        raise FormError(f"{owner}the tokenizer of {name} is a {type(tokenizer).__name__}, but a tokenizer is needed.")
    found: dict[str, int] = _plain(tokenizer).get_vocab()
    return found
