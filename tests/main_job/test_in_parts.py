"""Embedding and pairing shared out to runs: each writes its part, and the asset finds them all there."""

import hashlib

import dagster as dg
import numpy as np
import pytest
from unit_vectors import unit

from paired_index_assets.assets.code_location import assemble
from paired_index_assets.assets.resources import ProgressLog
from paired_index_assets.pairing.pairs import BLOCK_ROWS
from paired_index_assets.sample import sample_model
from paired_index_assets.settings import load_settings

ROWS, D = 2 * BLOCK_ROWS + 9_000, 16


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_parts")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((ROWS, D))
    for name, vectors in (("images", images), ("captions", images + rng.standard_normal((ROWS, D)) + 1)):
        np.save(folder / f"{name}.npy", unit(vectors, np.float16))
    features = {"image_features": str(folder / "images.npy"), "caption_features": str(folder / "captions.npy")}
    return load_settings(root=str(folder / "root"), **features, validation_captions=500, test_captions=500)


def test_runs_that_share_the_pairing_leave_nothing_for_the_asset_to_do(features):
    defs = assemble(features, ProgressLog())
    with dg.DagsterInstance.ephemeral() as instance:
        graph = defs.resolve_implicit_global_asset_job_def()
        sets = [dg.AssetKey("image_embeddings"), dg.AssetKey("caption_embeddings")]
        assert graph.execute_in_process(instance=instance, asset_selection=sets).success
        shared = defs.resolve_job_def("pair_in_parts")
        written = []
        for part in ("part_02", "part_00", "part_01", "part_07"):  # in no order, and one with no block
            assert shared.execute_in_process(instance=instance, partition_key=part).success
            written.append(sorted(path.name for path in features.build_root.pairs.glob("pairs-*")))
        assert written == [[f"pairs-0000{n}.parquet" for n in there] for there in ([2], [0, 2], [0, 1, 2], [0, 1, 2])]
        made = graph.execute_in_process(instance=instance, asset_selection=[dg.AssetKey("caption_image_pairs")])
        facts = made.asset_materializations_for_node("caption_image_pairs")[0].metadata
        assert (facts["blocks"].value, facts["blocks_reused"].value) == (3, 3)
        assert facts["dagster/row_count"].value == ROWS - 1_000


def test_runs_that_share_the_embedding_leave_the_assets_the_files_of_one_run(small_build, small_pairs, tmp_path):
    settings = load_settings(root=str(tmp_path), images=str(small_pairs), model=sample_model(), part_rows=125)
    defs = assemble(settings, ProgressLog())
    with dg.DagsterInstance.ephemeral() as instance:
        shared = defs.resolve_job_def("embed_in_parts")
        for part in ("part_05", "part_00", "part_06", "part_03", "part_02", "part_07", "part_04"):
            assert shared.execute_in_process(instance=instance, partition_key=part).success
        vectors = settings.build_root.embeddings / "img_emb"
        assert sorted(path.name for path in vectors.iterdir()) == [f"img_emb_{n:04d}.npy" for n in range(12) if n % 8 != 1]
        before = (vectors / "img_emb_0000.npy").stat().st_mtime
        sets = [dg.AssetKey("image_embeddings"), dg.AssetKey("caption_embeddings")]
        assert defs.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, asset_selection=sets).success
        assert (vectors / "img_emb_0000.npy").stat().st_mtime == before
    assert contents(tmp_path / "embeddings") == contents(small_build / "embeddings")


def test_features_leave_nothing_to_embed(features):
    shared = assemble(features, ProgressLog()).resolve_job_def("embed_in_parts")
    made = shared.execute_in_process(instance=dg.DagsterInstance.ephemeral(), partition_key="part_00", raise_on_error=False)
    assert (
        "nothing to embed: image_features are embeddings already" in made.failure_data_for_node("embed_part").user_failure_data.description
    )


def contents(folder):
    files = [path for kind in ("img_emb", "text_emb", "metadata", "text_metadata") for path in sorted((folder / kind).iterdir())]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in [*files, *folder.glob("*.json")]}
