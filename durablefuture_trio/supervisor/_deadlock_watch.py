"""Sees when an activation of a replay process does not end, without a timer per activation.

The child counts its activations in a page of memory that both sides map, and notes its CPU clock at each start. The
supervisor looks at the page a few times a second, and only while the child owes an answer: a timer armed for each
activation would cost three times what the activation itself costs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

from durablefuture_trio.ports.activation_page import PAGE_BYTES, ActivationPage, PageState

_MAX_STACK_BYTES = 64 * 1024

WALL_FACTOR = 5.0
"""An activation may take this many times its CPU limit on the clock on the wall: waiting is not computing, but a child
that is stopped or blocked in a system call has to be noticed too."""


class ActivationWatch:
    """The page and the stack file of one child process. Closed with it.

    Attributes:
        page_fd: of the `ActivationPage`.
        stack_fd: where the child's faulthandler writes its stacks on SIGUSR1.
    """

    def __init__(self) -> None:
        self.page_fd = _memory_file("activations")
        os.ftruncate(self.page_fd, PAGE_BYTES)
        self._page = ActivationPage(self.page_fd)
        self.stack_fd = _memory_file("stacks")
        self._seen: tuple[int, int] | None = None
        self._wall_s = 0.0
        self._looked_at = 0.0

    def read(self) -> PageState:
        """What the child is busy with."""
        return self._page.read()

    def rest(self) -> None:
        """Nothing is owed: the next look starts anew."""
        self._seen = None

    def overdue(self, state: PageState, answered: int, limit_s: float, *, now: float, interval_s: float) -> bool:
        """Look once; True when the child is at one and the same thing for too long.

        Args:
            state: the page as it was just read.
            answered: how many answers the child has given, ever.
            limit_s: CPU seconds one activation may take.
            now: monotonic time.
            interval_s: time between looks. A longer gap (this process did not run, the machine slept) is not the
                child's fault and counts as two intervals at most.
        """
        seen = (state.counter, answered)
        if seen != self._seen:
            self._seen = seen
            self._wall_s = 0.0
        else:
            self._wall_s += min(now - self._looked_at, 2 * interval_s)
        self._looked_at = now
        if self._wall_s > WALL_FACTOR * limit_s:
            return True
        # Another look than the first, so that a page that was read while it was being written convicts nobody.
        return state.busy and self._wall_s > 0 and _process_cpu_s(state.pid) - state.cpu_ns / 1e9 > limit_s

    def stack(self) -> str:
        """What faulthandler has written by now."""
        return os.pread(self.stack_fd, _MAX_STACK_BYTES, 0).decode("utf-8", "replace")

    def close(self) -> None:
        self._page.close()
        os.close(self.page_fd)
        os.close(self.stack_fd)


def _memory_file(name: str) -> int:
    if sys.platform == "linux":
        return os.memfd_create(f"durablefuture-{name}")
    fd, path = tempfile.mkstemp(prefix=f"durablefuture-{name}-")
    os.unlink(path)
    return fd


def _process_cpu_s(pid: int) -> float:
    """CPU seconds of a process; 0.0 where that cannot be told (only the wall bound holds there)."""
    if sys.platform != "linux":
        return 0.0
    try:
        return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) computes
    except OSError:  # it is gone; its end is noticed elsewhere
        return 0.0
