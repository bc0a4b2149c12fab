"""The packed layout: the same answers as the shards', or the shards themselves."""

import datetime
import os
import signal
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from search_builds import NLIST, make, rebuild

from paired_index_assets.errors import DamagedArtifact, OutOfDisk
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search import packed as packed_layout
from paired_index_assets.search import packing
from paired_index_assets.search.packed import pack, read_pack, record_path
from paired_index_assets.search.sharded import IN_USE, ShardedIndex
from paired_index_assets.search.shardset import served_index
from paired_index_assets.shards.removals import add_removed


def folder(build) -> Path:
    return Path(served_index(build.root).generation.packed.path)


def files(build) -> list[str]:
    return sorted(file.name for file in folder(build).glob("*") if not file.name.startswith(".pack"))


def assert_answers_of_the_shards(build, queries, **options):
    index = ShardedIndex.open(build.root)
    for n, k, nprobe in ((1, 10, 3), (80, 25, 7), (3, 400, NLIST)):
        mine = index.search(queries[:n], k, nprobe=nprobe, **options)
        shards = ShardedIndex.open(build.root, packed=False).search(queries[:n], k, nprobe=nprobe, **options)
        for one, other in zip(mine, shards, strict=True):
            np.testing.assert_array_equal(one, other)
    return index


def test_the_pack_gives_the_answers_of_the_shards_to_the_bit(fresh):
    record, made = pack(fresh.root)
    assert made
    assert record.rows == len(fresh.images)
    assert assert_answers_of_the_shards(fresh, fresh.captions).packed == IN_USE


def test_transformed_files_are_packed_alike(transformed):
    pack(transformed.root)
    assert assert_answers_of_the_shards(transformed, transformed.captions).packed == IN_USE


def test_stock_faiss_reads_a_pack_as_any_index(fresh):
    record, _ = pack(fresh.root)
    stock = faiss.read_index(str(folder(fresh) / record.file))
    stock.nprobe = 6
    scores, _ = stock.search(fresh.captions[:40], 10)
    np.testing.assert_allclose(scores, ShardedIndex.open(fresh.root).search(fresh.captions[:40], 10, nprobe=6)[0], atol=1e-6)
    ids = np.concatenate(
        [faiss.rev_swig_ptr(stock.invlists.get_ids(i), stock.invlists.list_size(i)) for i in range(NLIST) if stock.invlists.list_size(i)]
    )
    assert len(ids) == len(np.unique(ids)) == len(fresh.images)


def test_its_bytes_are_a_function_of_the_shards(fresh):
    first, _ = pack(fresh.root)
    assert pack(fresh.root) == (first, False)
    for file in folder(fresh).glob("knn*"):
        file.unlink()
    again, made = pack(fresh.root)
    assert made
    assert again == first


def test_what_is_taken_down_is_not_found_at_once_and_gone_from_the_next_pack(fresh):
    before, _ = pack(fresh.root)
    index = ShardedIndex.open(fresh.root)
    gone = np.unique(index.search(fresh.captions[:20], 3, nprobe=NLIST)[1])
    add_removed(fresh.root, gone, "asked for", when=datetime.datetime.now(datetime.UTC))
    assert not np.isin(index.search(fresh.captions[:20], 10, nprobe=NLIST)[1], gone).any()
    assert assert_answers_of_the_shards(fresh, fresh.captions).packed == IN_USE
    record, made = pack(fresh.root)
    assert made
    assert record.rows == before.rows - len(gone)
    assert files(fresh) == sorted([record.file, "packed.json"])
    assert assert_answers_of_the_shards(fresh, fresh.captions).packed == IN_USE
    assert not np.isin(index.search(fresh.captions[:20], 10, nprobe=NLIST)[1], gone).any()  # the old file, which is still mapped


def test_a_pack_of_other_shards_is_left_alone(fresh):
    pack(fresh.root)
    np.save(fresh.landing / "img_emb_0002.npy", fresh.images[731:1631][::-1].astype(np.float16))
    rebuild(fresh)
    index = assert_answers_of_the_shards(fresh, fresh.captions)
    assert index.packed == "older than the shards"
    assert pack(fresh.root)[1]
    assert assert_answers_of_the_shards(fresh, fresh.captions).packed == IN_USE


def _of_the_file(spoil):
    return lambda place: [spoil(file) for file in place.glob("knn*")]


DAMAGE = {
    "missing": _of_the_file(Path.unlink),
    "cut": _of_the_file(lambda file: os.truncate(file, 1000)),
    "empty": _of_the_file(lambda file: file.write_bytes(b"")),
    "another file": _of_the_file(lambda file: file.write_bytes(os.urandom(file.stat().st_size))),
    "a record that is no record": lambda place: (place / "packed.json").write_text("[1]"),
    "a record of another format": lambda place: (place / "packed.json").write_text('{"format": 99}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_pack_is_said_in_one_line_and_the_shards_are_searched(fresh, damage, caplog):
    record, _ = pack(fresh.root)
    DAMAGE[damage](folder(fresh))
    index = assert_answers_of_the_shards(fresh, fresh.captions)
    assert "run `paired-index pack` again" in index.packed
    assert "\n" not in index.packed
    assert any("the shards are" in line and index.packed in line for line in caplog.messages)
    assert pack(fresh.root) == (record, True)
    assert ShardedIndex.open(fresh.root).packed == IN_USE


def test_a_flipped_byte_is_seen_by_verify_and_mended_by_packing_again(fresh):
    record, _ = pack(fresh.root)
    file = folder(fresh) / record.file
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert "not the file" in ShardedIndex.open(fresh.root, verify=True).packed
    assert pack(fresh.root) == (record, True)
    assert ShardedIndex.open(fresh.root, verify=True).packed == IN_USE


KILLED = """
import os, signal, sys
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search import packed
def progress(step, done, total, **facts):
    if step == sys.argv[2] and done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "record":
    packed.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
packed.pack(BuildRoot.at(sys.argv[1]), progress=progress)
"""


@pytest.mark.parametrize("moment", [("pack", 1), ("check", 0), ("check", 1), ("record", 0)])
def test_packing_that_is_killed_leaves_the_old_layout_and_is_made_good_by_the_next(fresh, moment):
    before, _ = pack(fresh.root)
    add_removed(fresh.root, np.arange(5), "asked for", when=datetime.datetime.now(datetime.UTC))
    child = subprocess.run([sys.executable, "-c", KILLED, str(fresh.root.root), moment[0], str(moment[1])], check=False)
    assert child.returncode == -signal.SIGKILL
    assert read_pack(served_index(fresh.root).generation) == before
    assert assert_answers_of_the_shards(fresh, fresh.captions).packed == IN_USE
    record, made = pack(fresh.root)
    assert made
    assert record.rows == len(fresh.images) - 5
    assert files(fresh) == sorted([record.file, "packed.json"])


def test_a_result_that_is_not_its_shards_is_never_published(fresh, monkeypatch):
    gather = packing._gather

    def wrong(*arguments):
        gather(*arguments)
        arguments[-1][-3] ^= 1  # an id

    monkeypatch.setattr(packing, "_gather", wrong)
    with pytest.raises(DamagedArtifact, match="ids are not those of the shards"):
        pack(fresh.root)
    assert files(fresh) == []
    monkeypatch.setattr(packing, "_gather", gather)
    monkeypatch.setattr(packed_layout.shutil, "disk_usage", lambda _: packed_layout.shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OutOfDisk, match="bytes free for the pack, found 0"):
        pack(fresh.root)
    assert files(fresh) == []


def test_the_record_names_the_packed_file_and_its_bytes(fresh):
    root = BuildRoot.at(fresh.root.root)
    record, _ = pack(root)
    assert record_path(served_index(root).generation).exists()
    assert record.bytes == (folder(fresh) / record.file).stat().st_size


OPENED = """
import sys, numpy as np
from pathlib import Path
from paired_index_assets.search.sharded import ShardedIndex
def own():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0])
with ShardedIndex.open(sys.argv[1], packed=False):
    pass  # what libraries take for the first file of all
for packed in (True, False):
    before = own()
    index = ShardedIndex.open(sys.argv[2], packed=packed)
    print(index.ntotal, own() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """200,000 rows: 5,000 a list, more than are laid out together."""
    made = make(tmp_path_factory.mktemp("large"), file_rows=(30_000,) * 6 + (20_000,))
    pack(made.root)
    return made


def test_long_lists_give_a_batch_what_they_give_one_query(large):
    for packed in (True, False):
        with ShardedIndex.open(large.root, packed=packed) as index:
            together = index.search(large.captions[:64], 10, nprobe=3)
            for row in range(64):
                for all_of_them, alone in zip(together, index.search(large.captions[row], 10, nprobe=3), strict=True):
                    np.testing.assert_array_equal(all_of_them[row], alone[0])


def test_opening_200_000_rows_takes_less_than_20_MB_of_memory_of_its_own(finished, large):
    told = subprocess.run(
        [sys.executable, "-c", OPENED, str(finished.root.root), str(large.root.root)], check=True, capture_output=True, text=True
    )
    for line in told.stdout.splitlines():
        rows, kib = map(int, line.split())
        assert rows == 200_000
        assert kib * 1024 < 20e6
