"""A trained checkpoint where the next stage finds it, on whatever machine that runs: its name is all that a scheduler carries.

In a home with a lake in a directory there is one machine, and nothing is copied.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path

from moon_ops.embeddings.generations import fresh_directory
from moon_ops.errors import StageError
from moon_ops.files import write_text
from moon_ops.lake import objects
from moon_ops.settings import Settings

STORED = "checkpoints"  # in the lake's object store
LISTED = "files.json"  # written last: what a checkpoint consists of
WAITS = dt.timedelta(days=2)  # at most, from the end of a training to its export
SCRATCH = ("pixels-", ".")  # decoded pictures, and what a killed writer left: the next machine makes its own


def keep(settings: Settings, checkpoint: Path) -> str:
    """Put a finished checkpoint where all machines find it; its name."""
    name = checkpoint.name
    if settings.lake.remote:
        files = {path.relative_to(checkpoint).as_posix(): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}
        files = {inner: path for inner, path in files.items() if not path.name.startswith(SCRATCH)}
        listed = {inner: objects.put(settings.lake, f"{STORED}/{name}/{inner}", path) for inner, path in files.items()}
        note = settings.home / "checkpoints" / f".{name}.{LISTED}"
        write_text(note, json.dumps(listed))
        objects.put(settings.lake, f"{STORED}/{name}/{LISTED}", note)
        note.unlink()
    return name


def find(settings: Settings, name: str) -> Path:
    """The directory of a checkpoint that :func:`keep` was given; fetched, if another machine has trained it.

    Raises :class:`StageError` if no machine has.
    """
    place = settings.home / "checkpoints" / Path(name).name
    if (place / "training.json").is_file() or not settings.lake.remote:
        return place
    try:
        return _fetched(settings, place)
    except FileNotFoundError as missing:
        problem = f"there is no checkpoint {place.name}, neither in {place.parent} nor at {settings.lake.uri}/{STORED}"
        raise StageError(problem, action="train it again") from missing


def tidy(settings: Settings, keep: dt.timedelta, now: dt.datetime) -> int:
    """Remove checkpoints that lie in the lake's store for longer than ``keep`` and two days; how many. What was exported of them stays in
    the registry."""
    lake = settings.lake
    before = now - max(keep, WAITS)
    old = [name for name, when in objects.newest(lake, STORED).items() if when < before] if lake.remote else []
    for name in old:
        objects.remove(lake, f"{STORED}/{name}/{LISTED}")  # first: a checkpoint without it is none
        for key in list(objects.keys(lake, f"{STORED}/{name}")):
            objects.remove(lake, key)
    return len(old)


def _fetched(settings: Settings, place: Path) -> Path:
    with fresh_directory(place) as fresh:
        listed = fresh / LISTED
        objects.get(settings.lake, f"{STORED}/{place.name}/{LISTED}", listed, None)
        for inner, sha256 in json.loads(listed.read_text()).items():
            (fresh / inner).parent.mkdir(parents=True, exist_ok=True)
            objects.get(settings.lake, f"{STORED}/{place.name}/{inner}", fresh / inner, sha256)
        listed.unlink()
        shutil.rmtree(place, ignore_errors=True)  # of a training that was killed here and done elsewhere
        fresh.rename(place)
    return place
