"""A home whose readers have all that there is."""

from __future__ import annotations

import datetime as dt

import pytest

from moon_ops.publication import publication
from moon_ops.settings import Settings


@pytest.fixture
def current(copied: Settings, now: dt.datetime) -> Settings:
    """The released home, with all that its readers have."""
    publication.publish(copied, 1, now=now)
    return copied
