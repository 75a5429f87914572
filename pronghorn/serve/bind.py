"""The socket that a server listens on, made before anything heavy is imported or loaded."""

from __future__ import annotations

import socket

from pronghorn.errors import RequestError

BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 for any free one. Raises `RequestError`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", "") or str(error)
        raise RequestError(f"cannot listen on {host}, port {port}: {why}; choose another --port") from None
    return made
