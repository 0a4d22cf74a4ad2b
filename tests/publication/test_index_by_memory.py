"""The memory that is set decides the index that is published, and a release tells what an approximate one misses."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from moon_ops.embeddings import index, index_kinds
from moon_ops.publication import publication
from moon_ops.release import index_recall
from moon_ops.settings import Settings

HOUR = dt.timedelta(hours=1)


def test_an_index_is_built_within_the_memory_that_is_set(current: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shop is too small for codes, so it is told what it was told."""
    told: list[int | None] = []
    built = index.build

    def build(*given: Any, memory: int | None = None) -> index.IndexHeader:
        told.append(memory)
        return built(*given, memory=memory)

    monkeypatch.setattr(index, "build", build)
    found = publication.publish(current.replace(index_gb=0.25), 1, now=now + HOUR, full=True)
    assert told == [250_000_000]
    assert found.index == f"flat: {found.items} items are at most 30,000: exact search is fast enough"


def test_what_an_approximate_index_misses_is_measured_on_the_shops_queries(
    current: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index_recall.figures(current, 1) == {}, "an exact index misses nothing"
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 20)
    assert publication.publish(current, 1, now=now + HOUR, full=True).index.startswith("ivf: ")
    figures = index_recall.figures(current, 1)
    name, asked = "index/recall@10", current.lake.open("query_embeddings/v1").count_rows()
    assert figures["index/queries"] == min(asked, index_recall.SAMPLED) > 100
    assert 0.9 < figures[f"{name}_low"] < figures[name] <= figures[f"{name}_high"] <= 1
    assert "of the ten nearest that an exact scan finds" in index_recall.note(figures)
