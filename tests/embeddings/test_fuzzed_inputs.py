"""Mutated tars, .npy, Parquet, tensors, JSON and pictures: rows in = rows out + rows named, and no exception without a name.

Seeded and bounded. `ROUNDS` of each kind in the suite; FUZZ_ROUNDS in the environment asks for more.
"""

from __future__ import annotations

import io
import json
import os
import random
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sample_packing import pack_parquet, pack_tars, png

from paired_index_assets.cli.main import main
from paired_index_assets.embeddings.decoding import prepare_image
from paired_index_assets.embeddings.features import adopt_features
from paired_index_assets.embeddings.metadata import read_metadata
from paired_index_assets.embeddings.run import embed_captions, embed_images
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import PairedIndexError
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.open import open_source
from paired_index_assets.readers.sample import HeldImage

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "30"))
COUNT = 24


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Some of what disks, networks and editors do to a file, and some that only an adversary does."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(max(len(data), 1))
        length = generator.choice((1, 4, 100, 512, 1024, 5000))
        kind = generator.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            data[at:at] = generator.randbytes(length)
        elif kind == 6:
            at = at // 512 * 512
            data[at : at + 512], data[at + 512 : at + 1024] = data[at + 512 : at + 1024], data[at : at + 512]
        else:
            data[at : at + length] = generator.choice((b"\xff", b"0", b"9", b"[", b"-", b"\x80")) * len(data[at : at + length])
    return bytes(data)


@pytest.fixture
def one_line():
    """Run `work`; its result, or None where it refused its input in one line that names a file."""

    def run(work, *names):
        try:
            return work()
        except PairedIndexError as error:
            said = str(error)
            assert "\n" not in said, said
            assert any(name in said for name in names), said
            return None

    return run


def rows_of(root, which):
    found = EmbeddingSet.open(which)
    table = pa.concat_tables(read_metadata(found, ["key", "outcome"])).to_pylist()
    assert [row["outcome"] == "ok" for row in table] == found.valid().tolist()
    return table


def test_every_sample_of_a_mutated_tar_is_a_row_or_is_named(tmp_path, tiny, pairs, one_line):
    generator = random.Random(1)
    folder = pack_tars(tmp_path / "in", pairs[:COUNT], per_tar=COUNT)
    keys = [pair["key"] for pair in pairs[:COUNT]]
    pq.write_table(pa.table({"key": keys, "status": ["success"] * COUNT}), folder / "00000.parquet")
    whole = (folder / "00000.tar").read_bytes()
    for number in range(ROUNDS):
        (folder / "00000.tar").write_bytes(mutated(whole, generator))
        root = BuildRoot.at(tmp_path / f"root{number}")
        images = embed_images(open_source(str(folder), "images"), tiny, root, workers=0)
        captions = embed_captions(open_source(str(folder), "captions"), tiny, root)
        pictures, texts = rows_of(root, root.image_set), rows_of(root, root.caption_set)
        assert [row["key"] for row in pictures] == [row["key"] for row in texts]
        assert set(keys) <= {row["key"] for row in pictures}
        for summary, table in ((images, pictures), (captions, texts)):
            good = sum(row["outcome"] == "ok" for row in table)
            assert summary.rows == len(table) == good + summary.bad_rows
            named = {row["key"] for row in table if row["outcome"] != "ok"}
            assert set(keys) <= {row["key"] for row in table if row["outcome"] == "ok"} | named


def test_a_mutated_tar_without_a_record_that_lost_samples_says_so(tmp_path, pairs):
    generator = random.Random(2)
    folder = pack_tars(tmp_path / "in", pairs[:COUNT], per_tar=COUNT)
    for extra in ("00000.parquet", "00000_stats.json"):
        (folder / extra).unlink()
    whole = (folder / "00000.tar").read_bytes()
    for _ in range(3 * ROUNDS):
        (folder / "00000.tar").write_bytes(mutated(whole, generator))
        (part,) = open_source(str(folder), "images").parts(1000)
        found = list(part.read(True))
        assert [s.key for s in found] == [s.key for s in part.read(False)]
        good = sum(s.problem is None and s.image is not None and s.caption is not None for s in found)
        odd = sum(len(s.skipped) for s in found) + sum(s.problem is not None or s.image is None or s.caption is None for s in found)
        assert good >= COUNT or odd, "samples were lost without a word"


def test_a_mutated_parquet_of_pairs_gives_all_rows_or_none(tmp_path, tiny, pairs, one_line):
    generator = random.Random(3)
    folder = pack_parquet(tmp_path / "in", pairs[:COUNT], per_file=COUNT, row_group=7)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for number in range(ROUNDS):
        path.write_bytes(mutated(whole, generator))
        root = BuildRoot.at(tmp_path / f"root{number}")
        summary = one_line(
            lambda root=root: embed_images(open_source(str(folder), "images"), tiny, root, workers=0), folder.name, path.name
        )
        if summary is not None:
            assert summary.rows == len(rows_of(root, root.image_set))
        one_line(lambda root=root: embed_captions(open_source(str(folder), "captions"), tiny, root), folder.name, path.name)


ROWS = np.random.default_rng(4).standard_normal((COUNT, 16)).astype(np.float32)
FEATURES = {
    "f.npy": lambda path: np.save(path, ROWS),
    "double.npy": lambda path: np.save(path, ROWS.astype(np.float64)),
    "f.pt": lambda path: torch.save(torch.from_numpy(ROWS), path),
    "f.safetensors": lambda path: save_file({"f": torch.from_numpy(ROWS)}, path),
    "f.parquet": lambda path: pq.write_table(pa.table({"embedding": list(ROWS)}), path, row_group_size=9),
    "columns.parquet": lambda path: pq.write_table(pa.table({f"e_{i}": ROWS[:, i] for i in range(16)}), path),
}


@pytest.mark.parametrize("name", FEATURES)
def test_mutated_features_give_counted_rows_or_one_line(tmp_path, name, one_line):
    generator = random.Random(5)
    FEATURES[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for number in range(ROUNDS):
        (tmp_path / name).write_bytes(mutated(whole, generator))
        target = tmp_path / f"{number}/images.json"
        found = one_line(lambda target=target: adopt_features(target, str(tmp_path / name), modality="images", normalize="auto"), name)
        if found is not None:
            facts = found.facts()
            assert facts.rows == len(found) == int(found.valid().sum()) + facts.invalid


def test_mutated_lists_give_a_row_a_line(tmp_path, tiny, one_line):
    generator = random.Random(6)
    lines = [json.dumps({"file_name": "a.png", "text": f"a caption {i}", "n": i}) for i in range(COUNT)]
    (tmp_path / "a.png").write_bytes(png())
    table = "file_name,text\n" + "".join(f'a.png,"a caption, {i}"\n' for i in range(COUNT))
    for name, whole in (
        ("l.jsonl", "\n".join(lines).encode()),
        ("l.csv", table.encode()),
        ("l.json", json.dumps([{"text": "x"}] * 9).encode()),
    ):
        for number in range(ROUNDS):
            content = mutated(whole, generator)
            (tmp_path / name).write_bytes(content)
            root = BuildRoot.at(tmp_path / f"{name}{number}")
            summary = one_line(lambda name=name, root=root: embed_captions(open_source(str(tmp_path / name), "captions"), tiny, root), name)
            if summary is not None and name == "l.jsonl" and not content.startswith((b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b")):
                assert summary.rows == sum(bool(line.strip()) for line in io.StringIO(content.decode("utf-8-sig", "replace"), newline=""))


def pictures():
    image = Image.fromarray(np.random.default_rng(7).integers(0, 256, (40, 30, 3), dtype=np.uint8), "RGB")
    exif = Image.Exif()
    exif[274] = 6
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"):
        stream = io.BytesIO()
        image.save(stream, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
        yield kind, stream.getvalue()
    for mode in ("P", "LA", "I;16"):
        stream = io.BytesIO()
        (Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(40, 30)) if mode == "I;16" else image.convert(mode)).save(stream, "PNG")
        yield mode, stream.getvalue()


@pytest.mark.parametrize(("kind", "whole"), list(pictures()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_mutated_picture_is_a_picture_or_an_outcome(tiny, kind, whole):
    generator = random.Random(8)
    for _ in range(2 * ROUNDS):
        array, outcome = prepare_image(tiny, HeldImage(mutated(whole, generator)))
        assert (array is None) == (outcome != "ok")


def test_no_exception_without_a_name_leaves_the_command_line(tmp_path, monkeypatch, capfd):
    generator = random.Random(9)
    np.save(tmp_path / "f.npy", ROWS)
    whole = (tmp_path / "f.npy").read_bytes()
    for _ in range(ROUNDS):
        (tmp_path / "f.npy").write_bytes(mutated(whole, generator))
        command = ["paired-index", "catalog", "scan", str(tmp_path / "f.npy"), "--out", str(tmp_path / "c.parquet"), "--shards", "1"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr().err.strip().splitlines()
        assert (ended.value.code, len(said)) in ((0, 0), (1, 1)), said
