"""Cross-fitted encoders: what it costs that click models learn from vectors which have seen the clicks that they learn from.

The time before ``trained_until`` is cut into K folds. An encoder is trained on all behaviour, and one for each fold on all but the fold's.
Vectors of two encoders do not compare, so only a model that reads them as cosines can read some rows by one and some by another. What
judges lies after all trainings and is read by the encoder of all behaviour.
R rows, M vectors of an encoder, D dimensions.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moon_ops.ctr import metrics
from moon_ops.ctr.vectors import Ints, Tables
from moon_ops.embeddings import as_of, features
from moon_ops.embeddings.due import contents
from moon_ops.embeddings.histories import History
from moon_ops.embeddings.table import MISSING
from moon_ops.embeddings.vector_tables import KEY
from moon_ops.errors import InputError
from moon_ops.inputs.contract import Sample, file_sha256, item_sample, query_sample
from moon_ops.publication import marks
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.registry.registry import Registry
from moon_ops.release import clicks
from moon_ops.release.runs import flat, place_of, run_of
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings
from moon_ops.studies import clicks as click_study
from moon_ops.studies.click_arms import ClickArm
from moon_ops.studies.clicks import Judged

COSINES = ("din+cos", "simscore", "simtier")  # extractors that read nothing of vectors but their cosines
IN_SAMPLE, CROSS_FITTED, SHIFTED = "in-sample", "cross-fitted", "another fold's encoder"
SEED = 0  # of all encoders
Span = tuple[dt.datetime, dt.datetime]


@dataclass(frozen=True)
class Found:
    """What the arms scored, and the AUC of cos(r_t, r_q) alone on the rows of each fold and on those that judge, by arm."""

    arms: list[ClickArm]
    judged: Judged
    alone: dict[str, list[float]]


class Folded:
    """Vectors of the same items (or queries) under several encoders: a row's time says whose it reads."""

    def __init__(
        self, history: History, matrices: Sequence[NDArray[np.float32]], ends: Ints, read: Sequence[int], contract_id: str
    ) -> None:
        """``matrices`` [M, D] in the order of the history; rows before ``ends[k]`` [µs], and not before ``ends[k - 1]``, read the one of
        number ``read[k]``, and those after the last end the one of number ``read[-1]``.
        """
        self.history, self.ends, self.read, self.contract_id = history, ends, np.array(read), contract_id
        self.size, self.dim = matrices[0].shape
        self.vectors = np.concatenate([*matrices, np.zeros((1, self.dim), np.float32)])  # the last: what -1 stands for

    def codes(self, ids: Ints) -> Ints:
        """The number of each id, any shape; -1 for one without a vector."""
        return self.history.codes(ids)

    def at(self, codes: Ints, times: Ints) -> Ints:
        """The row number of the vector valid strictly before ``times`` [µs], of the encoder by which rows of that time are read."""
        rows = self.history.at(codes, times)
        return np.where(rows >= 0, rows + self.size * self.read[np.searchsorted(self.ends, times, side="right")], MISSING)

    def gather(self, rows: Ints) -> NDArray[np.float32]:
        """Vectors [..., D] of row numbers [...]; zeros for -1."""
        return np.take(self.vectors, rows, axis=0, mode="wrap")


def run(
    settings: Settings,
    encoder: int,
    arms: Sequence[ClickArm],
    seeds: Sequence[int],
    windows: Windows,
    *,
    full: EncoderRecipe,
    folds: int,
    oracle: Path | None = None,
) -> Found:
    """Train the encoders of ``folds`` and of all behaviour by the recipe ``full``, and each click model on what ``encoder`` has published,
    but with their vectors: in sample, cross-fitted, and each fold read by the encoder of the next one, which has seen it.

    Nothing is registered. Called again it goes on where it was killed. Raises :class:`InputError` for a click model that reads more of
    vectors than cosines.
    """
    for arm in arms:
        extractor = recipe(CtrRecipe, arm.recipe, settings.models, changes=arm.changes, **arm.change).extractor
        if extractor not in COSINES:
            problem = f"{arm.recipe} reads vectors themselves, and those of two encoders do not compare"
            raise InputError(problem, action=f"take a recipe whose extractor is one of {', '.join(COSINES)}")
    spans = cut(windows, folds)
    read = tables(settings, encoder, encoders(settings, encoder, full, spans, windows), spans)
    every = [replace(arm, name=f"{arm.name}, {how}") for arm in arms for how in read]
    vectors = {f"{arm.name}, {how}": found for arm in arms for how, found in read.items()}
    judged = click_study.run(settings, encoder, every, seeds, windows, oracle=oracle, vectors=vectors)
    return Found(every, judged, alone(settings, encoder, [*spans, (windows.ctr_until, windows.end)], read))


def cut(windows: Windows, folds: int) -> list[Span]:
    """Equal parts of the time before ``trained_until``; :class:`InputError` where there is none, or for a single one."""
    if folds < 2 or windows.start == windows.trained_until:
        raise InputError(f"folds = {folds} must be at least 2, of a time before {windows.trained_until:%Y-%m-%d}", action="give e.g. 3")
    step = (windows.trained_until - windows.start) / folds
    return list(pairwise([*(windows.start + n * step for n in range(folds)), windows.trained_until]))


def encoders(settings: Settings, encoder: int, full: EncoderRecipe, spans: Sequence[Span], windows: Windows) -> list[Path]:
    """The checkpoints of the encoders without each span's behaviour, and last of the one with all of it; trained where they are not yet."""
    from moon_ops.encoder.train import train

    registry, places = Registry(settings), list[Path]()
    state = marks.lake_state(settings, encoder)
    for span in [*spans, None]:
        changed = replace(full, except_between=tuple(when.isoformat() for when in span) if span else ())
        params = {"recipe": full.name, "seed": SEED, "trained_until": windows.trained_until.isoformat(), "lake": state, **flat(changed)}
        out = place_of(settings, full.name, params, "-cross-fitted")
        if not (out / "training.json").is_file():
            with run_of(registry, out, f"cross-fitted: {full.name}", params, {"study": "cross-fitted"}):
                train(settings.lake, out, changed, trained_until=windows.trained_until, seed=SEED)
        places.append(out)
    return places


def tables(settings: Settings, encoder: int, checkpoints: Sequence[Path], spans: Sequence[Span]) -> dict[str, Tables]:
    """The vectors that rows read, by arm."""
    store = features.open_store(settings)
    features.service(store, encoder)  # an encoder that was never published is an error that names the command
    items, keys = as_of.read(store.get_feature_view(f"item_embedding_v{encoder}"), KEY)
    queries, asked = as_of.read(store.get_feature_view(f"query_embedding_v{encoder}"), ["query_id"])
    known = {row["query_id"]: row for row in settings.lake.read("queries", ["query_id", "text", "image_id"]).to_pylist()}
    shown = [item_sample(row) for row in contents(settings.lake.open("items"), keys)]
    made = _embedded(settings, checkpoints, (shown, [query_sample(known.get(n, {})) for n in asked["query_id"].to_pylist()]))
    ends, last = np.array([round(end.timestamp() * 1e6) for _, end in spans]), len(spans)
    orders = {IN_SAMPLE: [last] * last, CROSS_FITTED: list(range(last)), SHIFTED: [(n + 1) % last for n in range(last)]}
    weights, found = [file_sha256(place / "model.safetensors") for place in checkpoints], {}
    for how, order in orders.items():
        name = hashlib.sha256(json.dumps([weights, ends.tolist(), order]).encode()).hexdigest()
        both = [Folded(h, some, ends, [*order, last], name) for h, some in zip((items, queries), zip(*made, strict=True), strict=True)]
        found[how] = Tables(*both)
    return found


def _embedded(
    settings: Settings, checkpoints: Sequence[Path], kinds: tuple[list[Sample], list[Sample]]
) -> list[tuple[NDArray[np.float32], ...]]:
    """The vectors of samples of each of the ``kinds``, under each checkpoint."""
    from moon_ops.encoder.eager import embed_eager
    from moon_ops.encoder.model import Encoder
    from moon_ops.encoder.pixels import PixelStore

    layout, found = Encoder.load(checkpoints[0]).layout, []
    names = list(dict.fromkeys(i for samples in kinds for s in samples for i in s.image_ids[: layout.max_pictures]))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "pixels.u8"
        store = PixelStore.over(settings.lake, names, layout.picture_size, place, detector=layout.core_region, kept=settings.picture_bytes)
        for checkpoint in checkpoints:
            encoder = Encoder.load(checkpoint).eval()
            found.append(tuple(embed_eager(encoder, store, samples, shown=False) for samples in kinds))
    return found


def alone(settings: Settings, encoder: int, spans: Sequence[Span], read: Mapping[str, Tables]) -> dict[str, list[float]]:
    """The AUC of cos(r_t, r_q) by itself on the impressions of each span, by arm."""
    found: dict[str, list[float]] = {how: [] for how in read}
    for start, end in spans:
        rows = clicks.impressions(settings, encoder, start, end).rows
        times, labels = as_of.microseconds(rows, "event_timestamp"), as_of.identifiers(rows, "label")
        for how, some in read.items():
            both = (some.items, as_of.identifiers(rows, "item_id")), (some.queries, as_of.identifiers(rows, "query_id"))
            target, query = (vectors.gather(vectors.at(vectors.codes(ids), times)) for vectors, ids in both)
            found[how].append(metrics.auc(labels, np.einsum("rd,rd->r", target, query)))
    return found


def table(found: Found, arms: Sequence[ClickArm]) -> str:
    """Markdown: each model beside itself in sample and, cross-fitted, beside the encoder of another fold; and cosines alone."""
    parts = []
    for arm in arms:
        for reference in (IN_SAMPLE, SHIFTED):
            some = [one for one in found.arms if one.name.startswith(f"{arm.name}, ")]
            some = some if reference == IN_SAMPLE else [one for one in some if not one.name.endswith(IN_SAMPLE)]
            parts.append(f"Differences are to {reference}.\n\n{click_study.table(found.judged, some, f'{arm.name}, {reference}')}")
    lines = [f"- {how}: {', '.join(f'{auc:.4f}' for auc in aucs)}" for how, aucs in found.alone.items()]
    return "\n".join([*parts, "The AUC of cos(r_t, r_q) alone on the rows of each fold, and last on those that judge:\n", *lines, ""])
