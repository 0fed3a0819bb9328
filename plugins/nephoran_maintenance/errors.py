"""The errors of this package, written for the person on call. No imports: everything else may use them."""

from __future__ import annotations

from collections.abc import Mapping


class MaintenanceError(Exception):
    """Something this product can name.

    :param reference: kebab-case name, also the anchor in ``docs/reference/errors.md``.
    :param message: object, observed and expected.
    :param context: further facts, shown as ``key=value``.
    :param hint: the next action.
    """

    def __init__(
        self, reference: str, message: str, *, context: Mapping[str, object] | None = None, hint: str = ""
    ) -> None:
        super().__init__(reference, message)
        self.reference = reference
        self.message = message
        self.context = dict(context or {})
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.message} [{self.reference}]"
        if self.context:
            text += f" ({', '.join(f'{key}={value}' for key, value in self.context.items())})"
        return f"{text} Next: {self.hint}" if self.hint else text


class PermanentError(MaintenanceError):
    """Trying again does not help: the step fails at once."""


class TransientError(MaintenanceError):
    """May go away by itself: the step is retried."""


class UnknownStateError(PermanentError):
    """Neither the old nor the new state: nothing is touched, a person looks."""
