"""Cross-fitted encoders on the released tiny shop: no encoder knows its fold, each row reads its fold's, and a killed study goes on."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from moon_ops.cli.main import app
from moon_ops.embeddings.as_of import identifiers, microseconds
from moon_ops.embeddings.histories import History
from moon_ops.encoder import train as training
from moon_ops.encoder.eager import embed_eager
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.pairs import Pairs
from moon_ops.encoder.pixels import PixelStore
from moon_ops.errors import InputError
from moon_ops.inputs.contract import item_sample, query_sample
from moon_ops.lake.tables import items_as_of
from moon_ops.recipes.encoder import EVENTS, EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.release import clicks
from moon_ops.release.windows import Windows, windows
from moon_ops.settings import Settings
from moon_ops.studies import clicks as click_study
from moon_ops.studies import cross_fitted
from moon_ops.studies.click_arms import ClickArm
from moon_ops.studies.cross_fitted import CROSS_FITTED, IN_SAMPLE, SHIFTED, Folded

MINI = Path(__file__).parents[1] / "mini.toml"
ARM = ClickArm("ctr-din-cos", "ctr-din-cos", {"epochs": 1})


@dataclass
class Ran:
    """A study of two folds that was killed once, when its encoders were trained."""

    home: Settings
    times: Windows
    full: EncoderRecipe
    pairs: list[Pairs] = field(default_factory=list)  # that each training learned from
    spans: list[cross_fitted.Span] = field(default_factory=list)
    found: cross_fitted.Found | None = None

    def run(self) -> cross_fitted.Found:
        return cross_fitted.run(self.home, 1, [ARM], [0, 1], self.times, full=self.full, folds=2)


@pytest.fixture(scope="module")
def ran(released: Settings, moved: Callable[[Settings, Path], Settings], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    place = tmp_path_factory.mktemp("cross-fitted")
    home = moved(released, place / "home").replace(workers=1)
    shutil.copy(MINI, place)
    full = recipe(EncoderRecipe, "mini", place, stage1={"steps": 0}, stage2a={"steps": 2}, stage2b={"steps": 1})
    made = Ran(home, windows(home.lake, trained_until=encoder_version(home, 1).trained_until), full)
    made.spans, real = cross_fitted.cut(made.times, 2), training.behaviour

    def learned(*given: Any, **named: Any) -> Pairs:
        made.pairs.append(real(*given, **named))
        return made.pairs[-1]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "behaviour", learned)
        with patch.context() as once:
            once.setattr(click_study, "_scored", killed)
            with pytest.raises(KeyboardInterrupt):
                made.run()
        made.found = made.run()
    return made


def test_folds_are_equal_and_end_with_the_training() -> None:
    days = [dt.datetime(2026, 5, day, tzinfo=dt.UTC) for day in (1, 11, 15, 20)]
    assert [(a.day, b.day) for a, b in cross_fitted.cut(Windows(*days), 5)] == [(1, 3), (3, 5), (5, 7), (7, 9), (9, 11)]
    with pytest.raises(InputError, match="folds = 1 must be at least 2"):
        cross_fitted.cut(Windows(*days), 1)
    with pytest.raises(InputError, match=r"of a time before 2026-05-01"):
        cross_fitted.cut(Windows(days[0], days[0], *days[2:]), 3)


def test_no_encoder_learns_from_its_fold(ran: Ran) -> None:
    """Of what was done in a fold alone the other encoders know, and its own does not. Three trainings: none is done again after a kill."""
    events = ran.home.lake.read("events", ["event_timestamp", "query_id", "item_id", "event"])
    events = events.filter(pc.and_(pc.is_in(events["event"], pc.cast(list(EVENTS), "string")), pc.is_valid(events["query_id"])))
    asked = {row["query_id"]: query_sample(row) for row in ran.home.lake.read("queries").to_pylist()}
    done = [(row["event_timestamp"], (asked[row["query_id"]], row["item_id"])) for row in events.to_pylist()]
    without_first, without_second, everything = (
        {(pairs.queries[q], int(pairs.item_ids[i])) for q, i in zip(pairs.query, pairs.item, strict=True)} for pairs in ran.pairs
    )
    for (start, end), own, other in zip(ran.spans, (without_first, without_second), (without_second, without_first), strict=True):
        alone = {pair for when, pair in done if start <= when < end} - {pair for when, pair in done if not start <= when < end}
        assert not alone & own
        assert alone & other
        assert alone & everything == alone & other
    for pairs, (start, end) in zip(ran.pairs, ran.spans, strict=False):
        times = np.array([round(when.timestamp() * 1e6) for when in (start, end)])
        assert not ((pairs.acted >= times[0]) & (pairs.acted < times[1])).any()
        assert pairs.left_out["except_between"] > 0


def test_rows_read_the_encoder_of_their_time() -> None:
    """Two folds that end at 10 and 20, and what comes after them; encoder k has vectors of k alone."""
    history, matrices = History(np.array([7, 8]), np.zeros(2, np.int64)), [np.full((2, 1), k, np.float32) for k in (1, 2, 3)]
    vectors = Folded(history, matrices, np.array([10, 20]), [1, 0, 2], "some")
    times, codes = np.array([5, 9, 10, 19, 20, 99]), vectors.codes(np.array([7, 8, 7, 8, 7, 9]))
    assert vectors.gather(vectors.at(codes, times)).ravel().tolist() == [2, 2, 1, 1, 3, 0]
    several = vectors.gather(vectors.at(np.array([[0, -1], [1, 0]]), np.array([[9], [10]])))
    assert several[..., 0].tolist() == [[2, 0], [1, 1]]


def test_each_rows_cosine_is_that_of_its_folds_encoder(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the encoder itself says of the item as it was, and of the query."""
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it is trained already"))
    places = cross_fitted.encoders(ran.home, 1, ran.full, ran.spans, ran.times)
    read = cross_fitted.tables(ran.home, 1, places, ran.spans)
    rows = clicks.impressions(ran.home, 1, ran.times.start, ran.times.end).rows
    rows = rows.take(np.linspace(0, len(rows) - 1, 12).astype(int)).filter(pc.field("query_id") >= 0)
    times = microseconds(rows, "event_timestamp")
    asked = {row["query_id"]: query_sample(row) for row in ran.home.lake.read("queries").to_pylist()}
    encoders, seen = [Encoder.load(place).eval() for place in places], set()
    for n, row in enumerate(rows.to_pylist()):
        (item,) = [one for one in items_as_of(ran.home.lake, row["event_timestamp"]).to_pylist() if one["item_id"] == row["item_id"]]
        both = [item_sample(item), asked[row["query_id"]]]
        names = [name for sample in both for name in sample.image_ids]
        store = PixelStore.over(ran.home.lake, names, encoders[0].layout.picture_size, tmp_path / "pixels.u8")
        fold = next((k for k, (_, end) in enumerate(ran.spans) if row["event_timestamp"] < end), 2)
        seen.add(fold)
        for how, number in {CROSS_FITTED: fold, IN_SAMPLE: 2, SHIFTED: [1, 0, 2][fold]}.items():
            wanted = np.prod(embed_eager(encoders[number], store, both, shown=False), 0).sum()
            parts = ((read[how].items, "item_id"), (read[how].queries, "query_id"))
            target, query = (v.gather(v.at(v.codes(identifiers(rows, name)), times))[n] for v, name in parts)
            assert target @ query == pytest.approx(wanted, abs=1e-5)
    assert seen == {0, 1, 2}


def test_a_killed_study_goes_on_and_registers_nothing(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ran.pairs) == 3
    assert Registry(ran.home).newest(ENCODER) == 1
    assert ran.found is not None
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it is trained already"))
    monkeypatch.setattr(clicks, "train_ctr", lambda *_, **__: pytest.fail("it is trained already"))
    again = ran.run()
    assert {key: scores.tolist() for key, scores in again.judged.scores.items()} == {
        key: scores.tolist() for key, scores in ran.found.judged.scores.items()
    }


def test_the_arms_differ_and_the_table_names_them(ran: Ran) -> None:
    assert ran.found is not None
    names = [f"ctr-din-cos, {how}" for how in (IN_SAMPLE, CROSS_FITTED, SHIFTED)]
    assert set(ran.found.judged.scores) == {(name, seed) for name in names for seed in (0, 1)}
    assert len({scores.tobytes() for scores in ran.found.judged.scores.values()}) == 6, "each has vectors or a seed of its own"
    assert [len(ran.found.alone[how]) for how in (IN_SAMPLE, CROSS_FITTED, SHIFTED)] == [3, 3, 3]
    assert len({tuple(aucs[:2]) for aucs in ran.found.alone.values()}) == 3
    assert len({aucs[2] for aucs in ran.found.alone.values()}) == 1, "what judges is read by one encoder"
    first, second = cross_fitted.table(ran.found, [ARM]).split("Differences are to another fold's encoder.")
    assert [name in first for name in names] == [True, True, True]
    assert [f"| {name} |" in second for name in names] == [False, True, True]


def test_a_model_that_reads_more_than_cosines_is_refused(ran: Ran) -> None:
    with pytest.raises(InputError, match=r"ctr-din-cos-query reads vectors themselves.* → take a recipe .* din\+cos, simscore, simtier"):
        cross_fitted.run(ran.home, 1, [ClickArm("a", "ctr-din-cos-query")], [0, 1], ran.times, full=ran.full, folds=2)


def test_the_command_hands_over_its_options_and_keeps_the_table(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run(settings: Settings, encoder: int, arms: list[ClickArm], seeds: list[int], times: Windows, **more: Any) -> Any:
        asked.update(more, encoder=encoder, arms=arms, seeds=seeds, times=times)
        return ran.found

    monkeypatch.setattr(cross_fitted, "run", run)
    options = ["--encoder", "1", "--recipes", "ctr-din-cos", "--encoder-recipe", "moon-nano", "--folds", "2", "--seeds", "0,1"]
    told = CliRunner().invoke(app, ["study", "cross-fitted", "--home", str(ran.home.home), *options, "--set", "epochs=1"])
    assert told.exit_code == 0, told.output
    assert (asked["encoder"], asked["seeds"], asked["folds"], asked["full"].name) == (1, [0, 1], 2, "moon-nano")
    assert asked["arms"] == [ClickArm("ctr-din-cos", "ctr-din-cos", changes=("epochs=1",))]
    assert asked["times"] == ran.times
    (written,) = (ran.home.home / "studies").glob("cross-fitted-v1-*.md")
    assert written.read_text().startswith("Differences are to in-sample.")
