"""The report measures the shards that are on disk: what it says changes when they change, and one bad row costs nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import faiss
import numpy as np
import pytest
from unit_vectors import unit

from paired_index_assets.assets.report import stock_faiss_finds_the_same, the_shards_find_what_was_promised
from paired_index_assets.assets.shards import every_row_is_accounted_for, every_shard_is_current
from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import DamagedArtifact
from paired_index_assets.evidence.captions import captions_reported_on
from paired_index_assets.evidence.conservation import rows_are_conserved
from paired_index_assets.evidence.measuring import kept_its_promise, measure_shards
from paired_index_assets.files.storage import digest_of
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.neighbors.exact import exact_neighbors
from paired_index_assets.quality.publish import publish_report
from paired_index_assets.quality.report import RecallReport
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.settings import load_settings
from paired_index_assets.shards.generations import served_generation
from paired_index_assets.shards.manifest import write_manifest
from paired_index_assets.shards.record import read_record, write_record
from paired_index_assets.trained.promotion import promoted_index


@pytest.fixture
def copied(small_build, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(small_build, root, copy_function=shutil.copy2, symlinks=True)
    return root


def give_other_ids(root):
    """Every list of every shard file gets its ids in the opposite order; records and manifest are made to agree."""
    build = BuildRoot.at(root)
    generation = served_generation(build)
    for number in range(6):
        place = generation.shard("QT_4bit", number)
        index = faiss.read_index(str(place.file))
        lists = faiss.extract_index_ivf(index).invlists
        for inverted_list in range(lists.nlist):
            if size := lists.list_size(inverted_list):
                ids = faiss.rev_swig_ptr(lists.get_ids(inverted_list), size)
                ids[:] = ids[::-1].copy()
        record = read_record(place)
        faiss.write_index(index, str(place.file))
        write_record(place, replace(record, sha256=digest_of(place.file)))
    write_manifest(build, promoted_index(build), Catalog.load(build.catalog))


def test_the_report_of_a_build_says_what_its_shards_find(small_build, paired_index):
    report = RecallReport.read(small_build / "report")
    served = report.served
    assert served.indexed == 1500
    assert served.queries == 100
    assert served.shards == 6
    assert served.stock_differs == 0
    assert [point.nprobe for point in served.points] == [1, 2, 4, 8, 16]
    assert served.points[-1].scanned == pytest.approx(1)
    assert all(a.recall[10].mean <= b.recall[10].mean + 0.02 for a, b in zip(served.points, served.points[1:], strict=False))
    said, kept = kept_its_promise(served, report, served.fingerprint)
    assert kept, said
    said = paired_index("report", "--root", small_build).stdout
    assert "6 shards on disk" in said
    assert "Stock faiss over the same files gives the same results (nprobe 8, 100 captions)." in said
    assert "## What is served" in (small_build / "report/recall.md").read_text()


def test_the_truth_of_a_build_is_brute_force_over_its_images(small_build):
    build = OpenBuild(load_settings(root=str(small_build)))
    captions, images = captions_reported_on(build), EmbeddingSet.open(small_build / "embeddings/images.json")
    assert len(list(small_build.glob(f"truth/{captions.digest}/*.truth"))) == 12
    expected = exact_neighbors(captions.vectors, images[:], 10)[1]
    report = measure_shards(build)
    with ShardedIndex.open(small_build) as index:
        found = index.search(captions.vectors, 10, nprobe=16)[1]
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(expected, found, strict=True)])
    assert report.at(16).recall[10].mean == pytest.approx(hits, abs=1e-3)


def test_the_numbers_change_when_a_shard_is_changed_behind_our_back(copied, paired_index):
    before = RecallReport.read(copied / "report").served
    give_other_ids(copied)
    said = paired_index("report", "--root", copied, "--measure").stdout
    report = RecallReport.read(copied / "report")
    assert report.served.at(8).recall[10].mean < before.at(8).recall[10].mean - 0.2
    assert f"{report.served.at(8).recall[10].mean:.3f}" in said
    judged, kept = kept_its_promise(report.served, report, before.fingerprint)
    assert not kept, judged


def test_a_shard_that_is_gone_is_named_and_the_others_are_measured_against_their_own_rows(copied):
    served_generation(BuildRoot.at(copied)).shard("QT_4bit", 3).file.unlink()
    served = measure_shards(OpenBuild(load_settings(root=str(copied))))
    assert served.missing_shards == [3]
    assert served.indexed == 1250
    assert served.at(16).recall[10].mean > 0.5


def test_a_build_whose_files_are_gone_is_still_measured_against_everything_indexed(copied):
    before = measure_shards(OpenBuild(load_settings(root=str(copied))))
    for part in (copied / "embeddings/img_emb").glob("*.npy"):
        part.unlink()
    assert measure_shards(OpenBuild(load_settings(root=str(copied)))) == before


def test_without_truth_and_without_files_the_report_says_that_it_could_not_be_measured(copied, paired_index):
    shutil.rmtree(copied / "truth")
    for part in (copied / "embeddings/img_emb").glob("*.npy"):
        part.unlink()
    said = paired_index("report", "--root", copied, "--measure").stdout
    assert "were not measured" in said
    assert "12 of 12 indexed files have no truth" in said
    assert json.loads((copied / "report/recall.json").read_text())["served"] is None


def test_captions_that_are_gone_keep_no_shard_waiting(copied):
    assert len(captions_reported_on(OpenBuild(load_settings(root=str(copied))))) == 100
    shutil.rmtree(copied / "embeddings/text_emb")
    assert len(captions_reported_on(OpenBuild(load_settings(root=str(copied))))) == 100  # kept beside their truth
    (copied / "truth/captions.npz").unlink()
    assert captions_reported_on(OpenBuild(load_settings(root=str(copied)))) is None


def test_measuring_the_shards_reads_no_image_embeddings(copied, monkeypatch):
    read = EmbeddingSet.__getitem__

    def captions_only(self, key):
        assert self.modality != "images", "the image set is not needed, and may be larger than memory"
        return read(self, key)

    monkeypatch.setattr(EmbeddingSet, "__getitem__", captions_only)
    assert measure_shards(OpenBuild(load_settings(root=str(copied)))).queries == 100


def test_rows_that_are_not_finite_or_zero_do_not_stop_a_build(small_build, paired_index, tmp_path):
    rng = np.random.default_rng(4)
    images, captions = (rng.normal(size=(600, 24)).astype(np.float32) for _ in range(2))
    captions += images
    images, captions = (unit(rows) for rows in (images, captions))
    images[17], images[44], captions[70], images[300, 3] = np.nan, 0, np.nan, np.inf
    np.save(tmp_path / "images.npy", images.astype(np.float16))
    np.save(tmp_path / "captions.npy", captions.astype(np.float16))
    root = tmp_path / "root"
    features = ["--image-features", tmp_path / "images.npy", "--caption-features", tmp_path / "captions.npy"]
    paired_index("build", "--root", root, *features, "--nlist", 8, "--shards", 2, "--validation-captions", 40, "--test-captions", 40)
    served = RecallReport.read(BuildRoot.at(root).report).served
    assert served.indexed == 597
    assert served.stock_differs == 0
    assert served.at(8).recall[10].mean > 0.5


def test_doctor_counts_every_row_and_finds_ids_that_belong_to_other_rows(small_build, copied, paired_index):
    said = paired_index("doctor", "--root", small_build, COLUMNS="400").stdout
    assert "1,500 image embeddings = 1,500 rows of the catalog = 1,500 indexed + 0 not finite + 0 zero + 0 taken down" in said
    assert "600 rows decoded by stock faiss are those of their ids" in said
    give_other_ids(copied)
    done = paired_index("doctor", "--root", copied, check=False, COLUMNS="400")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "FIX" in line]
    assert "rows" in line
    assert "its code decodes" in done.stdout


def asked(check, root):
    return check.judge(OpenBuild(load_settings(root=str(root))))


def test_the_checks_of_the_manifest_fail_where_a_shard_is_gone_or_rows_are_not_counted(copied):
    root = BuildRoot.at(copied)
    assert [asked(check, copied).passed for check in (every_shard_is_current, every_row_is_accounted_for)] == [True, True]
    served_generation(root).shard("QT_4bit", 3).record.unlink()
    write_manifest(root, promoted_index(root), Catalog.load(root.catalog))
    late = asked(every_shard_is_current, copied)
    assert (late.passed, late.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert late.description.startswith("5 of 6 shards")
    Catalog.of(Catalog.load(root.catalog).all_files[:-1]).save(root.catalog)
    wrong = asked(every_row_is_accounted_for, copied)
    assert not wrong.passed
    assert "1,375 rows; the image embeddings have 1,500" in wrong.description


def test_the_checks_of_the_report_fail_where_the_shards_find_less_or_stock_faiss_finds_otherwise(copied):
    checks, report = (the_shards_find_what_was_promised, stock_faiss_finds_the_same), RecallReport.read(copied / "report")
    assert all(asked(check, copied).passed for check in checks)
    points = [
        replace(point, recall={k: replace(found, mean=found.mean - 0.1) for k, found in point.recall.items()})
        for point in report.served.points
    ]
    for served, expected in (
        (replace(report.served, points=points), (False, True)),
        (replace(report.served, stock_differs=3), (True, False)),
        (None, (False, False)),
    ):
        publish_report(replace(report, served=served), copied / "report")
        assert tuple(asked(check, copied).passed for check in checks) == expected


def test_doctor_names_the_files_that_shards_wait_for(copied, paired_index, tmp_path):
    build = OpenBuild(load_settings(root=str(copied)))
    landing = tmp_path / "landing"
    shutil.copytree(copied / "embeddings/img_emb", landing)
    generation = served_generation(build.root)
    gone = [file.name for shard in (1, 4) for file in build.catalog.files(shard)]
    for shard in (1, 4):
        place = generation.shard("QT_4bit", shard)
        for path in (place.record, place.file):
            Path(path).unlink()
    for name in gone:
        (landing / name).unlink()
    for segment in Path(generation.folder).rglob("*.segment"):
        segment.unlink()
    done = paired_index("doctor", "--root", copied, check=False, COLUMNS="400", PAIRED_INDEX_LANDING=str(landing))
    (line,) = [line for line in done.stdout.splitlines() if "FIX" in line and "shards" in line.split("FIX")[0]]
    assert done.returncode == 1
    assert "2 of 6 shards wait" in done.stdout
    assert all(f"{name} has not landed" in done.stdout for name in gone)
    assert "no such shard" not in done.stdout, line


def conserved(root):
    return rows_are_conserved(OpenBuild(load_settings(root=str(root))))


def test_a_catalog_that_is_not_the_image_set_is_found_out(copied):
    root = BuildRoot.at(copied)
    assert conserved(copied).startswith("1,500 image embeddings = 1,500 rows of the catalog = 1,500 indexed")
    Catalog.of(Catalog.load(root.catalog).all_files[:-1]).save(root.catalog)
    with pytest.raises(DamagedArtifact, match="1,375 rows; the image embeddings have 1,500"):
        conserved(copied)


def test_a_catalog_in_another_order_than_the_image_set_is_found_out(copied):
    root = BuildRoot.at(copied)
    files = Catalog.load(root.catalog).all_files
    Catalog.of([replace(file, name=other.name) for file, other in zip(files, files[::-1], strict=True)]).save(root.catalog)
    with pytest.raises(DamagedArtifact, match=r"id \d+ is row \d+ of .*, which is not row \d+ of the image embeddings"):
        conserved(copied)
