"""Publications of several machines: each is put into the lake's object store, and every machine fetches the newest into its own home.

A publication is a list of files that never change, and a row in the lake's table ``publications`` that names them: its number is the one
of the last plus one, and of two rows with one number the first counts. So a machine that was overtaken notices it, and no reader ever sees
half a publication. What the online store has been handed over stands in the row, too, since all machines share that store.

A lake in a directory has one machine: nothing here does anything then.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from moon_ops.embeddings import generations
from moon_ops.embeddings.generations import fresh_directory, swap
from moon_ops.errors import ServiceError
from moon_ops.files import TakenError, link, locked, write_text
from moon_ops.lake import objects
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import STAMP
from moon_ops.publication.places import (
    NARROW,
    cards_place,
    handed,
    index_name,
    index_place,
    narrow_lengths,
    published_place,
    table_place,
)
from moon_ops.settings import Settings

TABLE, OBJECTS = "publications", "publications-files"
SCHEMA = pa.schema([("encoder", pa.int32()), ("number", pa.int64()), ("created", STAMP), ("by", pa.string()), ("content", pa.string())])
OWN = "shop-ids"  # the view that each machine derives for itself: moon_ops.publication.shop_ids
TRIES = 3  # to fetch a publication: the files of an older one may be removed meanwhile


@dataclass(frozen=True)
class File:
    """A file of a publication: where it lies in the store, and which file of this machine it is (device, inode, time), if it is one."""

    key: str
    sha256: str
    here: tuple[int, ...] = ()


@dataclass(frozen=True)
class Publication:
    """What a row of the table says: the ``files`` by place and name (``index/v3/delta.npz``), and what was handed over, by view."""

    encoder: int
    number: int = 0
    files: dict[str, File] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)  # marks of these files
    online: dict[str, str] = field(default_factory=dict)  # marks of the online store
    published: str = ""
    created: str = ""  # as of when it was published, ISO 8601
    seen: int = 0  # the table's version at which this machine looked last


@contextlib.contextmanager
def turn(settings: Settings) -> Iterator[None]:
    """Publish while no other machine does, and nobody here fetches a publication."""
    if not settings.lake.remote:
        yield
        return
    with locked(_lock(settings)), settings.lake.turn("publish"):
        yield


def fetch(settings: Settings, encoder: int) -> bool:
    """Bring this home to the newest publication of the encoder; whether it has changed.

    While somebody here publishes, what is there stays. Raises :class:`ServiceError` if the store does not answer.
    """
    if not settings.lake.remote or _version(settings.lake) == _record(settings, encoder).seen:
        return False
    with contextlib.suppress(TakenError), locked(_lock(settings), patience=0):
        return fetch_in_turn(settings, encoder)
    return False


def fetch_in_turn(settings: Settings, encoder: int) -> bool:
    """:func:`fetch` for who holds the :func:`turn`."""
    if not settings.lake.remote:
        return False
    for left in reversed(range(TRIES)):
        known, version = _record(settings, encoder), _version(settings.lake)
        if version == known.seen:
            return False
        newest = latest(settings.lake, encoder)
        if newest is None:
            return False
        try:
            return _brought(settings, known, replace(newest, seen=version))
        except FileNotFoundError as gone:  # of a publication that has become an old one meanwhile
            if not left:
                problem = f"a file of publication {newest.number} of encoder {encoder} is gone from the store ({gone})"
                raise ServiceError(problem, action=f"run `moon publish --encoder {encoder} --full`") from gone
    return False


def share(settings: Settings, encoder: int, now: dt.datetime) -> None:
    """Put what this machine has published into the store, for who holds the :func:`turn`; :class:`ServiceError` if it was overtaken."""
    if not settings.lake.remote:
        return
    known, files = _record(settings, encoder), {}
    for name, path in _files(settings, encoder).items():
        there, here = known.files.get(name), _here(path)
        if there is None or there.here != here:
            key = f"{OBJECTS}/v{encoder}/{uuid.uuid4().hex}-{path.name}"
            there = File(key, objects.put(settings.lake, key, path), here)
        files[name] = there
    own, online = _marks(settings, encoder)
    made = Publication(encoder, known.number + 1, files, own, online, published_place(settings, encoder).read_text(), now.isoformat())
    if (made.files, own, online, made.published) == (known.files, known.own, known.online, known.published):
        return
    row = {"encoder": encoder, "number": made.number, "created": now, "by": socket.gethostname(), "content": json.dumps(asdict(made))}
    settings.lake.append(TABLE, pa.Table.from_pylist([row], schema=SCHEMA))
    first = latest(settings.lake, encoder, made.number)
    if first is None or first.files != {name: replace(file, here=()) for name, file in files.items()}:
        problem = f"another machine has published encoder {encoder} meanwhile, so what this one has made is not used"
        raise ServiceError(problem, action="run it again; with MOON_LOCKS set, machines take turns")
    _remember(settings, replace(made, seen=_version(settings.lake)))


def holds(settings: Settings, encoder: int) -> bool:
    """Whether this home has a publication of the encoder that other machines have, too."""
    return _record(settings, encoder).number > 0


def is_current(settings: Settings, encoder: int, now: dt.datetime) -> bool:
    """:func:`~moon_ops.publication.marks.is_current` of what all machines have; not, if this one was killed before it shared its own."""
    from moon_ops.publication import marks

    fetch(settings, encoder)
    if not marks.is_current(settings, encoder, now):
        return False
    known = _record(settings, encoder)
    mine = {name: _here(path) for name, path in _files(settings, encoder).items()} if settings.lake.remote else {}
    return mine == {name: file.here for name, file in known.files.items()}


def latest(lake: Lake, encoder: int, number: int | None = None) -> Publication | None:
    """The newest publication of an encoder, or that of a ``number``; None if there is none. The online store's marks are the newest."""
    if not lake.exists(TABLE):
        return None
    table = lake.open(TABLE)
    rows = table.to_table(columns=["encoder", "number"]).to_pylist()
    mine = [(row["number"], -at) for at, row in enumerate(rows) if row["encoder"] == encoder and number in (None, row["number"])]
    if not mine:
        return None
    chosen = -max(mine)[1]  # of one number the first
    mark, last = table.take([chosen, len(rows) - 1], columns=["content"])["content"].to_pylist()
    return replace(_parsed(mark), online=_parsed(last).online, seen=0)


def tidy(lake: Lake, keep: dt.timedelta, now: dt.datetime) -> int:
    """Remove rows and files of publications that have become old; how many files. What is younger than ``keep`` stays, and the newest."""
    if not lake.remote or not lake.exists(TABLE):
        return 0
    rows = lake.read(TABLE, ["encoder", "number", "created"]).to_pylist()
    newest = {row["encoder"]: row["number"] for row in sorted(rows, key=lambda row: row["number"])}
    old = [row for row in rows[:-1] if row["number"] != newest[row["encoder"]] and row["created"] <= now - keep]
    for row in old:
        lake.open(TABLE).delete(f"encoder = {row['encoder']} AND number = {row['number']}")
    named = {file.key for content in lake.read(TABLE, ["content"])["content"].to_pylist() for file in _parsed(content).files.values()}
    gone = [key for key in objects.keys(lake, OBJECTS) if key not in named]
    for key in gone:
        objects.remove(lake, key)
    return len(gone)


def _brought(settings: Settings, known: Publication, newest: Publication) -> bool:
    """Fetch what is new since ``known``; whether there were files."""
    changed = newest.number != known.number
    files = newest.files
    if changed:
        files = {}
        for place in _places(settings, newest.encoder, _lengths(newest)):
            files |= _directory(settings, place, known, newest)
        for view, mark in newest.own.items():
            write_text(_made(handed(settings, view)), mark)
        from moon_ops.publication import shop_ids

        shop_ids.publish(settings, dt.datetime.fromisoformat(newest.created), full=False)
        shop_ids.forget_erased(settings)
    for view, mark in newest.online.items():
        write_text(_made(handed(settings, view)), mark)
    if changed:
        write_text(_made(published_place(settings, newest.encoder)), newest.published)
    _remember(settings, replace(newest, files=files if changed else known.files))  # last: a killed one is fetched again
    return changed


def _directory(settings: Settings, place: Path, known: Publication, newest: Publication) -> dict[str, File]:
    """One table, or the index: files that are here already are linked, others fetched; then it takes the old one's place."""
    prefix, at = f"{place.relative_to(settings.home).as_posix()}/", place.resolve()
    found: dict[str, File] = {}
    if place == cards_place(settings, newest.encoder) and not any(name.startswith(prefix) for name in newest.files):
        handed(settings, place.name).unlink(missing_ok=True)  # an older version has published, and has none
        generations.remove(place)
        return found
    with fresh_directory(place) as fresh:
        for name, file in newest.files.items():
            if not name.startswith(prefix):
                continue
            own, had = name.removeprefix(prefix), known.files.get(name)
            (fresh / own).parent.mkdir(exist_ok=True)  # of a shard
            if had is not None and had.key == file.key and (at / own).is_file() and _here(at / own) == had.here:
                link(at / own, fresh / own)
            else:
                objects.get(settings.lake, file.key, fresh / own, file.sha256)
            found[name] = replace(file, here=_here(fresh / own))
        swap(fresh, place)
    return found


def _lengths(newest: Publication) -> list[int]:
    """Of shorter vectors of which there are indexes in a publication."""
    start = f"index/v{newest.encoder}{NARROW}"
    return sorted({int(name.removeprefix(start).partition("/")[0]) for name in newest.files if name.startswith(start)})


def _places(settings: Settings, encoder: int, lengths: Sequence[int]) -> list[Path]:
    """The directories of a publication, in the order in which one is made."""
    tables = (table_place(settings, kind, encoder) for kind in ("items", "queries"))
    return [*tables, cards_place(settings, encoder), *(index_place(settings, encoder, length) for length in (0, *lengths))]


def _files(settings: Settings, encoder: int) -> dict[str, Path]:
    """The files that this home has of it, by place and name."""
    found: dict[str, Path] = {}
    for place in _places(settings, encoder, narrow_lengths(settings, encoder)):
        at = place.resolve()
        if not at.is_dir():  # cards, where an older version has published
            continue
        listed = {path.relative_to(at).as_posix(): path for path in sorted(at.rglob("*")) if path.is_file()}
        found |= {f"{place.relative_to(settings.home).as_posix()}/{name}": path for name, path in listed.items()}
    return found


def _marks(settings: Settings, encoder: int) -> tuple[dict[str, str], dict[str, str]]:
    """What was handed over to this encoder's files, and to the online store; what is each machine's own is left out."""
    handed_over = {place.stem: place.read_text() for place in sorted((settings.home / "tables" / "handed").glob("*.json"))}
    bound = {view for view in handed_over if view.startswith(("table-", "index-", "cards-"))}
    names = [index_name(encoder, length) for length in (0, *narrow_lengths(settings, encoder))]
    own = {f"table-items-v{encoder}", f"table-queries-v{encoder}", f"cards-v{encoder}"}
    own |= {f"{kind}-{name}" for kind in ("index", "index-items") for name in names}
    online = {view: mark for view, mark in handed_over.items() if view not in bound and view != OWN}
    return {view: handed_over[view] for view in own & bound}, online


def _here(path: Path) -> tuple[int, ...]:
    """What tells whether a file is the one it was: files of a publication are never written to again."""
    known = path.stat()
    return known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns


def _version(lake: Lake) -> int:
    return int(lake.open(TABLE).version) if lake.exists(TABLE) else 0


def _lock(settings: Settings) -> Path:
    return _made(settings.home / "tables" / "sharing.lock")


def _made(place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _record_place(settings: Settings, encoder: int) -> Path:
    return settings.home / "tables" / f"shared-v{encoder}.json"


def _record(settings: Settings, encoder: int) -> Publication:
    """The publication that this home holds, as far as it is known."""
    try:
        return _parsed(_record_place(settings, encoder).read_text(), here=True)
    except (OSError, ValueError, KeyError, TypeError):
        return Publication(encoder)


def _remember(settings: Settings, held: Publication) -> None:
    write_text(_made(_record_place(settings, held.encoder)), json.dumps(asdict(held)))


def _parsed(content: str, *, here: bool = False) -> Publication:
    read: dict[str, Any] = json.loads(content)
    files = {name: File(f["key"], f["sha256"], tuple(f["here"]) if here else ()) for name, f in read["files"].items()}
    return Publication(**{**read, "files": files})
