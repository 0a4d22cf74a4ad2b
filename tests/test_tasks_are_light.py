"""What a task imports: each is a process of its own, and Feast with torch takes it seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moon_ops.settings import Settings

HEAVY = ("feast", "torch", "transformers", "sklearn")
NEEDED = {"ingest_inbox": [], "embed_for_champion": [], "publish_for_champion": ["feast"]}


@pytest.mark.parametrize("call", NEEDED)
def test_a_new_items_tasks_import_what_they_need(call: str, shop: Path, copied: Settings) -> None:
    """Each imported Feast and torch, and took nine seconds of processor time before it began."""
    looked = f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    code = f"import sys; from moon_ops import tasks; tasks.{call}('2026-02-01T00:00:00+00:00'); {looked}; import torch"
    told = {"MOON_HOME": str(copied.home), "MOON_INBOX": str(shop), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.split() == NEEDED[call]
