"""The recall report: what was measured, as JSON for programs, Markdown for people and a picture for both.

This module owns the format of `report/recall.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact
from paired_index_assets.files.storage import as_path, read_json
from paired_index_assets.quality.codes import CodeMeasurement
from paired_index_assets.quality.intervals import Interval, mean_intervals
from paired_index_assets.quality.recall import Measurement, Setting, Subject
from paired_index_assets.quality.served import Served

SCHEMA = 3
NOT_MEASURED = "The shards on disk were not measured:"  # how the note begins that says why `served` is None

Recalls = dict[int, Interval]
"""k -> recall@k."""


@dataclass(frozen=True)
class Point:
    """One candidate at one setting. amount: lists, or a share of the images; scanned: mean share of the images that was scanned."""

    by: Literal["nprobe", "share", "all"]
    amount: float
    scanned: float
    probed: float
    coverage: Recalls
    product: Recalls | None
    reranked: Recalls | None

    @property
    def best(self) -> Recalls:
        return self.coverage if self.product is None else self.product


@dataclass(frozen=True)
class CandidateReport(Subject):
    points: list[Point]

    def at(self, *, nprobe: int | None = None, share: float | None = None) -> Point | None:
        """The point at this setting (neither: every list), or None if it was not measured."""
        by, amount = ("nprobe", nprobe) if nprobe is not None else ("share", share) if share is not None else ("all", 1)
        return next((p for p in self.points if p.by == by and p.amount == amount), None)

    def curve(self, by: Literal["nprobe", "share"]) -> list[Point]:
        return [p for p in self.points if p.by == by]


@dataclass(frozen=True)
class CodeReport:
    """Codes alone: every vector scored by its code. `reranked`: the exact order of the best 10 k by the codes."""

    codec: str
    bytes_per_vector: int
    recall: Recalls
    reranked: Recalls | None


@dataclass(frozen=True)
class Difference:
    """Mean of recall@k of `name` minus that of the baseline, query by query, of the product where both have codes, else of coverage."""

    name: str
    baseline: str
    of: Literal["coverage", "product"]
    k: int
    by: Literal["nprobe", "share", "all"]
    amount: float
    difference: Interval


@dataclass(frozen=True)
class RecallReport:
    """candidates: every method x levels of lists x codec built here; codes: every codec alone; peers: stock faiss on the same lists.

    facts: where the numbers come from (sets, sizes, seeds, encoder), for people. baseline: the candidate that differences are against.
    promoted: the candidate that the shards use. notes: sentences to print above the tables. served: what the shards on disk find; all
    else compares candidates in memory.
    """

    queries: int
    images: int
    ks: list[int]
    candidates: list[CandidateReport]
    codes: list[CodeReport] = field(default_factory=list)
    peers: list[CandidateReport] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    baseline: str | None = None
    promoted: str | None = None
    facts: dict[str, str | int | float | bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    served: Served | None = None
    seed: int = 0
    schema: int = SCHEMA

    def candidate(self, name: str) -> CandidateReport:
        for candidate in (*self.candidates, *self.peers):
            if candidate.name == name:
                return candidate
        raise BadInput(f"report: no candidate {name!r}; there are {', '.join(c.name for c in (*self.candidates, *self.peers))}")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: UPath | Path) -> RecallReport:
        """Raises MissingInput where there is no report, DamagedArtifact where it is not one of this schema."""
        path = as_path(folder) / "recall.json"
        content = read_json(path)
        found = content.get("schema") if isinstance(content, dict) else None
        if found != SCHEMA:
            raise DamagedArtifact(f"{path}: schema {found}, expected {SCHEMA}; make the report again")
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            raise DamagedArtifact(f"{path}: not a recall report ({error.error_count()} fields are wrong); make the report again") from error


def build_report(
    measurements: Sequence[Measurement],
    *,
    codes: Sequence[CodeMeasurement] = (),
    peers: Sequence[Measurement] = (),
    baseline: str | None = None,
    promoted: str | None = None,
    facts: dict[str, str | int | float | bool] | None = None,
    notes: Sequence[str] = (),
    served: Served | None = None,
    seed: int,
) -> RecallReport:
    """Means and bootstrap intervals of measurements on the same queries; differences of each to the measurement named `baseline`.

    Raises BadInput for no measurements, for equal names, or if they were not all measured on as many queries and images.
    """
    everything = [*measurements, *peers]
    names = [m.name for m in everything]
    of_one_set = {(m.images, m.scanned.shape[1]) for m in everything}
    if not measurements or len(set(names)) != len(names) or len(of_one_set) != 1:
        raise BadInput(f"report: measurements {names} of (images, queries) {sorted(of_one_set)}; expected different names and one set")
    ((images, queries),) = of_one_set
    against = next((m for m in measurements if m.name == baseline), None)
    if baseline is not None and against is None:
        raise BadInput(f"report: no measurement {baseline!r} to compare with; there are {', '.join(names)}")
    return RecallReport(
        queries=queries,
        images=images,
        ks=list(measurements[0].ks),
        candidates=[_candidate_report(m, seed) for m in measurements],
        codes=[_code_report(c, seed) for c in codes],
        peers=[_candidate_report(m, seed) for m in peers],
        differences=[] if against is None else [d for m in everything if m is not against for d in _differences(m, against, seed)],
        baseline=baseline,
        promoted=promoted,
        facts=dict(facts or {}),
        notes=list(notes),
        served=served,
        seed=seed,
    )


def _candidate_report(found: Measurement, seed: int) -> CandidateReport:
    def recalls(values: np.ndarray | None) -> list[Recalls | None]:
        if values is None:
            return [None] * len(found.settings)
        intervals = iter(mean_intervals(values.reshape(-1, values.shape[-1]), seed=seed))
        return [{k: next(intervals) for k in found.ks} for _ in found.settings]

    columns = zip(
        found.settings,
        found.scanned.mean(1) / max(found.images, 1),
        found.probed.mean(1),
        recalls(found.coverage),
        recalls(found.product),
        recalls(found.reranked),
        strict=True,
    )
    return CandidateReport(
        **{of.name: getattr(found, of.name) for of in fields(Subject)},
        points=[
            Point(setting.by, setting.amount, float(scanned), float(probed), coverage or {}, product, reranked)
            for setting, scanned, probed, coverage, product, reranked in columns
        ],
    )


def _code_report(found: CodeMeasurement, seed: int) -> CodeReport:
    recall = dict(zip(found.ks, mean_intervals(found.recall, seed=seed), strict=True))
    reranked = None if found.reranked is None else dict(zip(found.ks, mean_intervals(found.reranked, seed=seed), strict=True))
    return CodeReport(found.codec, found.bytes_per_vector, recall, reranked)


def _differences(found: Measurement, baseline: Measurement, seed: int) -> Iterable[Difference]:
    of: Literal["coverage", "product"] = "coverage" if found.product is None or baseline.product is None else "product"
    ours, theirs = found.values(of), baseline.values(of)
    if ours is None or theirs is None:
        return
    cells: list[tuple[Setting, int]] = [
        (setting, k) for setting in found.settings if setting in baseline.settings for k in found.ks if k in baseline.ks
    ]
    if not cells:
        return
    rows = [
        ours[found.settings.index(setting), found.ks.index(k)] - theirs[baseline.settings.index(setting), baseline.ks.index(k)]
        for setting, k in cells
    ]
    for (setting, k), interval in zip(cells, mean_intervals(np.stack(rows), seed=seed), strict=True):
        yield Difference(found.name, baseline.name, of, k, setting.by, setting.amount, interval)
