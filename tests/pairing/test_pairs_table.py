import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.tables import digest_of_table
from paired_index_assets.pairing.pairs import PAIRS_SCHEMA, MatchedImages, PairsSummary, Sides, read_pairs, write_block, write_pairs

CAPTIONS, IMAGES, D, BLOCK = 2_300, 1_700, 16, 500


@pytest.fixture(scope="module")
def sides():
    rng = np.random.default_rng(0)
    return rng.standard_normal((CAPTIONS, D)).astype(np.float16), rng.standard_normal((IMAGES, D)).astype(np.float16)


@pytest.fixture
def ids():
    return np.random.default_rng(1).permutation(10**10 + np.arange(CAPTIONS))  # above int32


def plainly_matched(captions, images):
    scores = (captions.astype(np.float64) @ images.astype(np.float64).T).astype(np.float32)
    return scores.argmax(axis=1), scores.max(axis=1)


def pairing(captions, ids, images, valid=None, block_rows=BLOCK):
    return Sides(captions, ids, MatchedImages.of(images, valid), block_rows)


def files(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("pairs-*.parquet")}


def test_every_caption_gets_its_nearest_image_in_one_file_a_block(tmp_path, sides, ids):
    captions, images = sides
    told = []
    summary = write_pairs(UPath(tmp_path), pairing(captions, ids, images), progress=lambda *step, **facts: told.append((step, facts)))
    image, similarity = plainly_matched(captions, images)
    table = read_pairs(UPath(tmp_path))
    assert table.schema.equals(PAIRS_SCHEMA)
    np.testing.assert_array_equal(table["caption_id"], ids)
    np.testing.assert_array_equal(table["image_id"], image)
    np.testing.assert_array_equal(table["similarity"], similarity)
    assert summary == PairsSummary(CAPTIONS, len(np.unique(image)), pytest.approx(similarity.mean()), 5, 0, digest_of_table(table))
    assert sorted(files(tmp_path)) == [f"pairs-{number:05d}.parquet" for number in range(5)]
    assert [step[1] for step, _ in told] == sorted(step[1] for step, _ in told)
    assert {(step[0], step[2]) for step, _ in told} == {("pairing", CAPTIONS)}
    assert told[-1][0][1] == CAPTIONS
    assert pq.read_table(tmp_path).num_rows == CAPTIONS  # any Parquet reader takes the folder as one table


def test_a_second_run_writes_nothing_and_says_so(tmp_path, sides, ids):
    captions, images = sides
    write_pairs(UPath(tmp_path), pairing(captions, ids, images))
    before = files(tmp_path)
    assert write_pairs(UPath(tmp_path), pairing(captions, ids, images)).reused == 5
    assert files(tmp_path) == before


def test_only_the_block_whose_captions_changed_is_made_again(tmp_path, sides, ids):
    captions, images = sides
    write_pairs(UPath(tmp_path), pairing(captions, ids, images))
    before = files(tmp_path)
    changed = captions.copy()
    changed[3 * BLOCK + 7] = images[42] * 2
    assert write_pairs(UPath(tmp_path), pairing(changed, ids, images)).reused == 4
    after = files(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["pairs-00003.parquet"]
    np.testing.assert_array_equal(read_pairs(UPath(tmp_path))["image_id"], plainly_matched(changed, images)[0])


@pytest.mark.parametrize("change", ["images", "ids", "mask", "damage"])
def test_blocks_of_other_inputs_are_made_again(tmp_path, sides, ids, change):
    captions, images = sides
    write_pairs(UPath(tmp_path), pairing(captions, ids, images))
    mask = None
    if change == "images":
        images = images.copy()
        images[5, 0] += 1
    elif change == "ids":
        ids = ids + 1
    elif change == "mask":
        mask = np.ones(IMAGES, bool)
    else:
        for path in tmp_path.glob("pairs-*"):
            path.write_bytes(path.read_bytes()[:-9])
    assert write_pairs(UPath(tmp_path), pairing(captions, ids, images, mask)).reused == 0
    table = read_pairs(UPath(tmp_path))
    np.testing.assert_array_equal(table["caption_id"], ids)
    np.testing.assert_array_equal(table["image_id"], plainly_matched(captions, images)[0])


def test_invalid_images_are_never_matched_whatever_they_hold(tmp_path, sides, ids):
    captions, images = sides
    images = images.copy()
    valid = np.random.default_rng(2).random(IMAGES) < 0.6
    images[np.flatnonzero(~valid)[0]] = np.nan
    images[np.flatnonzero(~valid)[1]] = 60_000
    write_pairs(UPath(tmp_path), pairing(captions, ids, images, valid))
    expected = np.flatnonzero(valid)[plainly_matched(captions, images[valid])[0]]
    np.testing.assert_array_equal(read_pairs(UPath(tmp_path))["image_id"], expected)


def test_blocks_written_one_by_one_in_any_order_make_the_same_files(tmp_path, sides, ids):
    captions, images = sides
    write_pairs(UPath(tmp_path / "together"), pairing(captions, ids, images))
    apart = pairing(captions, ids, images)
    for number in (3, 0, 4, 2, 1):
        with pytest.raises((MissingInput, DamagedArtifact)):
            read_pairs(UPath(tmp_path / "apart"))
        assert write_block(UPath(tmp_path / "apart"), number, apart)
    assert not write_block(UPath(tmp_path / "apart"), 2, apart)
    contents = [{name: content for name, (content, _) in files(tmp_path / place).items()} for place in ("together", "apart")]
    assert contents[0] == contents[1]


def test_a_smaller_table_leaves_no_block_of_the_larger_one_behind(tmp_path, sides, ids):
    captions, images = sides
    write_pairs(UPath(tmp_path), pairing(captions, ids, images))
    write_pairs(UPath(tmp_path), pairing(captions[:700], ids[:700], images))
    assert sorted(files(tmp_path)) == ["pairs-00000.parquet", "pairs-00001.parquet"]
    assert read_pairs(UPath(tmp_path)).num_rows == 700


KILLED = """
import os, signal, sys
import numpy as np
from upath import UPath
from paired_index_assets.pairing.pairs import MatchedImages, Sides, write_pairs

folder, kill_at = UPath(sys.argv[1]), int(sys.argv[2])
captions, images, ids = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("captions", "images", "ids"))

def report(step, done, total, **facts):
    if done > kill_at >= 0:
        os.kill(os.getpid(), signal.SIGKILL)

print(write_pairs(folder / "pairs", Sides(captions, ids, MatchedImages.of(images), 500), progress=report).reused)
"""


def test_a_run_killed_in_the_middle_of_a_block_goes_on_at_that_block(tmp_path, sides, ids):
    captions, images = sides
    for name, array in (("captions", captions), ("images", images), ("ids", ids)):
        np.save(tmp_path / f"{name}.npy", array)

    def run(kill_at):
        return subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(kill_at)], capture_output=True, text=True, check=False)

    assert run(1_100).returncode == -signal.SIGKILL  # in the third block
    assert sorted(files(tmp_path / "pairs")) == ["pairs-00000.parquet", "pairs-00001.parquet"]
    done = run(-1)
    assert done.stdout.strip() == "2", done.stderr
    write_pairs(UPath(tmp_path / "whole"), pairing(captions, ids, images))
    expected = {name: content for name, (content, _) in files(tmp_path / "whole").items()}
    assert {name: content for name, (content, _) in files(tmp_path / "pairs").items()} == expected


def test_a_table_with_a_missing_or_damaged_block_is_refused(tmp_path, sides, ids):
    captions, images = sides
    with pytest.raises(MissingInput, match="write the pairs first"):
        read_pairs(UPath(tmp_path / "none"))
    write_pairs(UPath(tmp_path), pairing(captions, ids, images))
    (tmp_path / "pairs-00002.parquet").rename(tmp_path / "aside")
    with pytest.raises(DamagedArtifact, match="of 5 beside 4 files"):
        read_pairs(UPath(tmp_path))
    (tmp_path / "pairs-00002.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DamagedArtifact, match=r"pairs-00002\.parquet: .*only that block is made again"):
        read_pairs(UPath(tmp_path))
    pq.write_table(pa.table({"caption_id": [1]}), tmp_path / "pairs-00002.parquet")
    with pytest.raises(DamagedArtifact, match=r"pairs-00002\.parquet: .*only that block is made again"):
        read_pairs(UPath(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, n, i: (c, n[:-1], i, {}), r"caption_ids: expected \(2300,\) integers"),
        (lambda c, n, i: (c, n.astype(float), i, {}), "float64"),
        (lambda c, n, i: (c[:0], n[:0], i, {}), "captions: expected at least one row"),
        (lambda c, n, i: (c[:, 1:], n, i, {}), "captions have 15 dimensions and images 16"),
        (lambda c, n, i: (c, n, i, {"valid": np.zeros(IMAGES, bool)}), "none of 1700 images is valid"),
        (lambda c, n, i: (c, n, i, {"valid": np.ones(3, bool)}), r"image_valid: expected \(1700,\) bool"),
        (lambda c, n, i: (with_nan(c), n, i, {}), "captions: row 1 holds NaN"),
        (lambda c, n, i: (c, n, with_nan(i), {}), "images: row 1 holds NaN"),
        (lambda c, n, i: (c, n, i, {"block_rows": 0}), "block_rows: expected at least 1"),
    ],
)
def test_bad_input_is_refused_before_any_file_is_there(tmp_path, sides, ids, change, message):
    captions, numbers, images, settings = change(sides[0], ids, sides[1])
    with pytest.raises(BadInput, match=message):
        write_pairs(UPath(tmp_path), pairing(captions, numbers, images, **settings))
    assert not files(tmp_path)


def with_nan(rows):
    rows = rows.copy()
    rows[1, 3] = np.nan
    return rows
