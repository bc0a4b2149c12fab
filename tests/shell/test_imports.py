"""What may be loaded by an import, and what may not: each in a fresh process, as a user's first line is."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "open_clip", "torchvision", "matplotlib", "PIL", "sqlalchemy", "starlette", "uvicorn", "aiohttp", "requests", "typer")


def loaded_by(statement):
    asked = f"import json, sys\n{statement}\nprint(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout))


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import paired_index_assets", (*HEAVY, "dagster", "faiss", "pyarrow", "numpy")),
        ("from paired_index_assets import ShardedIndex", (*HEAVY, "dagster")),
        ("from paired_index_assets import exact_neighbors", ("dagster", "faiss", "open_clip", "matplotlib")),
        ("import dagster_project.definitions", (*HEAVY, "faiss")),
        ("import dagster_project.definitions as code; code.defs()", (*HEAVY, "faiss")),
        ("import paired_index_assets.serving.service", ("torch", "open_clip", "matplotlib", "dagster", "sqlalchemy")),
    ],
)
def test_an_import_loads_what_it_needs_and_nothing_else(statement, never):
    assert not loaded_by(statement) & set(never)
