"""Samples in columns are the objects that they stand for, from one file for all processes; and batches are the same of either."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from moon_ops.encoder import samples as module
from moon_ops.encoder import together
from moon_ops.encoder.batches import PairBatches, Shows
from moon_ops.encoder.loader import batches
from moon_ops.encoder.material import Material
from moon_ops.encoder.pretrain import TaskBatches, Tasks
from moon_ops.encoder.samples import Firsts, Names, Samples, Texts
from moon_ops.encoder.texts import Tokens, Words, tokens
from moon_ops.errors import InputError
from moon_ops.inputs.contract import Sample

SAMPLES = [Sample("Stövel | röd", ("a", "bb")), Sample(), Sample("mug"), Sample("", ("ccc",)), Sample("日本", ("a",))]


@pytest.fixture(params=[1, 2, 100])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "AT_ONCE", request.param)
    return int(request.param)


def test_columns_are_the_samples_they_were_made_of_also_in_a_file(at_once: int, tmp_path: Path) -> None:
    made = Samples.of(iter(SAMPLES))
    made.write(tmp_path / "s.arrow")
    found = Samples.read(tmp_path / "s.arrow")
    for columns in (made, found):
        assert list(columns) == SAMPLES
        assert [columns[n] for n in (4, -5, np.int64(3))] == [SAMPLES[4], SAMPLES[0], SAMPLES[3]]
        assert columns[1:4] == SAMPLES[1:4]
        assert columns.names.counts().tolist() == [2, 0, 0, 1, 1]
        assert list(columns.take(np.array([3, 0, 3]))) == [SAMPLES[3], SAMPLES[0], SAMPLES[3]]
        for row in (5, -6):
            with pytest.raises(IndexError):
                columns[row]
    assert found == made != found.take(np.arange(4))
    assert Samples.of(found) is found


def test_no_sample_is_a_column_too(tmp_path: Path) -> None:
    Samples.of([]).write(tmp_path / "s.arrow")
    found = Samples.read(tmp_path / "s.arrow")
    assert (list(found), list(found.names.flat), found.names.counts().tolist()) == ([], [], [])
    assert list(found.take(np.zeros(0, np.int64))) == []


def test_no_text_is_no_token(encoder: Any, tmp_path: Path) -> None:
    made = Words.of(encoder, [], Samples.of([]))
    made.write(tmp_path / "words")
    found = Words.read(tmp_path / "words")
    assert found == made
    assert [list(column) for column in (found.query, found.rich, found.title)] == [[], [], []]


@pytest.mark.parametrize(
    "text", ["x" * 10_000, "\N{GRINNING FACE}" * 2500, "a\0b", "\0", "   ", "\N{ZERO WIDTH SPACE}", "\U0010ffff", "|", "\n"]
)
def test_odd_texts_are_what_they_were(encoder: Any, at_once: int, text: str, tmp_path: Path) -> None:
    odd = [Sample(text, (text, text)), Sample(), Sample(f"{text} | {text}", ("",))]
    Samples.of(odd).write(tmp_path / "s.arrow")
    found = Samples.read(tmp_path / "s.arrow")
    assert list(found) == odd
    assert list(found.texts.distinct(found.names.flat)) == [text, "", odd[2].text]
    plain = [encoder.tokenizer.encode(sample.text, add_special_tokens=False).ids for sample in odd]
    assert list(tokens(encoder, found)) == plain


def test_names_come_in_the_order_of_their_first_appearance(at_once: int) -> None:
    columns = Samples.of(SAMPLES)
    assert list(columns.names.flat) == ["a", "bb", "ccc", "a"]
    assert list(Texts.of(["z", "bb"]).distinct(columns.names.flat, Texts.of([]))) == ["z", "bb", "a", "ccc"]
    firsts = Firsts(columns.names, np.array([4, 2, 0, 3, 1]))
    assert (list(firsts), firsts.rows.tolist()) == (["a", "a", "ccc"], [4, 0, 3])


def test_a_part_of_an_arrow_array_is_read_as_it_is() -> None:
    column = Samples.of(SAMPLES).names.column
    assert list(Names(column.slice(2, 3))) == [s.image_ids for s in SAMPLES[2:]]
    assert list(Names(column.slice(2, 3)).flat) == ["ccc", "a"]


def test_what_lies_in_a_file_is_mapped_and_a_new_one_leaves_the_old_one_to_who_has_it(tmp_path: Path) -> None:
    place, before = tmp_path / "s.arrow", pa.total_allocated_bytes()
    Samples.of([Sample("a long text " * 1000, ("a" * 64,))] * 100).write(place)
    found = Samples.read(place)
    assert pa.total_allocated_bytes() - before < 100_000, "its pages are the file's"
    Samples.of(SAMPLES).write(place)
    assert (found[99].text, list(Samples.read(place))) == ("a long text " * 1000, SAMPLES)


def test_tokens_take_two_bytes_where_the_tokenizer_knows_few(encoder: Any, world: Any, tmp_path: Path) -> None:
    words = Words.of(world.encoder, world.pairs.queries, world.pairs.items)
    assert {str(column.numbers.dtype) for column in (words.query, words.rich, words.title)} == {"uint16"}
    assert str(Tokens.of([[70_000]]).numbers.dtype) == "int32"
    words.write(tmp_path / "words")
    assert Words.read(tmp_path / "words") == words


def test_columns_that_somebody_removes_before_they_are_read_are_named(tmp_path: Path) -> None:
    """As an erasure does, which may run beside a training."""
    place = tmp_path / "s.arrow"

    def written(made: Samples) -> None:
        made.write(place)
        place.unlink()

    says = rf"^{place}, which was just written, is gone: an erasure, or somebody else, has removed it → run it again$"
    with pytest.raises(InputError, match=says):
        together.shared(lambda: Samples.of(SAMPLES), written, lambda: Samples.read(place), mapped=True)


def sums(batch: Any) -> list[Any]:
    """All that a batch holds, to compare."""
    values = [side.__dict__ for side in batch.sides.values()] if hasattr(batch, "sides") else [batch.inputs.__dict__]
    flat = [value for part in (*values, batch.__dict__) for value in part.values() if isinstance(value, torch.Tensor | tuple)]
    return [value.numpy().tobytes() if isinstance(value, torch.Tensor) else value for value in flat]


@dataclass
class Objects(Sequence[Any]):
    """Values that are Python's objects, as all of them were once."""

    values: list[Any]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: Any) -> Any:
        return self.values[row]


@pytest.fixture
def shared(world: Any, tmp_path: Path) -> Any:
    """The world's pairs as a training's processes read them."""
    Material(world.pairs, 0, pa.Table.from_pylist(world.rows)).write(tmp_path / "material")
    pairs = Material.read(tmp_path / "material").pairs
    Words.of(world.encoder, pairs.queries, pairs.items).write(tmp_path / "words")
    return replace(pairs, words=Words.read(tmp_path / "words"))


KINDS = {"text:rich": 1.0, "image:title+image": 1.0, "rich+image:rich+image": 1.0}


@pytest.mark.parametrize("kinds", [None, KINDS])
def test_batches_are_those_of_objects_bit_for_bit(world: Any, shared: Any, least: Any, kinds: Any) -> None:
    training, shows = least().training, Shows(kinds=kinds, levels=True, hard=np.arange(len(shared.items))[:, None])
    made = PairBatches(world.encoder, shared, world.store, training, seed=(0, 2), shows=shows)
    plain = PairBatches(world.encoder, replace(world.pairs, words=None), world.store, training, seed=(0, 2), shows=shows)
    plain.asked_with, plain.shown_with = (Objects([s.image_ids for s in some]) for some in (world.pairs.queries, world.pairs.items))  # type: ignore[assignment]
    plain.query_tokens, plain.rich, plain.title = (Objects(list(some)) for some in (plain.query_tokens, plain.rich, plain.title))  # type: ignore[assignment]
    scenery = [world.pairs.queries[q].image_ids[0] for q in np.unique(world.pairs.query) if world.pairs.queries[q].image_ids]
    plain.reader.scenery = scenery
    expected = [sums(plain.batch(step)) for step in range(3)]
    assert [sums(made.batch(step)) for step in range(3)] == expected
    assert [sums(batch) for batch in batches(made.batch, [1, 2], 2)] == expected[1:], "workers read the same file"
    assert expected[0] != expected[1]


def test_tasks_are_the_same_in_files(world: Any, least: Any, at_once: int, tmp_path: Path) -> None:
    made = Tasks.of(world.encoder, iter(world.rows[:5]))
    made.write(tmp_path / "tasks")
    found = Tasks.read(world.encoder, tmp_path / "tasks")
    assert list(found) == list(made)
    assert [t.item_id for t in found][:5] == [world.rows[0]["item_id"]] * 5
    one, other = (TaskBatches(world.encoder, some, world.store, least().training, seed=(0, 1)) for some in (made, found))
    assert sums(one.batch(1)) == sums(other.batch(1))


def test_a_training_leaves_no_samples_in_memory_that_lie_in_files(least: Any, lake: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """One process alone maps them, too."""
    from moon_ops.encoder import train as training

    kept: list[Any] = []
    whole = training._Run.stage

    def stage(self: Any, name: str) -> bool:
        kept.append((self.material.pairs, [place.name for place in (tmp_path / "out.partial").glob("material*")]))
        return whole(self, name)

    monkeypatch.setattr(training._Run, "stage", stage)
    until = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)
    training.train(lake, tmp_path / "out", least(stage1={"steps": 1}, stage2a={"steps": 1}), trained_until=until, seed=0)
    files = Path(f"/proc/{os.getpid()}/maps").read_text() if Path("/proc/self/maps").exists() else ""
    assert [sorted(names) for _, names in kept] == [["material", "material-words"], ["material", "material-tasks", "material-words"]]
    for name in ("material/items.arrow", "material/queries.arrow", "material-words/rich.arrow"):
        assert not files or f"out.partial/{name}" in files
    assert kept[0][0].words == kept[1][0].words
