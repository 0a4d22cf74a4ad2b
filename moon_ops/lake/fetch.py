"""Fetch a picture that a seller gave by address, without letting the address point inside.

Every address that the host resolves to must be public; the connection goes to the address that was checked (so a second
look-up cannot answer differently), and each redirect is checked anew.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable
from urllib.parse import urljoin, urlsplit

import httpx

from moon_ops.errors import InputError

REDIRECTS = 3
TIMEOUT_SECONDS = 10.0  # for each answer as a whole, and for the connection before it


def is_address(reference: str) -> bool:
    """Whether the reference is an http(s) address rather than a path."""
    return reference.lower().startswith(("http://", "https://"))


def is_public(ip: str) -> bool:
    """Whether the IP address is one that everyone reaches: not ours, not a neighbour's, not a group's."""
    at = ipaddress.ip_address(ip)
    return at.is_global and not at.is_multicast


def fetch(address: str, *, max_bytes: int, public: Callable[[str], bool] = is_public) -> bytes:
    """The bytes at ``address``; :class:`InputError` for one that is not public, too large, too slow, or not there.

    ``public`` decides whether an IP address may be asked.
    """
    for _ in range(REDIRECTS + 1):
        host, pinned = _pin(address, public)
        try:
            url = httpx.URL(address)
            target = url.copy_with(host=pinned)
            with (
                httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as client,
                client.stream("GET", target, headers={"host": url.netloc.decode()}, extensions={"sni_hostname": host}) as answer,
            ):
                if answer.has_redirect_location:
                    address = urljoin(address, answer.headers["location"])
                    continue
                answer.raise_for_status()
                return _bounded(answer.iter_bytes(), max_bytes, address)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as failed:
            raise InputError(f"{address} could not be fetched ({failed})", action="check the address") from failed
    raise InputError(f"{address} redirects more than {REDIRECTS} times", action="give the final address")


def _pin(address: str, public: Callable[[str], bool]) -> tuple[str, str]:
    """The host and the one IP address to connect to; refused unless all addresses of the host are public."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or 443
    except ValueError as malformed:
        raise InputError(f"{address} is not an http(s) address ({malformed})", action="check the address") from malformed
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"{address} is not an http(s) address", action="check the address")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as unknown:
        raise InputError(f"{address}: the host {host} is unknown", action="check the address") from unknown
    resolved = [str(entry[4][0]) for entry in found]
    inside = [ip for ip in resolved if not public(ip)]
    if inside:
        raise InputError(f"{address} points to {inside[0]}, which is not a public address", action="give a public address")
    return host, resolved[0]


def _bounded(chunks: Iterable[bytes], max_bytes: int, address: str) -> bytes:
    content, deadline = bytearray(), time.monotonic() + TIMEOUT_SECONDS
    for chunk in chunks:
        content += chunk
        if time.monotonic() > deadline:
            raise InputError(f"{address} took longer than {TIMEOUT_SECONDS:g} seconds", action="bring the picture as a file")
        if len(content) > max_bytes:
            raise InputError(f"{address} is larger than {max_bytes:,} bytes", action="bring a smaller picture")
    return bytes(content)
