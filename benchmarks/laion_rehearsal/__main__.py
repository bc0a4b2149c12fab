"""`python -m laion_rehearsal --share 0.001`: everything from the forecast to the proofs, and a report in the work folder.

    make laion-rehearsal SHARE=0.001 [WORK=data/laion-rehearsal]
    make laion-shard                     (one shard of full size, in pieces, from made segments: 35 GB of disk)
    python -m laion_rehearsal --made-shards --share 0.01      (58 shards of 131,072 lists from made segments, searched: 60 GB)

All vectors are made (geometry.py), no number is of real data. Ends with exit code 1 and one line where something is not proven.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from laion_rehearsal import made_shards, proofs
from laion_rehearsal.drive import Story, catalog_of, rehearse, what_was_wrong
from laion_rehearsal.forecast import Forecast, Took, compared, projected
from laion_rehearsal.operated import command
from laion_rehearsal.plan import Plan
from laion_rehearsal.records import Records
from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.evidence.captions import captions_reported_on
from paired_index_assets.evidence.conservation import rows_are_conserved
from paired_index_assets.quality.truth import DEEPEST_K
from paired_index_assets.settings import load_settings
from paired_index_assets.shards.generations import trained_of

MOST_COMPARED = 0.002  # shares up to this are built again undisturbed, and multiplied by brute force
NPROBES = (8, 32, 128)
BUILDING = ("land in random order", "late files")  # stages whose largest process builds shards, and does not train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.001)
    parser.add_argument("--work", type=Path, default=Path("data/laion-rehearsal"))
    parser.add_argument("--nlist", type=int, help="lists; left out, as the product chooses by the rows. 131072 is LAION's")
    parser.add_argument("--sample-rows", type=int)
    parser.add_argument("--files", type=int, help="only the first files of the catalog, to try it out")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--patience", type=float, default=3600, help="seconds that any one wait may take")
    parser.add_argument("--no-retrain", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave the work folder, which is deleted when everything is proven")
    parser.add_argument("--full-shard", action="store_true", help="instead: one shard of full size from made segments")
    parser.add_argument("--made-shards", action="store_true", help="instead: all shards from made segments, and searches of them")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what was started is ended
    work = options.work.absolute()
    if work.exists():
        raise SystemExit(f"{work}: exists already; delete it, or choose another folder with WORK=")
    work.mkdir(parents=True)
    if options.made_shards:
        made_shards.run_all(work, options.share, options.files, options.nlist or made_shards.LISTS)
        print("\n".join(["", *_search(work / "root", work / "queries.npy")]), flush=True)
    elif options.full_shard:
        made_shards.run(work, options.files or made_shards.FILES, options.nlist or made_shards.LISTS)
    else:
        plan = Plan(work, options.share, options.seed, options.files, options.nlist, options.sample_rows)
        report = rehearsed(plan, options.patience, retrain=not options.no_retrain)
        print("\n" + report)
        Path(f"{work}.md").write_text(report)
    if not options.keep:
        shutil.rmtree(work)


def rehearsed(plan: Plan, patience_seconds: float, *, retrain: bool) -> str:
    """The report as Markdown. Raises SystemExit where something is not proven."""
    said = [f"# LAION-2B rehearsed at {plan.share:g} of its rows", "", "**Made data**: " + _stated(plan), ""]
    forecast = Forecast.of_plan(plan)
    plan.catalog.save(plan.work / "catalog.parquet")
    machine = ["--nlist", plan.lists, "--pairs", sum(file.rows for file in plan.sampled()), "--nodes", 1, "--root", plan.root]
    machine += ["--test-captions", plan.held_out]
    print(command("catalog", "plan", plan.work / "catalog.parquet", *machine), flush=True)
    story = rehearse(plan, patience_seconds, retrain=retrain)
    try:
        work_s, proven = _prove(plan, story)
        queries = plan.work / "queries.npy"
        if not queries.exists():
            np.save(queries, np.concatenate([plan.geometry.captions(file.file_id, file.rows) for file in plan.sampled()[:4]]))
        with story.watch.stage("search: shards and packed file, cold and warm"):
            searched = _search(plan.root, queries)
    except proofs.NotProven as error:
        raise SystemExit(f"not proven: {error}") from error
    generation = plan.root / "generations" / story.ui.served()
    records = Records.of(plan.root / "dagster")
    total_s = story.anew_s / max(1, story.anew_shards) * plan.catalog.shards
    cpu_s = story.first_cpu_s / max(1, story.first_shards) * plan.catalog.shards
    memory_mb = max(stage.largest_mb for stage in story.watch.stages if stage.name.startswith(BUILDING))
    said += ["## What happened", "", *(f"- {line}" for line in story.said), "", "## Proven", "", *(f"- {line}" for line in proven), ""]
    said += ["## Where time, memory and bytes went", "", *story.watch.table(), ""]
    said += ["## Dagster", "", *(f"- {line}" for line in records.report()), ""]
    said += ["## Search", "", *searched, "", "## Forecast and measured", ""]
    said += [*compared(forecast, generation, Took(memory_mb, work_s, total_s, cpu_s)), ""]
    if work_s and story.anew_shards:
        start_s = max(0.0, total_s - work_s) / plan.catalog.shards
        said += [*projected(forecast, work_s / forecast.work_s, start_s), ""]
    return "\n".join(said)


def _stated(plan: Plan) -> str:
    stated = ", ".join(f"{name} {value:.3g}" for name, value in plan.geometry.stated().items())
    rows = plan.catalog.total_rows
    return f"{rows:,} rows of {plan.geometry.d} in {len(plan.catalog):,} files, {plan.lists:,} lists, from geometry.py ({stated})"


def _prove(plan: Plan, story: Story) -> tuple[float, list[str]]:
    """Seconds of an undisturbed build (0 where it is too large to build twice), and what was proven."""
    build, catalog = OpenBuild(load_settings(root=str(plan.root))), catalog_of(plan)
    removed = np.asarray(story.removed, np.int64)
    watch, work_s = story.watch, 0.0
    with watch.stage("proof: every id once"):
        proven = [proofs.every_id_once(plan, catalog, removed), rows_are_conserved(build)]
        if story.changed is not None:
            proven.append(proofs.replaced_is_served(plan, story.changed))
    if faults := what_was_wrong(story.during):
        raise proofs.NotProven(f"while a generation was replaced: {'; '.join(faults[:3])} ({len(faults)} in all)")
    if took := story.during.get("took"):
        p50, p99 = (1e3 * float(np.quantile(took, q)) for q in (0.5, 0.99))
        proven.append(
            f"{len(took):,} queries during the retraining, none of less than was served before: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        )
    if plan.share <= MOST_COMPARED:
        served, captions = trained_of(build.root.generation(story.ui.served())), captions_reported_on(build)
        if captions is None:
            raise proofs.NotProven(f"{plan.root}: no test captions to hold the truth against")
        with watch.stage("proof: an undisturbed build of the same files") as stage:
            listing = proofs.build_undisturbed(plan, catalog, served, removed, plan.work / "again", captions)
        work_s = stage.seconds
        with watch.stage("proof: the same bytes, brute force, recall"):
            proven.append(proofs.same_bytes(plan, catalog, plan.work / "again"))
            exact = proofs.by_brute_force(captions.vectors, catalog, listing, removed, DEEPEST_K)
            proven.append(proofs.truth_is_exact(plan, catalog, captions, removed, exact))
            curve = proofs.recall_over_all(plan, captions.vectors, exact, NPROBES)
            proven.append(
                "recall@10 over all rows, by brute force: "
                + ", ".join(f"{recall:.3f} at nprobe {nprobe} ({share:.2%} scanned)" for nprobe, recall, share in curve)
            )
    return work_s, proven


def _search(root: Path, queries: Path) -> list[str]:
    """A line each for the shards and the packed file, measured in processes of their own."""
    rows: list[dict[str, Any]] = []
    for packed in ("0", "1"):
        asked = [sys.executable, "-m", "laion_rehearsal.searching", "measure", str(root), str(queries), packed]
        rows.append(json.loads(subprocess.run(asked, check=True, capture_output=True, text=True, env=os.environ).stdout))
    names = [name for name in rows[0] if name not in ("mb_on_disk",)]
    return [
        "| | shards | packed |",
        "|---|---|---|",
        *(f"| {name.replace('_', ' ')} | {_number(rows[0][name])} | {_number(rows[1][name])} |" for name in names),
    ]


def _number(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}" if not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main()
