"""The catalogue's own tokenizer: byte-level BPE trained on its titles, categories and queries, with SmolVLM's special tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, IMAGE, AROUND, GLOBAL, END = "<pad>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
SPECIAL = (PAD, IMAGE, AROUND, GLOBAL, END)


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train on ``texts``; the result has at most ``vocabulary`` tokens and is the same for the same texts in the same order.

    Text is lower-cased and Unicode-normalised (NFKC): sellers shout, shoppers do not.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer in the form that transformers saves and loads."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE, "fake_image_token": AROUND, "global_image_token": GLOBAL},
    )
