"""Where the steps of a run are executed: in the run's own process if there is one step, each in a process of its own if there are more.

A process of Dagster's costs seconds of imports, an unchanged shard costs a fraction of one. And a step alone gains nothing from a second
process: if that is killed the run still fails, and `run_retries` start it again. With several steps the others go on.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from paired_index_assets.assets.dagster_internals import ExecutionPlan, PlanOrchestrationContext

RETRIES: Mapping[str, Any] = {"enabled": {}}
STEPS_AT_ONCE = 2


class BySteps(dg.Executor):
    """`alone` for a plan of one step, `several` for any other."""

    def __init__(self, alone: dg.Executor, several: dg.Executor) -> None:
        self._alone, self._several = alone, several

    @property
    def retries(self) -> Any:
        return self._several.retries

    def execute(self, plan_context: "PlanOrchestrationContext", execution_plan: "ExecutionPlan") -> "Iterator[dg.DagsterEvent]":
        executor = self._alone if len(execution_plan.step_keys_to_execute) == 1 else self._several
        return executor.execute(plan_context, execution_plan)


@dg.executor(name="by_steps", requirements=list(dg.multiprocess_executor.get_requirements({})))
def by_steps(context: dg.InitExecutorContext) -> dg.Executor:
    """One step runs in the process of its run, several in processes of their own, two at a time."""

    def made(definition: dg.ExecutorDefinition, **config: object) -> dg.Executor:
        create = definition.executor_creation_fn
        if create is None:
            raise TypeError(f"{definition.name}: this version of Dagster makes no such executor")
        return create(dg.InitExecutorContext(context.job, definition, {"retries": RETRIES, **config}, context.instance))

    return BySteps(made(dg.in_process_executor), made(dg.multiprocess_executor, max_concurrent=STEPS_AT_ONCE))
