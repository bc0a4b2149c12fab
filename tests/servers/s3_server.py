"""A real S3 server on loopback (moto's), with faults put in front of it: errors, bodies cut short, slow bodies.

    python s3_server.py -H HOST -p PORT --trouble FILE     # the same as a process: faults while there is such a file

    with S3Server() as server:
        environment = server.environment     # what a process needs to reach it
        server.faults = every(7, Status(503), Truncate(1000))
        ... server.requests                  # (method, path) of what was asked, in order

A plain module, so that any test folder can use it.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


@dataclass(frozen=True)
class Status:
    code: int


@dataclass(frozen=True)
class Truncate:
    """Promise the whole body, send `after` bytes of it, close."""

    after: int


@dataclass(frozen=True)
class Slow:
    """Wait before each of the body's pieces."""

    pause_s: float
    piece: int = 1 << 16


Fault = Status | Truncate | Slow
Faults = Callable[[str, str], Fault | None]


def every(nth: int, *faults: Fault) -> Faults:
    """One of `faults`, in turn, on each `nth` request."""
    count, turn, lock = itertools.count(1), itertools.cycle(faults), threading.Lock()

    def choose(method: str, path: str) -> Fault | None:
        with lock:
            return next(turn) if next(count) % nth == 0 else None

    return choose


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@dataclass
class S3Server:
    faults: Faults | None = None
    host: str = "127.0.0.1"
    port: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> S3Server:
        self._backend = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(self.host, self.port, self._answer, threaded=True, request_handler=_Quiet)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.faults(method, path) if self.faults else None
        if isinstance(fault, Status):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = b"" if method == "HEAD" else b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            start_response(f"{fault.code} Trouble", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        answer: Iterable[bytes] = self._backend(environ, start_response)
        return answer if fault is None else _spoilt(b"".join(answer), fault)


def _spoilt(body: bytes, fault: Truncate | Slow) -> Iterator[bytes]:
    if isinstance(fault, Truncate):
        yield body[: fault.after]
        if len(body) > fault.after:
            raise ConnectionAbortedError("cut short, as asked")
        return
    for start in range(0, len(body), fault.piece):
        time.sleep(fault.pause_s)
        yield body[start : start + fault.piece]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("-H", "--host", required=True)
    options.add_argument("-p", "--port", type=int, required=True)
    options.add_argument("--trouble", type=Path, required=True)
    chosen = options.parse_args()
    choose = every(5, Status(503), Truncate(100), Slow(0.05, piece=4096), Status(500))

    def faults(method: str, path: str) -> Fault | None:
        try:
            with chosen.trouble.open("r+") as log:  # not "a", which would bring a file back that was just deleted
                log.seek(0, 2)
                fault = choose(method, path)
                log.write(f"{method} {path} {fault}\n" if fault else "")
        except FileNotFoundError:
            return None
        return fault

    with S3Server(faults, chosen.host, chosen.port):
        threading.Event().wait()


if __name__ == "__main__":
    main()
