"""docker-compose.yml, read and not started: pins, secrets, limits, and that it agrees with the settings, the images and make stack."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from moon_ops import __version__
from moon_ops.cli import stack
from moon_ops.settings import Settings, variable

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|FERNET|JWT|BROKER_URL|CONN$|RESULT_BACKEND|REDIS$|REGISTRY|LOCKS|STORE_URI|AUTH$")
INNOCENT = {"AIRFLOW__CORE__AUTH_MANAGER"}  # whose names look like secrets
WRITES_TO_ITS_ROOT = {"s3"}  # its image changes owners and user itself


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_limited_watched_and_restarted(name: str) -> None:
    service = SERVICES[name]
    image = re.sub(r"\$\{STACK_\w+_IMAGE:-(.*)\}", r"\1", service["image"])
    assert re.fullmatch(r"[a-z./-]+:v?\d+\.\d+(\.\d+)?[a-z-]*", image), "a version, not latest"
    assert service["mem_limit"]
    assert service["cpus"]
    assert service["healthcheck"].get("test") or name in stack.ONCE
    assert service["restart"] == ("no" if name in stack.ONCE else "unless-stopped")
    assert len(service["profiles"]) == 1
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    if name not in WRITES_TO_ITS_ROOT:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_what_runs_is_what_make_stack_waits_for() -> None:
    for profile, names in stack.SERVICES.items():
        assert {name for name, service in SERVICES.items() if service["profiles"] == [profile]} == {*names} | (
            set(stack.ONCE) if profile == "core" else set()
        )
    assert {service["image"] for service in SERVICES.values() if "build" in service} == {
        f"${{STACK_{target.upper()}_IMAGE:-{stack.image(target, {})}}}" for target in stack.IMAGES
    }
    ports = {re.sub(r".*STACK_([A-Z]+)_PORT:-(\d+)\}.*", r"\1 \2", port) for s in SERVICES.values() for port in s.get("ports", [])}
    assert ports == {f"{name} {port}" for name, port in stack.PORTS.items()}


def test_ports_listen_on_this_machine_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("${STACK_BIND:-127.0.0.1}:") for port in published)


def test_no_secret_has_a_default() -> None:
    for name, service in SERVICES.items():
        for key, value in (service.get("environment") or {}).items():
            if SECRET.search(key) and key not in INNOCENT:
                assert re.search(r"\$\{\w+(:\?[^}]+)?\}", str(value)), f"{name}: {key} is written down"
    assert not re.findall(r"\$\{(?!STACK_|MOON_ALERT_)\w+:?-", TEXT), "only ports, names of images and whom to alert have defaults"
    required = set(re.findall(r"\$\{(\w+):\?", TEXT))
    assert required == set(stack.SECRETS), "each is made by make stack, and refused if it is empty"
    assert set(re.findall(r"\$\{(\w+)\}", TEXT)) <= required


def test_every_setting_exists() -> None:
    known = {variable(field) for field in Settings.model_fields}
    told = {key for service in SERVICES.values() for key in service.get("environment") or {} if key.startswith("MOON_")}
    assert told <= known
    assert {"MOON_LAKE", "MOON_REDIS", "MOON_TRACKING_URI", "MOON_FEAST_REGISTRY"} <= told


def test_services_with_a_shard_each_name_each_other() -> None:
    dealt = yaml.safe_load((ROOT / "docker-compose.shards.yml").read_text())["services"]
    shard = dealt.pop("shard-1")
    assert ROOT / shard["extends"]["file"] == ROOT / "docker-compose.yml"
    assert {*dealt, shard["extends"]["service"]} <= set(SERVICES)
    told = {name: service["environment"] for name, service in {**dealt, "shard-1": shard}.items()}
    assert set().union(*told.values()) <= {variable(field) for field in Settings.model_fields}
    assert {environment["MOON_INDEX_SHARDS"] for environment in told.values()} == {"2"}
    assert told["serving-1"] == told["serving-2"]
    assert told["serving-1"]["MOON_INDEX_PEERS"] == f"{told['shard-1']['MOON_INDEX_SHARD']}=http://shard-1:8321"
    assert not told["shard-1"]["MOON_INDEX_PEERS"], "it waits for nobody"
    assert int(told["shard-1"]["MOON_QUEUE"]) == 2 * Settings.model_fields["queue"].default


def test_the_local_topology_is_in_step() -> None:
    lines = (ROOT / "deploy" / "local.env").read_text().splitlines()
    local = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    composed = {key: re.sub(r"\$\{(\w+)[^}]*\}", r"$\1", value) for key, value in FILE["x-moon"].items()}
    hosts = {"postgres/": "127.0.0.1/", "redis:": "127.0.0.1:", "//mlflow:": "//127.0.0.1:", "//s3:": "//127.0.0.1:"}
    for name, here in hosts.items():
        composed = {key: value.replace(name, here) for key, value in composed.items()}
    assert {**local, "MOON_HOME": ""} == {**composed, "MOON_HOME": ""}


def test_services_that_are_awaited_exist() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES, name
            assert (how["condition"] == "service_completed_successfully") == (needed in stack.ONCE)
    written = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {volume for volume in written if not volume.startswith(".")} == set(FILE["volumes"])
    assert all((ROOT / volume).exists() for volume in written if volume.startswith("."))


def test_the_images_are_of_this_version_and_their_base_is_pinned() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert stack.image("train", {}) == f"moon-train:{__version__}"
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+$", text, re.M)
    assert {line for line in text.splitlines() if line.startswith("FROM python:")} == {
        "FROM python:${PYTHON} AS wheel",
        "FROM python:${PYTHON} AS packages",
        "FROM python:${PYTHON} AS runtime",
    }
    assert "USER 10001:10001" in text
    assert text.count("COPY --from=wheel /dist /dist") == text.count("LABEL moon.made_of=${MADE_OF}") == len(stack.IMAGES)
    assert "from=wheel,source" not in text, "a builder may not notice that a mounted wheel has changed"
    copied = {word for line in text.splitlines() if re.match(r"COPY (?!--from)", line) for word in line.split()[1:-1]}
    assert copied <= set(stack.BUILT_FROM), "what the fingerprint covers"
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept


def test_prometheus_and_the_proxy_ask_services_that_exist() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    asked = {target.split(":")[0] for job in scraped for group in job["static_configs"] for target in group["targets"]}
    asked |= {word.split(":")[0] for word in re.findall(r"[\w-]+:8321", (ROOT / "deploy/proxy/haproxy.cfg").read_text())}
    assert asked <= set(SERVICES)
    assert {"serving-1", "serving-2", "statsd"} <= asked


def exported() -> set[str]:
    """The metrics of the service, as docs/reference.md lists them, and Airflow's, as the mapping names them."""
    reference = (ROOT / "docs" / "reference.md").read_text()
    ours = set(re.findall(r"`((?:moon|process)_\w+)`", reference))
    mapped = yaml.safe_load((ROOT / "deploy/statsd/mapping.yml").read_text())["mappings"]
    return ours | {mapping["name"] for mapping in mapped if mapping.get("action") != "drop"}


def metrics(expression: str) -> set[str]:
    found = re.findall(r"\b(?:moon|airflow|process)_\w+\b(?!\")", re.sub(r'"[^"]*"', '""', expression))
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found}


def test_the_dashboard_shows_what_is_exported() -> None:
    board = json.loads((ROOT / "deploy/grafana/dashboards/moon.json").read_text())
    shown = {panel["title"]: set().union(*(metrics(target["expr"]) for target in panel["targets"])) for panel in board["panels"]}
    assert all(shown.values())
    assert set().union(*shown.values()) <= exported()
    for word in ("Freshness", "Coverage", "Latency", "Recall probe", "Drift", "DAGs"):
        assert any(title.startswith(word) for title in shown), word
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"] for source in sources}
    assert all(panel["description"] for panel in board["panels"])


def test_alerts_name_what_is_exported() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert set().union(*(metrics(rule["expr"]) for rule in rules)) <= exported()
    assert all(rule["annotations"]["summary"] for rule in rules)


def test_no_environment_file_is_ever_committed() -> None:
    ignored = subprocess.run(["git", "check-ignore", ".env"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.stdout == ".env\n"
