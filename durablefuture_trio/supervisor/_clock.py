"""Server time, as far as this process can tell."""

from __future__ import annotations

import time
from collections.abc import Callable


class ServerClock:
    """Unix seconds of the NATS server's clock: this machine's, corrected by what the server's timestamps say.

    It never jumps with the machine's wall clock: it is read once, and the monotonic clock is added.

    Args:
        wall, monotonic: where the time comes from, in seconds.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._base = wall() - monotonic()
        self.offset = 0.0
        """Seconds the server is ahead of this machine."""

    def now(self) -> float:
        """Server time in Unix seconds."""
        return self._monotonic() + self._base + self.offset

    def observe(self, server_time: float, sent_at: float, answered_at: float) -> float:
        """Correct the clock by a timestamp that the server gave between two moments (of `monotonic`, in seconds).

        Returns the seconds by which this machine's clock differs, as now known.
        """
        earliest, latest = sent_at + self._base, answered_at + self._base
        if server_time < earliest:
            self.offset = server_time - earliest
        elif server_time > latest:
            self.offset = server_time - latest
        else:
            self.offset = 0.0
        return self.offset
