"""The command line: bad input ends in one clear line, exit code 1 and no traceback, and good input does what it says."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moon_ops.cli.main import main
from moon_ops.cli.terminal import say

ITEMS = [{"item_id": 1, "title": "red mug", "images": ["a.png"]}, {"item_id": 2, "title": "blue mug"}]
QUERIES = [{"query_id": 7, "timestamp": "2026-01-01T10:00:00Z", "text": "mug"}]
EVENTS = [{"timestamp": "2026-01-01T10:00:01Z", "item_id": 1, "query_id": 7, "event": "click"}]
RED = {"a.png": "red"}


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Moon = Callable[..., Done]


@pytest.fixture
def moon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Moon:
    """Run ``moon`` through its entry point, in an empty home."""

    def run(*arguments: str, **environment: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in {"MOON_HOME": str(tmp_path / "home"), **environment}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["moon", *arguments])
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
        shown = capsys.readouterr()
        return Done(int(ended.value.code or 0), shown.out, shown.err)

    return run


def refused(done: Done) -> str:
    """The one line of an error; fails if there is a traceback or another exit code."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("moon: ")]
    assert len(lines) == 1, done.stderr
    assert " → " in lines[0], "an error says what to do next"
    return lines[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"items": [{"item_id": 1}]}, ["items.jsonl", "no column 'title'", "add the column"]),
        ({"events": [{**EVENTS[0], "event": "clik"}]}, ["events", "event = 'clik'", "impression, click, cart, purchase"]),
        ({"pictures": {"a.png": b"not a picture"}}, ["a.png", "not a JPEG, PNG, WebP, GIF, AVIF or HEIC"]),
        ({"items": [ITEMS[0], {**ITEMS[1], "item_id": 1}]}, ["item_id = 1", "there twice"]),
        ({"events": [{**EVENTS[0], "item_id": 99}]}, ["item_id = 99", "no item of the catalogue"]),
    ],
    ids=["missing column", "unknown event", "broken picture", "duplicate id", "unknown item"],
)
def test_bad_rows_are_named_and_nothing_is_lost(
    moon: Moon, make_shop: Any, tmp_path: Path, change: dict[str, Any], named: list[str]
) -> None:
    from moon_ops.lake.lake import Lake

    good = make_shop("good", RED, items=ITEMS, queries=QUERIES, events=EVENTS)
    assert moon("ingest", str(good)).returncode == 0
    lake = Lake(str(tmp_path / "home" / "lake"))
    before = {name: lake.count(name) for name in ("items", "images", "queries", "events")}
    assert before == {"items": 2, "images": 1, "queries": 1, "events": 1}
    tables = {"items": ITEMS, "queries": QUERIES, "events": EVENTS, "pictures": RED, **change}
    line = refused(moon("ingest", str(make_shop("bad", tables.pop("pictures"), **tables))))
    for word in named:
        assert word in line
    assert all(lake.count(name) >= rows for name, rows in before.items())


def test_an_empty_catalogue_and_a_directory_without_items(moon: Moon, make_shop: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no items.parquet, items.jsonl or items.csv" in refused(moon("ingest", str(empty)))
    (empty / "items.csv").write_text("item_id,title\n")
    assert "catalogue is empty" in refused(moon("ingest", str(empty)))
    assert "is not a directory" in refused(moon("ingest", str(tmp_path / "nowhere")))
    assert not (tmp_path / "home" / "lake").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train"], "no table 'events' yet"),
        (["embed", "--encoder", "1"], "moon-encoder has no version 1"),
        (["publish", "--encoder", "1"], "no table 'embeddings/v1' yet"),
        (["evaluate", "--encoder", "1"], "moon-encoder has no version 1"),
        (["ctr", "--encoder", "1"], "moon-encoder has no version 1"),
        (["release", "--encoder", "1"], "moon-encoder has no version 1"),
        (["promote", "1"], "moon-release has no version 1"),
        (["diff", "1", "2"], "moon-release has no version 1"),
        (["rollback"], "no previous release to roll back to (champion: none)"),
        (["export", "nowhere"], "not a trained checkpoint"),
        (["study", "ablation"], "no table 'events' yet"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_a_stage_before_its_predecessor(moon: Moon, arguments: list[str], named: str) -> None:
    assert named in refused(moon(*arguments))


def test_moves_of_a_home_without_any(moon: Moon) -> None:
    assert moon("moves").stdout == "no release has been promoted here yet\n"


def test_a_port_in_use(moon: Moon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refused(moon("serve", MOON_PORT=port))
    assert f"port {port}" in line
    assert "MOON_PORT" in line


def test_the_doctor_names_a_misspelt_variable_and_shows_no_password(moon: Moon, tmp_path: Path) -> None:
    done = moon(
        "doctor", MOON_REDIS_URL="redis:6379", MOON_TRACKING_URI="http://moon:geheim@127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"
    )
    assert done.returncode == 1
    assert re.search(r"^BAD +MOON_REDIS_URL +is no setting, and nothing reads it → did you mean MOON_REDIS\?$", done.stdout, re.M)
    assert "geheim" not in done.stdout + done.stderr


def test_bad_settings_recipes_and_times(moon: Moon, tmp_path: Path) -> None:
    assert "MOON_PORT = 'eighty'" in refused(moon("status", MOON_PORT="eighty"))
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(moon("status", MOON_HOME=str(tmp_path / "file")))
    assert "'tomorrow' is not a time" in refused(moon("train", "--trained-until", "tomorrow"))
    assert "size 'huge' is not a size" in refused(moon("simulate", str(tmp_path / "shop"), "--size", "huge"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seeds", "1"], "seeds = '1' must be at least two different whole numbers"),
        (["--seeds", "1,one"], "seeds = '1,one' must be at least two different whole numbers"),
        (["--only", "moonlight"], "only = 'moonlight' names no arm (there are: "),
        (["--recipe", "moon-huge"], "there is no recipe 'moon-huge'"),
        (["--trained-until", "tomorrow"], "'tomorrow' is not a time"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
@pytest.mark.parametrize("kind", ["ablation", "scaling"])
def test_a_study_that_cannot_be_is_refused_before_anything_is_made(
    moon: Moon, tmp_path: Path, kind: str, arguments: list[str], named: str
) -> None:
    assert named in refused(moon("study", kind, *arguments))
    assert not (tmp_path / "home").exists()


RECIPE = """
family = "smolvlm"
vocabulary = 700
inputs = { picture_size = 16, max_text_tokens = 16 }
vision = { hidden_size = 32, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, patch_size = 4 }
text = { hidden_size = 32, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 2 }
training = { batch = 8, learning_rate = 2e-3 }
stage1 = { steps = 10 }
stage2a = { steps = 20 }
stage2b = { steps = 10, least_entities = 0 }
"""


@pytest.fixture
def small(tmp_path: Path, lake: Any) -> dict[str, str]:
    """The tiny shop's lake, and ``small`` as the only recipe."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.toml").write_text(RECIPE)
    return {"MOON_LAKE": lake.uri, "MOON_MODELS": str(tmp_path / "models")}


def test_steps_are_shared_over_the_stages(moon: Moon, small: dict[str, str]) -> None:
    done = moon("train", "--recipe", "small", "--trained-until", "2026-01-16", "--steps", "4", **small)
    assert done.returncode == 0, done.stderr
    checkpoint = Path(re.findall(r"^checkpoint: (.*)$", done.stdout, re.M)[0])
    recipe, report = (json.loads((checkpoint / name).read_text()) for name in ("recipe.json", "training.json"))
    assert [recipe[stage]["steps"] for stage in ("stage1", "stage2a", "stage2b")] == [1, 2, 1]
    assert (report["steps"], report["trained_until"]) == (4, "2026-01-16T00:00:00+00:00")
    assert f"{report['last_loss']:.4f}" == re.findall(r"^last_loss: (.*)$", done.stdout, re.M)[0]
    assert "steps = -1 must be 0 or more" in refused(moon("train", "--recipe", "small", "--steps", "-1", **small))


def test_a_study_writes_its_table_and_its_figure(moon: Moon, small: dict[str, str], tmp_path: Path) -> None:
    """Two arms, two seeds, one step."""
    recipe = tmp_path / "models" / "small.toml"
    recipe.write_text(
        re.sub(r"^stage1.*", "", recipe.read_text(), flags=re.M).replace("steps = 20", "steps = 1").replace("steps = 10", "steps = 0")
    )
    done = moon("study", "ablation", "--recipe", "small", "--seeds", "0,1", "--only", "untrained, full", **small)
    assert done.returncode == 0, done.stderr
    written = [Path(line.removeprefix("wrote ")) for line in done.stdout.splitlines() if line.startswith("wrote ")]
    assert [p.suffix for p in written] == [".md", ".png"]
    assert {p.parent for p in written} == {tmp_path / "home" / "studies"}
    assert [line.split(" | ")[0] for line in written[0].read_text().splitlines()[2:]] == ["| untrained", "| + stage 2b (full)"]
    assert written[0].read_text() in done.stdout
    assert len(written[0].with_suffix(".jsonl").read_text().splitlines()) == 4
    from moon_ops.registry.registry import Registry
    from moon_ops.settings import Settings

    registry = Registry(Settings.from_environment(tmp_path / "home"))
    (run,) = registry.client.search_runs([registry.experiment_id], filter_string="attributes.run_name = 'study ablation'")
    assert {f.path for f in registry.client.list_artifacts(run.info.run_id)} == {p.name for p in written}
    assert run.info.status == "FINISHED"


def test_evaluation_from_a_later_start(moon: Moon, released: Any) -> None:
    """The tiny shop's encoder is trained until 2026-01-16 and its last day is 2026-01-20."""
    home = {"MOON_HOME": str(released.home)}
    whole, later = (
        json.loads(moon("evaluate", "--encoder", "1", "--json", *more, **home).stdout) for more in ([], ["--start", "2026-01-18"])
    )
    for kind in ("image_search", "text_search"):
        assert 0 < later[f"{kind}/queries"] < whole[f"{kind}/queries"]
    assert whole["catalogue_items"] == later["catalogue_items"] == 115
    assert [p["dim"] for p in whole["prefixes"]] == [64]
    assert "the encoder was trained until 2026-01-" in refused(moon("evaluate", "--encoder", "1", "--start", "2026-01-10", **home))
    assert "'soon' is not a time" in refused(moon("evaluate", "--encoder", "1", "--start", "soon", **home))


def test_status_of_an_empty_home_is_json_and_makes_nothing(moon: Moon, tmp_path: Path) -> None:
    done = moon("status", "--json")
    assert json.loads(done.stdout) == {"champion": None, "candidate": None, "previous": None, "items": 0, "embedded": 0, "metrics": {}}
    assert not (tmp_path / "home").exists()


def test_ingest_twice_is_quiet_and_allow_quarantine_is_zero(moon: Moon, make_shop: Any) -> None:
    shop = make_shop("shop", RED, items=ITEMS, queries=QUERIES, events=[*EVENTS, {**EVENTS[0], "item_id": 99}])
    assert moon("ingest", str(shop), "--allow-quarantine").returncode == 0
    again = moon("ingest", str(shop), "--allow-quarantine")
    assert again.returncode == 0
    lines = again.stdout.splitlines()
    assert "new: 0 items, 0 pictures, 0 queries, 0 events, 0 users" in lines
    assert "known: 4 rows, in the lake already" in lines
    assert "refused: 1 row (1 x events.jsonl item_id)" in lines


def test_one_row_is_no_rows(moon: Moon, make_shop: Any) -> None:
    lost = {**EVENTS[0], "item_id": 99}
    one = make_shop("one", items=[{**ITEMS[0], "images": "gone.png"}], events=[lost])
    said = refused(moon("ingest", str(one)))
    assert "1 row was set aside (1 x events.jsonl item_id) and 1 picture could not be read (1 x items.jsonl images)" in said
    assert moon("quarantine", "--table", "events").stdout.endswith("\n1 row in quarantine\n")
    two = make_shop("two", items=[{**ITEMS[0], "images": "gone.png|lost.png"}], events=[lost, {**lost, "item_id": 98}])
    said = refused(moon("ingest", str(two)))
    assert "2 rows were set aside (2 x events.jsonl item_id) and 2 pictures could not be read (2 x items.jsonl images)" in said
    assert moon("quarantine", "--table", "events").stdout.endswith("\n2 rows in quarantine\n")


def test_the_installed_command_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    variables = {**os.environ, "MOON_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "moon_ops.cli", "ingest", str(tmp_path / "nowhere")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    line = refused(Done(done.returncode, done.stdout, done.stderr))
    assert line == done.stderr.strip()


def test_erasing_asks_first_and_an_unknown_item_is_refused(moon: Moon, make_shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = make_shop(items=ITEMS, pictures=RED)
    assert moon("ingest", str(shop)).returncode == 0
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO("n\n"))
        assert moon("erase", "1").returncode == 1
    assert "ITEM_ID = 77 is in no place" in refused(moon("erase", "77", "--yes"))
    done = moon("erase", "1", "--yes")
    assert done.returncode == 0, done.stderr
    assert '"lake/items": 1' in done.stdout
    assert '"lake/images": 1' in done.stdout


def test_maintenance_reports_every_table(moon: Moon, make_shop: Any) -> None:
    assert moon("ingest", str(make_shop(items=ITEMS, pictures=RED))).returncode == 0
    done = moon("maintain", "--keep-days", "0", "--json")
    assert {json.loads(line)["table"] for line in done.stdout.splitlines()} >= {"items", "images"}


def test_a_dry_run_of_embedding_needs_an_encoder_that_is_there(moon: Moon, make_shop: Any) -> None:
    assert moon("ingest", str(make_shop(items=ITEMS, queries=QUERIES, pictures=RED))).returncode == 0
    refused = moon("embed", "--encoder", "1", "--dry-run", "--json")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "moon-encoder has no version 1 (there are: none)" in refused.stderr


def test_words_in_a_report_are_shown_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    say({"pairs": {"picture → click": 3}, "lacking": ["Schränke"], "before": None, "queries": 652.0, "recall": 1.0, "logloss": 2.5})
    told = 'pairs: {"picture → click": 3}\nlacking: ["Schränke"]\nbefore: none\nqueries: 652\nrecall: 1.0000\nlogloss: 2.5000\n'
    assert capsys.readouterr().out == told
