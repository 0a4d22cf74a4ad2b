"""Training samples per second, ours beside sentence-transformers' trainer, on the shop in ``MOON_HOME`` (run `make demo` first).

Both train the same SmolVLM checkpoint (recipe smolvlm-tiny) on the same photographs, pictures and texts, with the same symmetric
InfoNCE, batch and optimizer family. ours: our loop with its loader, in the recipe's precision (auto: bf16 where the processor multiplies
it, else float32); peer: SentenceTransformerTrainer as it comes (float32) with MultipleNegativesSymmetricRankingLoss; ours_float32 and
peer_bf16: each in the other's precision, where that is another one; limit: our model on the same batches, ready in memory; augmented:
ours with every picture changed anew, as the recipe trains. ``--json`` prints one object as the last line.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures

from moon_ops.encoder import sentence
from moon_ops.encoder.batches import Batch
from moon_ops.encoder.checkpoints import Checkpoints
from moon_ops.encoder.fit import Loop, accelerator
from moon_ops.encoder.model import Encoder, build
from moon_ops.encoder.pairs import Pairs, behaviour
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.stage2 import Behaviour
from moon_ops.encoder.train import corpus
from moon_ops.inputs.images import decode
from moon_ops.lake.tables import image_bytes
from moon_ops.processor import processor
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.release.windows import windows
from moon_ops.settings import Settings

STEPS, WARM, TURNS = 24, 4, 2


class Timed(Behaviour):
    """Stage 2a with a clock that is read after each step."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.times: list[float] = []

    def after(self, batch: Batch) -> None:
        """Read the clock."""
        super().after(batch)
        self.times.append(time.perf_counter())


class Repeated(Timed):
    """The same stage on the same batches, made before the clock starts: the model without its loader."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.kept = [super(Repeated, self).batch(number, 0, 1) for number in range(self.steps)]

    def batch(self, number: int, part: int, parts: int) -> Batch:  # noqa: ARG002 - there is one process
        """From memory: batches differ in length, so a single one repeated would be another task."""
        return self.kept[number]


def ours(kind: type[Timed], encoder: Encoder, pairs: Pairs, store: PixelStore, chosen: EncoderRecipe, scratch: Path) -> float:
    """Samples per second of our loop over ``STEPS`` steps after ``WARM`` more."""
    training = chosen.training
    loop = Loop(training, accelerator(training), Checkpoints(scratch / "state"), **({"workers": 0} if kind is Repeated else {}))
    stage = kind(encoder, pairs, store, chosen, 0)
    loop.run(stage)
    return training.batch * STEPS / (stage.times[-1] - stage.times[-1 - STEPS])


def peer(directory: Path, settings: Settings, pairs: Pairs, batch: int, *, bf16: bool) -> float:
    """Samples per second of sentence-transformers' own trainer on the same pairs."""
    from datasets import Dataset, Features, Image, Value
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesSymmetricRankingLoss
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc,unused-ignore]
        times: list[float] = []  # noqa: RUF012

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    wanted = [i for s in (*pairs.queries, *pairs.items) for i in s.image_ids[:1]]
    pictures = {name: decode(content) for name, content in image_bytes(settings.lake, list(dict.fromkeys(wanted)))}
    rows = [n for n in range(len(pairs)) if pairs.queries[pairs.query[n]].image_ids and pairs.items[pairs.item[n]].image_ids]
    rows = (rows * (1 + batch * (STEPS + WARM) // len(rows)))[: batch * (STEPS + WARM)]
    shown = [pairs.items[pairs.item[n]] for n in rows]
    columns = {
        "anchor": [pictures[pairs.queries[pairs.query[n]].image_ids[0]] for n in rows],
        "positive": [{"image": pictures[s.image_ids[0]], "text": s.text} for s in shown],
    }
    both = {"image": Image(), "text": Value("string")}
    data = Dataset.from_dict(columns, features=Features({"anchor": Image(), "positive": both}))
    model = SentenceTransformer(str(directory), device="cpu")
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=out,
            per_device_train_batch_size=batch,
            max_steps=STEPS + WARM,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=bf16,
        )
        SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=MultipleNegativesSymmetricRankingLoss(model), callbacks=[clock]
        ).train()
    return batch * STEPS / (clock.times[-1] - clock.times[-1 - STEPS])


def measure(settings: Settings) -> dict[str, float]:
    """Best of ``TURNS`` runs each; the paths take turns, so that a slow moment hits all of them."""
    full = recipe(EncoderRecipe, "smolvlm-tiny", settings.models)
    training = replace(full.training, matrix_learning_rate=0.0, text_dropout=0.0, augment=False, synthetic=0.0, warmup_steps=1)
    stage = replace(full.stage2a, steps=STEPS + WARM)
    plain = replace(full, training=training, stage2a=stage)
    exact = replace(plain, training=replace(training, precision="no"))
    augmented = replace(full, training=replace(full.training, matrix_learning_rate=0.0), stage2a=stage)
    until = windows(settings.lake).trained_until
    found = behaviour(settings.lake, until)
    pairs = found.only([n for n in range(len(found)) if found.queries[found.query[n]].image_ids])  # type: ignore[arg-type]
    names = ("ours", "peer", *(("ours_float32", "peer_bf16") if processor().bf16 else ()), "limit", "augmented", "augmented_limit")
    best = dict.fromkeys(names, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        encoder = build(plain, corpus(pairs), 0)
        encoder.save(scratch / "encoder")
        sentence.write(encoder, scratch / "encoder", sentence.Card("smolvlm-tiny", until.isoformat(), 0, encoder.dim, (), 0, {}, "other"))
        store = PixelStore.over(settings.lake, pairs.image_ids(), plain.inputs.picture_size, scratch / "pixels.u8")
        store.fill(pairs.image_ids())
        for _ in range(TURNS):
            runs = {
                "ours": lambda: ours(Timed, Encoder.load(scratch / "encoder"), pairs, store, plain, scratch),
                "peer": lambda: peer(scratch / "encoder", settings, pairs, training.batch, bf16=False),
                "ours_float32": lambda: ours(Timed, Encoder.load(scratch / "encoder"), pairs, store, exact, scratch),
                "peer_bf16": lambda: peer(scratch / "encoder", settings, pairs, training.batch, bf16=True),
                "limit": lambda: ours(Repeated, Encoder.load(scratch / "encoder"), pairs, store, plain, scratch),
                "augmented": lambda: ours(Timed, Encoder.load(scratch / "encoder"), pairs, store, augmented, scratch),
                "augmented_limit": lambda: ours(Repeated, Encoder.load(scratch / "encoder"), pairs, store, augmented, scratch),
            }
            for name in names:
                best[name] = max(best[name], runs[name]())
    return best


def table() -> dict[str, float]:
    """Measure, and print it."""
    warnings.simplefilter("ignore")
    settings = Settings.from_environment()
    if not settings.lake.exists("events"):
        sys.exit(f"moon: MOON_HOME = {settings.home} holds no shop → run `make demo` first")
    rates = measure(settings)
    for name, rate in rates.items():
        print(f"{name:16} {rate:8.0f} samples/s")
    ratios = {
        "ratio": rates["ours"] / rates["peer"],
        "ratio_float32": rates.get("ours_float32", rates["ours"]) / rates["peer"],
        **({"ratio_bf16": rates["ours"] / rates["peer_bf16"]} if "peer_bf16" in rates else {}),
        "loader_share": rates["ours"] / rates["limit"],
        "loader_share_augmented": rates["augmented"] / rates["augmented_limit"],
    }
    print("   ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    return {**rates, **ratios}


if __name__ == "__main__":
    figures.main(table, "bf16" if processor().bf16 else "float32")
