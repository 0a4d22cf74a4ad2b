"""The SmolVLM family (Idefics3 architecture) and its trunk under another picture tower: configuration, tokens, hidden states.

A family is a module with these functions, nothing more; :mod:`moon_ops.encoder.model` holds what families share.
B samples, N pictures, L tokens, T tokens per picture, D dimensions, S pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, SmolVLMConfig, SmolVLMImageProcessorPil, SmolVLMModel

from moon_ops.encoder.tokenizer import AROUND, GLOBAL, IMAGE, PAD
from moon_ops.encoder.towers import TowerConfig, TowerModel
from moon_ops.errors import InputError
from moon_ops.recipes.encoder import EncoderRecipe

MARKS = ((AROUND, GLOBAL), IMAGE, (AROUND,))  # before a picture's slots, a slot, after them: SmolVLM's own for a picture that is not split


def from_nothing(recipe: EncoderRecipe, tokenizer: Tokenizer) -> PreTrainedModel:
    """A model with random weights; of the tower efficientnet-lite0 the ImageNet weights."""
    pad, image = (int(tokenizer.token_to_id(token) or 0) for token in (PAD, IMAGE))
    text = {
        "model_type": "llama",
        **recipe.text,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 2048,
        "pad_token_id": pad,
        "is_causal": False,
    }
    if recipe.tower != "vit":
        vision: dict[str, Any] = recipe.vision
        text.pop("model_type")
        try:
            model = TowerModel(TowerConfig(text, recipe.tower, scale_factor=recipe.scale_factor, image_token_id=image, **vision))
            if recipe.tower == "efficientnet-lite0":
                model.vision_model.warm()  # type: ignore[operator]  # a LiteTower
        except ImportError as absent:
            raise InputError(f"tower = {recipe.tower!r}: {absent}", action="install the extra 'warm', or choose the tower conv") from absent
        return model
    config: Any = SmolVLMConfig(  # type: ignore[call-arg]
        vision_config={**recipe.vision, "image_size": recipe.inputs.picture_size},
        text_config=text,
        scale_factor=recipe.scale_factor,
        image_token_id=image,
        pad_token_id=pad,
    )
    return SmolVLMModel(config)


def from_checkpoint(recipe: EncoderRecipe, where: dict[str, Any]) -> PreTrainedModel:
    """The checkpoint's weights with bidirectional attention; its position embeddings fix the picture size."""
    config: Any = SmolVLMConfig.from_pretrained(recipe.checkpoint, **where)
    trained = config.vision_config.image_size
    if trained != recipe.inputs.picture_size:
        raise InputError(
            f"inputs.picture_size = {recipe.inputs.picture_size}, but the checkpoint's position embeddings are for {trained}",
            action=f"set picture_size = {trained} in the recipe",
        )
    config.text_config.is_causal = False
    return SmolVLMModel.from_pretrained(recipe.checkpoint, config=config, dtype=torch.float32, **where)


def load(directory: Path) -> PreTrainedModel:
    """The model that ``save_pretrained`` wrote."""
    towered = TowerConfig.from_pretrained(directory).model_type == "moon_tower" if _is_tower(directory) else False
    return (TowerModel if towered else SmolVLMModel).from_pretrained(directory, dtype=torch.float32)


def _is_tower(directory: Path) -> bool:
    return '"moon_tower"' in (directory / "config.json").read_text()


def tokens_per_picture(model: PreTrainedModel, picture_size: int) -> int:
    """T."""
    config: Any = model.config
    if isinstance(model, TowerModel):
        stride = 32 if config.tower == "efficientnet-lite0" else 2 ** len(config.channels)
        return (picture_size // stride // config.scale_factor) ** 2
    return (picture_size // config.vision_config.patch_size) ** 2 // config.scale_factor**2


def picture_tokens(model: Any, values: Tensor) -> Tensor:
    """Tokens [N, T, D] of values in [-1, 1] [N, 3, S, S]: tower, pixel shuffle, projection."""
    if isinstance(model, TowerModel):
        return model.picture_tokens(values)
    side = values.shape[-1] // model.config.vision_config.patch_size
    whole = torch.ones((values.shape[0], side, side), dtype=torch.bool, device=values.device)  # pictures are never padded
    hidden = model.vision_model(pixel_values=values, patch_attention_mask=whole).last_hidden_state
    return model.connector(hidden)


def hidden(model: Any, embeds: Tensor, filled: Tensor, is_image: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states [B, L, D]: token embeddings ``embeds`` with picture tokens ``filled`` [B, L, D] where ``is_image``."""
    merged = torch.where(is_image[..., None], filled, embeds)
    return model.text_model(inputs_embeds=merged, attention_mask=attention_mask, use_cache=False).last_hidden_state


def trunk(model: Any) -> Any:
    """The language model: layers, token embeddings, and the configuration that says whether attention is causal."""
    return model.text_model


def tower(model: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Modules of the vision transformer: embeddings, blocks, what comes after them, and what makes its states tokens of the text."""
    vision = model.vision_model
    return [vision.embeddings], list(vision.encoder.layers), [vision.post_layernorm], [model.connector]


def blocks(model: Any) -> list[Any]:
    """Blocks of the picture tower that are run one after another; a tower of convolutions is one."""
    return [model.vision_model] if isinstance(model, TowerModel) else list(model.vision_model.encoder.layers)


def picture_processor(size: int, config: Any = None) -> SmolVLMImageProcessorPil:  # noqa: ARG001 - other families need it
    """Transformers' processor for whole pictures: it makes the pixels that :func:`moon_ops.inputs.images.pixels` makes."""
    square = {"height": size, "width": size}
    return SmolVLMImageProcessorPil(do_image_splitting=False, size=square, max_image_size={"longest_edge": size}, resample=2, do_pad=True)
