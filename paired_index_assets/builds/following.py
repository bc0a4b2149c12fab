"""Takedown follows the row: after the data of a build changed, the removed rows are found again by what identifies them.

A row is, in this order: where it was, if its vector is the same there; wherever its vector is; what has its md5 or url; what has its key and
caption; what alone has its key, or its caption. Of several rows with one vector those with the row's key or caption; else all of them, as
all show what was taken down.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paired_index_assets.errors import BadInput
from paired_index_assets.files.npy import map_rows
from paired_index_assets.files.storage import digest_of_parts, is_local
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.landed import Listing, read_block, read_blocks
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Int64
from paired_index_assets.shards.matching import rows_with
from paired_index_assets.shards.removals import LOST, TRAITS, Traits, add_moved, read_log

Removal = dict[str, Any]  # a row of the log
SAID = 5  # rows named in a message


class DescribedFile(Protocol):
    """A Parquet file whose row 0 describes the global id `start`."""

    @property
    def url(self) -> str: ...

    @property
    def start(self) -> int: ...


class Described(Protocol):
    """The metadata of rows (builds.metadata.Metadata)."""

    @property
    def files(self) -> Sequence[DescribedFile]: ...

    @property
    def columns(self) -> Sequence[str]: ...

    def rows(self, ids: Sequence[int], columns: Sequence[str] | None = None) -> Sequence[Mapping[str, Any] | None]: ...


Describe = Callable[[Catalog], Described | None]


@dataclass(frozen=True)
class DataSet:
    """What the ids mean: files, where they are, and the metadata of their rows."""

    catalog: Catalog
    listing: Listing
    metadata: Described | None

    def traits(self, ids: Int64) -> Traits:
        """What identifies those rows, as far as their files and metadata are there."""
        files, inside = self.catalog.file_of(ids)
        names = [self.catalog.all_files[file].name for file in files.tolist()]
        found: dict[str, list[Any]] = {"file": names, "file_row": inside.tolist()}
        facts = self.metadata.rows(ids.tolist(), ["key", "url", "md5", "caption"]) if self.metadata is not None else [None] * len(ids)
        for name in ("key", "url", "md5"):
            values = [(row or {}).get(name) for row in facts]
            found[name] = [None if value is None else str(value) for value in values]
        found["caption"] = [_text_digest((row or {}).get("caption")) for row in facts]
        found["vector"] = [None] * len(ids)
        for number in np.unique(files).tolist():
            at = np.flatnonzero(files == number)
            for place, digest in zip(at.tolist(), self._vectors(self.catalog.all_files[number], inside[at].tolist()), strict=True):
                found["vector"][place] = digest
        return found

    def _vectors(self, file: CatalogFile, rows: Sequence[int]) -> list[str | None]:
        """Digests of some rows of a file, None where it is not there."""
        landed = self.listing.get(file.name)
        if landed is None or landed.size != file.bytes:
            return [None] * len(rows)
        if is_local(landed.path):
            mapped = map_rows(Path(landed.path.path))
            return [vector_digest(mapped[row]) for row in rows]
        ones = (replace(file, offset=row, start_row=0, rows=1) for row in rows)
        return [vector_digest(read_block(one, landed.path).vectors[0]) for one in ones]

    def vectors(self, progress: Progress) -> Iterator[tuple[int, str | None]]:
        """(id, digest) of every row that is there."""
        for done, file in enumerate(self.catalog, start=1):
            landed = self.listing.get(file.name)
            if landed is not None and landed.size == file.bytes:
                for block in read_blocks(file, landed.path):
                    for at, vector in enumerate(block.vectors):
                        yield block.start_row + at, vector_digest(vector)
            progress("look for rows taken down", done, len(self.catalog))


def vector_digest(vector: npt.NDArray[Any]) -> str | None:
    """Of a vector (d,) as float16, so that it is the same in both widths; None for zeros, which many rows are."""
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(vector, dtype="<f2")
    return hashlib.sha256(half.tobytes()).hexdigest()[:32] if half.any() else None


def follow(
    root: BuildRoot,
    catalog: Catalog,
    before: Catalog | None,
    data_set: Callable[[], DataSet],
    *,
    allow_lost: bool = False,
    progress: Progress = silent,
) -> Catalog:
    """`catalog` under the name of its `data_set`, in which every row that was ever removed is logged under its id there.

    `before` is the catalog the build had. Where all rows are where they were, that data set's name stays. Raises BadInput naming removed
    rows that are not found, unless `allow_lost`: then they are logged as LOST, and looked for again when the data change again.
    """
    name = before.data_set if before is not None else ""
    removals = _latest(read_log(root).to_pylist())
    if not removals:
        return catalog.of_data_set(name)
    found = data_set()
    places = _places(removals, found, before, progress)
    lost = [removal for removal, ids in zip(removals, places, strict=True) if not ids]
    news = [removal for removal in lost if removal["id"] != LOST]
    if news and not allow_lost:
        named = "; ".join(_described(removal) for removal in news[:SAID])
        raise BadInput(
            f"{root.removed}: {len(news)} of {len(removals)} rows that were taken down are not found in the data of this build ({named}"
            f"{'; ...' if len(news) > SAID else ''}); give the data that has them, or, if they are gone from it, --allow-lost-takedowns"
        )
    at_home = before is not None and all(
        removal["data_set"] == name and (ids or [LOST]) == [removal["id"]] for removal, ids in zip(removals, places, strict=True)
    )
    if at_home:
        return catalog.of_data_set(name)
    files = [f"{file.name} {file.start_row} {file.rows}" for file in catalog]
    moves = [f"{removal['removal']} {ids}" for removal, ids in zip(removals, places, strict=True)]
    name = digest_of_parts(name, str(len(files)), *files, *moves)[:16]
    add_moved(root, list(_moved(removals, places, found, name)), datetime.now(UTC))
    return catalog.of_data_set(name)


def _latest(log: Sequence[Removal]) -> list[Removal]:
    """Each removal as it was last logged, under all ids it had then."""
    last = {removal["removal"]: removal["data_set"] for removal in log}
    return [removal for removal in log if last[removal["removal"]] == removal["data_set"]]


def _moved(removals: Sequence[Removal], places: Sequence[list[int]], found: DataSet, name: str) -> Iterator[Removal]:
    traits = _by_row(found, [row for ids in places for row in ids])
    for removal, ids in zip(removals, places, strict=True):
        if not ids:
            yield removal | {"id": LOST, "data_set": name}
        for row in ids:
            known = {trait: value for trait, value in traits[row].items() if value is not None}
            yield removal | known | {"id": row, "data_set": name}


def _by_row(found: DataSet, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """row -> its traits, all looked up at once."""
    ids = np.unique(np.array(rows, np.int64))
    if not len(ids):
        return {}
    traits = found.traits(ids)
    return {row: {trait: traits[trait][at] for trait in TRAITS.names} for at, row in enumerate(ids.tolist())}


def _places(removals: Sequence[Removal], found: DataSet, before: Catalog | None, progress: Progress) -> list[list[int]]:
    """The ids of each removal in the data that were found; none where it is not in them."""
    places: list[list[int]] = [[] for _ in removals]
    before_now = list(_where_they_were(removals, found, before))
    traits = _by_row(found, [row for row in before_now if row is not None])
    for at, (removal, row) in enumerate(zip(removals, before_now, strict=True)):
        if row is not None and _is_it(removal, traits[row]):
            places[at] = [row]
    same = before is not None and before.table.equals(found.catalog.table)  # then what was lost still is

    def left() -> list[int]:
        return [at for at, removal in enumerate(removals) if not places[at] and not (same and removal["id"] == LOST)]

    if left():
        for at, ids in _by_vector(removals, left(), found, progress).items():
            places[at] = ids
    if left() and found.metadata is not None:
        for at, ids in _by_metadata(removals, left(), found.metadata, progress).items():
            places[at] = ids
    return places


def _where_they_were(removals: Sequence[Removal], found: DataSet, before: Catalog | None) -> Iterator[int | None]:
    """The id of the row at the same place of a file of the same name."""
    for removal in removals:
        file, row = removal["file"], removal["file_row"]
        if file is None and before is not None and 0 <= removal["id"] < before.total_rows:  # of a log that did not say
            number, inside = before.file_of(np.array([removal["id"]], np.int64))
            file, row = before.all_files[int(number[0])].name, int(inside[0])
        slices = found.catalog.by_name.get(file, []) if file is not None else []
        yield next((part.start_row + row - part.offset for part in slices if part.offset <= row < part.offset + part.rows), None)


def _is_it(removal: Removal, traits: Mapping[str, Any]) -> bool:
    """Whether the row with those traits is the removed one, by its vector or, where that is not known, by nothing that contradicts it."""
    known = [(removal[name], traits[name]) for name in ("vector", "md5", "url", "key", "caption")]
    mine, theirs = known[0]
    if mine is not None and theirs is not None:
        return bool(mine == theirs)
    return all(mine == theirs for mine, theirs in known[1:] if mine is not None and theirs is not None)


def _by_vector(removals: Sequence[Removal], left: Sequence[int], found: DataSet, progress: Progress) -> dict[int, list[int]]:
    wanted = {removals[at]["vector"] for at in left} - {None}
    if not wanted:
        return {}
    rows: dict[str, list[int]] = {}
    for row, digest in found.vectors(progress):
        if digest is not None and digest in wanted:
            rows.setdefault(digest, []).append(row)
    return {at: _narrowed(removals[at], rows[removals[at]["vector"]], found) for at in left if removals[at]["vector"] in rows}


def _narrowed(removal: Removal, rows: list[int], found: DataSet) -> list[int]:
    if len(rows) == 1:
        return rows
    traits = found.traits(np.array(rows, np.int64))
    for name in ("key", "caption"):
        if removal[name] is not None and (same := [row for row, value in zip(rows, traits[name], strict=True) if value == removal[name]]):
            return same
    return rows


def _by_metadata(removals: Sequence[Removal], left: Sequence[int], metadata: Described, progress: Progress) -> dict[int, list[int]]:
    files = [(file.url, file.start) for file in metadata.files]
    columns = set(metadata.columns)

    def rows_by(name: str) -> dict[str, list[int]]:
        wanted = {removals[at][name] for at in left} - {None}
        if not wanted or name not in columns:
            return {}
        return rows_with(files, name, wanted, spelling=_text_digest if name == "caption" else None, progress=progress)

    by = {name: rows_by(name) for name in ("md5", "url", "key", "caption")}
    found: dict[int, list[int]] = {}
    for at in left:
        rows = {name: by[name].get(removals[at][name], []) for name in by}
        both = sorted(set(rows["key"]) & set(rows["caption"]))
        alone = next((rows[name] for name in ("key", "caption") if len(rows[name]) == 1 and not _is_number(name, removals[at])), [])
        found[at] = rows["md5"] or rows["url"] or both or alone
    return found


def _is_number(name: str, removal: Removal) -> bool:
    """A key that only counts rows says nothing of what is in them."""
    return name == "key" and str(removal["key"]).isdigit()


def _text_digest(text: Any) -> str | None:
    return None if text is None or text == "" else digest_of_parts(str(text))[:16]


def _described(removal: Removal) -> str:
    name = removal["url"] or removal["key"] or removal["md5"]
    return f"{name}, once id {removal['id']}" if name else f"once id {removal['id']}"
