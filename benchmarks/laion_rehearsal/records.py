"""What Dagster's own records say of a rehearsal, and what they take: read from its SQLite files, which are there when nothing runs."""

from __future__ import annotations

import json
import sqlite3
import statistics
from dataclasses import dataclass
from pathlib import Path

from laion_rehearsal.watching import size_of


@dataclass(frozen=True)
class Records:
    """`runs`: (shard or nothing, status, seconds queued, seconds from start to end) of each; `ticks`: sensor -> seconds of each tick."""

    runs: list[tuple[str, str, float, float]]
    ticks: dict[str, list[float]]
    event_rows: int
    megabytes: dict[str, float]  # by folder of DAGSTER_HOME

    @classmethod
    def of(cls, home: Path) -> Records:
        history = home / "history"
        runs = [
            (str(shard), str(status), float(start or made) - float(made), float(end) - float(start) if start and end else 0.0)
            for shard, status, made, start, end in _rows(
                history / "runs.db",
                "select coalesce(partition, ''), status, (julianday(create_timestamp) - 2440587.5) * 86400, start_time, end_time from runs",
            )
        ]
        ticks: dict[str, list[float]] = {}
        for (body,) in _rows(home / "schedules" / "schedules.db", "select tick_body from job_ticks"):
            data = json.loads(body)
            if data.get("end_timestamp"):
                ticks.setdefault(str(data["job_name"]), []).append(data["end_timestamp"] - data["timestamp"])
        rows = sum(count for file in (history / "runs").glob("*.db") for (count,) in _rows(file, "select count(*) from event_logs"))
        return cls(runs, ticks, rows, {place.name: size_of(place) / 1e6 for place in sorted(home.iterdir()) if place.is_dir()})

    def report(self) -> list[str]:
        took = sorted(run[3] for run in self.runs if run[0] and run[1] == "SUCCESS") or [0.0]
        per_thousand = 1000 / max(1, len(self.runs))
        by_status: dict[str, int] = {}
        for run in self.runs:
            by_status[run[1]] = by_status.get(run[1], 0) + 1
        said = [
            f"{len(self.runs)} runs of Dagster: " + ", ".join(f"{count} {status}" for status, count in sorted(by_status.items())),
            f"a run of a shard takes {statistics.median(took):.1f} s from start to end, its turn waited for, the median of {len(took)}; the longest {took[-1]:.0f} s",
            f"{self.event_rows:,} rows of the event log: {self.event_rows * per_thousand:,.0f} a thousand runs",
            f"{sum(self.megabytes.values()):,.1f} MB of records ({', '.join(f'{name} {mb:,.1f}' for name, mb in self.megabytes.items())}): "
            f"{sum(self.megabytes.values()) * per_thousand:,.0f} MB a thousand runs",
        ]
        for name, seconds in sorted(self.ticks.items()):
            ordered = sorted(seconds)
            said.append(
                f"ticks of {name}: {len(ordered)}, median {statistics.median(ordered):.2f} s, "
                f"99 of 100 within {ordered[int(0.99 * (len(ordered) - 1))]:.2f} s, the longest {ordered[-1]:.2f} s"
            )
        return said


def _rows(file: Path, query: str) -> list[tuple]:  # type: ignore[type-arg]  # of whatever columns were asked for
    if not file.exists():
        return []
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        return database.execute(query).fetchall()
