"""One home for settings: flags, environment, the last build and defaults reach the same fields, in this order."""

import dagster as dg
import pytest
import typer
from typer.testing import CliRunner

from paired_index_assets.assets.built import built_asset
from paired_index_assets.assets.code_location import ASSETS, CHECKS, OF_THE_LOCATION, assemble
from paired_index_assets.assets.resources import OF_THE_RUN, ProgressLog, build_resource
from paired_index_assets.assets.training import paired_centroids
from paired_index_assets.cli.options import takes_settings
from paired_index_assets.errors import BadInput
from paired_index_assets.settings import Settings, load_settings


def test_flags_come_before_the_environment_before_the_last_build_before_defaults(tmp_path, monkeypatch):
    root = str(tmp_path)
    load_settings(root=root, nlist=16, niter=3, seed=5).save()
    monkeypatch.setenv("PAIRED_INDEX_NITER", "7")
    monkeypatch.setenv("PAIRED_INDEX_SEED", "8")
    found = load_settings(root=root, seed=9)
    assert (found.seed, found.niter, found.nlist, found.nprobe) == (9, 7, 16, Settings.model_fields["nprobe"].default)


def test_settings_survive_a_trip_through_the_environment(tmp_path, monkeypatch):
    made = load_settings(
        root=str(tmp_path), nlist=16, method="kmeans", allow_regression=True, image_features="a.npy", caption_features="b.npy"
    )
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == made


def test_another_kind_of_input_replaces_the_remembered_one(tmp_path):
    load_settings(root=str(tmp_path), image_features="a.npy", caption_features="b.npy").save()
    assert load_settings(root=str(tmp_path), images="pictures").image_features is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nlist": 0}, ["nlist", "greater than or equal to 1", "found 0"]),
        ({"codec": "PQ64"}, ["codec", "QT_4bit", "PQ64"]),
        ({"method": "magic"}, ["method", "paired_kmeans", "magic"]),
        ({"image_features": "a.npy"}, ["caption_features", "a pair needs both"]),
        ({"images": "p", "image_features": "a.npy", "caption_features": "b.npy"}, ["images and image_features"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected_and_found(tmp_path, given, words):
    with pytest.raises(BadInput) as raised:
        load_settings(root=str(tmp_path), **given)
    assert "\n" not in str(raised.value)
    assert all(word in str(raised.value) for word in words), str(raised.value)


@pytest.mark.parametrize(("rows", "nlist"), [(1, 4), (12_000, 256), (200_000, 1024), (2_170_337_258, 131_072)])
def test_the_default_number_of_lists_grows_with_the_square_root_of_the_rows(tmp_path, rows, nlist):
    assert load_settings(root=str(tmp_path)).lists_for(rows) == nlist


def test_a_run_that_changes_some_settings_keeps_the_others(tmp_path):
    given = load_settings(root=str(tmp_path), images="pictures/*.tar", nlist=64, shards=7)
    seen = []

    @built_asset("nlist", "bytes_per_vector")
    def look(context, build, progress):
        seen.append(build.settings)
        return dg.MaterializeResult()

    resources = {"build": build_resource(given), "progress": ProgressLog()}
    asked = {"resources": {"build": {"config": {"device": "cpu"}}}, "ops": {"look": {"config": {"nlist": 128, "bytes_per_vector": 32}}}}
    for config in ({}, asked):
        assert dg.materialize([look.definition(given)], resources=resources, run_config=config).success
    assert seen == [given, given.model_copy(update={"nlist": 128, "bytes_per_vector": 32, "device": "cpu"})]


@pytest.mark.parametrize(("asked", "words"), [({"nprobe": 3}, 'unexpected config entry "nprobe"'), ({"nlist": 0}, "greater than or equal")])
def test_the_launchpad_refuses_what_an_asset_does_not_use_and_what_is_out_of_bounds(tmp_path, asked, words):
    job = assemble(load_settings(root=str(tmp_path)), ProgressLog()).resolve_implicit_global_asset_job_def()
    with pytest.raises(Exception, match=words), dg.DagsterInstance.ephemeral() as instance:
        job.execute_in_process(
            run_config={"ops": {"paired_centroids": {"config": asked}}}, asset_selection=[paired_centroids.key], instance=instance
        )


def test_the_launchpad_of_train_shows_what_training_takes_with_its_help_and_the_values_of_the_code_location(tmp_path):
    job = assemble(load_settings(root=str(tmp_path), niter=7), ProgressLog()).resolve_job_def("train")
    fields = job.run_config_schema.config_type.fields
    shown = {
        name: op.config_type.fields["config"].config_type.fields
        for name, op in fields["ops"].config_type.fields.items()
        if "config" in op.config_type.fields
    }
    assert shown["paired_centroids"].keys() == {"method", "coarse", "nlist", "niter", "rounding", "seed"}
    assert shown["trained_index"].keys() == {"codec", "rounding", "routing", "transform", "bytes_per_vector", "seed"}
    assert shown["paired_centroids"]["niter"].default_value == 7
    assert shown["paired_centroids"]["niter"].description == Settings.model_fields["niter"].description
    assert fields["resources"].config_type.fields["build"].config_type.fields["config"].config_type.fields.keys() == set(OF_THE_RUN)


@pytest.mark.parametrize(("flags", "packed"), [([], True), (["--no-packed"], False), (["--packed"], True)])
def test_what_is_on_is_switched_off_by_its_flag(tmp_path, flags, packed):
    seen, app = [], typer.Typer()

    @app.command()
    @takes_settings("Shards")
    def look(settings):
        seen.append(settings.packed)

    done = CliRunner().invoke(app, ["--root", str(tmp_path), *flags])
    assert done.exit_code == 0, done.output
    assert seen == [packed]


def test_every_setting_is_one_of_an_asset_or_of_the_run_or_of_the_code_location():
    taken = {name for built in (*ASSETS, *CHECKS) for name in built.takes}
    assert not taken & {*OF_THE_RUN, *OF_THE_LOCATION}
    assert taken | {*OF_THE_RUN, *OF_THE_LOCATION} == Settings.model_fields.keys()


def test_paths_are_remembered_so_that_they_mean_the_same_files_from_any_folder(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "model").mkdir(parents=True)
    there.mkdir()
    for name in ("weights.pt", "a,b.npy", "c.npy", "data:v1.npy"):
        (here / name).write_bytes(b"")
    paths = dict.fromkeys(("captions", "caption_texts", "landing", "catalog", "downloads", "rebuild_from"), "x/y.parquet")
    monkeypatch.chdir(here)
    given = dict(paths, sources="mirror,https://example.com/a,s3://b/c", image_features="a,b.npy", caption_features="c.npy,data:v1.npy")
    load_settings(root=str(tmp_path / "root"), model="local-dir:model", pretrained="weights.pt", **given).save()
    monkeypatch.chdir(there)
    found = load_settings(root=str(tmp_path / "root"))
    assert {name: getattr(found, name) for name in paths} == dict.fromkeys(paths, f"{here}/x/y.parquet")
    assert found.sources == f"{here}/mirror,https://example.com/a,s3://b/c"
    assert (found.model, found.pretrained) == (f"local-dir:{here}/model", f"{here}/weights.pt")
    assert found.image_features == f"{here}/a,b.npy"
    assert found.caption_features == f"{here}/c.npy,{here}/data:v1.npy"


def test_what_only_looks_like_a_path_stays_as_it_is(tmp_path):
    found = load_settings(root=str(tmp_path), catalog="laion2b-en", images="hf://datasets/a/b", model="ViT-B-32", pretrained="openai")
    assert (found.catalog, found.images, found.model, found.pretrained) == ("laion2b-en", "hf://datasets/a/b", "ViT-B-32", "openai")


def test_a_remembered_path_can_be_unset(tmp_path):
    load_settings(root=str(tmp_path), caption_texts="texts.parquet", nlist=8).save()
    assert load_settings(root=str(tmp_path), caption_texts="").caption_texts is None
