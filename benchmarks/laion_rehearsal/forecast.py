"""What the planner says before, beside what was measured after; and the rule by which a share is projected to the whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from laion_rehearsal.plan import Plan
from laion_rehearsal.watching import size_of
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.planning.plan import plan_build
from paired_index_assets.planning.rates import Rates, measure_rates
from paired_index_assets.planning.scaling import scale

LAION_LISTS = 131_072
WITHIN = 0.25


@dataclass(frozen=True)
class Forecast:
    """Of one generation of all shards on this machine."""

    segment_bytes: int
    shard_bytes: int
    memory_bytes: int
    work_s: float  # assignment and encoding, and putting shards together
    total_s: float  # with the starts of its runs
    cpu_s: float  # of all cores together: what a download or anything else beside it does not change
    rates: Rates

    @classmethod
    def of(cls, catalog: Catalog, nlist: int, rates: Rates) -> Forecast:
        made, landed = plan_build(catalog, nlist=nlist), [file.name for file in catalog]
        alone = scale(plan_build(catalog, nlist=nlist, landed=landed), rates, 1)
        return cls(
            made.segment_bytes,
            made.shard_bytes,
            made.build_memory_bytes,
            alone.seconds["processor"] + alone.assembly_s,
            alone.total_s,
            alone.seconds["processor"] * torch.get_num_threads() + alone.assembly_s + alone.overhead_s,
            rates,
        )

    @classmethod
    def of_plan(cls, plan: Plan) -> Forecast:
        plan.work.mkdir(parents=True, exist_ok=True)
        file_rows = plan.catalog.total_rows // len(plan.catalog)
        rates = measure_rates(plan.work, plan.geometry.d, plan.lists, file_rows=file_rows, captions=plan.held_out)
        return cls.of(plan.catalog, plan.lists, rates)


@dataclass(frozen=True)
class Took:
    """What was measured; 0 where it was not."""

    memory_mb: float  # of the largest process that builds shards
    work_s: float = 0.0  # an undisturbed build
    total_s: float = 0.0  # a generation, nothing landing meanwhile
    cpu_s: float = 0.0  # a generation while files land, without the download's own


def compared(forecast: Forecast, generation: Path, took: Took) -> list[str]:
    """A line a quantity that was measured: said before, found after, and whether they are within a quarter of each other."""
    rows = [
        ("segments, MB", forecast.segment_bytes / 1e6, size_of(generation / "segments") / 1e6),
        ("shards, MB", forecast.shard_bytes / 1e6, size_of(generation / "shards") / 1e6),
        ("memory of the largest process that builds shards, at most, MB", forecast.memory_bytes / 1e6, took.memory_mb),
        ("assignment, encoding and assembly of all rows, s", forecast.work_s, took.work_s),
        ("all shards through Dagster, one generation, s", forecast.total_s, took.total_s),
        ("all shards through Dagster as they land, CPU s of all cores", forecast.cpu_s, took.cpu_s),
    ]
    table = ["| quantity | forecast | measured | measured / forecast | within 25 % |", "|---|---|---|---|---|"]
    for name, said, found in rows:
        if not found:
            continue
        ratio = found / said if said else float("nan")
        held = ratio <= 1 + WITHIN if "at most" in name else abs(ratio - 1) <= WITHIN
        table.append(f"| {name} | {said:,.0f} | {found:,.0f} | {ratio:.2f} | {'yes' if held else '**no**'} |")
    return table


def projected(forecast: Forecast, work_ratio: float, start_s: float) -> list[str]:
    """To all of LAION-2B on one such machine: bytes by arithmetic; seconds of the work as the planner has them at its measured rates,
    times what the work took here beside its forecast; a start a shard, as measured. A projection, not a measurement."""
    whole = Forecast.of(Catalog.laion2b(), LAION_LISTS, forecast.rates)
    work = whole.work_s * work_ratio
    return [
        f"projected to 2,170,337,258 rows and {LAION_LISTS:,} lists on one such machine: {whole.segment_bytes / 1e12:.2f} TB of segments, "
        f"{whole.shard_bytes / 1e12:.2f} TB of shards (arithmetic); {work / 3600:,.0f} h of assignment, encoding and assembly "
        f"(the planner's {whole.work_s / 3600:,.0f} h times {work_ratio:.2f}), {58 * start_s / 60:,.0f} min of starts ({start_s:.1f} s each)",
    ]
