"""One heap for everything of a shard that has to happen at some time."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

T = TypeVar("T")


class Wakes(Generic[T]):
    """Who is to be woken when; each has at most one time. Times are Unix seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._times: dict[T, float] = {}
        self._order = itertools.count()

    def put(self, who: T, when: float | None) -> bool:
        """Wake `who` at this time (None: not at all) instead of the one before; True if it comes before all others."""
        if when is None:
            self._times.pop(who, None)
            return False
        self._times[who] = when
        heapq.heappush(self._heap, (when, next(self._order), who))
        return self._heap[0][2] is who

    def take(self, now: float) -> list[T]:
        """Those whose time has come, earliest first; their times are forgotten."""
        due: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            when, _, who = heapq.heappop(self._heap)
            if self._times.get(who) == when:
                del self._times[who]
                due.append(who)
        return due

    @property
    def first(self) -> float | None:
        """The earliest time, or None."""
        # Times that were replaced stay in the heap until they come to its top.
        while self._heap and self._times.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
