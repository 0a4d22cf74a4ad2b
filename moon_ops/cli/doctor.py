"""``moon doctor``: does this machine have what the stages need? Each check is a name, a verdict and what was found."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator

from moon_ops.errors import MoonError
from moon_ops.settings import ROOT, Settings, shown, unknown_variables

PACKAGES = {"pylance": "", "duckdb": "", "pillow": "", "feast": "sdk", "mlflow-skinny": "sdk", "faiss-cpu": "serve", "fastapi": "serve"}
PACKAGES |= {"torch": "train", "transformers": "train", "onnx": "train", "apache-airflow": "airflow"}  # the extra that brings it
LEAST_FREE = 5 * 2**30

Check = tuple[str, bool, str]


def examine(settings: Settings) -> Iterator[Check]:
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
    yield _disk(settings)
    yield _runtime()
    yield _pictures()
    yield _registry(settings)
    yield from _served(settings)
    yield "feature_repo", (ROOT / "feature_repo" / "feature_store.yaml").is_file(), str(ROOT / "feature_repo")


def _disk(settings: Settings) -> Check:
    place = next(p for p in (settings.home, *settings.home.parents) if p.exists())
    free = shutil.disk_usage(place).free
    return "disk", free >= LEAST_FREE, f"{free / 2**30:.0f} GiB free at {place}"


def _runtime() -> Check:
    try:
        import onnxruntime

        return "onnxruntime", True, f"{onnxruntime.__version__} with {', '.join(onnxruntime.get_available_providers())}"
    except ImportError:
        return "onnxruntime", True, _absent("serve")


def _pictures() -> Check:
    from moon_ops.inputs.images import golden_pixels

    return "picture pixels", True, f"golden picture at 64 px: {golden_pixels(64)[:12]}"


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


def _served(settings: Settings) -> Iterator[Check]:
    """Whether the champion can be served, and whether an erasure waits to be completed."""
    if not settings.home.exists():
        return
    try:
        from moon_ops.publication.erasure import unfinished
        from moon_ops.registry.registry import Registry
        from moon_ops.release.served import choose

        choice = choose(settings, Registry(settings))
        yield "champion", not choice.why, choice.why or f"release {choice.release} can be served"
        waiting = unfinished(settings)
        yield "erasures", not waiting, f"{waiting} were killed → run `moon erase {waiting[0]}` again" if waiting else "none unfinished"
    except MoonError as fault:
        yield "champion", True, str(fault)  # a home at its beginning; a registry that does not answer is said above
    except ImportError:
        yield "champion", True, _absent("serve")


def _absent(extra: str) -> str:
    """What to install; an extra that nobody needs here is no fault."""
    return f'is not installed → pip install "moon_ops{f"[{extra}]" if extra else ""}"'
