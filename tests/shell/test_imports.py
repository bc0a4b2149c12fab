"""What may be loaded by an import, and what may not: each in a fresh process, as a user's first line is."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from paired_index_assets.cli.main import main
from paired_index_assets.extras import EXTRA_OF

ROOT = Path(__file__).parents[2]

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
        ("import paired_index_assets.cli.main", (*HEAVY[:-1], "dagster", "faiss")),
        (
            "import paired_index_assets.evidence.captions, paired_index_assets.evidence.conservation, paired_index_assets.shards.build",
            ("torch",),
        ),
        ("import paired_index_assets.serving.service", ("torch", "open_clip", "matplotlib", "dagster", "sqlalchemy")),
    ],
)
def test_an_import_loads_what_it_needs_and_nothing_else(statement, never):
    assert not loaded_by(statement) & set(never)


def test_one_module_imports_what_dagster_keeps_private():
    """What moves there in a new release is mended in one place."""
    private = re.compile(r"^\s*(?:from|import) dagster(?:\._|_\w+\._|_shared)", re.MULTILINE)
    code = [path for folder in ("paired_index_assets", "dagster_project", "deploy", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in code if private.search(path.read_text())] == ["dagster_internals.py"]


@pytest.mark.parametrize(
    ("gone", "command", "said"),
    [
        ("dagster", "build --sample", "dagster is not installed; pip install 'paired-index-assets[dagster]'"),
        ("starlette", "serve --without-model", "starlette is not installed; pip install 'paired-index-assets[serve]'"),
        ("s3fs", "search --root s3://bucket/x --text cat", "s3fs is not installed; pip install 'paired-index-assets[s3]'"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(tmp_path, gone, command, said):
    """A module that is None in sys.modules is one that is not installed."""
    run = f"import sys; sys.modules[{gone!r}] = None; sys.argv = ['paired-index', *{command.split()!r}]; from paired_index_assets.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert said in done.stderr


def test_a_missing_package_is_named_to_callers_from_python_too():
    ask = (
        "import sys; sys.modules['torch'] = None\nimport paired_index_assets\n"
        "try:\n    paired_index_assets.train_kmeans\nexcept ImportError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert said == "torch is not installed; pip install 'paired-index-assets[build]' (or [all])\n"


def test_every_extra_that_is_named_exists_and_holds_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    distribution = {"PIL": "pillow", "open_clip": "open_clip_torch", "torchvision": "open_clip_torch"}
    for module, extra in EXTRA_OF.items():
        named = {re.split(r"[\[<>=;]", one)[0].replace("-", "_").lower() for one in extras[extra]}
        assert distribution.get(module, module).replace("-", "_").lower() in named, module


def test_the_version_is_printed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["paired-index", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"paired-index {version('paired-index-assets')}\n"
