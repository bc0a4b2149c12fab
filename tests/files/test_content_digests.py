"""Whatever bit of a small file is flipped, who reads it gets what was written or one line that names the file and the cure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from unit_vectors import random_unit

from paired_index_assets.embeddings.metadata import MetadataWriter, check_metadata, finished_part
from paired_index_assets.embeddings.sets import SetPart, write_set
from paired_index_assets.errors import BadInput, DamagedArtifact, PairedIndexError
from paired_index_assets.files.storage import as_path, read_json, write_json
from paired_index_assets.files.tables import digest_of_table, read_arrays, read_parquet, read_table, write_arrays, write_table
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.layout import BuildRoot
from paired_index_assets.pairing.pairs import MatchedImages, Sides, read_pairs, write_pairs
from paired_index_assets.pairing.split import Split
from paired_index_assets.readers.sample import Sample
from paired_index_assets.settings import Settings, load_settings
from paired_index_assets.trained.promotion import Promotion, promote, read_promotion

FLIPS = 400
CATALOG = Catalog.of([CatalogFile(n, f"img_emb_{n:04d}.npy", n // 4, 100 * n, 100, 0, 32, "<f2", 6528) for n in range(8)])


def pairs(folder: Path) -> Path:
    write_pairs(folder, Sides(random_unit(300, 16, 1), np.arange(300) * 3, MatchedImages.of(random_unit(200, 16, 2))))
    return folder / "pairs-00000.parquet"


def split(folder: Path) -> Path:
    Split(np.arange(500), np.arange(500, 600), np.arange(600, 700), 650).save(folder / "split.npz")
    return folder / "split.npz"


def catalog(folder: Path) -> Path:
    CATALOG.save(folder / "catalog.parquet")
    return folder / "catalog.parquet"


def removals(folder: Path) -> Path:
    columns = {"id": np.arange(0, 9000, 7), "why": ["asked for"] * 1286, "when": [datetime(2026, 1, 1, tzinfo=UTC)] * 1286}
    write_table(folder / "removed.parquet", pa.table(columns))
    return folder / "removed.parquet"


def promotion(folder: Path) -> Path:
    root = BuildRoot.at(folder)
    promote(root, Promotion("images.index", "0123456789abcdef", candidates=["a", "b"], gain=0.25, why="measured"))
    return Path(root.promoted.path)


def settings(folder: Path) -> Path:
    load_settings(root=str(folder), nlist=64).save()
    return folder / "settings.json"


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "pairs": (pairs, lambda path: read_pairs(path.parent).to_pydict()),
    "split": (split, lambda path: {k: np.asarray(v).tolist() for k, v in dataclasses.asdict(Split.load(path)).items()}),
    "catalog": (catalog, lambda path: Catalog.load(path).table.to_pydict()),
    "removals": (removals, lambda path: read_table(path, "restore it").to_pydict()),
    "promotion": (promotion, lambda path: dataclasses.asdict(read_promotion(BuildRoot.at(path.parents[1])))),
    "settings": (settings, lambda path: load_settings(root=str(path.parent)).model_dump()),
}


def read_or_refused(read: Callable[[Path], Any], path: Path) -> tuple[Any, str]:
    try:
        return read(path), ""
    except (DamagedArtifact, BadInput) as error:
        return None, str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_of_hundreds_of_single_flips_none_reads_as_something_else(kind: str, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    path = write(tmp_path)
    whole, expected, rng, noticed = path.read_bytes(), read(path), np.random.default_rng(5), 0
    for _ in range(FLIPS):
        at, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        found, said = read_or_refused(read, path)
        assert (found is None and path.name in said and "\n" not in said) or found == expected
        noticed += found is None
    assert noticed > FLIPS / 20
    path.write_bytes(whole)
    assert read(path) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 1, 40, -4])
def test_a_truncated_file_is_one_line(kind: str, cut: int, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PairedIndexError, match=path.name):
        read(path)


@pytest.mark.parametrize("kind", ["promotion", "settings"])
@pytest.mark.parametrize("content", ["null", "[]", "7", '"text"', "", "{", "[" * 100_000])
def test_json_of_another_kind_is_one_line_with_a_cure(kind: str, content: str, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    path = write(tmp_path)
    path.write_text(content)
    with pytest.raises(DamagedArtifact, match=rf"{path.name}: .*(delete it|materialise trained_index again)"):
        read(path)


@pytest.mark.parametrize("wrong", [{"nlist": "many"}, {"nlist": None, "seed": []}, {"root": 7, "images": {}}, {"nprobe": -3}])
def test_settings_of_wrong_types_name_the_file_and_the_setting(wrong: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "settings.json", wrong)
    with pytest.raises(DamagedArtifact, match=r"settings\.json: (nlist|seed|root|images|nprobe): expected .*delete it"):
        load_settings(root=str(tmp_path))


@pytest.mark.parametrize(
    "wrong", [{}, {"index": 7, "fingerprint": "x"}, {"index": "a", "fingerprint": None}, {"index": "a", "fingerprint": "b", "nprobe": "c"}]
)
def test_a_promotion_of_wrong_types_is_one_line(wrong: dict[str, Any], tmp_path: Path) -> None:
    write_json(BuildRoot.at(tmp_path).promoted, wrong)
    with pytest.raises(DamagedArtifact, match=r"promoted\.json: not a promotion.*materialise trained_index again"):
        read_promotion(BuildRoot.at(tmp_path))


def test_settings_written_by_hand_are_read(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"nlist": 32}))
    assert load_settings(root=str(tmp_path)).nlist == 32
    assert set(Settings.model_fields) >= {"nlist"}


def test_a_damaged_block_of_pairs_alone_is_made_again(tmp_path: Path) -> None:
    sides = Sides(random_unit(300, 16, 1), np.arange(300), MatchedImages.of(random_unit(200, 16, 2)), block_rows=100)
    write_pairs(tmp_path, sides)
    expected, path = read_pairs(tmp_path), tmp_path / "pairs-00001.parquet"
    whole = path.read_bytes()
    for damaged in (whole[:-30], whole[:60] + bytes([whole[60] ^ 4]) + whole[61:], b""):
        path.write_bytes(damaged)
        with pytest.raises(DamagedArtifact, match=r"pairs-00001\.parquet: .*only that block is made again"):
            read_pairs(tmp_path)
        assert write_pairs(tmp_path, sides).reused == 2
        assert read_pairs(tmp_path).equals(expected)


def test_the_digest_of_a_table_does_not_depend_on_its_chunks_and_tells_nulls_from_nothing() -> None:
    columns = {"a": [1, None, 3], "b": ["x", "", None], "c": [True, False, None], "d": [[1], [], None], "e": [0.5, None, -1.0]}
    whole = pa.table(columns)
    assert digest_of_table(pa.concat_tables([whole.slice(0, 1), whole.slice(1)])) == digest_of_table(whole)
    others = [pa.table(columns | {name: values}) for name, values in (("a", [1, 0, 3]), ("b", ["x", None, None]), ("b", ["", "x", None]))]
    assert len({digest_of_table(table) for table in (whole, *others)}) == 4


def test_arrays_and_objects_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5), "b": np.zeros((0, 3), np.float16), "c": np.array("text")}
    write_arrays(tmp_path / "x.npz", arrays)
    assert {name: (a.dtype, a.tolist()) for name, a in read_arrays(tmp_path / "x.npz", "").items()} == {
        name: (a.dtype, a.tolist()) for name, a in arrays.items()
    }
    write_json(tmp_path / "x.json", {"a": [1, 2.5, None], "ü": "é"})
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None], "ü": "é"}


def test_of_flips_in_the_metadata_of_a_part_none_reads_as_something_else(tmp_path: Path) -> None:
    path, vectors = tmp_path / "metadata.parquet", tmp_path / "img_emb.npy"
    np.save(vectors, random_unit(300, 16, 3, np.float16))
    columns = {"url": pa.array([], pa.string()), "width": pa.array([], pa.int64())}
    samples = [Sample(key=f"{n:05d}", caption=f"caption {n % 7}", columns={"url": f"http://x/{n}", "width": n}) for n in range(300)]
    with MetadataWriter(path, pa.schema([(name, values.type) for name, values in columns.items()]), "made of this") as writer:
        writer.append(samples, ["ok"] * 300)
    part = SetPart(as_path(vectors), 300, "", as_path(path))
    images = write_set(tmp_path / "images.json", [part], model="m", modality="images")
    assert finished_part(as_path(vectors), as_path(path), "made of this") is not None
    check_metadata(images)
    whole, expected, rng, noticed = path.read_bytes(), read_parquet(path), np.random.default_rng(5), 0
    for _ in range(FLIPS // 2):
        at, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        if finished_part(as_path(vectors), as_path(path), "made of this") is None:
            noticed += 1
        else:
            check_metadata(images)
            assert read_parquet(path).equals(expected)
    assert noticed > FLIPS / 20
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedArtifact, match=r"metadata\.parquet: .*only its part is made again"):
        check_metadata(images)


def test_a_table_that_a_store_does_not_have_is_missing_and_not_damaged():
    nowhere = as_path("memory://nowhere/manifest.parquet")
    for read in (read_parquet, lambda path: read_table(path, "write it again")):
        with pytest.raises(FileNotFoundError):
            read(nowhere)
