"""What several rooms' tests share: the shipped sample, and one small build of it made by the real command line."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import pytest

from paired_index_assets.sample import sample_model, sample_pairs

SMALL_ROWS = 1_500
SMALL_SHARDS = 6


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Command:
    """`paired-index` as a user runs it: in this process, whose imports it shares, or in one of its `own`."""

    home: Path
    own: bool = False

    def __call__(self, *arguments: object, check: bool = True, patience_seconds: float = 600, **given: str) -> Done:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PAIRED_INDEX_", "DAGSTER_"))} | given
        words = [str(argument) for argument in arguments]
        done = self._own(words, environment, patience_seconds) if self.own else self._here(words, environment)
        if check and done.returncode:
            raise AssertionError(f"paired-index {words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def _own(self, words: list[str], environment: dict[str, str], patience_seconds: float) -> Done:
        command = [sys.executable, "-m", "paired_index_assets.cli.main", *words]
        streams = {"capture_output": True, "text": True}
        done = subprocess.run(command, cwd=self.home, env=environment, check=False, timeout=patience_seconds, **streams)
        return Done(done.returncode, done.stdout, done.stderr)

    def _here(self, words: list[str], environment: dict[str, str]) -> Done:
        from paired_index_assets.cli import terminal
        from paired_index_assets.cli.main import main

        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            mock.patch.object(sys, "argv", ["paired-index", *words]),
            chdir(self.home),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            for console in (terminal.console, terminal.errors):
                console.width = int(environment.get("COLUMNS", 80))
            try:
                main()
            except SystemExit as exit:
                code = int(exit.code or 0)
        return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    """No test leaves the next one another number of threads: it would be slower, or sum in another order."""
    torch, faiss = sys.modules.get("torch"), sys.modules.get("faiss")  # in many rooms there is neither
    threads = torch and torch.get_num_threads(), faiss and faiss.omp_get_max_threads()
    yield
    if torch:
        torch.set_num_threads(threads[0])
    if faiss:
        faiss.omp_set_num_threads(threads[1])


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny trainings in faiss: threads on a busy machine only wait for each other."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="session")
def small_pairs(tmp_path_factory) -> Path:
    """The first pairs of the sample, pictures and all, as a Parquet of their own."""
    path = tmp_path_factory.mktemp("small") / "pairs.parquet"
    pq.write_table(pq.read_table(sample_pairs()).slice(0, SMALL_ROWS), path)
    return path


@pytest.fixture(scope="session")
def paired_index(tmp_path_factory) -> Command:
    return Command(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def own_process(tmp_path_factory) -> Command:
    """The same command in a process of its own: where its whole environment counts, or what it leaves in a process."""
    return Command(tmp_path_factory.mktemp("home"), own=True)


@pytest.fixture(scope="session")
def small_build(tmp_path_factory, small_pairs, own_process) -> Path:
    """A finished build of `small_pairs`; tests that change it work on a copy."""
    root = tmp_path_factory.mktemp("build") / "root"
    own_process(
        "build",
        "--root",
        root,
        "--images",
        small_pairs,
        "--model",
        sample_model(),
        "--shards",
        SMALL_SHARDS,
        "--part-rows",
        125,
        "--nlist",
        16,
        "--validation-captions",
        100,
        "--test-captions",
        100,
    )
    return root
