"""Nearest items: what a scan finds, of one contract, refreshed by a delta, and replaced in one step."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.embeddings import index, index_kinds
from moon_ops.embeddings.index import ItemIndex
from moon_ops.errors import ContractError, InputError, StageError

NO_IDS, NO_VECTORS = np.zeros(0, np.int64), np.zeros((0, 16), np.float32)


def unit(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def clusters(rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors [N, 16] around 40 centres that are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(40, 16))
    rng = np.random.default_rng(seed)
    drawn = (centres[rng.integers(40, size=rows)] + 0.4 * rng.normal(size=(rows, 16))).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def scan(held: dict[int, NDArray[np.float32]], queries: NDArray[np.float32], k: int) -> list[list[int]]:
    """Ids of the k nearest, by numpy."""
    ids = np.array(list(held))
    return ids[np.argsort(-(queries @ np.stack(list(held.values())).T), axis=1)[:, :k]].tolist()


def shared(found: list[list[int]], wanted: list[list[int]]) -> float:
    return float(np.mean([len(set(f) & set(w)) / len(w) for f, w in zip(found, wanted, strict=True)]))


@pytest.fixture(params=["flat", "ivf"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds on a catalogue of 2000 items."""
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", {"flat": 5000, "ivf": 500}[request.param])
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    index.build(tmp_path / "index" / "v1", np.array([7, 3, 5]), np.eye(3, 4, dtype=np.float32), "c-one")
    return tmp_path / "index" / "v1"


def test_search_is_what_numpy_finds(tmp_path: Path) -> None:
    ids, items, queries = np.arange(500)[::-1] * 11 + 3, unit(500, 16, 0), unit(40, 16, 1)
    header = index.build(tmp_path / "v1", ids, items, "c-one")
    found, cosines = ItemIndex.open(tmp_path / "v1").search(queries, 10, "c-one")
    scores = queries @ items.T
    best = np.argsort(-scores, axis=1)[:, :10]
    assert (header.kind, header.items, header.dim) == ("flat", 500, 16)
    assert found.tolist() == ids[best].tolist()
    assert cosines == pytest.approx(np.take_along_axis(scores, best, 1), abs=1e-6)


def test_fewer_items_than_k_leave_minus_one_at_the_end(place: Path) -> None:
    ids, cosines = ItemIndex.open(place).search(np.array([[0.0, 0.6, 0.8, 0.0]], np.float32), 5, "c-one")
    assert ids.tolist() == [[5, 3, 7, -1, -1]]
    assert cosines[0, :3] == pytest.approx([0.8, 0.6, 0.0])


def test_another_contracts_queries_are_refused(place: Path) -> None:
    with pytest.raises(ContractError, match="contract c-two was about to meet contract c-one"):
        ItemIndex.open(place).search(np.eye(1, 4, dtype=np.float32), 1, "c-two")


def test_a_tampered_index_is_refused(place: Path) -> None:
    with (place / "index.faiss").open("ab") as file:
        file.write(b" ")
    with pytest.raises(ContractError, match=r"index\.faiss has sha256"):
        ItemIndex.open(place)


def test_a_new_index_takes_the_place_of_the_old_one(place: Path) -> None:
    old = ItemIndex.open(place)
    index.build(place, np.array([9]), np.eye(1, 4, dtype=np.float32), "c-two")
    new = ItemIndex.open(place)
    query = np.eye(1, 4, dtype=np.float32)
    assert old.search(query, 1, "c-one")[0].tolist() == [[7]]
    assert new.search(query, 1, "c-two")[0].tolist() == [[9]]
    assert [p.is_symlink() for p in place.parent.iterdir()].count(False) == 2  # this one and the lock: the old one is removed


def test_a_failed_build_leaves_the_old_index(place: Path) -> None:
    with pytest.raises(StageError, match="no vectors to index"):
        index.build(place, np.zeros(0, np.int64), np.zeros((0, 4), np.float32), "c-two")
    assert ItemIndex.open(place).header.contract_id == "c-one"


def test_no_index_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="moon publish"):
        ItemIndex.open(tmp_path / "v9")


def test_many_items_are_put_into_lists_and_the_reason_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 500)
    items, queries = clusters(2000, 0), clusters(60, 1)
    header = index.build(tmp_path / "v1", np.arange(2000) + 2**62, items, "c-one")
    opened = ItemIndex.open(tmp_path / "v1")
    found, cosines = opened.search(queries, 10, "c-one")
    wanted = scan(dict(enumerate(items)), queries, 10)
    assert opened.header == header
    assert (header.kind, header.items) == ("ivf", 2000)
    assert header.reason.startswith("2,000 items are more than 500: ")
    assert f"{header.probes} of 357 lists" in header.reason
    assert header.probes < 357, "not a scan"
    assert header.recall >= 0.993
    assert shared((found - 2**62).tolist(), wanted) > 0.97
    assert cosines == pytest.approx(np.einsum("bd,bkd->bk", queries, items[found - 2**62]), abs=1e-6)


def test_more_neighbours_than_the_searched_lists_hold(tmp_path: Path, kind: str) -> None:
    index.build(tmp_path / "v1", np.arange(2000), clusters(2000, 0), "c-one")
    found, cosines = ItemIndex.open(tmp_path / "v1").search(clusters(3, 1), 2010, "c-one")
    assert [sorted(row) for row in found.tolist()] == [[-1] * 10 + list(range(2000))] * 3
    assert (np.diff(cosines[:, :2000], axis=1) <= 0).all()


def test_updates_are_what_a_dictionary_would_hold(tmp_path: Path, kind: str) -> None:
    """New, changed, changed again, removed, removed and added again: after each step the index finds what numpy finds."""
    place, queries = tmp_path / "v1", clusters(60, 1)
    held = dict(zip(range(0, 4000, 2), clusters(2000, 0), strict=True))
    index.build(place, np.array(list(held)), np.stack(list(held.values())), "c-one")
    steps: list[tuple[list[int], list[int]]] = [
        (list(range(1, 200, 2)), []),  # new
        (list(range(0, 100, 2)), [200, 202, 9_999]),  # changed in the base, removed from it, unknown
        ([0, 1, 200], [2, 3]),  # changed again, and in the delta; added again; removed from both
        ([2, 3], [0]),
        ([], list(range(1, 200, 2))),  # all that was new
    ]
    for number, (new, removed) in enumerate(steps):
        vectors = clusters(len(new), 10 + number) if new else NO_VECTORS
        header = index.update(place, np.array(new, np.int64), vectors, np.array(removed, np.int64), "c-one")
        held = {i: v for i, v in held.items() if i not in removed} | dict(zip(new, vectors, strict=True))
        found, cosines = ItemIndex.open(place).search(queries, 10, "c-one")
        assert header.items == len(held) == header.base_items - header.tombstones + header.delta_items
        assert set(found.ravel().tolist()) <= set(held)
        assert shared(found.tolist(), scan(held, queries, 10)) >= (1.0 if kind == "flat" else 0.97)
        assert cosines[0] == pytest.approx([float(queries[0] @ held[i]) for i in found[0].tolist()], abs=1e-6)
        changed = np.stack([held[i] for i in new]) if new else np.stack(list(held.values()))[:5]
        own = ItemIndex.open(place).search(changed, 1, "c-one")[0][:, 0].tolist()
        assert own == (new or list(held)[:5])
    header = index.compact(place)
    assert (header.base_items, header.delta_items, header.tombstones, header.contract_id) == (len(held), 0, 0, "c-one")
    assert shared(ItemIndex.open(place).search(queries, 10, "c-one")[0].tolist(), scan(held, queries, 10)) > 0.97


def test_a_list_that_lost_all_its_items_shows_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 500)
    items = clusters(2000, 0)
    index.build(tmp_path / "v1", np.arange(2000), items, "c-one")
    kept = np.arange(0, 40)
    index.update(tmp_path / "v1", NO_IDS, NO_VECTORS, np.arange(40, 2000), "c-one")
    found, _ = ItemIndex.open(tmp_path / "v1").search(clusters(20, 1), 50, "c-one")
    assert [sorted(row) for row in found.tolist()] == [[-1] * 10 + kept.tolist()] * 20


def test_an_update_shares_the_base_and_a_reader_keeps_it(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "v1"
    index.build(place, np.arange(2000), clusters(2000, 0), "c-one")
    before = ItemIndex.open(place)
    inodes = {p.name: p.stat().st_ino for p in place.resolve().iterdir()}
    index.update(place, np.array([7]), clusters(1, 5), np.array([8]), "c-one")
    after = {p.name: p.stat().st_ino for p in place.resolve().iterdir()}
    assert {name for name in inodes if inodes[name] != after[name]} == {"index.json", "delta.npz"}
    refreshed = ItemIndex.open(place, before)
    assert refreshed.base is before.base
    assert refreshed.search(clusters(1, 5), 1, "c-one")[0].tolist() == [[7]]
    assert before.header.delta_items == 0


def test_an_update_does_not_read_the_bases_vectors(tmp_path: Path, kind: str) -> None:
    place, name = tmp_path / "v1", {"flat": "index.faiss", "ivf": "vectors.npy"}[kind]
    index.build(place, np.arange(2000), clusters(2000, 0), "c-one")
    (place / name).write_bytes(b"")
    assert index.update(place, np.array([7, 2007]), clusters(2, 5), NO_IDS, "c-one").items == 2001
    with pytest.raises(ContractError, match=f"{name} has sha256"):
        ItemIndex.open(place)


def test_an_update_of_another_contract_is_refused(place: Path) -> None:
    with pytest.raises(ContractError, match="index and update: contract c-two was about to meet contract c-one"):
        index.update(place, np.array([9]), np.eye(1, 4, dtype=np.float32), NO_IDS, "c-two")
    assert ItemIndex.open(place).header.items == 3
    assert len(list(place.parent.iterdir())) == 3, "the link, its lock, what it points to: nothing is left behind"


def test_an_index_of_another_contract_is_no_previous_one(place: Path) -> None:
    old = ItemIndex.open(place)
    index.build(place, np.array([9]), np.eye(1, 4, dtype=np.float32), "c-two")
    new = ItemIndex.open(place, old)
    assert new.base is not old.base
    assert new.search(np.eye(1, 4, dtype=np.float32), 1, "c-two")[0].tolist() == [[9]]


@pytest.mark.parametrize(
    ("ids", "vectors", "removed", "says"),
    [
        ([1, 1], np.eye(2, 4), [], "there twice"),
        ([-1], np.eye(1, 4), [], "negative"),
        ([1], np.eye(2, 4), [], r"1 ids, vectors of shape \(2, 4\)"),
        ([1, 2], 2 * np.eye(2, 4), [], "item 1 has a vector of another length than 1"),
        ([1, 2], np.array([[1, 0, 0, 0], [np.nan, 0, 0, 0]]), [], "item 2 has a vector of another length"),
        ([1], np.eye(1, 5), [], "5 dimensions, the index has 4"),
        ([1], np.eye(1, 4), [1], "item 1 is among the new ids too"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(place: Path, ids: list[int], vectors: object, removed: list[int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        index.update(place, np.array(ids), np.asarray(vectors, np.float32), np.array(removed, np.int64), "c-one")
    assert ItemIndex.open(place).header.items == 3


def test_nothing_to_update_and_nothing_left_are_refused(place: Path) -> None:
    with pytest.raises(StageError, match=r"no index at .* to update"):
        index.update(place.with_name("v9"), np.array([9]), np.eye(1, 4, dtype=np.float32), NO_IDS, "c-one")
    with pytest.raises(StageError, match="nothing would be left"):
        index.update(place, NO_IDS, np.zeros((0, 4), np.float32), np.array([3, 5, 7]), "c-one")
    assert ItemIndex.open(place).header.items == 3


def test_an_index_of_another_layout_names_the_command(place: Path) -> None:
    (place / "index.json").write_text('{"contract_id": "c-one", "kind": "flat"}')
    with pytest.raises(StageError, match=r"written by another version .* `moon publish --full`"):
        ItemIndex.open(place)


@pytest.mark.parametrize(
    "at", ["os.link", "faiss.read_index", "numpy.savez", "moon_ops.embeddings.index.asdict", "moon_ops.embeddings.index.swap"]
)
def test_a_killed_update_leaves_the_old_index_and_the_next_one_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, at: str
) -> None:
    if (kind, at) == ("flat", "faiss.read_index"):
        pytest.skip("a flat index is not read")
    place, new = tmp_path / "v1", clusters(1, 5)
    index.build(place, np.arange(2000), clusters(2000, 0), "c-one")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(at, die)
        killed.setattr("shutil.rmtree", lambda *_, **__: None)  # who is killed cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            index.update(place, np.array([5000]), new, NO_IDS, "c-one")
    left = len(list(tmp_path.iterdir()))
    assert ItemIndex.open(place).header.items == 2000
    index.update(place, np.array([5000]), new, NO_IDS, "c-one")
    assert ItemIndex.open(place).search(new, 1, "c-one")[0].tolist() == [[5000]]
    assert len(list(tmp_path.iterdir())) == (3 if at != "os.link" else left), "an empty directory may belong to a writer that just began"


def test_a_reader_sees_the_old_index_or_the_new_one_while_a_writer_replaces_it(tmp_path: Path, kind: str) -> None:
    """Generation g holds item 10,000 + g and no other above 9,999; every fifth is compacted."""
    place, items, marker = tmp_path / "v1", clusters(1000, 0), clusters(1, 5)
    index.build(place, np.append(np.arange(1000), 10_000), np.concatenate([items, marker]), "c-one")
    failed: list[BaseException] = []
    seen: list[int] = []
    done: list[int] = []

    def write() -> None:
        try:
            while len(done) < 20 or (len(set(seen)) < 6 and len(done) < 300):
                done.append(g := len(done) + 1)
                index.update(place, np.array([10_000 + g]), marker, np.array([10_000 + g - 1]), "c-one")
                if g % 5 == 0:
                    index.compact(place)
        except BaseException as fault:
            failed.append(fault)

    writer = threading.Thread(target=write)
    writer.start()
    opened = None
    while writer.is_alive() or not seen:
        opened = ItemIndex.open(place, opened)
        found = opened.search(marker, 1001, "c-one")[0][0]
        assert opened.header.items == 1001
        assert sorted(found)[:1000] == list(range(1000))
        seen.append(int(found.max()) - 10_000)
    writer.join()
    assert not failed
    assert seen == sorted(seen)
    assert len(set(seen)) >= 6
    assert ItemIndex.open(place, opened).search(marker, 1, "c-one")[0].tolist() == [[10_000 + len(done)]]


def test_the_probe_sees_what_a_search_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 500)
    index.build(tmp_path / "v1", np.arange(2000), clusters(2000, 0), "c-one")
    index.update(tmp_path / "v1", np.arange(1900, 2100), clusters(200, 3), np.arange(50), "c-one")
    opened = ItemIndex.open(tmp_path / "v1")
    usual = index.probe(opened, 200, 10)
    assert usual > 0.97
    assert usual == index.probe(opened, 200, 10), "seeded"
    probe = index_kinds.Probe(opened.base, opened.searcher.delta, 200, 10, 0)
    half = index_kinds.Delta(NO_VECTORS, NO_IDS, np.arange(0, 2000, 2))
    assert probe.recall(index_kinds.Lists(opened.base, half, opened.base.index.nlist)) == pytest.approx(0.5 * 0.9, abs=0.05)


def test_compaction_is_due_by_rule(place: Path) -> None:
    index.build(place, np.arange(40), unit(40, 4, 0), "c-one")
    header = index.update(place, np.array([0]), unit(1, 4, 1), np.array([1]), "c-one")
    assert (header.delta_items, header.tombstones) == (1, 2)
    assert index.compaction_due(header) is None
    assert index.compaction_due(header, recall=0.5) == "recall 0.500 is below 0.98: the base was built for 0.996"
    header = index.update(place, np.array([50, 51]), unit(2, 4, 2), NO_IDS, "c-one")
    assert index.compaction_due(header) == "5 changes are more than 10% of the base's 40 items"
    assert index.compaction_due(index.compact(place)) is None
