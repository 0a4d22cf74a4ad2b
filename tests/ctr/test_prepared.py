"""Rows are made once for who asks for the same, and never trusted when they are not what was written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from toy_clicks import ITEMS, QUERIES, impressions, unit

from moon_ops.columns import OwnColumn
from moon_ops.ctr import prepared, vector_files
from moon_ops.ctr.kept import ABOUT, Kept
from moon_ops.ctr.models import BASE
from moon_ops.ctr.prepared import InFiles, InMemory, code_version, decided_by
from moon_ops.ctr.vectors import Tables
from moon_ops.embeddings.as_of import History, Joined, VectorHistory
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import InputError, ServiceError, StageError
from moon_ops.files import locked
from moon_ops.lake import changes
from moon_ops.lake.lake import Lake
from moon_ops.recipes.ctr import CtrRecipe

RECIPE = CtrRecipe(name="toy", extractor="cube", epochs=1, batch=64, learning_rate=1e-2, behaviors=3, validation=0.2)
INPUTS = (*BASE, "behavior_query", "target_vector", "query_vector", "behavior_vector", "behavior_query_vector")
Made = list[str]


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables(*(RepresentationTable(np.arange(n), unit(n, seed), "c-one") for n, seed in ((ITEMS, 0), (QUERIES, 1))))


@pytest.fixture(scope="module")
def joined(wide: Callable[[pa.Table], Joined]) -> Joined:
    drawn = np.random.default_rng(0)
    table = impressions(drawn.integers(0, 40, 300), drawn.integers(-1, 9, 300), drawn.random(300) < 0.3)
    return wide(table.set_column(table.column_names.index("text"), "text", pa.array([f"word{n % 5}" for n in range(300)])))


@pytest.fixture
def made() -> Made:
    return []


@pytest.fixture
def files(joined: Joined, tables: Tables, made: Made, tmp_path: Path) -> Callable[..., InFiles]:
    """A source whose joins are noted."""

    def source(lake: str = "one", limit: int = 10**9) -> InFiles:
        def join() -> tuple[Joined, dict[str, int]]:
            made.append(lake)
            return joined, {"clicks": 7}

        return InFiles(join, tables, Kept(tmp_path / "prepared", limit), lambda: lake)

    return source


def columns(source: InFiles | InMemory, recipe: CtrRecipe) -> dict[str, np.ndarray[Any, Any]]:
    rows = source.rows(recipe).rows
    return rows.columns(np.arange(len(rows))[::-1], INPUTS) | {"labels": rows.labels, "digest": np.array(rows.digest())}


@pytest.mark.parametrize("limit", [10**9, 1000, 0])
def test_rows_in_files_are_those_in_memory(files: Callable[..., InFiles], joined: Joined, tables: Tables, limit: int) -> None:
    """Also where there is no room to keep them."""
    for recipe in (RECIPE, replace(RECIPE, behaviors=2, top_k=1)):
        source = files(limit=limit)
        expected, found = columns(InMemory(joined, tables, {}), recipe), columns(source, recipe)
        assert expected.keys() == found.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert source.rows(recipe).events == {"clicks": 7}
    assert len(list(source.kept.directory.glob("rows-*"))) == (1 if limit == 10**9 else 0)


def test_the_vocabulary_of_prepared_rows_is_that_of_those_in_memory(files: Callable[..., InFiles], joined: Joined, tables: Tables) -> None:
    """Its ids are mapped, so that processes hold them once; a file for releases is not among what is kept."""
    source = files()
    for _ in range(2):
        found = source.rows(RECIPE).vocabulary
        assert found == InMemory(joined, tables, {}).rows(RECIPE).vocabulary
        assert all(isinstance(found.values[name].base, np.memmap) for name in ("item", "user", "query"))
        assert isinstance(found.item_category.base, np.memmap)
    assert not list(source.kept.directory.rglob("vocabulary.json"))


def test_what_decides_rows_makes_them_anew_and_nothing_else(files: Callable[..., InFiles], made: Made) -> None:
    for recipe in (RECIPE, replace(RECIPE, extractor="din", behaviors=2, epochs=3, batch=8, vectors="int8", embedding_sharding="rows")):
        files().rows(recipe)
    assert made == ["one"]
    others = [replace(RECIPE, **changed) for changed in ({"validation": 0.3}, {"click_skew": 0.0}, {"position": True})]
    others += [replace(RECIPE, most=replace(RECIPE.most, visitor=9)), replace(RECIPE, caps=replace(RECIPE.caps, visitor=9))]
    for recipe in others:
        files().rows(recipe)
    files("two").rows(RECIPE)
    assert made == ["one"] * 6 + ["two"]
    assert set(decided_by(RECIPE)) == {"caps", "most", "click_skew", "position", "validation", "features"}
    assert len(code_version()) == 64


@pytest.mark.parametrize("kind", ["rows", "vectors"])
def test_what_other_code_has_made_is_made_anew(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and vectors: how a vector is rounded is code, too."""
    made: Made = []

    def fill(place: Path) -> None:
        made.append(prepared.code_version())
        (place / "one").write_text(made[-1])

    for code in ("before", "before", "after"):
        monkeypatch.setattr(prepared, "code_version", lambda code=code: code)
        assert prepared.through(Kept(tmp_path, 1000), kind, lambda: "lake", fill, lambda place: (place / "one").read_text()) == code
    assert made == ["before", "after"]


def test_a_refit_joins_once(files: Callable[..., InFiles], made: Made) -> None:
    source = files()
    source.rows(replace(RECIPE, refit=True))
    source.rows(replace(RECIPE, validation=0.0))
    assert made == ["one"]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "untold"])
def test_damaged_rows_are_made_again(files: Callable[..., InFiles], made: Made, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    first = columns(files(), RECIPE)
    (place,) = files().kept.directory.glob("rows-*")
    file, content = place / "3.npy", (place / "3.npy").read_bytes()
    if damage == "untold":
        (place / ABOUT).write_text("{")
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    found = columns(files(), RECIPE)
    assert made == ["one", "one"]
    assert "it is made again" in caplog.text
    assert all(np.array_equal(first[name], values) for name, values in found.items())
    files().rows(RECIPE)
    assert len(made) == 2


@pytest.mark.parametrize("fault", [OSError("Not enough free space to write 72000000 bytes after offset 128"), OSError(errno.ENOSPC, "x")])
def test_a_disk_that_is_full_is_told_with_how_to_do_without(
    files: Callable[..., InFiles], fault: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(np, "save", full)
    says = rf"^the disk is full: {tmp_path}/prepared has no room for 0 MB of prepared arrays → make room there, .* MOON_ROWS_GB=0 "
    with pytest.raises(ServiceError, match=says):
        files().rows(RECIPE)
    assert not list((tmp_path / "prepared").glob("*rows*[!k]")), "nothing is left but the lock"
    assert len(files(limit=0).rows(RECIPE).rows) == 300


def filled(kept: Kept, name: str, size: int = 1000) -> bool:
    """Whether it had to be made."""
    made = []

    def fill(place: Path) -> None:
        made.append((place / "one").write_bytes(b"x" * size))

    with kept.found("kind", lambda: name, fill) as place:
        assert (place / "one").stat().st_size == size
    return bool(made)


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 2500)
    for seconds, name in enumerate(("a", "b")):
        filled(kept, name)
        for about in tmp_path.glob(f"*/{ABOUT}"):
            os.utime(about, (about.stat().st_mtime - 100 + seconds,) * 2)
    assert not filled(kept, "a")  # used now
    filled(kept, "c")
    assert [filled(kept, name) for name in ("a", "c", "b")] == [False, False, True]


def test_what_is_about_to_be_mapped_stays(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 1500)
    filled(kept, "a")
    (place,) = tmp_path.glob("kind-*")
    (left := tmp_path / ".kind-0.new").mkdir()
    with locked(tmp_path / f".{place.name}.lock"):
        filled(kept, "b")
    assert not left.exists(), "what a killed process has left goes"
    assert not filled(kept, "a")
    assert kept.forget() is None
    assert not list(tmp_path.glob("kind-*"))


def test_what_changes_meanwhile_is_not_kept(tmp_path: Path) -> None:
    """As by an erasure: the rows would be found no more, and would stay."""
    state = ["before"]

    def fill(place: Path) -> None:
        (place / "one").write_text("of before")
        state[0] = "after"

    with Kept(tmp_path, 1000).found("kind", lambda: state, fill) as place:
        assert (place / "one").read_text() == "of before"
    assert not [place for place in tmp_path.iterdir() if place.is_dir()]


def test_a_column_without_values_is_refused_and_leaves_nothing(joined: Joined, tables: Tables, tmp_path: Path) -> None:
    recipe = replace(RECIPE, features={"typo": OwnColumn(of="item", kind="number")})
    views = joined.views | {"item_profile": joined.views["item_profile"].append_column("typo", pa.nulls(300, pa.float64()))}
    source = InFiles(lambda: (Joined(joined.rows, views, joined.at), {}), tables, Kept(tmp_path, 10**9), lambda: "one")
    with pytest.raises(InputError, match=r"features\.typo: no impression trained on knows a value"):
        source.rows(recipe)
    assert not [place for place in tmp_path.iterdir() if place.is_dir()]


def test_vectors_in_files_are_those_in_memory(tmp_path: Path) -> None:
    """Versions out of order, two of one moment, and an item that is not known."""
    ids, times, created = np.array([7, 3, 7, 3, 3]), np.array([20, 5, 10, 9, 9]), np.array([1, 1, 1, 2, 1])
    matrix = np.append(unit(5, 0), np.zeros((1, unit(1, 0).shape[1]), np.float32), axis=0)
    known = VectorHistory(History(ids, times, created, ttl=100), matrix, "c-one")
    vector_files.write(known, tmp_path)
    found = vector_files.read(tmp_path)
    assert (found.contract_id, found.dim, len(found)) == ("c-one", known.dim, 2)
    asked, moments = np.array([7, 7, 3, 3, 4, 7, 3]), np.array([11, 21, 6, 10, 10, 10, 500])
    vectors = [one.gather(one.at(one.codes(asked), moments)) for one in (known, found)]
    np.testing.assert_array_equal(*vectors)
    assert (vectors[0] != 0).any(axis=1).tolist() == [True, True, True, True, False, False, False]


def test_other_content_of_a_table_is_told_apart(tmp_path: Path) -> None:
    lake, told = Lake(str(tmp_path / "lake")), list[str]()
    for _ in range(2):
        lake.append("numbers", pa.table({"a": [1, 2]}))
        told.append(changes.content(lake.open("numbers")))
    lake.open("numbers").delete("a = 1")
    told += [changes.content(lake.open("numbers"))] * 2
    other = Lake(str(tmp_path / "other"))
    other.append("numbers", pa.table({"a": [1, 2]}))
    told.append(changes.content(other.open("numbers")))
    assert len(set(told)) == 4


@pytest.mark.parametrize(("later", "joins"), [("one", ["one"]), ("two", ["one", "two"])])
def test_a_refit_keeps_nothing_of_a_lake_that_was_before(files: Callable[..., InFiles], later: str, joins: list[str]) -> None:
    """Between a training and its refit lies all of the training: a click or an erasure may come meanwhile."""
    source, made, now = files(), list[str](), "one"
    join = source.join

    def noted() -> tuple[Joined, dict[str, int]]:
        made.append(now)
        return join()

    source.join, source.identity = noted, lambda: now
    source.rows(replace(RECIPE, refit=True))
    now = later
    source.rows(replace(RECIPE, refit=False, validation=0.0))
    assert made == joins


def test_a_file_where_kept_rows_would_lie_is_named(tmp_path: Path) -> None:
    (tmp_path / "prepared").write_text("")
    kept = Kept(tmp_path / "prepared", 10**6)
    with pytest.raises(StageError, match="prepared cannot be a directory of kept rows"), kept.found("rows", lambda: 1, lambda place: None):
        pass
