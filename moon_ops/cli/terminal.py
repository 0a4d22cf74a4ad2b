"""What the commands have in common: their settings, the present time, and how a report is printed."""

from __future__ import annotations

import datetime as dt
import getpass
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from moon_ops import __version__
from moon_ops.dealing import require_known
from moon_ops.errors import InputError
from moon_ops.startup import hurry
from moon_ops.telemetry import logs

if TYPE_CHECKING:
    from moon_ops.release.promotion import Wish
    from moon_ops.settings import Settings

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a value of the encoder's recipe, e.g. training.batch=256; may be given again.", show_default=False),
]
SetClick = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a value of the click model's recipe, e.g. batch=256; may be given again.", show_default=False),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="local, or ray: the cluster that RAY_ADDRESS names, else one here. Default: MOON_ENGINE, local.",
        show_default=False,
    ),
]


TRAINS = ("demo", "train", "ctr", "study", "exchange-rate")  # commands that may be stopped in the middle of a training


class Without(MetaPathFinder):
    """Optional packages that a process does without: a library that looks for one is told that it is not installed, and goes on."""

    def __init__(self, packages: Iterable[str]) -> None:
        self.packages = frozenset(packages)

    @classmethod
    def start(cls, packages: Iterable[str]) -> None:
        """From now on, in the whole process: for the entry point of a command alone, before anything is imported."""
        if packages := list(packages):
            sys.meta_path.insert(0, cls(packages))

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        """Refuses the packages; leaves every other name to the finders after this one."""
        if name in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}: this command does without it", name=name)
        return None


def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version, and end.", is_eager=True)] = False,
) -> None:
    """What ``moon`` takes without a command."""
    if version:
        typer.echo(f"moon_ops {__version__}")
        raise typer.Exit


def stop_at_once(command: str = "") -> None:
    """From now on Ctrl-C ends this process within a moment, with one line: all that a stage has finished is kept, as after a kill.

    A service puts its own handler before this one, and first answers what it has accepted.
    """
    first = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        if os.getpid() == first:  # what it has forked hears of the key, too
            kept = "" if command == "serve" else "; what is finished is kept, and the same command does the rest"
            kept += "; a training goes on from its last checkpoint, if it has made one" if command in TRAINS else ""
            os.write(2, f"\nmoon: stopped{kept}\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)


def now() -> dt.datetime:
    """The only clock: stages are given their time."""
    return dt.datetime.now(dt.UTC)


def settings_of(home: Path | None, *, looking: bool = False, lake: bool = True) -> Settings:
    """What the environment says; :class:`SettingsError` names a variable that is wrong, or a home that cannot be written to unless the
    command is only ``looking``. Imported here: ``--help`` needs none of it.

    Raises :class:`~moon_ops.errors.ServiceError` where the lake is away, unless the command is only looking or needs no ``lake``.
    """
    from moon_ops.settings import Settings

    if looking:
        hurry()
    settings = Settings.from_environment(home, looking=looking)
    logs.start(settings.log)
    if lake and not looking:
        from moon_ops.publication.places import require_lake

        require_lake(settings)
    return settings


def with_engine(settings: Settings, engine: str | None) -> Settings:
    """The settings with the engine that a command names, if it names one."""
    if engine is None:
        return settings
    require_known(engine)
    return settings.replace(engine=engine)


def fail(told: object) -> NoReturn:
    """End with one line on stderr and exit code 1; where the log is one of JSON objects, it is one of these."""
    if logs.is_json():
        logging.getLogger("moon_ops.cli").error("%s", told)
    else:
        typer.echo(f"moon: {told}", err=True)
    sys.exit(1)


def moment(text: str | None) -> dt.datetime | None:
    """A time as people write it on the command line, ISO 8601; without a zone it is UTC."""
    if text is None:
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as wrong:
        raise InputError(f"{text!r} is not a time", action="write ISO 8601, e.g. 2026-02-15 or 2026-02-15T12:00:00Z") from wrong
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def say(report: Any, as_json: bool = False) -> None:
    """One JSON object on one line, or a line per value."""
    values = report if isinstance(report, dict) else asdict(report)
    if as_json:
        typer.echo(json.dumps(values, default=str))
        return
    for name, value in values.items():
        if value in ((), [], {}, ""):
            continue
        typer.echo(f"{name}: {_shown(value)}")


def _shown(value: Any) -> Any:
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, float):
        return f"{value:.0f}" if value > 1 and value.is_integer() else f"{value:.4f}"  # a count among figures
    return "none" if value is None else value


def tell(report: Any, lines: Iterable[str], as_json: bool) -> None:
    """One JSON object on one line, or the lines that say the same in words."""
    if as_json:
        say(report, as_json)
        return
    for line in lines:
        typer.echo(line)


def wish(why: str) -> Wish:
    """A move of the champion as whoever is at this terminal asks for it, now."""
    from moon_ops.release.promotion import Wish

    return Wish(f"{getpass.getuser()}@{socket.gethostname()}", now().isoformat(timespec="seconds"), why)
