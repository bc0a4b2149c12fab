"""Embedding and pairing shared out to partitions: each run writes its part, and the sets and the table find them all there."""

import hashlib

import dagster as dg
import numpy as np
import pytest

from paired_index_assets.assets.code_location import assemble
from paired_index_assets.assets.partitions import every
from paired_index_assets.assets.resources import ProgressLog
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.pairing import pairs, split
from paired_index_assets.pairing.pairs import BLOCK_ROWS
from paired_index_assets.sample import sample_model
from paired_index_assets.settings import load_settings

ROWS, D = 2 * BLOCK_ROWS + 9_000, 16


def of_features(folder, rows):
    """Settings of a build of random features, pairs of each other."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((rows, D))
    for name, vectors in (("images", images), ("captions", images + rng.standard_normal((rows, D)) + 1)):
        np.save(folder / f"{name}.npy", (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))
    features = {"image_features": str(folder / "images.npy"), "caption_features": str(folder / "captions.npy")}
    return load_settings(root=str(folder / "root"), **features, validation_captions=500, test_captions=500, parallel_runs=8)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return of_features(tmp_path_factory.mktemp("in_parts"), ROWS)


def made(defs, instance, *assets, partition=None):
    keys = [dg.AssetKey(asset) for asset in assets]
    job = defs.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, asset_selection=keys, partition_key=partition)


def test_runs_that_share_the_pairing_leave_nothing_for_the_table_and_read_the_images_once_to_split_them(features, monkeypatch):
    defs, splits, hashed = assemble(features, ProgressLog()), [], []
    real_split, real_hash = split.split_by_concept, pairs.fingerprint_of
    monkeypatch.setattr(split, "split_by_concept", lambda *given, **named: splits.append(1) or real_split(*given, **named))
    monkeypatch.setattr(pairs, "fingerprint_of", lambda rows: hashed.append(len(rows)) or real_hash(rows))
    with dg.DagsterInstance.ephemeral() as instance:
        made(defs, instance, "image_embeddings", "caption_embeddings")
        written = []
        for part in ("part_02", "part_00", "part_01", "part_07"):  # in no order, and one with no block
            made(defs, instance, "pair_blocks", partition=part)
            written.append(sorted(path.name for path in features.build_root.pairs.glob("pairs-*")))
        assert written == [[f"pairs-0000{n}.parquet" for n in there] for there in ([2], [0, 2], [0, 1, 2], [0, 1, 2])]
        done = made(defs, instance, "caption_image_pairs")
        facts = done.asset_materializations_for_node("caption_image_pairs")[0].metadata
        assert (facts["blocks"].value, facts["blocks_reused"].value) == (3, 3)
        assert facts["dagster/row_count"].value == ROWS - 1_000
        assert instance.get_materialized_partitions(dg.AssetKey("pair_blocks")) == {"part_00", "part_01", "part_02", "part_07"}
    assert len(splits) == 1
    assert max(hashed) <= BLOCK_ROWS  # blocks of captions: the set's fingerprint names the images


def test_another_split_is_made_when_another_is_asked_for(tmp_path):
    settings = of_features(tmp_path, 6_000)
    with dg.DagsterInstance.ephemeral() as instance:
        made(assemble(settings, ProgressLog()), instance, "image_embeddings", "caption_embeddings")
        for seed, test_captions in ((1, 400), (1, 300), (2, 300)):
            asked = load_settings(**settings.model_dump() | {"seed": seed, "test_captions": test_captions})
            made(assemble(asked, ProgressLog()), instance, "pair_blocks", partition="part_07")
            images, captions = (EmbeddingSet.open(path) for path in (asked.build_root.image_set, asked.build_root.caption_set))
            expected = split.split_by_concept(captions, images, validation=500, test=test_captions, seed=seed)
            assert split.Split.load(asked.build_root.split).content == expected.content


def test_runs_that_share_the_embedding_leave_the_assets_the_files_of_one_run(small_build, small_pairs, tmp_path):
    settings = load_settings(root=str(tmp_path), images=str(small_pairs), model=sample_model(), part_rows=125, parallel_runs=8)
    defs = assemble(settings, ProgressLog())
    with dg.DagsterInstance.ephemeral() as instance:
        for part in ("part_05", "part_00", "part_06", "part_03", "part_02", "part_07", "part_04"):
            made(defs, instance, "embedding_parts", partition=part)
        vectors = settings.build_root.embeddings / "img_emb"
        assert sorted(path.name for path in vectors.iterdir()) == [f"img_emb_{n:04d}.npy" for n in range(12) if n % 8 != 1]
        before = (vectors / "img_emb_0000.npy").stat().st_mtime
        made(defs, instance, "image_embeddings", "caption_embeddings")
        assert (vectors / "img_emb_0000.npy").stat().st_mtime == before
    assert contents(tmp_path / "embeddings") == contents(small_build / "embeddings")


def test_one_run_can_make_all_parts_and_they_are_described_by_the_sets_alone(small_build, small_pairs, tmp_path):
    settings = load_settings(root=str(tmp_path), images=str(small_pairs), model=sample_model(), part_rows=125, parallel_runs=3)
    defs = assemble(settings, ProgressLog())
    parts = dg.AssetKey("embedding_parts")
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_implicit_global_asset_job_def()
        tags = every(job.asset_layer.get(parts).partitions_def)
        assert job.execute_in_process(instance=instance, asset_selection=[parts], tags=tags).success
        assert instance.get_materialized_partitions(parts) == {"part_00", "part_01", "part_02"}
        assert len(list((settings.build_root.embeddings / "img_emb").iterdir())) == 12
        assert not settings.build_root.image_set.exists()
        versions = {event.tags["dagster/data_version"] for event in map(latest(instance, parts), ("part_00", "part_02"))}
        made(defs, instance, "embedding_parts", partition="part_02")  # alone, and nothing is left to do
        assert versions == {latest(instance, parts)("part_02").tags["dagster/data_version"]}


def latest(instance, key):
    def of(partition):
        asked = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
        return instance.fetch_materializations(asked, limit=1).records[0].event_log_entry

    return of


def test_features_leave_nothing_to_embed(features):
    with dg.DagsterInstance.ephemeral() as instance:
        done = made(assemble(features, ProgressLog()), instance, "embedding_parts", partition="part_00")
    assert done.asset_materializations_for_node("embedding_parts")[0].metadata["parts"].value == 0


def contents(folder):
    files = [path for kind in ("img_emb", "text_emb", "metadata", "text_metadata") for path in sorted((folder / kind).iterdir())]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in [*files, *folder.glob("*.json")]}
