"""Folders with links and mixed cases, lists of every kind, Parquet as other tools write it: read whole, or refused with the cure."""

from __future__ import annotations

import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_packing import png

from paired_index_assets.embeddings.run import embed_captions, embed_images
from paired_index_assets.errors import BadInput
from paired_index_assets.files.listing import list_files
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.open import open_source
from paired_index_assets.readers.sample import Refused


def samples(spec, modality="images", part_rows=3):
    return [s for part in open_source(str(spec), modality).parts(part_rows) for s in part.read(modality == "images")]


def made(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png() if name.lower().endswith("png") else b"a caption")
    return folder


def test_links_to_folders_are_followed_once_each(tmp_path):
    made(tmp_path / "in", "a/1.png", "b/2.png")
    made(tmp_path / "elsewhere", "3.png", "deep/4.png")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/0").symlink_to(tmp_path / "in/b")
    (tmp_path / "in/file.png").symlink_to(tmp_path / "elsewhere/3.png")
    names = [s.key for s in samples(tmp_path / "in")]
    assert names == ["a/1", "again/3", "again/deep/4", "b/2", "file"]
    assert [f.name for f in list_files(str(tmp_path / "in/*/*.png"))] == ["a/1.png", "again/3.png", "b/2.png"]
    assert len(list_files(str(tmp_path / "in/**/*.png"))) == 5
    (tmp_path / "root link").symlink_to(tmp_path / "in")
    assert [s.key for s in samples(tmp_path / "root link")] == names


def test_suffixes_in_any_case_belong_together(tmp_path):
    made(tmp_path, "1.PNG", "1.TXT", "2.png", "2.Txt", "3.Png")
    assert [(s.key, s.caption) for s in samples(tmp_path)] == [("1", "a caption"), ("2", "a caption"), ("3", None)]


def test_what_nothing_decodes_or_reads_is_named(tmp_path, tiny):
    made(tmp_path, "1.png", "1.txt", "2.heic", "2.txt", "3.png", "3.txt", "Thumbs.db", "notes.md", "index.html")
    found = samples(tmp_path)
    assert found[1].image == Refused("unsupported picture format .heic")
    fates = embed_images(open_source(str(tmp_path), "images"), tiny, BuildRoot.at(tmp_path / ".root"), workers=0).fates
    assert fates.bad == {"unsupported picture format .heic": 1}
    assert fates.skipped == {".db": 1, ".md": 1, ".html": 1}


def test_an_avif_is_a_picture(tmp_path, tiny):
    from PIL import Image

    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "a.avif")
    made(tmp_path, "b.png")
    assert embed_images(open_source(str(tmp_path), "images"), tiny, BuildRoot.at(tmp_path / ".root"), workers=0).fates.bad == {}


def test_pictures_beside_tars_are_named_and_records_of_tars_are_not(tmp_path, pairs):
    from sample_packing import pack_tars

    pack_tars(tmp_path / "in", pairs[:4], per_tar=2)
    made(tmp_path / "in", "left.png")
    found = samples(tmp_path / "in")
    assert [name for s in found for name in s.skipped] == ["left.png"]


ROWS = [("a.png", "one, two"), ("b.png", 'with "quotes"'), ("", "no picture"), ("a.png", ""), ("b.png", "two\nlines"), ("a.png", "三匹")]


def csv_of(separator=",", header=("image_path", "caption"), encoding="utf-8", newline="\n"):
    quoted = [[f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row] for row in [header, *ROWS]]
    return newline.join(separator.join(row) for row in quoted).encode(encoding)


def json_lines(keys=("image_path", "caption")):
    return "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in ROWS).encode()


LISTS = {
    "list.csv": csv_of(),
    "semicolons.csv": csv_of(";", newline="\r\n"),
    "excel.csv": csv_of(encoding="utf-16"),
    "list.tsv": csv_of("\t"),
    "list.jsonl": json_lines(),
    "list.ndjson": json_lines(("path", "text")),
    "list.jsonl.gz": gzip.compress(json_lines()),
    "list.csv.gz": gzip.compress(csv_of()),
    "list.json": json.dumps([{"file_name": a, "prompt": b} for a, b in ROWS]).encode(),
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("part_rows", [1, 4, 100])
def test_lists_of_pictures_and_captions_are_read(tmp_path, name, part_rows):
    made(tmp_path, "a.png", "b.png")
    (tmp_path / name).write_bytes(LISTS[name])
    found = samples(tmp_path / name, "images", part_rows)
    assert [(s.image.url.rpartition("/")[2] if s.image else "", s.caption) for s in found] == ROWS
    assert found[0].image.read() == png()
    assert [s.caption for s in samples(tmp_path / name, "captions", part_rows)] == [b for _, b in ROWS]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_folder_with_hugging_faces_metadata_is_read_by_it(tmp_path, kind):
    made(tmp_path, "train/a.png", "train/b.png", "train/c.png")
    rows = [("b.png", "bee"), ("a.png", "ay")]
    content = (
        "".join(json.dumps({"file_name": a, "text": b, "n": 7}) + "\n" for a, b in rows)
        if kind == "jsonl"
        else "file_name,text,n\n" + "".join(f"{a},{b},7\n" for a, b in rows)
    )
    (tmp_path / f"train/metadata.{kind}").write_text(content)
    found = samples(tmp_path)
    assert [(s.image.read() == png(), s.caption, s.columns["n"]) for s in found] == [(True, "bee", "7"), (True, "ay", "7")]
    assert [s.caption for s in samples(tmp_path, "captions")] == ["bee", "ay"]


def test_bad_lines_are_rows_that_say_so(tmp_path):
    deep = "[" * 100_000
    (tmp_path / "l.jsonl").write_text(
        '{"path": "a.png", "text": "x"}\n{broken\n\n[1]\n{"path": "b.png", "text": "\\ud83d"}\n' + deep + "\n"
    )
    found = samples(tmp_path / "l.jsonl")
    assert [bool(s.problem) for s in found] == [False, True, True, False, True]
    assert all(s.problem.startswith("line that cannot be read: ") for s in found if s.problem)
    (tmp_path / "l.csv").write_text('path,text\na.png,x\nb.png\n"c.png","y","z"\nd.png,"w"\n')
    found = samples(tmp_path / "l.csv")
    assert [bool(s.problem) for s in found] == [False, True, True, False]
    assert "3 values for 2 columns in line 4" in found[2].problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"a,b\n1,2\n", "expected a column of pictures .* found a, b; name them in the first line"),
        ("cc3.tsv", b"a cat\thttp://x/1\na dog\thttp://x/2\n", "name them in the first line"),
        ("l.json", b'{"images": []}', "expected a JSON array of objects, one a picture, found dict; write it as JSON lines"),
        ("l.json", b"{broken", "expected a JSON array of objects"),
        ("l.jsonl.gz", gzip.compress(b'{"text": "x"}' * 100)[:40], "compressed by gzip, found one that is damaged"),
        ("pictures.zip", b"PK", "unpack it into a folder first"),
        ("captions.txt.gz", gzip.compress(b"x"), "decompress it first"),
        ("captions.pkl", b"x", "a pickle is never loaded"),
        ("train.arrow", b"ARROW1", "save it as Parquet"),
        ("a.npy", b"x", "embeddings go to --image-features"),
        ("sheet.xlsx", b"x", "save the sheet as CSV"),
        ("only/1.heic", b"x", "found .heic; convert them to JPEG, PNG, WebP or AVIF"),
    ],
)
def test_what_is_not_read_is_refused_with_its_cure(tmp_path, name, content, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        samples(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_parquet_files_may_differ_in_what_is_not_used(tmp_path):
    tables = [
        {"jpg": [png()], "caption": ["a"], "n": [1], "only_here": ["x"], "same": [1.5]},
        {"jpg": [png()], "caption": pa.array(["b"], pa.large_string()), "n": ["one"], "same": [2.5]},
        {"jpg": [png()], "caption": pa.array([None], pa.null()), "same": [3.5]},
        {"jpg": pa.array([png()], pa.large_binary()), "caption": pa.array(["d"]).dictionary_encode(), "n": [4], "same": [4.5]},
    ]
    for number, table in enumerate(tables):
        pq.write_table(pa.table(table), tmp_path / f"{number}.parquet")
    pq.write_table(pa.table({"nothing": pa.array([], pa.int8())}), tmp_path / "empty.parquet")
    found = samples(tmp_path)
    assert [(s.caption, dict(s.columns)) for s in found] == [
        ("a", {"same": 1.5}),
        ("b", {"same": 2.5}),
        (None, {"same": 3.5}),
        ("d", {"same": 4.5}),
    ]
    assert all(s.image.read() == png() for s in found)


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())],
)
def test_captions_of_any_text_type_are_read(tmp_path, kind):
    array = (
        pa.array(["a", None, "a"]).cast(kind)
        if not pa.types.is_dictionary(kind)
        else pa.array(["a", None, "a"]).dictionary_encode().cast(kind)
    )
    pq.write_table(pa.table({"caption": array}), tmp_path / "c.parquet")
    assert [s.caption for s in samples(tmp_path / "c.parquet", "captions")] == ["a", None, "a"]


def test_values_that_python_does_not_have_cost_nothing(tmp_path, tiny):
    table = pa.table(
        {
            "caption": utf8_unchecked(),
            "far": pa.array([2**62, 0, None]).cast(pa.timestamp("us")),
            "nanoseconds": pa.array([1, 2, 3]).cast(pa.timestamp("ns")),
            "day": pa.array([datetime.date(2020, 1, 1), None, None]),
            "big": pa.array([2**64 - 1, 0, 1], pa.uint64()),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    found = samples(tmp_path / "c.parquet", "captions")
    assert [s.caption for s in found] == ["fine", "not \ufffd UTF-8", "fine"]
    assert found[0].columns["day"] == "2020-01-01"
    assert embed_captions(open_source(str(tmp_path / "c.parquet"), "captions"), tiny, BuildRoot.at(tmp_path / "root")).bad == {
        "caption is not text": 1
    }


def utf8_unchecked():
    """A string column with bytes that are not UTF-8, as careless writers leave it."""
    binary = pa.array([b"fine", b"not \xff UTF-8", b"fine"], pa.binary())
    return pa.Array.from_buffers(pa.string(), 3, binary.buffers())


@pytest.mark.parametrize("where", ["footer", "pages", "cut", "empty"])
def test_damaged_parquet_is_refused_in_one_line(tmp_path, tiny, where):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"caption": [f"caption {i}" for i in range(5000)]}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    start, stop = {"footer": (-200, -8), "pages": (10, 400), "cut": (0, 0), "empty": (0, 0)}[where]
    content[start:stop] = bytes(len(content[start:stop]))
    path.write_bytes(content[: {"cut": 500, "empty": 0}.get(where, len(content))])
    with pytest.raises(BadInput, match=r"c\.parquet: expected a Parquet file, found one that cannot be read") as caught:
        embed_captions(open_source(str(path), "captions"), tiny, BuildRoot.at(tmp_path / "root"))
    assert "\n" not in str(caught.value)
