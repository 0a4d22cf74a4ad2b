"""A multimodal language model as an embedding model: one tower for text, a picture, both, or several pictures.

Two things make a language model an encoder (MOON, section on representation): attention is bidirectional, which is configuration
(``is_causal = False``, saved with the checkpoint), and the last hidden states of all text and picture tokens are mean-pooled. Training
and the exported graphs run the same two functions, so parity is a matter of arithmetic only. What differs between families of models
is in the family's own file (:mod:`moon_ops.encoder.smolvlm`, :mod:`moon_ops.encoder.qwen`).

B samples, N pictures, L tokens, T tokens per picture, D dimensions. This module knows nothing of losses, items or the lake.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from moon_ops.encoder import adapters, qwen, smolvlm
from moon_ops.encoder.experts import GuidedExperts
from moon_ops.encoder.norms import spans
from moon_ops.encoder.samples import some_at_a_time
from moon_ops.encoder.tokenizer import PAD, as_pretrained, separator_ids, train
from moon_ops.errors import ContractError, InputError
from moon_ops.files import required
from moon_ops.inputs.contract import Layout
from moon_ops.recipes.encoder import EncoderRecipe, Experts

FAMILIES: dict[str, ModuleType] = {"smolvlm": smolvlm, "qwen3_vl": qwen}


class Encoder(nn.Module):
    """The embedding model: :meth:`picture_tokens` and :meth:`embed` are its whole seam, and what is exported."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, layout: Layout, family: str = "smolvlm", experts: Experts | None = None
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.family = family
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "<image>" in a seller's title is text: it must not claim a picture's place
        self.layout = layout
        self.experts = GuidedExperts(self.trunk, experts, separator_ids(tokenizer)) if experts else None

    @property
    def parts(self) -> ModuleType:
        """The family's functions."""
        return FAMILIES[self.family]

    @property
    def config(self) -> Any:
        """The model's configuration; transformers types its parts as anything from a dict to None."""
        return self.model.config

    @property
    def trunk(self) -> Any:
        """The language model inside."""
        return self.parts.trunk(self.model)

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts of picture tower and trunk that are run one after another, and hold most of the weights."""
        return [*self.parts.blocks(self.model), *self.trunk.layers]

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return int(self.config.text_config.hidden_size)

    def layout_at(self, picture_size: int) -> Layout:
        """The layout with pictures of another size, which are other numbers of tokens."""
        return replace(self.layout, picture_size=picture_size, tokens_per_picture=self.parts.tokens_per_picture(self.model, picture_size))

    def picture_tokens(self, pixels: Tensor) -> Tensor:
        """Picture tokens [N, T, W] of pixels [N, 3, S, S] in 0..255; W is D, and more where the family feeds several layers."""
        return self.parts.picture_tokens(self.model, pixels.to(self.model.dtype) / 127.5 - 1.0)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor) -> Tensor:
        """Last hidden states [B, L, D] of ``input_ids``, ``attention_mask`` [B, L]; the k-th image slot takes the k-th row of [N, T, W]."""
        embeds = self.trunk.get_input_embeddings()(input_ids)  # [B, L, D]
        is_image = input_ids == self.layout.image_token_id
        slot = (is_image.flatten().cumsum(0) - 1).clamp(min=0).reshape(input_ids.shape)
        filled = image_tokens.reshape(-1, image_tokens.shape[-1])[slot].to(embeds.dtype)
        if self.experts is not None:
            self.experts.read(input_ids)
        return self.parts.hidden(self.model, embeds, filled, is_image, attention_mask)

    def embed(self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor) -> Tensor:
        """Unit vectors [B, D]: the mean of the last hidden states of all tokens, normalised."""
        hidden = self.hidden(input_ids, attention_mask, image_tokens)
        weight = attention_mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> Tensor:
        """Unit vectors [B, D]; ``pixels`` [N, 3, H, W] holds the pictures of all samples in order (N may be 0)."""
        return self.embed(input_ids, attention_mask, self.tokens_or_none(pixels))

    def tokens_or_none(self, pixels: Tensor, *, always: bool = False) -> Tensor:
        """:meth:`picture_tokens`, or one row of zeros that no slot will take where there is no picture; ``always``: that has gone through
        all that a picture goes through, because other processes wait for it there.
        """
        if pixels.shape[0]:
            return self.picture_tokens(pixels)
        width = self.dim * getattr(self.parts, "token_widths", lambda _: 1)(self.model)
        zeros = torch.zeros((1, self.layout.tokens_per_picture, width), dtype=self.model.dtype, device=pixels.device)
        if always and not spans(self.model):
            return zeros + self.picture_tokens(pixels.new_zeros((1, *pixels.shape[1:]))).sum() * 0.0
        if not spans(self.model):
            return zeros
        nothing = self.model.vision_model(pixels.to(self.model.dtype))  # the norms of other processes wait for it, there and back
        return zeros + nothing.sum()

    def next_token_logits(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> Tensor:
        """Logits [B, L, V] of the token after each, with causal attention; the head is the token embeddings (stage 1)."""
        config = self.trunk.config
        config.is_causal = True
        try:
            hidden = self.hidden(input_ids, attention_mask, self.tokens_or_none(pixels))
        finally:
            config.is_causal = False
        return hidden @ self.trunk.get_input_embeddings().weight.T

    def parameter_count(self) -> int:
        """How many numbers the saved encoder has."""
        return adapters.own_count(self)

    def trained_count(self) -> int:
        """How many numbers are trained: fewer where blocks are frozen or adapters stand beside the weights."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def save(self, directory: Path) -> None:
        """Write a transformers checkpoint (safetensors, tokenizer, picture processor), adapters merged in, and the layout beside it."""
        directory.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(directory, state_dict=adapters.merged(self.model))
        as_pretrained(self.tokenizer).save_pretrained(directory)
        self.parts.picture_processor(self.layout.picture_size, self.config).save_pretrained(directory)
        if self.experts is not None:
            self.experts.save(directory)
        about = {"family": self.family, "experts": asdict(self.experts.recipe) if self.experts else None, **asdict(self.layout)}
        (directory / "layout.json").write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Encoder:
        """The encoder that :meth:`save` wrote; :class:`ContractError` if weights or tokenizer are not those its contract names."""
        if not (directory / "layout.json").is_file():
            raise InputError(
                f"{directory} holds no layout.json: it is not a saved encoder", action="name a directory that `moon train` wrote"
            )
        about = required(directory / "layout.json", "train the encoder again with `moon train`")
        family, experts = about.pop("family"), about.pop("experts")
        _same_contract(directory)
        model = FAMILIES[family].load(directory)
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        encoder = cls(model, tokenizer, Layout.read(about), family, Experts(**experts) if experts else None)
        if encoder.experts is not None:
            encoder.experts.load(directory)
        return encoder


def _same_contract(directory: Path) -> None:
    """Where the directory holds a contract, weights and tokenizer must be those it was made of."""
    from moon_ops.inputs.contract import Contract, file_sha256

    if not (directory / "contract.json").is_file():
        return
    contract = Contract.load(directory)
    for what, file, named in (("weights", "model.safetensors", contract.weights), ("tokenizer", "tokenizer.json", contract.tokenizer)):
        found = file_sha256(directory / file) if (directory / file).is_file() else "nothing"
        if found != named:
            raise ContractError(
                f"{directory / file} has sha256 {found[:12]}…, but {contract.contract_id} was made of {what} {named[:12]}…: "
                "its vectors would not be comparable with those in use",
                action="bring back the file as it was, or train the encoder again",
            )


def build(recipe: EncoderRecipe, texts: Iterable[str], seed: int) -> Encoder:
    """A new encoder: from the recipe's checkpoint, or with random weights and a tokenizer trained on ``texts``, which may be gone through
    twice.
    """
    transformers_logging.disable_progress_bar()
    torch.manual_seed(seed)
    parts = FAMILIES[recipe.family]
    if recipe.checkpoint:
        model, tokenizer = _from_checkpoint(recipe, parts)
    else:
        tokenizer = train(texts, recipe.vocabulary, special=getattr(parts, "SPECIAL", ()))
        model = parts.from_nothing(recipe, tokenizer)
    encoder = Encoder(model, tokenizer, _layout(recipe, parts, model, tokenizer), recipe.family, recipe.experts)
    if encoder.experts is not None and encoder.experts.recipe.queries:
        some = some_at_a_time(texts)
        encoder.experts.lean(found.ids for few in some for found in tokenizer.encode_batch(few, add_special_tokens=False))
    if recipe.lora or recipe.frozen:
        adapters.restrain(encoder, recipe)
    return encoder


def _from_checkpoint(recipe: EncoderRecipe, parts: ModuleType) -> tuple[PreTrainedModel, Tokenizer]:
    """The checkpoint's own weights and tokenizer, with bidirectional attention and the recipe's picture size."""
    where: dict[str, Any] = {"revision": recipe.revision} if recipe.revision else {}
    try:
        pretrained = PreTrainedTokenizerFast.from_pretrained(recipe.checkpoint, **where)
        return parts.from_checkpoint(recipe, where), pretrained.backend_tokenizer
    except (OSError, ValueError) as missing:  # without a network the tokenizer is said not to be buildable
        raise InputError(
            f"checkpoint = {recipe.checkpoint!r} could not be loaded ({str(missing).splitlines()[0]})",
            action="name a directory with a checkpoint of the family, or run where the hub can be reached",
        ) from missing


def _layout(recipe: EncoderRecipe, parts: ModuleType, model: Any, tokenizer: Tokenizer) -> Layout:
    before, image, after = parts.MARKS
    absent = [token for token in (*before, image, *after) if tokenizer.token_to_id(token) is None]
    if absent:
        raise InputError(
            f"the tokenizer has no token {absent[0]}, so pictures have no place", action=f"use a tokenizer of family {recipe.family}"
        )
    pads = [tokenizer.token_to_id(token) for token in (PAD, "<|endoftext|>")]
    pad = next((number for number in pads if number is not None), getattr(model.config.text_config, "pad_token_id", 0))
    return Layout(
        picture_size=recipe.inputs.picture_size,
        tokens_per_picture=parts.tokens_per_picture(model, recipe.inputs.picture_size),
        max_pictures=recipe.inputs.max_pictures,
        max_text_tokens=recipe.inputs.max_text_tokens,
        image_token_id=int(tokenizer.token_to_id(image) or 0),
        before=tuple(int(tokenizer.token_to_id(t) or 0) for t in before),
        after=tuple(int(tokenizer.token_to_id(t) or 0) for t in after),
        pad_token_id=int(pad or 0),
        core_region=recipe.inputs.core_region,
    )
