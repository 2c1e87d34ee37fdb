"""What the operating system has to know about a replay process, beside what all children tell it."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable

from durablefuture_trio.ports.child_process import detach_terminal


def fix_surroundings() -> None:
    """Make what Python code sees of the process the same everywhere: no input, UTC, prints go to standard error."""
    detach_terminal()
    os.environ["TZ"] = "UTC"
    time.tzset()


def dump_stacks_on_signal(fd: int, task_stacks: Callable[[], str]) -> None:
    """On SIGUSR1 write to `fd` the stacks of all threads, then those of the tasks if Python code still gets to run.

    Args:
        fd: an open file.
        task_stacks: what to say about tasks: a program that spins in Trio's loop is rarely met in its own frames.
    """

    def write_task_stacks(_signal: int, _frame: object) -> None:
        os.write(fd, task_stacks().encode("utf-8", "backslashreplace") + b"\n")

    signal.signal(signal.SIGUSR1, write_task_stacks)
    faulthandler.register(signal.SIGUSR1, file=fd, all_threads=True, chain=True)
