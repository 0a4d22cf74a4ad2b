"""Short codes where memory is short: what they find, what they take, and how little of the vectors is in memory while they are made."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops import pieces
from moon_ops.embeddings import among, index, index_codes, index_kinds, index_training
from moon_ops.embeddings.index import ItemIndex

DIM, ITEMS = 32, 4000
NO_IDS, NO_VECTORS = np.zeros(0, np.int64), np.zeros((0, DIM), np.float32)


def catalogue(rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors [N, 32] around 60 centres, most of the variance in the first numbers, as a Matryoshka encoder's."""
    spread = np.arange(1, DIM + 1) ** -0.8
    centres = np.random.default_rng(99).normal(size=(60, DIM)) * spread
    rng = np.random.default_rng(seed)
    drawn = (centres[rng.integers(60, size=rows)] + 0.6 * spread * rng.normal(size=(rows, DIM))).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def nearest(held: dict[int, NDArray[np.float32]], queries: NDArray[np.float32], k: int = 10) -> list[list[int]]:
    ids = np.array(list(held))
    return ids[np.argsort(-(queries @ np.stack(list(held.values())).T), axis=1)[:, :k]].tolist()


def recall(found: NDArray[np.int64], wanted: list[list[int]]) -> float:
    return float(np.mean([len(set(f) & set(w)) / len(w) for f, w in zip(found.tolist(), wanted, strict=True)]))


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 500)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Memory for 20 bytes an item: codes of 8 bytes and a number."""
    index.build(tmp_path / "v1", np.arange(ITEMS) * 3, catalogue(ITEMS, 0), "c-one", memory=20 * ITEMS)
    return tmp_path / "v1"


@pytest.mark.parametrize(
    ("items", "memory", "kind", "code"),
    [
        (500, 1, "flat", 512),
        (501, None, "ivf", 128),
        (10_000, 2_280_000, "ivf", 128),
        (10_000, 2_279_999, "pq", 32),
        (10_000, 400_000, "pq", 32),
        (10_000, 399_999, "pq", 28),
        (10_000, 360_000, "pq", 28),
        (10_000, 359_999, "pq", 24),
        (10_000, 279_999, "pq", 16),
        (10_000, 1, "pq", 16),
    ],
)
def test_the_kind_is_the_longest_code_that_memory_allows(items: int, memory: int | None, kind: str, code: int) -> None:
    found = index_codes.plan(items, 128, memory, exact_up_to=500)
    assert (found.kind, found.code) == (kind, code)
    assert bool(found.because) == (kind == "pq")
    assert ("still more" in found.because) == (memory == 1 and kind == "pq")


def test_directions_are_dealt_out_equally_and_cosines_stay() -> None:
    sample = catalogue(3000, 1)
    by = index_codes.rotation(sample, 4)
    assert by.T @ by == pytest.approx(np.eye(32), abs=1e-5)
    turned = sample @ by
    parts = np.log((turned - turned.mean(0)).var(0)).reshape(4, 8).sum(1)
    plain = np.log((sample - sample.mean(0)).var(0)).reshape(4, 8).sum(1)
    assert np.ptp(parts) < 0.1 * np.ptp(plain)
    assert index_codes.rotation(sample, 5).shape == (32, 35), "as many numbers of zeros as it takes"


def test_what_short_codes_find_is_compared_by_the_vectors(place: Path) -> None:
    opened, items, queries = ItemIndex.open(place), catalogue(ITEMS, 0), catalogue(100, 1)
    found, cosines = opened.search(queries, 10, "c-one")
    header = opened.header
    assert (header.kind, opened.base.codes.shape[1] - 1, header.recall >= 0.99) == ("pq", 8, True)
    assert "MOON_INDEX_GB allows 8e-05 GB: product codes of 8 bytes" in header.reason
    assert f"{header.refine} k candidates" in header.reason
    assert recall(found // 3, nearest(dict(enumerate(items)), queries)) >= 0.98
    assert cosines == pytest.approx(np.einsum("bd,bkd->bk", queries, items[found // 3]), abs=1e-6)
    only = index_kinds.Lists(opened.base, opened.searcher.delta, header.probes, 1)
    codes_alone = recall(only.nearest(queries, 10)[0], [row[:10] for row in nearest(dict(enumerate(items)), queries)])
    assert codes_alone < 0.98, "the codes alone do not do it"


def test_vectors_and_ids_stay_on_the_disk(place: Path) -> None:
    base = ItemIndex.open(place)
    held = (base.base.vectors, base.base.codes, base._ids, *base._order)
    assert all(isinstance(matrix, np.memmap) and not matrix.flags.writeable for matrix in held)
    lists = base.base.index.invlists
    assert sum(lists.list_size(n) for n in range(lists.nlist)) == ITEMS
    assert lists.code_size + index_codes.ID == index_codes.plan(ITEMS, DIM, 20 * ITEMS, 500).item_bytes == 16


def test_updates_of_short_codes_are_what_a_dictionary_would_hold(place: Path) -> None:
    held, queries = dict(zip(range(0, 3 * ITEMS, 3), catalogue(ITEMS, 0), strict=True)), catalogue(100, 1)
    for number, (new, removed) in enumerate([([1, 4, 7], [0, 3]), (list(range(0, 300, 3)), [4]), ([0, 4], [1, 9_999_999])]):
        vectors = catalogue(len(new), 10 + number)
        header = index.update(place, np.array(new), vectors, np.array(removed), "c-one")
        held = {i: v for i, v in held.items() if i not in removed} | dict(zip(new, vectors, strict=True))
        opened = ItemIndex.open(place)
        assert header.items == len(held) == len(opened.items())
        assert opened.items().tolist() == sorted(held)
        assert recall(opened.search(queries, 10, "c-one")[0], nearest(held, queries)) >= 0.97
        assert opened.search(vectors, 1, "c-one")[0][:, 0].tolist() == new
    compacted = index.compact(place, memory=20 * ITEMS)
    assert (compacted.kind, compacted.items, compacted.delta_items) == ("pq", len(held), 0)
    assert recall(ItemIndex.open(place).search(queries, 10, "c-one")[0], nearest(held, queries)) >= 0.97
    assert index.compact(place).kind == "ivf", "with more memory the codes are longer"


def test_filters_look_into_short_codes(place: Path) -> None:
    opened, queries = ItemIndex.open(place), catalogue(50, 1)
    allowed = np.arange(0, 3 * ITEMS, 6)
    found, _ = among.Among(opened, allowed).search(queries, 10, "c-one")
    items = catalogue(ITEMS, 0)
    assert recall(found, nearest({3 * n: items[n] for n in range(0, ITEMS, 2)}, queries)) >= 0.97


def test_headers_of_other_kinds_are_as_they_were(tmp_path: Path, place: Path) -> None:
    index.build(tmp_path / "v2", np.arange(1000), catalogue(1000, 0), "c-one")
    assert "refine" not in json.loads((tmp_path / "v2" / "index.json").read_text())
    assert ItemIndex.open(tmp_path / "v2").header.refine == 2
    assert json.loads((place / "index.json").read_text())["refine"] == ItemIndex.open(place).header.refine > 2


def test_a_build_from_a_file_holds_no_copy_of_the_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 vectors of 32 numbers are 7.7 MB; only numpy's memory is counted, ids and orders are some of it."""
    count = 60_000
    monkeypatch.setattr(pieces, "ROWS", 2000)
    monkeypatch.setattr(index_training, "BATCH", 2000)
    monkeypatch.setattr(index_training, "QUERIES", 50)
    monkeypatch.setattr(index_training, "BLOCK_ROWS", 2000)
    monkeypatch.setitem(index_training.LISTS_OF, "pq", 0.5)
    np.save(tmp_path / "vectors.npy", catalogue(count, 0))
    vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    monkeypatch.setattr(index_kinds, "BLOCK", 16)
    tracemalloc.start()
    index.build(tmp_path / "v1", np.arange(count), vectors, "c-one", memory=20 * count)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < vectors.nbytes, f"{peak:,}: with a copy it would be more than twice as much"


@pytest.mark.parametrize("at", ["faiss.write_index", "moon_ops.embeddings.index_kinds.encode", "moon_ops.embeddings.index.asdict"])
def test_a_killed_build_leaves_the_old_index_and_the_next_one_cleans_up(place: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(at, die)
        killed.setattr("shutil.rmtree", lambda *_, **__: None)  # who is killed cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            index.build(place, np.arange(600), catalogue(600, 5), "c-two", memory=20 * 600)
    assert ItemIndex.open(place).header.contract_id == "c-one"
    index.build(place, np.arange(600), catalogue(600, 5), "c-two", memory=20 * 600)
    assert (ItemIndex.open(place).header.kind, ItemIndex.open(place).header.items) == ("pq", 600)
    assert sorted(p.name for p in place.parent.iterdir()) == sorted([".v1.lock", place.resolve().name, "v1"])


def test_where_codes_lose_too_much_not_all_lists_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten candidates of ten are what the codes say: no number of lists reaches the aim."""
    monkeypatch.setattr(index_training, "PRODUCT_REFINE", (1,))
    header = index.build(tmp_path / "v1", np.arange(ITEMS), catalogue(ITEMS, 0), "c-one", memory=1)
    assert header.recall < index_kinds.RECALL - index_training.SLACK
    assert header.probes < 0.7 * int(2 * ITEMS**0.5)
