"""Features people have: .npy in place, everything else converted once, wrong ones refused by name."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from upath import UPath

from paired_index_assets.embeddings import features
from paired_index_assets.embeddings.features import adopt_features
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import BadInput, MissingInput


@pytest.fixture(scope="module")
def matrix():
    return np.random.default_rng(1).standard_normal((1000, 8)).astype(np.float16)


def adopt(tmp_path, inputs, **more):
    inputs = [str(i) for i in inputs] if isinstance(inputs, list) else str(inputs)
    return adopt_features(tmp_path / "build/embeddings/images.json", inputs, modality="images", **more)


def save_npy(folder, matrix):
    np.save(folder / "features.npy", matrix)
    return folder / "features.npy"


def save_numbered(folder, matrix):
    """Ten files, numbered without leading zeros: part_10 comes last."""
    for number, piece in enumerate(np.array_split(matrix, 11)):
        np.save(folder / f"part_{number}.npy", piece)
    return folder / "part_*.npy"


def save_laion(folder, matrix):
    for name, content in (("img_emb", matrix), ("text_emb", -matrix)):
        (folder / "laion" / name).mkdir(parents=True)
        for number, piece in enumerate(np.array_split(content, 3)):
            np.save(folder / "laion" / name / f"{name}_{number:04d}.npy", piece)
    return folder / "laion"


def save_tensor(folder, matrix):
    torch.save(torch.from_numpy(matrix), folder / "images_half.tensor")
    return folder / "images_half.tensor"


def save_safetensors(folder, matrix):
    save_file({"image_features": torch.from_numpy(matrix)}, folder / "features.safetensors")
    return folder / "features.safetensors"


def save_lists(folder, matrix):
    column = pa.array(list(matrix), pa.list_(pa.from_numpy_dtype(matrix.dtype)))
    table = pa.table({"key": list(map(str, range(len(matrix)))), "embedding": column})
    pq.write_table(table, folder / "lists.parquet", row_group_size=170)
    return folder / "lists.parquet"


def save_fixed(folder, matrix):
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
    pq.write_table(pa.table({"img_emb": column, "text_emb": column}), folder / "fixed.parquet", row_group_size=333)
    return folder / "fixed.parquet"


FORMATS = [save_npy, save_numbered, save_laion, save_tensor, save_safetensors, save_lists, save_fixed]
IN_PLACE = {save_npy, save_numbered, save_laion}


@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_format_gives_the_same_rows(tmp_path, matrix, save, dtype, monkeypatch):
    monkeypatch.setattr(features, "BLOCK_BYTES", 1000)  # many blocks
    found = adopt(tmp_path, save(tmp_path, matrix.astype(dtype)), part_rows=150)
    np.testing.assert_array_equal(found[:], matrix.astype(dtype))
    assert found.dtype == dtype
    assert len(EmbeddingSet.open(found.source)) == 1000
    copied = list((tmp_path / "build/embeddings").rglob("*.npy"))
    assert len(copied) == (0 if save in IN_PLACE else 7)


@pytest.mark.parametrize("save", [save_tensor, save_safetensors, save_fixed])
def test_a_conversion_broken_off_goes_on_where_it_was(tmp_path, matrix, save):
    path = save(tmp_path, matrix)

    def dies(step, done, total, /, **facts):
        if done > 400:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            adopt(tmp_path, path, part_rows=150, progress=dies)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not (tmp_path / "build/embeddings/images.json").exists()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "build/embeddings/imported/img_emb").glob("*.npy")}
    found = adopt(tmp_path, path, part_rows=150)
    assert len(before) == 2
    after = {p.path.name: p.path.stat().st_mtime_ns for p in found.parts}
    assert before.items() <= after.items()
    np.testing.assert_array_equal(found[:], matrix)
    assert not list((tmp_path / "build/embeddings/imported/img_emb").glob(".*.tmp"))


def test_features_whose_model_nobody_named_have_none(tmp_path, matrix):
    found = adopt(tmp_path, save_npy(tmp_path, matrix))
    assert found.model is None
    assert EmbeddingSet.open(found.source).model is None


def test_a_changed_tensor_is_converted_again_and_the_old_parts_go(tmp_path, matrix):
    path = save_tensor(tmp_path, matrix)
    adopt(tmp_path, path)
    torch.save(torch.from_numpy(matrix[:500]), path)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))
    assert len(adopt(tmp_path, path)) == 500
    assert len(list((tmp_path / "build/embeddings/imported/img_emb").iterdir())) == 1


def test_bfloat16_becomes_float32_without_loss(tmp_path, matrix):
    tensor = torch.from_numpy(matrix.astype("f4")).bfloat16()
    torch.save(tensor, tmp_path / "x.pt")
    np.testing.assert_array_equal(adopt(tmp_path, tmp_path / "x.pt")[:], tensor.float().numpy())


@pytest.mark.parametrize("save", [save_npy, save_tensor, save_fixed])
def test_remote_features_are_copied_to_parts(tmp_path, matrix, save):
    local = save(tmp_path, matrix)
    remote = UPath(f"memory://features-{save.__name__}/{local.name}")
    remote.parent.mkdir(parents=True, exist_ok=True)
    remote.write_bytes(local.read_bytes())
    local.unlink()
    found = adopt(tmp_path, str(remote))
    np.testing.assert_array_equal(found[:], matrix)
    assert all(p.path.is_relative_to(tmp_path / "build") for p in found.parts)
    assert [p.name for p in (tmp_path / "build/embeddings/imported/img_emb").iterdir()] == [p.path.name for p in found.parts]


def test_captions_take_the_text_half_of_a_laion_folder(tmp_path, matrix):
    folder = save_laion(tmp_path, matrix)
    found = adopt_features(tmp_path / "captions.json", str(folder), modality="captions")
    np.testing.assert_array_equal(found[:], -matrix)


def test_several_inputs_keep_the_order_given(tmp_path, matrix):
    np.save(tmp_path / "a.npy", matrix[:100])
    np.save(tmp_path / "b.npy", matrix[100:])
    np.testing.assert_array_equal(adopt(tmp_path, [tmp_path / "b.npy", tmp_path / "a.npy"])[:], np.roll(matrix, -100, axis=0))


def test_a_null_row_of_parquet_is_a_row_that_is_not_valid(tmp_path):
    column = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": column}), tmp_path / "x.parquet")
    found = adopt(tmp_path, tmp_path / "x.parquet")
    np.testing.assert_array_equal(found[:], [[1, 2], [0, 0], [3, 4]])
    assert found.valid().tolist() == [True, False, True]


def write(path, content):
    path.write_bytes(content)
    return path


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/this-must-never-run",)


def wrong_inputs(folder):
    """Each with the message it must give."""
    torch.save([1, 2], folder / "list.pt")
    torch.save(torch.zeros(3, 4, dtype=torch.int32), folder / "ints.pt")
    torch.save(Evil(), folder / "evil.tensor")
    torch.save(torch.zeros(3, 4), folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, folder / "two.safetensors")
    pq.write_table(pa.table({"caption": ["a"]}), folder / "words.parquet")
    pq.write_table(pa.table({"embedding": pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))}), folder / "ragged.parquet")
    pq.write_table(pa.table({"embedding": pa.array([], pa.list_(pa.float32()))}), folder / "empty.parquet")
    np.save(folder / "empty.npy", np.zeros((0, 4), np.float16))
    np.save(folder / "wide.npy", np.zeros((3, 5), np.float16))
    np.save(folder / "narrow.npy", np.zeros((3, 4), np.float16))
    (folder / "mixed").mkdir()
    np.save(folder / "mixed/a.npy", np.zeros((3, 4), np.float16))
    torch.save(torch.zeros(3, 4), folder / "mixed/b.pt")
    return {
        "list.pt": r"list\.pt: expected one tensor saved by torch\.save, found list",
        "ints.pt": r"ints\.pt: expected a matrix .*found shape \(3, 4\) of torch\.int32",
        "evil.tensor": r"evil\.tensor: expected one tensor .*found a file that cannot be mapped as plain data",
        "old.pt": r"old\.pt: expected one tensor .*torch 1\.6 or newer",
        "two.safetensors": r"two\.safetensors: expected one tensor, found a, b",
        "words.parquet": r"words\.parquet: expected a column of images embeddings .*found caption: string",
        "ragged.parquet": r"ragged\.parquet: column 'embedding': expected 1 values in every row, found 2 in row 1",
        "empty.parquet": r"empty\.parquet: expected embeddings, found 0 rows",
        "empty.npy": r"empty\.npy: expected embeddings of images, found 0 rows",
        "*.npy": r"wide\.npy: expected 4 dimensions of float16 as in .*narrow\.npy, found 5",
        "mixed": r"mixed: expected features of one format, found \.npy and \.pt",
        "nothing.npy": r"nothing\.npy: no such file",
        "notes.txt": r"notes\.txt: expected features as \.npy, .*found notes\.txt",
        "garbage.parquet": r"garbage\.parquet: expected a Parquet file",
        "garbage.safetensors": r"garbage\.safetensors: expected a safetensors file",
        "garbage.pt": r"garbage\.pt: expected one tensor",
    }


def test_wrong_features_are_refused_with_file_expected_and_found(tmp_path):
    for name in ("notes.txt", "garbage.parquet", "garbage.safetensors", "garbage.pt"):
        write(tmp_path / name, b"nothing of the kind, but long enough to look at")
    for name, message in wrong_inputs(tmp_path).items():
        with pytest.raises((BadInput, MissingInput), match=message) as caught:
            adopt(tmp_path, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "build/embeddings/images.json").exists()
    assert not os.path.exists("/tmp/this-must-never-run")


def test_adopted_files_that_change_change_the_fingerprint(tmp_path, matrix):
    path = save_npy(tmp_path, matrix)
    first = adopt(tmp_path, path).fingerprint
    assert EmbeddingSet.open(tmp_path / "build/embeddings/images.json").fingerprint == first
    np.save(path, matrix[::-1])
    assert adopt(tmp_path, path).fingerprint != first
