"""Stage 1, domain knowledge injection: a picture and a prompt → product text, by next-token prediction with causal attention (MOON).

Prompts and targets are built from the catalogue. B samples, L tokens, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from moon_ops.encoder.batches import STUDIO, Inputs, Reader, Shown, drawn_pictures
from moon_ops.encoder.losses import next_token
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.negatives import gathered_numbers
from moon_ops.encoder.objectives import Found, balanced
from moon_ops.encoder.permutations import Stream
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.texts import tokens
from moon_ops.encoder.tokenizer import END
from moon_ops.errors import StageError
from moon_ops.recipes.encoder import EncoderRecipe, Training

Row = dict[str, Any]
TASKS: dict[str, Callable[[Row], str]] = {  # prompt → the text that answers it, "" where the row cannot
    "describe the product:": lambda row: row.get("description") or "",
    "list its attributes:": lambda row: ", ".join(f"{key} {value}" for key, value in row.get("attributes") or []),
    "write its title:": lambda row: row["title"],
    "name its category:": lambda row: " > ".join(row.get("category") or []),
    "what is the main subject?": lambda row: " ".join(filter(None, [row.get("brand"), *(row.get("category") or [])[-1:]])),
}


@dataclass(frozen=True)
class Task:
    """One picture set, what is asked of it, and the answer, as tokens."""

    pictures: tuple[str, ...]
    prompt: list[int]
    answer: list[int]
    item_id: int


@dataclass(frozen=True)
class Prompted:
    """``inputs`` of B tasks and which of their tokens [B, L] are to be predicted."""

    inputs: Inputs
    is_target: Tensor
    names: tuple[int, ...]

    def pin_memory(self) -> Prompted:
        """The same with inputs in memory that a GPU copies from while it computes."""
        return replace(self, inputs=self.inputs.pin_memory())


class Tasks(Sequence[Task]):
    """Every prompt of every item that has a picture and an answer to it, item by item; as arrays, for a shop has five of each item."""

    def __init__(self, encoder: Encoder, rows: Sequence[Row]) -> None:
        self.rows, self.asked = [row for row in rows if row["image_ids"]], list(TASKS.values())
        self.prompts = [encoder.tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in TASKS]
        there = ((n, p) for n, row in enumerate(self.rows) for p, answer in enumerate(self.asked) if answer(row))
        self.places = np.fromiter(there, np.dtype((np.int64, 2)))  # [N, 2] row and prompt
        end = encoder.tokenizer.token_to_id(END)
        self.answers = tokens(encoder, self.places, lambda at: self.asked[at[1]](self.rows[at[0]]))
        self.closing = [] if end is None else [end]
        self.pictures = [tuple(row["image_ids"]) for row in self.rows]
        self.item_ids = np.array([row["item_id"] for row in self.rows], np.int64)
        del self.rows  # their texts are tokens now

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> Task: ...
    @overload
    def __getitem__(self, number: slice) -> list[Task]: ...
    def __getitem__(self, number: int | slice) -> Task | list[Task]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        row, prompt = self.places[number].tolist()
        return Task(self.pictures[row], self.prompts[prompt], [*self.answers[number], *self.closing], int(self.item_ids[row]))


def corpus() -> list[str]:
    """The prompts, for the tokenizer."""
    return list(TASKS)


class TaskBatches:
    """The batches of stage 1; like those of stage 2 a function of (seed, step) alone."""

    def __init__(self, encoder: Encoder, found: Sequence[Task], store: PixelStore, training: Training, *, seed: Sequence[int]) -> None:
        self.found, self.training, self.seed, self.layout = found, training, tuple(seed), encoder.layout
        self.reader = Reader(encoder, store, training, ())
        self.stream = Stream(len(found), self.seed)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Prompted:
        """The tasks of ``step``; of several processes each takes its ``part``."""
        size = self.training.batch // parts
        first = step * self.training.batch + part * size
        rng = np.random.default_rng((*self.seed, 97, step, part))
        chosen = [self.found[n] for n in self.stream.take(first, first + size)]
        rows = [Shown([*t.prompt, *t.answer], drawn_pictures(t.pictures, self.training, rng), STUDIO) for t in chosen]
        inputs = self.reader.read(rows, torch.Generator().manual_seed(int(rng.integers(2**62))))
        is_target = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
        for at, (task, row) in enumerate(zip(chosen, rows, strict=True)):
            start = len(self.layout.picture()) * len(row.pictures) + len(task.prompt)
            is_target[at, start : int(inputs.attention_mask[at].sum())] = True
        return Prompted(inputs, is_target, tuple(t.item_id for t in chosen))


class NextToken(nn.Module):
    """The encoder as stage 1 calls it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Inputs, is_target: Tensor) -> Tensor:
        """Mean cross entropy of the marked tokens, in nats."""
        logits = self.encoder.next_token_logits(inputs.input_ids, inputs.attention_mask, inputs.pixels)
        return next_token(logits.float(), inputs.input_ids, is_target)


class Pretraining:
    """Stage 1 as the training loop sees it."""

    name, rate = "stage1", 1.0

    def __init__(self, encoder: Encoder, rows: Sequence[Row], store: PixelStore, recipe: EncoderRecipe, seed: int) -> None:
        self.steps = recipe.stage1.steps
        self.model: Any = NextToken(encoder)
        found = Tasks(encoder, rows)
        if not len(found):
            raise StageError("no item has a picture and a text: stage 1 has nothing to learn from", action="set stage1.steps = 0")
        self.batches = TaskBatches(encoder, found, store, recipe.training, seed=(seed, 1))
        self.found = Found(torch.zeros(()), {})

    def batch(self, number: int, part: int, parts: int) -> Prompted:
        """The batch of that number."""
        return self.batches.batch(number, part, parts)

    def losses(self, model: nn.Module, batch: Prompted, chunk: int, device: torch.device) -> list[Callable[[], Tensor]]:
        """See :class:`moon_ops.encoder.fit.Stage`."""
        self.found, passes = balanced(self.model.encoder.experts, lambda: self._passes(model, batch, chunk, device))
        return passes

    def _passes(self, model: nn.Module, batch: Prompted, chunk: int, device: torch.device) -> tuple[Found, list[Callable[[], Tensor]]]:
        """The loss is a mean over the tokens of all processes' samples, so chunks need no cache, only weights."""
        rows = len(batch.inputs)
        size = min(chunk or rows, rows)
        every = gathered_numbers(batch.is_target.sum()[None].to(device))
        targets = every.sum() / len(every)  # of which the mean over processes makes all
        total = torch.zeros(())

        def one(start: int) -> Tensor:
            inputs = batch.inputs.part(start, start + size)
            is_target = batch.is_target[start : start + size, : inputs.input_ids.shape[1]]
            return model(inputs.to(device), is_target.to(device)) * (is_target.sum().to(device) / targets)

        starts = list(range(0, rows, size))
        if len(starts) == 1:
            loss = one(0)
            return Found(loss, {}), [lambda: loss]
        with torch.no_grad():
            total = torch.stack([one(start) for start in starts]).sum()
        return Found(total, {}), [lambda s=s: one(s) for s in starts]  # type: ignore[misc]

    def after(self, batch: Prompted) -> None:
        """Nothing."""

    def tensors(self) -> dict[str, Tensor]:
        """Nothing but weights."""
        return {}
