"""All shards as one index."""

import shutil

import faiss
import numpy as np
import pytest

from paired_index_assets.errors import DamagedArtifact, MissingInput, OutOfDisk
from paired_index_assets.search import merging
from paired_index_assets.search.merging import merge_shards
from paired_index_assets.search.sharded import ShardedIndex


def test_the_merged_index_finds_what_the_shards_find_under_the_same_ids(finished, tmp_path):
    steps = []
    out = tmp_path / "all.index"
    assert merge_shards(finished.root.root, out, progress=lambda step, done, total: steps.append((step, done, total))) == len(
        finished.images
    )
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path, moved, ignore=lambda *_: ["moved"])
    merged = faiss.read_index(str(moved / "all.index"), faiss.IO_FLAG_ONDISK_SAME_DIR)
    (tmp_path / "all.index.ivfdata").unlink()
    assert merged.ntotal == len(finished.images)
    merged.nprobe = 6
    scores, ids = merged.search(finished.captions[:60], 15)
    mine = ShardedIndex.open(finished.root.root).search(finished.captions[:60], 15, nprobe=6)
    np.testing.assert_array_equal(scores, mine[0])
    distinct = (np.diff(scores, axis=1, prepend=np.inf) != 0) & (np.diff(scores, axis=1, append=scores[:, -1:]) != 0)
    np.testing.assert_array_equal(ids[distinct], mine[1][distinct])
    assert steps[-1] == ("check", merged.nlist, merged.nlist)


def test_nothing_is_left_of_a_merge_that_failed(fresh, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(merging, "_content", lambda lists, number: (np.full(1, lists.list_size(number)), np.empty(0)))
        with pytest.raises(DamagedArtifact, match="list 0 is not"):
            merge_shards(fresh.root.root, tmp_path / "out" / "all.index")
    assert list((tmp_path / "out").iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(OutOfDisk, match="bytes free, found 0"):
            merge_shards(fresh.root.root, tmp_path / "out" / "all.index")
    fresh.shard_files()[2].unlink()
    with pytest.raises(MissingInput, match="index2"):
        merge_shards(fresh.root.root, tmp_path / "out" / "all.index")
    assert list((tmp_path / "out").iterdir()) == []
