"""Promotion is moving the alias ``champion`` on ``moon-release``; rollback is moving it back. Nothing is recomputed."""

from __future__ import annotations

from typing import Any

from moon_ops.embeddings import produce
from moon_ops.embeddings.index import ItemIndex
from moon_ops.errors import ContractError, GateError, StageError
from moon_ops.lake.contract import file_sha256, require_same
from moon_ops.release import stages
from moon_ops.release.manifest import manifest_of
from moon_ops.release.registry import CHAMPION, CTR, ENCODER, PREVIOUS, Registry
from moon_ops.settings import Settings


def promote(settings: Settings, version: int) -> int | None:
    """Make release ``version`` the champion, and the champion ``previous``; the release that was champion before.

    Raises :class:`GateError` if its evidence does not pass, :class:`ContractError` if its parts are not what its manifest says.
    Promoting the champion again changes nothing.
    """
    registry = Registry(settings)
    manifest = manifest_of(registry, version)
    failed = [v for v in manifest["evidence"] if not v["passed"]]
    if failed or not manifest["passed"]:
        worst = failed[0] if failed else {"gate": "passed", "value": False, "rule": "true"}
        raise GateError(
            f"release {version} did not pass: {worst['gate']} = {worst['value']:.4f}, it must be {worst['rule']}",
            action="train again, or keep the champion",
        )
    verify(settings, registry, manifest)
    before = registry.alias(CHAMPION)
    if before == version:
        return before
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
    """Check that every part of a release is there and is what the manifest says; :class:`ContractError` names the one that is not."""
    contract, encoder = manifest["contract_id"], manifest["encoder"]["version"]
    require_same(contract, registry.tags(ENCODER, encoder)["contract_id"], what="manifest and encoder")
    require_same(contract, produce.contract_of(settings.lake, encoder), what="manifest and embeddings table")
    require_same(contract, ItemIndex.open(stages.index_place(settings, encoder)).header.contract_id, what="manifest and index")
    require_same(contract, stages.tables(settings, encoder).items.contract_id, what="manifest and representation table")
    parts = [(ENCODER, manifest["encoder"])] + ([(CTR, manifest["ctr"])] if manifest["ctr"] else [])
    for name, part in parts:
        found = file_sha256(registry.fetch(name, part["version"]) / "model.safetensors")
        if found != part["weights_sha256"]:
            raise ContractError(
                f"{name} {part['version']} has sha256 {found[:12]}, the manifest says {part['weights_sha256'][:12]}",
                action="do not serve it; release it again",
            )
