"""What the operating system refuses is one line that names the file and the cure; a stage without the one before it names that one."""

from __future__ import annotations

import os
import subprocess
import sys

import dagster as dg
import numpy as np
import pytest

from paired_index_assets.assets.instance import instance_of
from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.cli.main import main
from paired_index_assets.errors import BadInput, MissingInput, OutOfDisk, of_the_system
from paired_index_assets.files import storage
from paired_index_assets.pairing.split import Split
from paired_index_assets.settings import load_settings

WITHOUT_POWER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")


def unprivileged(folder, *arguments):
    """`paired-index` as a user for whom permissions count: root without the capability to ignore them."""
    command = [sys.executable, "-m", "paired_index_assets.cli.main", *map(str, arguments)]
    prefix = WITHOUT_POWER if os.geteuid() == 0 else ()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PAIRED_INDEX_", "DAGSTER_"))}
    return subprocess.run([*prefix, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_what_may_not_be_read_or_written_is_one_line(tmp_path):
    rows = np.eye(40, dtype=np.float32)
    np.save(tmp_path / "f.npy", rows)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/settings.json").write_text("{}")
    (tmp_path / "sealed").mkdir()
    features = ["--image-features", tmp_path / "f.npy", "--caption-features", tmp_path / "f.npy"]
    (tmp_path / "root/settings.json").chmod(0)
    (tmp_path / "sealed").chmod(0o555)
    for arguments, name in (
        (["search", "--root", "root", "--queries", "f.npy"], "root/settings.json"),
        (["build", "--root", "sealed/root", *features], "sealed/root"),
        (["catalog", "scan", "f.npy", "--out", "sealed/c.parquet", "--shards", "1"], "sealed/"),
    ):
        done = unprivileged(tmp_path, *arguments)
        said = done.stderr.strip().splitlines()
        assert (done.returncode, len(said)) == (1, 1), done.stderr
        assert name in said[0]
        assert "permission denied" in said[0].lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "--root", "{long}", "--text", "a"],
        ["search", "--root", "{tmp}", "--queries", "{long}.npy"],
        ["catalog", "scan", "{long}.npy"],
        ["catalog", "scan", "{tmp}/f.npy", "--shards", "1", "--out", "{tmp}/{long}"],
        ["build", "--root", "{tmp}/r", "--images", "{long}"],
    ],
)
def test_names_that_are_too_long_are_one_line(tmp_path, monkeypatch, capfd, arguments):
    np.save(tmp_path / "f.npy", np.eye(8, dtype=np.float32))
    given = [word.format(long="x" * 300, tmp=tmp_path) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["paired-index", *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capfd.readouterr().err.strip().splitlines()
    assert (stopped.value.code, len(said)) == (1, 1), said


def test_a_full_disk_is_named_before_anything_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LEAST_FREE_BYTES", 1 << 60)
    with pytest.raises(OutOfDisk, match=r"MB free, expected at least .*; free some space"):
        storage.require_writable(storage.as_path(tmp_path / "root"))


def test_no_space_for_dagsters_records_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    settings = load_settings(root=str(tmp_path / "root"))
    with (
        pytest.raises(BadInput, match=r"dagster: Dagster's own records cannot be written \(.*\); free some space") as caught,
        instance_of(settings) as instance,
    ):
        for database in (tmp_path / "root/dagster").rglob("*.db"):
            database.unlink()
            database.mkdir()
        instance.add_run(dg.DagsterRun(job_name="any"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device", "f"), PermissionError(13, "Permission denied", "f"), OSError(36, "File name too long", "f")],
)
def test_what_the_system_says_keeps_its_file_and_gets_a_cure(error):
    said = str(of_the_system(error))
    assert said.startswith("f: ")
    assert ";" in said
    assert of_the_system(ValueError("f")) is None
    assert of_the_system(OSError("without a number")) is None


def test_a_stage_without_the_one_before_it_names_that_one(tmp_path):
    build = OpenBuild(load_settings(root=str(tmp_path)))
    for missing, asset in ((lambda: build.images, "image_embeddings"), (lambda: build.captions, "caption_embeddings")):
        with pytest.raises(MissingInput, match=f"materialise {asset} first"):
            missing()
    with pytest.raises(MissingInput, match="materialise caption_image_pairs first"):
        Split.load(build.root.split)
