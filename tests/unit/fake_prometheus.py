"""A Prometheus on loopback that answers the gate's queries about pods as a test wants them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.unit.hooks.fake_servers import Received, Reply

BASELINE_SECONDS = "900"
BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass
class FakePrometheus:
    """Answers instant queries: every pod serves ``rate`` requests a second, ``ratio`` of them fail (of a pod, where it
    is a function; ``ratio_before`` in the window of the baseline), all take ``seconds``.

    ``pods`` says which pods have series; ``before`` is called with each request and may answer in the place of this.
    """

    pods: Callable[[], Iterable[str]]
    rate: float = 30.0
    ratio: float | Callable[[str], float] = 0.0
    ratio_before: float = 0.0
    seconds: float = 0.2
    age: float = 1.0
    readable: Callable[[str], float] = lambda pod: 1.0
    """Share of a pod's requests whose status can be read."""
    resets: dict[str, int] = field(default_factory=dict)
    number: Callable[[float], str] = lambda value: f"{value:g}"
    before: Callable[[Received], Reply | None] = lambda request: None
    asked: list[tuple[str, float]] = field(default_factory=list)
    """Expression, without its comments, and moment of each query."""

    def __call__(self, request: Received) -> Reply:
        if (reply := self.before(request)) is not None:
            return reply
        text, at = request.query["query"], float(request.query["time"])
        expression = " ".join(line for line in text.splitlines() if not line.startswith("#"))
        self.asked.append((expression, at))
        selected = re.search(r'namespace="([^"]+)", pod=~"([^"]+)"', expression)
        if selected is None:
            return Reply(400, {"status": "error", "error": f"no pods are selected in {expression}"})
        result = [
            {"metric": {"pod": pod, **labels}, "value": [at, self.number(value)]}
            for pod in self.pods()
            if re.fullmatch(selected[2], pod)
            for labels, value in self.series(pod, expression)
        ]
        return Reply(200, {"status": "success", "data": {"resultType": "vector", "result": result}})

    def series(self, pod: str, expression: str) -> list[tuple[dict[str, str], float]]:
        if "timestamp(" in expression:
            return [({}, self.age)]
        if "resets(" in expression:
            return [({}, float(self.resets.get(pod, 0)))]
        window = re.search(r"\[(\d+)s\]", expression)
        assert window, f"no window in {expression}"
        requests = self.rate * int(window[1])
        if "_bucket{" in expression:
            bounds = [*((f"{bound:g}", bound) for bound in BOUNDS), ("+Inf", float("inf"))]
            return [({"le": text}, requests * (self.seconds <= bound)) for text, bound in bounds]
        if "[1-5][0-9][0-9]" in expression or "success|error" in expression:
            return [({}, requests * self.readable(pod))] if self.readable(pod) else []
        if "status=" in expression:
            ratio = self.ratio(pod) if callable(self.ratio) else self.ratio
            if window[1] == BASELINE_SECONDS:
                ratio = self.ratio_before
            ratio *= self.readable(pod)
            return [({}, requests * ratio)] if ratio else []
        return [({}, requests)]


def down(request: Received) -> Reply:
    return Reply(503, "starting")


def nothing(*_: Any) -> list[str]:
    """Return the pods of a Prometheus that has no series: a component that answers /metrics with JSON."""
    return []
