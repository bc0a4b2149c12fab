"""How much of the server one request, one client and all clients together may take."""

from __future__ import annotations

from dataclasses import dataclass

MAX_RESULTS = 10_000  # clip-retrieval's own page asks for 3,000


@dataclass(frozen=True)
class Limits:
    """Bytes, seconds, and numbers of things. What goes beyond is refused, or disconnected first."""

    results: int = MAX_RESULTS  # of one query, and ids of one look-up
    text: int = 1000  # characters of a query; a model reads 77 tokens
    conditions: int = 64  # different ones a server makes bitmaps of, a bit a row each
    pixels: int = 1 << 25  # of a picture that is sent: 33 million, 100 MB as RGB
    scans: int = 64  # of a progressive JPEG, each of which is a pass over all pixels; a camera's have ten
    json: int = 1 << 20  # of a request, its picture not counted
    body: int = 16 << 20  # of a request with its picture
    answered_pictures: int = 32 << 20  # of the pictures inside one answer; further ones are named by their address only

    header_seconds: float = 10.0  # from the first byte to the last of a request's head, and from connecting to the first byte
    body_seconds: float = 30.0  # until a body is in
    idle_seconds: float = 15.0  # that a connection may wait for its next request
    reading_seconds: float = 60.0  # until a client has read what waits for it
    header: int = 32 << 10

    connections: int = 1024  # beyond it, the client that makes the server wait longest is disconnected
    connections_of_peer: int = 512
    uploads: int = 12  # bodies larger than `json` held at a time
    unread: int = 256 << 20  # of answers that clients are slow to read
    at_once: int = 128  # requests that are complete, in work or waiting; more are told to come back
    pictures_at_once: int = 16  # of them with a picture: these are decoded one at a time
    threads: int = 8
