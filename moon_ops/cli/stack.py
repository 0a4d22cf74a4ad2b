"""``make stack``: the whole product in containers: built, started, awaited, tried with the tiny shop.

Needs nothing but Python and an engine; ``python -m moon_ops.cli.stack up | down | reset`` in a checkout. ``.env`` is written once, with
random secrets, and never overwritten.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import secrets
import shlex
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from moon_ops import __version__
from moon_ops.cli.containers import Compose, find, wait
from moon_ops.errors import MoonError, ServiceError, SettingsError

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("core", "observability")
STORES = ("postgres", "redis", "s3")
ONCE = ("bucket", "airflow-init")  # services that do their work and end
CORE = (
    *STORES,
    "mlflow",
    "airflow-api",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-triggerer",
    "airflow-worker",
    "serving-1",
    "serving-2",
    "proxy",
)
SERVICES = {"core": CORE, "observability": ("prometheus", "statsd", "grafana")}
IMAGES = ("train", "serve")
DIRECTORIES = ("moon_ops", "dags", "feature_repo", "models")
BUILT_FROM = ("Dockerfile", "pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE", *DIRECTORIES)
PORTS = {"SEARCH": 8321, "AIRFLOW": 8080, "MLFLOW": 5000, "GRAFANA": 3000, "PROMETHEUS": 9090}
SECRETS = (
    "POSTGRES_PASSWORD",
    "AIRFLOW_DB_PASSWORD",
    "MLFLOW_DB_PASSWORD",
    "FEAST_DB_PASSWORD",
    "REDIS_PASSWORD",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
    "AIRFLOW_FERNET_KEY",
    "AIRFLOW_SECRET_KEY",
    "AIRFLOW_JWT_SECRET",
    "AIRFLOW_ADMIN_PASSWORD",
    "GRAFANA_ADMIN_PASSWORD",
    "ITEMS_TOKEN",
)
MINUTES = 15.0  # that a start may take
DEMO = ("moon", "demo", "--size", "tiny", "--encoder", "moon-nano")


def write_environment(file: Path) -> bool:
    """Random secrets into ``file``, readable by its owner alone; False if there is one already, which is left as it is."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as written:
        written.write("# Secrets of docker-compose.yml, made by make stack. Keep it: the data in the volumes is locked with these.\n")
        written.write(f"COMPOSE_PROFILES={','.join(PROFILES)}\n")
        written.writelines(f"{name}={_secret(name)}\n" for name in SECRETS)
    return True


def _secret(name: str) -> str:
    """64 hexadecimal digits, which no address and no option can misread; Fernet wants 32 bytes in base64."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode() if name.endswith("FERNET_KEY") else secrets.token_hex(32)


def read_environment(file: Path, surrounding: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``file`` under those that are set around. :class:`SettingsError` names every secret that is empty or missing."""
    lines = (re.fullmatch(r"\s*([A-Z0-9_]+)=(.*)", line) for line in file.read_text().splitlines())
    known = {**{line[1]: line[2].strip().strip("\"'") for line in lines if line}, **surrounding}
    empty = [name for name in SECRETS if not known.get(name)]
    if empty:
        problem = f"{', '.join(empty)} of {file} have no value"
        raise SettingsError(problem, action="write one, or move the file away: make stack makes another")
    return known


def fingerprint(root: Path = ROOT) -> str:
    """A hash of everything that the images are built from."""
    found = hashlib.sha256()
    for top in BUILT_FROM:
        for path in sorted(p for p in [root / top, *(root / top).rglob("*")] if p.is_file() and "__pycache__" not in p.parts):
            found.update(path.relative_to(root).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def image(target: str, environment: Mapping[str, str]) -> str:
    """The name of an image of ours, as the compose file has it."""
    return environment.get(f"STACK_{target.upper()}_IMAGE") or f"moon-{target}:{__version__}"


def build(compose: Compose) -> None:
    """Both images, unless they were built of the same files; ``STACK_BUILD`` has more words for the engine, e.g. ``--build-arg …``."""
    made_of, more = fingerprint(), shlex.split(compose.environment.get("STACK_BUILD", ""))
    for target in IMAGES:
        name = image(target, compose.environment)
        told = compose.asked("image", "inspect", "--format", '{{index .Config.Labels "moon.made_of"}}', name)
        if (told or "").strip() == made_of:
            continue
        print(f"building {name}", flush=True)
        words = ["--target", target, "--tag", name, "--build-arg", f"MADE_OF={made_of}", *more, "."]
        compose.call("build", *(("--format", "docker") if compose.engine == "podman" else ()), *words)


def start(compose: Compose, profiles: Sequence[str]) -> None:
    """Stores, then what is to be done once, then everything, each awaited: not every engine follows the order of the file."""
    rest = [name for profile in profiles for name in SERVICES[profile]]
    compose.remove_outdated()
    current = compose.image_id(image("train", compose.environment))
    done = {found.service for found in compose.containers() if found.ended and found.image == current}
    for names in (STORES, *([name] for name in ONCE if name not in done), rest):
        print(f"starting {', '.join(names)}", flush=True)
        compose.run("up", "--detach", "--no-build", "--no-deps", *names)
        wait(compose, names, MINUTES * 60, once=ONCE)


def address(name: str, environment: Mapping[str, str]) -> str:
    """Where a service can be reached from this machine."""
    bound = environment.get("STACK_BIND") or "127.0.0.1"
    return f"http://{'127.0.0.1' if bound == '0.0.0.0' else bound}:{environment.get(f'STACK_{name}_PORT') or PORTS[name]}"


def answers(url: str, fields: Mapping[str, str] | None = None) -> str | None:
    """What a page says, or nothing if it does not answer with a 2xx."""
    data = urllib.parse.urlencode(fields).encode() if fields else None
    try:
        with urllib.request.urlopen(url, data, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:  # also of an HTTP status
        return None


def try_it(compose: Compose) -> None:
    """The tiny shop through the whole stack, if nothing is in it; then one search through the proxy, if something is served."""
    search = address("SEARCH", compose.environment)
    if answers(f"{search}/ready") is None:
        items, champion = contents(compose)
        if items and champion is None:
            print(f"the lake has {items} items and nothing is promoted yet: start moon_retrain in Airflow")
            return
        if not items:
            print("running the tiny shop through it", flush=True)
            compose.run("exec", "-T", "airflow-worker", *DEMO)
    until = time.monotonic() + 120
    while (found := answers(f"{search}/v1/search", {"text": "lamp", "k": "3"})) is None:
        if time.monotonic() > until:
            raise ServiceError(f"no search is answered at {search}", action=f"ask {search}/ready, and read the logs of serving-1")
        time.sleep(2)
    print(f"a search for “lamp” answers: {found[:160]}…")


def contents(compose: Compose) -> tuple[int, int | None]:
    """Items of the lake, and the champion. :class:`ServiceError` if the worker cannot say: what is not known to be empty is not filled."""
    worker = next((one.id for one in compose.containers() if one.service == "airflow-worker"), "")
    told = compose.asked("exec", worker, "moon", "status", "--json") if worker else None
    if not told:
        raise ServiceError("the worker does not say what is in the lake", action="read what `moon doctor` says in airflow-worker")
    found = json.loads(told.strip().splitlines()[-1])
    if found["items"] is None:
        raise ServiceError(found["lake_away"], action="bring the store back, and run make stack again")
    return int(found["items"]), found["champion"]


def addresses(environment: Mapping[str, str], profiles: Sequence[str]) -> str:
    """Where to look, and as whom."""
    lines = [
        f"  search      {address('SEARCH', environment)}/",
        f"  Airflow     {address('AIRFLOW', environment)}/   user admin, password AIRFLOW_ADMIN_PASSWORD in .env",
        f"  MLflow      {address('MLFLOW', environment)}/",
    ]
    if "observability" in profiles:
        lines += [
            f"  Grafana     {address('GRAFANA', environment)}/   user admin, password GRAFANA_ADMIN_PASSWORD in .env",
            f"  Prometheus  {address('PROMETHEUS', environment)}/",
        ]
    return "\n".join(lines)


def up(root: Path, profiles: Sequence[str], *, demo: bool = True) -> None:
    """Everything, from nothing or from what is there."""
    began, file = time.monotonic(), root / ".env"
    find(root / "docker-compose.yml", "moon")  # first: without an engine no secrets are made
    if write_environment(file):
        print(f"wrote {file} with random secrets")
    compose = _compose(root, profiles)
    build(compose)
    start(compose, profiles)
    if demo:
        try_it(compose)
    print(f"The stack is up, after {time.monotonic() - began:.0f} s:\n{addresses(compose.environment, profiles)}")
    print("make stack-down stops it and keeps the data; docs/operations.md says how to operate it")


def down(root: Path) -> None:
    """Stop; volumes and ``.env`` stay."""
    _compose(root).run("down")
    print("stopped; the data is kept: make stack starts it again")


def reset(root: Path, *, sure: bool) -> None:
    """Stop and remove the data, if ``sure`` or after a question; ``.env`` stays."""
    compose = _compose(root)
    if not sure:
        print("This removes all data of the stack: lake, releases, features, Airflow's history. Type yes to go on: ", end="", flush=True)
        if sys.stdin.readline().strip() != "yes":
            print("nothing was removed")
            return
    compose.run("down", "--volumes")
    print("stopped, and the data is gone")


def _compose(root: Path, profiles: Sequence[str] = PROFILES) -> Compose:
    file = root / ".env"
    if not file.is_file():
        raise SettingsError(f"there is no {file}, so there is no stack here", action="make stack writes it")
    counted = {} if "observability" in profiles else {"STACK_STATSD": "False"}  # nobody listens
    environment = {**counted, **read_environment(file, os.environ), "COMPOSE_PROFILES": ",".join(PROFILES)}
    return find(root / "docker-compose.yml", environment.get("COMPOSE_PROJECT_NAME") or "moon", environment)


def main(words: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m moon_ops.cli.stack", description="The whole product in containers.")
    commands = parser.add_subparsers(dest="command", required=True)
    begun = commands.add_parser("up", help="build, start, wait until healthy, run the tiny shop through it")
    begun.add_argument("--profile", action="append", choices=PROFILES, help="all by default; may be given again")
    begun.add_argument("--no-demo", action="store_true", help="start it only")
    commands.add_parser("down", help="stop, and keep the data")
    commands.add_parser("reset", help="stop, and remove the data").add_argument("--yes", action="store_true", help="without a question")
    asked = parser.parse_args(words)
    try:
        if asked.command == "up":
            up(ROOT, asked.profile or PROFILES, demo=not asked.no_demo)
        elif asked.command == "down":
            down(ROOT)
        else:
            reset(ROOT, sure=asked.yes)
    except MoonError as fault:
        print(f"moon: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
