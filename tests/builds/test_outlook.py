"""What a build can make, what it tries, and what it leaves waiting: sources that do not list, do not answer, or have not everything."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from misbehaving import MisbehavingServer, Status

from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.builds.outlook import Waiting, outlook, require_what_was_promised, waiting
from paired_index_assets.embeddings.sets import part_of, write_set
from paired_index_assets.errors import PairedIndexError
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.settings import load_settings

SHARDS = 4


class _Trained:
    """All that the outlook asks of a trained index."""

    fingerprint = "0123456789abcdef"

    class codec:
        name = "QT_4bit"


@pytest.fixture
def world(tmp_path):
    """A catalog of four shards of two files, none of which has landed; the files' bytes by name."""
    (tmp_path / "all").mkdir()
    (tmp_path / "landing").mkdir()
    for number in range(2 * SHARDS):
        np.save(tmp_path / f"all/{number}.npy", np.full((10, 8), number + 1, np.float16))
    catalog = Catalog.scan(tmp_path / "all", shards=SHARDS)
    settings = load_settings(root=str(tmp_path / "root"), landing=str(tmp_path / "landing"), shards=SHARDS)
    write_set(settings.build_root.image_set, [part_of(tmp_path / "all/0.npy")], model="m", modality="images")
    return settings, catalog, {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}


def opened(settings, catalog):
    build = OpenBuild(settings)
    vars(build).update(promoted=_Trained, catalog=catalog)
    return build


def look(settings, catalog, **more):
    return outlook(opened(settings.model_copy(update=more), catalog))


def test_without_sources_what_has_not_landed_waits(world, tmp_path):
    settings, catalog, files = world
    for name in ("2.npy", "3.npy", "4.npy"):
        (tmp_path / "landing" / name).write_bytes(files[name])
    found = look(settings, catalog)
    assert (found.ready, found.to_try) == ((1,), ())


def test_files_are_asked_for_at_a_source_that_does_not_list_them(world):
    settings, catalog, files = world
    del files["5.npy"]
    files["0.npy"] += b"another size"
    with MisbehavingServer(files, lists=False) as server:
        found = look(settings, catalog, sources=server.url)
    assert (found.ready, found.to_try) == ((), (1, 3))


def test_a_source_that_is_down_for_a_moment_is_tried(world):
    settings, catalog, files = world
    with MisbehavingServer(files, lists=False) as server:
        server.misbehave("3.npy", Status(503), Status(503), Status(503))
        assert look(settings, catalog, sources=server.url).to_try == (0, 1, 2, 3)
    assert look(settings, catalog, sources=server.url).to_try == (0, 1, 2, 3)  # gone altogether


def test_a_source_that_lists_its_files_is_believed(world, tmp_path):
    settings, catalog, _ = world
    (tmp_path / "all/5.npy").unlink()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "all")))
    Thread(target=server.serve_forever, daemon=True).start()
    found = look(settings, catalog, sources=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    assert (found.ready, found.to_try) == ((0, 1, 3), ())


def test_with_an_index_to_rebuild_from_every_shard_is_tried(world):
    settings, catalog, _ = world
    assert look(settings, catalog, rebuild_from="/nowhere").to_try == (0, 1, 2, 3)


def test_shards_that_wait_are_named_and_only_unpromised_files_are_forgiven(world):
    settings, catalog, _ = world
    waits = waiting(opened(settings, catalog))
    assert [one.shard for one in waits] == [0, 1, 2, 3]
    with pytest.raises(PairedIndexError, match=r"4 of 4 shards wait: shard 0 for 0\.npy has not landed.*1\.npy.*and 1 more shards"):
        require_what_was_promised(waits, SHARDS)
    known = Catalog.of([replace(file, known_missing=file.shard == 2) for file in catalog])
    waits = waiting(opened(settings, known))
    assert [one.promised for one in waits] == [True, True, False, True]
    require_what_was_promised([waits[2]], SHARDS)
    require_what_was_promised([], SHARDS)
    with pytest.raises(PairedIndexError, match="known to be missing"):  # nothing at all was built
        require_what_was_promised([Waiting(0, "0.npy is known to be missing", promised=False)], 1)
