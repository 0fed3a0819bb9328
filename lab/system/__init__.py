"""The Nephoran system of the lab: its images, manifests, data and metrics history."""

from lab.system.deployment import deploy, reset

__all__ = ["deploy", "reset"]
