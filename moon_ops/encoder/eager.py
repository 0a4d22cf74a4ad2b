"""The vectors of an encoder that has learned nothing: the zero point of every recall figure."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from moon_ops.encoder.model import Encoder, build
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.samples import Samples, rows_of
from moon_ops.encoder.texts import tokens
from moon_ops.inputs.contract import Sample, item_sample
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.recipes.encoder import EncoderRecipe

BATCH = 64


def embed_untrained(
    lake: Lake, recipe: EncoderRecipe, queries: list[Sample], when: dt.datetime, *, seed: int, workers: int = 2
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Item ids and SPU ids [N], vectors of the queries [Q, D] and of the catalogue valid at ``when`` [N, D], with random weights."""
    catalogue = items_as_of(lake, when)
    items = Samples.of(item_sample(i) for i in rows_of(catalogue))
    encoder = build(recipe, [s.text for s in items if s.text], seed).eval()
    names = list(dict.fromkeys(i for s in (*items, *queries) for i in s.image_ids[: encoder.layout.max_pictures]))
    with tempfile.TemporaryDirectory() as scratch:
        store = PixelStore.over(lake, names, encoder.layout.picture_size, Path(scratch) / "pixels.u8", detector=encoder.layout.core_region)
        store.threads = workers
        vectors = [embed_eager(encoder, store, samples) for samples in (queries, items)]
    return catalogue["item_id"].to_numpy(), catalogue["spu_id"].to_numpy(), vectors[0], vectors[1]


@torch.no_grad()
def embed_eager(encoder: Encoder, store: PixelStore, samples: Sequence[Sample], *, shown: bool = True) -> NDArray[np.float32]:
    """Vectors [B, D] straight from the model, without ONNX; ``shown``: with a progress bar."""
    texts, out = tokens(encoder, samples), []
    for start in tqdm(range(0, len(samples), BATCH), desc="embed untrained", unit="batch", disable=not shown):
        pictures = [s.image_ids[: encoder.layout.max_pictures] for s in samples[start : start + BATCH]]
        ids, mask = encoder.layout.batch(texts[start : start + BATCH], [len(p) for p in pictures])
        pixels = store.take([i for p in pictures for i in p])
        device = next(encoder.parameters()).device
        read = (torch.from_numpy(ids), torch.from_numpy(mask), pixels)
        out.append(encoder(*(part.to(device) for part in read)).float().cpu().numpy())
    return np.concatenate(out)
