"""A real server on a free port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from paired_index_assets.serving.server import configured, make_app
from paired_index_assets.serving.service import SearchService


@contextmanager
def served(service: SearchService, **more: Any) -> Iterator[int]:
    """The port it listens on; `more` is for `make_app`."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        server = uvicorn.Server(configured(make_app(service, **more), service.limits))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)
