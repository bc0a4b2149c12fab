"""Which ids a condition on the metadata lets through: one bit an id, made once and kept.

A condition is an SQL expression over the metadata's columns, such as ``NSFW = 'UNLIKELY' AND width >= 512``. DuckDB parses and evaluates it;
what it parsed to is looked through first, and nothing but comparisons, arithmetic and a few functions of text and numbers is let in: no
queries, no files, no settings. NULL counts as not matching.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paired_index_assets.errors import BadInput
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import as_path, atomic_file, digest_of_parts
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Bool, UInt8

if TYPE_CHECKING:
    import duckdb

LONGEST = 2000  # characters of a condition
BATCH_ROWS = 1 << 16
KEPT_BYTES = 4 << 30  # of bitmaps in the cache folder: 15 at the size of LAION-2B
EXPRESSIONS = {"COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "BETWEEN", "CAST", "OPERATOR", "CASE", "TYPE"}
FUNCTIONS = {
    *("+", "-", "*", "/", "//", "%", "abs", "round", "floor", "ceil", "year", "month", "day"),
    *("~~", "!~~", "~~*", "!~~*", "lower", "upper", "length", "trim", "contains", "starts_with", "prefix", "ends_with", "suffix"),
    "regexp_matches",  # RE2: no expression takes longer than the text is long
}


class MetadataFile(Protocol):
    """Row i of the Parquet file `url` describes the id `start` + i."""

    @property
    def url(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def rows(self) -> int: ...


@dataclass(frozen=True)
class Condition:
    """A checked expression, the columns it names, and a form of it that is the same for the same meaning in other spacing."""

    text: str
    columns: tuple[str, ...]
    form: str


@dataclass(frozen=True, eq=False)
class Filter:
    """`bits`: one a global id, little-endian; `matching` of them are set."""

    condition: Condition
    bits: UInt8
    matching: int


def parse(text: str) -> Condition:
    """Raises BadInput for what is no expression, or more than one."""
    if len(text) > LONGEST:
        raise BadInput(f"where: expected at most {LONGEST} characters, found {len(text)}")
    with _engine() as engine:
        plain, given = (_parsed(engine, expression) for expression in ("true", text))
        if "where_clause" not in given or {**given, "where_clause": None} != {**plain, "where_clause": None}:
            raise BadInput(f"where: expected one expression over the metadata's columns, found {text!r}")
    columns: dict[str, None] = {}
    for part in _parts(given["where_clause"]):
        kind, name = part["class"], part.get("function_name")
        if kind == "COLUMN_REF":
            if len(part["column_names"]) != 1:
                raise BadInput(
                    f'where: expected the name of a column, found {".".join(part["column_names"])!r}; write "…" around a name with dots'
                )
            columns[part["column_names"][0]] = None
        elif (kind == "FUNCTION" and name not in FUNCTIONS) or kind not in {*EXPRESSIONS, "FUNCTION"}:
            found = f"the function {name!r}" if kind == "FUNCTION" else f"a {kind.lower().replace('_', ' ')}"
            raise BadInput(f"where: expected comparisons of columns with values, found {found}")
    if not columns:
        raise BadInput(f"where: expected an expression over the metadata's columns, found {text!r}")
    return Condition(text, tuple(columns), json.dumps(given["where_clause"], sort_keys=True))


def make_filter(condition: Condition, files: Sequence[MetadataFile], rows: int, kept: Path, *, progress: Progress = silent) -> Filter:
    """The bitmap of `condition` over the ids below `rows`; read from the folder `kept` where it was made before of the same files.

    It takes rows / 8 bytes there and is mapped from there: the first report of "filter" has them as `bytes`, and as `of` how many bytes
    all that are kept may take (the least recently used go first). Of the metadata only the columns that are named are read. Raises
    BadInput for a column that is not there, with those that are, and for types that cannot be compared.
    """
    facts = (part for file in files for part in (file.url, str(file.start), str(file.rows), stamp_of(file.url)))
    place = kept / f"{digest_of_parts(condition.form, str(rows), *facts)[:32]}.npy"
    while True:
        if not place.exists():
            _make(condition, files, rows, place, progress)
            _forget(kept, place)
        try:
            os.utime(place)
            mapped: UInt8 = np.load(place, mmap_mode="c", allow_pickle=False)  # compiled code would be compiled again for a read-only array
            break
        except FileNotFoundError:  # another search needed the room in this moment
            continue
    bits_of = mapped.view(np.ndarray)
    return Filter(condition, bits_of, int(np.bitwise_count(bits_of).sum(dtype=np.int64)))


def _make(condition: Condition, files: Sequence[MetadataFile], rows: int, place: Path, progress: Progress) -> None:
    progress("filter", 0, rows, bytes=-(-rows // 8), of=KEPT_BYTES)
    bits = np.zeros(-(-rows // 8), np.uint8)
    for file in files:
        for first, matches in _matches(condition, file):
            _set(bits, first, matches[: max(0, rows - first)])
            progress("filter", min(first + len(matches), rows), rows)
    with atomic_file(place) as draft, draft.open("wb") as stream:
        np.save(stream, bits)


def _forget(kept: Path, latest: Path) -> None:
    """Delete what was not used for longest until the rest, `latest` in any case, is within KEPT_BYTES. Who has one mapped keeps it."""
    others = []
    for file in kept.glob("*.npy"):
        with suppress(FileNotFoundError):  # another search may be at the same
            others += [(file.stat(), file)] if file != latest else []
    room = KEPT_BYTES - latest.stat().st_size
    for facts, file in sorted(others, key=lambda other: other[0].st_mtime_ns, reverse=True):
        room -= facts.st_size
        if room < 0:
            file.unlink(missing_ok=True)


def _set(bits: UInt8, first: int, matches: Bool) -> None:
    """Set the bits from `first` on that `matches` (n,) says."""
    before = np.zeros(first % 8, np.bool_)
    packed = np.packbits(np.concatenate([before, matches]), bitorder="little")
    bits[first // 8 : first // 8 + len(packed)] |= packed


def _matches(condition: Condition, file: MetadataFile) -> Iterator[tuple[int, Any]]:
    """(first id, which rows match) of one file, piece by piece."""
    import duckdb

    with as_path(file.url).open("rb") as stream, pq.ParquetFile(stream) as parquet, _engine() as engine:
        names = {name.lower(): name for name in parquet.schema_arrow.names}
        if unknown := [name for name in condition.columns if name.lower() not in names]:
            raise BadInput(f"where: no column {unknown[0]!r}; there are {', '.join(sorted(names.values(), key=str.lower))}")
        at = file.start
        for batch in parquet.iter_batches(BATCH_ROWS, columns=[names[name.lower()] for name in condition.columns], use_threads=False):
            engine.register("metadata", pa.Table.from_batches([batch]))
            try:
                found: Any = engine.sql(f"SELECT coalesce(({condition.text}\n), false)::BOOLEAN AS matches FROM metadata").to_arrow_table()
            except duckdb.Error as error:
                raise BadInput(f"where: {' '.join(str(error).split())[:200]}") from error
            yield at, found["matches"].to_numpy()
            at += batch.num_rows


def _engine() -> duckdb.DuckDBPyConnection:
    """Without files, without the network, without the variables of Python around it, and no way to change that."""
    import duckdb  # here, so that a search without a condition does not load it

    settings: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "threads": "1",
        "python_enable_replacements": "false",
        "preserve_insertion_order": "true",
    }
    engine = duckdb.connect(":memory:", config=settings)
    engine.execute("SET lock_configuration = true")
    return engine


def _parsed(engine: duckdb.DuckDBPyConnection, expression: str) -> dict[str, Any]:
    """The one statement that ``… WHERE expression`` parses to."""
    row: Any = engine.execute("SELECT json_serialize_sql(?)", [f"SELECT * FROM metadata WHERE ({expression}\n)"]).fetchone()
    parsed = json.loads(row[0])
    if parsed["error"]:
        raise BadInput(f"where: {' '.join(str(parsed.get('error_message')).split())[:200]} in {expression!r}")
    if len(parsed["statements"]) != 1:
        raise BadInput(f"where: expected one expression, found {len(parsed['statements'])} statements")
    node: dict[str, Any] = _without_places(parsed["statements"][0]["node"])
    return node


def _without_places(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _without_places(value) for key, value in part.items() if not key.startswith("query_location")}
    return [_without_places(value) for value in part] if isinstance(part, list) else part


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Every expression inside an expression, itself included."""
    if isinstance(part, dict):
        if "class" in part:
            yield part
        for value in part.values():
            yield from _parts(value)
    elif isinstance(part, list):
        for value in part:
            yield from _parts(value)
