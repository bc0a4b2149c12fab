"""The rehearsal as a story: what an operator does, what a download does, and what breaks, until every shard is whole. It ends by itself.

train on a sample -> `paired-index ui` -> files land in random order, some cut -> the sensor's backfills
-> kill -9 of a run, the daemon, everything, at random, as long as shards are made -> a built file is replaced -> rows are taken down,
by id and by md5 -> the cut files are repaired -> a retraining, queried meanwhile -> the late files -> the missing ones, lossily
-> more rows are taken down, their shards rebuilt -> manifest, packed file and report are of what is served -> the UI is stopped
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from laion_rehearsal.landing import md5_of, write_order, write_sample
from laion_rehearsal.operated import Operated, command
from laion_rehearsal.plan import Plan
from laion_rehearsal.published import write_published
from laion_rehearsal.watching import Watch
from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.settings import load_settings
from paired_index_assets.shards.state import ShardState, shard_states

TICK_SECONDS = 5
QUIET_TICKS = 12
MOST_QUERIES = 10_000
NITER, SEED_AGAIN = 4, 4321  # another seed, since more iterations may end in the same centroids


@dataclass
class Story:
    """What happened: kills by kind, seconds until things were so, what was seen while a generation was replaced."""

    plan: Plan
    ui: Operated
    watch: Watch
    kills: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    during: dict[str, Any] = field(default_factory=dict)
    changed: CatalogFile | None = None  # got other rows once its shard was built
    landed_s: float = 0.0
    landing_cpu_s: float = 0.0  # of the processes that made the files which land
    first_cpu_s: float = 0.0  # of all others but this one, from the first byte until all that landed was built
    first_shards: int = 0
    anew_s: float = 0.0  # from the promotion of the second trained index to its last shard that could be built
    anew_shards: int = 0

    def tell(self, line: str) -> None:
        self.said.append(line)
        print(f"   {line}", flush=True)


def rehearse(plan: Plan, patience_seconds: float, *, retrain: bool = True, seed: int = 0) -> Story:
    ui = Operated(plan, patience_seconds)
    watch = Watch(plan.work, lambda: [ui.process.pid] if ui.process is not None else [])
    story = Story(plan, ui, watch)
    chaos = Chaos(story, seed)
    try:
        with watch.stage("make the sample and a published index"):
            story.tell(f"{write_sample(plan):,} pairs to train on, {write_published(plan):,} rows in the published index")
        with watch.stage("train on the sample"):
            _train(plan)
        with watch.stage("the UI starts"):
            ui.start()
        with watch.stage("land in random order, build what is complete") as landing:
            _land_and_build(story, chaos)
        if retrain:
            with watch.stage("train again, build all shards anew beside the served ones"):
                _retrain(story, chaos)
        with watch.stage("late files") as late:
            _landed(story, "late", [(file, 0, 1.0) for file in _files(plan, plan.mischief.late)])
            _all_current(story, but=plan.mischief.missing)
        if not retrain:
            theirs = sum(stage.cpu - stage.driver_cpu for stage in (landing, late))
            story.first_cpu_s, story.first_shards = theirs - story.landing_cpu_s, ui.finished()
        with watch.stage("missing files, rebuilt lossily"):
            _rebuild_missing(story)
        with watch.stage("take down again, rebuild those shards"):
            _take_down_by_md5(story)
        with watch.stage("manifest, packed file, report"):
            _settle(story)
        ui.kill()
    except BaseException:
        ui.kill()
        raise
    return story


class Chaos:
    """kill -9 of a run, of the daemon, and of everything that `paired-index ui` started, at random moments, each at least once."""

    KINDS = ("run", "daemon", "everything")

    def __init__(self, story: Story, seed: int) -> None:
        self._story, self._rng = story, np.random.default_rng([story.plan.seed, seed, 8])
        self._next = time.monotonic() + self._rng.uniform(10, 30)
        self._turn = list(self._rng.permutation(self.KINDS))

    def maybe(self) -> None:
        """Called again and again while something is made."""
        if time.monotonic() < self._next or not self._turn:
            return
        if self._kill(str(self._turn[0])):
            self._turn.pop(0)
            self._next = time.monotonic() + self._rng.uniform(25, 60)

    def _kill(self, kind: str) -> int:
        ui = self._story.ui
        if kind == "everything":
            killed = len(ui.processes())
            ui.kill()
            ui.start()
        else:
            killed = ui.kill_a_run() if kind == "run" else ui.kill_daemon()
        if killed:
            self._story.kills[kind] = self._story.kills.get(kind, 0) + 1
            self._story.tell(f"kill -9: {kind} ({killed} processes), {ui.finished()} shards were finished")
        return killed

    def until(self, true: Callable[[], bool], what: str) -> None:
        def or_kill() -> bool:
            self.maybe()
            return true()

        self._story.ui.until(or_kill, what)


def _train(plan: Plan) -> None:
    plan.catalog.save(plan.work / "catalog.parquet")
    plan.landing.mkdir()
    folders = ["--image-features", plan.sample / "img_emb", "--caption-features", plan.sample / "text_emb"]
    where = ["--root", plan.root, "--catalog", plan.work / "catalog.parquet", "--landing", plan.landing, "--shards", plan.catalog.shards]
    lists = ["--nlist", plan.nlist] if plan.nlist else []
    judged = ["--validation-captions", plan.held_out, "--test-captions", plan.held_out, "--niter", NITER, "--tick-seconds", TICK_SECONDS]
    command("build", *where, *folders, *lists, *judged, waits=True)


def _land(plan: Plan, name: str, files: list[tuple[CatalogFile, int, float]]) -> subprocess.Popen[bytes]:
    """The download as a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "laion_rehearsal.landing", str(write_order(plan, name, files))])


def _landed(story: Story, name: str, files: list[tuple[CatalogFile, int, float]]) -> None:
    """The same, waited for."""
    download = _land(story.plan, name, files)
    download.wait()
    story.landing_cpu_s += story.watch.cpu_of(download.pid)


def _files(plan: Plan, numbers: tuple[int, ...]) -> list[CatalogFile]:
    return [plan.catalog.all_files[number] for number in numbers]


def _waiting_shards(plan: Plan, *kinds: tuple[int, ...]) -> set[int]:
    return {plan.catalog.all_files[number].shard for numbers in kinds for number in numbers}


def _land_and_build(story: Story, chaos: Chaos) -> None:
    """The first download, killed and started again; then what the operator does once the first shards are there."""
    plan, ui, began = story.plan, story.ui, time.monotonic()
    cut = set(plan.mischief.truncated)
    order = [(file, 0, 0.6 if file.file_id in cut else 1.0) for file in plan.arrival()]
    download = _land(plan, "download", order)
    ui.until(lambda: len(list(plan.landing.glob("*.npy"))) > len(order) // 2, "half of the files")
    download.kill()
    download.wait()
    story.landing_cpu_s += story.watch.cpu_of(download.pid)
    story.kills["download"] = 1
    download = _land(plan, "download", order)
    chaos.until(lambda: download.poll() is not None, "the download")
    story.landed_s, story.landing_cpu_s = time.monotonic() - began, story.landing_cpu_s + story.watch.cpu_of(download.pid)
    waiting = _waiting_shards(plan, plan.mischief.missing, plan.mischief.late)
    cut_shards = _waiting_shards(plan, plan.mischief.truncated)
    buildable = set(range(plan.catalog.shards)) - waiting - cut_shards
    some = min(len(buildable), 10)
    chaos.until(lambda: ui.finished() >= some, f"{some} shards")
    story.tell(f"{time.monotonic() - began:.0f} s after the first byte {ui.finished()} shards are finished")
    story.tell("paired-index status: " + command("status", "--root", plan.root).splitlines()[-1])
    _change_a_file(story)
    _take_down_by_id(story)
    _landed(story, "repair", [(file, 0, 1.0) for file in _files(plan, plan.mischief.truncated)])
    if not _waiting_shards(plan, plan.mischief.truncated) <= waiting:
        chaos.until(lambda: ui.finished() > some, "shards after the repair")


def _change_a_file(story: Story) -> None:
    """A file of a finished shard gets other rows, under its name, in one step."""
    plan, states = story.plan, _states(story)
    finished = {state.shard for state in states if state.state == "current"}
    file = next((file for file in plan.arrival() if file.shard in finished and file.file_id not in plan.mischief.unusable), None)
    if file is None:
        raise SystemExit(
            f"{plan.root}: no shard is current, so none can be changed after it was built; found {[s.why for s in states][:3]}"
        )
    _landed(story, "change", [(file, 1, 1.0)])
    story.changed = file
    story.tell(f"{file.name} replaced by other rows; its shard {file.shard} was finished")


def _take_down_by_id(story: Story) -> None:
    by_id, _ = story.plan.to_take_down()
    path = story.plan.work / "removals.ids.txt"
    path.write_text("\n".join(map(str, by_id)))
    command("takedown", "--root", story.plan.root, "--ids", path)
    story.removed += by_id
    story.tell(f"{len(by_id):,} rows taken down by id while shards were made")


def _take_down_by_md5(story: Story) -> None:
    """As Re-LAION's lists do; then the shards that hold those rows are rebuilt, as the nightly schedule would."""
    _, by_md5 = story.plan.to_take_down()
    path = story.plan.work / "removals.md5.txt"
    path.write_text("\n".join(md5_of(row) for row in by_md5))
    command("takedown", "--root", story.plan.root, "--md5", path)
    story.removed = sorted({*story.removed, *by_md5})
    stale = _not_current(story)
    story.tell(f"{len(by_md5):,} rows taken down by md5, in {len(stale)} shards")
    if stale:
        story.ui.backfill([shard_key(shard) for shard in stale])
    _all_current(story)


def _retrain(story: Story, chaos: Chaos) -> None:
    """A new trained index, its generation built beside the served one, and queries all the while."""
    plan, ui = story.plan, story.ui
    before = ui.served()
    stop, out = plan.work / "stop-asking", plan.work / "during.json"
    queries = plan.work / "queries.npy"
    np.save(queries, np.concatenate([plan.geometry.captions(file.file_id, file.rows) for file in plan.sampled()[:4]]))
    asking = subprocess.Popen(
        [sys.executable, "-m", "laion_rehearsal.searching", "during", plan.root, queries, out, stop, str(MOST_QUERIES)]
    )
    try:
        ui.train(seed=SEED_AGAIN)
        promoted = json.loads((plan.root / "trained" / "promoted.json").read_text())["fingerprint"]
        if promoted == before:
            raise SystemExit(f"{plan.root}: the second training came to the same trained index, {before}; rehearse with another --seed")
        began = time.monotonic()
        chaos.until(lambda: ui.served() == promoted, "the new generation to be served")
        story.tell(f"{before} was served until {promoted} was whole, {time.monotonic() - began:.0f} s after it was promoted")
        chaos.until(lambda: not _not_current(story, (*plan.mischief.missing, *plan.mischief.late)), "the others of its shards")
        story.anew_s, story.anew_shards = time.monotonic() - began, ui.finished()
    finally:
        stop.touch()
        asking.wait()
        story.during = json.loads(out.read_text()) if out.exists() else {}


def _rebuild_missing(story: Story) -> None:
    """No source has them: the operator backfills the shards that wait, with the folder of the published index."""
    plan = story.plan
    waiting = _not_current(story)
    if not waiting:
        return
    story.tell(f"{len(plan.mischief.missing)} files are missing, {len(waiting)} shards wait for them")
    story.ui.backfill([shard_key(shard) for shard in waiting], rebuild_from=str(plan.published))
    _all_current(story)


def _build_of(plan: Plan) -> OpenBuild:
    return OpenBuild(load_settings(root=str(plan.root)))


def catalog_of(plan: Plan) -> Catalog:
    return _build_of(plan).catalog


def _not_current(story: Story, but: tuple[int, ...] = ()) -> list[int]:
    """Shards that a build would make or change now, or that wait; without those that wait for the files `but`."""
    excused = _waiting_shards(story.plan, but)
    return [state.shard for state in _states(story) if state.state != "current" and state.shard not in excused]


def _states(story: Story) -> list[ShardState]:
    build = _build_of(story.plan)
    return shard_states(build.root, build.promoted.codec.name, build.promoted.fingerprint, build.catalog, build.listing)


def _all_current(story: Story, but: tuple[int, ...] = ()) -> None:
    """Until every shard is what its files, the trained index and the removals say. What no event tells the daemon of (rows taken down),
    and what was missed, the nightly schedule would rebuild: where nothing runs any more, the drive asks for it, and says so."""
    quiet_since = [time.monotonic()]

    def current() -> bool:
        stale = _not_current(story, but)
        if stale and story.ui.unfinished_runs():
            quiet_since[0] = time.monotonic()
        elif stale and time.monotonic() - quiet_since[0] > QUIET_TICKS * TICK_SECONDS:
            quiet_since[0] = time.monotonic()
            story.tell(f"for the night: {len(stale)} shards that no event asks for: {', '.join(map(str, stale))}")
            story.ui.backfill([shard_key(shard) for shard in stale])
        return not stale

    story.ui.until(current, f"all shards but those of files {but}" if but else "all shards")


def _settle(story: Story) -> None:
    """Until nothing runs, and the manifest, the packed file and the report are of the shards that are served."""
    plan, ui = story.plan, story.ui

    def settled() -> bool:
        packed = plan.root / "generations" / ui.served() / "packed" / "packed.json"
        report = plan.root / "report" / "recall.json"
        newest = max(path.stat().st_mtime for path in (plan.root / "generations" / ui.served() / "records").glob("index*.json"))
        fresh = all(path.exists() and path.stat().st_mtime > newest for path in (packed, report, plan.root / "manifest.parquet"))
        return fresh and ui.unfinished_runs() == 0

    ui.until(settled, "manifest, packed file and report of what is served")
    shown, built = ui.shown_as_built(), {shard_key(shard) for shard in range(plan.catalog.shards)}
    if shown != built:
        raise SystemExit(f"{plan.root}: the UI shows {len(shown)} shards as built, {len(built)} are; {sorted(built ^ shown)[:5]}")
    story.tell(f"the UI shows {len(shown)} shards as built, as the files are")
    story.tell(f"{ui.deaths} times the UI was found dead and started again")


def what_was_wrong(during: dict[str, Any]) -> list[str]:
    """The faults of what was served during the retraining: fewer shards than a moment before, another switch than one, an error."""
    faults = [str(error) for error in during.get("errors", [])]
    seen = during.get("seen", [])
    for (before, many, *_), (after, now, *_) in pairwise(seen):
        if now < many:
            faults.append(f"{before} was served with {many} shards, then {after} with {now}")
    if (switches := sum(a[0] != b[0] for a, b in pairwise(seen))) > 1:
        faults.append(f"the served generation changed {switches} times, expected once")
    return faults
