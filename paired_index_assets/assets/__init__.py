"""The assets, their checks, and when they run: read, call the core, write, report."""

import warnings

# Checks by partition are in preview in this release of Dagster, and wanted: each shard shows the result of its own.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`")  # how many shards one run of a backfill builds
warnings.filterwarnings("ignore", message="Parameter `use_user_code_server`")  # for a condition of our own, see automation.py
warnings.filterwarnings("ignore", message="Specifying a partitions_def on an AssetCheckSpec")
