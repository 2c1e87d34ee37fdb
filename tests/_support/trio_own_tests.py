"""A pytest plugin that runs the tests Trio ships in its wheel under our driver in place of ``trio.run``.

Loaded in a process of its own (see tests/sandbox/test_trio_own_tests.py), for it replaces ``trio.run``.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from outcome import Error
from trio._core import _run as trio_run
from trio._core._instrumentation import Instruments

from durablefuture_trio.sandbox._trio_driver import TrioDriver

REAL_RUN = trio.run
_drivers: list[TrioDriver] = []


class WorkflowClock(trio.abc.Clock):
    """What tests of Trio may do with their mock clock. Like a workflow's, time jumps when nothing can run."""

    rate = 0.0
    autojump_threshold = 0.0

    def start_clock(self) -> None:
        raise AssertionError("the driver has its own clock")

    def current_time(self) -> float:
        return _drivers[-1].now if _drivers else 0.0

    def deadline_to_sleep_time(self, deadline: float) -> float:
        raise AssertionError("the driver has its own clock")

    def jump(self, seconds: float) -> None:
        clock: Any = _drivers[-1]._clock
        clock.now += seconds


def run(
    async_fn: Callable[..., Awaitable[Any]],
    *args: Any,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
    restrict_keyboard_interrupt_to_checkpoints: bool = False,
    strict_exception_groups: bool = True,
) -> Any:
    """``trio.run`` on a `TrioDriver` whose clock jumps to the next deadline when nothing can run."""
    if trio_run.in_trio_run():
        raise RuntimeError("Attempted to call run() from inside a run()")
    if clock is not None and not isinstance(clock, WorkflowClock):
        raise NotImplementedError("a workflow brings its own clock")
    driver = TrioDriver(async_fn, now=0.0)
    runner = driver._runner
    driver._loop = trio_run.unrolled_run(runner, async_fn, args, True)
    runner.instruments = Instruments(instruments)
    runner.strict_exception_groups = strict_exception_groups
    _drivers.append(driver)
    try:
        driver.step(0.0)
        while not driver.finished:
            if driver.next_deadline == float("inf"):
                raise RuntimeError("the program waits for something that a workflow does not have")
            driver.step(driver.next_deadline)
    finally:
        _drivers.pop()
        driver.close()
    result = driver.main_outcome
    assert result is not None
    del driver, runner
    if isinstance(result, Error):
        error = result.error
        try:
            raise error
        finally:
            del error, result
    return result.unwrap()


@pytest.fixture
def mock_clock() -> WorkflowClock:
    return WorkflowClock()


@pytest.fixture
def autojump_clock() -> WorkflowClock:
    return WorkflowClock()


@pytest.fixture(autouse=True)
def under_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "run", run)
    monkeypatch.setattr(trio._core, "run", run)
    real = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: _drivers[-1].now if _drivers else real())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = trio.testing.trio_test(pyfuncitem.obj)
