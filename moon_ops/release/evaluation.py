"""How good an encoder is: recall after its training, by modality and by prefix, and that of its untrained shape beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.pipeline import embed_stream
from moon_ops.embeddings.runtime import Runtime
from moon_ops.files import required
from moon_ops.inputs.contract import Sample, item_sample
from moon_ops.lake.tables import items_as_of
from moon_ops.metric_names import is_whole_recall
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.release import recall
from moon_ops.release.recall import Prefix, RecallReport
from moon_ops.release.stages import runtime
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings


def evaluate(settings: Settings, encoder: int, windows: Windows) -> RecallReport:
    """Image- and text-search recall on the queries after the encoder's training, against the whole catalogue."""
    lake = settings.lake
    queries = recall.bought_after(lake, windows.trained_until, windows.end, trained_until=encoder_version(settings, encoder).trained_until)
    ids, items = vector_tables.vectors_as_of(lake, encoder, windows.end)
    vectors = _embedded(settings, runtime(settings, encoder), queries.samples)
    return recall.evaluate(queries, vectors, ids, recall.catalogue_spus(lake, ids, windows.end), items)


def evaluate_parts(settings: Settings, encoder: int, windows: Windows) -> tuple[dict[str, float], list[Prefix]]:
    """:func:`evaluate` with the catalogue also as pictures alone and as texts alone, so that a collapsed modality shows, and by prefix.

    The catalogue is embedded twice more for it. Metrics end in ``:picture_only`` and ``:text_only``.
    """
    lake, opened = settings.lake, runtime(settings, encoder)
    queries = recall.bought_after(lake, windows.trained_until, windows.end, trained_until=encoder_version(settings, encoder).trained_until)
    ids, items = vector_tables.vectors_as_of(lake, encoder, windows.end)
    asked = _embedded(settings, opened, queries.samples)
    spus = recall.catalogue_spus(lake, ids, windows.end)
    metrics = recall.evaluate(queries, asked, ids, spus, items).metrics
    rows = {row["item_id"]: item_sample(row) for row in items_as_of(lake, windows.end).to_pylist()}
    samples = [rows[i] for i in ids.tolist()]
    alone = {suffix: _embedded(settings, opened, some) for suffix, some in recall.modalities(samples).items()}
    metrics |= parts(queries, asked, ids, spus, samples, alone)
    about = required(Registry(settings).fetch(ENCODER, encoder) / "recipe.json", "export the encoder again")
    return metrics, recall.by_prefix(queries, asked, spus, items, about["training"].get("prefixes", ()))


def parts(
    queries: recall.Queries,
    asked: NDArray[np.float32],
    ids: NDArray[np.int64],
    spus: NDArray[np.int64],
    samples: list[Sample],
    alone: dict[str, NDArray[np.float32]],
) -> dict[str, float]:
    """Recall against the catalogue as pictures and as texts alone, and of an item's pictures by its own text."""
    metrics: dict[str, float] = {}
    for suffix, vectors in alone.items():
        found = recall.evaluate(queries, asked, ids, spus, vectors).metrics
        metrics |= {f"{name}:{suffix}": value for name, value in found.items() if is_whole_recall(name)}
    both = [row for row, sample in enumerate(samples) if sample.text and sample.image_ids]
    return metrics | recall.within_product(alone["text_only"][both], alone["picture_only"][both], spus[both])


def _embedded(settings: Settings, opened: Runtime, samples: list[Sample]) -> NDArray[np.float32]:
    """Vectors [B, D]; zeros, which find nothing, where nothing of a sample can be read."""
    made = list(embed_stream(settings.lake, opened, samples, workers=settings.workers))
    return np.nan_to_num(np.concatenate([part.vectors for part in made])) if made else np.zeros((0, opened.dim), np.float32)


def evaluate_untrained(settings: Settings, name: str, windows: Windows, *, seed: int, changes: Sequence[str] = ()) -> RecallReport:
    """The same recall for the recipe before training: random weights, or those of the checkpoint it names."""
    from moon_ops.encoder.eager import embed_untrained

    chosen = recipe(EncoderRecipe, name, settings.models, changes=changes)
    queries = recall.bought_after(settings.lake, windows.trained_until, windows.end, trained_until=windows.trained_until)
    ids, spus, vectors, items = embed_untrained(settings.lake, chosen, queries.samples, windows.end, seed=seed, workers=settings.workers)
    return recall.evaluate(queries, vectors, ids, spus, items)
