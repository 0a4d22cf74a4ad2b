"""Items embedded per second, one path against another, on the encoder and the pictures of ``MOON_HOME`` (run `make demo` first).

ours: from the lake to the lake (read items and pictures, decode, tokenise, forward, write a table of vectors); peer: sentence-transformers'
``encode`` of the same checkpoint, between the same reading and writing; eager: our own torch model in place of it; limit: the ONNX graphs
alone, on batches of tensors that are ready, on all cores; int8: ours with the int8 variant, whose recall loss is measured on queries that
led to purchases after the encoder's training. The paths take turns, best of ``RUNS``. ``--json`` prints one object as the last line.
"""

from __future__ import annotations

import datetime as dt
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import figures
import numpy as np
import pyarrow as pa
import torch

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.pipeline import embed_stream
from moon_ops.embeddings.runtime import Batch, Runtime
from moon_ops.encoder import sentence
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.variants import Certificate, Golden, make_variant
from moon_ops.inputs.contract import Sample, item_sample
from moon_ops.inputs.images import decode
from moon_ops.inputs.regions import views
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes, items_as_of
from moon_ops.registry.registry import CHAMPION, ENCODER, Registry
from moon_ops.release.recall import bought_after
from moon_ops.release.status import status
from moon_ops.settings import Settings

ITEMS, BATCH, RUNS = 4096, 32, 4  # the demo shop has 3,002
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)  # when the vectors become known: any time after the shop's
Embed = Callable[[list[Sample], dict[str, Any]], Any]


def measure(settings: Settings, directory: Path, until: dt.datetime) -> dict[str, float]:
    """Rates in items/s, and what the int8 variant costs."""
    torch.set_num_threads(settings.workers)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        copy = Path(shutil.copytree(directory, scratch / "encoder", copy_function=shutil.copyfile))
        certificate = _int8(settings, copy, until)
        opened = Runtime(copy, threads=settings.workers)
        small = Runtime(copy, threads=settings.workers, variant="int8")
        eager = Encoder.load(copy).eval()
        ready = _ready(settings, opened)
        paths = {
            "ours": partial(_ours, settings, opened, scratch),
            "peer": partial(_peers, settings, opened, scratch, _sentence(copy, eager)),
            "limit": partial(_limit, opened, ready),
            "eager": partial(_peers, settings, opened, scratch, partial(_eager, eager)),
            "int8": partial(_ours, settings, small, scratch),
            "int8_limit": partial(_limit, small, ready),
        }
        best = dict.fromkeys(paths, 0.0)
        for turn in range(RUNS):
            for name, run in paths.items():
                began = time.perf_counter()
                count = run()
                best[name] = max(best[name], count / (time.perf_counter() - began))
                print(f"turn {turn}: {name} {best[name]:.0f} items/s", file=sys.stderr)
    return {**best, "int8_recall_loss": max(certificate.recall_loss, certificate.recall_loss_mixed), "int8_recall": certificate.recall}


def _items(settings: Settings) -> pa.Table:
    return settings.lake.read("items").slice(0, ITEMS)


def _write(rows: pa.Table, vectors: Any, runtime: Runtime, scratch: Path) -> None:
    """Commit one chunk of vectors as production does."""
    lake = Lake(str(scratch / "lake"))
    vector_tables.create(lake, "embeddings/v1", runtime)
    keys = rows.select(list(vector_tables.KEY))
    vector_tables.insert(lake, "embeddings/v1", keys, {"embedding": vector_tables.as_column(np.asarray(vectors))}, NOW)


def _ours(settings: Settings, runtime: Runtime, scratch: Path) -> int:
    """Our way from the lake to the lake."""
    rows, done = _items(settings), 0
    samples = (item_sample(item) for batch in rows.to_batches() for item in batch.to_pylist())
    for made in embed_stream(settings.lake, runtime, samples, workers=settings.workers):
        _write(rows.slice(done, len(made.vectors)), made.vectors, runtime, scratch)
        done += len(made.vectors)
        assert not made.excused, "the shop's pictures can all be read"
    shutil.rmtree(scratch / "lake")
    return done


def _peers(settings: Settings, runtime: Runtime, scratch: Path, encode: Embed) -> int:
    """What one writes without us: read, decode, encode, write; the same items, the same pictures, the same table."""
    rows = _items(settings)
    samples = [item_sample(item) for item in rows.to_pylist()]
    for start in range(0, len(samples), 1024):
        part = samples[start : start + 1024]
        wanted = [i for s in part for i in s.image_ids[: runtime.contract.layout.max_pictures]]
        pictures = {i: decode(content) for i, content in image_bytes(settings.lake, wanted)}
        _write(rows.slice(start, len(part)), encode(part, pictures), runtime, scratch)
    shutil.rmtree(scratch / "lake")
    return len(samples)


def _sentence(directory: Path, encoder: Encoder) -> Embed:
    """sentence-transformers' ``encode``, as its manual shows it."""
    from sentence_transformers import SentenceTransformer

    if not sentence.readable(encoder):
        raise SystemExit("moon: sentence-transformers cannot read this encoder → promote one of the recipe moon-tiny")
    model, most = SentenceTransformer(str(directory), trust_remote_code=True, device="cpu"), encoder.layout.max_pictures

    def encode(samples: list[Sample], pictures: dict[str, Any]) -> Any:
        inputs = [{"image": [pictures[i] for i in s.image_ids[:most]], "text": s.text} for s in samples]
        return model.encode(inputs, batch_size=BATCH, show_progress_bar=False)

    return encode


@torch.no_grad()
def _eager(encoder: Encoder, samples: list[Sample], pictures: dict[str, Any]) -> Any:
    """Our own model in torch, batch by batch."""
    layout, found = encoder.layout, []
    texts = [e.ids for e in encoder.tokenizer.encode_batch([s.text for s in samples], add_special_tokens=False)]
    for start in range(0, len(samples), BATCH):
        shown = [s.image_ids[: layout.max_pictures] for s in samples[start : start + BATCH]]
        pixels = [torch.from_numpy(views(pictures[i], layout.picture_size, layout.core_region)) for several in shown for i in several]
        ids, mask = layout.batch(texts[start : start + BATCH], [len(several) for several in shown])
        stacked = torch.cat(pixels) if pixels else torch.zeros((0, 3, layout.picture_size, layout.picture_size), dtype=torch.uint8)
        found.append(encoder(torch.from_numpy(ids), torch.from_numpy(mask), stacked).numpy())
    return np.concatenate(found)


def _ready(settings: Settings, runtime: Runtime) -> list[Batch]:
    """The tensors of all forwards."""
    samples = [item_sample(item) for item in _items(settings).to_pylist()]
    pixels = _pixels(settings, runtime, samples)
    texts = runtime.tokenize([s.text for s in samples])
    pictures = [[pixels[i] for i in s.image_ids[: runtime.contract.layout.max_pictures]] for s in samples]
    rows = runtime.plan(texts, [len(several) for several in pictures])
    return [runtime.batch([texts[r] for r in some], [pictures[r] for r in some]) for some in rows]


def _pixels(settings: Settings, runtime: Runtime, samples: list[Sample]) -> dict[str, Any]:
    layout = runtime.contract.layout
    wanted = list(dict.fromkeys(i for s in samples for i in s.image_ids[: layout.max_pictures]))
    return {i: views(decode(content), layout.picture_size, layout.core_region) for i, content in image_bytes(settings.lake, wanted)}


def _limit(runtime: Runtime, ready: list[Batch]) -> int:
    """Nothing but the forwards, one core each."""
    with ThreadPoolExecutor(runtime.threads) as pool:
        return sum(len(vectors) for vectors in pool.map(partial(runtime.forward, bulk=True), ready))


def _int8(settings: Settings, directory: Path, until: dt.datetime) -> Certificate:
    """Make the int8 variant, judged by what was bought after the training."""
    opened = Runtime(directory, threads=settings.workers)
    end = max(settings.lake.read("events", ["event_timestamp"])["event_timestamp"].to_pylist()) + dt.timedelta(seconds=1)
    asked = bought_after(settings.lake, until, end, trained_until=until)
    items = items_as_of(settings.lake, end).to_pylist()
    place = {item["item_id"]: row for row, item in enumerate(items)}
    samples = [item_sample(item) for item in items]
    answers = tuple(place[int(i)] for i in asked.item_ids)
    return make_variant(
        directory, "int8", golden=Golden(asked.samples, samples, answers, _pixels(settings, opened, [*asked.samples, *samples]))
    )


def table() -> dict[str, float]:
    """Measure, and print it."""
    warnings.simplefilter("ignore")
    settings = Settings.from_environment()
    registry = Registry(settings)
    version = status(settings)["champion"]["encoder"] if registry.alias(CHAMPION) else registry.newest(ENCODER)
    if version is None:
        sys.exit(f"moon: MOON_HOME = {settings.home} holds no encoder → run `make demo` first")
    until = dt.datetime.fromisoformat(registry.tags(ENCODER, version)["trained_until"])
    found = measure(settings, registry.fetch(ENCODER, version), until)
    for name in ("ours", "peer", "limit", "eager", "int8", "int8_limit"):
        print(f"{name:10} {found[name]:8.0f} items/s")
    ratios = {
        "ratio_peer": found["ours"] / found["peer"],
        "ratio_limit": found["ours"] / found["limit"],
        "ratio_eager": found["ours"] / found["eager"],
        "int8_speedup": found["int8"] / found["ours"],
        "int8_speedup_limit": found["int8_limit"] / found["limit"],
    }
    print("   ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    print(f"int8 recall@10 loss {found['int8_recall_loss']:.4f} of {found['int8_recall']:.4f}")
    return {**found, **ratios}


if __name__ == "__main__":
    figures.main(table)
