"""Items embedded per second, one path against another, on the encoder and the pictures of ``MOON_HOME`` (run `make demo` first).

ours: ONNX Runtime from pictures in the lake to vectors (read, decode, tokenise, forward); peer: the same samples through transformers and
torch, eager; limit: the ONNX graphs alone, on tensors that are ready. ``--json`` prints one object as the last line.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from moon_ops.embeddings import produce
from moon_ops.encoder.batches import tokens
from moon_ops.encoder.model import Encoder
from moon_ops.errors import MoonError
from moon_ops.lake.contract import Sample, item_sample
from moon_ops.lake.images import decode
from moon_ops.lake.regions import views
from moon_ops.lake.tables import image_bytes
from moon_ops.release import stages
from moon_ops.release.registry import CHAMPION, ENCODER, Registry
from moon_ops.release.status import status
from moon_ops.settings import Settings

ITEMS, BATCH, RUNS = 1024, 32, 3


def measure(settings: Settings) -> dict[str, float]:
    """Best of three runs each, in items/s; the paths take turns, so that a slow moment hits all of them."""
    encoder = status(settings)["champion"]["encoder"]
    opened, eager = stages.runtime(settings, encoder), Encoder.load(Registry(settings).fetch(ENCODER, encoder)).eval()
    samples = [item_sample(i) for i in settings.lake.read("items").to_pylist()[:ITEMS]]
    layout = opened.contract.layout
    most, size, region = layout.max_pictures, layout.picture_size, layout.core_region
    names = list(dict.fromkeys(i for s in samples for i in s.image_ids[:most]))
    ready = {name: views(decode(content), size, region) for name, content in image_bytes(settings.lake, names)}
    paths = {
        "ours": lambda pool: produce.embed_samples(settings.lake, opened, samples, pool),
        "peer": lambda _: embed_eager(settings, eager, samples),
        "limit": lambda _: opened.embed(samples, ready),
    }
    best = dict.fromkeys(paths, float("inf"))
    with ThreadPoolExecutor(settings.workers) as pool:
        for _ in range(RUNS):
            for name, run in paths.items():
                started = time.perf_counter()
                run(pool)
                best[name] = min(best[name], time.perf_counter() - started)
    return {name: len(samples) / seconds for name, seconds in best.items()}


@torch.no_grad()
def embed_eager(settings: Settings, encoder: Encoder, samples: list[Sample]) -> None:
    """What one writes without us: decode and forward, batch by batch, in torch."""
    layout, texts = encoder.layout, tokens(encoder, samples)
    for start in range(0, len(samples), BATCH):
        shown = [s.image_ids[: layout.max_pictures] for s in samples[start : start + BATCH]]
        content = dict(image_bytes(settings.lake, [i for several in shown for i in several]))
        flat = [i for several in shown for i in several]
        pixels = [torch.from_numpy(views(decode(content[i]), layout.picture_size, layout.core_region)) for i in flat]
        ids, mask = layout.batch(texts[start : start + BATCH], [len(several) for several in shown])
        stacked = torch.cat(pixels) if pixels else torch.zeros((0, 3, layout.picture_size, layout.picture_size), dtype=torch.uint8)
        encoder(torch.from_numpy(ids), torch.from_numpy(mask), stacked)


def main() -> None:
    """Print the table, and one JSON object with ``--json``."""
    settings = Settings.from_environment()
    if not Registry(settings).alias(CHAMPION):
        sys.exit(f"moon: MOON_HOME = {settings.home} holds no champion release → run `make demo` first")
    rates = measure(settings)
    for name, rate in rates.items():
        print(f"{name:6} {rate:8.0f} items/s")
    print(f"ours / peer {rates['ours'] / rates['peer']:.2f}   ours / limit {rates['ours'] / rates['limit']:.2f}")
    if "--json" in sys.argv:
        print(json.dumps({**rates, "ratio_peer": rates["ours"] / rates["peer"], "ratio_limit": rates["ours"] / rates["limit"]}))


if __name__ == "__main__":
    try:
        main()
    except MoonError as fault:
        sys.exit(f"moon: {fault}")
