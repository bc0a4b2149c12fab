"""The same build on more machines: which resource binds, and how long the whole takes.

A shard is a run, and a run is on one node: N nodes take ceil(shards / N) turns, so that 64 nodes are no faster than 58 at 58 shards.
Within a node fetching, the disk, assignment and encoding overlap, so its time is that of the slowest; and then what each run takes to start, to
write its files for good and to put its shard together.
"""

from __future__ import annotations

from dataclasses import dataclass

from paired_index_assets.planning.plan import Plan
from paired_index_assets.planning.rates import Rates

FILES_KEPT = 2  # of each landed file: its segment, and the truth of its rows


@dataclass(frozen=True)
class Scaled:
    """Seconds of the busiest node, by resource; `total_s` of all shards, `whole_s` with what one machine does before: pairs and training."""

    nodes: int
    gpus_per_node: int
    seconds: dict[str, float]
    overhead_s: float
    assembly_s: float
    pairing_s: float
    training_s: float

    @property
    def binds(self) -> str:
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def total_s(self) -> float:
        return self.seconds[self.binds] + self.assembly_s + self.overhead_s

    @property
    def whole_s(self) -> float:
        return self.pairing_s + self.training_s + self.total_s


def scale(plan: Plan, rates: Rates, nodes: int, gpus_per_node: int = 0) -> Scaled:
    """The plan on `nodes` equal machines with a line and a disk each. With GPUs assignment and encoding are theirs, a run a GPU."""
    workers = nodes * max(1, gpus_per_node)
    turns = -(-plan.shards // workers)
    busiest_worker = turns / plan.shards
    busiest_node = min(1.0, -(-plan.shards // nodes) / plan.shards)
    disk = plan.fetch_bytes + plan.input_bytes + 2 * plan.segment_bytes + plan.shard_bytes  # segments are written, then read
    on_cores = plan.assign_flops / rates.flops + plan.rows / rates.encode_rows + plan.rows / rates.truth_rows
    seconds = {
        "network": busiest_node * plan.fetch_bytes / rates.fetch_bytes,
        "disk": busiest_node * disk / rates.disk_bytes,
        "processor": 0 if gpus_per_node else busiest_node * on_cores,
        "GPU": busiest_worker * (plan.assign_flops / rates.gpu_flops + plan.rows / rates.gpu_encode_rows if gpus_per_node else 0),
    }
    gpu = rates.gpu_flops if gpus_per_node else 0.0
    pairing, assignment, learning = gpu or rates.pairing_flops, gpu or rates.flops, gpu or rates.gemm_flops
    contest = plan.lesson_flops / pairing + plan.routing_flops / learning + plan.trial_rows / rates.encode_rows
    before = plan.pairing_flops / pairing, plan.training_flops / assignment + contest
    assembly = busiest_worker * (plan.shard_bytes / rates.assemble_bytes + FILES_KEPT * plan.files * rates.file_s)
    starts = turns * (rates.run_s + (0 if gpus_per_node else rates.probe_s))
    return Scaled(nodes, gpus_per_node, seconds, starts, assembly, *before)
