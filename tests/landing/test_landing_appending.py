"""Files beyond the catalog: appended when quiet, refused by name, and never at the cost of an id."""

import numpy as np

from paired_index_assets.files.storage import as_path
from paired_index_assets.landing.appending import append_quiet
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import list_folder


def look(catalog, folder, unknown):
    return append_quiet(catalog, as_path(folder), list_folder(folder), unknown)


def test_a_file_is_appended_at_the_second_look_that_finds_it_unchanged(landing_folder, unit_rows):
    folder = landing_folder([5, 6, 7])
    catalog = Catalog.scan(folder, shards=2)
    assert look(catalog, folder, {}).catalog is catalog
    np.save(folder / "img_emb_9.npy", unit_rows(4))
    first = look(catalog, folder, {})
    assert first.catalog is catalog
    np.save(folder / "img_emb_9.npy", unit_rows(8))  # still being written
    second = look(catalog, folder, first.unknown)
    assert second.catalog is catalog
    third = look(catalog, folder, second.unknown)
    assert third.catalog.all_files[: len(catalog)] == catalog.all_files
    assert [(file.name, file.rows, file.shard) for file in third.catalog.all_files[len(catalog) :]] == [("img_emb_9.npy", 8, 1)]
    assert third.unknown == {}
    assert look(third.catalog, folder, third.unknown).catalog is third.catalog


def test_files_that_are_quiet_together_are_appended_in_natural_order(landing_folder, unit_rows):
    folder = landing_folder([5, 6])
    catalog = Catalog.scan(folder, shards=2)
    for number in (10, 9, 100):
        np.save(folder / f"more_{number}.npy", unit_rows(3))
    extended = look(catalog, folder, look(catalog, folder, {}).unknown).catalog
    assert [file.name for file in extended.all_files[2:]] == ["more_9.npy", "more_10.npy", "more_100.npy"]


def test_what_is_no_matrix_of_this_width_is_refused_by_name_and_keeps_no_other_waiting(landing_folder, unit_rows):
    folder = landing_folder([5, 6])
    catalog = Catalog.scan(folder, shards=2)
    np.save(folder / "wide.npy", unit_rows(3, 24))
    (folder / "page.npy").write_text("<html>not found</html>")
    (folder / "notes.txt").write_text("no embeddings")
    (folder / "preallocated.npy").write_bytes(bytes(4096))
    np.save(folder / "good.npy", unit_rows(3))
    found = look(catalog, folder, look(catalog, folder, {}).unknown)
    assert [file.name for file in found.catalog.all_files[2:]] == ["good.npy"]
    assert sorted(found.refused) == ["page.npy", "preallocated.npy", "wide.npy"]
    assert "24 dimensions; the catalog has 16" in found.refused["wide.npy"]
    np.save(folder / "wide.npy", unit_rows(3))  # mended
    later = look(found.catalog, folder, found.unknown)
    assert [file.name for file in look(later.catalog, folder, later.unknown).catalog.all_files[3:]] == ["wide.npy"]
