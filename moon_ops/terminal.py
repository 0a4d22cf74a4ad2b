"""What the commands have in common: the present time, and how a report is printed."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict
from typing import Any

import typer


def now() -> dt.datetime:
    """The only clock: stages are given their time."""
    return dt.datetime.now(dt.UTC)


def say(report: Any, as_json: bool = False) -> None:
    """One JSON object on one line, or a line per value."""
    values = report if isinstance(report, dict) else asdict(report)
    if as_json:
        typer.echo(json.dumps(values, default=str))
        return
    for name, value in values.items():
        shown = json.dumps(value, default=str) if isinstance(value, (dict, list)) else f"{value:.4f}" if isinstance(value, float) else value
        typer.echo(f"{name}: {shown}")
