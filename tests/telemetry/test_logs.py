"""A line of the log as JSON, what a stage tells of its result, and that nothing is imported where nobody listens."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from moon_ops.errors import InputError, SettingsError
from moon_ops.settings import Settings
from moon_ops.telemetry import jobs, logs
from moon_ops.telemetry.stages import facts_of, stage


@dataclass(frozen=True)
class Report:
    items: int
    contract_id: str
    first_refusal: str
    refused: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


REPORT = Report(3, "c-1", "items.jsonl, row 7: 'a text of the shop'", {"items.price": 2, "items.title": 1}, {"recall": 0.5})


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_has_its_fields_and_a_fault_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    handler, log = logging.StreamHandler(sys.stdout), logging.Logger("moon_ops.tried")
    handler.setFormatter(logs.formatter())
    log.addHandler(handler)
    with logs.fields(release=7, encoder=2, trace_id=""):
        log.warning("%d rows of %s", 3, "Größe", extra={"rows": 3})
        try:
            raise ValueError("broken\nin two lines")
        except ValueError:
            log.exception("failed")
    log.info("after")
    first, second, third = lines(capsys.readouterr().out)
    assert list(first)[:4] == ["time", "level", "logger", "message"]
    assert {name: first[name] for name in list(first)[4:]} == {"release": 7, "encoder": 2, "rows": 3}, "an empty field is none"
    assert (first["level"], first["logger"], first["message"], first["release"]) == ("warning", "moon_ops.tried", "3 rows of Größe", 7)
    assert "ValueError: broken" in str(second["exception"])
    assert "release" not in third


def test_a_stage_tells_counts_and_no_text_of_the_shop(caplog: pytest.LogCaptureFixture) -> None:
    assert facts_of(REPORT) == {"items": 3, "contract_id": "c-1", "refused": 3}
    assert facts_of((REPORT, 4), ("one", "version")) == {"one.items": 3, "one.contract_id": "c-1", "one.refused": 3, "version": 4}

    @stage("tried")
    def work(settings: str, encoder: int) -> Report:
        if encoder > 1:
            raise InputError("there is no such encoder", action="name another one")
        return REPORT

    with caplog.at_level(logging.INFO, "moon_ops"):
        assert work("a", encoder=1) is REPORT
        with pytest.raises(InputError):
            work("a", encoder=2)
    assert [record.message for record in caplog.records] == ["tried has ended"], "what has failed has not ended"


def test_every_counter_of_a_job_has_a_name_in_prometheus() -> None:
    import yaml

    from moon_ops.settings import ROOT

    mapped = {one["match"]: one["name"] for one in yaml.safe_load((ROOT / "deploy/statsd/mapping.yml").read_text())["mappings"]}
    counted = {metric for metrics in jobs.COUNTERS.values() for metric in metrics.values()}
    assert {f"airflow.moon.{metric}": f"moon_job_{metric}" for metric in counted}.items() <= mapped.items()
    named = {name for match, name in mapped.items() if match.startswith("airflow.moon.")}
    page = (ROOT / "docs" / "observability.md").read_text()
    assert not {name for name in named if f"`{name}`" not in page}


def test_another_word_for_the_log_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOON_LOG", "xml")
    with pytest.raises(SettingsError, match=r"MOON_LOG = 'xml' is not one of lines, json"):
        Settings.from_environment()


def test_where_nobody_listens_nothing_is_imported() -> None:
    program = """
import sys
from moon_ops.telemetry.stages import stage
@stage("tried")
def work(encoder): return encoder
assert work(1) == 1
print(sorted(name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "structlog", "airflow", "openlineage")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.strip() == "[]"
