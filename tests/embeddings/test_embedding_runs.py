"""Samples to embeddings: the same from every packing, aligned through bad samples, identical after kill -9."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_packing import pack_folder, pack_parquet, pack_tars, png
from tiny_encoder import DeadlyEncoder, TinyEncoder

from paired_index_assets.embeddings.decoding import prepare_image
from paired_index_assets.embeddings.metadata import read_metadata
from paired_index_assets.embeddings.run import embed_captions, embed_images
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import BadInput, Busy
from paired_index_assets.files.locks import one_of_writers, only_writer
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.captions import MAX_CAPTION
from paired_index_assets.readers.open import PairedSource, open_source
from paired_index_assets.readers.sample import HeldImage, ImageFile
from paired_index_assets.shares import Share


def embed_both(spec, encoder, root, **options):
    images = embed_images(open_source(str(spec), "images"), encoder, root, workers=0, **options)
    captions = embed_captions(open_source(str(spec), "captions"), encoder, root, **options)
    return images, captions


def tree(folder: Path) -> dict[str, str]:
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.endswith(".lock"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def metadata_of(found: EmbeddingSet) -> pa.Table:
    return pa.concat_tables(read_metadata(found))


def test_folder_tars_and_parquet_give_the_same_embeddings(packed, pairs, encoder, tmp_path):
    sets = {}
    for kind, spec in packed.items():
        root = BuildRoot.at(tmp_path / kind)
        images, captions = embed_both(spec, encoder, root, part_rows=110)
        assert images.rows == captions.rows == len(pairs)
        assert images.bad_rows == captions.bad_rows == 0
        sets[kind] = EmbeddingSet.open(root.image_set), EmbeddingSet.open(root.caption_set)
        assert metadata_of(sets[kind][0])["key"].to_pylist() == [p["key"] for p in pairs]
        assert metadata_of(sets[kind][1])["caption"].to_pylist() == [p["caption"] for p in pairs]
    for images, captions in sets.values():
        assert images.dtype == np.float16
        np.testing.assert_allclose(images[:].astype("f4"), sets["folder"][0][:].astype("f4"), atol=1e-3)
        np.testing.assert_allclose(captions[:].astype("f4"), sets["folder"][1][:].astype("f4"), atol=1e-3)
        assert images.valid().all()
        assert captions.valid().all()


def test_embeddings_equal_a_plain_open_clip_loop(packed, pairs, encoder, tmp_path):
    import io

    import torch
    from PIL import Image

    from paired_index_assets.embeddings.openclip import import_open_clip

    clip = import_open_clip()
    model, _, preprocess = clip.create_model_and_transforms(encoder.model)
    model.eval()
    with torch.inference_mode():
        batch = torch.stack([preprocess(Image.open(io.BytesIO(p["png"]))) for p in pairs])
        images = model.encode_image(batch, normalize=True).numpy()
        captions = model.encode_text(clip.get_tokenizer(encoder.model)([p["caption"] for p in pairs]), normalize=True).numpy()
    root = BuildRoot.at(tmp_path)
    embed_both(packed["parquet"], encoder, root)
    np.testing.assert_allclose(EmbeddingSet.open(root.image_set)[:].astype("f4"), images, atol=1e-3)
    np.testing.assert_allclose(EmbeddingSet.open(root.caption_set)[:].astype("f4"), captions, atol=1e-3)


def test_worker_processes_give_the_bytes_of_a_single_process(packed, tiny, tmp_path):
    source = open_source(str(packed["folder"]), "images")
    embed_images(source, tiny, BuildRoot.at(tmp_path / "one"), part_rows=110, workers=0)
    embed_images(source, tiny, BuildRoot.at(tmp_path / "two"), part_rows=110, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("packing", ["folder", "tars"])
def test_runs_that_share_the_parts_in_any_order_leave_nothing_for_the_whole_run_to_do(packed, tiny, tmp_path, packing):
    alone, shared = BuildRoot.at(tmp_path / "alone"), BuildRoot.at(tmp_path / "shared")
    whole = embed_both(packed[packing], tiny, alone, part_rows=70)
    shares = [Share((number,), 4) for number in (2, 3, 0, 1)]
    made = [embed_both(packed[packing], tiny, shared, part_rows=70, share=share) for share in shares]
    for side, alone_made in enumerate(whole):
        assert sum(both[side].parts for both in made) == alone_made.parts
        assert sum(both[side].rows for both in made) == alone_made.rows
    assert not shared.image_set.exists()
    assert [side.reused_parts for side in embed_both(packed[packing], tiny, shared, part_rows=70)] == [side.parts for side in whole]
    assert tree(tmp_path / "shared") == tree(tmp_path / "alone")


def test_a_share_that_makes_a_part_again_takes_the_old_description_away(tmp_path, tiny, pairs):
    folder, root = pack_folder(tmp_path / "in", pairs[:30]), BuildRoot.at(tmp_path / "root")
    embed_both(folder, tiny, root, part_rows=10)
    embed_both(folder, tiny, root, part_rows=10, share=Share((1,), 3))
    assert root.image_set.exists()
    (folder / f"{pairs[12]['key']}.txt").write_text("another caption")
    embed_both(folder, tiny, root, part_rows=10, share=Share((0,), 3))
    assert root.image_set.exists()
    embed_both(folder, tiny, root, part_rows=10, share=Share((1,), 3))
    assert not root.caption_set.exists()


def test_a_share_and_a_whole_run_keep_each_other_out(tmp_path, tiny, pairs):
    folder, root = pack_folder(tmp_path / "in", pairs[:30]), BuildRoot.at(tmp_path / "root")
    lock = tmp_path / "root/embeddings/.images.lock"
    with one_of_writers(lock):
        embed_both(folder, tiny, root, part_rows=10, share=Share((0,), 2))
        with pytest.raises(Busy, match="held by runs that share the work"):
            embed_both(folder, tiny, root, part_rows=10)
    with only_writer(lock), pytest.raises(Busy):
        embed_both(folder, tiny, root, part_rows=10, share=Share((0,), 2))


def test_metadata_keeps_the_columns_of_the_source_and_no_picture(packed, tiny, tmp_path, pairs):
    root = BuildRoot.at(tmp_path)
    embed_both(packed["parquet"], tiny, root)
    table = metadata_of(EmbeddingSet.open(root.image_set))
    assert table.column_names == ["key", "caption", "outcome", "license"]
    assert table["license"].to_pylist() == [p["license"] for p in pairs]
    embed_both(packed["tars"], tiny, root)
    assert metadata_of(EmbeddingSet.open(root.image_set))["url"].to_pylist()[7] == "https://example.org/000000007"


def bomb() -> bytes:
    """A PNG that says 60,000 x 60,000."""
    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + len(header).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + b"\0\0\0\0IDAT"


BAD_IMAGES = {
    "truncated image": png(size=(64, 64))[:90],
    "not an image": b"<html>404 Not Found</html>",
    "decompression bomb": bomb(),
    "zero bytes": b"",
    "no image": None,
}
BAD_CAPTIONS = {"no caption": None, "empty caption": " \t ", "caption too long": "a" * (MAX_CAPTION + 1)}


def test_every_kind_of_bad_sample_is_a_zero_row_with_its_reason(tiny, tmp_path):
    good = {"png": png(), "caption": "a red square"}
    bad_pictures = [{"png": content, "caption": "a caption of a bad picture"} for content in BAD_IMAGES.values()]
    rows = [good, *bad_pictures, *({"png": png(), "caption": caption} for caption in BAD_CAPTIONS.values()), good]
    table = pa.table({"png": pa.array([r["png"] for r in rows], pa.binary()), "caption": [r["caption"] for r in rows]})
    pq.write_table(table, tmp_path / "in.parquet")
    root = BuildRoot.at(tmp_path / "root")
    images, captions = embed_both(tmp_path / "in.parquet", tiny, root, batch_size=2)
    assert images.bad == dict.fromkeys(BAD_IMAGES, 1)
    assert captions.bad == dict.fromkeys(BAD_CAPTIONS, 1)
    found, texts = EmbeddingSet.open(root.image_set), EmbeddingSet.open(root.caption_set)
    bad_images = list(range(1, 1 + len(BAD_IMAGES)))
    bad_captions = list(range(1 + len(BAD_IMAGES), len(rows) - 1))
    assert np.flatnonzero(~found.valid()).tolist() == bad_images
    assert np.flatnonzero(~texts.valid()).tolist() == bad_captions
    assert not found[:][bad_images].any()
    assert metadata_of(found)["outcome"].to_pylist()[1 : 1 + len(BAD_IMAGES)] == list(BAD_IMAGES)
    assert metadata_of(found)["outcome"].to_pylist().count("ok") == len(rows) - len(BAD_IMAGES)


def test_a_missing_file_a_folder_and_a_huge_file_are_outcomes(tiny, tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "huge.png").write_bytes(png() + bytes(1000))
    monkeypatch.setattr("paired_index_assets.readers.sample.MAX_IMAGE_BYTES", 1000)
    (tmp_path / "list.txt").write_text("good.png\nmissing.png\nfolder.png\n\nhuge.png\n")
    root = BuildRoot.at(tmp_path / "root")
    summary = embed_images(open_source(str(tmp_path / "list.txt"), "images"), tiny, root, workers=0)
    outcomes = metadata_of(EmbeddingSet.open(root.image_set))["outcome"].to_pylist()
    assert outcomes == ["ok", "missing file", "unreadable file", "no image", "file too large"]
    assert summary.bad_rows == 4


def test_only_known_picture_formats_are_decoded(tiny):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert prepare_image(tiny, HeldImage(postscript)) == (None, "not an image")
    assert prepare_image(tiny, ImageFile("/nowhere/at/all.png")) == (None, "missing file")


def test_a_picture_that_kills_its_decoder_costs_only_itself(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(150):
        size = (13, 13) if number in (3, 77) else (8, 8)
        (folder / f"{number:03d}.png").write_bytes(png((number, 0, 0), size))
    root = BuildRoot.at(tmp_path / "root")
    summary = embed_images(open_source(str(folder), "images"), DeadlyEncoder(), root, workers=2)
    assert summary.bad == {"decoder crashed": 2}
    assert np.flatnonzero(~EmbeddingSet.open(root.image_set).valid()).tolist() == [3, 77]


kinds_of_sample = st.lists(st.tuples(st.sampled_from([None, *BAD_IMAGES]), st.sampled_from([None, *BAD_CAPTIONS])), min_size=1, max_size=40)


@settings(max_examples=25, deadline=None)
@given(
    kinds=kinds_of_sample,
    part_rows=st.integers(1, 17),
    batch=st.integers(1, 9),
    packing=st.sampled_from([pack_tars, pack_parquet, pack_folder]),
)
def test_pairs_stay_aligned_through_any_pattern_of_bad_samples(kinds, part_rows, batch, packing):
    """Row i of both sets and of the metadata is sample i, whatever is bad around it."""
    tiny = TinyEncoder()
    rows = [
        {
            "key": f"{i:04d}",
            "png": png((i * 5 % 256, i, 200)) if bad_image is None else BAD_IMAGES[bad_image] or b"",
            "caption": f"caption {i}" if bad_caption is None else BAD_CAPTIONS[bad_caption] or "",
            "license": "MIT",
        }
        for i, (bad_image, bad_caption) in enumerate(kinds)
    ]
    more = {pack_tars: {"per_tar": part_rows}, pack_parquet: {"per_file": 11, "row_group": 4}, pack_folder: {}}[packing]
    with tempfile.TemporaryDirectory() as folder:
        spec = packing(Path(folder) / "in", rows, **more)
        root = BuildRoot.at(Path(folder) / "root")
        embed_both(spec, tiny, root, part_rows=part_rows, batch_size=batch)
        images, captions = EmbeddingSet.open(root.image_set), EmbeddingSet.open(root.caption_set)
        pictures, texts = images[:].astype("f4"), captions[:].astype("f4")
        assert metadata_of(images)["key"].to_pylist() == metadata_of(captions)["key"].to_pylist() == [r["key"] for r in rows]
        for i, (row, (bad_image, bad_caption)) in enumerate(zip(rows, kinds, strict=True)):
            if bad_image is None:
                array, _ = prepare_image(tiny, HeldImage(row["png"]))
                np.testing.assert_allclose(pictures[i], tiny.encode_images(array[None])[0], atol=1e-3)
            else:
                assert not pictures[i].any()
            if bad_caption is None:
                np.testing.assert_allclose(texts[i], tiny.encode_texts([row["caption"]])[0], atol=1e-3)
            else:
                assert not texts[i].any()
        np.testing.assert_array_equal(images.valid(), [bad is None for bad, _ in kinds])
        np.testing.assert_array_equal(captions.valid(), [bad is None for _, bad in kinds])


def in_a_process_that_dies(work) -> None:
    """Fork, do `work` there, wait. (The tiny encoder uses no thread, so a fork is safe.)"""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"expected the process to be killed, found status {status}"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("call", range(1, 8))
def test_a_run_killed_around_any_file_resumes_to_the_same_bytes(packed, tiny, tmp_path, call, before):
    """Three parts of two files and a JSON are seven renames; kill -9 just before or after each of them."""
    source = open_source(str(packed["folder"]), "images")
    embed_images(source, tiny, BuildRoot.at(tmp_path / "whole"), part_rows=110, workers=0)
    root = BuildRoot.at(tmp_path / "killed")

    def work():
        rename, calls = os.replace, iter(range(1, 100))

        def deadly(*arguments):
            mine = next(calls) == call
            if mine and before:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = deadly
        embed_images(source, tiny, root, part_rows=110, workers=0)

    in_a_process_that_dies(work)
    summary = embed_images(source, tiny, root, part_rows=110, workers=0)
    assert summary.reused_parts == (call - (1 if before else 0)) // 2
    assert tree(tmp_path / "whole") == tree(tmp_path / "killed")


SCRIPT = """
import os, signal, sys
from paired_index_assets.embeddings.encoders import load_encoder
from paired_index_assets.embeddings.run import embed_images
from paired_index_assets.readers.open import open_source
from paired_index_assets.layout import BuildRoot
from paired_index_assets.sample import sample_model

def progress(step, done, total, /, **facts):
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    source = open_source(sys.argv[1], "images")
    embed_images(source, load_encoder(sample_model()), BuildRoot.at(sys.argv[2]), part_rows=80, batch_size=32, workers=2, progress=progress)
"""


def test_open_clip_with_workers_killed_resumes_to_the_same_bytes(packed, encoder, tmp_path):
    command = [sys.executable, "-c", SCRIPT, packed["tars"], tmp_path / "killed", "200"]
    done = subprocess.run(command, capture_output=True, timeout=300)  # returns only when no worker holds the pipes either
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    source = open_source(str(packed["tars"]), "images")
    summary = embed_images(source, encoder, BuildRoot.at(tmp_path / "killed"), part_rows=80, batch_size=32, workers=0)
    assert summary.reused_parts == 1
    embed_images(source, encoder, BuildRoot.at(tmp_path / "whole"), part_rows=80, batch_size=32, workers=0)
    assert tree(tmp_path / "whole") == tree(tmp_path / "killed")


def test_a_changed_input_makes_its_part_again_and_no_other(tmp_path, tiny, pairs):
    folder = pack_folder(tmp_path / "in", pairs[:30])
    root = BuildRoot.at(tmp_path / "root")
    embed_both(folder, tiny, root, part_rows=10)
    before = EmbeddingSet.open(root.image_set)
    (folder / f"{pairs[14]['key']}.png").write_bytes(png((1, 2, 3)))
    summary, _ = embed_both(folder, tiny, root, part_rows=10)
    assert summary.reused_parts == 2
    after = EmbeddingSet.open(root.image_set)
    assert after.fingerprint != before.fingerprint
    assert [a.stamp == b.stamp for a, b in zip(before.parts, after.parts, strict=True)] == [True, False, True]


def test_another_model_makes_every_part_again_and_names_itself(tmp_path, tiny, pairs):
    folder = pack_folder(tmp_path / "in", pairs[:30])
    root = BuildRoot.at(tmp_path / "root")
    embed_both(folder, tiny, root, part_rows=10)
    summary, _ = embed_both(folder, DeadlyEncoder(), root, part_rows=10)
    assert summary.reused_parts == 0
    assert EmbeddingSet.open(root.image_set).model == "deadly/1"


def test_a_shorter_input_leaves_no_parts_of_the_longer_one(tmp_path, tiny, pairs):
    folder = pack_folder(tmp_path / "in", pairs[:30])
    root = BuildRoot.at(tmp_path / "root")
    embed_both(folder, tiny, root, part_rows=10)
    for pair in pairs[20:30]:
        (folder / f"{pair['key']}.png").unlink()
        (folder / f"{pair['key']}.txt").unlink()
    images, _ = embed_both(folder, tiny, root, part_rows=10)
    assert (images.rows, images.reused_parts) == (20, 2)
    assert len(list((tmp_path / "root/embeddings/img_emb").iterdir())) == 2


def test_a_damaged_part_is_made_again(tmp_path, tiny, pairs):
    folder = pack_folder(tmp_path / "in", pairs[:30])
    root = BuildRoot.at(tmp_path / "root")
    embed_both(folder, tiny, root, part_rows=10)
    whole = tree(tmp_path / "root")
    with (tmp_path / "root/embeddings/img_emb/img_emb_0001.npy").open("rb+") as stream:
        stream.truncate(200)
    (tmp_path / "root/embeddings/metadata/metadata_0002.parquet").write_bytes(b"not Parquet")
    images, _ = embed_both(folder, tiny, root, part_rows=10)
    assert images.reused_parts == 1
    assert tree(tmp_path / "root") == whole


def test_progress_reaches_the_total_with_a_rate_and_time_left(tmp_path, tiny, packed):
    said = []
    source = open_source(str(packed["tars"]), "images")
    embed_images(source, tiny, BuildRoot.at(tmp_path), workers=0, batch_size=32, progress=lambda *a, **k: said.append((a, k)))
    done = [a[1] for a, _ in said]
    assert done == sorted(done)
    assert said[-1][0] == ("embedding images", 300, 300)
    assert {"rows_per_s", "seconds_left"} <= set(said[-2][1])


def test_pictures_and_captions_of_two_files_are_paired_line_by_line(tmp_path, tiny, pairs):
    pack_folder(tmp_path / "in", pairs[:25])
    (tmp_path / "paths.txt").write_text("".join(f"in/{p['key']}.png\n" for p in pairs[:25]))
    (tmp_path / "captions.txt").write_text("".join(f"{p['caption']}\n" for p in pairs[:25]))
    images, captions = open_source(str(tmp_path / "paths.txt"), "images"), open_source(str(tmp_path / "captions.txt"), "captions")
    root = BuildRoot.at(tmp_path / "root")
    embed_images(PairedSource(images, captions), tiny, root, part_rows=7, workers=0)
    assert metadata_of(EmbeddingSet.open(root.image_set))["caption"].to_pylist() == [p["caption"] for p in pairs[:25]]
    (tmp_path / "captions.txt").write_text("one\ntwo\n")
    captions = open_source(str(tmp_path / "captions.txt"), "captions")
    with pytest.raises(BadInput, match=r"captions\.txt: expected 25 captions for the 25 images of .*paths\.txt, found 2"):
        embed_images(PairedSource(images, captions), tiny, root, part_rows=7, workers=0)


def test_captions_alone_and_a_second_writer(tmp_path, tiny):
    (tmp_path / "captions.txt").write_text("a\nb\n")
    source = open_source(str(tmp_path / "captions.txt"), "captions")
    root = BuildRoot.at(tmp_path / "root")
    with pytest.raises(BadInput, match="expected images, found captions only"):
        embed_images(source, tiny, root)
    with only_writer(tmp_path / "root/embeddings/.captions.lock"), pytest.raises(Busy):
        embed_captions(source, tiny, root)
    assert embed_captions(source, tiny, root).rows == 2


def test_an_empty_caption_list_is_refused(tmp_path, tiny):
    (tmp_path / "captions.txt").write_text("")
    with pytest.raises(BadInput, match=r"captions\.txt: expected samples, found none"):
        embed_captions(open_source(str(tmp_path / "captions.txt"), "captions"), tiny, BuildRoot.at(tmp_path))


def test_a_parquet_without_known_columns_is_refused_and_its_other_columns_are_kept(tmp_path, tiny):
    pq.write_table(pa.table({"image": [png()], "prompt": ["p"], "description": ["d"]}), tmp_path / "in.parquet")
    root = BuildRoot.at(tmp_path / "root")
    embed_images(open_source(str(tmp_path / "in.parquet"), "images"), tiny, root, workers=0)
    found = metadata_of(EmbeddingSet.open(root.image_set)).to_pylist()
    assert found == [{"key": "in.parquet:0", "caption": "p", "outcome": "ok", "description": "d"}]
    pq.write_table(pa.table({"picture": [png()], "prompt": ["p"]}), tmp_path / "odd.parquet")
    with pytest.raises(BadInput, match="expected images, found captions"):
        open_source(str(tmp_path / "odd.parquet"), "images")


def test_random_bytes_never_stop_a_run(tmp_path, tiny):
    """A thousand damaged PNGs: every one ends as an outcome."""
    generator = random.Random(0)
    whole = bytearray(png(size=(32, 32)))
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        array, outcome = prepare_image(tiny, HeldImage(bytes(content[: generator.randint(1, len(content))])))
        assert (array is None) == (outcome != "ok")
