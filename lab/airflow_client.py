"""Talk to Airflow's REST API: start a run, follow it, read what it returned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx

COMPONENTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")
FINISHED = frozenset({"success", "failed"})
WAITING = "awaiting_input"
POLL_SECONDS = 0.5
SETTLED_SECONDS = 3.0
DATABASE_LOCKED = "Database error"
LOCKED_TRIES = 3
"""On SQLite the api-server can lock itself out: a request waits in its event loop for the lock of another one, which can't
go on meanwhile. After five seconds the first is answered with 500, before it has done anything."""


class AirflowRequestError(RuntimeError):
    """Say what was asked of Airflow and what it answered."""


@dataclass(frozen=True)
class TaskState:
    """What one try of one task is doing; ``seconds`` is None while it runs."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    seconds: float | None
    started_at: str | None
    ended_at: str | None

    @property
    def name(self) -> str:
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"


class AirflowClient:
    """A logged-in user of one Airflow. The token is fetched at the first request and again when it has expired."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._user = user
        self._password = password
        self._token: str | None = None
        # No proxy of the surroundings may stand between us and loopback.
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def health(self) -> dict[str, Any]:
        """Return Airflow's own view: component to status and last heartbeat. Needs no login."""
        return dict(self._http.get("/api/v2/monitor/health").raise_for_status().json())

    def is_healthy(self) -> bool:
        health = self.health()
        return all((health.get(name) or {}).get("status") == "healthy" for name in COMPONENTS)

    def warm_up(self) -> None:
        """Make the api-server build the part that tasks talk to, instead of at the first task's cost. Needs no login."""
        self._http.get("/execution/health/ping").raise_for_status()

    def import_errors(self) -> list[dict[str, Any]]:
        """Return the DAG files that could not be read, with file name and stack trace."""
        return list(self.get("/importErrors")["import_errors"])

    def await_dag(self, dag_id: str, timeout: timedelta = timedelta(seconds=60)) -> None:
        """Return when the DAG can be run; raise AirflowRequestError with the import errors if it can't be in time."""
        deadline = time.monotonic() + timeout.total_seconds()
        while time.monotonic() < deadline:
            dag = self._request("GET", f"/dags/{dag_id}", missing_allowed=True)
            # A DAG whose file can't be read any more is still known, but stale.
            if dag is not None and not dag["is_stale"]:
                return
            time.sleep(POLL_SECONDS)
        errors = "\n".join(f"{error['filename']}: {error['stack_trace']}" for error in self.import_errors())
        raise AirflowRequestError(
            f"DAG {dag_id} can't be run after {timeout.total_seconds():.0f} s. Import errors: {errors or 'none'}"
        )

    def await_task(self, dag_id: str, task_id: str, timeout: timedelta = timedelta(seconds=120)) -> None:
        """Return when Airflow has read a DAG that has this task; raise TimeoutError when it has not in time."""
        deadline = time.monotonic() + timeout.total_seconds()
        while task_id not in (task["task_id"] for task in self.get(f"/dags/{dag_id}/tasks")["tasks"]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"DAG {dag_id} has no task {task_id} after {timeout.total_seconds():.0f} s")
            time.sleep(POLL_SECONDS)

    def trigger(self, dag_id: str, params: Mapping[str, Any] | None = None, *, note: str | None = None) -> str:
        """Start a run by hand and return its id. Airflow checks the params and answers 400 with the reason."""
        run_id = f"manual__{datetime.now(UTC).isoformat()}"  # ours, so that the request can be repeated
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(params or {}), "note": note}
        self._request("POST", f"/dags/{dag_id}/dagRuns", body)
        return run_id

    def make_pool(self, name: str, slots: int, description: str) -> None:
        """Make a pool, or give the one of this name so many slots. Safe to repeat: yes."""
        body = {"pool": name, "slots": slots, "description": description, "include_deferred": False}
        if self._request("PATCH", f"/pools/{name}", body, missing_allowed=True) is None:
            body["name"] = body.pop("pool")
            self._request("POST", "/pools", body)

    def unfinished_runs(self, dag_id: str) -> list[str]:
        """Return the ids of the runs that are at work or queued."""
        answer = self.get(f"/dags/{dag_id}/dagRuns?state=running&state=queued&limit=50")
        return [str(run["dag_run_id"]) for run in answer["dag_runs"]]

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return dict(self.get(f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"))

    def task_states(self, dag_id: str, run_id: str) -> list[TaskState]:
        """Return the state of each task of a run, in no promised order."""
        answer = self.get(f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances?limit=1000")
        return [
            TaskState(
                task_id=item["task_id"],
                map_index=item["map_index"],
                state=item["state"],
                try_number=item["try_number"],
                seconds=item["duration"],
                started_at=item["start_date"],
                ended_at=item["end_date"],
            )
            for item in answer["task_instances"]
        ]

    def follow(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout: timedelta,
        on_change: Callable[[TaskState], None] = lambda state: None,
        poll_seconds: float = POLL_SECONDS,
    ) -> dict[str, Any]:
        """Return the run when it has finished; tell ``on_change`` of every task state that is new.

        Raises TimeoutError when the run has not finished in time; the run itself goes on.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        seen: dict[str, tuple[str | None, int]] = {}
        while True:
            # The run is read first: a task that ends in between is then still reported in this round.
            run = self.run(dag_id, run_id)
            states = self.task_states(dag_id, run_id)
            for state in sorted(states, key=lambda item: (item.ended_at or "~", item.started_at or "~", item.name)):
                if seen.get(state.name) != (state.state, state.try_number):
                    seen[state.name] = (state.state, state.try_number)
                    on_change(state)
            if run["state"] in FINISHED:
                return run
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run_id} of {dag_id} is still {run['state']}")
            time.sleep(poll_seconds)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return what a task has left, or None when it has left nothing."""
        answer = self._request(
            "GET",
            f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/{key}"
            f"?map_index={map_index}&deserialize=false&stringify=false",
            missing_allowed=True,
        )
        return None if answer is None else answer["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of one try of a task as text."""
        lines = []
        for entry in self._log_entries(dag_id, run_id, task_id, try_number, map_index):
            lines.append(f"{entry.get('timestamp') or ''} {entry.get('level') or ''} {entry['event']}".strip())
            lines += [f"    {cause['exc_type']}: {cause['exc_value']}" for cause in entry.get("error_detail") or []]
        return "\n".join(lines)

    def last_error(self, dag_id: str, run_id: str, task: TaskState) -> str | None:
        """Return what the last try of a task failed with, without its stack; None when its log has no exception."""
        entries = self._log_entries(dag_id, run_id, task.task_id, task.try_number, task.map_index)
        errors = [entry["error_detail"][0]["exc_value"] for entry in entries if entry.get("error_detail")]
        return str(errors[-1]) if errors else None

    def question(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any] | None:
        """Return what a task asks a person: subject, body, options, response_received; None when it has not asked yet."""
        found = self._request("GET", _question_path(dag_id, run_id, task_id), missing_allowed=True)
        return None if found is None else dict(found)

    def await_question(self, dag_id: str, run_id: str, task_id: str, timeout: timedelta) -> dict[str, Any]:
        """Return what a task asks, once it has waited for an answer for some seconds.

        Airflow 3.3 may take a task for failed whose answer comes before it has noticed that the worker is gone.
        """
        deadline, since = time.monotonic() + timeout.total_seconds(), None
        while time.monotonic() < deadline:
            states = {task.task_id: task.state for task in self.task_states(dag_id, run_id)}
            question = self.question(dag_id, run_id, task_id) if states.get(task_id) == WAITING else None
            if question is None or question["response_received"]:
                since = None
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since >= SETTLED_SECONDS:
                return question
            if states.get(task_id) in FINISHED:
                break
            time.sleep(POLL_SECONDS)
        raise AirflowRequestError(f"{task_id} of run {run_id} asks nothing: it is {states.get(task_id)}")

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> None:
        """Answer a task's question as this client's user; Airflow refuses an answer to one that is answered."""
        body = {"chosen_options": [option], "params_input": {}}
        self._request("PATCH", _question_path(dag_id, run_id, task_id), body)

    def fail_task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> None:
        """Mark a task failed, which ends it and lets the rollback run: the way to abort a procedure."""
        self.mark_task(dag_id, run_id, task_id, "failed", map_index)

    def mark_task(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """Give a task a state by hand, as the user interface does."""
        self._request(
            "PATCH",
            f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}?map_index={map_index}",
            {"new_state": state},
        )

    def fail_run(self, dag_id: str, run_id: str) -> None:
        """Mark a whole run failed: Airflow skips what is left of it, its rollback too, and runs the teardown."""
        self._request("PATCH", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}", {"state": "failed"})

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """Delete a run with all that Airflow knows of it."""
        self._request("DELETE", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}", None)

    def pause(self, dag_id: str, *, paused: bool) -> None:
        """Let no further task of a DAG begin, or let them again."""
        self._request("PATCH", f"/dags/{dag_id}", {"is_paused": paused})

    def clear_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Clear a task and what follows it, whatever its state, as the user interface does."""
        which = {"dag_run_id": run_id, "task_ids": [task_id], "include_downstream": True}
        how = {"only_failed": False, "reset_dag_runs": True, "dry_run": False}
        self._request("POST", f"/dags/{dag_id}/clearTaskInstances", {**which, **how})

    def run_url(self, dag_id: str, run_id: str) -> str:
        """Return the address of the run in the user interface."""
        return f"{self.url}/dags/{dag_id}/runs/{quote(run_id, safe='')}"

    def get(self, path: str) -> Any:
        return self._request("GET", path)

    def _log_entries(
        self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int
    ) -> list[dict[str, Any]]:
        answer = self.get(
            f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/logs/{try_number}"
            f"?map_index={map_index}&full_content=true"
        )
        return [entry if isinstance(entry, dict) else {"event": entry} for entry in answer["content"]]

    def _request(self, method: str, path: str, body: object = None, *, missing_allowed: bool = False) -> Any:
        response = self._send(method, path, body)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._token = None
            response = self._send(method, path, body)
        for _ in range(LOCKED_TRIES):
            if DATABASE_LOCKED not in response.text or not response.is_server_error:
                break
            response = self._send(method, path, body)
        if missing_allowed and response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.is_error:
            raise AirflowRequestError(f"{method} {path}: {response.status_code} {response.text[:1000]}")
        return response.json() if response.content else None

    def _send(self, method: str, path: str, body: object) -> httpx.Response:
        if self._token is None:
            login = self._http.post("/auth/token", json={"username": self._user, "password": self._password})
            if login.is_error:
                raise AirflowRequestError(f"login of {self._user}: {login.status_code} {login.text[:200]}")
            self._token = str(login.json()["access_token"])
        return self._http.request(
            method, f"/api/v2{path}", json=body, headers={"Authorization": f"Bearer {self._token}"}
        )


def _question_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    return f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/{map_index}/hitlDetails"
