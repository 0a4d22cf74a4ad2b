"""The embedding model: what it pools, what it does not depend on, and that it is saved as transformers saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, SmolVLMConfig, SmolVLMModel

from moon_ops.encoder.model import Encoder, build
from moon_ops.errors import InputError
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.settings import ROOT


def inputs(encoder: Encoder, texts: list[str], pictures: list[int], seed: int = 0) -> tuple[torch.Tensor, ...]:
    ids, mask = encoder.layout.batch([encoder.tokenizer.encode(t, add_special_tokens=False).ids for t in texts], pictures)
    size = encoder.layout.picture_size
    pixels = np.random.default_rng(seed).integers(0, 256, (sum(pictures), 3, size, size), dtype=np.uint8)
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(pixels)


@torch.no_grad()
def test_one_tower_for_text_picture_both_and_several(encoder: Encoder) -> None:
    vectors = encoder(*inputs(encoder, ["red dress", "", "red dress", "red dress"], [0, 1, 1, 2]))
    assert vectors.shape == (4, encoder.dim)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(4), atol=1e-5)
    assert len({tuple(v.tolist()) for v in vectors}) == 4


@torch.no_grad()
def test_padding_and_company_change_nothing(encoder: Encoder) -> None:
    ids, mask, pixels = inputs(encoder, ["red dress", "a very long text about a green ceramic mug for tea"], [1, 2])
    together = encoder(ids, mask, pixels)
    length = int(mask[0].sum())
    alone = encoder(ids[:1, :length], mask[:1, :length], pixels[:1])
    assert torch.allclose(together[0], alone[0], atol=1e-5)


@torch.no_grad()
def test_attention_is_bidirectional(encoder: Encoder) -> None:
    """Under causal attention the first token's state would not know the last token."""
    first, second = (inputs(encoder, [t], [0]) for t in ("red cotton dress", "red cotton boots"))
    states = []
    for ids, mask, _ in (first, second):
        embeds = encoder.model.text_model.get_input_embeddings()(ids)
        states.append(encoder.model.text_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state[0, 0])
    assert first[0][0, 0] == second[0][0, 0]
    assert not torch.allclose(states[0], states[1], atol=1e-4)


@torch.no_grad()
def test_pictures_go_to_their_own_sample(encoder: Encoder) -> None:
    ids, mask, pixels = inputs(encoder, ["mug", "lamp"], [1, 1])
    swapped = encoder(ids, mask, pixels.flip(0))
    straight = encoder(ids, mask, pixels)
    crossed = encoder(*(t.flip(0) for t in (ids, mask, pixels)))
    assert torch.allclose(crossed.flip(0), straight, atol=1e-5)
    assert not torch.allclose(swapped, straight, atol=1e-3)


@torch.no_grad()
def test_saved_and_loaded_gives_the_same_vectors(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    again = Encoder.load(tmp_path).eval()
    batch = inputs(encoder, ["red dress", "mug"], [2, 0])
    assert torch.equal(encoder(*batch), again(*batch))
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"}
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_saved_checkpoint_is_plain_transformers(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    assert SmolVLMConfig.from_pretrained(tmp_path).text_config.is_causal is False
    model = SmolVLMModel.from_pretrained(tmp_path)
    assert sum(p.numel() for p in model.parameters()) == encoder.parameter_count()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("Red COTTON dress", add_special_tokens=False)["input_ids"] == encoder.tokenizer.encode("red cotton dress").ids
    assert tokenizer.convert_tokens_to_ids("<image>") == encoder.layout.image_token_id


def test_same_seed_same_weights() -> None:
    chosen = recipe(EncoderRecipe, "moon-nano", ROOT / "models")
    left, right, other = (build(chosen, ["red lamp"] * 5, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(left.parameters(), other.parameters(), strict=True))


def smolvlm_256m() -> SmolVLMConfig:
    """The public configuration of SmolVLM-256M, but for the depth: one layer each, so that a test can make and load it."""
    return SmolVLMConfig(
        vision_config={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 1, "num_attention_heads": 12,
            "image_size": 512, "patch_size": 16,
        },
        text_config={
            "model_type": "llama", "vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 1,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
            "pad_token_id": 2,
        },
        scale_factor=4,
        image_token_id=49190,
        pad_token_id=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A locally made checkpoint in the layout of the hub's: true widths, random weights, a tokenizer with SmolVLM's special tokens."""
    from moon_ops.encoder.tokenizer import as_pretrained, train

    place = tmp_path_factory.mktemp("smolvlm")
    tokenizer = train(["red lamp", "blue mug"] * 10, 400)
    config = smolvlm_256m()
    config.image_token_id = tokenizer.token_to_id("<image>")
    torch.manual_seed(0)
    SmolVLMModel(config).save_pretrained(place)
    as_pretrained(tokenizer).save_pretrained(place)
    return place


@torch.no_grad()
def test_the_256m_recipe_loads_a_checkpoint(checkpoint: Path) -> None:
    chosen = recipe(EncoderRecipe, "smolvlm-256m", ROOT / "models", checkpoint=str(checkpoint))
    encoder = build(chosen, [], seed=0).eval()
    assert encoder.layout.tokens_per_picture == 64
    assert encoder.dim == 576
    assert encoder.model.config.text_config.is_causal is False
    vectors = encoder(*inputs(encoder, ["red lamp", ""], [1, 1]))
    assert vectors.shape == (2, 576)
    assert torch.isfinite(vectors).all()


def test_a_picture_size_that_the_checkpoint_does_not_know_is_refused(checkpoint: Path) -> None:
    sizes = {"picture_size": 256, "max_text_tokens": 16}
    chosen = recipe(EncoderRecipe, "smolvlm-256m", ROOT / "models", checkpoint=str(checkpoint), inputs=sizes)
    with pytest.raises(InputError, match=r"picture_size = 256.*512"):
        build(chosen, [], seed=0)


def test_a_checkpoint_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    chosen: Any = recipe(EncoderRecipe, "smolvlm-256m", ROOT / "models", checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere"):
        build(chosen, [], seed=0)


@torch.no_grad()
def test_a_special_token_in_a_title_is_text(encoder: Encoder) -> None:
    """A seller who writes "<image>" must not take the place of another item's picture."""
    ids, mask, pixels = inputs(encoder, ["mug", "red <image> lamp", "hat"], [1, 0, 1])
    assert int((ids == encoder.layout.image_token_id).sum()) == 2 * encoder.layout.tokens_per_picture
    alone = encoder(*inputs(encoder, ["hat"], [1])[:2], pixels[1:])
    assert torch.allclose(encoder(ids, mask, pixels)[2], alone[0], atol=1e-5)
