"""`--caption-texts`: whatever `--captions` takes, looked at before anything is embedded."""

from __future__ import annotations

import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from unit_vectors import random_unit

from paired_index_assets.builds.metadata import metadata_of
from paired_index_assets.builds.opened import OpenBuild, check_caption_texts
from paired_index_assets.cli.main import main
from paired_index_assets.embeddings.features import adopt_features
from paired_index_assets.errors import BadInput
from paired_index_assets.settings import load_settings

ROWS = 30
TEXTS = [f"caption [/b] {i}" for i in range(ROWS)]


@pytest.fixture
def features(tmp_path):
    np.save(tmp_path / "f.npy", random_unit(ROWS, 8))
    return tmp_path / "f.npy"


def write_txt(path):
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-16")


def write_csv(path):
    path.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))


def write_parquet(path):
    pq.write_table(pa.table({"TEXT": pa.array(TEXTS).dictionary_encode()}), path)


@pytest.mark.parametrize(("name", "write"), [("t.txt", write_txt), ("t.csv", write_csv), ("t.parquet", write_parquet)])
def test_texts_of_any_kind_are_read_and_shown(tmp_path, monkeypatch, features, name, write):
    write(tmp_path / name)
    build = OpenBuild(load_settings(root=str(tmp_path / "root"), caption_texts=str(tmp_path / name)))
    for modality, path in (("images", build.root.image_set), ("captions", build.root.caption_set)):
        adopt_features(path, str(features), modality=modality)
    check_caption_texts(build)
    assert build.caption_texts == TEXTS
    shown = metadata_of(build.root, str(tmp_path / name)).rows([7])[0]
    assert TEXTS[7] in shown.values()
    (tmp_path / "more.txt").write_text("one too few\n")
    other = OpenBuild(load_settings(root=str(tmp_path / "root"), caption_texts=str(tmp_path / "more.txt")))
    with pytest.raises(BadInput, match=r"more\.txt: 1 captions for 30 caption embeddings; expected one a row"):
        check_caption_texts(other)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere.txt", None, "no such file"),
        ("t.parquet", b"garbage", "expected a Parquet file"),
        ("t.pkl", b"x", "a pickle is never loaded"),
    ],
)
def test_texts_that_are_none_are_refused_before_anything_is_embedded(tmp_path, monkeypatch, capfd, features, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    given = ["--image-features", features, "--caption-features", features, "--caption-texts", tmp_path / name]
    monkeypatch.setattr(sys, "argv", ["paired-index", "build", "--root", str(tmp_path / "root"), *map(str, given)])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capfd.readouterr().err.strip().splitlines()
    assert (stopped.value.code, len(said)) == (1, 1)
    assert words in said[0]
    assert not (tmp_path / "root/embeddings").exists()


def test_a_remembered_setting_can_be_unset(tmp_path):
    settings = load_settings(root=str(tmp_path), caption_texts="t.txt", device="cpu", nlist=7)
    settings.save()
    assert load_settings(root=str(tmp_path)).device == "cpu"
    unset = load_settings(root=str(tmp_path), caption_texts="", device="", nlist="")
    assert (unset.caption_texts, unset.device, unset.nlist) == (None, None, None)
