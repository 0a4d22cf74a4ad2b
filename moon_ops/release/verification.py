"""Whether a release may be served: it passed its gates, and every part of it is there and is what its manifest says."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moon_ops.embeddings import index_shards, vector_tables
from moon_ops.errors import ContractError, GateError, ServiceError, StageError
from moon_ops.inputs.contract import file_sha256, require_same
from moon_ops.lake.lake import Lake
from moon_ops.publication import places
from moon_ops.registry.registry import ALIGNMENT, CTR, ENCODER, Registry
from moon_ops.release.gates import sentence, stopping
from moon_ops.settings import Settings

BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError)  # what reading a part says that is not what was written


@dataclass(frozen=True)
class Parts:
    """A release with the directories of its models."""

    release: int
    manifest: dict[str, Any]
    encoder: Path
    click_model: Path | None
    alignment: Path | None = None  # of a click model that reads the vectors through a map


def verify(settings: Settings, registry: Registry, manifest: dict[str, Any], *, forced: bool = False, without_lake: bool = False) -> str:
    """Check that a release passed its gates, and that every part of it is there and is what the manifest says; what was left unchecked.

    That is nothing, but ``without_lake`` if the lake cannot be reached: what answers requests lies in the home.
    Raises :class:`GateError` (not for one that is ``forced``) or :class:`ContractError`. Serving asks this, too: anyone may move an alias
    in MLflow.
    """
    if not forced:
        require_passed(manifest)
    try:
        return _require_parts(settings, registry, manifest, without_lake=without_lake)
    except BROKEN as fault:
        problem = f"a part of the release cannot be read ({type(fault).__name__}: {fault})"
        action = f"run `moon publish --encoder {manifest['encoder']['version']} --full`, or release it again"
        raise ContractError(problem, action=action) from fault


def _require_parts(settings: Settings, registry: Registry, manifest: dict[str, Any], *, without_lake: bool) -> str:
    contract, encoder = manifest["contract_id"], manifest["encoder"]["version"]
    _fetch(settings, encoder)
    require_same(contract, registry.tags(ENCODER, encoder)["contract_id"], what="manifest and encoder")
    unchecked = _require_vectors(settings.lake, encoder, contract, without_lake=without_lake)
    index = index_shards.verified(places.index_place(settings, encoder, dimensions_of(manifest)))
    require_same(contract, index.contract_id, what="manifest and index")
    require_same(contract, places.table(settings, "items", encoder).contract_id, what="manifest and representation table")
    if manifest["ctr"]:
        read = manifest["alignment"]["old"] if mapped(manifest) else contract
        require_same(read, registry.tags(CTR, manifest["ctr"]["version"])["contract_id"], what="manifest and click model")
    verify_files(fetched(registry, 0, manifest))
    return unchecked


def _fetch(settings: Settings, encoder: int) -> None:
    """What another machine has published, if there are others; what this home then has is checked afterwards."""
    if settings.lake.remote:
        from moon_ops.publication import sharing  # not where there is one machine: a rollback is in a hurry

        with contextlib.suppress(ServiceError):
            sharing.fetch(settings, encoder)


def _require_vectors(lake: Lake, encoder: int, contract: str, *, without_lake: bool) -> str:
    """The vectors in the lake against the manifest; why that was not possible, where it is no error."""
    try:
        require_same(contract, vector_tables.contract_of(lake, encoder), what="manifest and embeddings table")
    except (ServiceError, StageError) as away:
        if not without_lake or (isinstance(away, StageError) and lake.exists("items")):  # only these vectors are gone
            raise
        return f"{away.problem}; checked were the files of the models, the index and the table in MOON_HOME alone"
    return ""


def dimensions_of(manifest: Mapping[str, Any]) -> int:
    """How many numbers of each vector the searches of a release compare; 0: all of them."""
    return int((manifest.get("index") or {}).get("dimensions", 0))


def mapped(manifest: Mapping[str, Any]) -> bool:
    """Whether the click model of a release reads its vectors through a map."""
    return bool((manifest.get("alignment") or {}).get("used"))


def fetched(registry: Registry, release: int, manifest: dict[str, Any]) -> Parts:
    """The parts of a release, as the registry has them."""
    click_model = registry.fetch(CTR, manifest["ctr"]["version"]) if manifest["ctr"] else None
    alignment = registry.fetch(ALIGNMENT, manifest["alignment"]["version"]) if mapped(manifest) else None
    return Parts(release, manifest, registry.fetch(ENCODER, manifest["encoder"]["version"]), click_model, alignment)


def require_passed(manifest: dict[str, Any]) -> None:
    """:class:`GateError` that names the first gate that failed."""
    failed = stopping(manifest["evidence"])
    if failed or not manifest["passed"]:
        worst = failed[0] if failed else {"gate": "passed", "value": 0.0, "rule": "true"}
        raise GateError(
            f"the release did not pass its gates: {sentence(worst)}",
            action="train again, or see `moon explain` and `moon promote --force`; what is served stays as it is",
        )


def verify_files(parts: Parts) -> None:
    """:class:`ContractError` for a file that is not the one the manifest was made with."""
    checked = [(ENCODER, parts.encoder, parts.manifest["encoder"]), (CTR, parts.click_model, parts.manifest["ctr"])]
    if mapped(parts.manifest):
        checked.append((ALIGNMENT, parts.alignment, parts.manifest["alignment"]))
    for name, folder, part in checked:
        for file, expected in part["sha256"].items() if part else ():
            found = file_sha256(folder / file) if folder is not None and (folder / file).is_file() else "nothing"
            if found != expected:
                raise ContractError(
                    f"{file} of {name} {part['version']} has sha256 {found[:12]}, the manifest says {expected[:12]}",
                    action="do not serve it; release it again",
                )
