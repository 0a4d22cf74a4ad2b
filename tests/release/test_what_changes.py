"""What another encoder changes: of vectors moved by hand the answers, neighbours and parts of the catalogue are known."""

from __future__ import annotations

from pathlib import Path

import circle
import pytest
from circle import COUNT, DAY, WINDOWS, Shop

from moon_ops.errors import StageError
from moon_ops.lake.lake import Lake
from moon_ops.metric_names import ANSWERS, NEIGHBOURS, overlap
from moon_ops.release.changes import between, tried


@pytest.fixture
def lake(make_shop: Shop, tmp_path: Path) -> Lake:
    found = Lake(str(tmp_path / "lake"))
    circle.shop(make_shop, found)
    circle.encoder(found, 1)
    return found


def test_the_query_whose_answers_changed_is_found(lake: Lake) -> None:
    """Query 3 is asked from the other side of the circle, all others from where they were."""
    circle.encoder(lake, 2, queries={3: 3 + COUNT / 2})
    changed = between(lake, (1, 2), WINDOWS)
    assert [(a.query_id, a.common, a.ranks) for a in changed.answers] == [(3, 0, (1, 40))]
    answer = changed.answers[0]
    assert (answer.before, answer.after) == ((3, 4, 2, 5, 1), (23, 24, 22, 25, 21))
    assert answer.bought == {3}
    assert len(answer.query.image_ids) == 1
    assert changed.figures == pytest.approx(
        {overlap(ANSWERS): 39 / 40, f"{ANSWERS}/compared": 40, f"{ANSWERS}/lost": 1, f"{ANSWERS}/won": 0, overlap(NEIGHBOURS): 1}
    )
    assert changed.moved == ()
    assert {changed.items[n].title for n in answer.before} == {f"thing {n}" for n in (1, 2, 3, 4, 5)}


def test_the_part_of_the_catalogue_that_lost_is_named_with_its_interval(lake: Lake) -> None:
    circle.encoder(lake, 2, queries={3: 3 + COUNT / 2})
    changed = between(lake, (1, 2), WINDOWS)
    assert (changed.judged, changed.worse) == (2, 1)
    (red,) = changed.fell
    assert (red.name, red.items, red.queries) == ("Red › Things", 20, 20)
    assert (red.before, red.after) == pytest.approx((1.0, 0.95))
    assert -0.2 <= red.low < red.after - red.before < red.high == 0.0


def test_without_categories_the_catalogue_is_parted_by_its_vectors(make_shop: Shop, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "plain"))
    circle.shop(make_shop, lake, categories=False)
    circle.encoder(lake, 1)
    circle.encoder(lake, 2, queries={3: 3 + COUNT / 2})
    changed = between(lake, (1, 2), WINDOWS)
    assert (changed.judged, changed.worse) == (2, 1)
    assert changed.fell[0].name.startswith("cluster 0")
    assert changed.fell[0].before - changed.fell[0].after == pytest.approx(1 / changed.fell[0].queries)


def test_items_whose_neighbours_moved(lake: Lake) -> None:
    """Items 5 and 25 change places: the ten nearest to each are all others; each of their twenty neighbours has lost one of ten."""
    circle.encoder(lake, 2, items={5: 25, 25: 5})
    changed = between(lake, (1, 2), WINDOWS)
    assert [(m.item_id, m.common) for m in changed.moved[:2]] == [(5, 0), (25, 0)]
    assert {m.common for m in changed.moved[2:]} == {9}
    assert set(changed.moved[0].before) <= {1, 2, 3, 4, 6, 7, 8, 9, 10, 40}
    assert set(changed.moved[0].after) <= {20, 21, 22, 23, 24, 26, 27, 28, 29, 30}
    assert changed.figures[overlap(NEIGHBOURS)] == pytest.approx((18 * 10 + 20 * 9) / (40 * 10))


def test_twice_the_same(lake: Lake) -> None:
    circle.encoder(lake, 2, queries={3: 23, 17: 2}, items={5: 25, 25: 5})
    assert between(lake, (1, 2), WINDOWS) == between(lake, (1, 2), WINDOWS)


def test_a_sample_is_of_the_same_items_each_time_and_says_so(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    circle.encoder(lake, 2, queries={3: 23})
    monkeypatch.setattr("moon_ops.release.changes.ITEMS", 20)
    monkeypatch.setattr("moon_ops.release.changes.QUERIES", 15)
    first, again = (between(lake, (1, 2), WINDOWS) for _ in range(2))
    assert first == again
    assert first.figures[f"{ANSWERS}/compared"] == 15
    assert first.notes[0].endswith("of 40 items, drawn at random.")


def test_the_same_encoder_changes_nothing(lake: Lake) -> None:
    changed = between(lake, (1, 1), WINDOWS)
    assert changed.figures == {overlap(ANSWERS): 1.0, overlap(NEIGHBOURS): 1.0}
    assert changed.notes == ("Both releases have encoder 1: every search finds the same.",)


def test_an_encoder_that_knows_the_answers_gets_no_recall(lake: Lake) -> None:
    """It was trained into the window in which the other is judged."""
    circle.encoder(lake, 2, queries={3: 23})
    changed = between(lake, (1, 2), WINDOWS, until=WINDOWS.trained_until + DAY)
    assert changed.answers
    assert (changed.judged, changed.fell) == (0, ())
    assert "its hits say nothing" in changed.notes[0]


def test_what_cannot_be_compared_is_said_and_loses_nothing(lake: Lake) -> None:
    with pytest.raises(StageError, match=r"no table 'embeddings/v2' yet → run `moon embed --encoder 2` first"):
        between(lake, (1, 2), WINDOWS)
    assert tried(lake, (1, 2), WINDOWS, None).notes[0].startswith("What changed cannot be shown: the lake at ")
    assert "first release" in tried(lake, None, WINDOWS, None).notes[0]
