"""Promotion is moving the alias ``champion`` on ``moon-release``; rollback is moving it back. Nothing is recomputed."""

from __future__ import annotations

from typing import Any

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.index import ItemIndex
from moon_ops.errors import ContractError, GateError, StageError
from moon_ops.inputs.contract import file_sha256, require_same
from moon_ops.publication import places
from moon_ops.registry.registry import CHAMPION, CTR, ENCODER, PREVIOUS, Registry, manifest_of
from moon_ops.settings import Settings


def promote(settings: Settings, version: int) -> int | None:
    """Make release ``version`` the champion, and the champion ``previous``; the release that was champion before.

    Raises :class:`GateError` if its evidence does not pass or was made against another champion, :class:`ContractError` if its parts are
    not what its manifest says.
    Promoting the champion again changes nothing.
    """
    registry = Registry(settings)
    manifest = manifest_of(registry, version)
    verify(settings, registry, manifest)
    before = registry.alias(CHAMPION)
    if before == version:
        return before
    judged = manifest["compared_with"]["release"]
    if judged != before and version != registry.alias(PREVIOUS):
        raise GateError(
            f"release {version} was compared with release {judged}, but release {before} is champion now: nobody knows which is better",
            action="release it again with `moon release`, or go back with `moon rollback`",
        )
    if before is not None:
        registry.point(PREVIOUS, before)  # first: a process killed between the two moves leaves a champion and a way back
    registry.point(CHAMPION, version)
    return before


def rollback(settings: Settings) -> tuple[int, int]:
    """Swap ``champion`` and ``previous``; the versions of the champion before and after."""
    registry = Registry(settings)
    champion, previous = registry.alias(CHAMPION), registry.alias(PREVIOUS)
    if champion is None or previous is None:
        raise StageError(f"there is no previous release to roll back to (champion: {champion})", action="promote a second release first")
    verify(settings, registry, manifest_of(registry, previous))
    registry.point(CHAMPION, previous)  # first: what is served matters more than the way forward
    registry.point(PREVIOUS, champion)
    return champion, previous


def verify(settings: Settings, registry: Registry, manifest: dict[str, Any]) -> None:
    """Check that a release passed its gates, and that every part of it is there and is what the manifest says.

    Raises :class:`GateError` or :class:`ContractError`. Serving asks this too: anyone may move an alias in MLflow.
    """
    failed = [v for v in manifest["evidence"] if not v["passed"]]
    if failed or not manifest["passed"]:
        worst = failed[0] if failed else {"gate": "passed", "value": 0.0, "rule": "true"}
        raise GateError(
            f"the release did not pass its gates: {worst['gate']} = {worst['value']:.4f}, it must be {worst['rule']}",
            action="train again, or keep the champion",
        )
    contract, encoder = manifest["contract_id"], manifest["encoder"]["version"]
    require_same(contract, registry.tags(ENCODER, encoder)["contract_id"], what="manifest and encoder")
    require_same(contract, vector_tables.contract_of(settings.lake, encoder), what="manifest and embeddings table")
    require_same(contract, ItemIndex.open(places.index_place(settings, encoder)).header.contract_id, what="manifest and index")
    require_same(contract, places.table(settings, "items", encoder).contract_id, what="manifest and representation table")
    parts = [(ENCODER, manifest["encoder"])] + ([(CTR, manifest["ctr"])] if manifest["ctr"] else [])
    for name, part in parts:
        directory = registry.fetch(name, part["version"])
        for file, expected in part["sha256"].items():
            found = file_sha256(directory / file) if (directory / file).is_file() else "nothing"
            if found != expected:
                raise ContractError(
                    f"{file} of {name} {part['version']} has sha256 {found[:12]}, the manifest says {expected[:12]}",
                    action="do not serve it; release it again",
                )
