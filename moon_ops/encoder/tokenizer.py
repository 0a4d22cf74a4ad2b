"""The catalogue's own tokenizer: byte-level BPE trained on its titles, categories and queries, with SmolVLM's special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, IMAGE, AROUND, GLOBAL, END = "<pad>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
SPECIAL = (PAD, IMAGE, AROUND, GLOBAL, END)


def train(texts: Iterable[str], vocabulary: int, special: Sequence[str] = ()) -> Tokenizer:
    """Train on ``texts``; the result has at most ``vocabulary`` tokens and is the same for the same texts in the same order.

    ``special`` are a family's own marks, beside SmolVLM's.

    Text is lower-cased and Unicode-normalised (NFKC): sellers shout, shoppers do not.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[*SPECIAL, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer in the form that transformers saves and loads."""
    named = {"image_token": IMAGE, "fake_image_token": AROUND, "global_image_token": GLOBAL}
    known = {name: token for name, token in named.items() if tokenizer.token_to_id(token) is not None}
    ends = {name: token for name, token in (("pad_token", PAD), ("eos_token", END)) if tokenizer.token_to_id(token) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=known, **ends)


def separator_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that end a segment of an item's text (see :func:`moon_ops.inputs.contract.item_sample`)."""
    return sorted(number for token, number in tokenizer.get_vocab().items() if token.endswith("|") and token.strip("\u0120|") == "")
