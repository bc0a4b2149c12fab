"""Sizes by arithmetic, times by rates, and what more machines do and do not bring."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from paired_index_assets.errors import BadInput
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.neighbors.assigning import Assigner
from paired_index_assets.neighbors.ways import DENSE, Way
from paired_index_assets.planning.plan import PAIRS, plan_build
from paired_index_assets.planning.rates import ASSIGNED_LISTS, Rates, measure_rates
from paired_index_assets.planning.scaling import scale

LAION = plan_build(Catalog.laion2b(), nlist=131_072)


def test_the_plan_for_laion_has_the_design_s_sizes():
    assert LAION.input_bytes == 3_333_638_324_480
    assert LAION.fetch_files == 2298
    assert LAION.waiting_shards == 14
    assert 14.5e9 < LAION.largest_shard_bytes < 15.5e9
    assert 0.86e12 < LAION.shard_bytes < 0.88e12
    assert LAION.assign_flops == 2 * 2_170_337_258 * 131_072 * 768
    assert LAION.build_memory_bytes < 18e9
    landed = plan_build(Catalog.laion2b(), nlist=131_072, landed=[file.name for file in Catalog.laion2b()])
    assert (landed.fetch_bytes, landed.missing_files) == (0, 0)


def test_more_machines_are_faster_until_there_is_one_a_shard():
    totals = [scale(LAION, Rates(), nodes).total_s for nodes in (1, 2, 8, 29, 58)]
    assert totals == sorted(totals, reverse=True)
    assert scale(LAION, Rates(), 1).total_s / scale(LAION, Rates(), 58).total_s == pytest.approx(58)
    assert scale(LAION, Rates(), 64).total_s == scale(LAION, Rates(), 58).total_s
    assert scale(LAION, Rates(), 57).total_s == scale(LAION, Rates(), 29).total_s  # two turns, for one shard or for 29


def test_the_slowest_resource_binds():
    slow = dataclasses.replace
    assert scale(LAION, Rates(), 1).binds == "processor"
    assert scale(LAION, slow(Rates(), fetch_bytes=1e6), 8, gpus_per_node=8).binds == "network"
    assert scale(LAION, slow(Rates(), disk_bytes=1e6), 8, gpus_per_node=8).binds == "disk"
    assert scale(LAION, slow(Rates(), gpu_flops=1e12), 1, gpus_per_node=8).binds == "GPU"
    alone, eight = (scale(LAION, Rates(), 1, gpus_per_node=g) for g in (1, 8))
    assert alone.seconds["network"] == eight.seconds["network"]  # one line, however many GPUs
    assert eight.seconds["GPU"] == pytest.approx(alone.seconds["GPU"] * 8 / 58)  # 58 shards on 8 GPUs: eight turns


def test_given_rates_are_not_called_measured(tmp_path):
    rates = measure_rates(tmp_path, 16)
    assert rates.measured == {"flops", "pairing_flops", "gemm_flops", "encode_rows", "truth_rows", "probe_s", "disk_bytes", "file_s"}
    assert min(rates.flops, rates.pairing_flops, rates.gemm_flops, rates.encode_rows, rates.disk_bytes, rates.file_s) > 0
    assert list(tmp_path.iterdir()) == []
    given = rates.with_given(disk_gbps=8)
    assert given.disk_bytes == 1e9
    assert given.measured == {"flops", "pairing_flops", "gemm_flops", "encode_rows", "truth_rows", "probe_s", "file_s"}


def test_the_rate_of_assignment_is_that_of_the_way_a_probe_chooses(monkeypatch, tmp_path):
    way = Way(8, 63)

    def decided(assigner, vectors, centroids, before=None):
        assigner.costs = {DENSE: 4e-6, way: 2e-6}  # CPU seconds a row
        return way

    monkeypatch.setattr(Assigner, "decide", decided)
    rates = measure_rates(tmp_path, 16)
    assert rates.assigned_by == str(way)
    assert rates.flops == 2 * ASSIGNED_LISTS * 16 * torch.get_num_threads() / 2e-6


@pytest.mark.parametrize(("load", "cores", "busy"), [(0.0, 2, False), (0.4, 2, False), (1.5, 2, True), (1.5, 64, False)])
def test_a_busy_machine_is_called_busy(monkeypatch, tmp_path, load, cores, busy):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert measure_rates(tmp_path, 16).busy is busy


def test_pairs_and_training_are_done_once_before_the_shards_and_count_in_the_whole():
    rates = Rates()
    assert LAION.pairing_flops == 2 * PAIRS * PAIRS * 768
    assert LAION.training_flops == 2 * 2 * 10 * PAIRS * 131_072 * 768
    for nodes in (1, 58):
        scaled = scale(LAION, rates, nodes)
        assert scaled.pairing_s == LAION.pairing_flops / rates.pairing_flops
        contest = LAION.lesson_flops / rates.pairing_flops + LAION.routing_flops / rates.gemm_flops + LAION.trial_rows / rates.encode_rows
        assert scaled.training_s == LAION.training_flops / rates.flops + contest
        assert scaled.whole_s == scaled.pairing_s + scaled.training_s + scaled.total_s


def test_putting_shards_together_comes_after_what_overlaps_and_grows_with_bytes_and_files():
    alone = scale(LAION, Rates(), 1)
    assert alone.total_s == alone.seconds["processor"] + alone.assembly_s + 58 * (Rates().run_s + Rates().probe_s)
    assert alone.assembly_s == pytest.approx(LAION.shard_bytes / Rates().assemble_bytes + 2 * 2314 * Rates().file_s)
    assert scale(LAION, Rates(), 58).assembly_s == pytest.approx(alone.assembly_s / 58)


def test_every_number_of_lists_that_is_trained_costs_its_iterations_on_no_more_rows_than_it_takes():
    both = plan_build(Catalog.laion2b(), nlist=64, pairs=1_000_000, trained=[16, 64])
    assert both.training_flops == 2 * 2 * 10 * 768 * 256 * (16 * 16 + 64 * 64)
    assert both.routing_flops == 6 * 8 * 2 * 100_000 * (16 + 64) * 768
    assert both.disk_bytes == both.input_bytes + both.segment_bytes + both.shard_bytes + both.packed_bytes
    assert both.packed_bytes == both.shard_bytes - 57 * 64 * 768 * 4  # one quantizer, not 58


def test_few_pairs_take_less_of_the_contest_and_less_memory_than_many():
    few, many = (plan_build(Catalog.laion2b(), nlist=4096, pairs=pairs) for pairs in (65_681, 262_673))
    assert (few.trial_rows, few.lesson_flops) == (many.trial_rows, 2 * 65_681**2 * 768)
    assert 6e9 < few.train_memory_bytes < many.train_memory_bytes < 12e9
    assert plan_build(Catalog.laion2b(), nlist=4096, pairs=1_000).train_memory_bytes < 0.5e9


def test_a_place_that_cannot_be_written_to_is_named():
    with pytest.raises(BadInput, match="/proc: cannot be written to"):
        measure_rates(Path("/proc"), 16)


def test_the_plan_is_printed_for_machines_and_refuses_what_is_no_number_of_them(paired_index, tmp_path):
    said = paired_index("catalog", "plan", "--root", tmp_path / "none/yet", "--nodes", "1,64", "--no-measure", COLUMNS="160").stdout
    assert "2,170,337,258" in said
    assert "processor" in said
    assert "measured here" not in said
    for row in ("524,288 in two levels", "pairs to train on", "disk in all", "pairing", "training", " days"):
        assert row in said
    assert not list(tmp_path.iterdir())
    one_level = paired_index("catalog", "plan", "--no-measure", "--pairs", 1_000_000, COLUMNS="160").stdout
    assert "131,072 in one level" in one_level  # of so few captions 524,288 lists would have two each
    refused = paired_index("catalog", "plan", "--nodes", "1,none", check=False)
    assert refused.returncode == 1
    assert "--nodes 1,none: expected numbers" in refused.stderr


def test_a_plan_says_what_was_measured_and_how_lists_are_found_here(paired_index, tmp_path):
    np.save(tmp_path / "img_emb_0.npy", np.ones((10, 16), np.float16))
    paired_index("catalog", "scan", tmp_path, "--out", tmp_path / "c.parquet", "--shards", 1)
    said = paired_index("catalog", "plan", tmp_path / "c.parquet", "--root", tmp_path / "none/yet", "--disk-gbps", 8, COLUMNS="160").stdout
    assert "measured here" in said
    assert "GFLOP/s, dense" in said  # so few dimensions are multiplied sooner than ruled out
    assert not (tmp_path / "none").exists()
