"""What a click model is trained on: rows and vectors as Feast shows them, kept in the home for whoever asks for the same again."""

from __future__ import annotations

import datetime as dt
from functools import partial
from pathlib import Path
from typing import Any

from feast import FeatureService, FeatureStore, FeatureView

from moon_ops.ctr import impressions, processes, vector_files
from moon_ops.ctr.kept import Kept
from moon_ops.ctr.prepared import InFiles, through
from moon_ops.ctr.vectors import Tables
from moon_ops.embeddings import as_of, features
from moon_ops.embeddings.as_of import Joined, VectorHistory
from moon_ops.encoder.together import alone
from moon_ops.lake import changes
from moon_ops.lake.lake import Lake
from moon_ops.publication import places
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.settings import Settings

Window = tuple[dt.datetime, dt.datetime]


def source(settings: Settings, encoder: int, chosen: CtrRecipe, window: Window, tables: Tables | None = None) -> InFiles:
    """The rows of a window with the features of ``ctr_v<encoder>``, and its vectors or other ``tables``; for each process of a training.

    Raises :class:`StageError` for an encoder that is not published, :class:`InputError` for columns or clicks that Feast does not show.
    """
    processes.join(processes.torch_device(chosen.device))
    store, kept = features.open_store(settings), places.prepared(settings)
    service = features.service(store, encoder)
    features.require_behaviors(store, service, chosen.behaviors)
    features.require_columns(service, chosen.own)
    if tables is None:
        views = [store.get_feature_view(f"{of}_embedding_v{encoder}") for of in ("item", "query")]
        tables = Tables(*(_vectors(view, window, chosen.vectors, kept) for view in views))
    join = partial(_joined, settings.lake, store, service, window, chosen)
    return InFiles(join, tables, kept, partial(_identity, settings.lake, store, service, window))


def _joined(lake: Lake, store: FeatureStore, service: FeatureService, window: Window, chosen: CtrRecipe) -> tuple[Joined, dict[str, int]]:
    given = impressions.shown(lake, *window, chosen.own, rule=chosen)
    return as_of.join(store, given.rows, service), given.counts


def _identity(lake: Lake, store: FeatureStore, service: FeatureService, window: Window) -> list[Any]:
    """What rows are made of, beside what a recipe says."""
    tables = [changes.content(lake.open(name)) if lake.exists(name) else "" for name in ("events", "queries")]
    views = []
    for projection in service.feature_view_projections:
        if features.VECTORS not in projection.name:
            view = store.get_feature_view(projection.name)
            clicks = features.clicks_of(view)
            shown = [feature.name for feature in projection.features]
            views.append([view.name, str(view.ttl), shown, clicks.length if clicks else 0, changes.content(features.dataset_of(view))])
    return [lake.uri, [moment.isoformat() for moment in window], tables, views]


def _vectors(view: FeatureView, window: Window, kind: str, kept: Kept) -> VectorHistory:
    """The vectors that rows of the window may see; of several processes the first reads them, and all map the same file."""
    if alone():
        return as_of.vectors(view, window, kind)

    def identity() -> list[Any]:
        told = [view.name, str(view.ttl), view.tags.get("contract_id"), kind, *(moment.isoformat() for moment in window)]
        return [*told, changes.content(features.dataset_of(view))]

    def fill(place: Path) -> None:
        vector_files.write(as_of.vectors(view, window, kind), place)

    found: VectorHistory = through(kept, "vectors", identity, fill, vector_files.read)
    return found
