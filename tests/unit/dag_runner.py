"""Runs a procedure step by step in this process: trigger rules, skips, retries, deferrals and results as Airflow has them.

No scheduler, no database, no waiting: a whole run takes less than a second. The rules are those of
``airflow.ti_deps.deps.trigger_rule_dep``; the lab's tests run the same procedures in a real Airflow.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    DownstreamTasksSkipped,
    TaskAwaitingInput,
    TaskDeferred,
)

BAD = ("failed", "upstream_failed")
BESIDE = ("ProbeTrigger", "HoldLeaseTrigger")
"""Triggers that run beside everything else and end when they are told to, in this order."""


class TaskInstance:
    """What steps use of Airflow's task instance."""

    def __init__(self, run: DagRunner, task: Any) -> None:
        self.run, self.task = run, task
        self.task_id, self.dag_id, self.run_id = task.task_id, run.dag.dag_id, run.run_id
        self.try_number = 1
        self.id = task.task_id
        """By this a question is found again."""

    def xcom_push(self, key: str, value: Any) -> None:
        self.run.results[self.task_id, key] = json.loads(json.dumps(value))

    def xcom_pull(self, task_ids: Any, key: str = "return_value", map_indexes: int | None = None) -> Any:
        if isinstance(task_ids, str):
            return self.run.results.get((task_ids, key))
        return [self.run.results.get((task_id, key)) for task_id in task_ids]

    def get_task_states(self, dag_id: str, run_ids: list[str]) -> dict[str, dict[str, str | None]]:
        return {self.run_id: {task.task_id: self.run.states.get(task.task_id) for task in self.run.dag.tasks}}


class TaskStateStore:
    """What Airflow keeps of a task over its tries, the death of its worker included."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self._stored = stored

    def get(self, key: str, default: Any = None) -> Any:
        return self._stored.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self._stored[key] = json.loads(json.dumps(value))


class DagRunner:
    """One run of a procedure.

    :param params: values that differ from the defaults.
    :param replaced: by task id, what is called instead of a step's ``execute``; it gets the step and its context.
    :param answer: what a step that waits for a person, by its id, is told; the event that Airflow goes on with.
    """

    def __init__(
        self,
        dag: Any,
        params: dict[str, Any],
        *,
        run_id: str = "manual__2026-11-23",
        replaced: dict[str, Callable[[Any, Any], Any]] | None = None,
        answer: Callable[[str], dict[str, Any]] | None = None,
        run_type: str = "manual",
    ) -> None:
        self.dag, self.run_id = dag, run_id
        self.params = {**{key: dag.params[key] for key in dag.params}, **params}
        self.replaced = replaced or {}
        self.answer = answer
        self.states: dict[str, str] = {}
        self.results: dict[tuple[str, str], Any] = {}
        self.order: list[str] = []
        """Task ids in the order in which they ran."""
        self.stored: dict[str, dict[str, Any]] = {}
        """What steps noted for a repetition of theirs, by task id."""
        self.surprises: list[str] = []
        """Errors that are none of this package: a step must never end with one."""
        self.dag_run = SimpleNamespace(
            dag_id=dag.dag_id,
            run_id=run_id,
            run_after=datetime(2026, 11, 23, 10, 0, tzinfo=UTC),
            start_date=datetime.now(UTC),
            triggering_user_name="operator",
            run_type=SimpleNamespace(value=run_type),
        )
        self._parked: list[tuple[Any, TaskInstance, TaskDeferred]] = []

    def run(self) -> DagRunner:
        waiting = list(self.dag.topological_sort())
        while waiting or self._parked:
            runnable = [t for t in waiting if all(u in self.states for u in t.upstream_task_ids)]
            if not runnable:
                self._resume_parked()
                continue
            for task in runnable:
                waiting.remove(task)
                if task.task_id not in self.states:
                    self._decide(task)
        return self

    def error(self, task_id: str) -> str:
        """Return what a failed step says."""
        return str(self.results.get((task_id, "error"), ""))

    def failed(self) -> list[str]:
        return [task_id for task_id, state in self.states.items() if state == "failed"]

    @property
    def report(self) -> dict[str, Any]:
        return dict(self.results["report_operation", "return_value"])

    def context(self, task: Any, ti: TaskInstance) -> Any:
        return {
            "ti": ti,
            "task": task,
            "dag_run": self.dag_run,
            "run_id": self.run_id,
            "params": dict(self.params),
            "task_state_store": TaskStateStore(self.stored.setdefault(task.task_id, {})),
        }

    # ---------------------------------------------------------------------------------------------------------- a step

    def _decide(self, task: Any) -> None:
        states = [self.states[name] for name in task.upstream_task_ids]
        bad, skipped = any(s in BAD for s in states), "skipped" in states
        rule = str(getattr(task.trigger_rule, "value", task.trigger_rule))
        if rule == "all_success":
            state = "upstream_failed" if bad else "skipped" if skipped else None
        elif rule == "none_failed":
            state = "upstream_failed" if bad else None
        elif rule == "none_failed_min_one_success":
            state = "upstream_failed" if bad else None if "success" in states else "skipped"
        elif rule == "all_done":
            state = None
        elif rule == "all_done_setup_success":
            # There is no setup in the procedures: the teardown runs whatever came before.
            state = None
        elif rule == "all_done_min_one_success":
            state = "skipped" if skipped else None if "success" in states else "upstream_failed"
        else:
            raise AssertionError(f"the runner does not know the trigger rule {rule}")
        if state is not None:
            self.states[task.task_id] = state
            return
        self._try(task, TaskInstance(self, task))

    def _try(self, task: Any, ti: TaskInstance) -> None:
        self.order.append(task.task_id)
        for name in [key for key in self.results if key[0] == task.task_id]:
            del self.results[name]
        execute = self.replaced.get(task.task_id)
        if not execute and task.template_fields:
            task = copy.copy(task)
            task.render_template_fields(self.context(task, ti))
        call = (lambda c: execute(task, c)) if execute else task.execute
        self._step(task, ti, lambda: call(self.context(task, ti)))

    def _step(self, task: Any, ti: TaskInstance, call: Callable[[], Any]) -> None:
        while True:
            try:
                result = call()
            except TaskDeferred as deferred:
                if type(deferred.trigger).__name__ in BESIDE:
                    self._parked.append((task, ti, deferred))
                    return
                call = self._resumed(task, ti, deferred)
                continue
            except TaskAwaitingInput as waiting:
                call = self._answered(task, ti, waiting)
                continue
            except AirflowSkipException:
                self.states[task.task_id] = "skipped"
            except DownstreamTasksSkipped as skipped:
                self.states[task.task_id] = "success"
                for task_id in skipped.tasks:
                    self.states.setdefault(task_id, "skipped")
            except AirflowFailException:
                self.states[task.task_id] = "failed"
            except Exception as error:  # noqa: BLE001 (whatever a step raises fails it, as in Airflow)
                if not isinstance(error, AirflowException):
                    self.surprises.append(f"{task.task_id}: {type(error).__name__}: {error}")
                if ti.try_number <= (task.retries or 0):
                    ti.try_number += 1
                    self._try(task, ti)
                    return
                self.states[task.task_id] = "failed"
            else:
                self.states[task.task_id] = "success"
                if result is not None:
                    ti.xcom_push("return_value", result)
            return

    def _resume_parked(self) -> None:
        self._parked.sort(key=lambda parked: BESIDE.index(type(parked[2].trigger).__name__))
        task, ti, deferred = self._parked.pop(0)
        self._step(task, ti, self._resumed(task, ti, deferred))

    def _answered(self, task: Any, ti: TaskInstance, waiting: TaskAwaitingInput) -> Callable[[], Any]:
        """Return the call that goes on with a person's answer."""
        assert self.answer is not None, f"{task.task_id} asks, and the test has no answer"
        assert waiting.timeout.total_seconds() > 0
        event = self.answer(task.task_id)
        arguments = {**(waiting.kwargs or {}), "event": event}
        return lambda: getattr(task, waiting.method_name)(self.context(task, ti), **arguments)

    def _resumed(self, task: Any, ti: TaskInstance, deferred: TaskDeferred) -> Callable[[], Any]:
        """Run the trigger as it comes back from the database, and return the call that goes on with its event."""
        path, parameters = deferred.trigger.serialize()
        trigger = import_string(path)(**json.loads(json.dumps(parameters)))
        trigger.poll_interval_seconds = 0.0
        event = json.loads(json.dumps(asyncio.run(first_event(trigger))))
        arguments = {**(deferred.kwargs or {}), "event": event}
        return lambda: getattr(task, deferred.method_name)(self.context(task, ti), **arguments)


async def first_event(trigger: Any) -> Any:
    events = trigger.run()
    try:
        return (await asyncio.wait_for(anext(events), 30)).payload
    finally:
        await events.aclose()
