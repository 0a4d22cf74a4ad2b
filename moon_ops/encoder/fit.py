"""The training loop: one for all stages, on one process or many, with cached gradients, checkpoints and exact resume.

Accelerate brings device, mixed precision, gradient accumulation and data parallelism (``torchrun``). Gradient caching (Gao et al., 2021)
makes the contrastive batch independent of memory: vectors first without a graph, the loss of all of them, then chunk by chunk once more
with the vectors' gradients. R rows, D dimensions.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast
from torch import Tensor, nn
from tqdm import tqdm

from moon_ops.encoder.allocator import memory_kept
from moon_ops.encoder.averaging import Average
from moon_ops.encoder.batches import Batch, Inputs
from moon_ops.encoder.checkpoints import Checkpoints, State
from moon_ops.encoder.loader import batches, spare_workers
from moon_ops.encoder.negatives import gathered_numbers
from moon_ops.encoder.norms import spanning
from moon_ops.encoder.objectives import Found
from moon_ops.encoder.optimizers import build, set_rates
from moon_ops.encoder.recompute import recomputed
from moon_ops.encoder.sharding import Whole, full, refuse_foreign, spread
from moon_ops.encoder.validation import STAGES as MEASURED
from moon_ops.encoder.validation import Validation
from moon_ops.errors import InputError
from moon_ops.processor import processor
from moon_ops.recipes.encoder import Training

Listener = Callable[[int, dict[str, float]], None]
LOG_STEPS = 10


class Stage(Protocol):
    """What the loop needs to know of a stage."""

    name: str
    steps: int
    rate: float  # share of the recipe's learning rates
    model: nn.Module

    def batch(self, number: int, part: int, parts: int) -> Any:
        """The batch of that number, for one of several processes."""

    def losses(self, model: nn.Module, batch: Any, chunk: int, device: torch.device) -> list[Callable[[], Tensor]]:
        """Functions of which each runs part of the model and returns a tensor to go backward from; together the batch's gradient."""

    @property
    def found(self) -> Found:
        """Loss and metrics of the last batch."""

    def after(self, batch: Any) -> None:
        """Called after each optimizer step."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside weights."""


def accelerator(training: Training) -> Accelerator:
    """Device, precision and processes as the recipe and the environment (``torchrun``, ``accelerate launch``) say."""
    AcceleratorState._reset_state()  # a process may train twice, with another precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a batch without pictures leaves the tower out
    precision, reason = precision_of(training)
    if training.precision == "auto":
        tqdm.write(f"precision {precision}: {reason}", file=sys.stderr)
    machine = Accelerator(
        cpu=not torch.accelerator.is_available(),  # said, or the processes of torchrun would each believe to be alone
        mixed_precision=precision,
        gradient_accumulation_steps=training.accumulation,
        kwargs_handlers=[unused],
    )
    refuse_foreign(machine)
    return machine


def precision_of(training: Training) -> tuple[str, str]:
    """``no``, ``bf16`` or ``fp16``, and why: ``auto`` is bf16 where the processor multiplies it in hardware."""
    if training.precision != "auto":
        return training.precision, "as the recipe says"
    if torch.cuda.is_available():
        fit = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU computes with it") if fit else ("no", "the GPU does not compute with bf16")
    here = processor()
    return ("bf16", f"{here} computes with it") if here.bf16 else ("no", f"{here} would only emulate bf16")


@dataclass
class Loop:
    """One run over several stages."""

    training: Training
    machine: Accelerator
    checkpoints: Checkpoints
    listener: Listener | None = None
    workers: int | None = None  # processes that make batches; None: as many as there are spare cores for
    done: int = 0  # steps of the stages before
    total: int = 0  # of all stages
    silent: bool = False  # no progress bar
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # each step's, of this process alone
    average: Average = field(init=False)  # of the stage that runs
    validation: Validation | None = None

    @memory_kept()
    def run(self, stage: Stage, resumed: State | None = None) -> None:
        """All steps of ``stage``, or those left of it, unless its validation ends it before.

        Raises :class:`InputError` naming the batch when the loss stops being a number.
        """
        with spread(stage, self.machine, self.training.sharding) as (model, whole), recomputed(stage.model, self.training):
            self._steps(stage, model, whole, resumed)
        stage.model.eval()
        self.done += stage.steps

    def _steps(self, stage: Stage, model: nn.Module, whole: Whole, resumed: State | None) -> None:
        optimizers = build(stage.model, self.training)
        start = self._begun(stage, optimizers, resumed)
        self.average = Average(stage.model, self.training.ema, resumed.tensors if start and resumed else None)
        stage.model.train()
        waiting = self._waiting(stage, start)
        hidden = self.silent or not self.machine.is_main_process
        shown = tqdm(total=stage.steps, initial=start, desc=stage.name, unit="step", disable=hidden)
        with spanning(stage.model, self.machine.num_processes), shown as bar:
            for step in range(start, stage.steps):
                if self._over(stage):
                    break
                began = time.perf_counter()
                place = (self.done + step, self.total) if self.training.schedule == "run" else (step, stage.steps)
                rate = set_rates(optimizers, self.training, *place, stage.rate)
                norm, loss = self._step(stage, model, optimizers, waiting, step)
                self.average.update(step)
                self.losses.append(loss)
                self.seconds.append(time.perf_counter() - began)
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                speed = self.training.batch * self.training.accumulation / self.seconds[-1]
                self._tell(stage, step, rate, norm, speed)
                self._validate(stage, step + 1, whole)
                self._keep(stage, step + 1, optimizers)
        self.average.give()
        if self.validation is not None and stage.name in MEASURED:
            self.validation.give(stage.model)
        for buffer in stage.model.buffers():
            buffer.copy_(broadcast(buffer))  # each process has counted its own batches: what follows must be the same for all

    def _waiting(self, stage: Stage, start: int) -> Iterator[Any]:
        """The batches of this process from the step ``start`` on."""
        numbers = range(start * self.training.accumulation, stage.steps * self.training.accumulation)
        part, parts = self.machine.process_index, self.machine.num_processes
        workers = spare_workers() if self.workers is None else self.workers
        return batches(lambda number: stage.batch(number, part, parts), numbers, workers, pinned=self.machine.device.type == "cuda")

    def _begun(self, stage: Stage, optimizers: list[torch.optim.Optimizer], resumed: State | None) -> int:
        """The step at which the stage begins, or goes on after it was killed."""
        if resumed is None or resumed.stage != stage.name:
            if self.validation is not None:
                self.validation.begin()
            return 0
        self.checkpoints.restore_optimizers(optimizers)
        resumed.tensors |= self.checkpoints.shards(stage.model)
        if self.validation is not None:
            self.validation.restore(resumed.validation, resumed.tensors)
        self.losses = list(resumed.losses)
        if self.machine.scaler is not None:
            self.machine.scaler.load_state_dict(resumed.scaler)
        return resumed.step

    def _over(self, stage: Stage) -> bool:
        """Whether the stage has ended early."""
        return self.validation is not None and self.validation.over(stage.name)

    def _step(
        self, stage: Stage, model: nn.Module, optimizers: list[torch.optim.Optimizer], waiting: Iterator[Any], step: int
    ) -> tuple[float, float]:
        """One step of the optimizers, over ``accumulation`` batches; gradient norm and mean loss."""
        norm = total = 0.0
        for _ in range(self.training.accumulation):
            batch = next(waiting)
            with self.machine.accumulate(model):
                passes = stage.losses(model, batch, self.training.chunk, self.machine.device)
                loss = self._mean_loss(float(stage.found.loss.detach()), stage, step, batch)
                for place, one in enumerate(passes):
                    if place < len(passes) - 1:
                        with self.machine.no_sync(model):
                            self.machine.backward(one())
                    else:
                        self.machine.backward(one())
                if self.machine.sync_gradients:
                    norm = self._update(stage.model, optimizers)
            stage.after(batch)
            total += loss / self.training.accumulation
        return norm, total

    def _mean_loss(self, loss: float, stage: Stage, step: int, batch: Batch) -> float:
        """The mean over processes. All end together if the loss of one is no number: the others would wait for it for ever."""
        every = [loss]
        if self.machine.num_processes > 1:
            every = gathered_numbers(torch.tensor([loss], dtype=torch.float64, device=self.machine.device)).tolist()
        if not math.isfinite(loss):
            _refuse(loss, stage, step, batch)
        if not all(map(math.isfinite, every)):
            raise InputError(
                f"the loss of another process is no number at step {step} of {stage.name}; nothing was saved after the last checkpoint",
                action="look at what that process says",
            )
        return sum(every) / len(every)

    def _update(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> float:
        """One step of all optimizers; the gradient's norm before it was clipped. In fp16 one scale is undone once for all of them."""
        scaler = self.machine.scaler
        if scaler is not None:
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
        norm = float(full(self.machine.clip_grad_norm_(model.parameters(), 1.0)))
        for optimizer in optimizers:
            optimizer.step() if scaler is None else scaler.step(optimizer)
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()
        return norm

    def _tell(self, stage: Stage, step: int, rate: float, norm: float, speed: float) -> None:
        if self.listener and self.machine.is_main_process and (step % LOG_STEPS == 0 or step == stage.steps - 1):
            figures = {"loss": self.losses[-1], "learning_rate": rate, "gradient_norm": norm, "samples_per_second": speed}
            named = {f"{stage.name}/{name}": value for name, value in (figures | stage.found.metrics).items()}
            self.listener(self.done + step, named | {"loss": self.losses[-1]})

    def _validate(self, stage: Stage, step: int, whole: Whole) -> None:
        """Measure the stage as it would be served after ``step``, if it is due; the training goes on as if nothing had happened."""
        if self.validation is None or not self.validation.due(stage.name, step, stage.steps):
            return
        with self.average.lent():
            stage.model.eval()
            with whole():
                found = self.validation.measure(stage.name, step, stage.model, stage.steps)
            stage.model.train()
        if self.listener and self.machine.is_main_process:
            self.listener(self.done + step - 1, {self.validation.name: found})

    def _keep(self, stage: Stage, step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        every, last, validation = self.training.checkpoint_steps, step == stage.steps or self._over(stage), self.validation
        if (self.checkpoints.shared or self.machine.is_main_process) and (last or (every and step % every == 0)):
            scaler = self.machine.scaler.state_dict() if self.machine.scaler is not None else {}
            tensors, record = stage.tensors() | self.average.tensors(), {}
            if validation is not None:
                tensors, record = tensors | validation.tensors(), asdict(validation.record)
            self.checkpoints.save(State(stage.name, step, self.losses, tensors, scaler, record), stage.model, optimizers)


def _refuse(loss: float, stage: Stage, step: int, batch: Batch) -> None:
    raise InputError(
        f"the loss is {loss} at step {step} of {stage.name}, in a batch with items {', '.join(str(n) for n in batch.names[:8])}"
        f"{' …' if len(batch.names) > 8 else ''}; nothing was saved after the last checkpoint",
        action="lower learning_rate, or look at these items",
    )


def cached(
    model: nn.Module, sides: dict[str, Inputs], chunk: int, loss: Callable[[dict[str, Tensor], Tensor], Found]
) -> tuple[Found, list[Callable[[], Tensor]]]:
    """The loss of all vectors, and the passes that bring its gradient into the model.

    ``loss`` takes the vectors [R, D] of each side and the logit scale. Without chunks one pass does both; with them the vectors are made
    twice, and memory holds the graph of ``chunk`` rows of a side at a time. All processes take as many passes, one with fewer rows some
    without any: batch norms wait for each other, and have the statistics of each pass over all processes.
    """
    names = list(sides)
    longest = int(gathered_numbers(torch.tensor([max(map(len, sides.values()))], device=sides[names[0]].input_ids.device)).max())
    if not chunk or chunk >= longest:
        *vectors, scale = model(list(sides.values()))
        found = loss(dict(zip(names, vectors, strict=True)), scale)
        return found, [lambda: found.loss + scale * 0.0]  # what was run without rows hangs on the scale, which not every loss reads
    parts = [_part(sides, at, at + chunk) for at in range(0, longest, chunk)]
    with torch.no_grad():
        made = [model(list(part.values())) for part in parts]
    leaves = {name: torch.cat([of_part[place] for of_part in made]).requires_grad_() for place, name in enumerate(names)}
    scale = made[0][-1].clone().requires_grad_()
    found = loss(leaves, scale)
    gradients = torch.autograd.grad(found.loss, [*leaves.values(), scale], allow_unused=True)
    of = dict(zip([*names, "scale"], gradients, strict=True))

    def again(number: int) -> Tensor:
        part, at = parts[number], number * chunk
        *vectors, logit_scale = model(list(part.values()))
        total = logit_scale * (of["scale"] if of["scale"] is not None and number == 0 else 0.0)
        for name, some in zip(part, vectors, strict=True):
            if of[name] is not None:
                total = total + (some * of[name][at : at + len(some)]).sum()
        return total

    return found, [lambda n=n: again(n) for n in range(len(parts))]  # type: ignore[misc]


def _part(sides: dict[str, Inputs], start: int, stop: int) -> dict[str, Inputs]:
    return {name: side.part(start, stop) for name, side in sides.items()}
