"""Removal lists, as people send them, matched with the metadata of the rows."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote, unquote_plus, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.storage import as_path
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Int64

KEYS_AT_ONCE = 1 << 16  # rows of metadata matched together
MD5 = re.compile(r"(?<![0-9a-fA-F])[0-9a-fA-F]{32}(?![0-9a-fA-F])")
DEFAULT_PORTS = {"http": 80, "https": 443, "ftp": 21}

MetadataFiles = Sequence[tuple[UPath | Path | str, int]]


def read_list(file: Path) -> list[str]:
    """The entries of a removal list, one a line, in UTF-8 or, where it says so, UTF-16. Raises MissingInput, BadInput."""
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise MissingInput(f"{file}: no such file") from error
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from error
    text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig", errors="replace")
    lines = [line.strip(" \t\ufeff\x00") for line in re.split("\r\n|\n|\r", text)]
    if not any(lines):
        raise BadInput(f"{file}: expected one entry a line, found none")
    return [line for line in lines if line]


def row_ids(file: Path, lines: Sequence[str]) -> Int64:
    """Raises BadInput naming the first line that is no row id."""
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch("[0-9]{1,18}", line):
            raise BadInput(f"{file}: line {number}: expected a row id, found {line[:40]!r}; nothing was removed")
    return np.array([int(line) for line in lines], dtype=np.int64)


def ids_of(metadata: MetadataFiles, column: str, values: Iterable[str], *, progress: Progress = silent) -> tuple[Int64, list[str]]:
    """The ids whose metadata has one of `values` in `column` (url or md5, or another): ids ascending, and the values found nowhere.

    `metadata` is (Parquet file, global id of its first row); row i of a file describes id start + i. Read piece by piece, one column. What
    is not found as it is written is looked for as it may be spelt otherwise (`same_md5`, `same_url`). Raises BadInput naming a file that
    has no such column or is damaged.
    """
    spelling = {"md5": same_md5, "url": same_url}.get(column)
    values = list(dict.fromkeys(values))
    found = rows_with(metadata, column, values, progress=progress)
    unknown = [value for value in values if value not in found]
    if unknown and spelling is not None:
        otherwise = rows_with(metadata, column, [spelling(value) for value in unknown], spelling=spelling, progress=progress)
        found |= {value: otherwise[spelling(value)] for value in unknown if spelling(value) in otherwise}
        unknown = [value for value in unknown if value not in found]
    ids = [row for rows in found.values() for row in rows]
    return np.unique(np.array(ids, dtype=np.int64)), unknown


def rows_with(
    metadata: MetadataFiles,
    column: str,
    values: Iterable[str],
    *,
    spelling: Callable[[str], str | None] | None = None,
    progress: Progress = silent,
) -> dict[str, list[int]]:
    """value -> the ids, ascending, whose text in `column` it is, or is once `spelling` has been applied to that."""
    wanted = pa.array(sorted(set(values)), pa.string())
    found: dict[str, list[int]] = {}
    for done, (file, start) in enumerate(metadata, start=1):
        for offset, texts in _column(file, column):
            if spelling is not None:
                texts = pa.array([None if text is None else spelling(text) for text in texts.to_pylist()], pa.string())
            hits = np.flatnonzero(pc.is_in(texts, value_set=wanted, skip_nulls=True).to_numpy(zero_copy_only=False))
            for at, text in zip(hits.tolist(), texts.take(pa.array(hits)).to_pylist(), strict=True):
                found.setdefault(text, []).append(start + offset + at)
        progress(f"match {column}", done, len(metadata), found=sum(map(len, found.values())))
    return found


def same_md5(text: str) -> str:
    """`text` with nothing but its md5, in lower case: of a line of md5sum (``md5  name``, ``md5 *name``) or of BSD's (``MD5 (name) = md5``)."""
    text = text.lstrip("\\")  # md5sum marks a name with a newline so
    found = MD5.findall(text)
    if not found:
        return text
    return str(found[0] if text.startswith(found[0]) else found[-1]).lower()


def same_url(text: str) -> str:
    """One spelling of a url: no matter how its characters are escaped, of the case of its host, http or https, its port if it is the
    default one, a fragment, a slash at the end."""
    text = unicodedata.normalize("NFC", html.unescape(text.strip().strip("<>\"'")))
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").rstrip(".")
        port = parts.port
    except ValueError:
        return text
    if not host:
        return _unescaped(text)
    try:
        host = unquote(host).encode("idna").decode().lower()
    except UnicodeError:
        host = unquote(host).lower()
    at = "" if port in (None, DEFAULT_PORTS.get(parts.scheme.lower())) else f":{port}"
    who = f"{parts.username}@" if parts.username else ""
    path = _unescaped(parts.path).rstrip("/")
    query = unquote_plus(parts.query)
    scheme = "http" if parts.scheme.lower() == "https" else parts.scheme.lower()
    return f"{scheme}://{who}{host}{at}{quote(path, safe='/')}" + (f"?{quote(query, safe='=&')}" if query else "")


def _unescaped(text: str) -> str:
    """Until nothing is left to unescape: some lists are escaped twice."""
    for _ in range(3):
        if (plain := unquote(text)) == text:
            break
        text = plain
    return text


def column_names(file: UPath | Path | str) -> list[str]:
    with as_path(file).open("rb") as stream:
        try:
            with pq.ParquetFile(stream) as parquet:
                return list(parquet.schema_arrow.names)
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{file}: not a Parquet file ({error}); expected the metadata of an embedding file") from error


def _column(file: UPath | Path | str, column: str) -> Iterator[tuple[int, pa.Array]]:
    """(row, values) of one column as text, piece by piece."""
    with as_path(file).open("rb") as stream:
        try:
            parquet = pq.ParquetFile(stream)
            if column not in parquet.schema_arrow.names:
                raise BadInput(f"{file}: no column {column!r}; it has {', '.join(parquet.schema_arrow.names)}")
            row = 0
            for batch in parquet.iter_batches(batch_size=KEYS_AT_ONCE, columns=[column]):
                yield row, batch.column(0).cast(pa.string())
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{file}: not a Parquet file ({error}); expected the metadata of an embedding file") from error
