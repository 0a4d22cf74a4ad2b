"""Steps of stage 2a on a GPU, of a model of 256 million or 2 thousand million weights: seconds, memory, and how much of the GPU is used.

**Nobody has run it on a GPU yet.** Weights and batches are made up, so nothing is downloaded: shapes are those of SmolVLM-256M (512 px) and
Qwen3-VL-2B (256 px), a pair has a photograph as its query and a picture with 64 tokens as its item. Model FLOPs utilisation: operations of
one pass over the batch and twice as many for its gradients (not those that gradient caching or recomputed blocks repeat), a second, by what
the GPU's maker publishes for bf16. On one GPU each model takes some minutes:

    PYTHONPATH=. .venv/bin/python benchmarks/encoder_gpu.py --model 256m --batch 128 --chunk 32 --json
    PYTHONPATH=. .venv/bin/python benchmarks/encoder_gpu.py --model 2b --batch 64 --chunk 16 --recompute --json
    PYTHONPATH=. .venv/bin/torchrun --nproc-per-node 8 benchmarks/encoder_gpu.py --model 2b --batch 512 --chunk 16 --sharding full --json

``--steps 12``; ``--peak 989``: TFLOP/s of a GPU that is not in the table. ``--model tiny`` runs anywhere, to check the benchmark itself.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import figures
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from moon_ops.encoder.batches import Batch, Inputs
from moon_ops.encoder.checkpoints import Checkpoints, State
from moon_ops.encoder.fit import Loop, accelerator, cached
from moon_ops.encoder.model import Encoder, build
from moon_ops.encoder.objectives import Found, Sides, behaviour_loss
from moon_ops.errors import InputError
from moon_ops.recipes.encoder import EncoderRecipe, Stage2a, Training
from moon_ops.recipes.encoder import Inputs as Shape

PEAKS = {"B200": 2250, "H200": 989, "H100": 989, "GH200": 989, "A100": 312, "L40S": 362, "L4": 121}  # TFLOP/s in bf16, without sparsity
WARM, WORDS = 3, 64
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
MODELS: dict[str, dict[str, Any]] = {  # a tower has a patch's size, too, and a trunk the heads of keys and values
    "tiny": {"of": "qwen3_vl", "size": 32, "tokens": 700, "by": 2, "vision": (64, 128, 4, 2, 8), "text": (128, 384, 8, 4, 2)},
    "256m": {"of": "smolvlm", "size": 512, "tokens": 49_280, "by": 4, "vision": (768, 3072, 12, 12, 16), "text": (576, 1536, 30, 9, 3)},
    "2b": {
        "of": "qwen3_vl",
        "size": 256,
        "tokens": 151_936,
        "by": 2,
        "vision": (1024, 4096, 24, 16, 16),
        "text": (2048, 6144, 28, 16, 8),
    },
}


class MadeUp:
    """Stage 2a on batches of nothing but noise."""

    name, rate = "stage2a", 1.0

    def __init__(self, encoder: Encoder, recipe: EncoderRecipe) -> None:
        self.model: Any = Sides(encoder, recipe.training.temperature)
        self.steps, self.size, self.layout = recipe.stage2a.steps, recipe.training.batch, encoder.layout
        self.found, self.times = Found(torch.zeros(()), {}), [time.perf_counter()]

    def batch(self, number: int, part: int, parts: int) -> Batch:
        """Noise of the right shapes."""
        count, generator = self.size // parts, torch.Generator().manual_seed(number * parts + part)
        sides = {"query": self.side(count, 0, generator), "item": self.side(count, WORDS, generator)}
        own = torch.arange(count) + part * count
        return Batch(sides, own, own, torch.ones(count, dtype=torch.bool), own[:0], tuple(own.tolist()))

    def side(self, rows: int, words: int, generator: torch.Generator) -> Inputs:
        """Rows of one picture and some tokens."""
        ids, mask = self.layout.batch([torch.randint(40, 200, (words,), generator=generator).tolist() for _ in range(rows)], [1] * rows)
        pixels = torch.randint(0, 256, (rows, 3, *[self.layout.picture_size] * 2), dtype=torch.uint8, generator=generator)
        return Inputs(torch.from_numpy(ids), torch.from_numpy(mask), pixels, (1,) * rows)

    def losses(self, model: nn.Module, batch: Batch, chunk: int, device: torch.device) -> list[Callable[[], Tensor]]:
        """InfoNCE over the pairs of all processes."""
        shown = (batch.product.to(device), batch.pictured.to(device))
        sides = {name: side.to(device) for name, side in batch.sides.items()}
        self.model.hold()
        self.found, passes = cached(model, sides, chunk, lambda vectors, scale: behaviour_loss(shown, vectors, scale, Stage2a(), ()))
        return passes

    def after(self, batch: Batch) -> None:  # noqa: ARG002 - a step is over
        """Read the clock once the GPU has caught up."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}


class Weighed(Checkpoints):
    """Keeps nothing but how many bytes this process holds of weights, gradients and optimizer states."""

    shared = True

    def __init__(self) -> None:
        super().__init__(Path())
        self.bytes: dict[str, int] = {"gradients": 0}
        self.hook = register_optimizer_step_pre_hook(self.gradients)

    def gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Before the first step."""
        self.bytes["gradients"] += held(p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        self.hook.remove()

    def save(self, state: State, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:  # noqa: ARG002 - they are not kept
        """Weigh."""
        self.bytes |= {"weights": held(model.parameters())}
        self.bytes |= {"optimizer": held(v for o in optimizers for s in o.state.values() for v in s.values())}


def held(tensors: Any) -> int:
    """Bytes that this process has of them."""
    own = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in own)


def made(name: str) -> tuple[Encoder, EncoderRecipe]:
    """The model of that name, with random weights, and how it is trained."""
    shape, number = MODELS[name], lambda option, usual: int(figures.option(option, str(usual)))
    training = Training(
        batch=number("batch", 16), learning_rate=1e-5, chunk=number("chunk", 0), checkpoint_steps=0,
        precision="no" if name == "tiny" else "bf16", sharding="full" if figures.option("sharding", "none") == "full" else "none",
        activation_checkpointing="--recompute" in sys.argv,
    )  # fmt: skip
    given = {
        "family": shape["of"],
        "scale_factor": shape["by"],
        "vision": dict(zip((*SIZES, "patch_size"), shape["vision"], strict=True)),
        "text": dict(zip((*SIZES, "num_key_value_heads"), shape["text"], strict=True)),
    }
    inputs = Shape(picture_size=shape["size"], max_text_tokens=WORDS + 8)
    recipe = EncoderRecipe(name=name, inputs=inputs, training=training, stage2a=Stage2a(steps=number("steps", 12)), **given)
    encoder = build(recipe, ["red dress", "blue boots"] * 8, seed=0)
    encoder.trunk.resize_token_embeddings(shape["tokens"], mean_resizing=False)
    return encoder, recipe


def peak(name: str) -> float | None:
    """Operations a second that the GPU is said to reach; None for the model that runs anywhere."""
    if name == "tiny":
        return None
    if not torch.cuda.is_available():
        raise InputError(
            f"--model {name} needs a GPU, and there is none here", action="run it where there is one; --model tiny runs anywhere"
        )
    gpu = torch.cuda.get_device_name()
    known = next((str(value) for key, value in PEAKS.items() if key in gpu.replace("-", " ").split()), "")
    if not (said := figures.option("peak", known)):
        raise InputError(f"nobody has said how much {gpu} computes", action="give --peak in TFLOP/s of bf16, as its maker publishes it")
    return float(said) * 1e12


def operations(stage: MadeUp) -> float:
    """Of one forward pass of a pair; a multiplication with its sum are two."""
    generator, device = torch.Generator().manual_seed(0), next(stage.model.parameters()).device
    sides = [stage.side(2, words, generator).to(device) for words in (0, WORDS)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        stage.model(sides)
    return counter.get_total_flops() / 2


def table() -> dict[str, object]:
    """The figures of one model."""
    name = figures.option("model", "256m")
    if name not in MODELS:
        raise InputError(f"--model {name} is not known", action=f"give one of {', '.join(MODELS)}")
    most, rank = peak(name), int(os.environ.get("RANK", "0"))
    encoder, recipe = made(name)
    stage, kept, machine = MadeUp(encoder, recipe), Weighed(), accelerator(recipe.training)
    stage.model.to(machine.device)
    count, of_a_pair = sum(p.numel() for p in encoder.parameters()), operations(stage) if rank == 0 else 0.0
    Loop(recipe.training, machine, kept, workers=0, total=stage.steps, silent=True).run(stage)
    seconds = median(stage.times[n + 1] - stage.times[n] for n in range(min(WARM, stage.steps - 1), stage.steps))
    rate, processes = recipe.training.batch / seconds, machine.num_processes
    memory = torch.cuda.max_memory_allocated() if most else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found: dict[str, object] = {"model": name, "processes": processes, "parameters": count, "batch": recipe.training.batch}
    found |= {"device": torch.cuda.get_device_name() if most else "cpu", "seconds_a_step": seconds, "pairs_a_second": rate}
    found |= {f"{what}_bytes": size for what, size in kept.bytes.items()} | {
        "expected_bytes": 16 * count // processes,
        "peak_bytes": memory,
    }
    found["operations_a_pair"] = 3 * of_a_pair
    found["mfu"] = 3 * of_a_pair * rate / processes / most if most else None
    if rank:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the first process speaks for all
    print(f"{name}: {count:,} weights on {processes} x {found['device']}; {seconds:.2f} s a step, {rate:,.1f} pairs/s; nobody has tuned it")
    print(f"weights, gradients, optimizer {sum(kept.bytes.values()) / 2**20:,.0f} MiB a process (16 bytes a weight: "
          f"{16 * count / processes / 2**20:,.0f}); peak {memory / 2**20:,.0f} MiB")  # fmt: skip
    print(f"model FLOPs utilisation {found['mfu']:.3f}" if most else "no share of a GPU: this was a check of the benchmark on a CPU")
    return found


if __name__ == "__main__":
    figures.main(table, "float32" if figures.option("model", "256m") == "tiny" else "bf16")
