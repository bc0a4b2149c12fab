"""`paired-index doctor`: is this machine, and is this build, in order?"""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import bars, table
from paired_index_assets.errors import DamagedArtifact, MissingInput, PairedIndexError, of_the_system
from paired_index_assets.fetching.sources import parse_sources, shown
from paired_index_assets.files.deadline import within
from paired_index_assets.files.storage import is_local, nearest_folder, patiently
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import list_folder
from paired_index_assets.settings import Settings, load_settings

PATIENCE_SECONDS = 8.0  # with each part of a deployment, so that all of them have answered, or not, within half a minute
PACKAGES = ("dagster", "faiss-gpu", "torch", "open_clip_torch", "numpy", "pyarrow")


@dataclass(frozen=True)
class Patient:
    """Without a root that answers, its remembered settings are unknown; the other parts are still asked."""

    settings: Settings
    root_error: PairedIndexError | None = None


def examine(**given: Any) -> Patient:
    try:
        return Patient(load_settings(**given))
    except (PairedIndexError, OSError) as error:
        if (named := error if isinstance(error, PairedIndexError) else of_the_system(error)) is None:
            raise
        return Patient(load_settings(ask_root=False, **given), named)


@takes_settings(load=examine)
def doctor(patient: Patient) -> None:
    """Check packages, processor and GPU, each part of the deployment, and every artifact of a build; say what to fix."""
    settings, root_error = patient.settings, patient.root_error
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python and packages", _packages),
        ("processor and GPU", _hardware),
        ("root", lambda: within(PATIENCE_SECONDS, settings.root, lambda: _root(settings, root_error))),
        ("landing and sources", lambda: _landing(settings)),
        ("Dagster", lambda: _dagster(settings)),
    ]
    if root_error is None:
        checks += [
            ("tables", lambda: _tables(settings)),
            ("trained index", lambda: _trained(settings)),
            ("generations", lambda: _generations(settings)),
            ("shards", lambda: _shards(settings)),
            ("rows", lambda: _rows(settings)),
        ]
    rows, failed = [], []
    for name, check in checks:
        try:
            rows.append([name, "ok", check()])
        except (PairedIndexError, OSError) as error:
            rows.append([name, "FIX", str(error)])
            failed.append(name)
    table(f"paired-index doctor, root {settings.root}", ["what", "", "found"], rows)
    if failed:
        raise DamagedArtifact(f"{', '.join(failed)}: see the table for what to do")


def _packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except ModuleNotFoundError:
            if name != "faiss-gpu":
                raise DamagedArtifact(f"{name} is not installed; run `make install`") from None
            found.append(f"faiss-cpu {version('faiss-cpu')}")
    return f"Python {platform.python_version()}, " + ", ".join(found)


def _hardware() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, " + (
        ", ".join(gpus) or "no GPU: everything runs on the CPU"
    )


def _root(settings: Settings, root_error: PairedIndexError | None) -> str:
    if root_error is not None:
        raise root_error
    root = settings.build_root.root
    if not is_local(root):
        asked = root / ".paired-index-doctor"
        patiently(root, lambda: asked.write_bytes(b"?"))
        patiently(root, asked.read_bytes)
        patiently(root, asked.unlink)
        return f"{root}: readable and writable; copies of it in {settings.build_root.cache.folder}"
    folder = nearest_folder(root)
    probe = folder / ".paired-index-doctor"
    probe.write_bytes(b"")
    probe.unlink()
    return f"{root}: writable, {shutil.disk_usage(folder).free / 1e9:,.0f} GB free"


def _landing(settings: Settings) -> str:
    places = [*([settings.landing] if settings.landing else []), *parse_sources(settings.sources)]
    share = PATIENCE_SECONDS / max(len(places), 1)
    counts = [f"{shown(place)}: {len(within(share, shown(place), partial(list_folder, place))):,} files" for place in places]
    return "; ".join(counts) or "none set: the embeddings of the build itself are indexed"


def _dagster(settings: Settings) -> str:
    from paired_index_assets.assets.instance import open_instance, reach_launcher

    if (home := _home(settings)) is None:
        return "no records yet"
    with open_instance(home) as instance:
        return f"{home}/dagster.yaml: {type(instance.run_storage).__name__} answers; {reach_launcher(instance)}"


def _home(settings: Settings) -> Path | None:
    """Where dagster.yaml is; None before the first build or UI, which puts one there."""
    home = Path(os.environ.get("DAGSTER_HOME") or (f"{settings.root}/dagster" if is_local(settings.build_root.root) else "."))
    return home if (home / "dagster.yaml").exists() else None


def _tables(settings: Settings) -> str:
    """Every small table is read whole and held against the digest of its content; all that are damaged are named."""
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.embeddings.metadata import check_metadata
    from paired_index_assets.pairing.pairs import read_pairs
    from paired_index_assets.pairing.split import Split
    from paired_index_assets.shards.manifest import read_manifest
    from paired_index_assets.shards.removals import read_log

    root, build = settings.build_root, OpenBuild(settings)
    tables: list[tuple[str, Callable[[], object]]] = [
        ("catalog", lambda: Catalog.load(root.catalog)),
        ("images", lambda: check_metadata(build.images)),
        ("captions", lambda: check_metadata(build.captions)),
        ("pairs", lambda: read_pairs(root.pairs)),
        ("split", lambda: Split.load(root.split)),
        ("manifest", lambda: read_manifest(root)),
        ("takedown log", lambda: read_log(root)),
    ]
    there, damaged = [], []
    for name, read in tables:
        try:
            read()
            there.append(name)
        except MissingInput:
            continue
        except DamagedArtifact as error:
            damaged.append(str(error))
    if damaged:
        raise DamagedArtifact("; ".join(damaged))
    return ", ".join(there) + ": as written"


def _trained(settings: Settings) -> str:
    from paired_index_assets.trained.promotion import promoted_index

    if not settings.build_root.promoted.exists():
        return "none yet"
    trained = promoted_index(settings.build_root)
    return f"{trained.method}, {trained.nlist} lists, {trained.codec.name}, fingerprint {trained.fingerprint}: whole"


def _generations(settings: Settings) -> str:
    from paired_index_assets.shards.generations import served_generation
    from paired_index_assets.shards.sweeping import being_made, bytes_of, unexpected
    from paired_index_assets.trained.promotion import promoted_index

    root = settings.build_root
    if not (root.promoted.exists() and root.catalog.exists()):
        return "none yet"
    trained, catalog, served = promoted_index(root), Catalog.load(root.catalog), served_generation(root)
    if lines := unexpected(root, trained.fingerprint, catalog):
        raise DamagedArtifact("; ".join(lines))
    if served is None:
        return "none yet"
    found = f"{served.fingerprint} is served, {bytes_of(served) / 1e9:,.3g} GB"
    made = being_made(root, trained.fingerprint, catalog)
    if made is None:
        return found
    lacking = ", ".join(map(str, made.lacking)) or "none: the next run of a shard serves it"
    return (
        f"{found}; {made.generation.fingerprint} is being made beside it, {len(made.finished)} shards, {bytes_of(made.generation) / 1e9:,.3g} "
        f"GB, and is served when it has these too: {lacking}. Where files for them will never land again, build with --in-place"
    )


def _shards(settings: Settings) -> str:
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.builds.outlook import require_what_was_promised, waiting
    from paired_index_assets.search.sharded import ShardedIndex
    from paired_index_assets.shards.generations import served_generation

    if served_generation(settings.build_root) is None:
        return "none yet"
    with ShardedIndex.open(settings.build_root, verify=True, packed=False, partial=True) as index:
        missing, shards = index.missing, len(index.shards) + len(index.missing)
        found = f"{len(index.shards)} shards, {index.ntotal:,} vectors, every byte as recorded"
    if missing:
        waits = [one for one in waiting(OpenBuild(settings)) if one.shard in missing]
        unexplained = missing.keys() - {one.shard for one in waits}
        if unexplained:
            raise DamagedArtifact("; ".join(missing[shard] for shard in sorted(unexplained)))
        require_what_was_promised(waits, shards)
        return f"{found}; {len(waits)} more wait for files that are known to be missing: " + "; ".join(one.why for one in waits)
    with ShardedIndex.open(settings.build_root, verify=True) as index:
        return f"{found}; packed layout: {index.packed}"


def _rows(settings: Settings) -> str:
    """What the blocking checks of a build count, counted again."""
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.evidence.conservation import account_of_build, rows_are_conserved, served_catalog
    from paired_index_assets.search.shardset import served_index
    from paired_index_assets.shards.record import finished_shards

    if not settings.build_root.manifest.exists():
        return "none yet"
    build, served = OpenBuild(settings), served_index(settings.build_root)
    conserved = rows_are_conserved(build)
    finished = finished_shards(served.generation)
    with bars() as progress:
        accounts = account_of_build(build, served_catalog(build), served.trained, list(finished), progress=progress)
    gone = sum(len(account.gone) for account in accounts)
    compared = f"{sum(account.compared for account in accounts):,} rows decoded by stock faiss are those of their ids"
    return f"{conserved}; {compared}" + (
        f"; the source of {gone} files is gone or another now: their rows were not compared" if gone else ""
    )
