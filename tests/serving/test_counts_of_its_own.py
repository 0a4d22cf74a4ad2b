"""Whose counts are whose, in a process that imports Feast as well."""

from __future__ import annotations

import os
import subprocess
import sys

COUNTED = """
import moon_ops.serving.opening, moon_ops.serving.app
import feast
from prometheus_client import CollectorRegistry
from moon_ops.serving.metrics import Batches

for size in (3, 4):
    registry = CollectorRegistry()
    Batches(registry).add(size, [0.1] * size)
    print(registry.get_sample_value("moon_batch_size_sum"))
"""


def test_two_services_of_a_process_count_apart() -> None:
    """Feast's import has prometheus_client keep every count in a file by its name, if it comes first: the second service said 7."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_")}  # Feast was imported here, too
    done = subprocess.run([sys.executable, "-c", COUNTED], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3.0", "4.0"]
