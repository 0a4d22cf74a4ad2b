"""Which datasets a task of Airflow reads and writes, told to OpenLineage where Airflow's provider for it is configured.

The provider sees of a Python task that it ran, and not what it read: these events, of the same run, say it. ``FLOW`` is all there is to
know: tables of the lake as their addresses, with Lance's version; registered models and checkpoints by name and version.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

if TYPE_CHECKING:
    from openlineage.client.event_v2 import Dataset

VARIABLES = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")  # of OpenLineage's client, which Feast's emitter uses as well
FEAST = "moon"  # Feast's namespace for this project
CATALOGUE = ("table:items", "table:images", "table:queries")
VECTORS = ("table:embeddings/v{encoder}", "table:query_embeddings/v{encoder}")
MADE = ("model:moon-encoder {encoder}",)
PUBLISHED = ("index:moon-encoder {encoder}",)
VIEWS = ("feast:item_embedding_v{encoder}", "feast:query_embedding_v{encoder}")
FLOW: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # stage → what it reads, what it writes
    "ingest": ((), (*CATALOGUE, "table:events")),
    "train": ((*CATALOGUE, "table:events"), ("checkpoint:{checkpoint}",)),
    "export": (("checkpoint:{checkpoint}",), MADE),
    "embed": ((*CATALOGUE, *MADE), VECTORS),
    "publish": (("table:items", "table:events", *VECTORS), (*PUBLISHED, *VIEWS)),
    "ctr": (("table:events", *VECTORS), ("model:moon-ctr {ctr}",)),
    "release": ((*MADE, "model:moon-ctr {ctr}", *VECTORS, *PUBLISHED), ("model:moon-release {release}",)),
    "promote": (("model:moon-release {release}",), ("champion:{release}",)),
}
Table = Callable[[str], tuple[str, int | None]]  # a table's name → its address and version; None for one that is not there


def tell(stage: str, table: Table, **facts: object) -> None:
    """Tell of a stage that has ended, by the ``facts`` that ``FLOW`` names; one that is None leaves its dataset out.

    Nothing happens outside of Airflow's tasks, or where no transport is configured. A fault is logged, and fails no task.
    """
    if "airflow.sdk" not in sys.modules:
        return
    try:
        from airflow.providers.openlineage import conf
        from airflow.providers.openlineage.api import emit_dataset_lineage
    except ImportError:  # the provider is optional
        return
    if conf.is_disabled():
        return
    reads, writes = (list(_datasets(names, table, facts)) for names in FLOW[stage])
    emit_dataset_lineage(inputs=reads, outputs=writes)


def of_feast() -> dict[str, Any]:
    """What Feast's configuration says more where OpenLineage's own variables name a transport: what each ``apply`` defines, is told."""
    named = any(os.environ.get(name) for name in VARIABLES) or any(name.startswith("OPENLINEAGE__TRANSPORT") for name in os.environ)
    off = os.environ.get("OPENLINEAGE_DISABLED", "").lower() in ("true", "1")
    return {"openlineage": {"enabled": True, "namespace": FEAST}} if named and not off else {}


def _datasets(names: tuple[str, ...], table: Table, facts: Mapping[str, object]) -> Iterator[Dataset]:
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.facet_v2 import dataset_version_dataset

    for named in names:
        kind, _, name = named.partition(":")
        if any(value is None and f"{{{fact}}}" in name for fact, value in facts.items()):
            continue
        name, _, said = name.format(**facts).partition(" ")
        version: object = said or None
        namespace = "mlflow" if kind in ("model", "champion") else FEAST
        if kind == "table":
            address, version = table(name)
            if version is None:
                continue
            namespace, name = _named(address)
        elif kind == "champion":
            name, version = "moon-release@champion", name
        elif kind != "model":
            name = name if kind == "feast" else f"{kind}/{name}"
        facet = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=str(version))
        yield Dataset(namespace=namespace, name=name, facets={} if version is None else {"version": facet})


def _named(address: str) -> tuple[str, str]:
    """A place as OpenLineage's rules name it: ``s3://bucket`` and a key, or ``file`` and a path."""
    found = urlparse(address)
    return (f"{found.scheme}://{found.netloc}", found.path.lstrip("/")) if found.netloc else ("file", found.path)
