"""The Qwen3-VL family: it computes what transformers computes, bidirectionally or not, and its graphs compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

from moon_ops.encoder import optimizers, qwen
from moon_ops.encoder.export import export
from moon_ops.encoder.model import Encoder, build
from moon_ops.errors import InputError
from moon_ops.recipes.encoder import EncoderRecipe, Inputs, Training
from moon_ops.recipes.reading import recipe
from moon_ops.settings import ROOT

SIZE, PATCH = 32, 8  # 4 x 4 patches, merged 2 x 2: 4 tokens a picture
TEXTS = ["red cotton dress", "blue leather boots", "green ceramic mug for tea", "dotted lamp"] * 8
SAMPLES = (["red dress", "", "green ceramic mug", "boots", "a lamp"], [2, 1, 0, 1, 2])


def small(**override: Any) -> EncoderRecipe:
    chosen: dict[str, Any] = {
        "name": "small",
        "family": "qwen3_vl",
        "inputs": Inputs(picture_size=SIZE, max_text_tokens=24),
        "training": Training(batch=8, learning_rate=1e-3),
        "vocabulary": 500,
        "vision": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": PATCH,
        },
        "text": {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        },
    }  # fmt: skip
    return EncoderRecipe(**{**chosen, **override})


def lively(encoder: Encoder) -> Encoder:
    """Weights and biases far from zero: with the usual start of 0.02 a wrong position would hide in the last digits."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in encoder.model.parameters():
            weight += 0.15 * torch.randn(weight.shape, generator=generator)
    return encoder.eval()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return lively(build(small(), TEXTS, seed=0))


@pytest.fixture(scope="module")
def saved(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("qwen")
    encoder.save(place)
    return place


def batch(encoder: Encoder, texts: list[str], pictures: list[int], seed: int = 0) -> tuple[torch.Tensor, ...]:
    ids, mask = encoder.layout.batch([encoder.tokenizer.encode(t, add_special_tokens=False).ids for t in texts], pictures)
    size = encoder.layout.picture_size
    pixels = np.random.default_rng(seed).integers(0, 256, (sum(pictures), 3, size, size), dtype=np.uint8)
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(pixels)


def processed(encoder: Encoder, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """``pixel_values`` and ``image_grid_thw`` as transformers' own processor makes them."""
    processor = qwen.picture_processor(encoder.layout.picture_size, encoder.config)
    return dict(processor([Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels], return_tensors="pt"))


def by_transformers(encoder: Encoder, ids: torch.Tensor, mask: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Last hidden states [B, L, D] of transformers' own forward."""
    kinds = (ids == encoder.layout.image_token_id).int()
    seen = processed(encoder, pixels) if len(pixels) else {}
    return encoder.model(input_ids=ids, attention_mask=mask, mm_token_type_ids=kinds, use_cache=False, **seen).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("size", [16, SIZE, 80])
def test_picture_tokens_are_those_of_transformers(saved: Path, size: int) -> None:
    """At the size of the position embeddings, and interpolated to smaller and larger pictures."""
    inputs = Inputs(picture_size=size, max_text_tokens=24)
    encoder = build(small(checkpoint=str(saved), vision={}, text={}, inputs=inputs), [], seed=0).eval()
    pixels = batch(encoder, ["", ""], [1, 2])[2]
    seen = processed(encoder, pixels)
    assert seen["image_grid_thw"].tolist() == [[1, size // PATCH, size // PATCH]] * 3
    expected = encoder.model.get_image_features(**seen)
    found = encoder.picture_tokens(pixels)
    assert found.shape == (3, (size // PATCH // 2) ** 2, 3 * encoder.dim)
    parts = [torch.stack(part) for part in (expected.pooler_output, *expected.deepstack_features)]
    torch.testing.assert_close(found, torch.cat(parts, -1), atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("texts", "pictures"), [SAMPLES, (["red dress", "boots"], [0, 0]), (["mug"], [2])])
def test_hidden_states_are_those_of_transformers(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, texts: list[str], pictures: list[int], causal: bool
) -> None:
    monkeypatch.setattr(encoder.config.text_config, "is_causal", causal)
    ids, mask, pixels = batch(encoder, texts, pictures)
    found = encoder.hidden(ids, mask, encoder.tokens_or_none(pixels))
    expected = by_transformers(encoder, ids, mask, pixels)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_positions_are_those_of_transformers(encoder: Encoder, side: int) -> None:
    """Text before, between and after pictures; none, one and several of them; padding on the right."""
    picture = [1, *[2] * side**2, 3]
    rows = [[*picture, *picture, 9, 9], [9, 9, 9], [9, *picture], picture, [*picture, 9, *picture, *picture, 9]]
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask, is_image = (ids != 0).long(), ids == 2
    grids = torch.tensor([[1, 2 * side, 2 * side]] * 7)
    expected, _ = encoder.model.get_rope_index(ids, is_image.int(), image_grid_thw=grids, attention_mask=mask)
    found = qwen.positions(is_image)
    assert torch.equal(found[:, mask.bool()], expected[:, mask.bool()])


@torch.no_grad()
def test_attention_is_bidirectional_unless_the_configuration_says_otherwise(encoder: Encoder) -> None:
    """A later token changes an earlier state, without padding and with it; under causal attention it does not."""
    for texts in (["red cotton dress"], ["red cotton dress", "green ceramic mug for tea"]):
        ids, mask, pixels = batch(encoder, texts, [1] * len(texts))
        other, last = ids.clone(), int(mask[0].sum()) - 1
        other[0, last] = ids[0, last] + 1
        tokens = encoder.picture_tokens(pixels)
        left, right = (encoder.hidden(i, mask, tokens)[0, :last] for i in (ids, other))
        assert ((left - right).abs().amax(-1) > 1e-3).all()
        left, right = (encoder.next_token_logits(i, mask, pixels)[0, :last] for i in (ids, other))
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
        assert encoder.config.text_config.is_causal is False


@torch.no_grad()
def test_padding_and_company_change_nothing(encoder: Encoder) -> None:
    ids, mask, pixels = batch(encoder, ["red dress", "green ceramic mug for tea", "lamp"], [1, 2, 0])
    together = encoder(ids, mask, pixels)
    for row, (start, end) in enumerate([(0, 1), (1, 3), (3, 3)]):
        length = int(mask[row].sum())
        alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length], pixels[start:end])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_deepstack_part_is_read_at_the_pictures_slots_alone(encoder: Encoder) -> None:
    ids, mask, pixels = batch(encoder, ["red dress", "green mug"], [1, 0])
    tokens = encoder.picture_tokens(pixels)
    straight = encoder.embed(ids, mask, tokens)
    for part in range(qwen.token_widths(encoder.model)):
        without = tokens.clone()
        without[..., part * encoder.dim : (part + 1) * encoder.dim] = 0
        changed = encoder.embed(ids, mask, without)
        assert (straight[0] - changed[0]).abs().max() > 1e-3
        assert torch.equal(straight[1], changed[1])


def test_every_weight_is_trained(encoder: Encoder) -> None:
    ids, mask, pixels = batch(encoder, *SAMPLES)
    try:
        (encoder(ids, mask, pixels) @ torch.arange(1.0, encoder.dim + 1)).sum().backward()
        assert [name for name, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    finally:
        encoder.zero_grad()


@torch.no_grad()
def test_saved_and_loaded_gives_the_same_vectors(encoder: Encoder, saved: Path) -> None:
    again = Encoder.load(saved).eval()
    inputs = batch(encoder, *SAMPLES)
    assert torch.equal(encoder(*inputs), again(*inputs))
    assert again.layout == encoder.layout


def test_saved_checkpoint_is_plain_transformers(encoder: Encoder, saved: Path) -> None:
    config: Any = Qwen3VLConfig.from_pretrained(saved)
    assert config.text_config.is_causal is False
    assert config.image_token_id == encoder.layout.image_token_id
    assert config.vision_config.deepstack_visual_indexes == [0, 1]
    model = Qwen3VLModel.from_pretrained(saved)
    assert sum(p.numel() for p in model.parameters()) == encoder.parameter_count()
    assert AutoImageProcessor.from_pretrained(saved, backend="pil").size["longest_edge"] == SIZE**2


@torch.no_grad()
def test_a_checkpoint_with_a_language_head_is_loaded(encoder: Encoder, saved: Path, tmp_path: Path) -> None:
    """The hub's checkpoints are of the class for generation, whose names have a prefix and one weight more."""
    whole = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(saved))
    whole.model.load_state_dict(encoder.model.state_dict())
    whole.config.text_config.is_causal = True
    whole.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((saved / file).read_bytes())
    found = build(small(checkpoint=str(tmp_path), vision={}, text={}), [], seed=0).eval()
    inputs = batch(encoder, *SAMPLES)
    assert torch.equal(found(*inputs), encoder(*inputs))


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3-vl-2b", "qwen3-vl-2b-lora", "qwen3-vl-embedding-2b"])
def test_the_recipes_load_a_checkpoint(saved: Path, name: str) -> None:
    """A small one stands for the hub's; its patches are half as wide."""
    if name.endswith("lora"):
        pytest.importorskip("peft")
    found = build(recipe(EncoderRecipe, name, ROOT / "models", checkpoint=str(saved)), [], seed=0).eval()
    assert found.layout.tokens_per_picture == (256 // PATCH // 2) ** 2
    assert torch.isfinite(found(*batch(found, ["red dress", ""], [0, 1]))).all()
    assert (found.trained_count() < found.parameter_count()) == name.endswith("lora")


@pytest.mark.parametrize("size", [24, 40, 100])
def test_a_picture_size_that_does_not_fit_is_refused(encoder: Encoder, saved: Path, size: int) -> None:
    with pytest.raises(InputError, match=rf"{size} px.*8 px.*2 by 2.*multiple of 16"):
        build(small(checkpoint=str(saved), vision={}, text={}, inputs=Inputs(picture_size=size)), [], seed=0)
    with pytest.raises(InputError, match=rf"{size} px"):
        encoder.picture_tokens(torch.zeros(1, 3, size, size, dtype=torch.uint8))


@pytest.mark.parametrize("size", [32, 64, 224, 256, 448])
def test_the_processor_keeps_a_square_of_its_size(size: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    seen = qwen.picture_processor(size)(Image.fromarray(picture), return_tensors="np")
    assert seen["image_grid_thw"].tolist() == [[1, size // 16, size // 16]]
    corner = seen["pixel_values"][0].reshape(3, 2, 16, 16)[:, 0]
    np.testing.assert_allclose(corner, picture[:16, :16].transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)


def test_exported_graphs_compute_the_same(encoder: Encoder, saved: Path) -> None:
    certificate = export(saved)
    assert certificate.min_cosine > 0.9999
    assert certificate.rank_flips == 0
    tower, trunk = (ort.InferenceSession(saved / f"{name}.onnx", providers=["CPUExecutionProvider"]) for name in ("tower", "trunk"))
    for texts, pictures in (SAMPLES, (["boots"], [1]), (["red cotton dress", "lamp"], [2, 2]), (["mug", "lamp"], [0, 0])):
        ids, mask, pixels = batch(encoder, texts, pictures, seed=3)
        width = encoder.dim * qwen.token_widths(encoder.model)
        tokens = np.zeros((1, encoder.layout.tokens_per_picture, width), np.float32)
        if sum(pictures):
            tokens = tower.run(None, {"pixels": pixels.numpy()})[0]
        feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "image_tokens": tokens}
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(trunk.run(None, feeds)[0]), encoder(ids, mask, pixels), atol=1e-5, rtol=0)


def test_the_tower_has_its_share_of_the_learning_rate(encoder: Encoder) -> None:
    """Its parameters are called otherwise than SmolVLM's, and had the full rate."""
    training = Training(batch=8, learning_rate=1e-3, matrix_learning_rate=1e-2, tower_share=0.25)
    full = {"AdamW": 1e-3, "Muon": 1e-2}
    shares = {
        id(p): g["lr"] / full[type(o).__name__] for o in optimizers.build(encoder, training) for g in o.param_groups for p in g["params"]
    }
    for name, parameter in encoder.named_parameters():
        assert shares[id(parameter)] == pytest.approx(0.25 if "visual" in name else 1.0), name
