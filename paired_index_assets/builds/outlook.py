"""Which shards a build can make, which it can try to, and which wait for what.

A source that lists its files is believed. Of one that does not (a server without index, or one that is down for a moment) each file is
asked for, and where the answer is no clear no, its shard is tried: fetching has the patience for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.errors import PairedIndexError
from paired_index_assets.fetching.sources import NotAtSource, Patience, Politeness, TemporaryFault, source_at
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import Listing, is_complete
from paired_index_assets.shards.encode import kept_segment
from paired_index_assets.shards.record import read_failure
from paired_index_assets.shards.state import ShardState, shard_states

GIVEN_UP = 3  # questions in a row without an answer, and no more are asked of a source
SAID = 3  # files, and shards, named in one line


@dataclass(frozen=True)
class Outlook:
    ready: tuple[int, ...]  # everything is there, or they are finished
    to_try: tuple[int, ...]  # of some files nobody knows whether a source has them


@dataclass(frozen=True)
class Waiting:
    """A shard that is not finished. `promised` if it lacks more than files that the catalog knows to be missing."""

    shard: int
    why: str
    promised: bool


def outlook(build: OpenBuild) -> Outlook:
    """The shards to build, in order; the others wait."""
    states, settings = _states(build), build.settings
    lacking = {state.shard: _lacking(build, state.shard, build.available) for state in states if state.state == "waiting"}
    ready = tuple(state.shard for state in states if not lacking.get(state.shard))
    missing = {shard: files for shard, files in lacking.items() if files}
    if settings.rebuild_from:
        return Outlook(ready, tuple(missing))
    asked = {file.name: file for file in chain.from_iterable(missing.values())}
    maybe = _maybe(build.silent_sources, list(asked.values()), settings.parallel_downloads)
    return Outlook(ready, tuple(shard for shard, files in missing.items() if all(file.name in maybe for file in files)))


def waiting(build: OpenBuild) -> list[Waiting]:
    """The shards that are not finished now, and why."""
    trained = build.promoted
    found = []
    for state in _states(build):
        if state.state == "current":
            continue
        files = _lacking(build, state.shard, build.listing)
        reasons = read_failure(build.root.generation(trained.fingerprint).shard(trained.codec.name, state.shard))
        why = "; ".join(f"{file.name} {reasons.get(file.file_id, _nowhere(file))}" for file in files[:SAID])
        more = f"; and {len(files) - SAID} more files" if len(files) > SAID else ""
        found.append(
            Waiting(state.shard, f"{why}{more}" if files else state.why, any(not file.known_missing for file in files) or not files)
        )
    return found


def require_what_was_promised(waits: Sequence[Waiting], shards: int) -> None:
    """Raises PairedIndexError naming the shards that wait for promised files, or if there is no finished shard at all."""
    promised = [one for one in waits if one.promised]
    if not promised and len(waits) < shards:
        return
    named = promised or list(waits)
    shown = "; ".join(f"shard {one.shard} for {one.why}" for one in named[:SAID])
    more = f"; and {len(named) - SAID} more shards" if len(named) > SAID else ""
    raise PairedIndexError(
        f"{len(named)} of {shards} shards wait: {shown}{more}. Land the files, or set `sources` or `rebuild_from`; the same command then goes on"
    )


def _states(build: OpenBuild) -> list[ShardState]:
    trained = build.promoted
    return shard_states(build.root, trained.codec.name, trained.fingerprint, build.catalog, build.listing)


def _lacking(build: OpenBuild, shard: int, listing: Listing) -> list[CatalogFile]:
    """The shard's files that are neither encoded nor in `listing`."""
    lacking = []
    for file in build.catalog.files(shard):
        landed = listing.get(file.name)
        if landed is None or not is_complete(landed, build.catalog):
            landed = None
        if landed is None and kept_segment(build.root, build.promoted.fingerprint, file, None) is None:
            lacking.append(file)
    return lacking


def _nowhere(file: CatalogFile) -> str:
    return "is known to be missing" if file.known_missing else "has not landed, and no source has it"


def _maybe(sources: Sequence[str], files: Sequence[CatalogFile], at_once: int) -> set[str]:
    """The names of the files that some source has, or may have."""
    found: set[str] = set()
    for url in sources:
        ask = _Asked(url, Politeness(at_once))
        with ThreadPoolExecutor(at_once, thread_name_prefix="ask") as pool:
            answers: list[Callable[[], bool]] = [pool.submit(partial(ask, file)).result for file in files]
            found |= {file.name for file, answer in zip(files, answers, strict=True) if answer()}
    return found


class _Asked:
    """Whether a source may have a file: False where it says no. Without answers, it may have all of them."""

    def __init__(self, url: str, politeness: Politeness) -> None:
        self._url, self._politeness, self._silent = url, politeness, 0

    def __call__(self, file: CatalogFile) -> bool:
        if self._silent >= GIVEN_UP:
            return True
        try:
            with self._politeness.turn(self._url), source_at(self._url).open(file.name, 0, None, Patience()) as answer:
                self._silent = 0
                return answer.size is None or answer.size == file.bytes
        except NotAtSource:
            self._silent = 0
            return False
        except TemporaryFault:
            self._silent += 1
            return True
