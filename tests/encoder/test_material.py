"""Pairs and catalogue in files: another process reads what the first had."""

from __future__ import annotations

import datetime as dt
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moon_ops.encoder import material as module
from moon_ops.encoder.material import Material
from moon_ops.encoder.pairs import Pairs
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.stage2 import Prepared, prepare
from moon_ops.lake.tables import items_as_of

UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)


def test_another_process_reads_the_same_pairs_and_catalogue(lake: Any, world: Any, tmp_path: Path) -> None:
    pairs = replace(world.pairs, left_out={"undone": 2})
    made = Material(pairs, 3, items_as_of(lake, UNTIL))
    made.write(tmp_path / "material")
    made.write(tmp_path / "material")  # as a run does that was killed
    found = Material.read(tmp_path / "material")
    assert found.twins == 3
    assert list(found.rows) == world.rows
    for field in fields(Pairs):
        before, after = getattr(pairs, field.name), getattr(found.pairs, field.name)
        assert np.array_equal(after, before) if field.type == "Rows" else after == before, field.name
    assert found.pairs.of(("purchase",)).query.tolist() == pairs.of(("purchase",)).query.tolist()
    assert [place.name for place in tmp_path.iterdir()] == ["material"]


def test_pairs_without_a_row_are_read_too(world: Any, tmp_path: Path) -> None:
    none = replace(world.pairs.only(np.zeros(0, np.int64)), exposed=np.zeros(0, np.int64), queries=[], group=np.zeros(0, np.int64))
    Material(none, 0, pa.Table.from_pylist(world.rows)).write(tmp_path / "material")
    found = Material.read(tmp_path / "material").pairs
    assert (len(found), list(found.queries), found.exposed.tolist()) == (0, [], [])
    assert len(found.items) == len(world.pairs.items)


def test_numbers_are_read_from_the_disk_and_not_written_back(world: Any, tmp_path: Path) -> None:
    """What one process changes no other sees."""
    Material(world.pairs, 0, pa.Table.from_pylist(world.rows)).write(tmp_path / "material")
    one, other = (Material.read(tmp_path / "material").pairs for _ in range(2))
    one.item[:] = -1
    assert np.array_equal(other.item, world.pairs.item)
    assert module.ARRAYS == ["item_ids", "spu_ids", "categories", "query", "item", "event", "group", "known", "exposed", "acted"]


def test_another_process_opens_the_pixels(lake: Any, world: Any, tmp_path: Path) -> None:
    names = world.pairs.image_ids()[:5]
    made = PixelStore.over(lake, names, 16, tmp_path / "pixels-0.u8", detector="saliency")
    found = PixelStore.open(lake, tmp_path / "pixels-0.u8")
    assert np.array_equal(found.take(names[::-1]).numpy(), made.take(names[::-1]).numpy())
    assert isinstance(found.pictures.table, np.memmap)
    assert not found.pictures.table.flags.writeable


def test_another_process_reads_what_stage_2b_learns_from(world: Any, least: Any, tmp_path: Path) -> None:
    purchases, recipe = world.pairs.of(("purchase",)), least(stage2b={"steps": 1, "hard_negatives": 2})
    made = prepare(world.encoder, purchases, world.rows, world.store, recipe.stage2b, 0)
    made.write(tmp_path / "prepared.safetensors")
    found = Prepared.read(tmp_path / "prepared.safetensors")
    assert found.report == made.report
    assert np.array_equal(found.kept, made.kept)
    assert np.array_equal(found.hard, made.hard)
    assert made.hard.max() >= 0
