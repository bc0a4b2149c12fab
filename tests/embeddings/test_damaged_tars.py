"""Tars that are damaged or unusual: every sample is a row or is named, and reading that ended early says where."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_packing import add, pack_tars, png

from paired_index_assets.embeddings.run import embed_captions, embed_images
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.open import open_source
from paired_index_assets.readers.sample import HeldImage, Refused, name_of

BLOCK = 512


def samples(spec, modality="images"):
    return [s for part in open_source(str(spec), modality).parts(1000) for s in part.read(modality == "images")]


def tar_of(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            add(tar, name, content)
    return path


def pairs_of(count, suffixes=("png", "txt")):
    contents = {"png": png(), "txt": b"a caption", "json": b"{}"}
    return [(f"{i:05d}.{suffix}", contents[suffix]) for i in range(count) for suffix in suffixes]


def whole_of(path, count=30):
    return tar_of(path, pairs_of(count)).read_bytes()


def member_offsets(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [member.offset for member in tar]


def problems(found):
    return [s.problem for s in found if s.problem]


def test_a_flipped_bit_in_any_header_loses_no_row_without_a_word(tmp_path):
    content = whole_of(tmp_path / "in.tar")
    generator = random.Random(1)
    for offset in generator.choices(member_offsets(content), k=60):
        damaged = bytearray(content)
        damaged[offset + generator.randrange(BLOCK)] ^= 1 << generator.randrange(8)
        (tmp_path / "in.tar").write_bytes(damaged)
        found = samples(tmp_path / "in.tar")
        good = [s for s in found if s.image and s.caption and not s.problem]
        if len(good) < 30:
            (said,) = problems(found)
            assert said.startswith(f"broken tar: reading ended at byte {offset} (")
        assert [s.key for s in found] == [s.key for s in samples(tmp_path / "in.tar", "captions")]


@pytest.mark.parametrize("at", ["header", "content", "between members", "between samples", "end"])
def test_a_tar_that_is_cut_anywhere_says_where(tmp_path, at):
    content = whole_of(tmp_path / "in.tar")
    offsets = [*member_offsets(content), len(content.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK]
    for number in range(2, len(offsets) - 1):
        end = {"header": offsets[number] + 100, "content": offsets[number] + BLOCK + 3}.get(at, offsets[number])
        if (at == "between samples") == bool(number % 2) and at.startswith("between"):
            continue
        if at == "end":
            end = offsets[-1] + number * BLOCK // len(offsets)  # one block of zeros at most
        (tmp_path / "in.tar").write_bytes(content[:end])
        found = samples(tmp_path / "in.tar")
        good = [s for s in found if s.image and s.caption and not s.problem]
        before = 30 if at == "end" else number // 2
        assert [s.key for s in good] == [f"{i:05d}" for i in range(before)]
        assert len(found) == before + 1
        assert name_of(found[-1].problem) == "broken tar"
        assert f"byte {end if at.startswith('between') else offsets[-1] if at == 'end' else offsets[number]}" in found[-1].problem
        assert [s.key for s in found] == [s.key for s in samples(tmp_path / "in.tar", "captions")]


def test_what_follows_the_end_of_a_tar_is_named(tmp_path):
    content = whole_of(tmp_path / "in.tar", 5)
    for more in (b"garbage", content, bytes(5000) + b"x"):
        (tmp_path / "in.tar").write_bytes(content + more)
        found = samples(tmp_path / "in.tar")
        assert len(found) == 6
        assert "more follows the end of the tar" in found[-1].problem
    (tmp_path / "in.tar").write_bytes(content + bytes(100_000))
    assert problems(samples(tmp_path / "in.tar")) == []


def test_one_block_of_zeros_in_the_middle_is_no_end(tmp_path):
    content = bytearray(whole_of(tmp_path / "in.tar", 10))
    offset = member_offsets(content)[8]
    content[offset : offset + BLOCK] = bytes(BLOCK)
    (tmp_path / "in.tar").write_bytes(content)
    found = samples(tmp_path / "in.tar")
    assert [bool(s.problem) for s in found] == [False] * 4 + [True]
    assert f"byte {offset} (one block of zeros" in found[-1].problem


def test_an_empty_tar_has_no_rows_and_one_without_samples_has_one_that_says_so(tmp_path):
    assert samples(tar_of(tmp_path / "a.tar", [])) == []
    (found,) = samples(tar_of(tmp_path / "b.tar", [("notes.md", b"x"), ("0.cls", b"1")]))
    assert (found.problem, found.skipped) == ("no samples in a tar", ("notes.md", "0.cls"))


@pytest.mark.parametrize("style", ["00000.v{}", "2024.05.{:02d}", "0.{}", "a.b.c.{}", "photo of 12.5 mm, {}"])
@pytest.mark.parametrize("suffixes", [("png", "txt"), ("png", "json", "txt"), ("png",)])
def test_dots_in_names_lose_nothing(tmp_path, style, suffixes):
    contents = {"png": png(), "txt": b"a caption", "json": b"{}"}
    names = [style.format(i) for i in range(1, 41)]
    tar_of(tmp_path / "in.tar", [(f"d.0/{name}.{suffix}", contents[suffix]) for name in names for suffix in suffixes])
    found = samples(tmp_path / "in.tar")
    assert [s.key for s in found] == [f"d.0/{name}" for name in names]
    assert all(s.image == HeldImage(png()) and not s.skipped and not s.problem for s in found)
    assert all(("txt" in suffixes) == (s.caption == "a caption") for s in found)


def test_annotations_of_a_sample_are_counted_not_taken_for_samples(tmp_path):
    members = [
        (f"{i}.{rest}", png() if rest.endswith("png") else b"7")
        for i in range(3)
        for rest in ("cls", "depth.png", "mask.cls.txt", "png", "seg.png", "txt")
    ]
    found = samples(tar_of(tmp_path / "in.tar", members))
    assert [(s.key, s.caption) for s in found] == [("0", "7"), ("1", "7"), ("2", "7")]
    left = {"cls", "depth.png", "mask.cls.txt", "seg.png"}
    assert sorted(name for s in found for name in s.skipped) == sorted(f"{i}.{rest}" for i in range(3) for rest in left)


def test_a_sample_and_its_version_with_a_caption_are_two(tmp_path):
    names = ("1.png", "1.txt", "1.v2.png", "1.v2.txt")
    assert [s.key for s in samples(tar_of(tmp_path / "in.tar", [(n, png() if "png" in n else b"c") for n in names]))] == ["1", "1.v2"]


def test_suffixes_in_any_case_and_names_in_any_alphabet(tmp_path):
    members = [("d/ÄÖ 1.PNG", png()), ("d/ÄÖ 1.TXT", b"one"), ("日本.Jpg", png()), ("日本.Txt", "二".encode()), ("x" * 300 + ".png", png())]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found = samples(tar_of(tmp_path / "in.tar", members, format=form))
        assert [(s.key, s.caption) for s in found] == [("d/ÄÖ 1", "one"), ("日本", "二"), ("x" * 300, None)]


def test_names_that_are_not_utf8_stay_apart(tmp_path):
    with tarfile.open(tmp_path / "in.tar", "w", encoding="latin-1", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("é.png", "è.png"):
            add(tar, name, png())
    assert [s.key for s in samples(tmp_path / "in.tar")] == ["\\xe9", "\\xe8"]


def test_links_devices_sparse_files_and_folders_are_no_samples_and_are_named(tmp_path):
    kinds = {"1.png": tarfile.LNKTYPE, "2.png": tarfile.SYMTYPE, "3.txt": tarfile.FIFOTYPE, "4.png": tarfile.CHRTYPE, "d": tarfile.DIRTYPE}
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        add(tar, "0.png", png())
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "0.png"
            tar.addfile(member)
        add(tar, "1.txt", b"the caption of a link")
        add(tar, "9.png", png())
    found = {s.key: s for s in samples(tmp_path / "in.tar")}
    assert list(found) == ["0", "1", "9"]
    assert [name for s in found.values() for name in s.skipped] == [
        "1.png (a link)",
        "2.png (a link)",
        "3.txt (a device)",
        "4.png (a device)",
    ]


def sparse_header(name, stored, maps):
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[482] = b"%011o\0" % stored, b"S", maps
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_a_gnu_sparse_file_is_stepped_over_with_its_map(tmp_path):
    content = whole_of(tmp_path / "in.tar", 3)
    maps = bytearray(2 * BLOCK)
    maps[BLOCK - 8] = 1  # another block of the map follows the first
    (tmp_path / "in.tar").write_bytes(sparse_header("0.png", 700, 1) + bytes(maps) + b"x" * 700 + bytes(2 * BLOCK - 700) + content)
    found = samples(tmp_path / "in.tar")
    assert [s.key for s in found] == ["00000", "00001", "00002"]
    assert found[0].skipped == ("0.png (a sparse file)",)


@pytest.mark.parametrize(
    "records", [b"9" * 30 + b" path=x\n", b"0 path=x\n", b"-3 path=x\n", b"nonsense", b"17 mtime=1e9999999\n", b"\xff" * 40]
)
def test_a_bad_pax_header_costs_nothing_but_what_it_said(tmp_path, records):
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        add(tar, "0.png", png())
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, len(records)
        tar.addfile(header, io.BytesIO(records))
        add(tar, "1.png", png())
    assert [(s.key, s.problem) for s in samples(tmp_path / "in.tar")] == [("0", None), ("1", None)]


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0"])
def test_a_member_of_an_impossible_size_ends_reading_and_says_so(tmp_path, size):
    content = bytearray(whole_of(tmp_path / "in.tar", 3))
    offset = member_offsets(content)[4]
    content[offset + 124 : offset + 136] = size
    content[offset + 148 : offset + 156] = b" " * 8
    content[offset + 148 : offset + 156] = b"%06o\0 " % sum(content[offset : offset + BLOCK])
    (tmp_path / "in.tar").write_bytes(content)
    found = samples(tmp_path / "in.tar")
    assert [bool(s.problem) for s in found] == [False, False, True]
    assert f"byte {offset} (" in found[-1].problem


def test_keys_that_come_twice_are_named_with_the_share_they_lost(tmp_path, tiny):
    members = [(f"{i}.png", png()) for i in range(20)] + [(f"{i}.txt", b"caption") for i in range(20)]
    tar_of(tmp_path / "in.tar", members)
    found = samples(tmp_path / "in.tar")
    assert [s.problem for s in found] == [None] * 20 + ["key comes twice"] * 20
    summary = embed_images(open_source(str(tmp_path / "in.tar"), "images"), tiny, BuildRoot.at(tmp_path / "root"), workers=0)
    assert (summary.rows, summary.bad) == (40, {"key comes twice": 20})


def recorded(folder, keys, failed=()):
    rows = [(key, "success") for key in keys] + [(key, "failed_to_download") for key in failed]
    pq.write_table(pa.table({"key": [k for k, _ in rows], "status": [s for _, s in rows]}), folder / "00000.parquet")


def test_what_img2dataset_recorded_and_the_tar_lacks_is_a_row_each(tmp_path):
    tar_of(tmp_path / "00000.tar", pairs_of(5))
    recorded(tmp_path, [f"{i:05d}" for i in range(8)], failed=["00008"])
    found = samples(tmp_path)
    assert [(s.key, s.problem) for s in found[5:]] == [(f"{i:05d}", "missing from its tar") for i in (5, 6, 7)]
    (tmp_path / "00000.parquet").unlink()
    (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 9, "successes": 7}))
    assert problems(samples(tmp_path)) == ["missing from its tar"] * 2
    for said in ('{"successes": 5}', "{}", "[]", "[" * 100_000, '{"successes": "many"}', '{"successes": -3}'):
        (tmp_path / "00000_stats.json").write_text(said)
        assert problems(samples(tmp_path)) == []


def test_a_record_that_changes_is_looked_at_again(tmp_path, tiny):
    tar_of(tmp_path / "00000.tar", pairs_of(5))
    recorded(tmp_path, [f"{i:05d}" for i in range(6)])
    root = BuildRoot.at(tmp_path / "root")
    assert embed_images(open_source(str(tmp_path / "00000.tar"), "images"), tiny, root, workers=0).bad_rows == 1
    (tmp_path / "00000.parquet").unlink()
    assert embed_images(open_source(str(tmp_path / "00000.tar"), "images"), tiny, root, workers=0).bad_rows == 0


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("tar.gz", gzip.compress), ("tgz", gzip.compress), ("tar.bz2", bz2.compress), ("tar.xz", lzma.compress), ("tar.zst", zstd)],
)
def test_compressed_tars_are_read_and_their_damage_is_named(tmp_path, suffix, pack):
    content = pack(whole_of(tmp_path / "plain.tar", 20))
    (tmp_path / "plain.tar").unlink()
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(content)
    assert [s.key for s in samples(tmp_path)] == [f"{i:05d}" for i in range(20)]
    path.write_bytes(content[: len(content) // 2])
    found = samples(path)
    assert [s for s in found if s.problem] == found[-1:]
    assert found[-1].problem.startswith("broken tar: reading ended at byte ")
    assert [s.key for s in found] == [s.key for s in samples(path, "captions")]


HOSTILE_JSON = {
    "half a surrogate pair": b'{"caption": "cat \\ud83d", "url": "u\\udc00"}',
    "brackets": b"[" * 100_000,
    "braces": b'{"caption":' * 50_000,
    "a huge number": b'{"caption": "c", "original_width": 1' + b"0" * 30 + b"}",
    "a number of many digits": b'{"caption": "c", "original_width": ' + b"9" * 5000 + b"}",
    "infinity": b'{"caption": "c", "original_width": 1e999, "similarity": NaN}',
    "a caption that is a list": b'{"caption": ["a", "b"], "url": {"a": 1}}',
    "nested facts": b'{"caption": "c", "url": ' + b"[" * 400 + b"]" * 400 + b"}",
    "no object": b'"caption"',
    "UTF-16": '{"caption": "c"}'.encode("utf-16"),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_whatever_a_json_holds_it_costs_its_own_sample_at_most(tmp_path, tiny, kind):
    members = []
    for i in range(30):
        members += [(f"{i:05d}.png", png()), (f"{i:05d}.json", HOSTILE_JSON[kind] if i == 7 else b'{"caption": "fine"}')]
    tar_of(tmp_path / "in.tar", members)
    root = BuildRoot.at(tmp_path / "root")
    images = embed_images(open_source(str(tmp_path / "in.tar"), "images"), tiny, root, workers=0)
    captions = embed_captions(open_source(str(tmp_path / "in.tar"), "captions"), tiny, root)
    assert (images.rows, images.bad_rows, captions.rows) == (30, 0, 30)
    assert captions.bad_rows <= 1


def test_a_picture_that_nothing_decodes_is_named_by_its_format(tmp_path, tiny):
    members = [("0.png", png()), ("0.txt", b"a"), ("1.heic", b"x"), ("1.txt", b"b"), ("2.JXL", b"x")]
    found = samples(tar_of(tmp_path / "in.tar", members))
    assert [s.image for s in found[1:]] == [Refused("unsupported picture format .heic"), Refused("unsupported picture format .jxl")]


def test_a_text_or_picture_that_is_too_large_is_an_outcome(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("paired_index_assets.readers.members.MAX_IMAGE_BYTES", 1000)
    members = [("0.png", png() + bytes(1000)), ("0.txt", b"a" * (2 << 20)), ("1.png", png()), ("1.txt", b"b")]
    source = open_source(str(tar_of(tmp_path / "in.tar", members)), "images")
    root = BuildRoot.at(tmp_path / "root")
    assert embed_images(source, tiny, root, workers=0).bad == {"file too large": 1}
    assert embed_captions(source, tiny, root).bad == {"caption too long": 1}


def test_the_tars_of_img2dataset_are_read_whole(tmp_path, pairs):
    found = samples(pack_tars(tmp_path / "in", pairs[:50], per_tar=20))
    assert [s.key for s in found] == [p["key"] for p in pairs[:50]]
    assert not any(s.skipped or s.problem for s in found)


def test_what_is_skipped_and_what_is_refused_is_counted_and_named(tmp_path, tiny):
    members = [(f"{i}.{rest}", png() if rest == "png" else b"7") for i in range(3) for rest in ("cls", "png", "txt")]
    tar_of(tmp_path / "a.tar", [*members, ("9.heic", b"x"), ("notes", b"x")])
    tar_of(tmp_path / "b.tar", members)
    source = open_source(str(tmp_path / "*.tar"), "images")
    root = BuildRoot.at(tmp_path / "root")
    for fates in (embed_images(source, tiny, root, workers=0).fates, embed_images(source, tiny, root, workers=0).fates):  # made, and found
        assert fates.skipped == {".cls": 6, "no suffix": 1}
        assert fates.left == ["0.cls", "1.cls", "2.cls", "notes", "0.cls", "1.cls", "2.cls"]
        assert fates.refused == ["9: unsupported picture format .heic"]
        assert fates.in_words() == [
            "1 of 7 rows refused: unsupported picture format .heic 1; the first: 9: unsupported picture format .heic",
            "7 files or members are of no sample: .cls 6, no suffix 1; the first: 0.cls",
        ]
