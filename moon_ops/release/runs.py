"""A stage's run: one at a time, its MLflow run, and where its result goes; a killed one goes on in the run that it had."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moon_ops.errors import StageError
from moon_ops.files import TakenError, locked, write_text
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.registry.registry import Registry
from moon_ops.settings import Settings


def place_of(settings: Settings, name: str, params: dict[str, Any], suffix: str = "") -> Path:
    """Where the training of these settings writes to."""
    key = hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()[:10]
    out = settings.home / "checkpoints" / f"{name}-{key}{suffix}"
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


@contextlib.contextmanager
def run_of(registry: Registry, out: Path, name: str, params: dict[str, Any], tags: dict[str, str] | None = None) -> Iterator[str]:
    """The MLflow run of a training that nobody else runs now; one that was killed goes on in the run that it had."""
    note = out.with_name(f"{out.name}.run")
    with alone(out.with_name(f".{out.name}.lock"), f"'{name}'"):
        killed = note.read_text() if note.is_file() else None
        with tracked(registry, name, params, tags, resume=killed) as run_id:
            write_text(note, run_id)
            yield run_id
        note.unlink(missing_ok=True)


def flat(chosen: EncoderRecipe | CtrRecipe) -> dict[str, Any]:
    """The recipe's switches as MLflow parameters: ``training.batch``, ``stage2b.margin``, …"""
    out: dict[str, Any] = {}
    for key, value in asdict(chosen).items():
        out |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in out.items() if key != "name"}


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold ``lock``; :class:`StageError` if another call does."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(lock, patience=0))
        except TakenError as taken:
            raise StageError(f"{what} with these very settings is running already", action="wait for it, or stop it") from taken
        yield


def log_step(registry: Registry, run_id: str, step: int, found: dict[str, float]) -> None:
    """What a training says of itself while it runs."""
    registry.log(run_id, found, step)


@contextlib.contextmanager
def tracked(
    registry: Registry, name: str, params: dict[str, Any], tags: dict[str, str] | None = None, resume: str | None = None
) -> Iterator[str]:
    """An MLflow run that is closed as failed when its stage fails; ``resume`` names one to go on with."""
    run_id = resume if resume and registry.reopen(resume) else registry.start_run(name, params, tags)
    try:
        yield run_id
    except BaseException:
        registry.finish(run_id, failed=True)
        raise
    registry.finish(run_id)
