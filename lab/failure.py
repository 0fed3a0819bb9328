"""The one error of the lab."""

from __future__ import annotations


class LabError(Exception):
    """Say what the lab could not do and what a person can do about it.

    ``hint`` is the next action, a sentence. The command line prints both and ends with 1.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.hint = hint
        super().__init__(f"{message} Next: {hint}" if hint else message)
