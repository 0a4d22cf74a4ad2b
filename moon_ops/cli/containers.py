"""Containers of a compose file: which program runs them here, what they are doing, and the last lines of one that fails.

Docker and Podman are both asked through their command lines. Nothing but Python is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moon_ops.errors import InstallError, ServiceError

OLDEST = (1, 3)  # of podman-compose: which knows profiles
MISSING = "there is no program here that runs a compose file"
INSTALL = (
    "install Docker with its compose plugin (Debian, Ubuntu: apt install docker.io docker-compose-v2), "
    "or Podman and podman-compose 1.3 or newer (apt install podman; pip install podman-compose)"
)
LABEL = "com.docker.compose"
LINES = 15  # of a failed service's log
SECONDS = 2.0  # between two looks
PATIENCE = 120.0  # seconds in which the engine must answer


@dataclass(frozen=True)
class Container:
    """One container of the project: its service, what it is doing, and with which exit code it ended."""

    id: str
    service: str
    image: str  # its id
    named: str  # as it was asked for
    status: str
    health: str
    code: int

    @property
    def ended(self) -> bool:
        """Whether it has done its work and gone."""
        return self.status in ("exited", "stopped") and self.code == 0

    @property
    def well(self) -> bool:
        """Whether it runs, and answers if it is asked."""
        return self.status == "running" and self.health in ("healthy", "none")

    def __str__(self) -> str:
        if self.status == "running":
            return f"{self.service}: {self.health}"
        return f"{self.service}: {self.status}" + (f" with exit code {self.code}" if self.code else "")


@dataclass(frozen=True)
class Compose:
    """A compose file, and the programs that run it: ``words`` the file, ``engine`` one container."""

    words: tuple[str, ...]
    engine: str
    project: str
    file: Path
    environment: Mapping[str, str] = field(repr=False)  # it holds secrets

    def run(self, *words: str, check: bool = True) -> int:
        """A command of compose, its output on the terminal. :class:`ServiceError` if it fails and is to be checked."""
        own = self.file.with_suffix(".override.yml")  # a machine's own changes, as compose reads them by itself
        files = [word for file in (self.file, own) if file.is_file() for word in ("--file", str(file))]
        return self._call([*self.words, "--project-name", self.project, *files, *words], check=check)

    def call(self, *words: str, check: bool = True) -> int:
        """The same of the engine."""
        return self._call([self.engine, *words], check=check)

    def _call(self, command: Sequence[str], *, check: bool) -> int:
        done = subprocess.run(command, cwd=self.file.parent, env=dict(self.environment), stdin=subprocess.DEVNULL, check=False)
        if check and done.returncode:
            raise ServiceError(f"{' '.join(command[:8])} … ended with exit code {done.returncode}", action="read what it says above")
        return done.returncode

    def asked(self, *words: str) -> str | None:
        """What the engine answers, or nothing if it refuses."""
        command = [self.engine, *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=dict(self.environment), check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired:  # e.g. a health check that asks a store that hangs
            return None
        return done.stdout if done.returncode == 0 else None

    def containers(self) -> list[Container]:
        """All of the project, running or not."""
        ids = (self.asked("ps", "--all", "--quiet", "--filter", f"label={LABEL}.project={self.project}") or "").split()
        told = self.asked("inspect", *ids) if ids else None  # one that has just gone makes it fail; the next look finds the others
        return sorted((self._read(one) for one in json.loads(told or "[]")), key=lambda container: container.service)

    def _read(self, told: dict[str, Any]) -> Container:
        state, labels = told["State"], told["Config"]["Labels"]
        wanted = told["Config"].get("Healthcheck") or {}
        health = str((state.get("Health") or state.get("Healthcheck") or {}).get("Status") or "none")
        if not wanted.get("Test") or wanted["Test"] == ["NONE"]:
            health = "none"
        elif self.engine == "podman" and state["Status"] == "running":  # only systemd asks by itself
            health = "healthy" if self.asked("healthcheck", "run", told["Id"]) is not None else "unhealthy"
        service, code = labels.get(f"{LABEL}.service", "?"), int(state.get("ExitCode") or 0)
        return Container(told["Id"], service, told["Image"], told["Config"]["Image"], state["Status"], health, code)

    def image_id(self, name: str) -> str:
        """Of the image that has the name now; empty if there is none."""
        return (self.asked("image", "inspect", "--format", "{{.Id}}", name) or "").strip()

    def remove_outdated(self) -> None:
        """Containers of an image that has been built anew, and those that need them: podman-compose keeps them as they are."""
        if self.engine == "podman":
            old = [found.id for found in self.containers() if self.image_id(found.named) not in ("", found.image)]
            if old:
                self.call("rm", "--force", "--depend", *old)

    def last_lines(self, container: Container) -> str:
        """The end of a container's log."""
        words = [self.engine, "logs", "--tail", str(LINES), container.id]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(self.environment), check=False)
        return "\n".join(f"    {line}" for line in done.stdout.splitlines()[-LINES:])


def find(file: Path, project: str, environment: Mapping[str, str] = os.environ) -> Compose:
    """Who runs compose files here. :class:`InstallError` if nobody does, :class:`ServiceError` if the engine does not answer."""
    tried = ((("docker", "compose"), "docker"), (("podman", "compose"), "podman"), (("podman-compose",), "podman"))
    for words, engine in tried:
        if shutil.which(words[0]) and shutil.which(engine) and _new_enough([*words, "version"]):
            if subprocess.run([engine, "info"], capture_output=True, check=False).returncode:
                raise ServiceError(f"{engine} does not answer", action=f"start it, and look with `{engine} info`")
            return Compose(words, engine, project, file, environment)
    raise InstallError(MISSING, action=INSTALL)


def _new_enough(command: Sequence[str]) -> bool:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    old = re.search(r"podman-compose\w*\s+version:?\s+(\d+)\.(\d+)", done.stdout)
    return done.returncode == 0 and (old is None or (int(old[1]), int(old[2])) >= OLDEST)


def wait(compose: Compose, wanted: Sequence[str], seconds: float, *, once: Sequence[str] = (), told: Callable[[str], None] = print) -> None:
    """Until all ``wanted`` services are well, or have ended if they run ``once``.

    :class:`ServiceError` names a service that has failed, or that is not well after ``seconds``, with the last lines of its log.
    """
    until, shown = time.monotonic() + seconds, ""
    while True:
        found = {container.service: container for container in compose.containers()}
        missing = [name for name in wanted if not (name in found and (found[name].ended if name in once else found[name].well))]
        if not missing:
            return
        line = "waiting for " + ", ".join(missing)
        if line != shown:
            told(f"  {line}")
        shown = line
        failed = [c for c in found.values() if c.service in missing and c.service in once and c.status in ("exited", "stopped") and c.code]
        if failed or time.monotonic() > until:
            raise _unwell(compose, failed or [found[name] for name in missing if name in found], missing)
        time.sleep(SECONDS)


def _unwell(compose: Compose, failed: Sequence[Container], missing: Sequence[str]) -> ServiceError:
    described = "\n".join(f"  {container}\n{compose.last_lines(container)}" for container in failed)
    problem = f"these services are not well: {', '.join(container.service for container in failed) or ', '.join(missing)}\n{described}\n"
    return ServiceError(problem, action=f"{compose.engine} logs of that container has more; make stack goes on where it stopped")
