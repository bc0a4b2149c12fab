"""A local HTTP server that serves files with ETags and ranges, and misbehaves on request: truncates, stalls, resets, lies.

    with MisbehavingServer({"a.npy": content}) as server:
        server.misbehave("a.npy", Truncate(1000), Status(503), None)   # the first three requests for a.npy; after them it behaves
        ... server.url ...
        server.requests                                                # what was asked, in order

A plain module, so that any test folder can use it.
"""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

HTML = b"<!DOCTYPE html><html><body>Please come back later</body></html>"


@dataclass(frozen=True)
class Truncate:
    """Promise the whole body, send `after` bytes of it, close."""

    after: int


@dataclass(frozen=True)
class Stall:
    """Send `after` bytes, then nothing, with the connection open."""

    after: int


@dataclass(frozen=True)
class Reset:
    """Send `after` bytes, then a TCP reset."""

    after: int


@dataclass(frozen=True)
class Trickle:
    """A byte every `pause_s`, forever."""

    pause_s: float = 0.02


@dataclass(frozen=True)
class Status:
    code: int
    retry_after: int | None = None


@dataclass(frozen=True)
class Html:
    """A page with status 200 in place of the file; without a length, or with the length of the file if `padded`."""

    padded: bool = False
    content_type: str = "text/html"


@dataclass(frozen=True)
class IgnoreRange:
    """The whole file with status 200, whatever was asked, cut after `after` bytes if given."""

    after: int | None = None


@dataclass(frozen=True)
class IgnoreIfRange:
    """A 206 of the file as it is now, although the client's If-Range names another."""


@dataclass(frozen=True)
class WrongRange:
    """A 206 that starts at byte 0 whatever was asked."""


@dataclass(frozen=True)
class NoVersion:
    """Neither ETag nor Last-Modified; cut after `after` bytes if given."""

    after: int | None = None


@dataclass(frozen=True)
class Change:
    """Send `after` bytes of the file, close, and serve `content` from then on."""

    content: bytes
    after: int = 0


Fault = Truncate | Stall | Reset | Trickle | Status | Html | IgnoreRange | IgnoreIfRange | WrongRange | NoVersion | Change


@dataclass(frozen=True)
class Request:
    name: str
    range: str | None
    if_range: str | None
    at: float  # time.monotonic()


@dataclass
class MisbehavingServer:
    """Serves a mapping of names to bytes, or a folder, at `url`. `pace` seconds pass before each 64 KiB."""

    files: Mapping[str, bytes] | Path
    pace: float = 0.0
    lists: bool = True  # whether it has a page with links to its files
    requests: list[Request] = field(default_factory=list)
    most_at_once: int = 0
    _plans: dict[str, deque[Fault | None]] = field(default_factory=dict)
    _chance: Callable[[str, int], Fault | None] | None = None
    _changed: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)
    _active: int = 0

    def __enter__(self) -> MisbehavingServer:
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/data"

    def misbehave(self, name: str, *faults: Fault | None) -> None:
        """The next requests for `name` meet these faults in order (None: served well)."""
        self._plans[name] = deque(faults)

    def misbehave_by_chance(
        self, seed: int, share: float = 0.5, of: Iterable[type[Any]] = (Truncate, Reset, Status, Html, IgnoreRange)
    ) -> None:
        """Every request meets a fault with probability `share`, drawn from (seed, name, number of the request for that name)."""
        kinds = list(of)

        def draw(name: str, number: int) -> Fault | None:
            chance = random.Random(f"{seed} {name} {number}")
            if chance.random() >= share:
                return None
            kind = chance.choice(kinds)
            if kind is Status:
                return Status(chance.choice((500, 502, 503, 429)))
            if kind is Html:
                return Html(padded=chance.random() < 0.5)
            size = len(self.content(name) or b"")
            return kind(chance.randrange(size + 1))  # type: ignore[no-any-return]

        self._chance = draw

    def content(self, name: str) -> bytes | None:
        if name in self._changed:
            return self._changed[name]
        if isinstance(self.files, Path):
            path = self.files / name
            return path.read_bytes() if path.is_file() else None
        return self.files.get(name)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.files.iterdir()) if isinstance(self.files, Path) else sorted(self.files)

    def asked(self, name: str) -> list[Request]:
        return [request for request in self.requests if request.name == name]

    def _next_fault(self, request: Request) -> Fault | None:
        with self._lock:
            number = len(self.asked(request.name))
            self.requests.append(request)
            if plan := self._plans.get(request.name):
                return plan.popleft()
        return self._chance(request.name, number) if self._chance else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    owner: MisbehavingServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        owner = self.server.owner
        with owner._lock:
            owner._active += 1
            owner.most_at_once = max(owner.most_at_once, owner._active)
        try:
            self._answer(body)
        finally:
            with owner._lock:
                owner._active -= 1

    def _answer(self, body: bool) -> None:
        owner = self.server.owner
        name = unquote(self.path.split("?")[0].rsplit("/", 1)[-1])
        if name in ("", "data") and not owner.lists:
            return self._send(403, b"no listing", {}, body)
        if name in ("", "data"):
            links = "".join(f'<a href="/data/{name}">{name}</a>\n' for name in owner.names())
            return self._send(200, f"<html><body>{links}</body></html>".encode(), {"Content-Type": "text/html"}, body)
        wanted, if_range = self.headers.get("Range"), self.headers.get("If-Range")
        fault = owner._next_fault(Request(name, wanted, if_range, time.monotonic())) if body else None
        content = owner.content(name)
        if isinstance(fault, Change):
            owner._changed[name] = fault.content
        if isinstance(fault, Status):
            extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return self._send(fault.code, b"sorry", extra, body)
        if isinstance(fault, Html):
            page = HTML + b" " * (len(content or b"") - len(HTML)) if fault.padded else HTML
            return self._send(200, page, {"Content-Type": fault.content_type}, body)
        if content is None:
            return self._send(404, b"no such file", {}, body)
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers = {"Content-Type": "application/octet-stream", "ETag": etag, "Accept-Ranges": "bytes"}
        if isinstance(fault, NoVersion):
            del headers["ETag"]
        start, stop = 0, len(content)
        ranged = wanted is not None and wanted.startswith("bytes=") and not isinstance(fault, IgnoreRange | NoVersion)
        if if_range is not None and if_range != etag and not isinstance(fault, IgnoreIfRange):
            ranged = False
        if ranged and wanted is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
            if isinstance(fault, WrongRange):
                start = 0
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"}, body)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206 if ranged else 200, content[start:stop], headers, body, fault)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], body: bool, fault: Fault | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        if isinstance(fault, Trickle):
            for at in range(len(content)):
                self.wfile.write(content[at : at + 1])
                if self.server.owner._closing.wait(fault.pause_s):
                    return
        after = getattr(fault, "after", None)
        sent = content if after is None else content[:after]
        for at in range(0, len(sent), 1 << 16):
            if self.server.owner.pace:
                self.server.owner._closing.wait(self.server.owner.pace)
            self.wfile.write(sent[at : at + (1 << 16)])
        self.wfile.flush()
        if isinstance(fault, Stall):
            self.server.owner._closing.wait(60)
        if isinstance(fault, Reset):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if after is not None:
            self.close_connection = True
