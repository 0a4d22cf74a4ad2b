"""--engine: four commands take it, the setting is what they do without it, and a name that is none stops them before they begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moon_ops import tasks
from moon_ops.cli.main import app
from moon_ops.errors import InputError
from moon_ops.publication import publication
from moon_ops.registry import encoders
from moon_ops.release import clicks, stages, windows
from moon_ops.settings import Settings

COMMANDS = {
    "embed": (stages, "embed", ("--encoder", "1")),
    "publish": (publication, "publish", ("--encoder", "1")),
    "train": (stages, "train", ("--trained-until", "2026-02-15")),
    "ctr": (clicks, "train_ctr", ("--encoder", "1")),
}


class ReachedError(Exception):
    """The stage, with these settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


def reached(settings: Settings, *_: Any, **__: Any) -> None:
    raise ReachedError(settings)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stage_gets_the_engine_of_the_command_or_of_the_setting(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, stage, words = COMMANDS[command]
    monkeypatch.setattr(module, stage, reached)
    for name in ("windows", "encoder_version"):  # what is asked of a lake before the stage
        for where in (windows, encoders):
            monkeypatch.setattr(where, name, lambda *_, **__: type("Known", (), {"trained_until": None})(), raising=False)
    asked = [command, "--home", str(tmp_path), *words]
    found = []
    for variable, option in (("", ()), ("ray", ()), ("ray", ("--engine", "local")), ("", ("--engine", "ray"))):
        monkeypatch.setenv("MOON_ENGINE", variable)
        done = CliRunner().invoke(app, [*asked, *option])
        assert isinstance(done.exception, ReachedError), done.exception
        found.append(done.exception.settings.engine)
    assert found == ["local", "ray", "local", "ray"]
    refused = CliRunner().invoke(app, [*asked, "--engine", "spark"]).exception
    assert isinstance(refused, InputError)
    assert str(refused) == "engine 'spark' is not known → choose local or ray"


def test_new_items_are_embedded_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cluster would take longer to begin than a few items take."""
    monkeypatch.setenv("MOON_HOME", str(tmp_path))
    monkeypatch.setenv("MOON_ENGINE", "ray")
    monkeypatch.setattr(tasks, "_encoder_to_serve", lambda *_: 1)
    monkeypatch.setattr(stages, "embed", reached)
    with pytest.raises(ReachedError) as found:
        tasks.embed_for_champion("2026-02-01T00:00:00+00:00")
    assert found.value.settings.engine == "local"
