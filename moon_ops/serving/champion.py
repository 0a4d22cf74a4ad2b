"""The champion release, loaded and warm: encoder, index, vectors, click model and online features under one contract.

A champion is never changed. When the alias moves, another one is loaded, checked and warmed up beside it, and then takes its place.
"""

from __future__ import annotations

import copy
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from feast import FeatureStore
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from moon_ops.ctr.alignment import FILE, Alignment, through
from moon_ops.ctr.score import Scorer
from moon_ops.ctr.vectors import Tables
from moon_ops.embeddings import features, online_store
from moon_ops.embeddings.cards import Cards, Wanted
from moon_ops.embeddings.index import HEADER
from moon_ops.embeddings.index_shards import ItemShards
from moon_ops.embeddings.prefixes import cut
from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import InputError, MoonError, ServiceError, StageError, in_a_line
from moon_ops.inputs.contract import Sample, require_same
from moon_ops.inputs.images import decode
from moon_ops.inputs.regions import views
from moon_ops.lake.ids import ShopId
from moon_ops.publication import places
from moon_ops.release.verification import Parts, dimensions_of
from moon_ops.serving.peers import Everywhere, Peers
from moon_ops.serving.request import Asked, joined
from moon_ops.serving.shelf import Question, Shelf
from moon_ops.serving.stores import Stores
from moon_ops.settings import Settings, shown
from moon_ops.telemetry.traces import span

log = logging.getLogger(__name__)
QUERY = "query"  # the image id of the picture in a request


@dataclass(frozen=True)
class Hit:
    """One item found, with its cosine to the query."""

    item_id: int
    score: float


class Champion:
    """One loaded release. All its methods may be called from many threads."""

    def __init__(self, settings: Settings, parts: Parts, shelf: Shelf | None = None, peers: Peers | None = None) -> None:
        """Load verified ``parts``; :class:`MoonError` if they do not fit each other.

        ``shelf``: what of indexes is in memory already. ``peers``: who holds what this process does not.
        """
        manifest = parts.manifest
        self.settings, self.parts, self.version, self.manifest = settings, parts, parts.release, manifest
        self.encoder = int(manifest["encoder"]["version"])
        self.contract_id = str(manifest["contract_id"])
        self.dimensions = dimensions_of(manifest)
        self.places = linked(settings, self.encoder, self.dimensions)
        self.runtime = Runtime(parts.encoder, threads=settings.workers, variant=settings.variant)
        require_same(self.contract_id, self.runtime.contract_id, what="release and encoder")
        self.shelf, self.peers = shelf or Shelf(settings), peers or Peers(settings, Stores())
        self.part = self.shelf.opened(self.encoder, self.dimensions)
        require_same(self.contract_id, self.index.header.contract_id, what="release and index")
        self.alignment = Alignment.load(parts.alignment / FILE) if parts.alignment is not None else None
        self.tables = self._tables()
        self.scorer = Scorer(parts.click_model, threads=settings.workers) if parts.click_model else None
        self.store = online_store.hurried(features.open_store(settings))
        self.online = features.Online(self.store, self.encoder)
        if self.scorer is not None:
            require_same(self.tables.items.contract_id, self.scorer.contract_id, what="release and click model")
            _warn_of_fewer(self.store, self.encoder, int(self.scorer.meta["behaviors"]))
            features.require_columns(features.service(self.store, self.encoder), self.scorer.own)
        self.part.find(self._question(self.embed("warm up", None), 1), self.contract_id)
        self.seen = self._seen()

    def refreshed(self) -> Champion:
        """The same release after another publication: index and tables are opened anew, what has not changed is kept.

        Where its index has e.g. other shards, it waits for who holds the others; :class:`StageError` if they cannot open them.
        """
        fresh = copy.copy(self)
        # before what they lead to: a publication meanwhile is noticed the next time
        fresh.places = linked(self.settings, self.encoder, self.dimensions)
        fresh.part = self.shelf.opened(self.encoder, self.dimensions)
        if fresh.part.name != self.part.name:
            self.peers.prepare(fresh.part)
        fresh.tables = self._tables()
        require_same(self.contract_id, fresh.index.header.contract_id, what="release and index")
        fresh.seen = fresh._seen()
        return fresh

    @property
    def index(self) -> ItemShards:
        """What this process holds of the index."""
        return self.part.index

    @property
    def cards(self) -> Cards | None:
        """The cards of the index's items; None if there are none that can be read."""
        return self.part.cards

    @property
    def searches(self) -> bool:
        """Whether it can search the whole index: of each shard that is not here it knows who holds it."""
        return self.peers.knows(self.index.missing)

    def _tables(self) -> Tables:
        """The vectors as the click model reads them."""
        opened = places.tables(self.settings, self.encoder)
        require_same(self.contract_id, opened.items.contract_id, what="release and representation table")
        return through(opened, self.alignment)

    def embed(self, text: str, picture: bytes | None) -> NDArray[np.float32]:
        """The unit vector [D] of a text, a picture, or both; :class:`InputError` for neither, or for a picture that cannot be read."""
        if not text.strip() and picture is None:
            raise InputError("the request has neither text nor image", action="send one of them, or both")
        pixels = {}
        with span("embed_query", encoder=self.encoder, picture=picture is not None, text=bool(text.strip())):
            if picture is not None:
                layout = self.runtime.contract.layout
                pixels[QUERY] = views(decode(picture, source="image"), layout.picture_size, layout.core_region)
            return self.runtime.embed([Sample(text.strip(), tuple(pixels))], pixels)[0]

    def search(self, vector: NDArray[np.float32], k: int, wanted: Wanted | None = None) -> list[Hit]:
        """The ``k`` nearest items to a whole vector [D], best first, of all or of those that are as ``wanted``, wherever they are held.

        Raises :class:`StageError` for a filter where there are no cards to tell by, :class:`ServiceError` if a shard cannot be asked.
        """
        where = Everywhere(self.part, self.peers) if self.index.missing else self.part
        with span("search", release=self.version, contract_id=self.contract_id, k=k):
            ids, cosines = where.find(self._question(vector, k, wanted), self.contract_id)
        return [Hit(int(i), float(c)) for i, c in zip(ids[0], cosines[0], strict=True) if i >= 0]

    def _question(self, vector: NDArray[np.float32], k: int, wanted: Wanted | None = None) -> Question:
        return Question(cut(vector, self.index.header.dim)[None, :], k, wanted)

    def score(self, user_id: int, item_ids: Sequence[int], asked: Asked, called: Sequence[ShopId] = ()) -> list[float]:
        """Click probabilities of the items for this user and query, from Feast's online features and the representation table.

        ``called``: how the request calls the items. Raises :class:`ServiceError` if the online store does not answer.
        """
        scorer = self.require_scorer()
        with span("score", release=self.version, contract_id=self.contract_id, items=len(item_ids)):
            return self._scored(scorer, user_id, item_ids, asked, called)

    def _scored(self, scorer: Scorer, user_id: int, item_ids: Sequence[int], asked: Asked, called: Sequence[ShopId]) -> list[float]:
        known = self._online(item_ids, user_id)
        unknown = [i for i, spu in zip(called or item_ids, known["spu_id"], strict=True) if spu is None]
        if unknown:
            raise InputError(f"item_ids: {unknown[0]} is no item of the catalogue", action="ask for items that /v1/search returns")
        rows = scorer.encode(joined(known, user_id, item_ids, asked, scorer.own), self.tables)
        columns = rows.columns(np.arange(len(rows)), scorer.inputs)
        if asked.vector is not None:
            vector = asked.vector[None, :] if self.alignment is None else self.alignment.apply(asked.vector[None, :])
            columns["query_vector"] = np.repeat(vector, len(rows), axis=0)
        return [float(p) for p in scorer.probabilities(columns)]

    def require_scorer(self) -> Scorer:
        """The click model; :class:`StageError` for a release without one."""
        if self.scorer is None:
            raise StageError(f"release {self.version} has no click model", action="use /v1/search, or release one trained with `moon ctr`")
        return self.scorer

    def ask_store(self) -> None:
        """Whether the online store answers at all; :class:`ServiceError` if it does not."""
        self._online([0], 0)

    def _online(self, item_ids: Sequence[int], user_id: int) -> dict[str, list[Any]]:
        try:
            with span("online_features", items=len(item_ids)):
                return self.online.values(item_ids, user_id)
        except MoonError:
            raise
        except Exception as fault:  # SQLite's, Redis', Feast's own
            place = f"MOON_REDIS = {shown(self.settings.redis)}" if self.settings.redis.get_secret_value() else "SQLite in MOON_HOME"
            away = isinstance(fault, (OSError, sqlite3.Error, SQLAlchemyError)) or type(fault).__module__.startswith("redis")
            what = "does not answer" if away else "gave an answer that cannot be read"
            problem = f"the online store ({place}) {what} ({type(fault).__name__}: {in_a_line(fault)})"
            full = f"run `moon publish --encoder {self.encoder} --full`"
            raise ServiceError(problem, action=f"start it; if it is empty or gone, {full}" if away else full) from fault

    def _seen(self) -> dict[Path, int]:
        """The size in bytes of each file that a restart would load, as it is now."""
        return {file: file.stat().st_size for file in self.files() if file.is_file()}

    def changed(self) -> str:
        """What a restart could not load any more: a file that is gone, or of another size than it was; empty if all is as it was."""
        gone = [file for file in self.files() if not file.is_file()]
        other = [file for file, size in self.seen.items() if file.is_file() and file.stat().st_size != size]
        if not gone and not other:
            return ""
        more = len(gone) + len(other) - 1
        what = f"{gone[0]} is gone" if gone else f"{other[0]} has changed"
        return f"{what}{f', and {more} more' if more else ''}: a restart could not load it"

    def files(self) -> list[Path]:
        """All that a restart would load this release from."""
        named = [self.parts.encoder / file for file in self.manifest["encoder"]["sha256"]]
        if self.parts.click_model is not None:
            named += [self.parts.click_model / file for file in self.manifest["ctr"]["sha256"]]
        if self.parts.alignment is not None:
            named.append(self.parts.alignment / FILE)
        index = places.index_place(self.settings, self.encoder, self.dimensions)
        tables = [places.table_place(self.settings, kind, self.encoder) / "table.json" for kind in ("items", "queries")]
        return [*named, index / HEADER, *(index / file for file in self.index.header.files), *tables]


def _warn_of_fewer(store: FeatureStore, encoder: int, behaviors: int) -> None:
    """The service must go on where MOON_BEHAVIORS was lowered, but the model reads less than it was judged on."""
    try:
        features.require_behaviors(store, features.service(store, encoder), behaviors)
    except InputError as fewer:
        log.warning("the click model is served less than it was trained on: %s", fewer)


def linked(settings: Settings, encoder: int, dimensions: int) -> list[str]:
    """The directories that index and tables are linked to now: a publication changes them."""
    kinds = ("items", "queries")
    tables = (places.table_place(settings, kind, encoder) for kind in kinds)
    links = [places.index_place(settings, encoder, dimensions), places.cards_place(settings, encoder), *tables]
    return [str(link.resolve()) for link in links]
