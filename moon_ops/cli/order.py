"""The order in which ``moon --help`` names the commands: as a shop needs them, from its files to what is served."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

ORDER = (
    *("demo", "simulate", "import", "check", "describe", "ingest", "quarantine"),  # a shop and its files
    *("train", "export", "bring", "embed", "publish", "features", "evaluate", "ctr", "release"),  # what is made of it
    *("promote", "serve", "status", "diff", "explain", "moves", "rollback"),  # what is served
    *("verify", "doctor", "maintain", "erase", "restore", "keys"),  # looking after it
    *("plan", "exchange-rate", "study"),  # what something is worth, or would take
)


class InOrder(TyperGroup):
    """Commands in :data:`ORDER`, and any other one after them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
