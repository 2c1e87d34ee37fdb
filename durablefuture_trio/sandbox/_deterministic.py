"""Time and chance as workflow code sees them: functions of the history, while a run is stepped.

The replacements are put in place once per process and pass everything on to the originals unless the calling thread is
stepping a run. The wall clock itself (``time.time``, ``datetime.now`` …) is moved by `_guards` with time-machine, which
also reaches references taken before.
"""

from __future__ import annotations

import functools
import os
import random
import time
import uuid
from collections.abc import Callable
from random import Random
from threading import get_ident
from typing import Any, Protocol

from durablefuture_trio.errors import SandboxViolationError


class GuardedRun(Protocol):
    """What the guards need of the run that is being stepped."""

    @property
    def noise(self) -> Random:
        """Feeds `random`, `os.urandom`, `uuid` and `secrets`."""
        ...

    def now(self) -> float:
        """Workflow time in Unix seconds."""
        ...

    def violated(self, error: SandboxViolationError) -> None:
        """Remember a refusal, whatever becomes of the exception."""
        ...


class GuardState:
    """Which run is stepped, and by which thread; other threads of the process are left alone."""

    __slots__ = ("importing", "run", "thread")

    def __init__(self) -> None:
        self.run: GuardedRun | None = None
        self.thread = 0
        self.importing = 0


STATE = GuardState()


def guarded_run() -> GuardedRun | None:
    """The run whose code is calling; None outside of workflows, in other threads, and while a module is imported (its
    top level runs once per process, so it must neither be refused what it needs nor use up the run's chance)."""
    state = STATE
    if state.run is None or state.importing or state.thread != get_ident():
        return None
    return state.run


_CLOCKS = ("monotonic", "perf_counter", "process_time", "thread_time")
_RANDOM_FUNCTIONS = (
    "seed", "random", "uniform", "triangular", "randint", "choice", "randrange", "sample", "shuffle", "choices",
    "normalvariate", "lognormvariate", "expovariate", "vonmisesvariate", "gammavariate", "gauss", "betavariate",
    "binomialvariate", "paretovariate", "weibullvariate", "getstate", "setstate", "getrandbits", "randbytes",
)  # fmt: skip


def install_deterministic_functions() -> None:
    """Put the replacements in place. Modules imported afterwards bind them even with ``from random import random``."""
    for name in _CLOCKS:
        _replace(time, name, _clock)
        _replace(time, f"{name}_ns", _clock_ns)
    _replace(time, "clock_gettime", _clock)
    _replace(time, "clock_gettime_ns", _clock_ns)
    for name in _RANDOM_FUNCTIONS:
        if hasattr(random, name):
            _replace(random, name, _chance)
    _replace(random.Random, "seed", _seed)
    _replace(os, "urandom", _urandom)
    # SystemRandom, and with it `secrets`, has its own reference.
    _replace(random, "_urandom", _urandom)
    if hasattr(os, "getrandom"):
        _replace(os, "getrandom", _urandom)
    _replace(uuid, "getnode", _getnode)


def _replace(owner: Any, name: str, make: Callable[[str, Any], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(name, original)))


def _clock(_name: str, original: Any) -> Callable[..., float]:
    def clock(*args: Any) -> float:
        run = guarded_run()
        return original(*args) if run is None else run.now()

    return clock


def _clock_ns(_name: str, original: Any) -> Callable[..., int]:
    def clock_ns(*args: Any) -> int:
        run = guarded_run()
        return original(*args) if run is None else round(run.now() * 1_000_000_000)

    return clock_ns


def _chance(name: str, original: Any) -> Callable[..., Any]:
    def chance(*args: Any, **kwargs: Any) -> Any:
        run = guarded_run()
        return original(*args, **kwargs) if run is None else getattr(run.noise, name)(*args, **kwargs)

    return chance


def _seed(_name: str, original: Any) -> Callable[..., None]:
    def seed(self: Random, a: Any = None, version: int = 2) -> None:
        if a is None and (run := guarded_run()) is not None:
            a = run.noise.getrandbits(128)
        original(self, a, version)

    return seed


def _urandom(_name: str, original: Any) -> Callable[..., bytes]:
    def urandom(size: int, *flags: int) -> bytes:
        run = guarded_run()
        return original(size, *flags) if run is None else run.noise.randbytes(size)

    return urandom


def _getnode(_name: str, original: Any) -> Callable[..., int]:
    def getnode() -> int:
        run = guarded_run()
        # The bit says that the number is random, not that of a network card (RFC 9562, section 6.10).
        return original() if run is None else run.noise.getrandbits(48) | (1 << 40)

    return getnode
