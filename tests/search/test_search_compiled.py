"""Machine code is made once for a user, and found by every later process, wherever the package lies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import paired_index_assets
from paired_index_assets.files import compiling
from paired_index_assets.search.sharded import ShardedIndex

SEARCH = """
import sys, numpy as np
from paired_index_assets.search import kernel
from paired_index_assets.search.sharded import ShardedIndex
with ShardedIndex.open(sys.argv[1]) as index:
    index.search(np.ones((1, index.d), np.float32), 3)
    index.search(np.ones((70, index.d), np.float32), 3)
made = [f for f in vars(kernel).values() if hasattr(f, "stats")]
print(sum(sum(f.stats.cache_hits.values()) for f in made), sum(sum(f.stats.cache_misses.values()) for f in made))
"""
SMALL = """
import numpy as np
from paired_index_assets.search.ranking import in_order
from paired_index_assets.files import compiling
before = compiling.is_compiled("search")
in_order(np.ones(3, np.float32), np.arange(3), 3)
print(before, sum(in_order.stats.cache_hits.values()), sum(in_order.stats.cache_misses.values()))
"""


def run(code, *arguments, **environment):
    given = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | environment
    return subprocess.run([sys.executable, "-c", code, *arguments], env=given, capture_output=True, text=True, check=True).stdout.split()


def test_another_process_compiles_nothing_that_this_one_has(finished):
    with ShardedIndex.open(finished.root) as index:
        for n in (1, 70):
            index.search(finished.captions[:n], 3)
    assert compiling.is_compiled("search")
    hits, misses = map(int, run(SEARCH, str(finished.root.root)))
    assert hits >= 2
    assert misses == 0


@pytest.mark.parametrize("named", [False, True], ids=["the user's cache", "NUMBA_CACHE_DIR"])
def test_nothing_is_written_beside_the_package(named, tmp_path):
    package = Path(paired_index_assets.__file__).parent
    place = {"NUMBA_CACHE_DIR": str(tmp_path / "numba"), "HOME": "/dev/null"} if named else {"HOME": str(tmp_path)}
    assert run(SMALL, **place) == ["False", "0", "1"]
    assert run(SMALL, **place) == ["True", "1", "0"]
    assert list(tmp_path.rglob("*.nbc"))
    assert not [file for end in ("nbi", "nbc") for file in package.rglob(f"*.{end}")]


def test_where_nothing_can_be_kept_the_search_works_all_the_same():
    assert run(SMALL, HOME="/dev/null") == ["False", "0", "1"]
    assert run(SMALL, HOME="/dev/null") == ["False", "0", "1"]
