"""Tokens in arrays are the lists that they stand for."""

from __future__ import annotations

from typing import Any

import pytest

from moon_ops.encoder import samples as module
from moon_ops.encoder.texts import Tokens, served_tokens, tokens
from moon_ops.inputs.contract import Sample, title_of

LISTS = [[3, 1], [], [70_000], [5, 6, 7], []]


@pytest.mark.parametrize("together", [1, 2, 100])
def test_an_array_of_texts_is_the_lists_it_was_made_of(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", together)
    made = Tokens.of(iter(LISTS))
    assert len(made) == 5
    assert list(made) == LISTS
    assert [made[n] for n in (4, -2, 0)] == [[], [5, 6, 7], [3, 1]]
    assert made[1:4] == LISTS[1:4]
    assert made[3:99] == LISTS[3:]
    for row in (5, -6):
        with pytest.raises(IndexError):
            made[row]
    assert list(Tokens.of([])) == []


def test_a_text_is_what_the_tokenizer_makes_of_it_cut_where_production_cuts_it(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    long = "red cotton dress | blue leather boots " * 9
    samples = [Sample(long), Sample(long, ("a",)), Sample("mug | tea", ("a", "b", "c")), Sample()]
    expected = [encoder.tokenizer.encode(s.text, add_special_tokens=False).ids for s in samples]
    assert list(tokens(encoder, samples)) == expected
    layout = encoder.layout
    room = [layout.max_tokens - min(len(s.image_ids), layout.max_pictures) * len(layout.picture()) for s in samples]
    served = list(served_tokens(encoder, samples))
    assert served == [ids[:most] for ids, most in zip(expected, room, strict=True)]
    assert len(served[0]) > len(served[1]) > len(served[2])
    mug = encoder.tokenizer.encode("mug", add_special_tokens=False).ids
    assert list(served_tokens(encoder, samples, title_of))[2] == mug
