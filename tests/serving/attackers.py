"""Clients that mean harm, for tests and for benchmarks/serving_attacks.py: each does one thing to a server on loopback."""

from __future__ import annotations

import json
import socket
import struct
import zlib
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

POST = b"POST /knn-service HTTP/1.1\r\nHost: localhost\r\n"


@contextmanager
def connections(port: int, number: int, first: bytes = b""):
    """`number` open connections that have sent `first`, each."""
    with ExitStack() as held:
        yield [held.enter_context(connected(port, first)) for _ in range(number)]


@contextmanager
def connected(port: int, first: bytes = b""):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with suppress(OSError):  # it was let go already
            connection.sendall(first)
        yield connection


def request(body: bytes, *, path: str = "/knn-service") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


def begun_upload(size: int = 1000) -> bytes:
    """A request whose body has begun to come, and never ends."""
    return POST + b"Content-Length: %d\r\n\r\n{" % size


def answer_to(port: int, sent: bytes, seconds: float = 60) -> tuple[int, Any]:
    """The status of the answer, 0 if the server hangs up without one, and its JSON."""
    with connected(port, sent) as connection:
        connection.settimeout(seconds)
        received = b""
        try:
            while more := connection.recv(1 << 16):
                received += more
                head, _, body = received.partition(b"\r\n\r\n")
                length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
                if length is not None and len(body) >= length:
                    break
        except ConnectionError:
            pass
    if not received:
        return 0, None
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else None


def is_closed(connection: socket.socket, seconds: float = 10) -> bool:
    """Whether the server has ended `connection`, or does within `seconds`."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def huge_png(width: int, height: int) -> bytes:
    """A grey picture of any size in about a thousandth of its pixels' bytes; nothing of that size is held to make it."""
    squeezed = zlib.compressobj(9)
    row = bytes(width + 1)
    data = b"".join(squeezed.compress(row) for _ in range(height)) + squeezed.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def many_scans(jpeg: bytes, times: int) -> bytes:
    """A progressive JPEG whose last scan comes `times` times."""
    at = jpeg.rfind(b"\xff\xda")
    return jpeg[:at] + (jpeg[at:-2]) * times + jpeg[-2:]
