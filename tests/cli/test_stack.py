"""make stack, up to the engine: its secrets, what it says without an engine, and which service it says is not well."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from moon_ops.cli import containers, stack
from moon_ops.cli.containers import Compose
from moon_ops.errors import InstallError, ServiceError, SettingsError

ROOT = Path(__file__).resolve().parents[2]


def script(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)


def test_secrets_are_random_complete_private_and_written_once(tmp_path: Path) -> None:
    file, other = tmp_path / ".env", tmp_path / "other.env"
    assert stack.write_environment(file)
    assert stack.write_environment(other)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    known, others = stack.read_environment(file, {}), stack.read_environment(other, {})
    assert len({known[name] for name in stack.SECRETS} | {others[name] for name in stack.SECRETS}) == 2 * len(stack.SECRETS)
    before = file.read_text()
    assert not stack.write_environment(file)
    assert file.read_text() == before


def test_an_empty_secret_is_named(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    stack.write_environment(file)
    lines = [line if not line.startswith("REDIS_PASSWORD=") else "REDIS_PASSWORD=" for line in file.read_text().splitlines()]
    file.write_text("\n".join(line for line in lines if not line.startswith("S3_SECRET_KEY=")))
    with pytest.raises(SettingsError, match=r"REDIS_PASSWORD, S3_SECRET_KEY of .*\.env have no value"):
        stack.read_environment(file, {})
    assert stack.read_environment(file, {"REDIS_PASSWORD": "a", "S3_SECRET_KEY": "b"})["REDIS_PASSWORD"] == "a"


def test_what_is_around_wins_and_quotes_are_taken_off(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    stack.write_environment(file)
    with file.open("a") as more:
        more.write('STACK_SEARCH_PORT="9000"\nSTACK_BIND=0.0.0.0\n')
    known = stack.read_environment(file, {"STACK_BIND": ""})
    assert stack.address("SEARCH", known) == "http://127.0.0.1:9000"
    assert stack.address("GRAFANA", {"STACK_BIND": "0.0.0.0"}) == "http://127.0.0.1:3000"
    assert "Grafana" in stack.addresses(known, stack.PROFILES)
    assert "Grafana" not in stack.addresses(known, ("core",))


def test_without_an_engine_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallError, match=r"no program here that runs a compose file → install Docker"):
        containers.find(ROOT / "docker-compose.yml", "moon")


def test_an_old_podman_compose_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path / "podman", "import sys; sys.exit(sys.argv[1] == 'compose')")
    script(tmp_path / "podman-compose", "print('podman-composer version  1.0.3')")
    with pytest.raises(InstallError, match=r"podman-compose 1\.3 or newer"):
        containers.find(ROOT / "docker-compose.yml", "moon")
    script(tmp_path / "podman-compose", "print('podman-compose version 1.6.0')")
    found = containers.find(ROOT / "docker-compose.yml", "moon")
    assert (found.words, found.engine) == (("podman-compose",), "podman")
    script(tmp_path / "docker", "import sys; sys.exit(sys.argv[1] == 'info')")
    with pytest.raises(ServiceError, match="docker does not answer → start it"):
        containers.find(ROOT / "docker-compose.yml", "moon")


def told(service: str, status: str = "running", health: str = "", code: int = 0) -> dict[str, object]:
    labels = {f"{containers.LABEL}.service": service}
    config = {"Labels": labels, "Image": "moon-train:0.1.0", "Healthcheck": {"Test": ["CMD", "true"]} if health else None}
    state = {"Status": status, "ExitCode": code, **({"Health": {"Status": health}} if health else {})}
    return {"Id": service, "Image": "sha256:1", "State": state, "Config": config}


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """An engine that answers what lies in a file; its logs are three lines."""
    body = f"""
import sys
words = sys.argv[1:]
if words[0] == "ps": print("some ids")
if words[0] == "inspect": print(open({str(tmp_path / "told.json")!r}).read())
if words[0] == "logs": print("starting", "cannot open the lake", sep="\\n"); print("Traceback", file=sys.stderr)
"""
    script(tmp_path / "docker", body)
    monkeypatch.setattr(containers, "SECONDS", 0.01)
    environment = {**os.environ, "PATH": str(tmp_path)}
    monkeypatch.setenv("PATH", str(tmp_path))
    return Compose(("docker", "compose"), "docker", "moon", tmp_path / "docker-compose.yml", environment)


def test_it_waits_until_all_are_well(compose: Compose, tmp_path: Path) -> None:
    found = [told("redis", health="healthy"), told("bucket", status="exited"), told("proxy"), told("grafana", status="exited", code=1)]
    (tmp_path / "told.json").write_text(json.dumps(found))
    containers.wait(compose, ("redis", "proxy", "bucket"), 5, once=("bucket",))
    assert [str(one) for one in compose.containers() if not (one.well or one.ended)] == ["grafana: exited with exit code 1"]


def test_what_is_not_well_in_time_is_named_with_its_last_lines(compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "told.json").write_text(json.dumps([told("redis", health="healthy"), told("mlflow", health="unhealthy")]))
    lines: list[str] = []
    with pytest.raises(ServiceError, match=r"not well: mlflow\n  mlflow: unhealthy\n    starting\n    cannot open the lake\n") as fault:
        containers.wait(compose, ("redis", "mlflow"), 0.05, told=lines.append)
    assert "Traceback" in str(fault.value)
    assert lines == ["  waiting for mlflow"]


def test_a_service_that_fails_its_only_task_is_not_waited_for(compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "told.json").write_text(json.dumps([told("bucket", status="exited", code=3)]))
    with pytest.raises(ServiceError, match="bucket: exited with exit code 3"):
        containers.wait(compose, ("bucket",), 600, once=("bucket",))


def test_a_command_that_fails_is_told(compose: Compose, tmp_path: Path) -> None:
    script(tmp_path / "docker", "import sys; sys.exit(7)")
    with pytest.raises(ServiceError, match=r"docker compose --project-name moon .* ended with exit code 7"):
        compose.run("up")
    assert compose.run("up", check=False) == 7


@pytest.mark.parametrize(("engine", "removed"), [("podman", ["worker"]), ("docker", [])])
def test_containers_of_an_image_that_was_built_anew_are_removed(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, removed: list[str]
) -> None:
    """Docker's compose does it by itself."""
    (tmp_path / "told.json").write_text(json.dumps([told("worker"), told("redis") | {"Image": "sha256:2"}]))
    asked: list[str] = []
    here = Compose((engine,), engine, "moon", compose.file, compose.environment)
    monkeypatch.setattr(Compose, "image_id", lambda self, name: "sha256:2")
    monkeypatch.setattr(Compose, "call", lambda self, *words, check=True: asked.extend(words[3:]) or 0)
    monkeypatch.setattr(Compose, "asked", lambda self, *words: "ids" if words[0] == "ps" else (tmp_path / "told.json").read_text())
    here.remove_outdated()
    assert asked == removed


@pytest.mark.parametrize(
    ("items", "champion", "ready", "ran", "says"),
    [
        (0, None, None, True, "running the tiny shop"),
        (3000, None, None, False, "the lake has 3000 items and nothing is promoted yet"),
        (3000, 4, None, False, "a search for"),
        (3000, 4, "yes", False, "a search for"),
    ],
)
def test_the_tiny_shop_is_put_into_an_empty_lake_alone(
    compose: Compose,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    items: int,
    champion: int | None,
    ready: str | None,
    ran: bool,
    says: str,
) -> None:
    """It was taken into any lake whose services were not ready: into a shop's own, at a repair."""
    told_json = [told("airflow-worker")]
    (compose.file.parent / "told.json").write_text(json.dumps(told_json))
    status = json.dumps({"champion": champion, "items": items})
    script(
        compose.file.parent / "docker",
        f"""
import sys
words = sys.argv[1:]
if words[0] == "ps": print("some ids")
if words[0] == "inspect": print(open({str(compose.file.parent / "told.json")!r}).read())
if words[0] == "exec": print("a line before"); print({status!r})
""",
    )
    asked: list[str] = []
    monkeypatch.setattr(Compose, "run", lambda self, *words, check=True: asked.extend(words) or 0)
    monkeypatch.setattr(stack, "answers", lambda url, fields=None: ready if url.endswith("/ready") else "found")
    stack.try_it(compose)
    assert ("demo" in asked) == ran
    assert says in capsys.readouterr().out


def test_what_is_not_known_to_be_empty_is_not_filled(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    (compose.file.parent / "told.json").write_text(json.dumps([told("airflow-worker")]))
    monkeypatch.setattr(stack, "answers", lambda url, fields=None: None)
    with pytest.raises(ServiceError, match="the worker does not say what is in the lake"):
        stack.try_it(compose)


def test_without_the_observability_no_metrics_are_sent(compose: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stack, "find", lambda file, project, environment: Compose(("docker",), "docker", project, file, environment))
    stack.write_environment(tmp_path / ".env")
    assert stack._compose(tmp_path, ("core",)).environment["STACK_STATSD"] == "False"
    assert "STACK_STATSD" not in stack._compose(tmp_path).environment


def test_secrets_are_not_shown_with_the_engine() -> None:
    assert "hidden" not in repr(Compose(("docker",), "docker", "moon", Path("x"), {"REDIS_PASSWORD": "hidden"}))


def test_the_fingerprint_follows_what_images_are_built_from(tmp_path: Path) -> None:
    (tmp_path / "moon_ops").mkdir()
    (tmp_path / "moon_ops" / "a.py").write_text("1")
    (tmp_path / "Dockerfile").write_text("FROM x")
    before = stack.fingerprint(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("no part of an image")
    assert stack.fingerprint(tmp_path) == before
    (tmp_path / "moon_ops" / "a.py").write_text("2")
    assert stack.fingerprint(tmp_path) != before


def test_reset_asks_and_keeps_the_data_without_a_yes(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(stack, "_compose", lambda root: compose)
    monkeypatch.setattr(Compose, "run", lambda self, *words, check=True: asked.append(words) or 0)
    for typed, expected in (("no\n", []), ("yes\n", [("down", "--volumes")])):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        stack.reset(ROOT, sure=False)
        assert asked == expected
    assert "nothing was removed" in capsys.readouterr().out


def test_it_needs_nothing_but_python() -> None:
    """No .venv: on a machine with a container engine, the packages lie in the images."""
    code = "import sys, moon_ops.cli.stack; print(sorted({name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "['__main__', 'moon_ops']\n", done.stderr


def test_down_without_a_stack_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="so there is no stack here → make stack writes it"):
        stack.down(tmp_path)
