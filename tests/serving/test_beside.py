"""The candidate that is loaded to be compared with the champion."""

from __future__ import annotations

import pytest

from moon_ops.errors import StageError
from moon_ops.registry.registry import CANDIDATE, Registry
from moon_ops.serving import fixed
from moon_ops.serving.beside import Beside
from moon_ops.settings import Settings


def test_one_that_cannot_be_loaded_is_no_missing_one(copied: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second who asked was told that there is no candidate."""
    Registry(copied).point(CANDIDATE, 1)
    beside = Beside(copied)

    def broken(*_: object) -> None:
        raise StageError("a file is gone", action="bring it back")

    with monkeypatch.context() as patched:
        patched.setattr(fixed, "parts", broken)
        for _ in range(2):
            with pytest.raises(StageError, match="a file is gone"):
                beside.candidate()
    first = beside.candidate()
    assert first is not None
    assert first.version == 1
    assert beside.candidate() is first
