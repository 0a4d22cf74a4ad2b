"""A multimodal language model as an embedding model: one tower for text, a picture, both, or several pictures.

The model is transformers' own SmolVLM (Idefics3 architecture): vision tower, pixel shuffle and projector, Llama trunk. Two things
make it an encoder (MOON, section on representation): attention is bidirectional, which is configuration
(``text_config.is_causal = False``, saved with the checkpoint), and the last hidden states of all text and picture tokens are
mean-pooled. Training and the exported graphs run the same two functions, so parity is a matter of arithmetic only.

B samples, N pictures, L tokens, T tokens per picture, D dimensions. This module knows nothing of losses, items or the lake.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMImageProcessorPil, SmolVLMModel
from transformers.utils import logging as transformers_logging

from moon_ops.encoder.tokenizer import AROUND, GLOBAL, IMAGE, PAD, as_pretrained
from moon_ops.errors import InputError
from moon_ops.lake.contract import Layout
from moon_ops.settings import EncoderRecipe


class Encoder(nn.Module):
    """The embedding model: :meth:`picture_tokens` and :meth:`embed` are its whole seam, and what is exported."""

    def __init__(self, model: SmolVLMModel, tokenizer: Tokenizer, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "<image>" in a seller's title is text: it must not claim a picture's place
        self.layout = layout

    @property
    def config(self) -> Any:
        """The model's configuration; transformers types its parts as anything from a dict to None."""
        return self.model.config

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return int(self.config.text_config.hidden_size)

    def picture_tokens(self, pixels: Tensor) -> Tensor:
        """Picture tokens [N, T, D] of uint8 pixels [N, 3, H, W]: rescaled to [-1, 1], vision tower, pixel shuffle, projector."""
        values = pixels.to(self.model.dtype) / 127.5 - 1.0
        side = self.layout.picture_size // self.config.vision_config.patch_size
        whole = torch.ones((pixels.shape[0], side, side), dtype=torch.bool, device=pixels.device)  # pictures are never padded
        hidden = self.model.vision_model(pixel_values=values, patch_attention_mask=whole).last_hidden_state
        return self.model.connector(hidden)

    def embed(self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor) -> Tensor:
        """Unit vectors [B, D] of ``input_ids`` and ``attention_mask`` [B, L]; the k-th image slot takes the k-th row of [N, T, D]."""
        embeds = self.model.text_model.get_input_embeddings()(input_ids)  # [B, L, D]
        is_image = input_ids == self.layout.image_token_id
        slot = (is_image.flatten().cumsum(0) - 1).clamp(min=0).reshape(input_ids.shape)
        filled = image_tokens.reshape(-1, image_tokens.shape[-1])[slot].to(embeds.dtype)
        embeds = torch.where(is_image[..., None], filled, embeds)
        hidden = self.model.text_model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False).last_hidden_state
        weight = attention_mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> Tensor:
        """Unit vectors [B, D]; ``pixels`` [N, 3, H, W] holds the pictures of all samples in order (N may be 0)."""
        if pixels.shape[0]:
            tokens = self.picture_tokens(pixels)
        else:
            tokens = torch.zeros((1, self.layout.tokens_per_picture, self.dim), dtype=self.model.dtype, device=input_ids.device)
        return self.embed(input_ids, attention_mask, tokens)

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters())

    def save(self, directory: Path) -> None:
        """Write a transformers checkpoint (safetensors, tokenizer, picture processor) and the layout beside it."""
        directory.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(directory)
        as_pretrained(self.tokenizer).save_pretrained(directory)
        picture_processor(self.layout.picture_size).save_pretrained(directory)
        (directory / "layout.json").write_text(json.dumps(asdict(self.layout), indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Encoder:
        """The encoder that :meth:`save` wrote."""
        if not (directory / "layout.json").is_file():
            raise InputError(
                f"{directory} holds no layout.json: it is not a saved encoder", action="name a directory that `moon train` wrote"
            )
        layout = Layout(**json.loads((directory / "layout.json").read_text()))
        model = SmolVLMModel.from_pretrained(directory, dtype=torch.float32)
        return cls(model, Tokenizer.from_file(str(directory / "tokenizer.json")), layout)


def build(recipe: EncoderRecipe, texts: Iterable[str], seed: int) -> Encoder:
    """A new encoder: from the recipe's checkpoint, or with random weights and a tokenizer trained on ``texts``."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(seed)
    return _from_checkpoint(recipe) if recipe.checkpoint else _from_nothing(recipe, texts)


def _from_nothing(recipe: EncoderRecipe, texts: Iterable[str]) -> Encoder:
    from moon_ops.encoder.tokenizer import train

    tokenizer = train(texts, recipe.vocabulary)
    special: dict[str, Any] = {name: tokenizer.token_to_id(token) for name, token in (("image", IMAGE), ("pad", PAD))}
    config: Any = SmolVLMConfig(  # type: ignore[call-arg]
        vision_config={**recipe.vision, "image_size": recipe.inputs.picture_size},
        text_config={
            "model_type": "llama",
            **recipe.text,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 2048,
            "pad_token_id": special["pad"],
            "is_causal": False,
        },
        scale_factor=recipe.scale_factor,
        image_token_id=special["image"],
        pad_token_id=special["pad"],
    )
    return Encoder(SmolVLMModel(config), tokenizer, _layout(recipe, config, tokenizer))


def _from_checkpoint(recipe: EncoderRecipe) -> Encoder:
    """The checkpoint's own weights and tokenizer, with bidirectional attention and the recipe's picture size."""
    where: dict[str, Any] = {"revision": recipe.revision} if recipe.revision else {}
    try:
        config: Any = SmolVLMConfig.from_pretrained(recipe.checkpoint, **where)
        config.text_config.is_causal = False
        model = SmolVLMModel.from_pretrained(recipe.checkpoint, config=config, dtype=torch.float32, **where)
        pretrained = PreTrainedTokenizerFast.from_pretrained(recipe.checkpoint, **where)
    except OSError as missing:
        raise InputError(
            f"checkpoint = {recipe.checkpoint!r} could not be loaded ({str(missing).splitlines()[0]})",
            action="name a directory with a SmolVLM checkpoint, or run where the hub can be reached",
        ) from missing
    _same_picture_size(recipe, config)
    tokenizer = pretrained.backend_tokenizer
    return Encoder(model, tokenizer, _layout(recipe, config, tokenizer))


def _same_picture_size(recipe: EncoderRecipe, config: Any) -> None:
    trained = config.vision_config.image_size
    if trained != recipe.inputs.picture_size:
        raise InputError(
            f"inputs.picture_size = {recipe.inputs.picture_size}, but the checkpoint's position embeddings are for {trained}",
            action=f"set picture_size = {trained} in the recipe",
        )


def _layout(recipe: EncoderRecipe, config: Any, tokenizer: Tokenizer) -> Layout:
    ids: dict[str, Any] = {token: tokenizer.token_to_id(token) for token in (IMAGE, AROUND, GLOBAL, PAD)}
    absent = [token for token, at in ids.items() if at is None and token != PAD]
    if absent:
        raise InputError(f"the tokenizer has no token {absent[0]}, so pictures have no place", action="use a SmolVLM tokenizer")
    patches = (recipe.inputs.picture_size // config.vision_config.patch_size) ** 2
    return Layout(
        picture_size=recipe.inputs.picture_size,
        tokens_per_picture=patches // config.scale_factor**2,
        max_pictures=recipe.inputs.max_pictures,
        max_text_tokens=recipe.inputs.max_text_tokens,
        image_token_id=ids[IMAGE],
        around_token_id=ids[AROUND],
        global_token_id=ids[GLOBAL],
        pad_token_id=int(config.text_config.pad_token_id or 0) if ids[PAD] is None else ids[PAD],
    )


def picture_processor(size: int) -> SmolVLMImageProcessorPil:
    """Transformers' processor for whole pictures: it makes the pixels that :func:`moon_ops.lake.images.pixels` makes."""
    square = {"height": size, "width": size}
    return SmolVLMImageProcessorPil(do_image_splitting=False, size=square, max_image_size={"longest_edge": size}, resample=2, do_pad=True)
