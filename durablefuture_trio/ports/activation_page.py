"""The page of memory a replay process shares with its supervisor, to show what it is busy with.

Four little-endian unsigned 64-bit numbers: a counter that is odd while an activation runs and goes up at its begin and
at its end; the process' CPU time at the begin, in nanoseconds; the exchange of the question it belongs to; the id of
that process, which is a fork of the child's in a verifier. The child writes; the supervisor reads, and only while an
answer is owed: an activation is overdue when the counter stays odd and the same while the CPU time of the process has
gone up by more than the limit. When the process dies, the exchange says which question it died of, although answers to
earlier ones may not have left it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

import msgspec

PAGE_BYTES = 4096

_LAYOUT = struct.Struct("<QQQQ")


class PageState(msgspec.Struct, frozen=True):
    """What the page said. ``counter`` is odd while an activation runs; the others are of that one (0: none yet)."""

    counter: int
    cpu_ns: int
    exchange: int
    pid: int

    @property
    def busy(self) -> bool:
        return bool(self.counter & 1)


class ActivationPage:
    """One side's view of the page.

    Args:
        fd: a file of `PAGE_BYTES` both processes have open, e.g. of ``os.memfd_create``; not closed.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, PAGE_BYTES)
        self._counter = self.read().counter
        self.exchange = 0

    def read(self) -> PageState:
        """The supervisor's side. The writer may be at it: read again when a decision hangs on it."""
        return PageState(*_LAYOUT.unpack_from(self._memory))

    def begin(self) -> None:
        """The child's side: an activation of `exchange` begins."""
        self._counter += 1
        _LAYOUT.pack_into(self._memory, 0, self._counter, time.process_time_ns(), self.exchange, os.getpid())

    def end(self) -> None:
        """The child's side: it has ended."""
        self._counter += 1
        _LAYOUT.pack_into(self._memory, 0, self._counter, 0, self.exchange, 0)

    def close(self) -> None:
        """Unmap the page."""
        self._memory.close()
