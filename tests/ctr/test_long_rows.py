"""Rows that memory need not hold are those that it holds: made in parts, counted in parts, coded in parts, and trained on in blocks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from toy_clicks import ITEMS, QUERIES, impressions, unit

from moon_ops import pieces
from moon_ops.ctr import digests, processes, train
from moon_ops.ctr import fit as fitting
from moon_ops.ctr.dataset import POSITION, Rows, encode
from moon_ops.ctr.impressions import shown
from moon_ops.ctr.models import BASE
from moon_ops.ctr.shuffle import BLOCK, TOGETHER, shuffled
from moon_ops.ctr.vectors import Tables
from moon_ops.ctr.vocabulary import PRICE_BUCKETS, Vocabulary
from moon_ops.embeddings.as_of import Joined
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import InputError, StageError
from moon_ops.lake import counting
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.recipes.caps import Caps, Most
from moon_ops.recipes.ctr import CtrRecipe

MAY, SECOND, DAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC), dt.timedelta(seconds=1), dt.timedelta(days=1)
SMALL: dict[str, Any] = {"batch": 16, "learning_rate": 1e-2, "embedding_dim": 4, "hidden": (16,), "behaviors": 3}
RECIPE = CtrRecipe(name="toy", extractor="cube", epochs=2, validation=0.2, dropout=0.3, **SMALL)
INPUTS = (*BASE, "behavior_query", "target_vector", "query_vector", "behavior_vector", "behavior_query_vector", POSITION)
Wide = Callable[[pa.Table], Joined]


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any rows are many."""
    monkeypatch.setattr(pieces, "LONG", 50)
    monkeypatch.setattr(pieces, "AT_ONCE", 64)
    monkeypatch.setattr(counting, "AT_ONCE", 500)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Forty users on two days: clicks before, after and without an impression, sessions and queries or none, and a user beyond the caps."""
    drawn, lake = np.random.default_rng(0), Lake(str(tmp_path_factory.mktemp("busy") / "lake"))
    seconds = np.sort(drawn.integers(0, 2 * 86400, 3000))
    users = np.where(drawn.random(3000) < 0.2, 7, drawn.integers(0, 40, 3000)).tolist()
    kinds = drawn.choice(["impression", "click", "cart"], 3000, p=[0.6, 0.35, 0.05]).tolist()
    columns: dict[str, Any] = {"event_timestamp": [MAY + int(s) * SECOND for s in seconds], "user_id": users, "event": kinds}
    columns |= {"item_id": drawn.integers(0, 4, 3000), "position": drawn.integers(0, 9, 3000).astype(np.int32)}
    columns |= {name: pa.array(drawn.integers(0, 3, 3000), mask=drawn.random(3000) < 0.5) for name in ("query_id", "session_id")}
    events = pa.table(columns)
    missing = [pa.field(f.name, f.type) for f in SCHEMAS["events"] if f.name not in columns]
    for field in missing:
        events = events.append_column(field, pa.nulls(3000, field.type))
    lake.append("events", events.select(SCHEMAS["events"].names).cast(SCHEMAS["events"]))
    queries = [{"query_id": 0, "text": "Red dress"}, {"query_id": 1, "image_id": "abc"}, {"query_id": 2, "text": "Red dress"}]
    lake.append("queries", pa.Table.from_pylist([{"event_timestamp": MAY, **q} for q in queries], schema=SCHEMAS["queries"]))
    return lake


@pytest.mark.parametrize("position", [False, True])
def test_impressions_made_in_parts_are_those_made_at_once(busy: Lake, monkeypatch: pytest.MonkeyPatch, position: bool) -> None:
    rule = replace(RECIPE, position=position, caps=Caps(visitor_item=5, visitor=15), most=Most(visitor=70), click_skew=300)
    window = (MAY + 3 * 3600 * SECOND, MAY + 47 * 3600 * SECOND)
    whole = shown(busy, *window, rule=rule)
    assert {"clicks_early", "clicks_unshown", "visitor_item", "visitor", "most.visitor"} <= {name for name, n in whole.counts.items() if n}
    monkeypatch.setattr(pieces, "LONG", 700)
    made, ordered = Mock(wraps=counting.within), shown(busy, *window, rule=rule)
    monkeypatch.setattr(counting, "within", made)
    parts = shown(busy, *window, rule=rule)
    assert made.call_count == 1 + 3000 // 700
    assert parts.counts == ordered.counts == whole.counts
    assert pa.types.is_dictionary(parts.rows["text"].type)
    assert parts.rows.to_pylist() == whole.rows.to_pylist()


def test_caps_of_items_look_at_all_users(busy: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = replace(RECIPE, most=Most(item=30))
    whole = shown(busy, MAY, MAY + 2 * DAY, rule=rule)
    monkeypatch.setattr(pieces, "LONG", 700)
    assert shown(busy, MAY, MAY + 2 * DAY, rule=rule).rows.equals(whole.rows)


@pytest.mark.usefixtures("long")
def test_a_long_log_without_impressions_in_the_window_is_an_error(busy: Lake) -> None:
    with pytest.raises(StageError, match="no impressions of known users between 2026-06-01"):
        shown(busy, MAY + 31 * DAY, MAY + 32 * DAY, rule=RECIPE)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables(*(RepresentationTable(np.arange(n), unit(n, seed), "c-one") for n, seed in ((ITEMS, 0), (QUERIES, 1))))


@pytest.fixture(scope="module")
def varied() -> pa.Table:
    """Impressions of which every column has several values, and some none."""
    drawn, count = np.random.default_rng(1), 600
    table = impressions(drawn.integers(0, 30, count), drawn.integers(-1, 6, count), drawn.random(count) < 0.3)
    columns = {name: table[name] for name in table.column_names}
    columns |= {"price": pa.array(np.round(drawn.lognormal(3, 1, count), 1), mask=drawn.random(count) < 0.1)}
    columns |= {"category": pa.array([None if n == 3 else f"c{n}" for n in drawn.integers(0, 5, count)])}
    columns |= {"text": pa.array([None if n == 4 else f"word{n} other{n % 2}" for n in drawn.integers(0, 5, count)])}
    columns |= {"session_id": pa.array(drawn.integers(0, 9, count)), "shown_at": pa.array(drawn.integers(0, 90, count))}
    history = pa.array([drawn.integers(0, 40, n).tolist() for n in drawn.integers(0, 7, count)], pa.list_(pa.int64()))
    return pa.table({name: history if name in ("item_ids", "query_ids") else column for name, column in columns.items()})


def of_files(joined: Joined) -> Joined:
    """The same rows as a mapped table, as those of a long log are."""
    from moon_ops.lake.spills import mapped, numbered

    numbers, texts = numbered(joined.rows["text"])
    place = joined.rows.column_names.index("text")
    return replace(joined, rows=mapped([joined.rows.set_column(place, "text", numbers)], {"text": texts}))


def inputs(rows: Rows) -> dict[str, list[Any]]:
    found = rows.columns(np.arange(len(rows)), INPUTS)
    assert all(found[name].dtype == np.int64 for name in INPUTS if not name.endswith("_vector") and name != "dense")
    return {name: column.tolist() for name, column in found.items()}


def test_rows_coded_in_parts_are_those_coded_at_once(wide: Wide, varied: pa.Table, tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = wide(varied)
    vocabulary = Vocabulary.fit(joined)
    whole = encode(joined, vocabulary, tables, 3)
    monkeypatch.setattr(pieces, "LONG", 50)
    monkeypatch.setattr(pieces, "AT_ONCE", 64)
    files = of_files(joined)
    assert files.rows["event_timestamp"].num_chunks == 10
    assert Vocabulary.fit(files) == vocabulary
    parts = encode(files, vocabulary, tables, 3)
    assert isinstance(parts.times.base, np.memmap), "many rows lie in a file"
    assert not isinstance(whole.times.base, np.memmap)
    assert inputs(parts) == inputs(whole)
    assert parts.digest() == whole.digest()


def test_what_the_vocabulary_counts_is_what_columns_hold(wide: Wide, varied: pa.Table) -> None:
    """Counted by row number here; a column made for all rows says the same."""
    twice = pa.concat_tables([varied, varied.slice(0, 200)])
    joined = wide(varied)
    at = np.concatenate([np.arange(600), np.arange(200)])
    found = Vocabulary.fit(Joined(twice.select(joined.rows.column_names), joined.views, dict.fromkeys(joined.at, at)))
    for name, column in (("category", "category"), ("spu", "spu_id"), ("item", "item_id")):
        values, counts = np.unique([value for value in twice[column].to_pylist() if value is not None], return_counts=True)
        assert found.values[name].tolist() == values[counts >= 2].tolist()
    prices = np.array(twice["price"].drop_null())
    assert found.price_edges == np.unique(np.quantile(prices, np.linspace(0, 1, PRICE_BUCKETS + 1)[1:-1])).tolist()
    sessions = {(query, session) for query, session in zip(twice["query_id"].to_pylist(), twice["session_id"].to_pylist(), strict=True)}
    asked = [query for query, _ in sessions if query != -1]
    assert found.values["query"].tolist() == sorted({query for query in asked if asked.count(query) >= 2})
    assert found.prior == pytest.approx(np.mean(twice["label"].to_pylist()))


def test_a_digest_of_a_list_is_that_of_its_values_in_order_wherever_they_lie() -> None:
    values = digests.of_rows([np.array([5, 1, 2, 3, 9, 1, 2, 3, 2, 1, 3])])
    found = digests.of_lists(values, np.array([4, 8, 11, 8, 0, 3]), np.array([3, 3, 3, 2, 0, 0])).tolist()
    assert found[0] == found[1]
    assert found[4] == found[5]
    assert len(set(found)) == 4, "1 2 3; 2 1 3; 2 3; nothing"
    assert len(set(digests.of_rows([np.arange(100_000), np.zeros(100_000, bool)]).tolist())) == 100_000


def test_a_small_shop_is_shuffled_as_before() -> None:
    (found,) = shuffled(1000, (3, 1), 64)
    assert found.tolist() == np.random.default_rng((3, 1)).permutation(1000).tolist()
    (rest,) = shuffled(1000, (3, 1), 64, done=7)
    assert rest.tolist() == found[7 * 64 :].tolist()


def test_many_rows_come_once_in_whole_batches_and_go_on_from_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LONG", 1000)
    count = BLOCK * TOGETHER * 2 + 12_345
    parts = list(shuffled(count, (3, 1), 500))
    order = np.concatenate(parts)
    assert np.array_equal(np.sort(order), np.arange(count))
    assert max(map(len, parts)) <= BLOCK * TOGETHER + 500
    assert all(len(part) % 500 == 0 for part in parts[:-1])
    for done in (1, 2098, 4000, count // 500):
        assert np.array_equal(np.concatenate(list(shuffled(count, (3, 1), 500, done))), order[done * 500 :])
    assert len(np.unique(order[:500] // BLOCK)) > TOGETHER // 2, "a batch is of many moments"
    assert not np.array_equal(next(shuffled(count, (3, 2), 500)), parts[0])
    assert not list(shuffled(count, (3, 1), 500, done=count // 500 + 1))


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("killed_at", [3, 40])
def test_a_killed_training_on_many_rows_ends_as_if_nothing_had_happened(
    wide: Wide, varied: pa.Table, tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    monkeypatch.setattr(train, "_export", lambda *_: None)
    monkeypatch.setattr(train, "_parity", lambda *_: 0.0)
    monkeypatch.setattr(fitting, "SAVED", 4)
    monkeypatch.setattr("moon_ops.ctr.shuffle.BLOCK", 8)
    monkeypatch.setattr("moon_ops.ctr.shuffle.TOGETHER", 10)

    def run(name: str) -> train.CtrReport:
        origin = train.Origin("ctr_v1", MAY, MAY + DAY)
        return train.train(
            of_files(wide(varied)), tables, tmp_path / name, replace(RECIPE, patience=9, validation=0.2), origin=origin, seed=0
        )

    whole, one, steps = run("whole"), fitting._Fit._one, iter(range(killed_at))

    def until_killed(self: Any, *arguments: Any) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        one(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(fitting._Fit, "_one", until_killed)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    begun = Mock()
    monkeypatch.setattr(fitting._Fit, "_one", lambda self, *rest: (begun(), one(self, *rest)))
    assert run("killed") == whole
    assert begun.call_count == 60 - killed_at // 4 * 4
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def fitted(rows: Rows, vocabulary: Vocabulary, recipe: CtrRecipe, directory: Path, on_step: Any = None) -> tuple[Any, fitting.Fitted]:
    model = train.build(rows, vocabulary, recipe, 0)
    return model, fitting.fit(model, rows, recipe, seed=0, directory=directory, on_step=on_step)


def test_the_best_weights_are_written_when_they_are_found_and_only_the_last_ones_stay(
    wide: Wide, varied: pa.Table, tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = Vocabulary.fit(wide(varied))
    rows, found = encode(wide(varied), vocabulary, tables, 3), iter([0.5, 0.6, 0.7, 0.4])
    monkeypatch.setattr(fitting, "auc", lambda *_: next(found))
    there: list[list[str]] = []

    def heard(_: int, told: dict[str, float]) -> None:
        if "validation_auc" in told:
            there.append(sorted(path.name for path in tmp_path.glob("best-*")))

    monkeypatch.setattr(fitting, "SAVED", 20)
    model, done = fitted(rows, vocabulary, RECIPE, tmp_path, heard)
    assert (done.kept, done.validation_auc) == (45, 0.7)
    assert there == [[], ["best-15.safetensors"], ["best-30.safetensors"], ["best-30.safetensors", "best-45.safetensors"]]
    kept = load_file(tmp_path / "best-45.safetensors")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in kept.items())


def test_large_models_are_saved_less_often(
    wide: Wide, varied: pa.Table, tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary, saved = Vocabulary.fit(wide(varied)), list[int]()
    rows, one = encode(wide(varied), vocabulary, tables, 3), fitting._Fit._save
    monkeypatch.setattr(fitting, "SAVED", 5)
    monkeypatch.setattr(fitting._Fit, "_save", lambda self: (saved.append(self.step), one(self)))
    model = train.build(rows, vocabulary, RECIPE, 0)
    monkeypatch.setattr(fitting, "LARGE", sum(p.numel() for p in model.parameters()) // 2)
    monkeypatch.setattr(fitting.TableLog, "pending", lambda _: len(model.embedding.weight))
    fitted(rows, vocabulary, RECIPE, tmp_path / "large")
    assert saved == [0, 15, 30, 45, 60]
    saved.clear()
    monkeypatch.setattr(fitting, "RARER", 2)
    fitted(rows, vocabulary, RECIPE, tmp_path / "bounded")
    assert saved == [0, 10, 20, 30, 40, 50, 60]
    saved.clear()
    monkeypatch.setattr(fitting.TableLog, "pending", lambda _: 0)
    monkeypatch.setattr(fitting, "LARGE", 1 + sum(p.numel() for name, p in model.named_parameters() if name != "embedding.weight"))
    fitted(rows, vocabulary, RECIPE, tmp_path / "untouched")
    assert saved == list(range(0, 65, 5)), "what a checkpoint writes counts, not how large the model is"


def test_a_device_is_named_found_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert processes.torch_device("cpu").type == "cpu"
        assert processes.torch_device("auto").type == expected
    assert processes.torch_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match='device = "cuda", but torch finds no such GPU'):
        processes.torch_device("cuda")
