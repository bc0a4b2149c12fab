"""The files of a shard one after the other, wherever they are: landed, fetched, rebuilt, or waited for with a reason.

Downloads run ahead of the consumer, which may release a file (fetch.release) as soon as it is encoded: a disk budget of a few files
serves a shard of forty.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from upath import UPath

from paired_index_assets.errors import BadInput, OutOfDisk, SourceUnavailable
from paired_index_assets.fetching.fetch import FetchRules, fetch, finished_bytes
from paired_index_assets.fetching.reconstruct import rebuild_file
from paired_index_assets.fetching.sources import Politeness
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import LandedFile, Listing
from paired_index_assets.progress import Progress, silent


@dataclass(frozen=True)
class Obtained:
    """A catalogued file and where it is, or why it cannot be obtained."""

    file: CatalogFile
    landed: LandedFile | None
    reason: str = ""


def obtain(
    files: Sequence[CatalogFile],
    listing: Listing,
    sources: Sequence[str],
    cache: UPath | Path | str,
    *,
    rebuild_from: UPath | Path | str | None = None,
    ahead: int = 2,
    rules: FetchRules | None = None,
    politeness: Politeness | None = None,
    progress: Progress = silent,
) -> Iterator[Obtained]:
    """Each of `files` in order: from `listing` if complete there, else fetched from `sources` into `cache`, else rebuilt from the index
    files in `rebuild_from`, else with `landed` None and the reason. `ahead` downloads run while the consumer works.

    Raises OutOfDisk if a file does not fit even after the consumer has released all earlier ones.
    """
    stop = threading.Event()

    def unless_stopped(step: str, done: int, total: int, /, **facts: float | int | str) -> None:
        if stop.is_set():
            raise _Stopped
        progress(step, done, total, **facts)

    def get(file: CatalogFile) -> Obtained:
        landed = listing.get(file.name)
        if landed is not None and landed.size == file.bytes:
            return Obtained(file, landed)
        try:
            return Obtained(file, fetch(file, sources, cache, rules=rules, politeness=politeness, progress=unless_stopped))
        except (SourceUnavailable, BadInput) as refusal:
            if rebuild_from is None or not isinstance(refusal, SourceUnavailable):
                return Obtained(file, None, str(refusal))
            try:
                return Obtained(file, rebuild_file(file, rebuild_from, cache, progress=unless_stopped))
            except BadInput as fault:
                return Obtained(file, None, f"{refusal}; not rebuilt: {fault}")

    politeness = politeness or Politeness()
    todo = deque(files)
    running: deque[tuple[CatalogFile, Future[Obtained]]] = deque()

    def fits(file: CatalogFile) -> bool:
        """Whether a download ahead leaves the earlier ones their room."""
        if rules is None or rules.budget_bytes is None:
            return True
        coming = sum(earlier.bytes for earlier, future in running if not future.done())
        return finished_bytes(cache) + coming + file.bytes <= rules.budget_bytes

    with ThreadPoolExecutor(max(1, ahead), thread_name_prefix="fetch") as pool:
        try:
            while True:
                while todo and len(running) < max(1, ahead) and (not running or fits(todo[0])):
                    running.append((todo[0], pool.submit(get, todo.popleft())))
                if not running:
                    return
                file, future = running.popleft()
                try:
                    yield future.result()
                except OutOfDisk:  # it ran ahead; by now the consumer may have released what it has read
                    yield pool.submit(partial(get, file)).result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class _Stopped(Exception):
    """The consumer has left; downloads keep their parts."""
