"""Shards: what one index answers, ties included, and never half a generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.embeddings import index, index_kinds, index_shards
from moon_ops.embeddings.index import HEADER, IndexHeader, ItemIndex
from moon_ops.embeddings.index_shards import ItemShards, shard_of
from moon_ops.errors import ContractError, StageError

NO_IDS = np.zeros(0, np.int64)
IDS = np.arange(100) * 5


def grid(rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors [N, 4] of a few directions whose products are exact in float32: many items tie."""
    return np.random.default_rng(seed).choice([-0.5, 0.5], size=(rows, 4)).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """100 items in four shards, and the same items in one index beside."""
    index_shards.build(tmp_path / "many", IDS, grid(100, 0), "c-one", shards=4)
    index_shards.build(tmp_path / "one", IDS, grid(100, 0), "c-one")
    return tmp_path


def files(place: Path) -> dict[str, int]:
    """Every file of an index, and which one of the disk it is."""
    return {path.relative_to(place.resolve()).as_posix(): path.stat().st_ino for path in place.resolve().rglob("*") if path.is_file()}


def test_one_shard_has_the_files_of_an_index(place: Path) -> None:
    index.build(place / "plain", IDS, grid(100, 0), "c-one")
    assert {name: (place / "one" / name).read_bytes() for name in files(place / "one")} == {
        name: (place / "plain" / name).read_bytes() for name in files(place / "plain")
    }
    assert "shards" not in (place / "one" / HEADER).read_text()


@pytest.mark.parametrize("k", [1, 7, 30, 120])
def test_shards_answer_as_one_index_ties_included(place: Path, k: int) -> None:
    queries = grid(12, 1)
    many = ItemShards.open(place / "many").search(queries, k, "c-one")
    one = ItemIndex.open(place / "one").search(queries, k, "c-one")
    assert many[1].tolist() == one[1].tolist()
    assert many[0].tolist() == one[0].tolist()
    known = dict(zip(IDS.tolist(), grid(100, 0), strict=True))
    found = [(query, *hit) for query, *row in zip(queries, *many, strict=True) for hit in zip(*row, strict=True)]
    assert all(float(query @ known[i]) == cosine for query, i, cosine in found if i >= 0)
    assert all(len(set(row[row >= 0].tolist())) == min(k, 100) for row in many[0])


@pytest.mark.parametrize("k", [3, 60])
def test_parts_that_are_held_apart_make_the_whole(place: Path, k: int) -> None:
    queries, whole = grid(5, 2), ItemShards.open(place / "many")
    parts = [ItemShards.open(place / "many", only=some) for some in ([0, 2], [], [1, 3])]
    assert [sorted(part.missing) for part in parts] == [[1, 3], [0, 1, 2, 3], [0, 2]]
    found = index_shards.merged([part.search(queries, k, "c-one") for part in parts], 5, k)
    assert [part.tolist() for part in found] == [part.tolist() for part in whole.search(queries, k, "c-one")]
    assert np.concatenate([part.items() for part in parts]).size == 100
    some = np.arange(0, 500, 10)
    assert set(whole.among(some).search(queries, 50, "c-one")[0].ravel()) == set(some.tolist())
    parted = index_shards.merged([part.among(some).search(queries, k, "c-one") for part in parts], 5, k)
    assert [part.tolist() for part in parted] == [part.tolist() for part in whole.among(some).search(queries, k, "c-one")]
    assert set(parts[0].search(queries, 100, "c-one", only=[2])[0].ravel()) - {-1} == set(IDS[shard_of(IDS, 4) == 2].tolist())


def test_an_update_goes_to_the_shards_it_concerns(place: Path) -> None:
    """Two new items, one changed, one removed; of a shard that is not concerned every file is linked."""
    ids = np.array([1, 127, 250])
    concerned, before = set(shard_of(np.append(ids, 495), 4).tolist()), files(place / "many")
    opened = ItemShards.open(place / "many")
    header = index_shards.update(place / "many", ids, grid(3, 7), np.array([495]), "c-one")
    assert (header.items, header.delta_items, header.tombstones, header.shards) == (101, 3, 2, 4)
    after = files(place / "many")
    assert len(concerned) < 4
    for name, inode in before.items():
        if name != HEADER and (name.partition("/")[0] not in map(str, concerned) or not name.endswith(("index.json", "delta.npz"))):
            assert after[name] == inode, name
    many = ItemShards.open(place / "many", previous=opened)
    assert all(many.shards[n].base is opened.shards[n].base for n in range(4))
    held = dict(zip(IDS.tolist(), grid(100, 0), strict=True)) | dict(zip(ids.tolist(), grid(3, 7), strict=True))
    del held[495]
    assert many.items().tolist() == sorted(held)
    found = many.search(grid(4, 8), 100, "c-one")
    for row, query in enumerate(grid(4, 8)):
        assert found[1][row].tolist() == sorted((float(query @ v) for v in held.values()), reverse=True)[:100]
    assert [index_shards.holds(place / "many", item) for item in (1, 495, 250, 2)] == [True, False, True, False]


def test_a_shard_may_be_empty_and_be_filled_again(tmp_path: Path) -> None:
    ids = np.arange(1, 4)
    own = shard_of(ids, 6)
    place, queries = tmp_path / "v1", grid(2, 1)
    index_shards.build(place, ids, grid(3, 0), "c-one", shards=6)
    assert {path.name for path in place.iterdir() if path.is_dir()} == set(map(str, own))
    alone = int(own[0])
    others = ids[own != alone]
    index_shards.update(place, NO_IDS, grid(0, 0), ids[own == alone], "c-one")
    assert not (place / str(alone)).exists()
    assert ItemShards.open(place).items().tolist() == others.tolist()
    assert ItemShards.open(place, only=[alone]).search(queries, 2, "c-one")[0].tolist() == [[-1, -1], [-1, -1]]
    index_shards.update(place, ids[own == alone], grid(int((own == alone).sum()), 4), NO_IDS, "c-one")
    assert ItemShards.open(place).items().tolist() == ids.tolist()
    with pytest.raises(StageError, match="nothing would be left"):
        index_shards.update(place, NO_IDS, grid(0, 0), ids, "c-one")
    assert ItemShards.open(place).items().tolist() == ids.tolist()


def test_only_shards_that_have_changed_much_are_compacted(place: Path) -> None:
    mine = IDS[shard_of(IDS, 4) == 2][:4]
    index_shards.update(place / "many", NO_IDS, grid(0, 0), mine, "c-one")
    before = files(place / "many")
    header, after = index_shards.tend(place / "many"), files(place / "many")
    assert (header.items, header.tombstones) == (96, 0)
    assert {name.partition("/")[0] for name in after if after[name] != before.get(name)} == {HEADER, "2"}
    assert index_shards.tend(place / "many") == header
    assert files(place / "many") == after, "nothing is due"


def test_ids_in_sequence_are_dealt_out_evenly() -> None:
    for ids in (np.arange(20_000), np.arange(20_000) * 4, 2**62 + np.arange(20_000) * 1024):
        counts = np.bincount(shard_of(ids, 4), minlength=4)
        assert counts.min() > 4_700
    assert shard_of(np.arange(5), 1).tolist() == [0] * 5
    assert shard_of(np.array([0, 1, 2, 3, 10**18]), 3).tolist() == [0, 1, 1, 2, 0], "an index on a disk was made with these"


def test_a_killed_build_leaves_the_old_shards(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = index.write_base
    made: list[Path] = []

    def die(fresh: Path, *given: object) -> object:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(fresh)
        return written(fresh, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as killed:
        killed.setattr(index, "write_base", die)
        killed.setattr("shutil.rmtree", lambda *_, **__: None)  # who is killed cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            index_shards.build(place / "many", np.arange(60), grid(60, 5), "c-two", shards=3)
    assert ItemShards.open(place / "many").search(grid(1, 1), 1, "c-one")[0].shape == (1, 1)
    index_shards.build(place / "many", np.arange(60), grid(60, 5), "c-two", shards=3)
    assert ItemShards.open(place / "many").items().tolist() == list(range(60))
    assert len([p for p in place.iterdir() if p.name.startswith(".many-")]) == 1, "what the killed one left is removed"


def test_lists_in_shards_find_what_a_scan_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 300)
    rng = np.random.default_rng(0)
    drawn = (rng.normal(size=(30, 16))[rng.integers(30, size=2060)] + 0.4 * rng.normal(size=(2060, 16))).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    items, queries = drawn[:2000], drawn[2000:]
    header = index_shards.build(tmp_path / "v1", np.arange(2000), items, "c-one", shards=3)
    assert (header.kind, header.items) == ("ivf", 2000)
    found, cosines = ItemShards.open(tmp_path / "v1").search(queries, 10, "c-one")
    wanted = np.argsort(-(queries @ items.T), axis=1)[:, :10]
    assert np.mean([len(set(f) & set(w)) / 10 for f, w in zip(found.tolist(), wanted.tolist(), strict=True)]) > 0.97
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_what_is_not_what_its_header_says_is_refused(place: Path) -> None:
    assert index_shards.verified(place / "many") == IndexHeader.read(place / "many")
    assert len(list(index_shards.each(place / "many"))) == 4
    with (place / "many" / "3" / "ids.npy").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(ContractError, match=r"3/ids\.npy has sha256"):
        index_shards.verified(place / "many")
    with pytest.raises(ContractError, match=r"3/ids\.npy has sha256"):
        ItemShards.open(place / "many")
    ItemShards.open(place / "many", only=[0, 1])
    swapped = place / "many" / "1" / HEADER  # a sound shard, of another writing
    swapped.write_text(swapped.read_text().replace('"recall": 1.0', '"recall": 0.5'))
    with pytest.raises(ContractError, match=r"1/index\.json has sha256"):
        ItemShards.open(place / "many", only=[1])


def test_what_is_not_there_is_said(place: Path) -> None:
    for call in (ItemShards.open, index_shards.verified, lambda at: list(index_shards.each(at)), lambda at: index_shards.holds(at, 1)):
        with pytest.raises(StageError, match="there is no index at"):
            call(place / "none")
    with pytest.raises(StageError, match="to update"):
        index_shards.update(place / "none", NO_IDS, grid(0, 0), NO_IDS, "c-one")
    with pytest.raises(StageError, match=r"shard 7 is asked for, the index at .* has 4"):
        ItemShards.open(place / "many", only=[7])
    with pytest.raises(ContractError):
        ItemShards.open(place / "many").search(grid(1, 0), 1, "c-two")
