"""Training as a stage: a killed run goes on in its own MLflow run, one at a time, and other settings are another run."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moon_ops.encoder import train as encoder_train
from moon_ops.encoder.budget import Means
from moon_ops.errors import StageError
from moon_ops.metric_names import PARAMETERS, TRAINED
from moon_ops.registry.registry import Registry
from moon_ops.release import stages
from moon_ops.release.stages import Trained
from moon_ops.settings import Settings

UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)
OFTEN = {"checkpoint_steps": 4}


def train(settings: Settings, *, seed: int = 0, **override: Any) -> Trained:
    return stages.train(settings, "mini", trained_until=UNTIL, seed=seed, **{"training": OFTEN, **override})


def runs(settings: Settings) -> dict[str, str]:
    """Run → status."""
    registry = Registry(settings)
    return {run.info.run_id: run.info.status for run in registry.client.search_runs([registry.experiment_id])}


def losses(settings: Settings, run_id: str) -> dict[int, float]:
    """Step → loss, as MLflow knows it."""
    return {m.step: m.value for m in Registry(settings).client.get_metric_history(run_id, "loss")}


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die when the figures of ``step`` are told."""
    log = Registry.log

    def dies(self: Registry, run_id: str, metrics: Mapping[str, float], at: int = 0) -> None:
        if at == step:
            raise KeyboardInterrupt
        log(self, run_id, metrics, at)

    patch.setattr(Registry, "log", dies)


def test_the_settings_say_who_makes_batches_and_how_many_pictures_are_kept(workshop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Means] = []

    def learn(*_: Any, means: Means, **__: Any) -> None:
        seen.append(means)
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder_train, "train", learn)
    for settings in (workshop, workshop.replace(loaders=3, pictures_gb=0.5)):
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    assert seen == [Means(None, None, 20 * 10**9), Means(None, 3, 5 * 10**8)]


def test_a_killed_run_goes_on_in_the_same_mlflow_run_and_ends_with_the_same_losses(
    workshop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 10 of stage 2a, which is step 12 of all; the newest checkpoint is that of step 8."""
    expected = train(workshop.replace(home=tmp_path / "undisturbed"))
    with monkeypatch.context() as patch:
        kill_at(patch, 12)
        with pytest.raises(KeyboardInterrupt):
            train(workshop)
    (killed,) = runs(workshop).keys() - {expected.run_id}
    assert runs(workshop) == {expected.run_id: "FINISHED", killed: "FAILED"}
    assert not list((workshop.home / "checkpoints").glob("mini-*/training.json"))
    done = train(workshop)
    assert (done.run_id, runs(workshop)) == (killed, {expected.run_id: "FINISHED", killed: "FINISHED"})
    place = Path(done.checkpoint)
    report = json.loads((place / "training.json").read_text())
    assert (report["resumed_at"], report["steps"]) == (10, 18)
    assert done.last_loss == expected.last_loss
    assert losses(workshop, done.run_id) == losses(workshop, expected.run_id)
    assert sorted(losses(workshop, done.run_id)) == [0, 1, 2, 12, 13, 14, 17]
    mine, theirs = (load_file(Path(t.checkpoint) / "model.safetensors") for t in (done, expected))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    left = {p.name for p in place.parent.iterdir()}
    assert left == {place.name, f".{place.name}.lock"}, "neither a note nor a half trained encoder is left"


def test_two_trainings_of_the_same_settings_at_once_are_refused(workshop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    short: dict[str, Any] = {"stage1": {"steps": 0}, "stage2a": {"steps": 1}, "stage2b": {"steps": 0}}
    log, met = Registry.log, []

    def others_start(self: Registry, run_id: str, metrics: Mapping[str, float], at: int = 0) -> None:
        if not met:
            met.append(run_id)
            with pytest.raises(StageError, match="'train mini' with these very settings is running already → wait for it"):
                train(workshop, **short)
            met.append(train(workshop, seed=1, **short).run_id)
        log(self, run_id, metrics, at)

    monkeypatch.setattr(Registry, "log", others_start)
    done = train(workshop, **short)
    assert met[0] == done.run_id
    assert runs(workshop) == {done.run_id: "FINISHED", met[1]: "FINISHED"}, "another seed is no hindrance"


def test_other_settings_are_another_checkpoint_and_the_same_ones_the_same(workshop: Settings) -> None:
    short = {"stage1": {"steps": 0}, "stage2a": {"steps": 2}, "stage2b": {"steps": 0}}
    first, again, other = train(workshop, **short), train(workshop, **short), train(workshop, seed=1, **short)
    assert first.checkpoint == again.checkpoint != other.checkpoint
    assert first.last_loss == again.last_loss != other.last_loss
    assert len(runs(workshop)) == 3, "a finished run is not taken up"
    assert json.loads((Path(other.checkpoint) / "training.json").read_text())["seed"] == 1


def test_a_recipes_switches_are_parameters_of_its_run(workshop: Settings) -> None:
    done = train(workshop, stage1={"steps": 0}, stage2a={"steps": 1}, stage2b={"steps": 0, "margin": 0.125})
    told = Registry(workshop).client.get_run(done.run_id).data
    params, count = told.params, json.loads((Path(done.checkpoint) / "training.json").read_text())["parameters"]
    assert (told.metrics[PARAMETERS], told.metrics[TRAINED]) == (count, count)
    assert {k: params[k] for k in ("recipe", "seed", "training.batch", "stage2b.margin", "text.hidden_size", "tower")} == {
        "recipe": "mini", "seed": "0", "training.batch": "8", "stage2b.margin": "0.125", "text.hidden_size": "32", "tower": "vit",
    }  # fmt: skip


def test_of_several_processes_only_the_first_keeps_an_mlflow_run(workshop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would find the lock taken."""
    told: list[Any] = []

    def trains(*_: Any, on_step: Any = None, **__: Any) -> Any:
        told.append(on_step)
        return replace(report, last_loss=0.5)

    from moon_ops.encoder import train as training

    report = training.TrainReport("mini", "", 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0)
    monkeypatch.setattr(training, "train", trains)
    monkeypatch.setenv("RANK", "1")
    second = train(workshop)
    assert (second.run_id, second.last_loss, told) == ("", 0.5, [None])
    assert runs(workshop) == {}
    monkeypatch.setenv("RANK", "0")
    first = train(workshop)
    assert first.checkpoint == second.checkpoint
    assert runs(workshop) == {first.run_id: "FINISHED"}
