"""Recipes: what is wrong is named with its value and its rule, when it is read."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from moon_ops import columns, recipes
from moon_ops.columns import Feature, OwnColumn
from moon_ops.errors import SettingsError
from moon_ops.recipes.caps import Counting
from moon_ops.recipes.costs import Costs
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.recipes.encoder import PAIR_TYPES, EncoderRecipe
from moon_ops.recipes.gates import Gates
from moon_ops.recipes.reading import recipe
from moon_ops.settings import ROOT

MODELS = ROOT / "models"
ENCODER = """
family = "smolvlm"
[inputs]
picture_size = 32
[vision]
hidden_size = 64
patch_size = 8
[text]
hidden_size = 64
[training]
batch = 32
learning_rate = 2e-3
[stage2a]
steps = 60
"""
CTR = """
extractor = "din"
epochs = 2
batch = 512
learning_rate = 2e-3
"""
GATES = """
recall_floor = 0.1
auc_floor = 0.52
recall_tolerance = 0.01
auc_tolerance = 0.005
parity_floor = 0.999
"""
KINDS: dict[str, Any] = {"encoder": EncoderRecipe, "ctr": CtrRecipe, "gates": Gates}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, text in (("encoder", ENCODER), ("ctr", CTR), ("gates", GATES)):
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


def test_a_recipe_has_the_file_s_values_and_else_the_defaults(models: Path) -> None:
    read = recipe(EncoderRecipe, "encoder", models)
    assert (read.name, read.family, read.inputs.picture_size, read.inputs.max_pictures) == ("encoder", "smolvlm", 32, 2)
    assert (read.training.batch, read.training.learning_rate, read.training.temperature) == (32, 2e-3, 0.07)
    assert (read.stage1.steps, read.stage2a.steps, read.stage2b.steps, read.steps) == (0, 60, 0, 60)
    assert read.vision == {"hidden_size": 64, "patch_size": 8}
    assert recipe(CtrRecipe, "ctr", models).hidden == (64, 32)
    assert recipe(Gates, "gates", models).parity_floor == 0.999
    assert recipe(Gates, "gates", models).latency_ratio == 2.0, "a file of before the later gates goes on"


def test_a_recipe_cannot_be_changed(models: Path) -> None:
    read = recipe(EncoderRecipe, "encoder", models)
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.name = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.stage2a.steps = 1  # type: ignore[misc]


def test_an_override_replaces_a_key_and_leaves_its_neighbours(models: Path) -> None:
    read = recipe(EncoderRecipe, "encoder", models, training={"batch": 7}, stage2b={"steps": 3}, vocabulary=500)
    assert (read.training.batch, read.training.learning_rate, read.vocabulary) == (7, 2e-3, 500)
    assert (read.stage2a.steps, read.stage2b.steps) == (60, 3)
    assert recipe(EncoderRecipe, "encoder", models).training.batch == 32


def test_an_override_keeps_the_rules(models: Path) -> None:
    with pytest.raises(SettingsError, match=r"encoder\.toml: stage2a.*steps = -1 must be 0 or more"):
        recipe(EncoderRecipe, "encoder", models, stage2a={"steps": -1})


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_in_the_repository_is_read(path: Path) -> None:
    kind: Any = (
        CtrRecipe if path.stem.startswith("ctr-") else {"gates": Gates, "counting": Counting, "costs": Costs}.get(path.stem, EncoderRecipe)
    )
    assert recipe(kind, path.stem, MODELS).name == path.stem


@pytest.mark.parametrize(
    ("stages", "total", "expected"),
    [
        ((0, 60, 0), 7, (0, 7, 0)),
        ((10, 20, 10), 80, (20, 40, 20)),
        ((10, 20, 10), 10, (2, 5, 3)),  # 2.5 rounds to the even 2; the last takes what is left
        ((10, 30, 0), 5, (1, 4, 0)),
        ((1, 1, 1), 1, (0, 0, 1)),
        ((10, 20, 10), 0, (0, 0, 0)),
        ((10, 0, 0), 30, (30, 0, 0)),
        ((0, 0, 10), 4, (0, 0, 4)),
        ((10, 0, 10), 6, (3, 0, 3)),
    ],
)
def test_a_number_of_steps_is_shared_over_the_stages_as_they_are(
    models: Path, stages: tuple[int, int, int], total: int, expected: tuple[int, int, int]
) -> None:
    given = {name: {"steps": steps} for name, steps in zip(("stage1", "stage2a", "stage2b"), stages, strict=True)}
    shared = recipe(EncoderRecipe, "encoder", models, **given).with_steps(total)
    assert (shared.stage1.steps, shared.stage2a.steps, shared.stage2b.steps) == expected
    assert shared.steps == total


def test_a_recipe_without_steps_trains_them_in_stage_2a(models: Path) -> None:
    shared = recipe(EncoderRecipe, "encoder", models, stage2a={"steps": 0}).with_steps(9)
    assert (shared.stage1.steps, shared.stage2a.steps, shared.stage2b.steps) == (0, 9, 0)


def test_other_steps_leave_everything_else(models: Path) -> None:
    read = recipe(EncoderRecipe, "encoder", models, stage2a={"loss": "mim"})
    assert read.with_steps(60) == read
    assert read.with_steps(3).stage2a.loss == "mim"
    with pytest.raises(SettingsError, match="steps = -1 must be 0 or more"):
        read.with_steps(-1)


WRONG = [  # file, line of it, the line instead, what the message must say
    ("encoder", "steps = 60", "stepps = 60", ["stage2a.stepps = 60", r"no such key.*is steps meant\?"]),
    ("encoder", "batch = 32", "", ["training.batch", "Missing required argument|Field required"]),
    ("encoder", 'family = "smolvlm"', 'family = "clip"', ["family = 'clip'", "should be 'smolvlm'"]),
    ("encoder", 'family = "smolvlm"', 'family = "smolvlm"\nfamilly = 1', ["familly = 1", r"no such key.*is family meant\?"]),
    ("encoder", "steps = 60", 'steps = "many"', ["stage2a.steps = 'many'", "valid integer"]),
    ("encoder", "steps = 60", 'steps = "60"', ["stage2a.steps = '60'", "valid integer"]),
    ("encoder", "steps = 60", "steps = true", ["stage2a.steps = True", "valid integer"]),
    ("encoder", "batch = 32", "batch = 32\naugment = 1", ["training.augment = 1", "valid boolean"]),
    ("encoder", "steps = 60", "steps = 2026-01-01", ["stage2a.steps = '2026-01-01'", "valid integer"]),
    ("encoder", "steps = 60", "steps = 1.5", ["stage2a.steps = 1.5", "valid integer"]),
    ("encoder", "learning_rate = 2e-3", "learning_rate = 0.0", ["learning_rate = 0.0", "must be between 0 and 1"]),
    ("encoder", "[text]\nhidden_size = 64", "", ["checkpoint = ''", r"given, or else \[vision\] and \[text\]"]),
    ("encoder", "patch_size = 8", 'patch_size = "eight"', ["vision.patch_size", "'eight'", "valid integer"]),
    ("ctr", 'extractor = "din"', 'extractor = "mlp"', ["extractor = 'mlp'", r"'simtier\+sata' or 'cube'"]),
    ("ctr", "epochs = 2", "epochs = 0", ["epochs = 0", "must be at least 1"]),
    ("ctr", "batch = 512", "batch = 0", ["batch = 0", "must be at least 1 row"]),
    ("ctr", "learning_rate = 2e-3", "learning_rate = 1.0", ["learning_rate = 1.0", "must be between 0 and 1"]),
    ("ctr", "epochs = 2", "epochs = 2\nembedding_dim = 0", ["embedding_dim = 0", "must be at least 1"]),
    ("ctr", "epochs = 2", "epochs = 2\nbehaviors = 0", ["behaviors = 0", "must be at least 1"]),
    ("ctr", "epochs = 2", "epochs = 2\ndropout = 1.0", ["dropout = 1.0", "must be from 0, below 1"]),
    ("ctr", "epochs = 2", 'epochs = 2\nhidden = "64"', ["hidden = '64'", "valid array"]),
    ("ctr", "epochs = 2", "epochs = 2\nhidden = [8, 0]", [r"hidden = \(8, 0\)", "must be widths of at least 1"]),
    ("gates", "recall_floor = 0.1", "recall_floor = 10", ["recall_floor = 10.0", "must be between 0 and 1"]),
    ("gates", "auc_tolerance = 0.005", "auc_tolerance = nan", ["auc_tolerance = nan", "must be between 0 and 1"]),
    (
        "gates",
        "parity_floor = 0.999",
        "parity_floor = 0.999\nlatency_ratio = 0.5",
        ["latency_ratio = 0.5", "must be at least 1, or 0 for no limit"],
    ),
    (
        "gates",
        "parity_floor = 0.999",
        "parity_floor = 0.999\nlag_ceiling_hours = -1.0",
        ["lag_ceiling_hours = -1.0", "must be 0 or more, and"],
    ),
    ("gates", "parity_floor = 0.999", "parity_floor = 0.999\nslice_tolerance = 2.0", ["slice_tolerance = 2.0", "must be between 0 and 1"]),
    (
        "gates",
        "parity_floor = 0.999",
        "parity_floor = 0.999\neffective_rank_floor = 0.5",
        ["effective_rank_floor = 0.5", "at least 1, and"],
    ),
    ("gates", "parity_floor = 0.999", "", ["parity_floor", "Missing required argument|Field required"]),
]


@pytest.mark.parametrize(("name", "line", "instead", "said"), WRONG, ids=[f"{w[0]}: {w[2] or 'no ' + w[1]}" for w in WRONG])
def test_what_is_wrong_is_named_with_its_value_and_rule(models: Path, name: str, line: str, instead: str, said: list[str]) -> None:
    path = models / f"{name}.toml"
    text = path.read_text()
    assert text.count(line) == 1
    path.write_text(text.replace(line, instead))
    with pytest.raises(SettingsError) as refused:
        recipe(KINDS[name], name, models)
    for part in [rf"^{name}\.toml: ", *said, "correct the recipe$"]:
        assert re.search(part, str(refused.value)), f"{part!r} is not in {refused.value}"
    assert "ArgsKwargs" not in str(refused.value)


RULES: list[tuple[dict[str, Any], str]] = [  # what an encoder's recipe must not say, and the refusal
    ({"inputs": {"picture_size": 8}}, "picture_size = 8 must be at least 16 pixels"),
    ({"inputs": {"picture_size": 40}}, "inputs.picture_size = 40 must be a multiple of patch_size × scale_factor = 16"),
    ({"inputs": {"picture_size": 24}, "scale_factor": 1, "vision": {"patch_size": 16}}, "a multiple of patch_size × scale_factor = 16"),
    ({"inputs": {"max_pictures": 0}}, "max_pictures = 0 must be at least 1"),
    ({"inputs": {"max_text_tokens": 3}}, "max_text_tokens = 3 must be at least 4 tokens"),
    ({"inputs": {"core_region": "yolo"}}, "inputs.core_region = 'yolo': Input should be '' or 'saliency'"),
    ({"experts": {"routed": 0}}, "experts.routed = 0 must be at least 1"),
    ({"experts": {"routed": 2, "chosen": 3}}, "experts.chosen = 3 must be from 1 to routed = 2"),
    ({"experts": {"routed": 2, "chosen": 0}}, "experts.chosen = 0 must be from 1 to routed = 2"),
    ({"experts": {"routed": 2, "width": 0}}, "experts.width = 0 must be at least 1"),
    ({"training": {"batch": 1}}, "batch = 1 must be at least 2: one pair has no negatives"),
    ({"training": {"learning_rate": 1.0}}, "learning_rate = 1.0 must be between 0 and 1"),
    ({"training": {"matrix_learning_rate": 1}}, "matrix_learning_rate = 1.0 must be from 0, below 1"),
    ({"training": {"temperature": 0}}, "temperature = 0.0 must be above 0, at most 1"),
    ({"training": {"temperature": 1.1}}, "temperature = 1.1 must be above 0, at most 1"),
    ({"training": {"warmup_steps": -5}}, "warmup_steps = -5 must be 0 or more"),
    ({"training": {"weight_decay": -0.1}}, "weight_decay = -0.1 must be from 0, below 1"),
    ({"training": {"pictures": 0}}, "pictures = 0 must be at least 1"),
    ({"training": {"text_dropout": 1.0}}, "text_dropout = 1.0 must be from 0, below 1"),
    ({"training": {"ema": 1.0}}, "ema = 1.0 must be from 0 (off), below 1"),
    ({"training": {"synthetic": 1.0}}, "synthetic = 1.0 must be from 0, below 1"),
    ({"training": {"precision": "fp8"}}, "training.precision = 'fp8': Input should be "),
    ({"training": {"chunk": -1}}, "chunk = -1 must be 0 or more"),
    ({"training": {"accumulation": 0}}, "accumulation = 0 must be at least 1"),
    ({"training": {"checkpoint_steps": -1}}, "checkpoint_steps = -1 must be 0 or more"),
    ({"training": {"prefixes": [0, 8]}}, "prefixes = (0, 8) must be lengths of at least 1"),
    ({"training": {"prefixes": [16, 8]}}, "prefixes = (16, 8) must be ascending, each once"),
    ({"training": {"prefixes": [8, 8]}}, "prefixes = (8, 8) must be ascending, each once"),
    ({"training": {"prefixes": [8, 65]}}, "training.prefixes = (8, 65) must be at most text.hidden_size = 64"),
    ({"stage1": {"steps": -1}}, "stage1.steps = -1 must be 0 or more"),
    ({"stage2a": {"steps": -1}}, "stage2a.steps = -1 must be 0 or more"),
    ({"stage2a": {"events": []}}, "stage2a.events = () must be some of click, cart, purchase"),
    ({"stage2a": {"events": ["view"]}}, "stage2a.events.0 = 'view': Input should be 'click', 'cart' or 'purchase'"),
    ({"stage2a": {"pairs": {"image:text": 1.0}}}, "stage2a.pairs = 'image:text' must be named as one of text:rich, "),
    ({"stage2a": {"pairs": {"text:rich": -0.5}}}, "stage2a.pairs.text:rich = -0.5 must be 0 or more"),
    ({"stage2a": {"pairs": {"text:rich": 0.0}}}, "stage2a.pairs = {'text:rich': 0.0} must be of a positive sum"),
    ({"stage2a": {"loss": "circle"}}, "stage2a.loss = 'circle': Input should be 'info_nce' or 'mim'"),
    ({"stage2a": {"within_product": -1.0}}, "stage2a.within_product = -1.0 must be 0 or more"),
    ({"stage2a": {"sizes": [16]}}, "stage2a.sizes = (16,) must be empty for a vit: its positions are for one size"),
    ({"training": {"schedule": "day"}}, "training.schedule = 'day': Input should be 'stage' or 'run'"),
    ({"stage2b": {"steps": -1}}, "stage2b.steps = -1 must be 0 or more"),
    ({"stage2b": {"loss": "mim"}}, "stage2b.loss = 'mim': Input should be 'circle' or 'info_nce'"),
    ({"stage2b": {"margin": 1.0}}, "stage2b.margin = 1.0 must be from 0, below 1"),
    ({"stage2b": {"scale": 0.0}}, "stage2b.scale = 0.0 must be above 0"),
    ({"stage2b": {"least_entities": -1}}, "stage2b.least_entities = -1 must be 0 or more"),
    ({"stage2b": {"hard_negatives": -1}}, "stage2b.hard_negatives = -1 must be 0 or more"),
    ({"stage2b": {"queue": -1}}, "stage2b.queue = -1 must be 0 or more"),
    ({"stage2b": {"learning_rate_share": 0.0}}, "stage2b.learning_rate_share = 0.0 must be above 0, at most 1"),
    ({"stage2b": {"learning_rate_share": 1.5}}, "stage2b.learning_rate_share = 1.5 must be above 0, at most 1"),
    ({"vocabulary": 299}, "vocabulary = 299 must be at least 300"),
    ({"deduplicate": -2}, "deduplicate = -2 must be from -1 (off) to 16 bits"),
    ({"deduplicate": 17}, "deduplicate = 17 must be from -1 (off) to 16 bits"),
    ({"except_between": ["2026-01-02T00:00:00Z"]}, "except_between = ('2026-01-02T00:00:00Z',) must be two times with a zone, the earlier"),
    ({"except_between": ["2026-01-02T00:00:00Z"] * 2}, "must be two times with a zone, the earlier one first"),
    ({"except_between": ["2026-01-01", "2026-01-02T00:00:00Z"]}, "must be two times with a zone, the earlier one first"),
    ({"except_between": ["then", "2026-01-02T00:00:00Z"]}, "must be two times with a zone, the earlier one first"),
    ({"checkpoint": "a/b"}, "checkpoint = 'a/b' must be given, or else [vision] and [text]"),
    ({"tower": "vgg"}, "tower = 'vgg': Input should be 'vit', 'conv' or 'efficientnet-lite0'"),
    ({"tower": "conv"}, "vision = ['hidden_size', 'patch_size'] must be blocks and channels and stem alone for this tower"),
    ({"training": {"tower_share": 0.0}}, "tower_share = 0.0 must be above 0, at most 1"),
    ({"training": {"zoom": 5.0}}, "zoom = 5.0 must be from 1 to 4"),
    ({"vision": {"hiden_size": 64}}, "vision.hiden_size = 64 must be named as one of hidden_size, intermediate_size, "),
    ({"vision": {"num_hidden_layers": 0}}, "vision.num_hidden_layers = 0 must be a whole number from 1"),
    ({"text": {"num_attention_heads": 7}}, "text.hidden_size = 64 must be a multiple of num_attention_heads = 7"),
    ({"text": {"num_attention_heads": 64}}, "text.hidden_size = 64 must be an even multiple of num_attention_heads = 64"),
    ({"text": {"num_key_value_heads": 3}}, "text.num_key_value_heads = 3 must be a divisor of num_attention_heads = "),
    ({"stage2a": {"pairs": {"text:rich": math.inf}}}, "stage2a.pairs.text:rich = inf must be 0 or more, and finite"),
    ({"stage2a": {"within_product": math.inf}}, "stage2a.within_product = inf must be 0 or more, and finite"),
    ({"text": {"patch_size": 8}}, "text.patch_size = 8 must be named as one of hidden_size, "),
]


@pytest.mark.parametrize(("override", "said"), RULES, ids=[rule[1][:60] for rule in RULES])
def test_every_rule_of_an_encoder_refuses_with_field_value_and_rule(models: Path, override: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        recipe(EncoderRecipe, "encoder", models, **override)
    assert said in str(refused.value)
    assert str(refused.value).startswith("encoder.toml: ")


def test_another_kind_of_recipe_is_named(models: Path) -> None:
    with pytest.raises(SettingsError, match=r"ctr-cube.toml is a recipe for a click model, not for an encoder"):
        recipe(EncoderRecipe, "ctr-cube", MODELS)
    with pytest.raises(SettingsError, match=r"there is no recipe '../models/moon-nano'"):
        recipe(EncoderRecipe, "../models/moon-nano", MODELS)


def test_all_nine_pair_types_of_the_paper_may_be_named(models: Path) -> None:
    assert len(PAIR_TYPES) == 9
    shares = dict.fromkeys(PAIR_TYPES, 0.1)
    assert recipe(EncoderRecipe, "encoder", models, stage2a={"pairs": shares}).stage2a.pairs == shares


def test_every_number_of_a_recipe_stands_under_a_rule() -> None:
    """A field that is a number, and of which no rule of its class speaks, would be taken as it comes."""
    free = {"scale_factor", "name", "revision", "weight_decay"}  # the first is part of the picture's rule; the last is the click model's
    modules = (columns, recipes.ctr, recipes.encoder)
    kinds = {(kind, module) for module in modules for kind in vars(module).values() if is_dataclass(kind)}
    defined = [(kind, module) for kind, module in kinds if kind.__module__ == module.__name__ and kind is not Feature]
    own = [(kind, Path(module.__file__).read_text()) for kind, module in defined]
    assert {OwnColumn, CtrRecipe, EncoderRecipe} < {kind for kind, _ in own}
    for kind, source in own:
        for field in fields(kind):
            if str(field.type) in ("int", "float") and field.name not in free:
                assert re.search(rf"rule\(.*self\.{field.name}\b", source), f"{kind.__name__}.{field.name}"


def test_an_unknown_recipe_is_answered_with_the_known_ones(models: Path) -> None:
    with pytest.raises(SettingsError, match=r"no recipe 'moon-huge' in .* \(there are: encoder\) → name one of these"):
        recipe(EncoderRecipe, "moon-huge", models)
    with pytest.raises(SettingsError, match=r"\(there are: none\)"):
        recipe(EncoderRecipe, "moon-huge", models / "nowhere")


@pytest.mark.parametrize("content", [b"steps = = 1\n", b"family = \xff\n"], ids=["syntax", "encoding"])
def test_a_file_that_is_not_toml_is_named(models: Path, content: bytes) -> None:
    (models / "encoder.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"encoder\.toml is not TOML \(.+\) → mend the line it names"):
        recipe(EncoderRecipe, "encoder", models)
