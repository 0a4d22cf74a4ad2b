"""How good an encoder is: recall after its training, by modality and by prefix, and that of its untrained shape beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.pipeline import embed_stream
from moon_ops.embeddings.prefixes import served
from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import StageError
from moon_ops.inputs.contract import Sample, item_sample, title_of
from moon_ops.lake.tables import items_as_of
from moon_ops.metric_names import is_whole_recall
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.registry.encoders import encoder_version, prefixes
from moon_ops.registry.registry import Registry
from moon_ops.release import item_tasks, recall, relevance
from moon_ops.release.recall import Prefix, RecallReport
from moon_ops.release.runs import tracked
from moon_ops.release.stages import runtime
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings


def evaluate(settings: Settings, encoder: int, windows: Windows, dimensions: int = 0) -> RecallReport:
    """Image- and text-search recall on the queries after the encoder's training, against the whole catalogue; of prefixes, too, and from
    which cosine on an item is what was asked for. ``dimensions``: of vectors that are searched by their first numbers, 0 for all.
    """
    lake = settings.lake
    queries = recall.bought_after(lake, windows.trained_until, windows.end, trained_until=encoder_version(settings, encoder).trained_until)
    ids, items = vector_tables.vectors_as_of(lake, encoder, windows.end)
    vectors = _embedded(settings, runtime(settings, encoder), queries.samples)
    spus = recall.catalogue_spus(lake, ids, windows.end)
    shown, searched = served(vectors, dimensions), served(items, dimensions)
    found = recall.evaluate(queries, shown, ids, spus, searched)
    lengths = recall.by_prefix(queries, vectors, spus, items, prefixes(settings, encoder))
    return replace(found, prefixes=tuple(lengths), relevance=relevance.thresholds(queries, shown, ids, searched))


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
    return metrics, recall.by_prefix(queries, asked, spus, items, prefixes(settings, encoder))


@dataclass(frozen=True)
class TaskReport:
    """Metrics by public name, and why what could not be told was not, e.g. ``{"brand": "no item has one: …"}``."""

    metrics: dict[str, float]
    left_out: dict[str, str]


def evaluate_tasks(settings: Settings, encoder: int, windows: Windows) -> TaskReport:
    """What :mod:`~moon_ops.release.item_tasks` asks of an encoder, on the items of ``windows.end``; logged to a run of its own in MLflow.

    The catalogue is embedded three times more: pictures, texts and titles alone. Raises :class:`StageError` if fewer than two items have
    both a picture and a text.
    """
    lake, opened, registry = settings.lake, runtime(settings, encoder), Registry(settings)
    ids, vectors = vector_tables.vectors_as_of(lake, encoder, windows.end)
    by_id = {row["item_id"]: row for row in items_as_of(lake, windows.end).to_pylist()}
    samples = [item_sample(by_id[i]) for i in ids.tolist()]
    both = np.array([bool(sample.text and sample.image_ids) for sample in samples], bool)
    if both.sum() < 2:
        problem = (
            f"{both.sum()} of {len(samples)} items with a vector have a picture and a text: two are needed to ask for one by the other"
        )
        raise StageError(problem, action="ingest items with pictures, and embed them")
    chosen = [sample for sample, wanted in zip(samples, both.tolist(), strict=True) if wanted]
    spus = recall.catalogue_spus(lake, ids, windows.end)[both]
    ways = {"pictures": [Sample("", s.image_ids) for s in chosen], "titles": [Sample(title_of(s)) for s in chosen]}
    alone = {name: _embedded(settings, opened, some) for name, some in (ways | {"texts": [Sample(s.text) for s in chosen]}).items()}
    metrics = item_tasks.retrieval(alone["texts"], alone["pictures"], vectors[both], spus)
    labels = item_tasks.labels_of([by_id[i] for i in ids[both].tolist()])
    for name, said in labels.items():
        for way in ways:
            metrics |= item_tasks.classification(f"{name}_by_{way}", alone[way], said, spus)
    left_out = {name: why for name, said in labels.items() if (why := item_tasks.lacking(said, spus))}
    if not any(name.startswith("attribute_") for name in labels):
        left_out["attributes"] = "none is told of half of the items"
    with tracked(registry, f"tasks of encoder {encoder}", {"encoder": encoder, "end": windows.end.isoformat()}) as run:
        registry.log(run, metrics)
    return TaskReport(metrics, left_out)


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
