"""The catalogue's tokenizer."""

from __future__ import annotations

from moon_ops.encoder.tokenizer import SPECIAL, train

TEXTS = ["Red Cotton Dress", "red leather boots", "RED mug"] * 5


def test_special_tokens_come_first_and_case_does_not_matter() -> None:
    tokenizer = train(TEXTS, 400)
    assert [tokenizer.token_to_id(t) for t in SPECIAL] == list(range(len(SPECIAL)))
    assert tokenizer.encode("RED Dress").ids == tokenizer.encode("red dress").ids


def test_words_of_the_catalogue_are_single_tokens_and_anything_can_be_written() -> None:
    tokenizer = train(TEXTS, 400)
    assert len(tokenizer.encode("red").ids) == 1
    assert tokenizer.decode(tokenizer.encode("日本 zzz 🙂").ids).strip() == "日本 zzz 🙂"


def test_is_the_same_for_the_same_texts() -> None:
    assert train(TEXTS, 400).to_str() == train(TEXTS, 400).to_str()
