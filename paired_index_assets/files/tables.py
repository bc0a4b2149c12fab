"""Small tables (Parquet), arrays (.npz) and objects (JSON) with a digest of their content, which whoever reads them holds it against.

Parquet's page checksums and zip's CRC32 miss flips in what is around the data (three of 10,408 flips in a table of ids read as other
ids); a digest of what was read does not care where the flip was.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from paired_index_assets.errors import DamagedArtifact, OutOfDisk, SourceUnavailable
from paired_index_assets.files.storage import as_path, atomic_file, content_of, is_local, patiently, write_bytes

CONTENT = b"paired_index.content"
CONTENT_ARRAY = "content"  # its name in an archive of arrays
# What the libraries raise on bytes that are not what they wrote. A store that does not answer is another matter.
DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, OverflowError, NotImplementedError)


@contextmanager
def damage_as_arrows() -> Iterator[None]:
    """Arrow says of a damaged page that it is an OSError, without a number: raised as the ArrowException that damage is elsewhere."""
    try:
        yield
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:  # a store's FileNotFoundError has no number either
            raise
        raise pa.ArrowInvalid(" ".join(str(error).split())) from error


def read_parquet(source: UPath | Path, columns: list[str] | None = None) -> pa.Table:
    """A whole table, or some of its columns. Raises FileNotFoundError, and ArrowException where it is not Parquet.

    Not pq.read_table: its I/O threads hold the Python stream, and abort the process if one lets go of it during exit.
    """
    source = as_path(source)

    def read() -> pa.Table:
        with (
            damage_as_arrows(),
            source.open("rb") as stream,
            pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True) as parquet,
        ):
            return parquet.read(columns, use_threads=False)

    return read() if is_local(source) else patiently(source, read)  # again, where it was replaced meanwhile


def write_table(path: UPath | Path, table: pa.Table) -> None:
    """Write a table and the digest of its rows, columns and metadata, in one step."""
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != CONTENT}
    table = table.replace_schema_metadata(metadata | {CONTENT: digest_of_table(table).encode()})
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_table(path: UPath | Path, cure: str) -> pa.Table:
    """What `write_table` wrote, with its metadata less the digest. Raises FileNotFoundError; DamagedArtifact, which ends in `cure`.

    A table that somebody else wrote has no digest, and is taken as it is.
    """
    try:
        table = read_parquet(path)
        metadata = dict(table.schema.metadata or {})
        recorded = metadata.pop(CONTENT, b"").decode()
        table = table.replace_schema_metadata(metadata or None)
        found = digest_of_table(table)
    except (FileNotFoundError, SourceUnavailable, OutOfDisk):
        raise
    except DAMAGE as error:
        raise DamagedArtifact(f"{path}: damaged ({_one_line(error)}); {cure}") from error
    if recorded and found != recorded:
        raise DamagedArtifact(f"{path}: altered: its content has the digest {found[:16]}, but it says {recorded[:16]}; {cure}")
    return table


def digest_of_table(table: pa.Table) -> str:
    """The sha256 of names, types, values and metadata (but for a digest in it), however they are chunked."""
    sha = hashlib.sha256()
    for key, value in sorted((table.schema.metadata or {}).items()):
        if key != CONTENT:
            _add(sha, key, value)
    for name, column in zip(table.schema.names, table.columns, strict=True):
        _add(sha, name.encode(), str(column.type).encode(), *_bytes_of(column))
    return sha.hexdigest()


def write_arrays(path: UPath | Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays and the digest of all of them, in one step. The same arrays give the same bytes."""
    write_bytes(path, pack_arrays(arrays))


def pack_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The bytes of an .npz of arrays and the digest of all of them."""
    content = io.BytesIO()
    np.savez(content, **arrays, **{CONTENT_ARRAY: np.array(digest_of_arrays(arrays))})  # type: ignore[arg-type]
    return content.getvalue()


def read_arrays(path: UPath | Path, cure: str) -> dict[str, npt.NDArray[Any]]:
    """What `write_arrays` wrote. Raises FileNotFoundError; DamagedArtifact, which ends in `cure`."""
    try:
        with np.load(io.BytesIO(content_of(path)), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        recorded = str(arrays.pop(CONTENT_ARRAY, ""))
        found = digest_of_arrays(arrays)
    except (FileNotFoundError, SourceUnavailable):
        raise
    except Exception as error:  # zip, zlib, numpy and ast have each their own for bytes that are not what was written
        raise DamagedArtifact(f"{path}: damaged ({_one_line(error)}); {cure}") from error
    if recorded and found != recorded:
        raise DamagedArtifact(f"{path}: altered: its content has the digest {found[:16]}, but it says {recorded[:16]}; {cure}")
    return arrays


def digest_of_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        _add(sha, name.encode(), str(array.dtype).encode(), str(array.shape).encode(), np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _bytes_of(column: pa.ChunkedArray) -> tuple[bytes, ...]:
    """Which values are there, and the values."""
    there = column.is_valid().to_numpy(zero_copy_only=False)
    kind = column.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False)
        return np.packbits(there).tobytes(), np.ascontiguousarray(values).tobytes()
    if pa.types.is_timestamp(kind):
        return np.packbits(there).tobytes(), column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).tobytes()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = column.fill_null("")
        lengths = pc.binary_length(text).to_numpy(zero_copy_only=False).astype(np.int64)
        return np.packbits(there).tobytes(), lengths.tobytes(), "".join(text.to_pylist()).encode()
    return np.packbits(there).tobytes(), repr(column.to_pylist()).encode()


def _add(sha: Any, *parts: bytes) -> None:
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
