"""Where a home keeps what a publication has made of an encoder's vectors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from moon_ops.ctr.kept import Kept
from moon_ops.ctr.vectors import Tables
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import ServiceError, StageError
from moon_ops.settings import Settings

NARROW = ".first"  # in the name of an index of shorter vectors


def table_place(settings: Settings, kind: str, encoder: int) -> Path:
    """Where the representation table of ``items`` or ``queries`` lies."""
    return settings.home / "tables" / f"{kind}-v{encoder}"


def index_place(settings: Settings, encoder: int, dimensions: int = 0) -> Path:
    """Where the encoder's index lies: of whole vectors, or of the first ``dimensions`` of each."""
    return settings.home / "index" / index_name(encoder, dimensions)


def index_name(encoder: int, dimensions: int = 0) -> str:
    """What that index is called, e.g. ``v3``, or ``v3.first32``."""
    return f"v{encoder}{NARROW}{dimensions}" if dimensions else f"v{encoder}"


def narrow_lengths(settings: Settings, encoder: int) -> list[int]:
    """The lengths below the whole one of which this home has an index."""
    found = (place.name.partition(NARROW)[2] for place in (settings.home / "index").glob(f"v{encoder}{NARROW}*"))
    return sorted(int(length) for length in found if length.isdecimal())


def cards_place(settings: Settings, encoder: int) -> Path:
    """Where the cards of the items lie that the encoder's index finds."""
    return settings.home / "tables" / f"cards-v{encoder}"


def table(settings: Settings, kind: str, encoder: int) -> RepresentationTable:
    """The representation table of ``items`` or ``queries``; :class:`StageError` before the first publication."""
    if not table_place(settings, "items", encoder).exists():
        raise StageError(f"encoder {encoder} has not been published", action=f"run `moon publish --encoder {encoder}`")
    return RepresentationTable.open(table_place(settings, kind, encoder))


def prepared(settings: Settings) -> Kept:
    """Where the rows of click models are kept."""
    return Kept(settings.home / "prepared", settings.row_bytes, partial(settings.lake.erasing, shared=True))


def published_place(settings: Settings, encoder: int) -> Path:
    """The file that says what the encoder's last complete publication read."""
    return settings.home / "tables" / f"published-v{encoder}.json"


def tables(settings: Settings, encoder: int) -> Tables:
    """Both representation tables of an encoder; :class:`StageError` before the first publication."""
    return Tables(*(table(settings, kind, encoder) for kind in ("items", "queries")))


def handed(settings: Settings, view: str) -> Path:
    """The file that says how much of a view, a table or an index has been handed over."""
    return settings.home / "tables" / "handed" / f"{view}.json"


def lake_away(settings: Settings) -> str:
    """Why the lake is not the one that this home has published from; empty if nothing speaks against it.

    :class:`ServiceError` if its store does not answer.
    """
    published = any((settings.home / "tables").glob("published-v*.json"))
    remote = "://" in settings.lake.uri
    if not published or (settings.lake.exists("items") if remote else Path(settings.lake.address("items")).exists()):
        return ""
    return f"the lake at {settings.lake.uri} holds no items, but this home has published some"


def require_lake(settings: Settings) -> None:
    """:class:`ServiceError` where the lake is away: whoever wrote now would begin a second one in its place."""
    if away := lake_away(settings):
        action = "bring the lake back (is its disk mounted? is MOON_LAKE right?); to begin anew, name an empty MOON_HOME"
        raise ServiceError(away, action=action)
