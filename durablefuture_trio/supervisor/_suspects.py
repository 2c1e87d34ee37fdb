"""Which activity calls may have brought a shared process down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from durablefuture_trio.engine.attempts import ActivityKey

_MAX_SUSPECTS = 10_000

Call: TypeAlias = tuple[str, int]
"""An activity call, whichever attempt: run id and activity id."""


class Suspects:
    """The calls whose next attempt has to run alone, grouped by the death they were present at.

    A call leaves when its attempt alone is over, and with all others of its group when one of them crashed alone. Runs
    may end without another attempt, so the number is bounded: the oldest go first.
    """

    def __init__(self) -> None:
        self._groups: dict[Call, set[Call]] = {}

    def holds(self, key: ActivityKey) -> bool:
        return bool(self._groups) and (key.run_id, key.activity_id) in self._groups

    def add(self, keys: Iterable[ActivityKey]) -> None:
        """These attempts shared a process that died."""
        group = {(key.run_id, key.activity_id) for key in keys}
        for call in group:
            self._forget(call)
            self._groups[call] = group
        while len(self._groups) > _MAX_SUSPECTS:
            self._forget(next(iter(self._groups)))

    def acquit(self, key: ActivityKey) -> None:
        """The call's attempt alone went well, as far as its process is concerned."""
        if self._groups:
            self._forget((key.run_id, key.activity_id))

    def convict(self, key: ActivityKey) -> int:
        """The call's attempt crashed alone; returns how many others are cleared by that."""
        group = self._groups.get((key.run_id, key.activity_id), set())
        cleared = len(group) - 1 if group else 0
        for call in tuple(group):
            self._forget(call)
        return cleared

    def _forget(self, call: Call) -> None:
        group = self._groups.pop(call, None)
        if group is not None:
            group.discard(call)
