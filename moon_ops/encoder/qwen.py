"""The Qwen3-VL family: configuration, picture tokens with their deepstack parts, hidden states with rotary positions in three axes.

Qwen3.5 and Qwen4-Exp are newer, but three of four layers are gated delta rules over a causal convolution: they read from left to right
whatever ``is_causal`` says, and transformers gives them no mask to change it. Qwen3-VL has softmax attention in every layer.

The functions are those of :mod:`moon_ops.encoder.smolvlm`, and :func:`token_widths`. The vision tower is called block by block, with
pictures as the batch: transformers' own forward packs them into one sequence and splits it by data, which no exporter follows.
B samples, N pictures, L tokens, T tokens per picture, D dimensions, K deepstack parts, S pixels, g patches a side, P = g² patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionBlock, apply_rotary_pos_emb_vision

from moon_ops.encoder.tokenizer import PAD
from moon_ops.errors import InputError
from moon_ops.recipes.encoder import EncoderRecipe

MARKS = (("<|vision_start|>",), "<|image_pad|>", ("<|vision_end|>",))  # before a picture's slots, a slot, after them
SPECIAL = (*MARKS[0], MARKS[1], *MARKS[2])
PATCH, MERGE = 16, 2  # of every checkpoint of the family


def from_nothing(recipe: EncoderRecipe, tokenizer: Tokenizer) -> PreTrainedModel:
    """A model with random weights; position embeddings are for the recipe's picture size."""
    pad, start, image, end = (int(tokenizer.token_to_id(token) or 0) for token in (PAD, *SPECIAL))
    config: Any = Qwen3VLConfig(
        text_config=_text(recipe, tokenizer.get_vocab_size(), pad),
        vision_config=_vision(recipe),
        image_token_id=image,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return _with_own_blocks(Qwen3VLModel(config))


def _text(recipe: EncoderRecipe, vocabulary: int, pad: int) -> dict[str, Any]:
    head = int(recipe.text["hidden_size"]) // int(recipe.text["num_attention_heads"])
    spatial = head // 2 * 20 // 64  # of the rotary frequencies, as many for rows and columns as Qwen3-VL's own 24 : 20 : 20
    return {
        **recipe.text,
        "head_dim": head,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [head // 2 - 2 * spatial, spatial, spatial]},
        "pad_token_id": pad,
        "is_causal": False,
    }


def _vision(recipe: EncoderRecipe) -> dict[str, Any]:
    """The recipe's tower. Deepstack reads it after a quarter, half and three quarters of its layers (Qwen3-VL-2B: 5, 11, 17 of 24)."""
    given: dict[str, Any] = {"patch_size": PATCH, **recipe.vision}
    depth, heads = int(given.pop("num_hidden_layers")), int(given.pop("num_attention_heads"))
    read = sorted({max(depth * quarter // 4 - 1, 0) for quarter in (1, 2, 3)})
    return {
        **given,
        "depth": depth,
        "num_heads": heads,
        "spatial_merge_size": recipe.scale_factor,
        "out_hidden_size": int(recipe.text["hidden_size"]),
        "num_position_embeddings": (recipe.inputs.picture_size // given["patch_size"]) ** 2,
        "deepstack_visual_indexes": read[: int(recipe.text["num_hidden_layers"])],  # each part has a text layer to go to
    }


def from_checkpoint(recipe: EncoderRecipe, where: dict[str, Any]) -> PreTrainedModel:
    """The checkpoint's weights with bidirectional attention; its position embeddings are interpolated to any picture size that fits."""
    config: Any = Qwen3VLConfig.from_pretrained(recipe.checkpoint, **where)
    _grid(config, recipe.inputs.picture_size)
    config.text_config.is_causal = False
    return _with_own_blocks(Qwen3VLModel.from_pretrained(recipe.checkpoint, config=config, dtype=torch.float32, **where))


def load(directory: Path) -> PreTrainedModel:
    """The model that ``save_pretrained`` wrote."""
    return _with_own_blocks(Qwen3VLModel.from_pretrained(directory, dtype=torch.float32))


def trunk(model: Any) -> Any:
    """The language model: layers, token embeddings, and the configuration that says whether attention is causal."""
    return model.language_model


def tower(model: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Modules of the picture tower: embeddings, blocks, what comes after them, and what makes its states tokens of the text."""
    visual = model.visual
    return [visual.patch_embed, visual.pos_embed], list(visual.blocks), [], [visual.merger, *visual.deepstack_merger_list]


def blocks(model: Any) -> list[Any]:
    """Blocks of the picture tower, which are run one after another."""
    return list(model.visual.blocks)


def token_widths(model: Any) -> int:
    """1 + K: how many vectors of D a picture token holds, its embedding and what is added after each of the first K text layers."""
    return 1 + len(model.config.vision_config.deepstack_visual_indexes)


def tokens_per_picture(model: PreTrainedModel, picture_size: int) -> int:
    """T; :class:`InputError` for a picture size that is no whole number of merged patches."""
    config: Any = model.config
    return (_grid(config, picture_size) // config.vision_config.spatial_merge_size) ** 2


def _grid(config: Any, size: int) -> int:
    """The patches on each side, g."""
    patch, merge = config.vision_config.patch_size, config.vision_config.spatial_merge_size
    if size < patch * merge or size % (patch * merge):
        raise InputError(
            f"a picture of {size} px cannot be cut into {patch} px patches that are merged {merge} by {merge}",
            action=f"set inputs.picture_size to a multiple of {patch * merge}",
        )
    return size // patch


class PictureBlock(Qwen3VLVisionBlock):
    """transformers' block, which takes pictures as the batch, too: whoever shards or recomputes blocks asks that each is called whole."""

    def forward(self, hidden_states: Tensor, *given: Any, cos: Tensor | None = None, sin: Tensor | None = None, **more: Any) -> Tensor:
        """[N, P, C] → the same shape, with the rotation of each place; without one as transformers calls it."""
        if cos is None or sin is None:
            return super().forward(hidden_states, *given, **more)
        hidden = hidden_states + _attend(self.attn, self.norm1(hidden_states), cos, sin)
        return hidden + self.mlp(self.norm2(hidden))


def _with_own_blocks(model: Any) -> Any:
    for block in model.visual.blocks:
        block.__class__ = PictureBlock  # its weights, their names and its settings stay
    return model


def picture_tokens(model: Any, values: Tensor) -> Tensor:
    """Tokens [N, T, (1 + K) D] of values in [-1, 1] [N, 3, S, S]: the merged patches, and those of K layers on the way."""
    visual = model.visual
    hidden, cos, sin = _patches(visual, values, _grid(model.config, values.shape[-1]))
    parts = []
    for number, block in enumerate(visual.blocks):
        hidden = block(hidden, cos=cos, sin=sin)
        if number in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
            parts.append(_merge(merger, hidden))
    return torch.cat([_merge(visual.merger, hidden), *parts], dim=-1)


def _patches(visual: Any, values: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embedded patches [N, P, C] with their learned positions, and the rotation [P, 1, C / heads] of each place, as cosine and sine.

    A still picture is a film of one frame shown twice, so the slices of the kernel over time add up. Places depend on S alone.
    """
    merge, kernel = visual.spatial_merge_size, visual.patch_embed.proj
    embedded = F.conv2d(values, kernel.weight.sum(2), kernel.bias, stride=visual.patch_size)  # [N, C, g, g]
    learned = visual.pos_embed.weight.T.reshape(1, -1, visual.num_grid_per_side, visual.num_grid_per_side)
    if side != visual.num_grid_per_side:
        learned = F.interpolate(learned, size=(side, side), mode="bilinear", align_corners=True)
    hidden = _neighbours(embedded + learned, merge).transpose(1, 2).contiguous()
    rows = torch.arange(side, device=values.device)[:, None].expand(side, side)
    cos, sin = visual.rotary_pos_emb(hidden, _neighbours(torch.stack([rows, rows.T]), merge).T)
    return hidden, cos, sin


def _neighbours(grid: Tensor, merge: int) -> Tensor:
    """[…, g, g] → […, P], so that the ``merge``² patches that become one token follow one another."""
    side = grid.shape[-1] // merge
    return grid.unflatten(-2, (side, merge)).unflatten(-1, (side, merge)).transpose(-3, -2).flatten(-4)


def _attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Attention [N, P, C] among the patches of each picture."""
    query, key, value = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)  # [N, P, heads, C / heads] each
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return attention.proj(mixed.transpose(1, 2).flatten(2))


def _merge(merger: Any, hidden: Tensor) -> Tensor:
    """[N, P, C] → [N, T, D]; the merger itself takes all patches in one row."""
    return merger(hidden.flatten(0, 1)).unflatten(0, (hidden.shape[0], -1))


def hidden(model: Any, embeds: Tensor, filled: Tensor, is_image: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states [B, L, D]: ``embeds`` with picture tokens ``filled`` [B, L, (1 + K) D] where ``is_image``."""
    first, *parts = filled.split(embeds.shape[-1], dim=-1)
    merged = torch.where(is_image[..., None], first, embeds)
    deep = [torch.where(is_image[..., None], part, torch.zeros_like(part)) for part in parts]
    everywhere = torch.arange(
        embeds.shape[0], device=embeds.device
    )  # the trunk adds by index: zeros everywhere else export, a mask does not
    states = model.language_model(
        inputs_embeds=merged,
        attention_mask=attention_mask,
        position_ids=positions(is_image),
        visual_pos_masks=everywhere,
        deepstack_visual_embeds=deep or None,
        use_cache=False,
    )
    return states.last_hidden_state


def positions(is_image: Tensor) -> Tensor:
    """Positions [3, B, L] in time, rows and columns: what transformers' ``get_rope_index`` finds for square pictures of one size.

    A token of text is one step in all three. A picture is one step in time and √T in rows and columns, and the text after it goes on
    where its last row ends. Pictures are told apart by the marks around them.
    """
    slots = is_image.long()
    starts = slots - slots * F.pad(slots, (1, 0))[:, :-1]  # [B, L]: 1 at each picture's first slot
    per_picture = slots.sum(1, keepdim=True) // starts.sum(1, keepdim=True).clamp(min=1)
    side = per_picture.float().sqrt().round().long().clamp(min=1)  # [B, 1]
    before = slots.cumsum(1) - slots  # slots to the left
    place = before % (side * side)
    index = torch.arange(is_image.shape[1], device=is_image.device)
    base = index - before + before // (side * side) * side
    return torch.stack([base, base + slots * (place // side), base + slots * (place % side)])


def picture_processor(size: int, config: Any = None) -> Qwen2VLImageProcessorPil:
    """Transformers' processor, for pictures that :func:`moon_ops.inputs.images.pixels` has made ``size`` pixels square: it keeps them so.

    ``config`` is the model's, for one whose patches are not those of the published checkpoints.
    """
    vision = config.vision_config if config is not None else None
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": size * size, "longest_edge": size * size},  # numbers of pixels, in spite of their names
        resample=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        patch_size=vision.patch_size if vision else PATCH,
        merge_size=vision.spatial_merge_size if vision else MERGE,
    )
