"""Fetch a picture that a seller gave by address, without letting the address point inside.

Every address that the host resolves to must be public; the connection goes to the address that was checked (so a second
look-up cannot answer differently), and each redirect is checked anew.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import importlib.metadata
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx

from moon_ops.errors import InputError

REDIRECTS = 3
TIMEOUT_SECONDS = 10.0  # for each answer as a whole, and for the connection before it
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers that another try may change


class FetchError(InputError):
    """An address did not give a picture.

    ``asked``: somebody was asked, so it is not done again at once; ``again``: another try may help; ``retry_after``: seconds for which
    the host wants to be left alone.
    """

    def __init__(self, problem: str, *, action: str, asked: bool = True, again: bool = False, retry_after: float | None = None) -> None:
        super().__init__(problem, action=action)
        self.asked, self.again, self.retry_after = asked, again, retry_after


@dataclass(frozen=True)
class Fetched:
    """What an address gave: ``content`` is None if it has not changed (304). ``fresh``: seconds for which the host vouches for it."""

    content: bytes | None
    etag: str = ""
    last_modified: str = ""
    fresh: float | None = None


def is_address(reference: str) -> bool:
    """Whether the reference is an http(s) address rather than a path."""
    return reference.lower().startswith(("http://", "https://"))


def is_public(ip: str) -> bool:
    """Whether the IP address is one that everyone reaches: not ours, not a neighbour's, not a group's."""
    at = ipaddress.ip_address(ip)
    return at.is_global and not at.is_multicast


def user_agent() -> str:
    """How we call ourselves, so that a host's owner knows whom to ask, e.g. ``moon_ops/0.1.0 (catalogue pictures)``."""
    try:
        return f"moon_ops/{importlib.metadata.version('moon_ops')} (catalogue pictures)"
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "moon_ops (catalogue pictures)"


def new_client(connections: int = 1) -> httpx.Client:
    """A client that reads nothing from its environment; one for each host, since connections of two must not be mixed up."""
    headers = {"user-agent": user_agent(), "accept": "image/*", "accept-encoding": "identity"}
    limits = httpx.Limits(max_keepalive_connections=connections)
    return httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False, headers=headers, limits=limits)


def fetch(
    address: str,
    *,
    max_bytes: int,
    public: Callable[[str], bool] | None = None,
    known: Fetched | None = None,
    client_of: Callable[[str], contextlib.AbstractContextManager[httpx.Client]] = lambda _: new_client(),
) -> Fetched:
    """What lies at ``address``; :class:`FetchError` for one that is not public, too large, too slow, or not there.

    ``public`` decides whether an IP address may be asked (:func:`is_public`); of what is ``known`` the host is asked only whether it has
    changed. ``client_of`` gives the client for a host.
    """
    conditions = {"if-none-match": known.etag, "if-modified-since": known.last_modified} if known else {}
    for _ in range(REDIRECTS + 1):
        host, pinned = _pin(address, public or is_public)
        try:
            url = httpx.URL(address)
            headers = {"host": url.netloc.decode(), **{name: value for name, value in conditions.items() if value}}
            with (
                client_of(host) as client,
                client.stream("GET", url.copy_with(host=pinned), headers=headers, extensions={"sni_hostname": host}) as answer,
            ):
                if answer.has_redirect_location:
                    address = urljoin(address, answer.headers["location"])
                    continue
                return _fetched(answer, address, max_bytes)
        except (httpx.InvalidURL, ValueError) as failed:
            raise FetchError(f"{address} could not be fetched ({failed})", action="check the address", asked=False) from failed
        except httpx.HTTPError as failed:
            raise FetchError(f"{address} could not be fetched ({failed})", action="check the address", again=True) from failed
    raise FetchError(f"{address} redirects more than {REDIRECTS} times", action="give the final address")


def _fetched(answer: httpx.Response, address: str, max_bytes: int) -> Fetched:
    """The answer, read up to ``max_bytes``."""
    headers = answer.headers
    if not answer.is_success and answer.status_code != httpx.codes.NOT_MODIFIED:
        again, pause = answer.status_code in AGAIN, _retry_after(headers)
        problem = f"{address} could not be fetched ({answer.status_code} {answer.reason_phrase})"
        raise FetchError(problem, action="check the address", again=again, retry_after=pause if again else None)
    known = {"etag": headers.get("etag", ""), "last_modified": headers.get("last-modified", ""), "fresh": _fresh(headers)}
    if answer.status_code == httpx.codes.NOT_MODIFIED:
        return Fetched(None, **known)
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:  # and is not read at all
        raise _too_large(address, max_bytes)
    return Fetched(_bounded(answer.iter_bytes(), max_bytes, address), **known)


def _fresh(headers: httpx.Headers) -> float | None:
    """Seconds for which the host says that the answer holds (RFC 9111: max-age, or Expires); None where it says nothing."""
    rules = headers.get("cache-control", "").lower()
    if "no-store" in rules or "no-cache" in rules:
        return 0.0
    if age := re.search(r"max-age=(\d{1,9})", rules):
        held = headers.get("age", "")
        return max(float(age[1]) - (float(held) if held.isdecimal() else 0.0), 0.0)
    expires = _until(headers.get("expires"), headers)
    return None if expires is None else max(expires, 0.0)


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds after which the host may be asked again: a number, or a time."""
    said = headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    until = _until(said, headers)
    return None if until is None else max(until, 0.0)


def _until(said: str | None, headers: httpx.Headers) -> float | None:
    """Seconds from the answer's own date to another; None where one of them is none. Our clock is not asked: it may differ."""
    times: list[dt.datetime] = []
    for text in (said, headers.get("date")):
        try:
            times.append(email.utils.parsedate_to_datetime(text or ""))
        except (ValueError, TypeError):
            return None
    try:
        return (times[0] - times[1]).total_seconds()
    except TypeError:  # one of them has no zone
        return None


def _pin(address: str, public: Callable[[str], bool]) -> tuple[str, str]:
    """The host and the one IP address to connect to; refused unless all addresses of the host are public."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or 443
    except ValueError as malformed:
        problem = f"{address} is not an http(s) address ({malformed})"
        raise FetchError(problem, action="check the address", asked=False) from malformed
    if parts.scheme not in ("http", "https") or not host:
        raise FetchError(f"{address} is not an http(s) address", action="check the address", asked=False)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as unknown:
        raise FetchError(f"{address}: the host {host} is unknown", action="check the address") from unknown
    resolved = [str(entry[4][0]) for entry in found]
    inside = [ip for ip in resolved if not public(ip)]
    if inside:
        problem = f"{address} points to {inside[0]}, which is not a public address"
        raise FetchError(problem, action="give a public address", asked=False)
    return host, resolved[0]


def _bounded(chunks: Iterable[bytes], max_bytes: int, address: str) -> bytes:
    content, deadline = bytearray(), time.monotonic() + TIMEOUT_SECONDS
    for chunk in chunks:
        content += chunk
        if time.monotonic() > deadline:
            problem = f"{address} took longer than {TIMEOUT_SECONDS:g} seconds"
            raise FetchError(problem, action="bring the picture as a file", again=True)
        if len(content) > max_bytes:
            raise _too_large(address, max_bytes)
    return bytes(content)


def _too_large(address: str, max_bytes: int) -> FetchError:
    return FetchError(f"{address} is larger than {max_bytes:,} bytes", action="bring a smaller picture")
