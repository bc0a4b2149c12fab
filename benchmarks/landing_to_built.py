"""From a landed file to a searchable shard, with nothing else to do: `python benchmarks/landing_to_built.py [--root BUILD] [--shards 4]`

A trained build gets an empty landing folder and `paired-index ui`; after a while of quiet the files of one shard are copied into the folder.
The events say when the sensor reported the shard, when its run was asked for and started, and when it was built. At `--tick-seconds` 30, the
default, most of it is waiting: one tick until the sensor looks, one until the files are quiet, one until no new event comes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from run_overhead import COMMAND, running_ui

from paired_index_assets.landing.catalog import Catalog

MADE = ("dagster", "shards", "generations", "report", "manifest.parquet", "parquet_lengths_paired.list")
REPORT = """mutation($p: ReportRunlessAssetEventsParams!) {
  reportRunlessAssetEvents(eventParams: $p) { __typename }
}"""
EVENTS = """query($k: AssetKeyInput!) { assetOrError(assetKey: $k) { ... on Asset { assetMaterializations(limit: 1) { timestamp } } } }"""
RUNS = "{ runsOrError(limit: 5) { ... on Runs { results { creationTime startTime tags { key value } } } } }"
PATIENCE_SECONDS = 240.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, help="a finished build, instead of one of the sample; it is not changed")
    options.add_argument("--shards", type=int, default=4)
    options.add_argument("--tick-seconds", type=int, default=30)
    options.add_argument("--quick", action="store_true", help="ticks of 3 seconds")
    chosen = options.parse_args()
    tick = 3 if chosen.quick else chosen.tick_seconds
    with tempfile.TemporaryDirectory() as scratch:
        built, root, landing = chosen.root or Path(scratch) / "built", Path(scratch) / "root", Path(scratch) / "landing"
        if chosen.root is None:
            subprocess.run(
                [*COMMAND, "build", "--sample", "--root", str(built), "--shards", str(chosen.shards)], check=True, stdout=subprocess.DEVNULL
            )
        shutil.copytree(built, root, ignore=shutil.ignore_patterns(*MADE))
        landing.mkdir()
        os.environ |= {"PAIRED_INDEX_LANDING": str(landing), "PAIRED_INDEX_TICK_SECONDS": str(tick), "DAGSTER_HOME": str(root / "dagster")}
        with running_ui(root) as (_, ask):
            trained = {"eventType": "ASSET_MATERIALIZATION", "assetKey": {"path": ["trained_index"]}}  # as `build` would have reported it
            ask(REPORT, p=trained)
            time.sleep(2.5 * tick)
            for file in Catalog.load(root / "catalog.parquet").files(0):
                shutil.copyfile(built / "embeddings/img_emb" / file.name, landing / file.name)
            landed = time.time()
            while (done := last(ask, "shard_index")) is None:
                if time.time() > landed + PATIENCE_SECONDS:
                    raise SystemExit(f"not built within {PATIENCE_SECONDS:g} s")
                time.sleep(1)
            reported = last(ask, "landed_embeddings") or landed
            (run,) = [run for run in ask(RUNS)["runsOrError"]["results"] if any(tag["value"] == "shard_00" for tag in run["tags"])]
    print("| from | to | s |\n|---|---|---|")
    moments = [
        ("landed", landed),
        ("reported", reported),
        ("asked for", run["creationTime"]),
        ("started", run["startTime"]),
        ("built", done),
    ]
    for (before, a), (after, b) in pairwise(moments):
        print(f"| {before} | {after} | {b - a:.0f} |")
    print(f"| landed | built | {done - landed:.0f} |")


def last(ask: Any, asset: str) -> float | None:
    """When an asset was made last, in seconds since 1970; None if never."""
    made = ask(EVENTS, k={"path": [asset]})["assetOrError"].get("assetMaterializations", [])
    return int(made[0]["timestamp"]) / 1000 if made else None


if __name__ == "__main__":
    main()
