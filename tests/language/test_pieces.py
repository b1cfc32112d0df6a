"""Tokens shown one by one."""

import pytest

pytest.importorskip("transformers")

from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from kullback.language.pieces import _BYTES, pieces
from kullback.language.small import train_tokenizer


def test_the_alphabet_of_bytes_is_that_of_the_tokenizers():
    assert set(_BYTES) == set(ByteLevel.alphabet())
    assert sorted(_BYTES.values()) == list(range(256))
    assert all(bytes([_BYTES[c]]) == c.encode() for c in "azAZ09~!")


def test_bytes_that_are_no_text_of_their_own_are_shown_as_bytes():
    tokenizer = train_tokenizer(["a plain text, and no more than that"], 300)
    ids = tokenizer("a text\n “x” ½")["input_ids"]
    shown = pieces(tokenizer, ids)
    assert shown[0] == "<s>"
    assert "".join(shown[1:]) == "a text\n ⟨E2⟩⟨80⟩⟨9C⟩x⟨E2⟩⟨80⟩⟨9D⟩ ⟨C2⟩⟨BD⟩"


def test_a_sequence_of_bytes_that_is_a_character_is_that_character():
    tokenizer = train_tokenizer(["½ ½ ½ ½ ½"], 300)
    assert pieces(tokenizer, tokenizer("½", add_special_tokens=False)["input_ids"]) == ["½"]


def test_the_tokens_of_sentencepiece_are_read_too():
    words = {"<unk>": 0, "▁the": 1, "<0xE2>": 2, "x": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), unk_token="<unk>"
    )
    assert pieces(tokenizer, [1, 2, 3]) == [" the", "⟨E2⟩", "x"]
