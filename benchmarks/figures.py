"""What every benchmark does with its figures: names the processor and the precision, and prints one JSON object last with ``--json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping

from moon_ops.errors import MoonError
from moon_ops.processor import processor


def option(name: str, default: str) -> str:
    """The word after ``--name`` on the command line."""
    return sys.argv[sys.argv.index(f"--{name}") + 1] if f"--{name}" in sys.argv else default


def main(measured: Callable[[], Mapping[str, object]], precision: str = "float32") -> None:
    """Run ``measured``, which prints its own table and returns its figures; a known fault is one line and exit code 1."""
    try:
        found = measured()
    except MoonError as fault:
        sys.exit(f"moon: {fault}")
    print(f"on {processor()}")
    if "--json" in sys.argv:
        print(json.dumps({**processor().beside(precision), **found}))
