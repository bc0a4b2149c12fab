"""Sizes by arithmetic, times by rates, and what more machines do and do not bring."""

import dataclasses
from pathlib import Path

import pytest

from paired_index_assets.errors import BadInput
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.planning.plan import plan_build
from paired_index_assets.planning.rates import Rates, measure_rates
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
    assert rates.measured == {"flops", "encode_rows", "disk_bytes"}
    assert min(rates.flops, rates.encode_rows, rates.disk_bytes) > 0
    assert list(tmp_path.iterdir()) == []
    given = rates.with_given(disk_gbps=8)
    assert given.disk_bytes == 1e9
    assert given.measured == {"flops", "encode_rows"}


def test_a_place_that_cannot_be_written_to_is_named():
    with pytest.raises(BadInput, match="/proc: cannot be written to"):
        measure_rates(Path("/proc"), 16)


def test_the_plan_is_printed_for_machines_and_refuses_what_is_no_number_of_them(paired_index, tmp_path):
    said = paired_index("catalog", "plan", "--root", tmp_path / "none/yet", "--nodes", "1,64", "--disk-gbps", 8, COLUMNS="160").stdout
    assert "2,170,337,258" in said
    assert "measured here" in said
    assert "processor" in said
    assert not list(tmp_path.iterdir())
    refused = paired_index("catalog", "plan", "--nodes", "1,none", check=False)
    assert refused.returncode == 1
    assert "--nodes 1,none: expected numbers" in refused.stderr
