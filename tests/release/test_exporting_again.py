"""A checkpoint that is exported again is the version that it is already; another content is another version."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import pytest

from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.release import stages
from moon_ops.release.stages import Exported
from moon_ops.settings import Settings


@pytest.fixture
def checkpoint(copied: Settings) -> Path:
    """What was exported to the released encoder, as its training left it."""
    place = copied.home / "checkpoints" / "again"
    shutil.copytree(Registry(copied).fetch(ENCODER, 1), place)
    for made in (*place.glob("*.onnx*"), place / "contract.json", place / "certificate.json"):
        made.unlink()
    return place


def test_the_same_checkpoint_is_the_same_version(
    copied: Settings, checkpoint: Path, now: dt.datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stages.export(copied, checkpoint) == Exported(1, before=True)
    assert stages.export(copied, checkpoint) == Exported(1, before=True)
    assert Registry(copied).newest(ENCODER) == 1
    items, queries = stages.embed(copied, 1, now=now)
    assert (items.embedded, queries.embedded) == (0, 0)
    from moon_ops.cli import main

    capsys.readouterr()
    main.export(checkpoint, home=copied.home)
    assert capsys.readouterr().out.split("\n")[:2] == [
        "encoder: 1",
        "note: registered before: nothing is new, and its vectors are kept",
    ]


def test_an_export_killed_before_it_was_registered_is_done_again(
    copied: Settings, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the files are stored and before a version names them; and after the version, before its run is closed."""
    registry = Registry(copied)
    known = registry.file
    registry.client.delete_model_version(ENCODER, "1")
    assert known is not None
    real = Registry.register
    with monkeypatch.context() as patch:
        patch.setattr(type(registry.client), "create_model_version", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stages.export(copied, checkpoint)
    assert registry.newest(ENCODER) is None

    def killed(self: Registry, *given: object) -> int:
        real(self, *given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "register", killed)
        with pytest.raises(KeyboardInterrupt):
            stages.export(copied, checkpoint)
    version = registry.newest(ENCODER)
    assert stages.export(copied, checkpoint) == Exported(version or 0, before=True)


@pytest.mark.parametrize("lost", ["trunk.onnx", "contract.json", "model.safetensors"])
def test_a_version_whose_files_are_not_whole_is_registered_anew(copied: Settings, checkpoint: Path, lost: str) -> None:
    place = Registry(copied).fetch(ENCODER, 1) / lost
    place.write_bytes(place.read_bytes()[:-9])
    assert stages.export(copied, checkpoint) == Exported(2)
    assert stages.export(copied, checkpoint) == Exported(2, before=True)


def test_another_time_of_training_and_another_variant_are_other_versions(copied: Settings, checkpoint: Path) -> None:
    import json

    about = json.loads((checkpoint / "training.json").read_text())
    (checkpoint / "training.json").write_text(json.dumps({**about, "seed": 7}))
    assert stages.export(copied, checkpoint) == Exported(2)
    (checkpoint / "training.json").write_text(json.dumps(about))
    assert stages.export(copied, checkpoint, ["int8"]) == Exported(3)
    assert stages.export(copied, checkpoint, ["int8"]) == Exported(3, before=True)
