"""The map from a new encoder's space to the one that a click model was trained on: made with each release, and measured.

It ships as a version of ``moon-alignment``. So a click model of the old encoder can go on on the new encoder's vectors while the new one
trains: ``moon release --encoder 2 --ctr 1 --align`` makes such a release, which passes its gates or does not, like any other.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moon_ops.ctr.alignment import FILE, Alignment, align
from moon_ops.embeddings import vector_tables
from moon_ops.errors import ContractError, MoonError, StageError
from moon_ops.inputs.contract import file_sha256
from moon_ops.metric_names import alignment as named
from moon_ops.metric_names import ctr as ctr_metric
from moon_ops.ranks import first_hits
from moon_ops.registry.registry import ALIGNMENT, CTR, Registry
from moon_ops.release import clicks, recall
from moon_ops.release.comparison import Measured
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
K = 10


@dataclass(frozen=True)
class Shipped:
    """A map that goes into a release; ``used``: the release's click model reads through it. ``figures``: what it costs."""

    alignment: Alignment
    old_encoder: int
    used: bool
    figures: dict[str, float]

    @property
    def through(self) -> Alignment | None:
        """The map, if the release's click model reads through it."""
        return self.alignment if self.used else None


def for_release(
    settings: Settings, encoder: int, ctr: int | None, known: dict[str, Any], windows: Windows, *, wanted: bool
) -> Shipped | None:
    """The map that a release needs (its click model is of another encoder, and ``wanted``), or else the one to the champion's encoder.

    ``known`` is the champion's manifest. None where there is no other encoder, or the map to the champion's cannot be made. Raises
    :class:`ContractError` for a click model of another encoder where no map is wanted, :class:`StageError` if none can be made.
    """
    tags = Registry(settings).tags(CTR, ctr) if ctr is not None else {}
    trained_on = int(tags.get("encoder") or encoder)
    if wanted and trained_on != encoder:
        made = fitted(settings, encoder, trained_on, windows)
        if tags["contract_id"] != made.old:
            raise ContractError(
                f"click model {ctr} was trained under contract {tags['contract_id']}, but encoder {trained_on} has {made.old}",
                action="train the click model again",
            )
        return Shipped(made, trained_on, True, {named("cosine"): made.cosine})
    before = int(known["encoder"]["version"]) if known else encoder
    if before == encoder:
        return None
    try:
        made = fitted(settings, encoder, before, windows)
    except MoonError as fault:
        log.warning("the release has no map to encoder %d: %s", before, fault)
        return None
    return Shipped(made, before, False, {named("cosine"): made.cosine})


def fitted(settings: Settings, encoder: int, old: int, windows: Windows) -> Alignment:
    """The map from encoder ``encoder`` to ``old``, on the items that both have embedded by the end of the windows."""
    lake = settings.lake
    (left_ids, left), (right_ids, right) = (vector_tables.vectors_as_of(lake, version, windows.end) for version in (encoder, old))
    _, rows, others = np.intersect1d(left_ids, right_ids, return_indices=True)
    contracts = vector_tables.contract_of(lake, encoder), vector_tables.contract_of(lake, old)
    return align(left[rows], right[others], contracts)


def with_costs(
    settings: Settings, shipped: Shipped | None, candidate: Measured, windows: Windows, read: tuple[int, int | None]
) -> Shipped | None:
    """What the map costs: recall@10 of mapped queries among the old encoder's items, and AUC of the champion's click model through it.

    ``read`` is the new encoder, and the champion's click model.
    """
    if shipped is None:
        return None
    encoder, ctr = read
    found = dict(shipped.figures)
    if candidate.searches is not None:
        try:
            found |= _recall(settings, encoder, shipped, candidate.searches.queries, windows)
        except MoonError as fault:
            log.warning("recall through the map was not measured: %s", fault)
    if ctr is not None and not shipped.used:
        try:
            model = Registry(settings).fetch(CTR, ctr)
            figures, _ = clicks.judged_ctr(settings, encoder, model, windows, through=shipped.alignment)
            found[named("auc")] = figures[ctr_metric("auc")]
        except (MoonError, KeyError) as fault:
            log.warning("the champion's click model was not tried on the new vectors: %s", fault)
    return replace(shipped, figures=found)


def _recall(settings: Settings, encoder: int, shipped: Shipped, asked: recall.Queries, windows: Windows) -> dict[str, float]:
    lake = settings.lake
    table = lake.open(vector_tables.query_table_name(encoder), needs=f"moon embed --encoder {encoder}")
    read = table.to_table(columns=["query_id", "embedding"])
    ids, first = np.unique(read["query_id"].to_numpy(), return_index=True)
    vectors = vector_tables.as_matrix(read["embedding"], vector_tables.dim_of(table))[first]
    _, rows, at = np.intersect1d(asked.query_ids, ids, return_indices=True)
    if not len(rows):
        return {}
    items, old = vector_tables.vectors_as_of(lake, shipped.old_encoder, windows.end)
    mapped = shipped.alignment.apply(np.nan_to_num(vectors[at]))
    ranks = first_hits(mapped, old, asked.spu_ids[rows], recall.catalogue_spus(lake, items, windows.end))
    kinds = {"": np.ones(len(rows), bool), "image": asked.is_image[rows], "text": ~asked.is_image[rows]}
    return {named(f"recall@{K}", where): float((ranks[some] <= K).mean()) for where, some in kinds.items() if some.any()}


def register(registry: Registry, shipped: Shipped | None) -> dict[str, Any] | None:
    """Keep the map as a version of ``moon-alignment``: the manifest's part for it."""
    if shipped is None:
        return None
    made = shipped.alignment
    name = f"map to encoder {shipped.old_encoder}"
    run_id = registry.start_run(name, {"new": made.new, "old": made.old})
    registry.log(run_id, shipped.figures)
    with tempfile.TemporaryDirectory() as scratch:
        file = made.save(Path(scratch))
        tags = {"new": made.new, "old": made.old, "cosine": f"{made.cosine:.4f}"}
        version = registry.register(ALIGNMENT, run_id, Path(scratch), tags)
        sha256 = {FILE: file_sha256(file)}
    registry.finish(run_id)
    return {
        "version": version,
        "sha256": sha256,
        "new": made.new,
        "old": made.old,
        "old_encoder": shipped.old_encoder,
        "used": shipped.used,
    }


def of(registry: Registry, manifest: dict[str, Any]) -> Alignment | None:
    """The map through which the click model of a release reads; None if it reads the vectors themselves."""
    part = manifest.get("alignment")
    if not part or not part["used"]:
        return None
    found = Alignment.load(registry.fetch(ALIGNMENT, part["version"]) / FILE)
    if (found.new, found.old) != (part["new"], part["old"]):
        raise StageError(f"{ALIGNMENT} {part['version']} is not the map that the manifest names", action="make the release again")
    return found
