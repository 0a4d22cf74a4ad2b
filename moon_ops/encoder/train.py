"""Train an encoder on what users buy: user-behaviour contrastive learning (MOON, stage 2), query → bought item.

A run writes its checkpoint beside its place and moves it there in one step, so a killed run leaves no half encoder; run it again.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from moon_ops.encoder.losses import info_nce
from moon_ops.encoder.model import Encoder, build
from moon_ops.encoder.pairs import Pairs, purchases
from moon_ops.encoder.pixels import PixelStore, augment
from moon_ops.errors import InputError
from moon_ops.lake.contract import Sample
from moon_ops.lake.tables import Lake
from moon_ops.settings import EncoderRecipe

MAX_SCALE = 100.0  # of the logits, as in CLIP: beyond it one batch can throw the training off


@dataclass(frozen=True)
class TrainReport:
    """What a training run used and reached; stored as ``training.json`` in the checkpoint."""

    recipe: str
    trained_until: str  # ISO 8601: the encoder has seen no behaviour from then on
    seed: int
    pairs: int
    parameters: int
    steps: int
    first_loss: float
    last_loss: float  # mean of the last tenth of the steps
    temperature: float


def train(
    lake: Lake,
    out: Path,
    recipe: EncoderRecipe,
    *,
    trained_until: dt.datetime,
    seed: int,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainReport:
    """Train the recipe on the lake's purchases before ``trained_until`` and save the encoder to the directory ``out``.

    ``on_step(step, metrics)`` hears of loss, temperature, learning rate and samples/s. The same seed gives the same encoder on the
    same machine. Raises :class:`StageError` without purchases, :class:`InputError` when the loss stops being a number.
    """
    pairs = purchases(lake, trained_until)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="train-", dir=out.parent) as scratch:
        encoder = build(recipe, corpus(pairs), seed)
        store = PixelStore.fill(lake, pairs.image_ids(recipe.inputs.max_pictures), recipe.inputs.picture_size, Path(scratch) / "pixels.u8")
        losses, scale = _fit(encoder, Batches(encoder, pairs, store, recipe, seed), recipe, on_step, seed)
        tail = losses[-max(1, len(losses) // 10) :]
        report = TrainReport(
            recipe.name,
            trained_until.isoformat(),
            seed,
            len(pairs),
            encoder.parameter_count(),
            recipe.training.steps,
            losses[0] if losses else math.nan,
            sum(tail) / len(tail) if losses else math.nan,
            1 / scale,
        )
        _save(encoder, recipe, report, Path(scratch) / "encoder", out)
    return report


def corpus(pairs: Pairs) -> list[str]:
    """The texts a tokenizer is trained on: every item's, then every query's, in a fixed order."""
    return [s.text for s in pairs.items if s.text] + [s.text for s in pairs.queries if s.text]


class Batches:
    """Turns pair numbers into tensors: tokens of each text once, each distinct item of a batch once."""

    def __init__(self, encoder: Encoder, pairs: Pairs, store: PixelStore, recipe: EncoderRecipe, seed: int) -> None:
        self.layout, self.pairs, self.store, self.recipe = encoder.layout, pairs, store, recipe
        self.generator = torch.Generator().manual_seed(seed)
        self.query_tokens = tokens(encoder, pairs.queries)
        self.item_tokens = tokens(encoder, pairs.items)

    def inputs(self, samples: list[Sample], token_ids: list[list[int]], rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """``input_ids``, ``attention_mask`` [B, L] and pixels [N, 3, S, S] of some samples."""
        pictures = [samples[r].image_ids[: self.layout.max_pictures] for r in rows]
        ids, mask = self.layout.batch([token_ids[r] for r in rows], [len(p) for p in pictures])
        pixels = self.store.take([i for p in pictures for i in p])
        if self.recipe.training.augment and len(pixels):
            pixels = augment(pixels, self.generator)
        return torch.from_numpy(ids), torch.from_numpy(mask), pixels

    def sides(self, batch: NDArray[np.int64]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor, Tensor]:
        """Inputs of the queries, inputs of the distinct items, each query's item row [B], and the same-product mask [B, M]."""
        rows, target = np.unique(self.pairs.item[batch], return_inverse=True)
        queries = self.inputs(self.pairs.queries, self.query_tokens, self.pairs.query[batch])
        items = self.inputs(self.pairs.items, self.item_tokens, rows)
        spu = self.pairs.spu_ids[rows]
        return queries, items, torch.from_numpy(target), torch.from_numpy(spu[target][:, None] == spu[None, :])


def tokens(encoder: Encoder, samples: Iterable[Sample]) -> list[list[int]]:
    """Each sample's text as token ids, without special tokens."""
    return [e.ids for e in encoder.tokenizer.encode_batch([s.text for s in samples], add_special_tokens=False)]


def _fit(
    encoder: Encoder, batches: Batches, recipe: EncoderRecipe, on_step: Callable[[int, dict[str, float]], None] | None, seed: int
) -> tuple[list[float], float]:
    """All the steps; the loss of each, and the logit scale at the end."""
    training = recipe.training
    log_scale = nn.Parameter(torch.tensor(math.log(1 / training.temperature)))
    optimizer = torch.optim.AdamW(_groups(encoder, log_scale, training.weight_decay), lr=training.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _warm_cosine(s, training.warmup_steps, training.steps))
    losses: list[float] = []
    encoder.train()
    with tqdm(total=training.steps * training.batch, desc="train", unit="pair") as bar:
        for step, batch in enumerate(batches.pairs.batches(training.batch, training.steps, seed)):
            query, item, target, same = batches.sides(batch)
            loss = info_nce(encoder(*query), encoder(*item), target, log_scale.exp().clamp(max=MAX_SCALE), same)
            if not math.isfinite(loss.item()):
                bought = batches.pairs.item_ids[batches.pairs.item[batch]][:5].tolist()
                raise InputError(f"the loss is {loss.item()} at step {step}, in a batch with items {bought}", action="lower learning_rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            bar.update(len(batch))
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            if on_step and (step % 10 == 0 or step == training.steps - 1):
                on_step(step, _metrics(losses[-1], log_scale, schedule, float(norm)))
    encoder.eval()
    return losses, min(log_scale.exp().item(), MAX_SCALE)


def _metrics(loss: float, log_scale: Tensor, schedule: torch.optim.lr_scheduler.LambdaLR, norm: float) -> dict[str, float]:
    temperature = math.exp(-log_scale.item())
    return {"loss": loss, "temperature": temperature, "learning_rate": schedule.get_last_lr()[0], "gradient_norm": norm}


def _groups(encoder: Encoder, log_scale: nn.Parameter, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; gains, biases and the temperature do not."""
    decay = [p for p in encoder.parameters() if p.ndim > 1]
    rest = [p for p in encoder.parameters() if p.ndim <= 1]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": [*rest, log_scale], "weight_decay": 0.0}]


def _warm_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the learning rate: linear up for ``warmup`` steps, then a half cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _save(encoder: Encoder, recipe: EncoderRecipe, report: TrainReport, scratch: Path, out: Path) -> None:
    """Write to ``scratch`` and move it to ``out`` in one step, replacing an encoder that is there."""
    encoder.save(scratch)
    (scratch / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    (scratch / "training.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    if out.exists():
        shutil.rmtree(out)
    scratch.rename(out)
