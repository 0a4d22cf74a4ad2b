"""Recipes of another tower: what convolutions cannot be, and where only a vit may stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moon_ops.errors import SettingsError
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import recipe


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """No recipe yet."""
    return tmp_path


SIZES: list[tuple[str, str]] = [  # what a tower of stride 4 × scale_factor 2 must not be told, and the refusal
    ("[stage2a]\nsizes = [14]", "stage2a.sizes = 14 must be a multiple of 8 pixels, at most inputs.picture_size = 32"),
    ("[stage2a]\nsizes = [0, 32]", "stage2a.sizes = 0 must be a multiple of 8 pixels"),
    ("[stage2a]\nsizes = [64]", "stage2a.sizes = 64 must be a multiple of 8 pixels, at most inputs.picture_size = 32"),
    ("[vision]\nstem = 3\nchannels = [8, 8]", "vision.stem = 3 must be a number of channels' widths from 0 to all 2"),
]


@pytest.mark.parametrize(("wrong", "said"), SIZES, ids=[said[:40] for _, said in SIZES])
def test_a_tower_of_convolutions_refuses_sizes_that_do_not_fit(models: Path, wrong: str, said: str) -> None:
    vision = "" if "[vision]" in wrong else "[vision]\nchannels = [8, 8]\n"
    top = 'family = "smolvlm"\ntower = "conv"\n[inputs]\npicture_size = 32\n[text]\nhidden_size = 32\n'
    with pytest.raises(SettingsError, match=re.escape(said)):
        written(models, f"{top}{vision}{wrong}\n")


def written(models: Path, text: str) -> EncoderRecipe:
    (models / "own.toml").write_text(text + "[training]\nbatch = 2\nlearning_rate = 1e-4\n")
    return recipe(EncoderRecipe, "own", models)


OWN = 'family = "smolvlm"\n{top}\n[inputs]\npicture_size = {size}\n'
LONE = "[vision]\nchannels = [8, 8, 8]\n[text]\nhidden_size = 64\n"


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ("channels = [8]\nblocks = -3", "vision.blocks = -3 must be a whole number from 0 to 64"),
        ("channels = [8]\nblocks = 2.5", "vision.blocks = 2.5 must be a whole number from 0 to 64"),
        ("channels = []", "vision.channels = [] must be a list of one to eight widths"),
        ("channels = [8, 0]", "vision.channels = [8, 0] must be a list of one to eight widths"),
    ],
)
def test_what_convolutions_cannot_be_is_refused(models: Path, vision: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        written(models, OWN.format(top='tower = "conv"', size=32) + f"[vision]\n{vision}\n[text]\nhidden_size = 64\n")


def test_another_tower_needs_pictures_that_its_stride_divides(models: Path) -> None:
    conv = 'tower = "conv"'
    assert written(models, OWN.format(top=conv, size=24) + LONE).tower == "conv"
    with pytest.raises(SettingsError, match=r"inputs\.picture_size = 20 must be a multiple of the tower's stride 8"):
        written(models, OWN.format(top=conv, size=20) + LONE)
    lite = OWN.format(top='tower = "efficientnet-lite0"', size=64) + "[text]\nhidden_size = 64\n"
    assert written(models, lite).vision == {}
    with pytest.raises(SettingsError, match=r"vision\.frozen = 17 must be a number of blocks from 0 to all 16"):
        written(models, lite + "[vision]\nfrozen = 17\n")
    with pytest.raises(SettingsError, match=r"inputs\.picture_size = 48 must be a multiple of the tower's stride 32"):
        written(models, lite.replace("64\n[text]", "48\n[text]"))


def test_another_tower_stands_only_in_a_smolvlm_that_is_made_anew(models: Path) -> None:
    with pytest.raises(SettingsError, match=r"tower = 'conv' must be vit where a checkpoint is given"):
        written(models, OWN.format(top='tower = "conv"\ncheckpoint = "a/b"', size=32))
    with pytest.raises(SettingsError, match=r"tower = 'conv' must be vit, or family smolvlm"):
        written(models, OWN.format(top='tower = "conv"', size=24).replace("smolvlm", "qwen3_vl") + LONE)


def test_a_checkpoint_needs_no_vision_or_text(models: Path) -> None:
    assert written(models, OWN.format(top='checkpoint = "a/b"', size=500)).checkpoint == "a/b"
