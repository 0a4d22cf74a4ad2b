"""What has changed since a base lies in layers: whatever the order of changes, what is read is what a dictionary would hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from moon_ops.embeddings import card_files, cards, index, index_delta, layers, table
from moon_ops.embeddings.cards import Cards
from moon_ops.embeddings.index import IndexHeader, ItemIndex
from moon_ops.embeddings.table import RepresentationTable

DIM, CONTRACT, BASE = 8, "c-1", 400
WORDS = {"brand": pa.string(), "category": pa.list_(pa.string())}
ROWS = pa.schema([pa.field(f.name, WORDS.get(f.name, f.type)) for f in card_files.SCHEMA])
Known = dict[int, int]  # of each item the number of the change that it is of
Changed = tuple[list[int], list[int]]  # items that are put, and that are taken away


def changes(seed: int, count: int) -> Iterator[Changed]:
    """Of items with ids up to twice the base's: most are new, some change, go, and come back."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        some = rng.permutation(2 * BASE)[: rng.integers(1, 5)]
        gone = rng.random(len(some)) < 0.3
        yield some[~gone].tolist(), some[gone].tolist()


def vector(item: int, version: int) -> np.ndarray[Any, Any]:
    made = np.random.default_rng([item, version]).normal(size=DIM).astype(np.float32)
    return made / np.linalg.norm(made)


def vectors(known: Known) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    ids = np.array(list(known), np.int64)
    return ids, np.stack([vector(item, version) for item, version in known.items()]) if known else np.zeros((0, DIM), np.float32)


def card(item: int, version: int) -> dict[str, Any]:
    words = {"brand": f"brand {version % 5}", "category": ["a", f"b {item % 3}"], "title": f"{item} of {version}"}
    return {"item_id": item, "spu_id": item, "seller_id": 7, "price": version / 4, "image_ids": [], **words}


def rows(known: Known) -> pa.Table:
    return pa.Table.from_pylist([card(*one) for one in known.items()], ROWS)


class IndexStore:
    removes, name = True, "index.json"

    def build(self, at: Path, known: Known) -> None:
        index.build(at, *vectors(known), CONTRACT)

    def update(self, at: Path, fresh: Known, gone: list[int]) -> int:
        return index.update(at, *vectors(fresh), np.array(gone, np.int64), CONTRACT).items

    def check(self, at: Path, known: Known) -> None:
        opened = ItemIndex.open(at)
        ids, wanted = vectors(dict(sorted(known.items())))
        assert opened.items().tolist() == ids.tolist()
        found, cosines = opened.search(wanted, 1, CONTRACT)
        assert found[:, 0].tolist() == ids.tolist()
        assert np.allclose(cosines, 1, atol=1e-5)
        assert opened.header.delta_items == len(opened.searcher.delta.vectors)
        assert opened.header.tombstones == len(opened.searcher.delta.tombstones)


class CardStore:
    removes, name = True, "cards.json"

    def build(self, at: Path, known: Known) -> None:
        cards.build(at, [rows(known)])

    def update(self, at: Path, fresh: Known, gone: list[int]) -> int:
        return cards.update(at, rows(fresh), np.array(gone, np.int64)).items

    def check(self, at: Path, known: Known) -> None:
        opened = Cards.open(at)
        assert opened.get(range(2 * BASE + 1)) == {item: card(item, version) for item, version in known.items()}
        for brand in range(5):
            wanted = sorted(item for item, version in known.items() if version % 5 == brand)
            assert opened.matching(card_files.Wanted(brand=f"brand {brand}")).tolist() == wanted
        assert opened.matching(card_files.Wanted()).tolist() == sorted(known)


class TableStore:
    removes, name = False, "table.json"  # behaviours name deleted items

    def build(self, at: Path, known: Known) -> None:
        RepresentationTable.write(at, *vectors(known), CONTRACT)

    def update(self, at: Path, fresh: Known, gone: list[int]) -> int:
        return RepresentationTable.update(at, *vectors(fresh), CONTRACT)

    def check(self, at: Path, known: Known) -> None:
        opened = RepresentationTable.open(at)
        ids, wanted = vectors(dict(sorted(known.items())))
        assert (len(opened), opened.all()[0].tolist()) == (len(known), ids.tolist())
        assert np.array_equal(opened.gather(opened.rows(ids)), wanted)
        assert opened.rows(np.array([2 * BASE + 1])).tolist() == [-1]


STORES = [IndexStore(), CardStore(), TableStore()]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of so few items have layers, too, and none is merged into the base."""
    monkeypatch.setattr(table, "SMALL", 10)
    monkeypatch.setattr(table, "LARGEST_DELTA", 10)


@pytest.mark.parametrize("store", STORES, ids=lambda store: type(store).__name__)
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_changes_what_is_read_is_what_a_dictionary_would_hold(store: Any, seed: int, tmp_path: Path) -> None:
    place, known = tmp_path / "it", dict.fromkeys(range(BASE), 0)
    store.build(place, known)
    most = 0
    for version, (put, gone) in enumerate(changes(seed, 120), 1):
        fresh, gone = dict.fromkeys(put, version), gone if store.removes else []
        known = {item: of for item, of in known.items() if item not in gone} | fresh
        assert store.update(place, fresh, gone) == len(known)
        most = max(most, layer_count(place))
        if version % 8 in (0, 7):
            store.check(place, known)
    assert 3 <= most <= 10, "few, and not one"


def layer_count(place: Path) -> int:
    return sum(path.name.split(".")[0].rstrip("-0123456789") in ("delta", "newer_ids") for path in place.iterdir()) // (
        2 if (place / "cards.json").exists() else 1
    )


@pytest.mark.parametrize("store", STORES, ids=lambda store: type(store).__name__)
def test_an_update_writes_what_is_new_and_links_the_rest(store: Any, tmp_path: Path) -> None:
    place = tmp_path / "it"
    store.build(place, dict.fromkeys(range(BASE), 0))
    store.update(place, dict.fromkeys(range(BASE, BASE + 100), 1), [])
    before = {path.name: path.stat().st_ino for path in place.iterdir()}
    store.update(place, {1: 2}, [])
    written = [path for path in place.iterdir() if before.get(path.name) != path.stat().st_ino]
    assert all("-1." in path.name or path.name == store.name for path in written), "the hundred of before are not written again"
    store.check(place, dict.fromkeys(range(BASE), 0) | dict.fromkeys(range(BASE, BASE + 100), 1) | {1: 2})


def test_layers_that_are_less_than_twice_what_follows_are_merged() -> None:
    assert layers.staying([], 5) == 0
    assert layers.staying([8, 3], 1) == 2
    assert layers.staying([8, 4], 2) == 2
    assert layers.staying([10, 3], 2) == 1, "3 and 2 become 5, and 10 is twice that"
    assert layers.staying([9, 3], 2) == 0
    sizes: list[int] = []
    written = 0
    for _ in range(1024):
        keep = layers.staying(sizes, 1)
        sizes = [*sizes[:keep], sum(sizes[keep:]) + 1]
        written += sizes[-1]
    assert len(sizes) <= 11
    assert written < 1024 * 11, "an item is written once for each doubling, not once for each update"


def older_index(place: Path, known: Known) -> None:
    """As versions before layers wrote it: items in the order in which they came, nothing that says what was removed."""
    header = index.update(place, *vectors(known), np.zeros(0, np.int64), CONTRACT)
    at = place.resolve()
    with np.load(at / "delta.npz") as read:
        parts = {name: read[name][::-1] if name in ("ids", "vectors", "lists") else read[name] for name in read.files}
    np.savez(at / "delta.npz", **parts)
    content = json.loads((at / "index.json").read_text())
    assert "layers" not in content
    assert header.layers == 1
    content["files"]["delta.npz"] = index.file_sha256(at / "delta.npz")
    (at / "index.json").write_text(json.dumps(content))


def older_cards(place: Path, known: Known) -> None:
    cards.update(place, rows(known), np.array([], np.int64))
    at = place.resolve()
    assert "layers" not in json.loads((at / "cards.json").read_text())
    np.save(at / "gone.npy", np.array([item for item in sorted(known) if item < BASE]))  # newer than the base's: named there, too


def older_table(place: Path, known: Known) -> None:
    RepresentationTable.update(place, *vectors(known), CONTRACT)
    at = place.resolve()
    content = json.loads((at / "table.json").read_text())
    del content["there"]
    content["newer"] = content.pop("layers")[0]
    (at / "table.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("store", "older"), list(zip(STORES, (older_index, older_cards, older_table), strict=True)), ids=["index", "cards", "table"]
)
def test_what_an_older_version_wrote_is_read_and_gone_on_with(store: Any, older: Callable[..., None], tmp_path: Path) -> None:
    place, known = tmp_path / "it", dict.fromkeys(range(BASE), 0)
    store.build(place, known)
    changed = {BASE + 3: 1, 5: 1, BASE + 1: 1, 9: 1}
    older(place, changed)
    known |= changed
    store.check(place, known)
    gone = [5, 6] if store.removes else []
    fresh = {9: 2, BASE + 4: 2}
    known = {item: of for item, of in known.items() if item not in gone} | fresh
    assert store.update(place, {9: 2, BASE + 4: 2}, gone) == len(known)
    store.check(place, known)


def test_an_older_version_says_that_it_does_not_know_layers(tmp_path: Path) -> None:
    """It reads a header whose fields it does not have as another version's, and makes everything anew; it does not leave items out."""
    place = tmp_path / "index"
    index.build(place, *vectors(dict.fromkeys(range(BASE), 0)), CONTRACT)
    index.update(place, *vectors(dict.fromkeys(range(BASE, BASE + 9), 1)), np.zeros(0, np.int64), CONTRACT)
    header = index.update(place, *vectors({1: 2}), np.zeros(0, np.int64), CONTRACT)
    assert header.layers == 2
    assert json.loads((place / "index.json").read_text())["layers"] == 2
    assert IndexHeader.read(place) == header
    assert {index_delta.name(0), index_delta.name(1)} <= set(header.files)


def test_a_table_that_has_been_cut_is_noticed_before_a_layer_is_put_over_it(tmp_path: Path) -> None:
    place = tmp_path / "table"
    RepresentationTable.write(place, *vectors(dict.fromkeys(range(BASE), 0)), CONTRACT)
    RepresentationTable.update(place, *vectors(dict.fromkeys(range(9), 1)), CONTRACT)
    assert RepresentationTable.update(place, *vectors({}), CONTRACT) == BASE, "nothing new is no layer"
    for name in ("newer_vectors.npy", "vectors.f32"):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=r"mmap|size"):
            RepresentationTable.update(place, *vectors({1: 2}), CONTRACT)
        (place / name).write_bytes(whole)
    assert RepresentationTable.update(place, *vectors({1: 2}), CONTRACT) == BASE


def test_updates_of_nothing_leave_no_layers(tmp_path: Path) -> None:
    place, known = tmp_path / "it", dict.fromkeys(range(BASE), 0)
    store = IndexStore()
    store.build(place, known)
    for _ in range(5):
        store.update(place, {}, [])
    assert layer_count(place) == 1
    store.update(place, {1: 1, BASE: 1}, [])
    for _ in range(5):
        store.update(place, {}, [])
    assert layer_count(place) <= 2
    store.check(place, known | {1: 1, BASE: 1})


def test_an_item_that_is_named_twice_as_removed_is_counted_once(tmp_path: Path) -> None:
    place, known = tmp_path / "it", dict.fromkeys(range(BASE), 0)
    store = IndexStore()
    store.build(place, known)
    store.update(place, {BASE: 1, BASE + 1: 1}, [])
    assert store.update(place, {}, [BASE, BASE, 3, 3]) == BASE
    del known[3]
    store.check(place, known | {BASE + 1: 1})


def test_one_layer_says_what_an_older_version_reads(tmp_path: Path) -> None:
    """It hides those cards of the base that ``gone.npy`` names, and looks for newer vectors where ``newer`` says that there are some."""
    known, changed = dict.fromkeys(range(BASE), 0), {BASE + 1: 1, 5: 1, 9: 1}
    CardStore().build(tmp_path / "cards", known)
    CardStore().update(tmp_path / "cards", changed, [7, BASE + 50])
    assert np.load(tmp_path / "cards" / "gone.npy").tolist() == [5, 7, 9]
    CardStore().update(tmp_path / "cards", {7: 2, 8: 2, BASE + 2: 2}, [5, BASE + 1])
    assert np.load(tmp_path / "cards" / "gone.npy").tolist() == [5, 7, 8, 9]
    header = json.loads((tmp_path / "cards" / "cards.json").read_text())
    assert (header["gone"], header["delta"], header.get("layers")) == (4, 4, None)
    TableStore().build(tmp_path / "table", known)
    assert json.loads((tmp_path / "table" / "table.json").read_text())["newer"] == 0
    TableStore().update(tmp_path / "table", changed, [])
    assert json.loads((tmp_path / "table" / "table.json").read_text())["newer"] == 3
    TableStore().update(tmp_path / "table", {1: 2}, [])
    assert "newer" not in json.loads((tmp_path / "table" / "table.json").read_text()), "of two layers it would leave one out"
