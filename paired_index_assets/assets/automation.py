"""When things are rebuilt by themselves.

Not `eager()` and not `.since_last_handled()`: those forget files that land while their shard is being built, because the build's own
materialization counts as handling them. Here only a request clears a trigger, and never a trigger of the same tick.

And a request waits for a tick on which no trigger fires. A tick reads the event log's end first and the assets after it, so an event that
arrives between the two fires on this tick and again on the next; a request on the first would be made twice.
"""

import dagster as dg

_AC = dg.AutomationCondition

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
).with_label("rebuild_on_change")

# The manifest and the report follow the shards, once for a whole backfill and not once a shard.
follow_when_quiet = (
    _AC.any_deps_updated().since(_AC.newly_requested() & ~_AC.any_deps_updated())
    & ~_AC.any_deps_updated()
    & ~_AC.any_deps_in_progress()
    & ~_AC.in_progress()
).with_label("follow_when_quiet")
