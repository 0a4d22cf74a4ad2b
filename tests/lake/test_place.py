"""What `MOON_LAKE` may be: an address, or a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from moon_ops.errors import SettingsError
from moon_ops.lake.lake import place


@pytest.mark.parametrize("text", ["s3://shop", "s3://shop/lake", "gs://a/b", "az://a", "file:///mnt/lake", "s3+ddb://a/b?x=y"])
def test_an_address_stays_what_it_is(text: str) -> None:
    assert place(text) == text


@pytest.mark.parametrize("text", ["lake", "./s3:", "a/b:c", "a:b", "C:/lake", "/mnt/lake"])
def test_anything_else_is_a_directory(text: str) -> None:
    assert place(text) == str(Path(text).absolute())


@pytest.mark.parametrize("text", ["s3:", "s3:/shop/lake", "s3://", "gs:///shop"])
def test_half_an_address_is_no_directory(text: str) -> None:
    with pytest.raises(SettingsError, match=f"MOON_LAKE = '{text}' begins like an address and names no place → write [gs]"):
        place(text)


def test_the_variable_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from moon_ops.settings import Settings

    monkeypatch.setenv("MOON_LAKE", "s3:")
    with pytest.raises(SettingsError, match="MOON_LAKE = 's3:' begins like an address"):
        Settings.from_environment()
