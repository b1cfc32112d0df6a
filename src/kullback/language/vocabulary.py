"""Whether two tokenizers mean the same by the same ids. Two models of one V may number their tokens differently."""

from typing import Any

from kullback._errors import FormError

SAMPLE = "The naïve café: 3.14 ≤ π?\n\tdef f(x):\n        return x[0] # Übung, Ελλάδα, 東京, مرحبا, 🙂\r\n  1234567890"


def same_vocabulary(student: Any, teacher: Any) -> None:
    """An error unless both tokenizers have the same tokens under the same ids, and make the same ids of a text."""
    one, other = (_tokens(whose, x) for whose, x in (("processing_class", student), ("teacher_tokenizer", teacher)))
    advice = (
        "A divergence compares class by class, so the scores of token i must be of the same token on both sides. "
        "Distil between models of one tokenizer."
    )
    if one != other:
        differ = sorted(token for token in one.keys() | other.keys() if one.get(token) != other.get(token))
        first = differ[0]
        raise FormError(
            f"DistillationTrainer: the tokenizers differ in {len(differ)} tokens; {first!r} has id {one.get(first)} in "
            f"the student's and {other.get(first)} in the teacher's. {advice}"
        )
    ids = [_plain(x)(SAMPLE, add_special_tokens=False)["input_ids"] for x in (student, teacher)]
    if ids[0] != ids[1]:
        raise FormError(
            "DistillationTrainer: the tokenizers have the same tokens but split a sample text differently, into "
            f"{len(ids[0])} and {len(ids[1])}. {advice}"
        )


def size_of(tokenizer: Any) -> int:
    """One more than the largest id of a token."""
    return max(_plain(tokenizer).get_vocab().values(), default=-1) + 1


def _plain(tokenizer: Any) -> Any:
    """A processor's tokenizer, or the tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def _tokens(name: str, tokenizer: Any) -> dict[str, int]:
    if not hasattr(_plain(tokenizer), "get_vocab"):
        raise FormError(f"DistillationTrainer: {name} is a {type(tokenizer).__name__}, but a tokenizer is needed.")
    found: dict[str, int] = _plain(tokenizer).get_vocab()
    return found
