"""A part of a backup: what it includes and excludes, and why some of it is refused before anything happens."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nephoran_maintenance.errors import PermanentError

What = Literal["sources", "namespaces", "resources"]
WHAT: tuple[What, ...] = ("sources", "namespaces", "resources")
Names = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=300)], ...], Field(max_length=200)]
OBJECTS = "kubernetes-objects"
"""The source that namespaces and resources are about."""


class Scope(BaseModel):
    """What a backup takes in; empty lists: everything.

    :param include_sources: only these; of the others nothing is in the backup. The same for namespaces and resources.
    :param exclude_sources: all but these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_sources: Names = ()
    exclude_sources: Names = ()
    include_namespaces: Names = ()
    exclude_namespaces: Names = ()
    include_resources: Names = ()
    exclude_resources: Names = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Scope:
        for what in WHAT:
            if self.included(what) and self.excluded(what):
                raise ValueError(f"include_{what} and exclude_{what} are given; give one of them")
        return self

    def included(self, what: What) -> tuple[str, ...]:
        return tuple(getattr(self, f"include_{what}"))

    def excluded(self, what: What) -> tuple[str, ...]:
        return tuple(getattr(self, f"exclude_{what}"))

    @property
    def whole(self) -> bool:
        """Whether nothing was chosen: only such a backup counts where one is asked for."""
        return not any(self.limits(what) for what in WHAT)

    def chosen(self, what: What, names: Iterable[str]) -> list[str]:
        """Return which of these are taken in, in their order."""
        included, excluded = self.included(what), self.excluded(what)
        return [name for name in names if (not included or name in included) and name not in excluded]

    def limits(self, what: What) -> bool:
        return bool(self.included(what) or self.excluded(what))

    def __str__(self) -> str:
        words = [(way, what, getattr(self, f"{way}_{what}")) for what in WHAT for way in ("include", "exclude")]
        return "; ".join(f"{way}_{what}: {', '.join(names)}" for way, what, names in words if names)


def check_scope(scope: Scope, *, sources: Collection[str], namespaces: Collection[str]) -> None:
    """Refuse names that do not exist, and a choice that takes nothing in.

    :param sources: those that this type of backup has.
    :param namespaces: the system's.
    :raises PermanentError: ``scope-unknown`` or ``parameters-invalid``.
    """
    check_names(scope, "sources", sources)
    check_names(scope, "namespaces", namespaces)
    if not scope.chosen("sources", sources):
        raise _invalid("every source that this type of backup has is left out")
    if not scope.chosen("namespaces", namespaces):
        raise _invalid("every namespace of the system is left out; exclude the source kubernetes-objects instead")
    if (scope.limits("namespaces") or scope.limits("resources")) and not scope.chosen("sources", [OBJECTS]):
        raise _invalid(f"namespaces and resources concern the source {OBJECTS}, which is left out")


def check_names(scope: Scope, what: What, there: Collection[str]) -> None:
    """Refuse names that do not exist.

    :raises PermanentError: ``scope-unknown``, with names that come near.
    """
    unknown = [name for name in (*scope.included(what), *scope.excluded(what)) if name not in there]
    if not unknown:
        return
    near = [name for name in there if name.partition(".")[0] in unknown]
    near += difflib.get_close_matches(unknown[0], there, n=3)
    named = ", ".join(dict.fromkeys(near)) or ", ".join(sorted(there)[:20])
    raise PermanentError(
        "scope-unknown",
        f"a backup of this type and system has no {what} {', '.join(unknown)}; did you mean one of: {named}",
        context={"what": what},
        hint="Correct the name. Resources have their full names: kubectl api-resources -o name.",
    )


def _invalid(problem: str) -> PermanentError:
    return PermanentError("parameters-invalid", f"include and exclude: {problem}", hint="Choose something.")
