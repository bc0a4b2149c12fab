"""When things are rebuilt by themselves.

Not `eager()` and not `.since_last_handled()`: those forget files that land while their shard is being built, because the build's own
materialization counts as handling them. Here only a request clears a trigger, and never a trigger of the same tick.

And a request waits for a tick on which no trigger fires. A tick reads the event log's end first and the assets after it, so an event that
arrives between the two fires on this tick and again on the next; a request on the first would be made twice.

What a trigger asks for may have been made meanwhile, by a person's "Materialize all" say. So what is requested is only what was made from
other data than lie there now (`MadeFromOtherData`); and an input that was made again, to the same data version, triggers nothing.
"""

import dagster as dg

from paired_index_assets.assets.dagster_internals import CODE_VERSION_TAG, changed_since, input_event, latest_tags

_AC = dg.AutomationCondition


class MadeFromOtherData(dg.AutomationCondition[dg.AssetKey]):
    """Never made, or made by another code version, or while an input had another data version: what Dagster calls stale, but told for any
    number of partitions, and of what there is something to make from.

    Of our own making, so that the sensor has to be asked in the code server (`use_user_code_server`). It reads what each run recorded of
    its inputs when it began: whatever came while it ran is other data.
    """

    @property
    def description(self) -> str:
        return "Never made, or made from other data or by other code"

    async def evaluate(  # type: ignore[override]  # Dagster awaits it, as it does its own
        self, context: "dg.AutomationContext[dg.AssetKey]"
    ) -> "dg.AutomationResult[dg.AssetKey]":
        view, key = context.asset_graph_view, context.key
        node, true = view.asset_graph.get(key), context.get_empty_subset()
        for asked in context.candidate_subset.expensively_compute_asset_partitions():
            mine = view.get_asset_subset_from_asset_partitions(key, {asked})
            made = latest_tags(view.instance, key, asked.partition_key)
            true_of_it = made is not None and made.get(CODE_VERSION_TAG) != node.code_version
            for dep in node.parent_keys:
                changed = await changed_since(view, dep, input_event(made or {}, dep))
                true_of_it |= not changed.compute_intersection(view.compute_parent_subset(dep, mine)).is_empty
            if true_of_it:
                true = true.compute_union(mine)
        return dg.AutomationResult(context, true)


_made_from_other_data = MadeFromOtherData()

_trigger = (
    (_AC.missing() & ~_AC.any_deps_missing()).newly_true().with_label("never built, and now it can be")
    | _AC.any_deps_match(_AC.data_version_changed()).with_label("an input has a new data version")
    | _AC.code_version_changed()
)

rebuild_on_change = (
    _trigger.since(_AC.newly_requested() & ~_trigger).with_label("triggered since it was last requested")
    & ~_trigger
    & ~_AC.any_deps_missing()
    & ~_AC.any_deps_in_progress()
    & ~_AC.in_progress()
    & _made_from_other_data
).with_label("rebuild_on_change")

_news = _AC.any_deps_match(_AC.data_version_changed()).with_label(
    "an input has a new data version"
) | _made_from_other_data.newly_true().with_label("was made from other data when automation was switched on")

# The manifest and the report follow the shards, once for a whole backfill and not once a shard.
follow_when_quiet = (
    _news.since(_AC.newly_requested() & ~_news).with_label("triggered since it was last requested")
    & ~_news
    & ~_AC.any_deps_in_progress()
    & ~_AC.in_progress()
    & _made_from_other_data
).with_label("follow_when_quiet")
