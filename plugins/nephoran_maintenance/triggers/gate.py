"""Take samples of a component's metrics until they lead to a verdict, without holding a worker.

The look at the cluster is shared with everybody in the triggerer who waits for workloads in the same namespace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from nephoran_maintenance.domain.gate import (
    Recording,
    Sample,
    planned_pods,
    pods_in,
    recordings,
    sample_line,
    unready_pods,
    verdicts_of,
)
from nephoran_maintenance.errors import TransientError
from nephoran_maintenance.hooks.async_prometheus import AsyncPrometheusHook
from nephoran_maintenance.hooks.shared_looks import SharedLooks, shared_looks
from nephoran_maintenance.triggers.base import Event, PollingTrigger
from nephoran_maintenance.triggers.probe import append_samples, read_samples, unwritable


class GateTrigger(PollingTrigger):
    """Yield one event when the samples of one or more gates have led to a verdict.

    Every sample has a moment of its own, and Prometheus is asked about that moment; one that was missed, because the
    triggerer was restarted, is made up for. The samples are in a file of JSON lines
    (:func:`~nephoran_maintenance.domain.gate.sample_line`), each written before it is judged; a gate that has begun goes
    on where the file ends. What can't be read is a sample too: one without figures, which says why.

    The event: ``{"state": "complete" | "timeout" | "error", "verdicts": [Verdict.to_dict()], "message", "reference",
    "hint", "seconds"}``. The first verdict that is not open ends all gates; those of the others may be missing.

    :param connection_id: Airflow connection of type ``kubernetes``, for the pods that must be measured.
    :param prometheus_connection_id: Airflow connection of Prometheus.
    :param samples_path: the file of the samples; its folder is made when missing.
    :param gates: ``[{"head": head_line(recording), "namespace", "kind", "name", "queries": {name: PromQL}}]``.
    """

    parameters: ClassVar[tuple[str, ...]] = ("connection_id", "prometheus_connection_id", "samples_path", "gates")

    def __init__(
        self,
        *,
        connection_id: str,
        prometheus_connection_id: str,
        samples_path: str,
        gates: Sequence[Mapping[str, Any]],
        poll_interval_seconds: float = 1.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.prometheus_connection_id = prometheus_connection_id
        self.samples_path = samples_path
        self.gates = [dict(gate) for gate in gates]

    def empty_event(self) -> Event:
        return {**super().empty_event(), "verdicts": []}

    async def watch(self) -> Event:
        try:
            found = await asyncio.to_thread(self._begun)
            async with AsyncExitStack() as stack:
                prometheus = await stack.enter_async_context(AsyncPrometheusHook(self.prometheus_connection_id))
                looks = {
                    namespace: await stack.enter_async_context(shared_looks(self.connection_id, namespace))
                    for namespace in {str(gate["namespace"]) for gate in self.gates}
                }
                seen: dict[str, str] = {}
                while (verdicts := verdicts_of(found.values())) is None:
                    gate = min(self.gates, key=lambda one: found[one["head"]["component"]].next_at())
                    component = gate["head"]["component"]
                    due = found[component].next_at()
                    while self.now() < due:
                        await self.pause()
                    sample = await self._look(looks[gate["namespace"]], prometheus, gate, due)
                    await asyncio.to_thread(self._keep, [sample_line(component, sample)])
                    seen[component] = sample.problem or f"{len(sample.pods)} pods have series"
                    self.log_change(*(f"{name}: {what}" for name, what in seen.items()))
                    found[component] = replace(found[component], samples=(*found[component].samples, sample))
        except OSError as error:
            raise unwritable(Path(self.samples_path), error) from error
        message = "; ".join(verdict.message for verdict in verdicts)
        return {"state": "complete", "verdicts": [verdict.to_dict() for verdict in verdicts], "message": message}

    def _begun(self) -> dict[str, Recording]:
        """Return the gates as far as the file has them; write the heads of those that it does not have."""
        path = Path(self.samples_path)
        kept = read_samples(path)
        known = {line["component"] for line in kept if "gate" in line}
        heads = [gate["head"] for gate in self.gates if gate["head"]["component"] not in known]
        if heads:
            append_samples(path, heads)
        return recordings([*kept, *heads])

    def _keep(self, lines: list[dict[str, Any]]) -> None:
        append_samples(Path(self.samples_path), lines)

    async def _look(
        self, looks: SharedLooks, prometheus: AsyncPrometheusHook, gate: Mapping[str, Any], at: datetime
    ) -> Sample:
        try:
            look = await looks.look(gate["kind"])
            workload = look.workload(gate["name"]) or await looks.find(gate["kind"], gate["name"])
            pods = look.pods_of(workload)
            answers = {name: await prometheus.query(promql, at) for name, promql in gate["queries"].items()}
        except TransientError as error:
            return Sample(at, problem=error.message)
        figures = pods_in({name: [(s.labels, s.value) for s in found] for name, found in answers.items()})
        return Sample(at, planned_pods(pods), figures, unready=unready_pods(pods))
