"""How often children may die: the restart budget, and the wait before a restart."""

from __future__ import annotations

from collections import deque

from durablefuture_trio.errors import DurableFutureError

RESTART_LIMIT = 10
RESTART_WINDOW_S = 60.0

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_STABLE_AFTER_S = 10.0


class RestartBudgetSpent(DurableFutureError):
    """Child processes die again and again without having had work: restarting them does not help."""


class RestartBudget:
    """Counts the deaths that nobody's work explains: before `Ready`, or while idle.

    A death while running work is an attempt or a blocked run, and limited there; it is never counted here.
    """

    def __init__(self, limit: int = RESTART_LIMIT, window_s: float = RESTART_WINDOW_S) -> None:
        self._limit = limit
        self._window_s = window_s
        self._deaths: deque[float] = deque()

    def spend(self, what: str, now: float) -> None:
        """Count a death at monotonic time `now`.

        Raises:
            RestartBudgetSpent: it was one more than the limit within the window; `what` says which death it was.
        """
        self._deaths.append(now)
        while self._deaths[0] <= now - self._window_s:
            self._deaths.popleft()
        if len(self._deaths) > self._limit:
            raise RestartBudgetSpent(
                f"{len(self._deaths)} child processes died within {self._window_s:g} s without having had work, the "
                f"last one: {what}. Look at the lines that they logged before, mend the cause, and start again."
            )


class Backoff:
    """The wait before a restart: none after a stable life, doubling from 0.1 s to 5 s while lives are short."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def after(self, lifetime_s: float) -> float:
        """Seconds to wait after a child that lived `lifetime_s`."""
        delay = 0.0 if lifetime_s >= _STABLE_AFTER_S else self._next_s
        self._next_s = min(_LONGEST_BACKOFF_S, max(_FIRST_BACKOFF_S, 2 * delay))
        return delay
