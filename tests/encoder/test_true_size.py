"""A checkpoint of SmolVLM-256M's true size, with random weights: load, train a step, export, embed. Run with ``pytest -m large``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SmolVLMConfig, SmolVLMModel

from moon_ops.settings import ROOT

UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)
pytestmark = [pytest.mark.large, pytest.mark.timeout(3600)]


def config(image_token_id: int) -> SmolVLMConfig:
    """The hub's configuration of SmolVLM-256M-Instruct."""
    return SmolVLMConfig(  # type: ignore[call-arg]
        vision_config={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 512, "patch_size": 16,
        },
        text_config={
            "model_type": "llama", "vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "pad_token_id": 2,
            "rope_theta": 100000,
        },
        scale_factor=4,
        image_token_id=image_token_id,
        pad_token_id=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from moon_ops.encoder.tokenizer import as_pretrained, train

    place = tmp_path_factory.mktemp("smolvlm-256m")
    tokenizer = train(["red lamp", "blue mug"] * 10, 400)
    torch.manual_seed(0)
    SmolVLMModel(config(int(tokenizer.token_to_id("<image>")))).save_pretrained(place)
    as_pretrained(tokenizer).save_pretrained(place)
    return place


def test_a_true_size_checkpoint_goes_through_every_room(checkpoint: Path, lake: Any, tmp_path: Path) -> None:
    from moon_ops.embeddings.runtime import Runtime
    from moon_ops.encoder.export import export
    from moon_ops.encoder.model import Encoder
    from moon_ops.encoder.train import train
    from moon_ops.inputs.contract import Sample, item_sample
    from moon_ops.inputs.images import decode
    from moon_ops.inputs.regions import views
    from moon_ops.lake.tables import image_bytes, items_as_of
    from moon_ops.recipes.encoder import EncoderRecipe
    from moon_ops.recipes.reading import recipe

    chosen = recipe(
        EncoderRecipe,
        "smolvlm-256m",
        ROOT / "models",
        checkpoint=str(checkpoint),
        training={"batch": 2, "chunk": 1, "precision": "auto", "warmup_steps": 1},
        stage2a={"steps": 1},
    )
    report = train(lake, tmp_path / "encoder", chosen, trained_until=UNTIL, seed=0)
    assert report.parameters == 228_099_648  # of the 256 million; the head for generation is not part of an encoder
    assert np.isfinite(report.last_loss)
    places = (checkpoint, tmp_path / "encoder")
    before, after = (SmolVLMModel.from_pretrained(place).text_model.layers[0].mlp.up_proj.weight for place in places)
    assert not torch.equal(before, after)

    certificate = export(tmp_path / "encoder")
    assert certificate.min_cosine > 0.9999
    assert certificate.rank_flips == 0

    runtime = Runtime(tmp_path / "encoder")
    samples = [item_sample(row) for row in items_as_of(lake, UNTIL).to_pylist()[:3]] + [Sample("a red lamp")]
    pictures = {name: views(decode(content), 512, "") for name, content in image_bytes(lake, [i for s in samples for i in s.image_ids])}
    vectors = runtime.embed(samples, pictures)
    assert vectors.shape == (4, 576)
    encoder = Encoder.load(tmp_path / "encoder").eval()
    ids, mask = encoder.layout.batch([encoder.tokenizer.encode("a red lamp", add_special_tokens=False).ids], [0])
    with torch.no_grad():
        alone = encoder(torch.from_numpy(ids), torch.from_numpy(mask), torch.zeros((0, 3, 512, 512), dtype=torch.uint8))
    np.testing.assert_allclose(vectors[3], alone[0].numpy(), atol=1e-4)
