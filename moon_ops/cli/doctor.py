"""``moon doctor``: does this machine have what the stages need? Each check is a name, a verdict and what was found."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator

from moon_ops.cli import stores
from moon_ops.errors import MoonError, ServiceError
from moon_ops.settings import ROOT, Settings, shown, unknown_variables

PACKAGES = {"pylance": "", "duckdb": "", "pillow": "", "feast": "sdk", "mlflow-skinny": "sdk", "faiss-cpu": "serve", "fastapi": "serve"}
PACKAGES |= {"torch": "train", "transformers": "train", "onnx": "train", "apache-airflow": "airflow"}  # the extra that brings it
LEAST_FREE = 5 * 2**30

Check = tuple[str, bool, str]


def examine(settings: Settings, now: dt.datetime) -> Iterator[Check]:
    """Every check in turn; a check that fails says what to do."""
    yield "python", sys.version_info >= (3, 11), sys.version.split()[0]
    for name, extra in PACKAGES.items():
        try:
            yield name, True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, bool(extra), _absent(extra)
    yield "MOON_HOME", True, f"{settings.home}{'' if settings.home.exists() else ' (not there yet: run `moon demo`)'}"
    for name, ours in unknown_variables().items():
        yield name, False, f"is no setting, and nothing reads it → {f'did you mean {ours}?' if ours else 'unset it'}"
    yield _permission(settings)
    yield _disk(settings)
    yield _runtime()
    yield _pictures()
    yield _registry(settings)
    if settings.home.exists():
        yield from stores.examine(settings, now)
        yield from _whole(settings, now)
    yield "feature_repo", (ROOT / "feature_repo" / "feature_store.yaml").is_file(), str(ROOT / "feature_repo")


def repair(settings: Settings, now: dt.datetime) -> Iterator[str]:
    """Mend what can be: what killed commands have left, and addresses and settings of stores; what was done, a line each."""
    from moon_ops.embeddings import features
    from moon_ops.publication import erasure
    from moon_ops.registry.registry import Registry
    from moon_ops.release import registration

    registry = Registry(settings)  # this mends the addresses of a home that was moved
    written = settings.home / "feature_store" / "feature_store.yaml"
    before = written.read_text() if written.is_file() else None
    features.open_store(settings)
    if written.read_text() != before:
        yield f"wrote {written}"
    yield from (f"completed the erasure of {receipt.kind} {receipt.shop_id}" for receipt in erasure.finish(settings, now=now))
    yield from registration.finish(settings, registry, now)


def _permission(settings: Settings) -> Check:
    """Whether all places in the home may be written to; a home that is only looked at is none of ours to mend."""
    if not settings.home.exists():
        return "permission", True, "nothing there yet"
    places = [settings.home, *(place for place in settings.home.iterdir() if not place.is_symlink())]
    closed = [place for place in places if not os.access(place, os.W_OK)]
    if len(closed) == len(places):
        return "permission", True, f"{settings.home} can only be read: it can be looked at, and served from elsewhere"
    if closed:
        return "permission", False, f"{closed[0]} belongs to {closed[0].owner()} and cannot be written to → chown it, or run as that user"
    return "permission", True, f"all of {settings.home} can be written to"


def _disk(settings: Settings) -> Check:
    place = next(p for p in (settings.home, *settings.home.parents) if p.exists())
    free = shutil.disk_usage(place).free
    enough = free >= LEAST_FREE
    advice = "" if enough else f" → make room: below {LEAST_FREE >> 30} GiB the next training or publication may not be written"
    return "disk", enough, f"{free / 2**30:.0f} GiB free at {place}{advice}"


def _runtime() -> Check:
    try:
        import onnxruntime

        return "onnxruntime", True, f"{onnxruntime.__version__} with {', '.join(onnxruntime.get_available_providers())}"
    except ImportError:
        return "onnxruntime", True, _absent("serve")


def _pictures() -> Check:
    from moon_ops.inputs.golden_pictures import KEPT, golden_pictures
    from moon_ops.inputs.images import golden_pixels

    lacking = "".join(f"; {kind.upper()} is not read: {_absent(kind)}" for kind in KEPT if kind not in golden_pictures())
    return "picture pixels", True, f"golden picture at 64 px: {golden_pixels(64)[:12]}{lacking}"


def _registry(settings: Settings) -> Check:
    if settings.tracking_uri.get_secret_value().startswith("sqlite:") and not settings.home.exists():
        return "mlflow", True, "nothing registered yet"
    try:
        from moon_ops.registry.registry import CHAMPION, Registry

        return "mlflow", True, f"{shown(settings.tracking_uri)}, champion: {Registry(settings).alias(CHAMPION)}"
    except MoonError as fault:
        return "mlflow", False, str(fault)
    except ImportError:
        return "mlflow", True, _absent("sdk")


def _whole(settings: Settings, now: dt.datetime) -> Iterator[Check]:
    """What ``moon verify`` finds, and a line for each part of which it finds nothing."""
    try:
        from moon_ops.release import examination
    except ImportError:
        yield "champion", True, _absent("serve")
        return
    try:
        found = examination.examine(settings, now=now)
    except ServiceError:  # a registry that does not answer is said above
        return
    for name, fine in (("champion", "what is served is whole"), ("erasures", "none unfinished"), ("moves", "the record is whole")):
        if not any(finding.part == name for finding in found):
            yield name, True, fine
    yield from ((finding.part, not finding.grave, f"{finding.problem} → {finding.action}") for finding in found)


def _absent(extra: str) -> str:
    """What to install; an extra that nobody needs here is no fault."""
    return f'is not installed → pip install "moon_ops{f"[{extra}]" if extra else ""}"'
