"""How good a checkpoint is that is neither exported nor registered: for studies."""

from __future__ import annotations

import tempfile
from pathlib import Path

from moon_ops.inputs.contract import item_sample
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.release import recall
from moon_ops.release.evaluation import parts
from moon_ops.release.windows import Windows


def measure_eager(lake: Lake, directory: Path, windows: Windows) -> dict[str, float]:
    """:func:`evaluate_parts` of a checkpoint that is neither exported nor registered: for studies."""
    from moon_ops.encoder.eager import embed_eager
    from moon_ops.encoder.model import Encoder
    from moon_ops.encoder.pixels import PixelStore

    encoder = Encoder.load(directory).eval()
    queries = recall.bought_after(lake, windows.trained_until, windows.end, trained_until=windows.trained_until)
    catalogue = items_as_of(lake, windows.end)
    samples = [item_sample(row) for row in catalogue.to_pylist()]
    names = list(dict.fromkeys(i for s in (*samples, *queries.samples) for i in s.image_ids[: encoder.layout.max_pictures]))
    ids, spus = catalogue["item_id"].to_numpy(), catalogue["spu_id"].to_numpy()
    with tempfile.TemporaryDirectory() as scratch:
        store = PixelStore.over(lake, names, encoder.layout.picture_size, Path(scratch) / "pixels.u8", detector=encoder.layout.core_region)
        asked = embed_eager(encoder, store, queries.samples)
        metrics = recall.evaluate(queries, asked, ids, spus, embed_eager(encoder, store, samples)).metrics
        alone = {suffix: embed_eager(encoder, store, some) for suffix, some in recall.modalities(samples).items()}
    return metrics | parts(queries, asked, ids, spus, samples, alone)
