"""Validation while an encoder is trained: what is held out, when a stage ends and with which weights, and how a killed run goes on."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moon_ops.encoder import fit, validation
from moon_ops.encoder.duplicates import from_hex
from moon_ops.encoder.eager import embed_eager
from moon_ops.encoder.encoded import hashes
from moon_ops.encoder.material import Material
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.pairs import Pairs, behaviour
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.train import corpus, train
from moon_ops.encoder.validation import Validation, hold_out
from moon_ops.errors import SettingsError
from moon_ops.inputs.contract import Sample
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.recipes.encoder import Training

UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)
CLICK, PURCHASE = 0, 2
STEPS = {"stage2a": {"steps": 6}, "stage2b": {"steps": 4, "least_entities": 0}}
HALF = {"validate_steps": 1, "validate_share": 0.5, "validate_least": 5, "checkpoint_steps": 1}


def training(**given: Any) -> Training:
    return Training(**({"batch": 8, "learning_rate": 2e-3, "validate_steps": 1, "validate_share": 0.5, "validate_least": 2} | given))


def asked(*queries: tuple[str, str, int, int], group: list[int] | None = None) -> Pairs:
    """A pair a query: words, picture, the event, and the moment; query n leads to item n, of product 100 + n."""
    count = len(queries)
    rows = np.arange(count)
    return Pairs(
        queries=[Sample(text, (picture,) if picture else ()) for text, picture, _, _ in queries],
        items=[Sample(f"item {n}") for n in rows],
        item_ids=rows,
        spu_ids=100 + rows,
        categories=np.full(count, -1),
        query=rows.copy(),
        item=rows.copy(),
        event=np.array([event for _, _, event, _ in queries]),
        group=np.array(group or rows),
        known=np.stack([rows, rows], 1),
        exposed=rows[:0],
        acted=np.array([at for _, _, _, at in queries]),
    )


OLD, NEW = 10, 90
PLENTY = [(f"old {n}", "", PURCHASE, OLD if n else 0) for n in range(4)]  # from 0 on, so that half of the time is 50
HASHES = {"x": "f0f0f0f00f0f0f0f", "x again": "f0f0f0f00f0f0f0c", "y": "123456789abcdef0", "z": "0ff0a55a3cc35995"}


def held_texts(pairs: Pairs, **more: Any) -> tuple[list[str], list[str]]:
    rest, held = hold_out(pairs, from_hex(HASHES.get(s.image_ids[0]) if s.image_ids else None for s in pairs.queries), training(**more))
    return sorted(s.text for s in held.samples), sorted({rest.queries[q].text for q in rest.query})


def test_new_purchases_are_held_out_and_clicks_and_older_purchases_are_trained_on() -> None:
    pairs = asked(*PLENTY, ("a", "", PURCHASE, NEW), ("b", "", PURCHASE, 100), ("clicked", "", CLICK, NEW), ("at half", "", PURCHASE, 50))
    held, left = held_texts(pairs)
    assert held == ["a", "at half", "b"]
    assert left == ["clicked", "old 0", "old 1", "old 2", "old 3"]
    rest, found = hold_out(pairs, np.zeros(len(pairs.queries), np.uint64), training())
    assert list(corpus(rest)) == [s.text for s in pairs.items] + [*(f"old {n}" for n in range(4)), "clicked"], "nor does a tokenizer see it"
    assert (found.search, found.since, sorted(found.spu_ids)) == ("text_search", 50, [104, 105, 107])
    assert rest.acted.tolist() == [0, 10, 10, 10, 90]
    assert held_texts(pairs, validate_share=0.1) == (["a", "b"], ["at half", *left])


def test_who_asks_alike_is_never_on_both_sides() -> None:
    """The same words, the same picture and twins: asked before, the query is trained on; asked after, all of them are held out."""
    news = [("a", "", PURCHASE, NEW), ("b", "", PURCHASE, 100), ("a", "", CLICK, 95), ("old 1", "", PURCHASE, 91)]
    pairs = asked(*PLENTY, *news, group=[0, 1, 2, 3, 4, 5, 4, 1])
    held, left = held_texts(pairs)
    assert held == ["a", "b"]
    assert left == [f"old {n}" for n in range(4)], "the click after the held-out words is gone, and old 1 is no question any more"
    shown = [
        ("1", "x", PURCHASE, NEW),
        ("2", "x again", CLICK, 95),
        ("3", "y", PURCHASE, 96),
        ("4", "z", PURCHASE, 97),
        ("5", "z", CLICK, 20),
    ]
    held, left = held_texts(asked(*PLENTY, *shown, ("end", "", CLICK, 100)))
    assert held == ["1", "3"]
    assert left == ["4", "5", "end", *(f"old {n}" for n in range(4))]


def test_pictures_are_measured_where_there_are_enough_and_words_stay_trained() -> None:
    shown = [("1", "x", PURCHASE, NEW), ("3", "y", PURCHASE, 96), ("words", "", PURCHASE, 97), ("more", "", PURCHASE, 98)]
    pairs = asked(*PLENTY, *shown, ("third", "", PURCHASE, 100))
    assert held_texts(pairs)[0] == ["1", "3"]
    assert "words" in held_texts(pairs)[1]
    assert held_texts(pairs, validate_least=3)[0] == ["more", "third", "words"]


def test_of_several_products_after_one_query_one_is_asked_for_and_no_pair_is_left() -> None:
    pairs = asked(*PLENTY, ("a", "", PURCHASE, NEW), ("b", "", PURCHASE, 100))
    twice = replace(pairs, query=np.append(pairs.query, 4), item=np.append(pairs.item, 0), event=np.append(pairs.event, PURCHASE))
    rest, held = hold_out(twice, np.zeros(6, np.uint64), training())
    assert sorted(held.spu_ids) == [104, 105]
    assert len(rest) == 4


def test_too_few_are_refused_with_what_to_do() -> None:
    pairs = asked(*PLENTY, ("a", "x", PURCHASE, NEW), ("b", "", PURCHASE, 100))
    said = (
        r"training.validate_share = 0.5 of the days holds 1 queries with pictures and 1 without .* fewer than training.validate_least = 2"
    )
    with pytest.raises(SettingsError, match=rf"{said}.* → raise training.validate_share, or set training.validate_steps = 0"):
        held_texts(pairs)
    all_new = asked(("a", "", PURCHASE, 99), ("b", "", PURCHASE, 100), ("c", "", PURCHASE, 0))
    with pytest.raises(SettingsError, match="and leaves 1 pairs to train on → lower it"):
        held_texts(all_new)


def test_the_time_of_a_query_is_its_first_act_and_nothing_after_trained_until_is_seen(
    make_shop: Any, now: dt.datetime, tmp_path: Path
) -> None:
    items = [{"item_id": i, "title": f"thing {i}", "available_from": "2026-01-01T00:00:00Z"} for i in (1, 2)]
    queries = [{"query_id": q, "timestamp": "2026-01-02T00:00:00Z", "text": f"query {q}"} for q in (1, 2, 3)]
    done = [(1, 1, "impression", 3), (1, 1, "click", 4), (1, 1, "purchase", 6), (2, 2, "purchase", 5), (3, 1, "purchase", 15)]
    events = [{"timestamp": f"2026-01-{day:02}T00:00:00Z", "item_id": i, "query_id": q, "event": e} for q, i, e, day in done]
    lake = Lake(str(tmp_path / "lake"))
    ingest(make_shop(items=items, queries=queries, events=events), lake, now=now)
    pairs = behaviour(lake, dt.datetime(2026, 1, 10, tzinfo=dt.UTC))
    assert [s.text for s in pairs.queries] == ["query 1", "query 2"]
    assert [dt.datetime.fromtimestamp(at / 1e6, dt.UTC).day for at in pairs.acted.tolist()] == [4, 5]


class Watched:
    """A training in which the recalls are given and not measured."""

    def __init__(self, recalls: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.recalls, self.seen, self.heard = recalls, list[tuple[int, dict[str, torch.Tensor]]](), list[tuple[int, dict[str, float]]]()
        self.rates = list[float]()
        monkeypatch.setattr(fit, "LOG_STEPS", 1)
        monkeypatch.setattr(Validation, "_recall", lambda watch: self.recall(watch))
        self.honest = fit.set_rates
        monkeypatch.setattr(fit, "set_rates", self.rate)

    def recall(self, watch: Validation) -> float:
        number = len(watch.record.measured)
        self.seen.append((number, {n: t.clone() for n, t in watch.encoder.state_dict().items()}))
        assert not watch.encoder.training
        return self.recalls[number]

    def rate(self, *given: Any) -> float:
        self.rates.append(self.honest(*given))
        return self.rates[-1]

    def run(self, lake: Any, out: Path, recipe: Any, die_at: int = -1) -> Any:
        def listen(step: int, found: dict[str, float]) -> None:
            if step == die_at and "loss" in found:
                raise KeyboardInterrupt
            self.heard.append((step, found))

        return train(lake, out, recipe, trained_until=UNTIL, seed=0, on_step=listen)


def same(out: Path, state: dict[str, torch.Tensor]) -> bool:
    saved, ours = load_file(out / "model.safetensors"), {n.removeprefix("model."): t for n, t in state.items()}
    shared = saved.keys() & ours.keys()
    assert shared
    return all(torch.equal(saved[name], ours[name]) for name in shared)


def test_a_stage_ends_after_patience_and_the_next_begins_with_the_best(
    lake: Any, least: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2a: best at its second step, then two worse; 2b: its first step is the best of all, then two worse."""
    watched = Watched([0.2, 0.4, 0.3, 0.4, 0.5, 0.1, 0.2], monkeypatch)
    report = watched.run(lake, tmp_path / "e", least(training={**HALF, "patience": 2}, **STEPS))
    assert report.steps == 7
    about = report.validation
    assert about["ended"] == {"stage2a": 4, "stage2b": 3}
    assert (about["best"], about["best_at"], about["queries"] >= 5) == (0.5, ("stage2b", 1), True)
    assert json.loads((tmp_path / "e" / "training.json").read_text())["validation"]["measured"][4] == ["stage2b", 1, 0.5]
    assert same(tmp_path / "e", watched.seen[4][1])
    assert [found for _, found in watched.heard if len(found) == 1] == [
        {"validation/image_search/recall@10": one} for one in watched.recalls
    ]
    assert [step for step, found in watched.heard if "stage2b/loss" in found] == [6, 7, 8], "numbers stay those of the recipe"
    early, watched.rates = watched.rates, []
    watched.recalls = [0.1] * 10
    watched.run(lake, tmp_path / "whole", least(training={**HALF, "patience": 0}, **STEPS))
    assert early == watched.rates[:4] + watched.rates[6:9], "the schedule is a function of the step"


def test_a_stage_that_never_gets_better_leaves_the_best_of_the_one_before(
    lake: Any, least: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched([0.2, 0.6, 0.3, *[0.1] * 7], monkeypatch)
    report = watched.run(lake, tmp_path / "e", least(training={**HALF, "patience": 0, "ema": 0.9}, **STEPS))
    assert (report.steps, report.validation["ended"], report.validation["best_at"]) == (10, {}, ("stage2a", 2))
    assert same(tmp_path / "e", watched.seen[1][1]), "of the average, which is what is served"


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_measuring_does_not_change_the_training(lake: Any, least: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float) -> None:
    losses = {}
    for name, every in (("often", 1), ("last", 6)):
        watched = Watched([0.1] * 10, monkeypatch)
        recipe = least(training={**HALF, "validate_steps": every, "patience": 0, "ema": ema}, stage2a={"steps": 6})
        watched.run(lake, tmp_path / name, recipe)
        losses[name] = [found["loss"] for _, found in watched.heard if "loss" in found]
    assert len(losses["last"]) == 6
    assert losses["often"] == losses["last"]


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("die_at", [0, 3, 4, 6, 7, 8])
def test_a_killed_run_goes_on_with_the_best_and_the_count(
    lake: Any, least: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int
) -> None:
    """Steps 4 and 5 are never taken: 2a ends after its fourth, and 2b's are 6 to 9."""
    recipe = least(training={**HALF, "patience": 2, "ema": 0.5}, **STEPS)
    recalls = [0.2, 0.4, 0.3, 0.4, 0.1, 0.5, 0.2, 0.3]
    whole = Watched(recalls, monkeypatch).run(lake, tmp_path / "whole", recipe)
    assert (whole.steps, whole.validation["best_at"]) == (8, ("stage2b", 2))
    with monkeypatch.context() as patch:
        if die_at == 4:  # right after the checkpoint of the stage's early end
            patch.setattr(Validation, "give", interrupted)
        killed = Watched(recalls, patch)
        with pytest.raises(KeyboardInterrupt):
            killed.run(lake, tmp_path / "e", recipe, die_at)
    again = Watched(recalls, monkeypatch).run(lake, tmp_path / "e", recipe)
    kept = load_file(tmp_path / "whole" / "model.safetensors")
    found = load_file(tmp_path / "e" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in kept.items())
    assert replace(again, resumed_at=0) == whole


def test_what_is_measured_is_what_the_saved_encoder_finds(lake: Any, least: Any, tmp_path: Path) -> None:
    recipe = least(training={**HALF, "validate_steps": 3, "patience": 0, "ema": 0.5}, stage2a={"steps": 3})
    report = train(lake, tmp_path / "e", recipe, trained_until=UNTIL, seed=0)
    pairs = behaviour(lake, UNTIL)
    _, held = hold_out(pairs, hashes(lake, pairs.queries), recipe.training)
    saved = Encoder.load(tmp_path / "e").eval()
    store = PixelStore.over(lake, pairs.image_ids(), 16, tmp_path / "pixels.u8")
    vectors = [embed_eager(saved, store, samples) for samples in (held.samples, pairs.items)]
    near = np.argsort(-(vectors[0] @ vectors[1].T), axis=1, kind="stable")[:, :10]
    found = float((pairs.spu_ids[near] == held.spu_ids[:, None]).any(1).mean())
    assert report.validation["measured"] == [("stage2a", 3, pytest.approx(found))]
    assert len(held.samples) == report.validation["queries"] == len(set(held.samples))
    assert 0 < found < 1


def test_material_keeps_what_is_held_out(lake: Any, tmp_path: Path) -> None:
    pairs = behaviour(lake, UNTIL)
    rest, held = hold_out(pairs, hashes(lake, pairs.queries), training())
    Material(rest, 0, items_as_of(lake, UNTIL), held).write(tmp_path / "m")
    found = Material.read(tmp_path / "m").held
    assert found is not None
    assert (found.samples, found.search, found.since) == (held.samples, held.search, held.since)
    assert found.spu_ids.tolist() == held.spu_ids.tolist()
    Material(pairs, 0, items_as_of(lake, UNTIL)).write(tmp_path / "m")
    assert Material.read(tmp_path / "m").held is None


def test_without_it_nothing_is_held_out(lake: Any, least: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "hold_out", None)
    report = train(lake, tmp_path / "e", least(stage2a={"steps": 1}), trained_until=UNTIL, seed=0)
    assert (report.pairs, report.validation) == (203, {})
