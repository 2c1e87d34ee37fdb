"""What both kinds of child processes tell the operating system when they begin."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies.

    The signal is tied to the thread that forked: the parent has to fork from a thread that lives. Linux only; elsewhere
    the end of the socket says it.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the signal was armed
        os._exit(1)


def detach_terminal() -> None:
    """No input, prints go to standard error, and a Ctrl-C is the parent's business.

    The process has its own group, so a Ctrl-C meant for the parent does not arrive; a stray one must not end up as
    KeyboardInterrupt in user code.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
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
