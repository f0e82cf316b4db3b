"""Ports that nobody else can take while a test uses them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def held_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Hold a TCP port: connecting to it is refused, and the kernel gives it to nobody who asks for any free port.

    A broker that is told this port may listen there meanwhile, again and again, since Linux lets two sockets with
    SO_REUSEADDR have one port while only one of them listens.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 0))
        yield int(holder.getsockname()[1])
