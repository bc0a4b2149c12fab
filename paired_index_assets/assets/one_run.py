"""Many partitions of an asset in one run, each recorded as soon as it is made, as a run of its own would record it.

Dagster records what a step returns once, at its end and with one data version for all partitions: a killed run would have made nothing,
and every run another version. So the partitions record themselves, and the step returns what its check says of all of them.
"""

from collections.abc import Callable

import dagster as dg

from paired_index_assets.assets.dagster_internals import version_tags
from paired_index_assets.errors import PairedIndexError, Transient


def one_after_another(
    context: dg.AssetExecutionContext, key: dg.AssetKey, make: Callable[[str], dg.MaterializeResult]
) -> dg.AssetCheckResult:
    """Make every partition of the run, and record each: its materialization, and what its one check says.

    A partition that fails does not keep the others from being made; the step fails at its end and names it. What is `Transient` ends the
    step at once, for the asset's policy to try again: what is made by then is found unchanged.
    """
    failed, checked = [], 0
    for partition in context.partition_keys:
        try:
            made = make(partition)
        except Transient:
            raise
        except PairedIndexError as error:
            context.log.error(f"{partition}: {error}")
            failed.append(f"{partition}: {error}")
            continue
        tags = version_tags(context, key, made.data_version)
        context.log_event(dg.AssetMaterialization(key, partition=partition, metadata=made.metadata, tags=tags))
        for result in made.check_results or ():
            (spec,) = context.assets_def.check_specs
            context.log_event(
                dg.AssetCheckEvaluation(
                    key,
                    spec.name,
                    result.passed,
                    metadata=result.metadata,
                    description=result.description,
                    blocking=spec.blocking,
                    partition=partition,
                )
            )
            checked += 1
            if not result.passed:
                failed.append(f"{partition}: {spec.name}: {result.description}")
    if failed:
        more = f"; and {len(failed) - 1} more, in the run's log" if len(failed) > 1 else ""
        raise dg.Failure(f"{len(failed)} of {len(context.partition_keys)} partitions failed: {failed[0]}{more}", allow_retries=False)
    return dg.AssetCheckResult(passed=True, description=f"{checked} partitions")
