"""``moon doctor``: does this machine have what the stages need? Each check is a name, a verdict and what was found."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator

from moon_ops.errors import MoonError
from moon_ops.settings import ROOT, Settings, shown, unknown_variables

PACKAGES = ("apache-airflow", "feast", "mlflow", "torch", "transformers", "onnx", "pylance", "duckdb", "faiss-cpu", "pillow")
LEAST_FREE = 5 * 2**30

Check = tuple[str, bool, str]


def examine(settings: Settings) -> Iterator[Check]:
    """Every check in turn; a check that fails says what to do."""
    yield "python", sys.version_info >= (3, 11), sys.version.split()[0]
    for name in PACKAGES:
        try:
            yield name, True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, False, "is not installed → run `make install`"
    yield "MOON_HOME", True, f"{settings.home}{'' if settings.home.exists() else ' (not there yet: run `moon demo`)'}"
    for name, ours in unknown_variables().items():
        yield name, False, f"is no setting, and nothing reads it → {f'did you mean {ours}?' if ours else 'unset it'}"
    yield _disk(settings)
    yield _runtime()
    yield _pictures()
    yield _registry(settings)
    yield "feature_repo", (ROOT / "feature_repo" / "feature_store.yaml").is_file(), str(ROOT / "feature_repo")


def _disk(settings: Settings) -> Check:
    place = next(p for p in (settings.home, *settings.home.parents) if p.exists())
    free = shutil.disk_usage(place).free
    return "disk", free >= LEAST_FREE, f"{free / 2**30:.0f} GiB free at {place}"


def _runtime() -> Check:
    try:
        import onnxruntime

        return "onnxruntime", True, f"{onnxruntime.__version__} with {', '.join(onnxruntime.get_available_providers())}"
    except ImportError as missing:
        return "onnxruntime", False, f"{missing} → run `make install`"


def _pictures() -> Check:
    from moon_ops.inputs.images import golden_pixels

    return "picture pixels", True, f"golden picture at 64 px: {golden_pixels(64)[:12]}"


def _registry(settings: Settings) -> Check:
    from moon_ops.registry.registry import CHAMPION, Registry

    if settings.tracking_uri.get_secret_value().startswith("sqlite:") and not settings.home.exists():
        return "mlflow", True, "nothing registered yet"
    try:
        return "mlflow", True, f"{shown(settings.tracking_uri)}, champion: {Registry(settings).alias(CHAMPION)}"
    except MoonError as fault:
        return "mlflow", False, str(fault)
