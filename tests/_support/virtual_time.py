"""Tests in virtual time: the clock jumps ahead when no task can run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from trio.abc import Clock, Instrument
from trio.testing import MockClock


def run_in_virtual_time(
    async_fn: Callable[[], Awaitable[Any]], *, clock: Clock | None = None, instruments: Sequence[Instrument] = ()
) -> Any:
    """`trio.run` with a clock that jumps, as pytest-trio calls it."""
    return trio.run(async_fn, clock=clock or MockClock(autojump_threshold=0), instruments=instruments)
