"""What the operating system has to know about a replay process."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even in the middle of an activation.

    The signal is tied to the thread that forked: the parent has to fork from a thread that lives. Linux only; elsewhere
    the end of the socket is noticed between activations.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the signal was armed
        os._exit(1)


def fix_surroundings() -> None:
    """Make what Python code sees of the process the same everywhere: no input, UTC, prints go to standard error."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    os.environ["TZ"] = "UTC"
    time.tzset()
    # The process has its own group, so a Ctrl-C meant for the supervisor does not arrive; a stray one must not end up
    # as KeyboardInterrupt in workflow code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def limit_address_space(megabytes: int) -> None:
    """Allow `megabytes` MiB beyond what is mapped now: libraries may map hundreds for idle threads when imported."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:  # not Linux, where the limit is not enforced either
        return
    limit = mapped + megabytes * 1024 * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


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
