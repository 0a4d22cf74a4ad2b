"""Settings and recipes: what is wrong is named with its value and its rule, when it is read."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
from pathlib import Path

import pytest

from moon_ops import errors
from moon_ops.errors import (
    ContractError,
    GateError,
    InputError,
    LeakError,
    MoonError,
    ServiceError,
    SettingsError,
    StageError,
)
from moon_ops.recipes import CtrRecipe, EncoderRecipe, Gates, recipe
from moon_ops.settings import ROOT, Settings

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
steps = 60
batch = 32
learning_rate = 2e-3
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
KINDS = {"encoder": EncoderRecipe, "ctr": CtrRecipe, "gates": Gates}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, text in (("encoder", ENCODER), ("ctr", CTR), ("gates", GATES)):
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


def test_a_recipe_has_the_file_s_values_and_else_the_defaults(models: Path) -> None:
    read = recipe(EncoderRecipe, "encoder", models)
    assert (read.name, read.family, read.inputs.picture_size, read.inputs.max_pictures) == ("encoder", "smolvlm", 32, 2)
    assert (read.training.steps, read.training.learning_rate, read.training.temperature) == (60, 2e-3, 0.07)
    assert read.vision == {"hidden_size": 64, "patch_size": 8}
    assert recipe(CtrRecipe, "ctr", models).hidden == (64, 32)
    assert recipe(Gates, "gates", models).parity_floor == 0.999


def test_a_recipe_cannot_be_changed(models: Path) -> None:
    read = recipe(EncoderRecipe, "encoder", models)
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.name = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.training.steps = 1  # type: ignore[misc]


def test_an_override_replaces_a_key_and_leaves_its_neighbours(models: Path) -> None:
    read = recipe(EncoderRecipe, "encoder", models, training={"steps": 7}, vocabulary=500)
    assert (read.training.steps, read.training.batch, read.vocabulary) == (7, 32, 500)
    assert recipe(EncoderRecipe, "encoder", models).training.steps == 60


def test_an_override_keeps_the_rules(models: Path) -> None:
    with pytest.raises(SettingsError, match=r"encoder\.toml: training.*steps = -1 must be 0 or more"):
        recipe(EncoderRecipe, "encoder", models, training={"steps": -1})


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_in_the_repository_is_read(path: Path) -> None:
    kind = EncoderRecipe if "family" in path.read_text() else CtrRecipe if "extractor" in path.read_text() else Gates
    assert recipe(kind, path.stem, MODELS).name == path.stem


WRONG = [  # file, line of it, the line instead, what the message must say
    ("encoder", "steps = 60", "stepps = 60", ["training.stepps = 60", "Unexpected keyword argument"]),
    ("encoder", "steps = 60", "", ["training.steps", "Missing required argument|Field required"]),
    ("encoder", 'family = "smolvlm"', 'family = "clip"', ["family = 'clip'", "should be 'smolvlm'"]),
    ("encoder", 'family = "smolvlm"', 'family = "smolvlm"\nfamilly = 1', ["familly = 1", "Unexpected keyword argument"]),
    ("encoder", "steps = 60", 'steps = "many"', ["training.steps = 'many'", "valid integer"]),
    ("encoder", "steps = 60", 'steps = "60"', ["training.steps = '60'", "valid integer"]),
    ("encoder", "steps = 60", "steps = true", ["training.steps = True", "valid integer"]),
    ("encoder", "steps = 60", "steps = 60\naugment = 1", ["training.augment = 1", "valid boolean"]),
    ("encoder", "steps = 60", "steps = 2026-01-01", ["training.steps = '2026-01-01'", "valid integer"]),
    ("encoder", "steps = 60", "steps = 1.5", ["training.steps = 1.5", "valid integer"]),
    ("encoder", "steps = 60", "steps = -1", ["steps = -1", "must be 0 or more"]),
    ("encoder", "batch = 32", "batch = 1", ["batch = 1", "must be at least 2: one pair has no negatives"]),
    ("encoder", "learning_rate = 2e-3", "learning_rate = 0.0", ["learning_rate = 0.0", "must be between 0 and 1"]),
    ("encoder", "steps = 60", "steps = 60\ntemperature = 0", ["temperature = 0.0", "must be above 0, at most 1"]),
    ("encoder", "steps = 60", "steps = 60\nwarmup_steps = -5", ["warmup_steps = -5", "must be 0 or more"]),
    ("encoder", "steps = 60", "steps = 60\npictures = 0", ["pictures = 0", "must be at least 1"]),
    ("encoder", "steps = 60", "steps = 60\ntext_dropout = 1.0", ["text_dropout = 1.0", "must be from 0, below 1"]),
    ("encoder", "steps = 60", "steps = 60\nmatrix_learning_rate = 1", ["matrix_learning_rate = 1.0", "must be from 0, below 1"]),
    ("encoder", "picture_size = 32", "picture_size = 8", ["picture_size = 8", "must be at least 16 pixels"]),
    ("encoder", "picture_size = 32", "picture_size = 40", ["inputs.picture_size = 40", "a multiple of patch_size × scale_factor = 16"]),
    ("encoder", "picture_size = 32", "picture_size = 32\nmax_pictures = 0", ["max_pictures = 0", "must be at least 1"]),
    ("encoder", "picture_size = 32", "picture_size = 32\nmax_text_tokens = 3", ["max_text_tokens = 3", "must be at least 4 tokens"]),
    ("encoder", "[inputs]", "vocabulary = 100\n[inputs]", ["vocabulary = 100", "must be at least 300"]),
    ("encoder", "[inputs]", 'checkpoint = "a/b"\n[inputs]', ["checkpoint = 'a/b'", r"given, or else \[vision\] and \[text\]"]),
    ("encoder", "[text]\nhidden_size = 64", "", ["checkpoint = ''", r"given, or else \[vision\] and \[text\]"]),
    ("encoder", "patch_size = 8", 'patch_size = "eight"', ["vision.patch_size", "'eight'", "valid integer"]),
    ("ctr", 'extractor = "din"', 'extractor = "mlp"', ["extractor = 'mlp'", "'din' or 'cube'"]),
    ("ctr", "epochs = 2", "epochs = 0", ["epochs = 0", "must be at least 1"]),
    ("ctr", "batch = 512", "batch = 0", ["batch = 0", "must be at least 1 row"]),
    ("ctr", "epochs = 2", "epochs = 2\nbehaviors = 0", ["behaviors = 0", "must be at least 1"]),
    ("ctr", "epochs = 2", "epochs = 2\ndropout = 1.0", ["dropout = 1.0", "must be from 0, below 1"]),
    ("ctr", "epochs = 2", 'epochs = 2\nhidden = "64"', ["hidden = '64'", "valid array"]),
    ("gates", "recall_floor = 0.1", "recall_floor = 10", ["recall_floor = 10.0", "must be between 0 and 1"]),
    ("gates", "auc_tolerance = 0.005", "auc_tolerance = nan", ["auc_tolerance = nan", "must be between 0 and 1"]),
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


def test_a_checkpoint_needs_no_vision_or_text(models: Path) -> None:
    (models / "hub.toml").write_text(
        'family = "smolvlm"\ncheckpoint = "a/b"\n[inputs]\npicture_size = 500\n'
        + "[training]\nsteps = 0\nbatch = 2\nlearning_rate = 1e-4\n"
    )
    assert recipe(EncoderRecipe, "hub", models).checkpoint == "a/b"


def test_an_unknown_recipe_is_answered_with_the_known_ones(models: Path) -> None:
    with pytest.raises(SettingsError, match=r"no recipe 'moon-huge' in .* \(there are: ctr, encoder, gates\) → name one of these"):
        recipe(EncoderRecipe, "moon-huge", models)
    with pytest.raises(SettingsError, match=r"\(there are: none\)"):
        recipe(EncoderRecipe, "moon-huge", models / "nowhere")


@pytest.mark.parametrize("content", [b"steps = = 1\n", b"family = \xff\n"], ids=["syntax", "encoding"])
def test_a_file_that_is_not_toml_is_named(models: Path, content: bytes) -> None:
    (models / "encoder.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"encoder\.toml is not TOML \(.+\) → mend the line it names"):
        recipe(EncoderRecipe, "encoder", models)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in [n for n in os.environ if n.startswith("MOON_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_without_an_environment_everything_lies_under_one_home(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings.from_environment()
    assert settings.home == tmp_path / ".moon"
    assert settings.lake.uri == str(tmp_path / ".moon" / "lake")
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/.moon/mlflow.db"
    assert (settings.redis, settings.models, settings.inbox) == ("", MODELS, None)
    assert (settings.host, settings.port) == ("127.0.0.1", 8321)
    assert 1 <= settings.workers <= 8
    assert list(tmp_path.iterdir()) == []  # reading settings makes nothing


def test_every_variable_is_read(clean: pytest.MonkeyPatch) -> None:
    given = {"HOME": "/data/moon", "LAKE": "s3://shop/lake", "TRACKING_URI": "http://mlflow:5000", "REDIS": "redis:6379"}
    given |= {"MODELS": "/etc/moon", "INBOX": "/data/inbox", "WORKERS": "3", "HOST": "0.0.0.0", "PORT": "80"}
    for name, value in given.items():
        clean.setenv(f"MOON_{name}", value)
    settings = Settings.from_environment()
    assert (settings.home, settings.models, settings.inbox) == (Path("/data/moon"), Path("/etc/moon"), Path("/data/inbox"))
    assert (settings.lake.uri, settings.tracking_uri, settings.redis) == ("s3://shop/lake", "http://mlflow:5000", "redis:6379")
    assert (settings.workers, settings.host, settings.port) == (3, "0.0.0.0", 80)


def test_an_empty_variable_is_as_good_as_none(clean: pytest.MonkeyPatch) -> None:
    plain = Settings.from_environment()
    for name in ("HOME", "LAKE", "TRACKING_URI", "REDIS", "MODELS", "INBOX", "WORKERS", "HOST", "PORT"):
        clean.setenv(f"MOON_{name}", "")
    assert Settings.from_environment() == plain


def test_a_home_that_is_named_wins_over_the_environment(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean.setenv("MOON_HOME", "/elsewhere")
    settings = Settings.from_environment(tmp_path / "here")
    assert settings.home == tmp_path / "here"
    assert settings.lake.uri == str(tmp_path / "here" / "lake")


@pytest.mark.parametrize("name", ["MOON_WORKERS", "MOON_PORT"])
@pytest.mark.parametrize("value", ["eighty", "0", "-1", "8.5", " "])
def test_a_number_that_is_none_is_named(clean: pytest.MonkeyPatch, name: str, value: str) -> None:
    clean.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"{name} = '{re.escape(value)}' is not a whole number from 1 → set {name} to e\.g\. \d+"):
        Settings.from_environment()


def test_a_port_that_does_not_exist_is_named(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("MOON_PORT", "65535")
    assert Settings.from_environment().port == 65535
    clean.setenv("MOON_PORT", "65536")
    with pytest.raises(SettingsError, match="MOON_PORT = '65536' is above 65535"):
        Settings.from_environment()


def test_a_home_that_is_a_file_is_named(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    clean.setenv("MOON_HOME", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=r"MOON_HOME = .*/file is a file, so nothing can be kept there → name a directory"):
        Settings.from_environment()


@pytest.mark.parametrize("kind", [SettingsError, InputError, StageError, ContractError, LeakError, GateError, ServiceError])
def test_an_error_keeps_its_action_across_processes(kind: type[MoonError]) -> None:
    sent = pickle.loads(pickle.dumps(kind("steps = -1", action="correct it")))
    assert type(sent) is kind
    assert (sent.problem, sent.action, str(sent)) == ("steps = -1", "correct it", "steps = -1 → correct it")
    assert kind.__name__ in str(errors.__doc__)  # the tree is drawn there
