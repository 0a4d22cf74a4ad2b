"""Stage 1, domain knowledge injection: a picture and a prompt → product text, by next-token prediction with causal attention (MOON).

Prompts and targets are built from the catalogue. B samples, L tokens, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from moon_ops.encoder.batches import STUDIO, Inputs, Reader, Shown, drawn_pictures
from moon_ops.encoder.losses import next_token
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.negatives import gathered_numbers
from moon_ops.encoder.objectives import Found, balanced
from moon_ops.encoder.permutations import Stream
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.samples import NAMES, Made, Names, Row, read, some_at_a_time, whole, write
from moon_ops.encoder.texts import Tokens, tokens
from moon_ops.encoder.tokenizer import END
from moon_ops.errors import StageError
from moon_ops.recipes.encoder import EncoderRecipe, Training

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


class Tasks(Made[Task]):
    """Every prompt of every item that has a picture and an answer to it, item by item; in columns, for a shop has five of each item."""

    def __init__(self, encoder: Encoder, asked: pa.Table, items: pa.Table) -> None:
        """Of N tasks the ``row`` of the item, the number of the ``prompt`` and the ``answer``'s tokens; of ``items`` ids and pictures."""
        self.asked, self.items = asked, items
        self.prompts = [encoder.tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in TASKS]
        end = encoder.tokenizer.token_to_id(END)
        self.closing = [] if end is None else [end]
        self.row, self.prompt, self.item_ids = asked["row"].to_numpy(), asked["prompt"].to_numpy(), items["item_id"].to_numpy()
        self.answers, self.pictures = Tokens(whole(asked["answer"])), Names(whole(items["pictures"]))

    @classmethod
    def of(cls, encoder: Encoder, rows: Iterable[Row]) -> Tasks:
        """The tasks of the catalogue's ``rows``, which are gone through once."""
        parts, first = [_part(encoder, [], 0)], 0
        for some in some_at_a_time(row for row in rows if row["image_ids"]):
            parts.append(_part(encoder, some, first))
            first += len(some)
        asked, items = (pa.concat_tables(tables).combine_chunks() for tables in zip(*parts, strict=True))
        return cls(encoder, asked, items)

    @classmethod
    def read(cls, encoder: Encoder, place: Path) -> Tasks:
        """What :meth:`write` wrote, mapped."""
        return cls(encoder, read(place / "asked.arrow"), read(place / "items.arrow"))

    def write(self, place: Path) -> None:
        """To files of the directory ``place``."""
        place.mkdir(parents=True, exist_ok=True)
        write(place / "asked.arrow", self.asked)
        write(place / "items.arrow", self.items)

    def __len__(self) -> int:
        return len(self.row)

    def _of(self, row: int) -> Task:
        item, answer = int(self.row[row]), [*self.answers[row], *self.closing]
        return Task(self.pictures[item], self.prompts[self.prompt[row]], answer, int(self.item_ids[item]))


def _part(encoder: Encoder, rows: list[Row], first: int) -> tuple[pa.Table, pa.Table]:
    """The tasks of some ``rows``, of which ``first`` came before; and the rows' items."""
    there = [(n, p, text) for n, row in enumerate(rows, first) for p, answer in enumerate(TASKS.values()) if (text := answer(row))]
    asked = {"row": pa.array([n for n, _, _ in there], pa.int64()), "prompt": pa.array([p for _, p, _ in there], pa.int8())}
    asked["answer"] = tokens(encoder, there, lambda at: at[2]).column
    items = {
        "item_id": pa.array([row["item_id"] for row in rows], pa.int64()),
        "pictures": pa.array([row["image_ids"] for row in rows], NAMES),
    }
    return pa.table(asked), pa.table(items)


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

    def __init__(self, encoder: Encoder, found: Tasks, store: PixelStore, recipe: EncoderRecipe, seed: int) -> None:
        """Raises :class:`StageError` without a task."""
        self.steps = recipe.stage1.steps
        self.model: Any = NextToken(encoder)
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
