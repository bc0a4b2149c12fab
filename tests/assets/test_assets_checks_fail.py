"""Each check of the Dagster graph fails for what it is there to find: bad artifacts are written, and the check is asked."""

import dagster as dg
import numpy as np
import pytest
from unit_vectors import random_unit

from paired_index_assets.assets.embeddings import caption_embeddings_are_usable, image_embeddings_are_usable
from paired_index_assets.assets.facts import failing_in_one_line
from paired_index_assets.assets.pairing import pairs_are_whole
from paired_index_assets.assets.training import centroids_are_unit_and_distinct, trained_index_is_no_worse_than_image_kmeans
from paired_index_assets.builds.opened import OpenBuild, write_catalog
from paired_index_assets.clustering.clusters import Clustering
from paired_index_assets.embeddings.sets import part_of, write_set
from paired_index_assets.errors import BadInput, Busy, SourceUnavailable
from paired_index_assets.pairing.pairs import MatchedImages, Sides, write_pairs
from paired_index_assets.pairing.split import Split
from paired_index_assets.settings import load_settings
from paired_index_assets.trained.promotion import Promotion, promote

ROWS, D = 40, 8


@pytest.fixture
def settings(tmp_path):
    return load_settings(root=str(tmp_path / "root"), method="kmeans", max_bad_share=0.1)


@pytest.fixture
def rows():
    return random_unit(ROWS, D, 1)


def passed(check, settings):
    return check.judge(OpenBuild(settings)).passed


def save_set(settings, rows, modality):
    place = settings.build_root.embedding_set(modality)
    place.parent.mkdir(parents=True, exist_ok=True)
    file = place.parent / f"{modality}.npy"
    np.save(str(file), rows.astype(np.float32))
    write_set(place, [part_of(file)], model="m", modality=modality)


@pytest.mark.parametrize(("check", "modality"), [(image_embeddings_are_usable, "images"), (caption_embeddings_are_usable, "captions")])
def test_embeddings_with_too_many_refused_rows_or_of_another_length_do_not_pass(settings, rows, check, modality):
    few, many, long = rows.copy(), rows.copy(), rows * 3
    few[:2], many[:8] = 0, np.nan
    for wrong, expected in ((few, True), (many, False), (long, False)):
        save_set(settings, wrong, modality)
        assert passed(check, settings) is expected


def test_centroids_that_repeat_or_are_not_unit_do_not_pass(settings, rows):
    for modality in ("images", "captions"):
        save_set(settings, rows, modality)
    write_catalog(OpenBuild(load_settings(**settings.model_dump() | {"shards": 2})), lambda catalog: None)
    twice = rows.copy()
    twice[3] = twice[7]
    for centroids, fault in (
        (rows, ""),
        (twice, "1 of {} centroids are equal to another"),
        (rows * 1.1, "{0} of {0} centroids are not unit"),
    ):
        Clustering(centroids, [], 0).save(settings.build_root.clusters("kmeans"))
        found = centroids_are_unit_and_distinct.judge(OpenBuild(settings))
        assert found.passed is (not fault)
        assert fault.format(ROWS) in found.description


def test_pairs_that_leave_a_caption_out_or_name_an_image_that_is_not_there_do_not_pass(settings, rows):
    save_set(settings, rows[:30], "images")
    ids = np.arange(ROWS)
    Split(ids, ids[:0], ids[:0], ROWS).save(settings.build_root.split)
    for captions, images, expected in ((ROWS, rows[:30], True), (ROWS - 1, rows[:30], False), (ROWS, rows, False)):
        write_pairs(settings.build_root.pairs, Sides(rows[:captions], ids[:captions], MatchedImages.of(images)))
        found = pairs_are_whole.judge(OpenBuild(settings))
        assert found.passed is expected
        assert ("materialise caption_image_pairs again" in found.description) is not expected


def test_an_index_worse_than_the_baseline_passes_only_where_that_is_allowed(settings):
    for regression, allowed, expected in ((False, False, True), (True, False, False), (True, True, True)):
        promote(settings.build_root, Promotion("x.index", "f", regression=regression, why="worse"))
        chosen = load_settings(**settings.model_dump() | {"allow_regression": allowed})
        found = trained_index_is_no_worse_than_image_kmeans.judge(OpenBuild(chosen))
        assert found.passed is expected
        assert ("set allow_regression" in found.description) is regression


@pytest.mark.parametrize(("error", "again"), [(Busy("held"), True), (SourceUnavailable("no answer"), True), (BadInput("wrong"), False)])
def test_what_may_get_better_is_tried_again_and_a_mistake_is_not(error, again):
    with pytest.raises(dg.Failure) as failed, failing_in_one_line():
        raise error
    assert (failed.value.description, failed.value.allow_retries) == (str(error), again)


def test_a_package_that_is_not_installed_fails_a_run_in_one_line():
    with pytest.raises(dg.Failure, match="pip install 'paired-index-assets\\[encode\\]'"), failing_in_one_line():
        raise ModuleNotFoundError("no", name="open_clip")
