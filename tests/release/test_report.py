"""The report of a release: one page that needs no other file, for every release, and never a reason to lose one."""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
import logging
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import circle
import lance
import pyarrow as pa
import pytest
from circle import COUNT, WINDOWS, Shop
from PIL import Image

from moon_ops.lake.lake import Lake
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import RELEASE, Registry, manifest_of
from moon_ops.release import report
from moon_ops.release.changes import Changes, between, tried
from moon_ops.release.gates import FAILED, PASSED, TOO_LITTLE
from moon_ops.release.manifest import release
from moon_ops.release.windows import Windows, windows
from moon_ops.settings import Settings

EMPTY = {"img", "meta", "br"}


class Read(HTMLParser):
    """A page as a reader takes it: its words, its pictures, and whether every tag is closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.pictures: list[Image.Image] = []
        self.framed = 0
        self.feed(page)
        self.close()
        assert self.open == []
        assert not {"script", "link", "iframe", "a"} & set(self.tags)
        assert "url(" not in page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [] if tag in EMPTY else [tag]
        self.framed += (dict(attrs).get("class") or "").startswith("hit")
        if tag == "img":
            kind, _, content = (dict(attrs)["src"] or "").partition(";base64,")
            assert kind in ("data:image/png", "data:image/jpeg")
            shown = Image.open(io.BytesIO(base64.b64decode(content, validate=True)), formats=["PNG", "JPEG"])
            shown.load()
            self.pictures.append(shown)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += [data.strip()] if data.strip() and "style" not in self.open else []

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def lake(make_shop: Shop, tmp_path: Path) -> Lake:
    """Two encoders: query 3, a photograph, and query 30, words, are asked from elsewhere under the second."""
    found = Lake(str(tmp_path / "lake"))
    circle.shop(make_shop, found)
    circle.encoder(found, 1)
    circle.encoder(found, 2, queries={3: 3 + COUNT / 2, 30: 10})
    return found


def manifest(*verdicts: dict[str, Any], against: int | None = 1) -> dict[str, Any]:
    stamp = circle.MAY.isoformat()
    part = {"version": 2, "sha256": {"model.safetensors": "ab" * 32}}
    return {
        "passed": all(v["passed"] for v in verdicts if v.get("blocks", True)),
        "evidence": list(verdicts),
        "metrics": {"image_search/recall@10": 0.5, "image_search/recall@10:new_items": 0.25, "image_search/queries:new_items": 4.0},
        "compared_with": {"release": against, "metrics": {"image_search/recall@10": 0.6} if against else None},
        "created": stamp,
        "windows": dict.fromkeys(("start", "trained_until", "ctr_until", "end"), stamp),
        "contract_id": "c-circle",
        "trained_until": stamp,
        "encoder": part,
        "ctr": None,
        "embeddings": {"table": "embeddings/v2", "version": 1, "rows": 40},
        "index": {"place": "index/v2", "sha256": "cd" * 32, "kind": "flat", "items": 40},
        "feature_service": "ctr_v2",
    }


def verdict(gate: str, outcome: str, **more: Any) -> dict[str, Any]:
    passed = outcome == PASSED
    found = {"gate": gate, "value": 0.5, "threshold": 0.4 if passed else 0.58, "rule": "a rule", "champion": 0.6, "passed": passed}
    return {**found, "outcome": outcome, "low": -0.2, "high": 0.1, "detectable": 0.123, **more}


def test_the_page_of_a_changed_encoder(lake: Lake) -> None:
    changed = between(lake, (1, 2), WINDOWS)
    made = report.draw(lake, 7, manifest(verdict("image_search/recall@10", FAILED)), changed)
    page = Read(made.html())
    assert page.text.startswith("Release 7 Release 7 failed image_search/recall@10 Compared with release 1")
    assert "moon promote 7 --force" in page.text
    assert "docs/on-call.md" in page.text
    shown = sum(p.size <= (112, 112) for p in page.pictures)
    typical = sum(changed.items[n].image_id is not None for group in changed.fell for n in group.examples)
    assert shown == 1 + (5 + 5) + (3 + 5) + typical, "the photograph, and what was found; items above 30 have no picture"
    assert page.framed == 2, "items 3 and 30, where release 1 found them"
    assert "product bought: place 1 → 40" in page.text
    assert "a thing like 30" in page.text
    assert "new items 0.2500 4" in page.text
    assert page.text.index("Gates") < page.text.index("What changes for users") < page.text.index("Made of") < page.text.index("Hashes")
    assert page.text.endswith("ab" * 32)
    assert set(made.pictures) == {"differences.png", "searches_changed.png"}
    for content in made.pictures.values():
        assert min(Image.open(io.BytesIO(content)).size) > 60
    assert len(made.html()) < 2_000_000


def test_the_same_page_each_time(lake: Lake) -> None:
    about = manifest(verdict("image_search/recall@10", FAILED))
    first, again = (report.draw(lake, 7, about, between(lake, (1, 2), WINDOWS)) for _ in range(2))
    assert first.html() == again.html()
    assert first.pictures == again.pictures


def test_what_stops_a_release_comes_first_and_what_only_reports_last(lake: Lake) -> None:
    verdicts = [
        verdict("latency", FAILED, blocks=False, value=9.0, threshold=7.0, champion=6.0, low=1.0, high=4.0),
        verdict("good", PASSED),
        verdict("open", TOO_LITTLE),
        {"gate": "parity", "value": float("nan"), "threshold": 0.9, "rule": "at least 0.9", "champion": None, "passed": False},
    ]
    page = Read(report.draw(lake, 3, manifest(*verdicts), Changes()).html()).text
    assert sorted(("latency", "good", "open", "parity"), key=page.rindex) == ["parity", "open", "good", "latency"]
    assert page.startswith("Release 3 Release 3 failed parity, open Compared")
    assert "parity not measured" in page
    assert "a difference below 0.1230 could not have been seen" in page
    assert "reported, stops nothing" in page


def test_a_shop_without_pictures_is_shown_in_words(make_shop: Shop, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "words"))
    circle.shop(make_shop, lake, pictures=False)
    circle.encoder(lake, 1)
    circle.encoder(lake, 2, queries={3: 23})
    made = report.draw(lake, 2, manifest(verdict("text_search/recall@10", PASSED)), between(lake, (1, 2), WINDOWS))
    page = Read(made.html())
    assert "a thing like 3" in page.text
    assert "thing 23" in page.text
    assert len(page.pictures) == 1, "the chart of differences"
    assert set(made.pictures) == {"differences.png"}


def test_a_picture_that_cannot_be_read_is_shown_by_its_title(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    images = lake.open("images").to_table()
    (broken,) = lake.read("items", ["image_ids"], "item_id = 3")["image_ids"].to_pylist()[0]
    content = [
        b"broken" if name == broken else data for name, data in zip(*(images[c].to_pylist() for c in ("image_id", "bytes")), strict=True)
    ]
    changed_images = images.set_column(
        images.schema.get_field_index("bytes"), images.schema.field("bytes"), pa.array(content, pa.large_binary())
    )
    lance.write_dataset(changed_images, lake.address("images"), mode="overwrite")
    made = report.draw(lake, 7, manifest(verdict("r", FAILED)), between(lake, (1, 2), WINDOWS))
    page = Read(made.html())
    assert page.framed == 2
    assert "thing 3" in page.words
    assert f"picture {broken} is not shown" in caplog.text


def test_without_matplotlib_there_is_a_page(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Read(report.draw(lake, 7, manifest(verdict("r", FAILED)), between(lake, (1, 2), WINDOWS)).html())
    assert "not drawn: see the log" in page.text
    assert "product bought: place 1 → 40" in page.text


def test_titles_are_text_and_nothing_else(lake: Lake) -> None:
    """A seller's title may hold anything."""
    changed = between(lake, (1, 2), WINDOWS)
    items = {n: type(item)('<script>"x"</script>', item.image_id) for n, item in changed.items.items()}
    page = Read(report.draw(lake, 7, manifest(verdict("r", FAILED)), Changes(**{**vars(changed), "items": items})).html())
    assert '<script>"x"</script>' in page.words


@pytest.fixture
def times(copied: Settings) -> Windows:
    return windows(copied.lake, trained_until=encoder_version(copied, 1).trained_until)


def artifact(settings: Settings, version: int) -> Path:
    """Where the page of a release lies in its run."""
    registry = Registry(settings)
    run = registry.client.get_model_version(RELEASE, str(version)).run_id
    return Path(registry.client.get_run(run).info.artifact_uri) / "report" / "report.html"


def test_a_failed_release_has_its_page_in_mlflow(copied: Settings, times: Windows, now: dt.datetime, tmp_path: Path) -> None:
    """Of the same encoder without its click model: so the gate of clicks fails, and searches are what they were."""
    made = release(copied, 1, None, times, now=now)
    assert (made.version, made.passed) == (2, False)
    page = Read(artifact(copied, 2).read_text())
    assert page.text.startswith("Release 2 Release 2 failed ctr/auc Compared with release 1")
    assert "Both releases have encoder 1: every search finds the same." in page.text
    assert Path(made.report_at) == artifact(copied, 2)
    assert (artifact(copied, 2).parent / "differences.png").is_file()
    written = manifest_of(Registry(copied), 2)
    assert list(written)[:3] == ["passed", "evidence", "metrics"], "what people look for stands first"
    assert written["diff"]["figures"] == {"answers/overlap@10": 1.0, "neighbours/overlap@10": 1.0}
    assert written["diff"]["figures"].items() <= written["metrics"].items()
    version = Registry(copied).client.get_model_version(RELEASE, "2")
    assert "`report/report.html`" in version.description.splitlines()[2]
    assert (version.tags["created"], version.tags["trained_until"]) == (
        f"{now:%Y-%m-%d %H:%M} UTC",
        f"{times.trained_until:%Y-%m-%d %H:%M} UTC",
    )


def test_a_report_that_cannot_be_kept_loses_no_release(
    copied: Settings, times: Windows, now: dt.datetime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Registry, "keep", full)
    with caplog.at_level(logging.WARNING):
        made = release(copied, 1, 1, times, now=now)
    assert (made.version, made.passed, made.report_at) == (2, True, "")
    assert manifest_of(Registry(copied), 2)["passed"] is True
    assert "release 2 is registered without its report (OSError(28, 'No space left on device'))" in caplog.text


def test_the_page_has_the_number_that_the_release_got(
    copied: Settings, times: Windows, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else registers one between drawing and registering."""
    monkeypatch.setattr(Registry, "newest", lambda _self, _name: 8)
    made = release(copied, 1, 1, times, now=now)
    assert made.version == 2
    assert Read(artifact(copied, 2).read_text()).text.startswith("Release 2 Release 2 passed its gates")


def test_the_first_release_says_why_nothing_is_beside_it(released: Settings) -> None:
    page = Read(artifact(released, 1).read_text())
    assert page.text.startswith("Release 1 Release 1 passed its gates The first release: compared with the floors.")
    assert "there is no champion whose answers could be shown beside its own" in page.text
    assert "moon promote 1" in page.text
    assert "Asked over HTTP" in page.text, "the demo adds what it asked"
    about = manifest_of(Registry(released), 1)
    assert json.loads(json.dumps(about))["diff"]["figures"] == {}
    assert tried(released.lake, None, WINDOWS, None).notes[0] in about["diff"]["notes"]
