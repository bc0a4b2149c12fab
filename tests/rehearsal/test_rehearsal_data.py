"""The made files are LAION's in all but their rows, and follow from the seed alone."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from laion_rehearsal import landing
from laion_rehearsal.geometry import Geometry
from laion_rehearsal.plan import Plan, scaled

from paired_index_assets.landing.catalog import LAION_MISSING, Catalog
from paired_index_assets.landing.landed import list_folder, read_block

GEOMETRY = Geometry(1)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return Plan(tmp_path_factory.mktemp("rehearsal"), share=3e-5, seed=1, files=80)


def test_the_catalog_is_laion_s_at_a_share_of_its_rows():
    whole, share = Catalog.laion2b(), scaled(0.001)
    assert [(file.name, file.shard, file.known_missing) for file in share] == [
        (file.name, file.shard, file.known_missing) for file in whole
    ]
    assert share.shards == 58
    assert share.total_rows == pytest.approx(whole.total_rows / 1000, rel=1e-3)
    assert [file.file_id for file in share.missing] == list(LAION_MISSING)


def test_a_landed_file_is_what_the_catalog_says_with_its_metadata_beside_it(plan):
    file = plan.catalog.all_files[7]
    landing.land(plan, file)
    assert list_folder(plan.landing)[file.name].size == file.bytes
    block = read_block(file, plan.landing / file.name)
    assert block.vectors.dtype == np.float16
    assert block.vectors.shape == (file.rows, 768)
    assert block.valid.all()
    assert block.off_norm == 0
    described = pq.read_table(plan.metadata / "metadata_0007.parquet")
    assert described.num_rows == file.rows
    assert described["md5"][0].as_py() == landing.md5_of(file.start_row)


def test_rows_follow_from_the_seed_and_the_file_alone(plan):
    rows = GEOMETRY.images(3, 40)
    assert np.array_equal(rows, Geometry(1).images(3, 40))
    assert not np.array_equal(rows, Geometry(2).images(3, 40))
    assert not np.array_equal(rows, GEOMETRY.images(3, 40, version=1))
    assert not np.array_equal(rows, GEOMETRY.images(4, 40))


def test_captions_lie_across_a_gap_and_norms_are_off_by_a_thousandth():
    stated = GEOMETRY.stated()
    assert stated["modality gap"] > 0.7
    assert stated["cosine of a pair"] > stated["of an image and another's caption"] + 0.1
    assert 3e-4 < stated["mean error of a norm"] < 3e-3


def test_some_files_have_near_copies(plan):
    rows = np.concatenate([GEOMETRY.images(number, 500) for number in range(8)]).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = rows @ rows.T - np.eye(len(rows), dtype=np.float32)
    assert (scores.max(1) > 0.999).sum() > 0


def test_a_cut_download_goes_on_and_a_finished_file_is_left_alone(plan):
    whole, cut = plan.catalog.all_files[20], plan.catalog.all_files[21]
    order = landing.write_order(plan, "first", [(whole, 0, 1.0), (cut, 0, 0.6)])
    landing.main(order)
    before = (plan.landing / whole.name).stat()
    assert (plan.landing / cut.name).stat().st_size == int(0.6 * cut.bytes)
    landing.main(landing.write_order(plan, "repair", [(whole, 0, 1.0), (cut, 0, 1.0)]))
    assert (plan.landing / whole.name).stat().st_mtime_ns == before.st_mtime_ns
    assert (plan.landing / cut.name).stat().st_size == cut.bytes
    assert json.loads(order.read_text())["order"] == [[20, 0, 1.0], [21, 0, 0.6]]


def test_what_goes_wrong_is_never_two_things_at_once():
    mischief = Plan(None, 0.001, 2).mischief
    kinds = (mischief.missing, mischief.late, mischief.truncated, mischief.unusable)
    assert [len(kind) for kind in kinds] == [16, 5, 4, 5]
    assert len({number for kind in kinds for number in kind}) == sum(map(len, kinds))
