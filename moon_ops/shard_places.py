"""Which shards of an index a service holds, and who holds the others: the two settings that say so, read and checked."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from moon_ops.errors import SettingsError

NONE = "none"  # held: such a service asks others for all of them


def numbers(held: str) -> tuple[int, ...] | None:
    """The shards in e.g. ``0,2``, ascending; None, which is all, for an empty text."""
    if held in ("", NONE):
        return () if held else None
    return tuple(sorted({int(number) for number in held.split(",") if number.strip()}))


def addresses(peers: str) -> dict[int, str]:
    """The address of the service for each shard in e.g. ``1=http://host:8321,2=http://other:8321``."""
    listed = (peer.strip().partition("=") for peer in peers.split(",") if peer.strip())
    return {int(number): address.rstrip("/") for number, _, address in listed}


def check_numbers(name: str, held: str, count: int) -> str:
    """``held``, unless it names other things than some of ``count`` shards: :class:`SettingsError` with the variable's ``name``."""
    return held if held == NONE else _checked(name, held, r"\d{1,4}", count, ("does not name shards", "0,2"))


def check_addresses(name: str, peers: str, count: int) -> str:
    """Likewise for the services that hold some of them."""
    wrong = "does not name shards and the services that hold them", "1=http://host:8321,2=http://other:8321"
    _checked(name, peers, r"\d{1,4}=https?://[^\s@?#]+", count, wrong)
    listed = [part.strip() for part in peers.split(",") if part.strip()]
    if unreal := [part for part in listed if not _is_address(part.partition("=")[2])]:
        raise SettingsError(f"{name} = {unreal[0]!r} is no address", action=f"set {name} to e.g. {wrong[1]}")
    if len({int(part.partition("=")[0]) for part in listed}) < len(listed):
        problem = f"{name} = {peers!r} names a shard twice"
        raise SettingsError(problem, action="give one address for each; several services that hold the same stand behind a balancer")
    return peers


def _is_address(url: str) -> bool:
    """Whether it has a host, and a port that is a number, if it has one."""
    try:
        found = urlsplit(url)
        return bool(found.hostname) and (found.port is None or found.port > 0)
    except ValueError:
        return False


def _checked(name: str, value: str, each: str, count: int, wrong: tuple[str, str]) -> str:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if (value and not parts) or not all(re.fullmatch(each, part) for part in parts):
        raise SettingsError(f"{name} = {value!r} {wrong[0]}", action=f"set {name} to e.g. {wrong[1]}")
    if beyond := [part for part in parts if int(part.partition("=")[0]) >= count]:
        problem = f"{name} = {value!r} names shard {beyond[0].partition('=')[0]}, and MOON_INDEX_SHARDS = {count}: they begin with 0"
        raise SettingsError(problem, action="give all services and jobs the same MOON_INDEX_SHARDS")
    return value
