"""What a release is judged by beside recall and AUC: what its variants lose, that it knows no answers, how complete and how sound it is."""

from __future__ import annotations

import datetime as dt

from moon_ops.embeddings import vector_tables
from moon_ops.files import required
from moon_ops.metric_names import leakage, recall_loss
from moon_ops.registry.registry import CTR, ENCODER, Registry
from moon_ops.release import coverage, drift
from moon_ops.release.windows import Windows
from moon_ops.settings import VARIANTS, Settings

DAY = dt.timedelta(days=1)


def figures(settings: Settings, encoder: int, ctr: int | None, windows: Windows, *, now: dt.datetime) -> dict[str, float]:
    """All of them, by name; what there is nothing to measure on is left out."""
    registry = Registry(settings)
    _, vectors = vector_tables.vectors_as_of(settings.lake, encoder, windows.end)
    return {
        **variants(registry, encoder),
        **margins(registry, encoder, ctr, windows),
        **coverage.of_catalogue(settings, encoder, windows.end, now=now),
        **drift.of_space(vectors),
        **drift.of_queries(settings.lake, encoder, windows),
    }


def variants(registry: Registry, encoder: int) -> dict[str, float]:
    """What each variant of the encoder's graphs loses of recall@10 on a golden set, as its export measured it.

    fp32 against the trained model, if the export measured it; the others against fp32: the greater of two losses.
    """
    directory, found = registry.fetch(ENCODER, encoder), dict[str, float]()
    exported = registry.tags(ENCODER, encoder).get("parity_recall_loss")
    if exported is not None:
        found[recall_loss(VARIANTS[0])] = float(exported)
    for variant in VARIANTS[1:]:
        place = directory / f"certificate.{variant}.json"
        if place.is_file():
            certificate = required(place, f"make it again with `moon export CHECKPOINT --variant {variant}`")
            found[recall_loss(variant)] = float(max(certificate["recall_loss"], certificate["recall_loss_mixed"]))
    return found


def margins(registry: Registry, encoder: int, ctr: int | None, windows: Windows) -> dict[str, float]:
    """Days from the end of each part's training to the window that judges it."""
    found = {leakage("encoder"): (windows.trained_until - _until(registry, ENCODER, encoder)) / DAY}
    if ctr is not None:
        found[leakage("click_model")] = (windows.ctr_until - _until(registry, CTR, ctr)) / DAY
    return found


def _until(registry: Registry, name: str, version: int) -> dt.datetime:
    return dt.datetime.fromisoformat(registry.tags(name, version)["trained_until"])
