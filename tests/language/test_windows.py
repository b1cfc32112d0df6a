"""Windows of a document's tokens: each token scored once, with all the context that was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kullback._errors import BadInput
from kullback.language.windows import token_ids, windows


@given(st.integers(0, 50), st.integers(2, 12), st.data())
def test_every_token_but_the_first_is_scored_once_in_order(length, context, data):
    overlap = data.draw(st.integers(1, context - 1))
    ids = [100 + i for i in range(length)]
    scored = []
    for window in windows(ids, context, overlap):
        assert window.ids == ids[window.start : window.start + len(window.ids)]
        assert 2 <= len(window.ids) <= context
        assert window.scored >= 1
        assert window.labels == [-100] * window.scored + window.ids[window.scored :]
        assert window.labels[-1] != -100
        scored += [window.start + i for i in range(window.scored, len(window.ids))]
        seen = window.scored if window.start else None
        assert seen in (None, overlap)
    assert scored == list(range(1, length))


def test_bad_contexts_and_overlaps_are_refused():
    with pytest.raises(BadInput, match="the context is 1 tokens"):
        list(windows([1, 2], 1))
    for overlap in (0, 4):
        with pytest.raises(BadInput, match="write 1 to 3"):
            list(windows([1, 2], 4, overlap))


class Tokenizer:
    """Characters, after 1 where it begins; closed by 2 where it ends."""

    def __init__(self, begins=False, ends=False, bos=1):
        self.begins, self.ends, self.bos_token_id = begins, ends, bos

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = [ord(c) for c in text]
        if add_special_tokens:
            ids = [1] * self.begins + ids + [2] * self.ends
        return {"input_ids": ids}


@pytest.mark.parametrize(
    ("tokenizer", "ids"),
    [
        (Tokenizer(), [97, 98]),
        (Tokenizer(begins=True), [1, 97, 98]),
        (Tokenizer(begins=True, ends=True), [1, 97, 98]),
        (Tokenizer(ends=True, bos=1), [97, 98]),
        (Tokenizer(bos=None), [97, 98]),
    ],
)
def test_a_text_begins_as_the_tokenizer_begins_it_and_ends_with_its_last_token(tokenizer, ids):
    assert token_ids(tokenizer, "ab") == ids
