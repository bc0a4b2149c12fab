"""A search needs numpy, faiss, pyarrow and pydantic: neither torch nor dagster, nor what pictures and servers need."""

import json
import subprocess
import sys

NEVER = {"torch", "open_clip", "dagster", "matplotlib", "PIL", "sqlalchemy", "starlette", "uvicorn", "requests", "typer"}
SEARCH = """
import json, sys
import numpy as np
from paired_index_assets import ShardedIndex
with ShardedIndex.open(sys.argv[1]) as index:
    scores, ids = index.search(np.load(sys.argv[2]), 5)
print(json.dumps([ids.tolist(), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_a_build_is_opened_and_searched_without_torch_and_without_dagster(finished, tmp_path):
    import numpy as np

    from paired_index_assets import ShardedIndex

    np.save(tmp_path / "queries.npy", finished.captions[:3].astype(np.float32))
    command = [sys.executable, "-c", SEARCH, str(finished.root.root), str(tmp_path / "queries.npy")]
    ids, loaded = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    with ShardedIndex.open(finished.root) as index:
        assert ids == index.search(finished.captions[:3].astype(np.float32), 5)[1].tolist()
    assert not set(loaded) & NEVER
