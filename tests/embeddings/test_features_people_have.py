"""Features as other tools write them: read as float16 or float32, one of several by name, or refused before a byte is written."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from paired_index_assets.embeddings.features import adopt_features
from paired_index_assets.errors import BadInput
from paired_index_assets.files.listing import several

ROWS = np.random.default_rng(3).standard_normal((40, 6)).astype(np.float32)
WIDE = ROWS.astype(np.float64)
LISTS = pa.array(list(WIDE), pa.list_(pa.float64()))


def adopt(tmp_path, spec, modality="images", **more):
    return adopt_features(tmp_path / "build/embeddings/images.json", str(spec), modality=modality, **more)


def columns(prefix, array, first=0):
    return {f"{prefix}{first + i}": array[:, i] for i in range(array.shape[1])}


def parquet_of(table):
    return lambda path: pq.write_table(pa.table(table), path, row_group_size=7)


def numpy_of(array):
    return lambda path: np.save(path, array)


def torch_of(content):
    return lambda path: torch.save(content, path)


TENSOR = torch.from_numpy(ROWS)
READ = {
    "double.npy": numpy_of(WIDE),
    "big_endian.npy": numpy_of(ROWS.astype(">f4")),
    "big_double.npy": numpy_of(WIDE.astype(">f8")),
    "fortran.npy": numpy_of(np.asfortranarray(ROWS)),
    "double.pt": torch_of(TENSOR.double()),
    "transposed.pt": torch_of(TENSOR.t().contiguous().t()),
    "one_of_one.pt": torch_of({"features": TENSOR, "step": torch.tensor(3), "note": "x"}),
    "named.pt::image": torch_of({"image": TENSOR, "text": -TENSOR}),
    "named.safetensors::image": lambda path: save_file({"image": TENSOR, "text": -TENSOR}, path),
    "alone.safetensors": lambda path: save_file({"image": TENSOR, "labels": torch.zeros(40)}, path),
    "double.safetensors": lambda path: save_file({"image": TENSOR.double()}, path),
    "double.parquet": parquet_of({"embedding": LISTS}),
    "fixed_double.parquet": parquet_of({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(WIDE.reshape(-1)), 6)}),
    "large.parquet": parquet_of({"embedding": LISTS.cast(pa.large_list(pa.float32()))}),
    "struct.parquet": parquet_of({"embedding": pa.StructArray.from_arrays([LISTS], ["values"])}),
    "structs.parquet": parquet_of({"e": pa.StructArray.from_arrays([pa.StructArray.from_arrays([LISTS], ["a"])], ["b"])}),
    "columns.parquet": parquet_of({"key": list(map(str, range(40))), "width": pa.array(range(40)), **columns("emb_", ROWS)}),
    "from_one.parquet": parquet_of(columns("d", WIDE, first=1)),
    "known.parquet": parquet_of({**columns("img_emb_", ROWS), **columns("other_", ROWS[:, :3])}),
    "two.parquet::text_": parquet_of({**columns("image_", -ROWS), **columns("text_", ROWS)}),
    "two.parquet::text": parquet_of({**columns("image.", -ROWS), **columns("text.", ROWS)}),
    "chosen.parquet::b": parquet_of({"a": pa.array(list(-WIDE)), "b": LISTS}),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("part_rows", [9, 1000])
def test_features_of_other_tools_are_read(tmp_path, name, part_rows):
    READ[name](tmp_path / name.partition("::")[0])
    found = adopt(tmp_path, tmp_path / name, part_rows=part_rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:], ROWS)


def test_bfloat16_that_numpy_has_no_name_for_is_read(tmp_path):
    bits = torch.from_numpy(ROWS).bfloat16().view(torch.int16).numpy()
    np.save(tmp_path / "b.npy", bits.view("V2"))
    np.testing.assert_array_equal(adopt(tmp_path, tmp_path / "b.npy")[:], torch.from_numpy(ROWS).bfloat16().float().numpy())


@pytest.mark.parametrize("nothing", [None, []])
@pytest.mark.parametrize("position", [0, 20, 39])
def test_a_null_or_empty_row_is_a_row_that_is_not_valid_wherever_it_is(tmp_path, nothing, position):
    rows = [nothing if i == position else row for i, row in enumerate(ROWS.tolist())]
    pq.write_table(pa.table({"embedding": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "e.parquet", row_group_size=10)
    assert np.flatnonzero(~adopt(tmp_path, tmp_path / "e.parquet").valid()).tolist() == [position]


def test_a_null_number_makes_its_row_not_valid(tmp_path):
    rows = ROWS.tolist()
    rows[5][2] = None
    pq.write_table(pa.table({"embedding": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "e.parquet")
    holes = ROWS.copy().astype(object)
    holes[7, 0] = None
    pq.write_table(pa.table({f"emb_{i}": pa.array(holes[:, i].tolist(), pa.float32()) for i in range(6)}), tmp_path / "c.parquet")
    assert np.flatnonzero(~adopt(tmp_path, tmp_path / "e.parquet").valid()).tolist() == [5]
    assert np.flatnonzero(~adopt(tmp_path / "2", tmp_path / "c.parquet").valid()).tolist() == [7]


def test_parts_without_rows_as_spark_leaves_them_are_passed_over(tmp_path):
    (tmp_path / "in").mkdir()
    kind = pa.list_(pa.float32())
    pq.write_table(pa.table({"embedding": pa.array([], kind)}), tmp_path / "in/part-00000.parquet")
    pq.write_table(pa.table({"embedding": pa.array(ROWS.tolist(), kind)}), tmp_path / "in/part-00001.parquet")
    pq.write_table(pa.table({"embedding": pa.array([], pa.null())}), tmp_path / "in/part-00002.parquet")
    (tmp_path / "in/_SUCCESS").write_text("")
    np.testing.assert_array_equal(adopt(tmp_path, tmp_path / "in")[:], ROWS)


REFUSED = {
    "expanded.pt": (
        torch_of(torch.zeros(1, 1).expand(10**9, 128)),
        "expected the 512000000000 bytes .* found 4: a view that repeats numbers",
    ),
    "rows.pt": (torch_of(torch.zeros(1, 8).expand(10**6, 8)), "a view that repeats numbers; save tensor.contiguous"),
    "meta.pt": (torch_of(torch.zeros(5, 8, device="meta")), "expected a plain .dense. tensor, found one that is without content"),
    "sparse.pt": (torch_of(torch.eye(8).to_sparse()), "found one that is sparse_coo"),
    "csr.pt": (torch_of(torch.eye(8).to_sparse_csr()), "found one that is sparse_csr"),
    "several.pt": (torch_of({"image": TENSOR, "text": TENSOR}), r"found image, text; name the one to take, as .*several\.pt::image"),
    "none.pt": (torch_of({"model": {"a": TENSOR}}), "expected one tensor, found none"),
    "several.safetensors": (lambda p: save_file({"a": TENSOR, "b": TENSOR.clone()}, p), r"found a, b; name the one to take, as .*::a"),
    "missing.safetensors::c": (lambda p: save_file({"a": TENSOR}, p), "expected a tensor 'c', found a"),
    "alone.pt::a": (torch_of(TENSOR), "found a single tensor; leave out ::a"),
    "vector.npy": (numpy_of(ROWS[0]), r"expected a matrix .*found shape \(6,\)"),
    "ints.npy": (numpy_of(np.zeros((4, 4), np.int32)), "expected a matrix .* float64, found shape"),
    "all_null.parquet": (
        parquet_of({"embedding": pa.array([None, []], pa.list_(pa.float32()))}),
        "found 2 rows that are all null or empty",
    ),
    "gap.parquet": (
        parquet_of({"e_0": ROWS[:, 0], "e_2": ROWS[:, 1]}),
        "expected a column of images embeddings as a list .* found e_0: float",
    ),
    "unclear.parquet": (parquet_of({"a": LISTS, "b": LISTS}), "name the one to take, as .*::a"),
    "absent.parquet::c": (parquet_of({"a": LISTS}), "expected a column 'c'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_features_that_are_none_are_refused_in_one_line_and_nothing_is_written(tmp_path, name):
    save, message = REFUSED[name]
    save(tmp_path / name.partition("::")[0])
    with pytest.raises(BadInput, match=message) as caught:
        adopt(tmp_path, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("build/embeddings/imported/**/*.npy"))


@pytest.mark.parametrize(("start", "stop"), [(4, 300), (-8, -4), (2000, 6000)])
def test_damaged_parquet_of_features_is_refused_in_one_line(tmp_path, start, stop):
    pq.write_table(pa.table({"embedding": pa.array(list(np.tile(ROWS, (50, 1))), pa.list_(pa.float32()))}), tmp_path / "e.parquet")
    content = bytearray((tmp_path / "e.parquet").read_bytes())
    content[start:stop] = bytes(len(content[start:stop]))
    (tmp_path / "e.parquet").write_bytes(content)
    with pytest.raises(BadInput, match=r"e\.parquet.*expected") as caught:
        adopt(tmp_path, tmp_path / "e.parquet")
    assert "\n" not in str(caught.value)


def test_an_existing_name_wins_over_its_reading_as_a_pattern_or_a_list(tmp_path):
    for folder in ("set [v2]", "a,b", "what?", "{1..2}", "x::y"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "i.npy", ROWS)
        for spec in (tmp_path / folder, tmp_path / folder / "i.npy"):
            np.testing.assert_array_equal(adopt(tmp_path, spec)[:], ROWS)


def test_a_list_with_commas_is_several_unless_the_comma_is_in_a_name(tmp_path):
    for name in ("a.npy", "b.npy", "c,d.npy"):
        np.save(tmp_path / name, ROWS)
    spec = f"{tmp_path}/a.npy,{tmp_path}/c,d.npy,{tmp_path}/b.npy"
    assert several(spec) == [f"{tmp_path}/a.npy", f"{tmp_path}/c,d.npy", f"{tmp_path}/b.npy"]
    assert len(adopt(tmp_path, spec)) == 120
    assert several("no,such,thing") == ["no", "such", "thing"]


def test_features_as_a_model_writes_them_are_normalised_and_it_is_recorded(tmp_path):
    raw = ROWS * 10
    raw[7] = 0
    np.save(tmp_path / "raw.npy", raw)
    found = adopt(tmp_path, tmp_path / "raw.npy", normalize="auto")
    assert found.normalized
    assert found.facts().off_norm == 0
    np.testing.assert_allclose(found[:], raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-9), atol=1e-6)
    assert np.flatnonzero(~found.valid()).tolist() == [7]
    before = {part.path: part.path.stat().st_mtime_ns for part in found.parts}
    again = adopt(tmp_path, tmp_path / "raw.npy", normalize="auto")
    assert {part.path: part.path.stat().st_mtime_ns for part in again.parts} == before
    left = adopt(tmp_path, tmp_path / "raw.npy", normalize="never")
    assert (left.normalized, left.facts().off_norm) == (False, 39)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_some_of_which_are_of_unit_norm_are_not_touched(tmp_path, dtype):
    rows = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    np.save(tmp_path / "unit.npy", rows.astype(dtype))
    rows[3] *= 4
    np.save(tmp_path / "mixed.npy", rows.astype(dtype))
    assert not adopt(tmp_path, tmp_path / "unit.npy", normalize="auto").normalized
    mixed = adopt(tmp_path, tmp_path / "mixed.npy", normalize="auto")
    assert (mixed.normalized, mixed.facts().off_norm) == (False, 1)
    assert adopt(tmp_path, tmp_path / "mixed.npy", normalize="always").facts().off_norm == 0


def test_subnormal_rows_are_counted_as_what_they_are(tmp_path):
    rows = (ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)).astype(np.float32)
    rows[:2] = 1e-40
    rows[2] = 1e-10
    np.save(tmp_path / "few.npy", rows)
    facts = adopt(tmp_path, tmp_path / "few.npy").facts()
    assert (facts.invalid, facts.off_norm) == (2, 1)
