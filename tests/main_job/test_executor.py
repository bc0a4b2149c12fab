"""A run of one step costs one process, a run of several steps one each."""

import dagster as dg
import pytest

from paired_index_assets.assets.executor import by_steps


class Recorded(dg.Executor):
    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    @property
    def retries(self):
        return None

    def execute(self, plan_context, execution_plan):
        self.calls.append(self.name)
        return iter(())


class Plan:
    def __init__(self, steps):
        self.step_keys_to_execute = steps


@pytest.mark.parametrize(("steps", "expected"), [(["shard_index"], "alone"), (["a", "b"], "several")])
def test_the_number_of_steps_decides_who_executes(steps, expected):
    from paired_index_assets.assets.executor import BySteps

    calls = []
    list(BySteps(Recorded("alone", calls), Recorded("several", calls)).execute(None, Plan(steps)))
    assert calls == [expected]


def test_a_run_of_one_asset_with_its_check_stays_in_its_process():
    @dg.asset(check_specs=[dg.AssetCheckSpec("fine", asset="one")])
    def one():
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True)])

    job = dg.Definitions(assets=[one], executor=by_steps).resolve_implicit_global_asset_job_def()
    assert job.executor_def.name == "by_steps"
    with dg.DagsterInstance.ephemeral() as instance:
        done = job.execute_in_process(instance=instance)
    assert done.success
    assert len({event.step_key for event in done.all_events if event.is_step_event}) == 1
