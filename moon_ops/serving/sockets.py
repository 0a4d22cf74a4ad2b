"""Whether a port is free, asked before anything heavy is imported."""

from __future__ import annotations

import socket

from moon_ops.errors import ServiceError


def require_free(host: str, port: int, *, variable: str = "MOON_PORT") -> None:
    """:class:`ServiceError` if something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as taken:
            raise ServiceError(
                f"port {port} on {host} cannot be used ({taken.strerror})", action=f"stop what uses it, or set {variable}"
            ) from taken
