"""Tokens as text to look at, one by one."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how SentencePiece writes one


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token's own text: leading spaces and line ends kept, bytes that are no UTF-8 by themselves as ⟨E2⟩⟨80⟩.

    For byte-level and SentencePiece tokenizers; of any other the token as its vocabulary writes it.
    """
    return [_text(token, byte_level(tokenizer)) for token in tokenizer.convert_ids_to_tokens(list(ids))]


def byte_level(tokenizer: Any) -> bool:
    """Whether tokens are written in the alphabet in which each character stands for a byte, as in GPT-2."""
    return tokenizer.convert_tokens_to_ids("Ġ") not in (None, tokenizer.unk_token_id)


def _text(token: str, of_bytes: bool) -> str:
    if match := _BYTE.fullmatch(token):
        return _shown([int(match[1], 16)])
    if of_bytes:
        return _shown(_BYTES[c] for c in token) if all(c in _BYTES for c in token) else token
    return token.replace("▁", " ")


def _shown(values: Iterable[int]) -> str:
    text = bytes(values).decode("utf-8", "surrogateescape")
    return "".join(f"⟨{ord(c) - 0xDC00:02X}⟩" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def _alphabet() -> dict[str, int]:
    """The printable characters of Latin-1 stand for themselves, the other bytes for those from U+0100 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTES = _alphabet()
