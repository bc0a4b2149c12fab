"""What people have, read in a fixed order: nothing lost, nothing extracted, nothing unpickled."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_packing import add, pack_folder, pack_parquet, pack_tars, png
from upath import UPath

from paired_index_assets.embeddings.metadata import read_metadata
from paired_index_assets.embeddings.run import embed_captions, embed_images
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.listing import list_files
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.open import open_source
from paired_index_assets.readers.sample import HeldImage, ImageFile


def samples(spec, modality="captions", part_rows=7, **more):
    source = open_source(str(spec), modality, **more)
    return [sample for part in source.parts(part_rows) for sample in part.read(modality == "images")]


def captions(spec, **more):
    return [s.caption for s in samples(spec, "captions", **more)]


def pictures(spec, **more):
    return [s.image for s in samples(spec, "images", **more)]


lines = st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(texts=lines, part_rows=st.integers(1, 12), last_newline=st.booleans())
def test_a_text_file_is_a_caption_a_line_whatever_is_in_it(tmp_path_factory, texts, part_rows, last_newline):
    """U+2028, form feeds and the like are part of a caption; only newline bytes end one."""
    path = tmp_path_factory.mktemp("text") / "captions.txt"
    texts[0] = texts[0].removeprefix("\ufeff")
    path.write_bytes("\n".join(texts).encode() + (b"\n" if last_newline or texts[-1] == "" else b""))
    assert captions(path, part_rows=part_rows) == texts


def test_windows_lines_a_byte_order_mark_and_broken_utf8_are_read(tmp_path):
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\xff\r\n\r\nfour")
    assert captions(tmp_path / "c.txt", part_rows=2) == ["one", "two\ufffd", "", "four"]


def test_captions_come_from_parquet_torch_lists_and_several_files(tmp_path):
    pq.write_table(pa.table({"TEXT": ["a", None, "c"], "n": [1, 2, 3]}), tmp_path / "c.parquet")
    assert captions(tmp_path / "c.parquet") == ["a", None, "c"]
    torch.save(["x", "y", "z"], tmp_path / "c.pt")
    assert captions(tmp_path / "c.pt", part_rows=2) == ["x", "y", "z"]
    for number in (10, 9):
        (tmp_path / f"part_{number}.txt").write_text(f"{number}a\n{number}b\n")
    assert captions(tmp_path / "part_*.txt") == ["9a", "9b", "10a", "10b"]
    assert captions(tmp_path / "part_{9..10}.txt") == ["9a", "9b", "10a", "10b"]


def test_paths_come_from_text_and_parquet_relative_to_the_list(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(png())
    absolute = str(tmp_path / "in/a.png")
    (tmp_path / "in/list.txt").write_text(f"a.png\n{absolute}\nhttps://example.org/b.jpg\n")
    pq.write_table(pa.table({"image_path": ["a.png", absolute, None], "caption": ["1", "2", "3"]}), tmp_path / "in/list.parquet")
    from_text = pictures(tmp_path / "in/list.txt")
    assert from_text == [ImageFile(absolute), ImageFile(absolute), ImageFile("https://example.org/b.jpg")]
    assert pictures(tmp_path / "in/list.parquet") == [ImageFile(absolute), ImageFile(absolute), None]
    assert from_text[0].read() == png()


@pytest.mark.parametrize("part_rows", [1, 3, 64, 1000])
def test_parquet_parts_cut_through_files_and_row_groups(packed, pairs, part_rows):
    source = open_source(str(packed["parquet"]), "images")
    parts = source.parts(part_rows)
    assert [p.rows for p in parts[:-1]] == [part_rows] * (len(parts) - 1)
    found = [s for part in parts for s in part.read(True)]
    assert [s.image.read() for s in found] == [p["png"] for p in pairs]
    assert [s.key for s in found] == [p["key"] for p in pairs]


def test_a_folder_is_sorted_and_its_text_files_are_captions(tmp_path):
    for name in ("b/2.png", "a/1.JPG", "b/10.png", "same.png", "same.jpg", ".hidden.png", "b/._2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    assert [s.key for s in samples(tmp_path, "images")] == ["a/1", "b/2", "b/10", "same.jpg", "same.png"]
    with pytest.raises(BadInput, match="expected captions, found images"):
        open_source(str(tmp_path), "captions")
    (tmp_path / "b/2.txt").write_text("two\n")
    (tmp_path / "alone.txt").write_text("no picture")
    found = {s.key: (s.image is not None, s.caption) for s in samples(tmp_path, "captions")}
    assert found["b/2"] == (True, "two")
    assert found["alone"] == (False, "no picture")
    assert found["b/10"] == (True, None)
    assert [s.key for s in samples(tmp_path / "b/*.png", "images")] == ["2", "10"]


def test_a_readme_beside_pictures_is_not_a_sample(tmp_path):
    (tmp_path / "1.png").write_bytes(png())
    (tmp_path / "README.txt").write_text("about these pictures")
    assert [s.key for s in samples(tmp_path, "images")] == ["1"]


def test_img2dataset_folders_are_read_as_tars_not_as_their_side_files(packed, pairs):
    found = samples(packed["tars"], "images")
    assert len(found) == len(pairs)
    assert found[0].columns["url"] == "https://example.org/000000000"
    assert found[0].image == HeldImage(pairs[0]["png"])


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            add(tar, name, content)
    return path


def test_members_of_a_tar_are_grouped_by_key_and_never_extracted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = {"caption": "from json", "url": 7, "similarity": "high", "original_width": "640"}
    path = write_tar(
        tmp_path / "in.tar",
        [
            ("../../evil.png", png()),
            ("/etc/evil.txt", b"caption of another key"),
            ("d/1.png", png()),
            ("d/1.png", b"a second picture of the key"),
            ("d/1.json", json.dumps(facts).encode()),
            ("d/1.seg.png", b"a mask, not the picture"),
            ("d/._2.png", b"made by macOS"),
            ("d/2.txt", b"two"),
            ("d/2.json", b"{broken"),
            ("3.png", png()),
        ],
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("4.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    found = {s.key: s for s in samples(path, "images")}
    assert list(found) == ["../../evil", "/etc/evil", "d/1", "d/2", "3"]
    assert found["d/1"].image == HeldImage(png())
    assert found["d/1"].caption == "from json"
    assert (found["d/1"].columns["url"], found["d/1"].columns["similarity"], found["d/1"].columns["original_width"]) == ("7", None, 640)
    assert (found["d/2"].image, found["d/2"].caption) == (None, "two")
    assert found["3"].caption is None
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    assert not Path("/etc/evil.txt").exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.55, 0.9])
def test_a_tar_that_breaks_off_keeps_what_came_before_and_says_so(tmp_path, tiny, pairs, keep):
    folder = pack_tars(tmp_path / "in", pairs[:40], per_tar=20)
    whole = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(whole[: int(len(whole) * keep)] or b"<html>")
    root = BuildRoot.at(tmp_path / "root")
    summary = embed_images(open_source(str(folder), "images"), tiny, root, workers=0)
    assert summary.bad == {"broken tar": 1}
    table = pa.concat_tables(read_metadata(EmbeddingSet.open(root.image_set))).to_pylist()
    good = [row["key"] for row in table if row["outcome"] == "ok"]
    kept = len(good) - 20
    assert good == [p["key"] for p in [*pairs[:kept], *pairs[20:40]]]
    assert kept >= 0
    embedded = embed_captions(open_source(str(folder), "captions"), tiny, root)
    assert embedded.rows == summary.rows


@pytest.mark.parametrize("pack", [pack_folder, pack_tars, pack_parquet])
def test_remote_sources_are_read_like_local_ones(tmp_path, tiny, pairs, pack):
    options = {pack_folder: {}, pack_tars: {"per_tar": 12}, pack_parquet: {"per_file": 13, "row_group": 5}}[pack]
    local = pack(tmp_path / "in", pairs[:30], **options)
    remote = UPath(f"memory://{pack.__name__}")
    for file in local.iterdir():
        (remote / file.name).parent.mkdir(parents=True, exist_ok=True)
        (remote / file.name).write_bytes(file.read_bytes())
    here, there = BuildRoot.at(tmp_path / "here"), BuildRoot.at(tmp_path / "there")
    for spec, root in ((str(local), here), (str(remote), there)):
        embed_images(open_source(spec, "images"), tiny, root, part_rows=10, workers=0)
        embed_captions(open_source(spec, "captions"), tiny, root, part_rows=10)
        again = embed_images(open_source(spec, "images"), tiny, root, part_rows=10, workers=0)
        assert again.reused_parts == again.parts
    for one, other in ((here.image_set, there.image_set), (here.caption_set, there.caption_set)):
        assert (EmbeddingSet.open(one)[:] == EmbeddingSet.open(other)[:]).all()


def test_natural_order_and_missing_files(tmp_path):
    for number in (1, 2, 10):
        (tmp_path / f"f{number}.txt").write_text("x")
    assert [f.name for f in list_files(str(tmp_path))] == ["f1.txt", "f2.txt", "f10.txt"]
    for spec in ("nothing.tar", "*.tar", "sub/{00..02}.tar"):
        with pytest.raises(MissingInput, match="no such file; expected a file, a folder"):
            list_files(str(tmp_path / spec))
    with pytest.raises(BadInput, match=r"expected \{first\.\.last\} in rising order, found \{7\.\.3\}"):
        list_files(str(tmp_path / "{7..3}.tar"))


class Evil:
    def __reduce__(self):
        return print, ("this must never run",)


def wrong_inputs(folder):
    (folder / "c.pkl").write_bytes(b"x")
    torch.save(Evil(), folder / "evil.pt")
    torch.save([1, 2], folder / "numbers.pt")
    torch.save(torch.zeros(2), folder / "tensor.pt")
    (folder / "garbage.parquet").write_bytes(b"no Parquet at all")
    pq.write_table(pa.table({"n": [1]}), folder / "numbers.parquet")
    (folder / "differ").mkdir()
    pq.write_table(pa.table({"caption": ["a"]}), folder / "differ/a.parquet")
    pq.write_table(pa.table({"caption": [1]}), folder / "differ/b.parquet")
    return {
        "c.pkl": r"c\.pkl: expected captions as .*found \.pkl",
        "evil.pt": r"evil\.pt: expected a list of strings saved by torch, found a file that plain data does not explain",
        "numbers.pt": r"numbers\.pt: expected a list of strings .*found list",
        "tensor.pt": r"tensor\.pt: expected a list of strings .*found Tensor",
        "garbage.parquet": r"garbage\.parquet: expected a Parquet file",
        "numbers.parquet": r"numbers\.parquet: expected captions, found neither",
        "differ": r"b\.parquet: expected column 'caption' of string as in .*a\.parquet, found int64",
        "nothing.txt": r"nothing\.txt: no such file",
    }


def test_wrong_sources_are_refused_with_file_expected_and_found(tmp_path, capsys):
    for name, message in wrong_inputs(tmp_path).items():
        with pytest.raises(BadInput, match=message) as caught:
            open_source(str(tmp_path / name), "captions")
        assert "\n" not in str(caught.value)
    assert "must never run" not in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"evil\.pt: expected images as "):
        open_source(str(tmp_path / "evil.pt"), "images")


def test_a_parquet_that_is_damaged_inside_is_named_when_it_is_read(tmp_path, tiny):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"caption": [f"caption {i}" for i in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"in\.parquet: expected a Parquet file, found one that cannot be read"):
        embed_captions(open_source(str(path), "captions"), tiny, BuildRoot.at(tmp_path / "root"))
    assert not (tmp_path / "root/embeddings/captions.json").exists()


def test_key_columns_are_text_and_missing_ones_are_file_and_row(tmp_path):
    pq.write_table(pa.table({"caption": ["a", "b"], "id": pa.array([7, None])}), tmp_path / "c.parquet")
    assert [s.key for s in samples(tmp_path / "c.parquet")] == ["7", "c.parquet:1"]
