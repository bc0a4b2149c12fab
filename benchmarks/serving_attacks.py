"""What honest clients of `paired-index serve` see beside each attack: latencies, refusals, and the memory of the server.

    python benchmarks/serving_attacks.py [--seconds 6] [--quick]

The server is a process of its own on loopback, on a small build with pictures; honest clients are 4 that send vectors over kept connections and
one that asks /healthz. Attacks are those of tests/serving/attackers.py. Ratio: p99 of the honest beside the attack, over p99 without.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "serving"), str(TESTS / "search")]
from attackers import answer_to, begun_upload, connected, connections, huge_png, many_scans, request  # type: ignore[import-not-found]  # noqa: E402
from search_builds import D, WordEncoder, make  # type: ignore[import-not-found]  # noqa: E402

CLIENTS = 4


def serve_here(root: str, port: int) -> None:
    from paired_index_assets.serving.server import make_app, serve
    from paired_index_assets.serving.service import SearchService

    service = SearchService.of_build(root, WordEncoder())
    serve(make_app(service), service.limits, port=port)


@contextmanager
def server(root: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", root, str(port)])
    try:
        while True:
            try:
                if answer_to(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200:
                    break
            except OSError:
                time.sleep(0.1)
        yield port, process
    finally:
        process.kill()
        process.wait()


class Honest:
    """Clients that measure until `stop` is set."""

    def __init__(self, port: int) -> None:
        self.port, self.stop = port, threading.Event()
        self.seconds: dict[str, list[float]] = {"search": [], "healthz": []}
        self.refused = 0
        self._threads = [threading.Thread(target=self._ask, args=("search", number)) for number in range(CLIENTS)]
        self._threads.append(threading.Thread(target=self._ask, args=("healthz", 99)))
        for thread in self._threads:
            thread.start()

    def _ask(self, kind: str, number: int) -> None:
        draw, connection = np.random.default_rng(number), None
        while not self.stop.is_set():
            body = json.dumps({"embedding_input": draw.normal(size=D).tolist(), "num_images": 10})
            began = time.perf_counter()
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                if kind == "search":
                    connection.request("POST", "/knn-service", body)
                else:
                    connection.request("GET", "/healthz")
                answer = connection.getresponse()
                answer.read()
                self.refused += answer.status != 200
            except (OSError, http.client.HTTPException):
                self.refused, connection = self.refused + 1, None
            self.seconds[kind].append(time.perf_counter() - began)
            time.sleep(0.005)

    def done(self) -> tuple[dict[str, list[float]], int]:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        return self.seconds, self.refused


def resident(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) >> 10


def attacks(seconds: float) -> dict[str, Callable[[int], None]]:
    """Each goes on for `seconds`."""

    def until(port: int, work: Callable[[], object], threads: int) -> None:
        end = time.monotonic() + seconds

        def repeat() -> None:
            while time.monotonic() < end:
                try:
                    work()
                except OSError:
                    continue

        workers = [threading.Thread(target=repeat) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def hold(number: int, first: bytes) -> Callable[[int], None]:
        def run(port: int) -> None:
            with connections(port, number, first):
                time.sleep(seconds)

        return run

    def repeated(sent: bytes, threads: int = 8) -> Callable[[int], None]:
        return lambda port: until(port, lambda: answer_to(port, sent, 30), threads)

    def picture(content: bytes) -> bytes:
        sent: bytes = request(json.dumps({"image": base64.b64encode(content).decode()}).encode())
        return sent

    jpeg = io.BytesIO()
    Image.effect_noise((2000, 2000), 50).convert("RGB").save(jpeg, "JPEG", progressive=True)
    chunks = b"POST /knn-service HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 2_000_000
    many = request(json.dumps({"ids": list(range(3000))}).encode(), path="/metadata")
    return {
        "nothing": lambda port: time.sleep(seconds),
        "1,030 half-open connections": hold(1030, b"POST /knn-service HTT"),
        "600 slow uploads": hold(600, begun_upload()),
        "64 slow uploads of 16 MiB": hold(64, begun_upload(16 << 20) + b" " * (2 << 20)),
        "16 MiB of empty strings": repeated(request(b'{"embedding_input": [%s]}' % b",".join([b'""'] * 5_000_000))),
        "1 MiB of empty lists": repeated(request(b'{"embedding_input": [%s]}' % b",".join([b"[]"] * 340_000))),
        "PNG of 132 million pixels": repeated(picture(huge_png(12_000, 11_000))),
        "PNG of 33 million pixels": repeated(picture(huge_png(5_700, 5_800))),
        "JPEG of 400 scans": repeated(picture(many_scans(jpeg.getvalue(), 400))),
        "bodies in chunks of a byte": repeated(chunks, 4),
        "answers that are not read": hold(64, many * 40),
        "connect and leave": lambda port: until(port, lambda: connected(port).__enter__().close(), 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--quick", action="store_true", help="half a second each")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve_here(given.serve[0], int(given.serve[1]))
    seconds = 0.5 if given.quick else given.seconds
    print("| beside | search p99, ratio | p50 ms | p99 ms | worst ms | /healthz p99 ms | honest refused | of | server MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    calm = None
    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder)).root.root.path
        for name, attack in attacks(seconds).items():
            with server(root) as (port, process):
                honest, most = Honest(port), [0]
                watching = threading.Event()

                def watch(process: subprocess.Popen[bytes] = process, most: list[int] = most, watching: threading.Event = watching) -> None:
                    while not watching.wait(0.05):
                        most[0] = max(most[0], resident(process))

                watcher = threading.Thread(target=watch)
                watcher.start()
                attack(port)
                times, refused = honest.done()
                watching.set()
                watcher.join()
                p50, p99, worst = (1000 * float(np.quantile(times["search"], q)) for q in (0.5, 0.99, 1))
                health = 1000 * float(np.quantile(times["healthz"], 0.99))
                calm = calm or p99
                asked = len(times["search"]) + len(times["healthz"])
                print(
                    f"| {name} | {p99 / calm:.1f} | {p50:.1f} | {p99:.1f} | {worst:.0f} | {health:.1f} | {refused} | {asked:,} | {most[0]:,} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
