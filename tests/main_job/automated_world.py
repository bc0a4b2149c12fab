"""A build and a Dagster instance that has seen nothing of it yet, for tests of what automation asks for."""

import datetime as dt
import os
import shutil
from contextlib import contextmanager

import dagster as dg
import numpy as np
import pytest
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

import paired_index_assets.shards.build
from paired_index_assets.assets.code_location import assemble
from paired_index_assets.assets.landing import landed_embeddings_sensor
from paired_index_assets.assets.partitions import every, shard_key
from paired_index_assets.assets.resources import ProgressLog, build_resource
from paired_index_assets.assets.shards import SHARD_INDEX, nightly_rebuild
from paired_index_assets.assets.training import trained_index
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.settings import load_settings

SHARDS = 6


class World:
    """A trained build of six shards with an empty landing folder, and a Dagster instance that has seen nothing yet."""

    def __init__(self, folder, built, instance):
        self.root, self.landing, self.instance = folder / "root", folder / "landing", instance
        shutil.copytree(built, self.root, ignore=shutil.ignore_patterns("dagster", "shards", "generations", "report", "manifest.parquet"))
        self.source = built / "embeddings/img_emb"
        self.landing.mkdir()
        self.settings = load_settings(root=str(self.root), landing=str(self.landing), shards=SHARDS)
        self.catalog = Catalog.load(self.root / "catalog.parquet")
        self.defs = assemble(self.settings, ProgressLog())
        self.job = self.defs.resolve_implicit_global_asset_job_def()
        self.sensor_cursor = None
        self.automation_cursor = None

    def land(self, shard, files=None):
        for file in self.catalog.files(shard)[:files]:
            shutil.copyfile(self.source / file.name, self.landing / file.name)

    def land_everything(self):
        """The index is trained, and the files of every shard lie there, seen unchanged by two ticks of the sensor."""
        self.report_trained("a")
        for shard in range(SHARDS):
            self.land(shard)
        self.tick(), self.tick()

    def change(self, shard):
        """One file of a shard arrives anew with other vectors."""
        path = self.landing / self.catalog.files(shard)[0].name
        vectors = np.load(path)
        np.save(path, vectors[::-1].copy())
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000))

    def tick(self):
        """One tick of the sensor; the partitions it reports."""
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.sensor_cursor, resources={"build": build_resource(self.settings)}
        )
        result = landed_embeddings_sensor(30)(context)
        if isinstance(result, dg.SkipReason):
            self.sensor_cursor = context.cursor
            return []
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        self.sensor_cursor = result.cursor
        return [(type(event).__name__, event.partition) for event in result.asset_events]

    def report_trained(self, version):
        self.instance.report_runless_asset_event(dg.AssetMaterialization(trained_index.key, tags={"dagster/data_version": version}))

    def asked(self, ticks=3):
        """What a few ticks of automation ask for, sorted: partitions, and assets without any; what is asked for twice is there twice."""
        names = []
        for _ in range(ticks):
            found = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.automation_cursor)
            self.automation_cursor = found.cursor
            for key in self.defs.resolve_asset_graph().materializable_asset_keys:
                names += [partition or key.to_user_string() for partition in found.get_requested_partitions(key)]
        return sorted(names)

    def requested(self, ticks=3):
        """The shards among what is `asked`."""
        return [name for name in self.asked(ticks) if name.startswith("shard_")]

    @contextmanager
    def reading_the_log_before(self):
        """A tick that has read the event log's end; what is reported within arrives before the tick looks at the assets."""
        storage = self.instance.event_log_storage
        end = storage.get_maximum_record_id()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "get_maximum_record_id", lambda: end)
            yield

    def build(self, shard, meanwhile=None):
        """A run of one shard; `meanwhile` is called when it has read its files, and before it ends."""
        with pytest.MonkeyPatch.context() as patch:
            if meanwhile is not None:
                real = paired_index_assets.shards.build.build_shard

                def then_meanwhile(*arguments, **named):
                    made = real(*arguments, **named)
                    meanwhile()
                    return made

                patch.setattr(paired_index_assets.shards.build, "build_shard", then_meanwhile)
            return self.make(SHARD_INDEX, partition=shard_key(shard))

    def build_all(self):
        """One run of all shards."""
        return self.make(SHARD_INDEX, tags=every(self.defs.resolve_asset_graph().get(SHARD_INDEX).partitions_def))

    def make(self, *assets, partition=None, tags=None):
        """A run of some assets."""
        keys = [dg.AssetKey.from_coercible(asset) for asset in assets]
        return self.job.execute_in_process(
            instance=self.instance, asset_selection=keys, partition_key=partition, tags=tags, raise_on_error=False
        )

    def latest(self, shard):
        """The newest materialization of a shard: (tags, metadata)."""
        asked = dg.AssetRecordsFilter(asset_key=SHARD_INDEX, asset_partitions=[shard_key(shard)])
        (record,) = self.instance.fetch_materializations(asked, limit=1).records
        return record.event_log_entry.tags, record.asset_materialization.metadata

    @contextmanager
    def building(self, shard):
        """A run for the shard is under way: planned and started, not finished."""
        subset = self.job.get_subset(asset_selection={SHARD_INDEX})
        run = self.instance.create_run_for_job(
            subset, tags={"dagster/partition": shard_key(shard)}, asset_selection=frozenset({SHARD_INDEX})
        )
        planned = DagsterEvent.build_asset_materialization_planned_event(
            run.job_name, "shard_index", AssetMaterializationPlannedData(SHARD_INDEX, partition=shard_key(shard))
        )
        self.instance.report_dagster_event(planned, run.run_id)
        yield
        self.instance.report_run_canceled(run)

    def stale(self):
        with dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=dt.datetime(2026, 1, 2, 2, tzinfo=dt.UTC),
            resources={"build": build_resource(self.settings)},
        ) as context:
            found = nightly_rebuild(context)
            return [] if isinstance(found, dg.SkipReason) else [request.partition_key for request in found]
