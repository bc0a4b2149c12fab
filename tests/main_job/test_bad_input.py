"""Bad input is refused with one line that names the file, what was expected and what was found; exit code 1; no artifact appears."""

import os
import sys

import numpy as np
import pytest
from unit_vectors import random_unit

from paired_index_assets.cli.main import main


def features_of(rows, width=16, dtype=np.float16):
    return random_unit(rows, width, rows + width, dtype)


def with_nan(rows):
    vectors = features_of(rows)
    vectors[::2] = np.nan
    return vectors


def features(folder, images, captions):
    for name, array in (("images.npy", images), ("captions.npy", captions)):
        if array is not None:
            np.save(folder / name, array)
    return ["--image-features", folder / "images.npy", "--caption-features", folder / "captions.npy"]


CASES = {
    "missing file": (None, features_of(400), [], ["images.npy", "no such file"]),
    "wrong dtype": (features_of(400).astype(np.int32), features_of(400), [], ["images.npy", "<i4", "float16"]),
    "object array": (np.array([{}] * 400, dtype=object), features_of(400), [], ["images.npy"]),
    "not two-dimensional": (features_of(400).ravel(), features_of(400), [], ["images.npy"]),
    "widths differ": (features_of(400, 16), features_of(400, 24), [], ["16", "24"]),
    "rows differ": (features_of(400), features_of(399), [], ["400", "399"]),
    "NaN": (with_nan(400), features_of(400), [], ["200 of 400"]),
    "no rows": (features_of(0), features_of(0), [], [".npy", "0 rows"]),
    "more lists than rows": (features_of(400), features_of(400), ["--nlist", 5000], ["nlist", "5000"]),
    "more shards than rows": (features_of(40), features_of(40), ["--shards", 58], ["58"]),
    "unknown codec": (features_of(400), features_of(400), ["--codec", "PQ64"], ["codec", "QT_4bit", "PQ64"]),
    "unknown method": (features_of(400), features_of(400), ["--method", "magic"], ["method", "paired_kmeans", "magic"]),
    "negative nprobe": (features_of(400), features_of(400), ["--nprobe", -1], ["nprobe", "-1"]),
}


@pytest.fixture
def refused(monkeypatch, capfd):
    """Run a command in this process; the one line on standard error it ended with, and with exit code 1."""

    def run(*arguments):
        monkeypatch.setattr(os, "environ", os.environ.copy())
        monkeypatch.setattr(sys, "argv", ["paired-index", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capfd.readouterr().err.strip().splitlines()
        assert stopped.value.code == 1, said
        assert len(said) == 1, said
        assert said[0].startswith("error: ")
        return said[0]

    return run


@pytest.mark.parametrize("case", CASES)
def test_bad_features_are_refused(case, tmp_path, refused):
    images, captions, more, words = CASES[case]
    root = tmp_path / "root"
    line = refused("build", "--root", root, "--shards", 4, *features(tmp_path, images, captions), *more)
    assert all(word in line for word in words), line
    assert not list(root.glob("shards/knn*"))
    assert not list(root.glob("trained/*.index"))


def test_a_process_says_it_in_one_line_too(tmp_path, own_process):
    done = own_process("build", "--root", tmp_path / "root", *features(tmp_path, with_nan(400), features_of(400)), check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "200 of 400" in done.stderr


def test_nothing_to_build_from(tmp_path, paired_index):
    done = paired_index("build", "--root", tmp_path, check=False)
    assert done.returncode == 1
    assert "--images" in done.stderr


def test_an_empty_caption_list_is_refused(tmp_path, paired_index, small_pairs):
    (tmp_path / "captions.txt").write_text("")
    done = paired_index("build", "--root", tmp_path / "root", "--images", small_pairs, "--captions", tmp_path / "captions.txt", check=False)
    assert done.returncode == 1
    assert "captions.txt" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--text", "--queries"]),
        (["--text", ""], ["expected words"]),
        (["--queries", "nowhere.npy"], ["nowhere.npy", "no such file"]),
        (["--text", "a", "--out", "r.csv"], ["r.csv", ".npz"]),
        (["--text", "a", "--model", "ViT-B-32", "--pretrained", "openai"], ["ViT-B-32", "cannot be compared"]),
    ],
)
def test_a_search_that_cannot_be_is_refused(small_build, paired_index, arguments, words):
    done = paired_index("search", "--root", small_build, *arguments, check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_queries_of_another_width_or_with_nan_are_refused(small_build, paired_index, tmp_path):
    for name, array, word in (("wide", features_of(3, 64, np.float32), "64"), ("nan", np.full((3, 128), np.nan, np.float32), "finite")):
        np.save(tmp_path / f"{name}.npy", array)
        done = paired_index("search", "--root", small_build, "--queries", tmp_path / f"{name}.npy", check=False)
        assert done.returncode == 1
        assert word in done.stderr


def test_a_root_without_a_build_says_what_to_do(tmp_path, paired_index):
    for command in (["search", "--text", "a"], ["report"]):
        done = paired_index(command[0], "--root", tmp_path, *command[1:], check=False)
        assert done.returncode == 1
        assert "build" in done.stderr


def test_a_query_of_one_vector_is_one_query_and_what_is_none_is_one_line(small_build, tmp_path, refused):
    from PIL import Image

    np.savez(tmp_path / "several.npz", a=features_of(2), b=features_of(2))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4), np.float32))
    np.save(tmp_path / "nothing.npy", features_of(3, 128) * np.array([[1], [0], [1]], np.float32))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    (tmp_path / "text.png").write_bytes(b"no picture")
    for option, name, words in (
        ("--queries", "several.npz", "found an archive of several arrays"),
        ("--queries", "words.npy", "expected numbers of shape"),
        ("--queries", "cube.npy", "found shape (2, 3, 4)"),
        ("--queries", "nothing.npy", "row 1 is all zeros"),
        ("--queries", "cut.npy", "found one that cannot be read"),
        ("--image", "cut.png", "truncated image"),
        ("--image", "text.png", "not an image"),
        ("--image", "nowhere.png", "missing file"),
    ):
        line = refused("search", "--root", small_build, option, tmp_path / name)
        assert name in line
        assert words in line, line


def test_one_vector_is_one_query(small_build, tmp_path, monkeypatch, capsys):
    rows = features_of(3, 128)
    np.save(tmp_path / "one.npy", rows[1])
    np.save(tmp_path / "row.npy", rows[1:2])
    shown = []
    for name in ("one", "row"):
        monkeypatch.setattr(sys, "argv", ["paired-index", "search", "--root", str(small_build), "--queries", str(tmp_path / f"{name}.npy")])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    "cursor",
    [
        None,
        "",
        "{",
        "[]",
        "7",
        "null",
        '"x"',
        '{"reported": []}',
        '{"reported": {"00": 3}, "waiting": null}',
        '{"unknown": {"a": []}}',
        "[" * 100_000,
    ],
)
def test_a_cursor_that_is_none_starts_the_landing_sensor_afresh(cursor):
    from paired_index_assets.assets.landing import _remembered

    assert _remembered(cursor) == {"reported": {}, "waiting": {}, "unknown": {}}
    assert _remembered('{"reported": {"00": "v"}, "waiting": [], "more": 1}') == {"reported": {"00": "v"}, "waiting": {}, "unknown": {}}
