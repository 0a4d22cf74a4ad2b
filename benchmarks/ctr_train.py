"""Training samples per second of click models: our DIN and CUBE beside FuxiCTR's DIN (package fuxictr) on the same rows.

Same fields, embedding and hidden sizes, batch, learning rate and threads; FuxiCTR's steps are its own ``train_step`` on tensors that are
ready, ours are a whole training from rows to weights. Two vocabularies: a real shop's (1 million items, 100 thousand users, made up), and,
where ``MOON_HOME`` holds a demo, its own impressions. AUC on rows after the training; means over three seeds, of speed the medians.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures
import numpy as np
import pyarrow as pa
import torch
from fuxictr.features import FeatureMap
from model_zoo.LongCTR.DIN.DIN import DIN
from numpy.typing import NDArray

from moon_ops.ctr import fit
from moon_ops.ctr.dataset import Rows, encode
from moon_ops.ctr.metrics import auc
from moon_ops.ctr.models import BASE, IDS
from moon_ops.ctr.train import build
from moon_ops.ctr.vectors import Tables
from moon_ops.ctr.vocabulary import Vocabulary
from moon_ops.embeddings.as_of import Joined
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.lake.schemas import STAMP
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.registry.registry import CTR, ENCODER, Registry
from moon_ops.release import clicks
from moon_ops.release.windows import windows
from moon_ops.settings import Settings

ITEMS, USERS, TRAINED, JUDGED, LENGTH, DIM = 1_000_000, 100_000, 150_000, 50_000, 20, 128
SEEDS = (0, 1, 2)
CATEGORIES, GROUPS = 200, 20  # of items; of categories and of users in the made-up shop: who likes what


def made_up() -> tuple[Joined, Vocabulary, Tables]:
    """Impressions of a large shop: a click depends on how popular the item is, and on whether the user's group likes the item's.

    What a user has clicked before is four times of five from the three groups that the user likes most.
    """
    generator, rows = np.random.default_rng(0), TRAINED + JUDGED
    users, items = generator.integers(0, USERS, rows), (generator.random(rows) ** 3 * ITEMS).astype(np.int64)
    liking, popular = generator.normal(size=(GROUPS, GROUPS)), generator.normal(size=ITEMS) * 0.7
    logit = -2.2 + liking[users % GROUPS, items % GROUPS] + popular[items]
    labels = (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    own = {"user_id": users, "item_id": items, "query_id": np.full(rows, -1), "session_id": np.arange(rows), "label": labels}
    liked = np.argsort(-liking, axis=1)[np.arange(USERS) % GROUPS, :3]  # [USERS, 3]
    group = np.where(
        generator.random((USERS, LENGTH)) < 0.8,
        np.take_along_axis(liked, generator.integers(0, 3, (USERS, LENGTH)), 1),
        generator.integers(0, GROUPS, (USERS, LENGTH)),
    )
    clicked = generator.integers(0, ITEMS // GROUPS, (USERS, LENGTH)) * GROUPS + group
    moments = pa.array(np.arange(rows) * 1_000_000 + 1_767_225_600_000_000).cast(STAMP)
    own |= {"text": pa.nulls(rows, pa.string()), "is_image": pa.array([True] * rows), "event_timestamp": moments}
    every = np.arange(ITEMS)
    profile = {"spu_id": every, "seller_id": every % 5000, "price": generator.random(ITEMS) * 100}
    profile |= {"category": pa.array([f"c{i % CATEGORIES}" for i in every]), "brand": pa.array([f"b{i % 2000}" for i in every])}
    nothing = pa.array(np.zeros(1, np.int64))
    lists = pa.ListArray.from_arrays(np.arange(USERS + 1, dtype=np.int32) * LENGTH, pa.array(clicked.ravel()))
    views = {
        "item_profile": pa.table(profile),
        "item_stats": pa.table({"impressions": nothing, "clicks": nothing, "purchases": nothing}),
        "user_behavior": pa.table({"item_ids": lists, "query_ids": lists}),
    }
    joined = Joined(pa.table(own), views, {"item_profile": items, "item_stats": np.zeros(rows, np.int64), "user_behavior": users})
    values: dict[str, list[Any]] = {"item": list(range(ITEMS)), "user": list(range(USERS)), "query": [], "spu": list(range(ITEMS))}
    values |= {"category": sorted({f"c{i}" for i in range(CATEGORIES)}), "brand": sorted({f"b{i}" for i in range(2000)})}
    bare = Vocabulary(values | {"seller": list(range(5000))}, [], [10.0 * n for n in range(1, 10)])
    vocabulary = Vocabulary(bare.values, bare.encode("category", pa.chunked_array([profile["category"]])).tolist(), bare.price_edges)
    vectors = generator.normal(size=(ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = RepresentationTable(every, vectors, "c-bench")
    return joined, vocabulary, Tables(table, table)


def of_the_demo(settings: Settings) -> tuple[Joined, Vocabulary, Tables, int]:
    """The impressions that the newest click model was trained and judged on, and how many it was trained on."""
    encoder = int(Registry(settings).tags(CTR, Registry(settings).newest(CTR) or 1)["encoder"])
    until = Registry(settings).tags(ENCODER, encoder)["trained_until"]
    times = windows(settings.lake, trained_until=dt.datetime.fromisoformat(until))
    joined = clicks.impressions(settings, encoder, times.start, times.end)
    trained = int(np.sum(joined.column("event_timestamp").to_numpy() < np.datetime64(times.ctr_until.replace(tzinfo=None))))
    return joined, Vocabulary.fit(joined.head(trained)), clicks.vectors_known(settings, encoder), trained


def head(rows: Rows, count: int) -> Rows:
    """The first rows, which training may see."""

    cut = {
        name: getattr(rows, name)[:count] for name in ("item_codes", "query_codes", "times", "labels", "user_ids", "item_ids", "positions")
    }
    return replace(rows, at={name: column[:count] for name, column in rows.at.items()}, **cut)


def ours(rows: Rows, vocabulary: Vocabulary, chosen: CtrRecipe, trained: int, seed: int) -> tuple[float, float]:
    """Samples per second of one epoch, checkpoints and all, and AUC on the rows after it."""
    first = head(rows, trained)
    model = build(first, vocabulary, chosen, seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        fit.fit(model, first, chosen, seed=seed, directory=Path(scratch))
        taken = time.perf_counter() - began
    judged = np.arange(trained, len(rows))
    return trained / taken, auc(rows.labels[judged], fit.logits(model, rows, judged))


def peer(rows: Rows, vocabulary: Vocabulary, chosen: CtrRecipe, trained: int, seed: int) -> tuple[float, float]:
    """The same of FuxiCTR's DIN, on batches that lie ready in memory."""
    fields = FeatureMap("bench", "")
    sizes, behaviors = vocabulary.sizes(), ("item", "category")
    specs = {name: {"type": "categorical", "source": "item" if name in behaviors else "user", "vocab_size": sizes[name]} for name in IDS}
    specs |= {f"dense{n}": {"type": "numeric", "source": "user"} for n in range(4)}
    fields.features = OrderedDict({**specs, "words": {**WORDS, "vocab_size": vocabulary.word_rows, "source": "user"}})
    fields.default_emb_dim = chosen.embedding_dim
    fields.labels, fields.num_fields = ["label"], len(fields.features)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as scratch:
        model = DIN(
            fields, dnn_hidden_units=list(chosen.hidden), attention_hidden_units=[chosen.embedding_dim], embedding_dim=chosen.embedding_dim,
            learning_rate=chosen.learning_rate, optimizer="adam", loss="binary_crossentropy", task="binary_classification",
            metrics=["AUC"], verbose=0, model_root=scratch,
        )  # fmt: skip
        model._max_gradient_norm, model._batch_index = 10.0, 0
        model.train()
        ready = list(_theirs(rows, np.random.default_rng((seed, 0)).permutation(trained), chosen.batch))
        began = time.perf_counter()
        for batch in ready:
            model.train_step(batch)
        taken = time.perf_counter() - began
        model.eval()
        with torch.no_grad():
            scores = [model(batch)["y_pred"].flatten().numpy() for batch in _theirs(rows, np.arange(trained, len(rows)), 4096)]
    return trained / taken, auc(rows.labels[trained:], np.concatenate(scores).astype(np.float64))


WORDS = {"type": "sequence", "max_len": 6, "feature_encoder": "layers.MaskedAveragePooling()", "padding_idx": 0}


def _theirs(rows: Rows, order: NDArray[np.int64], size: int) -> Iterator[Any]:
    """Batches in FuxiCTR's form: fields, behaviours with the target as the last one, and which of them are there."""
    for start in range(0, len(order), size):
        some = order[start : start + size]
        found = rows.columns(some, BASE)
        batch = {name: torch.from_numpy(found["ids"][:, n].copy()) for n, name in enumerate(IDS) if name not in ("item", "category")}
        batch |= {f"dense{n}": torch.from_numpy(found["dense"][:, n].copy()) for n in range(4)} | {
            "words": torch.from_numpy(found["words"])
        }
        batch["label"] = torch.from_numpy(rows.labels[some]).float()
        both = {name: np.column_stack([found[f"behavior_{name}"], found["ids"][:, IDS.index(name)]]) for name in ("item", "category")}
        mask = torch.from_numpy(found["behavior_item"] > 0)
        yield batch, {name: torch.from_numpy(column.ravel().copy()) for name, column in both.items()}, mask


def measure(rows: Rows, vocabulary: Vocabulary, trained: int, settings: Settings) -> dict[str, float]:
    """Ours and the peer on the same rows."""
    one = {"epochs": 1, "validation": 0.0, "behaviors": LENGTH}
    din, cube = (recipe(CtrRecipe, name, settings.models, **one) for name in ("ctr-din", "ctr-cube"))
    found: dict[str, float] = {}
    for name, way, chosen in (("peer_", peer, din), ("", ours, din), ("cube_", ours, cube)):
        speeds, aucs = zip(*(way(rows, vocabulary, chosen, trained, seed) for seed in SEEDS), strict=True)
        found |= {f"{name}samples_per_s": float(np.median(speeds)), f"{name}auc": float(np.mean(aucs))}
        found |= {f"{name}auc_seed{seed}": value for seed, value in zip(SEEDS, aucs, strict=True)}
    ratio = {f"{name}ratio_peer": found[f"{name}samples_per_s"] / found["peer_samples_per_s"] for name in ("", "cube_")}
    return found | ratio


def show(title: str, found: dict[str, float]) -> None:
    """One part of the table."""
    print(title)
    for name, text in (("peer_", "FuxiCTR DIN"), ("", "our DIN"), ("cube_", "our CUBE")):
        print(f"  {text:12} {found[f'{name}samples_per_s']:10,.0f} samples/s   AUC {found[f'{name}auc']:.4f}")


def table() -> dict[str, float]:
    """Measure, and print it."""
    settings, out = Settings.from_environment(), dict[str, float]()
    joined, vocabulary, tables = made_up()
    out = measure(encode(joined, vocabulary, tables, LENGTH), vocabulary, TRAINED, settings)
    show(f"{ITEMS:,} items, {USERS:,} users", out)
    if (settings.home / "mlflow.db").is_file() and Registry(settings).newest(CTR):
        joined, vocabulary, tables, trained = of_the_demo(settings)
        small = measure(encode(joined, vocabulary, tables, LENGTH), vocabulary, trained, settings)
        show(f"the shop in {settings.home}", small)
        out |= {f"{name}_small": value for name, value in small.items()}
    return out


if __name__ == "__main__":
    figures.main(table)
