"""The two switches in the maintenance namespace, for people: ``stop`` and ``halt``."""

from __future__ import annotations

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.cluster import ClusterHook

NAME = "switches"
OFF = ("", "false", "off", "no", "0")


def check_switches(cluster: ClusterHook, namespace: str, *, forward: bool) -> None:
    """Refuse a changing step while a switch is on; without the ConfigMap ``switches`` both are off.

    ``stop`` ends everything that goes forward, so the run takes its changes back; ``halt`` ends that too.

    :param forward: whether the step goes forward, not back.
    :raises PermanentError: ``switched-off``.
    """
    found = cluster.find("ConfigMap", NAME, namespace)
    data = (found or {}).get("data") or {}
    for switch in ("halt", "stop") if forward else ("halt",):
        if str(data.get(switch, "")).strip().lower() not in OFF:
            raise PermanentError(
                "switched-off",
                f"the switch {switch} is {data[switch]!r} in the ConfigMap {NAME} of {namespace}",
                context={"switch": switch},
                hint=f"Nothing was changed by this step. Find out who set it; kubectl --namespace={namespace} patch "
                f'configmap {NAME} --patch \'{{"data": {{"{switch}": "off"}}}}\' lets it go on.',
            )
