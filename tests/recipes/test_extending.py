"""What a recipe takes over from another one, what ``--set`` changes, and the columns that it declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moon_ops.columns import Feature
from moon_ops.errors import SettingsError
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import own_features, recipe
from moon_ops.settings import ROOT

BASE = """
extractor = "din"
epochs = 2
batch = 64
learning_rate = 1e-3
[features]
weight = { of = "item", kind = "number", default = 1.0 }
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "ctr-base.toml").write_text(BASE)
    (tmp_path / "ctr-wide.toml").write_text('extends = "ctr-base"\nbatch = 128\n[features]\nmade_of = { of = "item", kind = "category" }\n')
    (tmp_path / "ctr-wider.toml").write_text('extends = "ctr-wide"\nhidden = [8]\nfeatures.weight.default = 2.0\n')
    return tmp_path


def test_a_recipe_extends_another_table_by_table(models: Path) -> None:
    made = recipe(CtrRecipe, "ctr-wider", models)
    assert (made.name, made.extractor, made.batch, made.hidden) == ("ctr-wider", "din", 128, (8,))
    assert made.own == (Feature("made_of", "item", "category"), Feature("weight", "item", "number", default=2.0))


def test_the_click_recipes_differ_in_their_extractor_alone() -> None:
    """Since they extend one another: as they were when each had every line."""
    names = sorted(path.stem for path in (ROOT / "models").glob("ctr-*.toml"))
    made = [recipe(CtrRecipe, name, ROOT / "models") for name in names]
    common = {(r.epochs, r.batch, r.learning_rate, r.embedding_dim, r.hidden, r.behaviors, r.weight_decay, r.own) for r in made}
    assert common == {(3, 512, 1e-3, 16, (64, 32), 20, 1e-5, ())}
    assert len({r.extractor for r in made if r.name != "ctr-base"}) == len(names) - 1 == 14


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('extends = "ctr-own"', r"recipes extend each other: ctr-own → ctr-own → take one `extends` out"),
        ('extends = "ctr-gone"', r"ctr-own.toml extends 'ctr-gone', but there is no recipe .* of this name \(there are: ctr-base, "),
        ("extends = 7", r"ctr-own.toml: extends = 7 must be the name of a recipe"),
        ('extends = "ctr-base"\nbatch = 0', r"ctr-own.toml: .*batch = 0 must be at least 1 row"),
        (
            'extends = "ctr-base"\nfeatures.price = { of = "item", kind = "number" }',
            r"features = 'price' must be named otherwise: a standard",
        ),
        (
            'extends = "ctr-base"\nfeatures.Big = { of = "item", kind = "number" }',
            r"features = 'Big' must be named by small letters, digits",
        ),
        (
            'extends = "ctr-base"\nfeatures.a = { of = "shop", kind = "number" }',
            r"features.a.of = 'shop': Input should be 'item', 'user' or",
        ),
        (
            'extends = "ctr-base"\nfeatures.a = { of = "item", kind = "number", default = "x" }',
            r"default = 'x' must be a number for kind = number",
        ),
        ('extends = "ctr-base"\nfeatures.a = { of = "item", kind = "list", length = 0 }', r"length = 0 must be from 1 to 64 values"),
    ],
)
def test_what_cannot_be_extended_or_declared_is_named(models: Path, content: str, says: str) -> None:
    (models / "ctr-own.toml").write_text(content + "\n")
    with pytest.raises(SettingsError, match=says):
        recipe(CtrRecipe, "ctr-own", models)


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ("batch=256", "batch", 256),
        ("hidden=[4, 2]", "hidden", (4, 2)),
        ("extractor=cube", "extractor", "cube"),
        ("epochs = 5", "epochs", 5),
    ],
)
def test_set_changes_a_value(models: Path, change: str, field: str, value: Any) -> None:
    assert getattr(recipe(CtrRecipe, "ctr-wide", models, changes=[change]), field) == value


def test_set_reaches_into_tables_and_the_last_one_counts() -> None:
    made = recipe(
        EncoderRecipe, "moon-tiny", ROOT / "models", changes=["training.batch=8", "stage2a.pairs.text:rich=0.25", "training.batch=4"]
    )
    assert (made.training.batch, made.stage2a.pairs) == (
        4,
        {**recipe(EncoderRecipe, "moon-tiny", ROOT / "models").stage2a.pairs, "text:rich": 0.25},
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("batch", r"--set 'batch' is not KEY=VALUE → write e.g. --set training.batch=256"),
        ("=3", r"--set '=3' is not KEY=VALUE"),
        ("bach=3", r"bach = 3: there is no such key.*is batch meant\? \(there are: extractor, epochs, batch, .*, features\) → correct the"),
        ("zzz=3", r"zzz = 3: there is no such key.* \(there are: extractor, epochs, .*, features\) → correct the recipe, or what --set"),
        ("caps.visitr=3", r"caps.visitr = 3: there is no such key.*is visitor meant\? \(there are: visitor, visitor_item,"),
        ("features.of.kid=3", r"features.of.kid = 3: there is no such key.*is kind meant\? \(there are: of, kind, "),
        ("vector=int8", r"vector = 'int8': there is no such key.*is vectors meant"),
        ("most.user=3", r"most.user = 3: there is no such key, so it would change nothing"),
        ("zzz.y=3", r"zzz: there is no such key.* \(there are: extractor"),
        ("vectors=int4", r"vectors = 'int4': Input should be 'float32', 'float16' or 'int8' → "),
        ("batch=many", r"batch = 'many': Input should be a valid integer"),
        ("batch.size=3", r"batch: Input should be a valid integer"),
    ],
)
def test_a_wrong_set_is_named(models: Path, change: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        recipe(CtrRecipe, "ctr-wide", models, changes=[change])


def test_a_table_that_may_be_left_out_says_which_keys_it_has() -> None:
    says = r"lora.ranks = 3: there is no such key.*is rank meant\? \(there are: rank, alpha, layers, parts\)"
    with pytest.raises(SettingsError, match=says):
        recipe(EncoderRecipe, "moon-tiny", ROOT / "models", changes=["lora.rank=3", "lora.ranks=3"])


def test_what_recipes_declare_is_known_together_and_must_agree(models: Path) -> None:
    (models / "encoder.toml").write_text('family = "smolvlm"\n')
    assert [f.name for f in own_features(models)] == ["made_of", "weight"]
    (models / "ctr-zz.toml").write_text('extends = "ctr-base"\n[features]\nmade_of = { of = "item", kind = "number" }\n')
    with pytest.raises(SettingsError, match=r"features.made_of is declared twice: as the category made_of of the item, and as the number"):
        own_features(models)
