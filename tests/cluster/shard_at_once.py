"""A run of one shard that holds still inside the build until another has come as far: `python shard_at_once.py SHARD MEETING PARTIES`."""

import os
import sys
import time
from pathlib import Path

from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.settings import load_settings
from paired_index_assets.shards.build import build_shard

PATIENCE_SECONDS = 60


def main(shard: int, meeting: Path, parties: int) -> None:
    build = OpenBuild(load_settings())

    def meet(step: str, done: int, total: int, /, **_: object) -> None:
        """At the first word of progress: wait for the others."""
        (meeting / os.environ["PAIRED_INDEX_CACHE"].rpartition("/")[2]).touch()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(list(meeting.iterdir())) < parties:
            if time.monotonic() > deadline:
                raise SystemExit("the other run never came")
            time.sleep(0.05)

    build_shard(build.root, build.promoted, build.catalog, shard, build.listing, progress=meet)
    print("built", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
