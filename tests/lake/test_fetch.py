"""Fetching a picture by address, from a real server on the loopback interface."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from moon_ops.errors import InputError
from moon_ops.lake import fetch as fetching
from moon_ops.lake.fetch import fetch, is_address, is_public

PICTURE = bytes(range(256)) * 8  # 2,048 bytes


def anyone(ip: str) -> bool:
    return True


class Shop(ThreadingHTTPServer):
    """Answers by path, and writes down who asked for what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str]] = []  # path, Host header
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Shop

    def log_message(self, *arguments: Any) -> None: ...

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["host"]))
        kind, _, rest = self.path[1:].partition("/")
        if kind == "picture":
            self.reply(200, PICTURE)
        elif kind == "to":  # a redirect to the address that follows
            self.reply(302, b"", location=rest)
        elif kind == "hops":  # as many redirects as the number says
            self.reply(302, b"", location=f"/hops/{int(rest) - 1}" if rest != "0" else "/picture")
        elif kind == "short":  # promises more than comes
            self.reply(200, PICTURE, length=len(PICTURE) + 1)
        elif kind == "silent":
            self.server.closing.wait()
        elif kind == "drip":
            self.drip()
        else:
            self.reply(404, b"no such page")

    def reply(self, status: int, content: bytes, *, location: str = "", length: int | None = None) -> None:
        self.send_response(status)
        if location:
            self.send_header("location", location)
        self.send_header("content-length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def drip(self) -> None:
        """A byte now and then, for as long as somebody listens."""
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.closing.wait(0.02):
                self.wfile.write(b".")
        except OSError:
            pass


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def test_the_bytes_come_as_they_are(shop: Shop) -> None:
    assert fetch(f"{shop.address}/picture", max_bytes=len(PICTURE), public=anyone).content == PICTURE
    assert shop.asked == [("/picture", f"127.0.0.1:{shop.server_port}")]


def test_an_answer_that_is_too_large_is_refused(shop: Shop) -> None:
    with pytest.raises(InputError, match=r"/picture is larger than 2,047 bytes → bring a smaller picture"):
        fetch(f"{shop.address}/picture", max_bytes=len(PICTURE) - 1, public=anyone)


@pytest.mark.parametrize(("path", "reason"), [("missing", "404 Not Found"), ("short", "peer closed connection")])
def test_a_page_that_is_missing_or_cut_is_refused(shop: Shop, path: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"http://127\.0\.0\.1:\d+/{path} could not be fetched \(.*{reason}"):
        fetch(f"{shop.address}/{path}", max_bytes=10_000, public=anyone)


def test_a_server_that_is_down_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/picture"
    with pytest.raises(InputError, match=r"/picture could not be fetched \(.*refused"):
        fetch(address, max_bytes=10_000, public=anyone)


@pytest.mark.parametrize(("path", "reason"), [("silent", "timed out"), ("drip", "took longer than 0.3 seconds")])
def test_a_server_that_is_too_slow_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch, path: str, reason: str) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(InputError, match=reason):
        fetch(f"{shop.address}/{path}", max_bytes=10_000_000, public=anyone)


def test_loopback_is_refused_by_default_and_never_asked(shop: Shop) -> None:
    with pytest.raises(InputError, match=r"points to 127\.0\.0\.1, which is not a public address → give a public address"):
        fetch(f"{shop.address}/picture", max_bytes=10_000)
    assert shop.asked == []


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *("2130706433", "0x7f.1", "localhost"),  # other ways to write 127.0.0.1
        *("[::1]", "[fd00::1]", "[fe80::1]", "[::ffff:127.0.0.1]", "[ff02::1]"),
    ],
)
def test_addresses_inside_are_refused_by_default(host: str) -> None:
    with pytest.raises(InputError, match="is not a public address"):
        fetch(f"http://{host}/latest/meta-data", max_bytes=10_000)


def test_addresses_outside_are_public() -> None:
    assert all(is_public(ip) for ip in ("8.8.8.8", "93.184.216.34", "2606:2800:220:1::1"))


def test_a_host_with_one_address_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*entry, ("93.184.216.34", 80)), (*entry, ("10.0.0.7", 80))])
    with pytest.raises(InputError, match=r"http://shop.example/picture points to 10\.0\.0\.7, which is not a public address"):
        fetch("http://shop.example/picture", max_bytes=10_000)


def test_the_connection_goes_to_the_address_that_was_checked(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server under an attacker's hand answers the second question differently: there must be none."""
    questions = []
    resolve = socket.getaddrinfo

    def once(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("shop.example", b"shop.example"):
            questions.append(host)
            assert len(questions) == 1
            host = "127.0.0.1"
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", once)
    assert fetch(f"http://shop.example:{shop.server_port}/picture", max_bytes=10_000, public=anyone).content == PICTURE
    assert shop.asked == [("/picture", f"shop.example:{shop.server_port}")]


def test_a_redirect_is_followed(shop: Shop) -> None:
    assert fetch(f"{shop.address}/hops/2", max_bytes=10_000, public=anyone).content == PICTURE
    assert [path for path, _ in shop.asked] == ["/hops/2", "/hops/1", "/hops/0", "/picture"]


def test_redirects_without_end_are_refused(shop: Shop) -> None:
    with pytest.raises(InputError, match="redirects more than 3 times"):
        fetch(f"{shop.address}/hops/3", max_bytes=10_000, public=anyone)


def test_a_redirect_to_an_address_inside_is_refused(shop: Shop) -> None:
    with pytest.raises(InputError, match=r"http://127\.0\.0\.2/secret points to 127\.0\.0\.2, which is not a public address"):
        fetch(f"{shop.address}/to/http://127.0.0.2/secret", max_bytes=10_000, public=lambda ip: ip == "127.0.0.1")
    assert len(shop.asked) == 1


def test_a_redirect_to_a_file_is_refused(shop: Shop) -> None:
    with pytest.raises(InputError, match=r"file:///etc/hostname is not an http\(s\) address"):
        fetch(f"{shop.address}/to/file:///etc/hostname", max_bytes=10_000, public=anyone)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ftp://shop.example/a.png", r"is not an http\(s\) address"),
        ("http:///a.png", r"is not an http\(s\) address"),
        ("http://[::1/a.png", r"is not an http\(s\) address"),
        ("http://127.0.0.1:99999/a.png", r"is not an http\(s\) address"),
        ("http://127.0.0.1:80a/a.png", r"is not an http\(s\) address"),
        (f"http://{'a' * 70}.example/a.png", "the host a{70}.example is unknown"),
        ("http://no such host/a.png", "the host no such host is unknown"),
        ("http://127.0.0.1/\x00.png", "could not be fetched"),
    ],
)
def test_what_is_no_address_is_refused_by_name(address: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        fetch(address, max_bytes=10_000, public=anyone)
    assert refused.value.problem.startswith(address)
    assert refused.value.action


def test_paths_are_told_from_addresses() -> None:
    assert [is_address(r) for r in ("http://a.example/x", "HTTPS://a.example/x", "http://[bad")] == [True, True, True]
    assert [is_address(r) for r in ("images/x.png", "http/x.png", "C:\\x.png", "[x]//y", "ftp://a/x")] == [False] * 5
