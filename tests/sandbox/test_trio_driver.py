"""Stepping Trio by hand: what it leaves untouched, and what it survives."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import outcome
import pytest
import sniffio
import trio
import trio.testing
from trio._core import _run as trio_run

from durablefuture_trio.sandbox import _trio_driver
from durablefuture_trio.sandbox._trio_driver import TrioDriver

marker: ContextVar[str] = ContextVar("marker")


@pytest.fixture(autouse=True)
def _every_driver_is_let_go() -> Iterator[None]:
    before = set(_trio_driver._live)
    yield
    assert before >= _trio_driver._live


async def test_a_run_is_stepped_inside_another_trio_run_which_notices_nothing() -> None:
    log: list[Any] = []

    async def main() -> str:
        log.append((trio.current_time(), sniffio.current_async_library()))
        await trio.sleep(5)
        log.append(trio.current_time())
        return "done"

    before = dict(trio_run.GLOBAL_RUN_CONTEXT.__dict__)
    hooks = sys.get_asyncgen_hooks()
    driver = TrioDriver(main, now=1000.0)
    driver.step(1000.0)
    assert trio_run.GLOBAL_RUN_CONTEXT.__dict__ == before
    assert sys.get_asyncgen_hooks() == hooks
    assert trio_run._ALLOW_DETERMINISTIC_SCHEDULING is not True or "hypothesis" in sys.modules
    assert isinstance(trio_run._r, __import__("random").Random)
    assert gc.isenabled()
    task = trio.lowlevel.current_task()
    await trio.sleep(0.001)
    driver.step(1005.0)
    assert trio.lowlevel.current_task() is task
    assert log == [(1000.0, "trio"), 1005.0]
    assert driver.main_outcome == outcome.Value("done")
    assert driver.finished
    assert dict(trio_run.GLOBAL_RUN_CONTEXT.__dict__) == before


async def test_runs_are_stepped_in_turn_with_a_clock_each() -> None:
    times: dict[int, list[float]] = {}

    async def main(number: int) -> None:
        times[number] = []
        for _ in range(3):
            await trio.sleep(number)
            times[number].append(trio.current_time())

    drivers = {number: TrioDriver(lambda number=number: main(number), now=100.0 * number) for number in (1, 2, 3)}  # type: ignore[misc]
    for number, driver in drivers.items():
        driver.step(100.0 * number)
    for _ in range(3):
        for driver in drivers.values():
            driver.step(driver.next_deadline)
            await trio.lowlevel.checkpoint()
    assert times == {1: [101.0, 102.0, 103.0], 2: [202.0, 204.0, 206.0], 3: [303.0, 306.0, 309.0]}


def test_it_works_without_any_trio_run_around_it_and_leaves_none_behind() -> None:
    driver = TrioDriver(trio.sleep_forever, now=0.0)
    driver.step(0.0)
    assert driver.next_deadline == float("inf")
    assert not trio.lowlevel.in_trio_run()
    driver.close()
    assert not trio.lowlevel.in_trio_run()


def test_tasks_run_in_the_order_they_were_spawned_in() -> None:
    order: list[int] = []

    async def child(number: int) -> None:
        for _ in range(3):
            order.append(number)
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(child, number)

    driver = TrioDriver(main, now=0.0)
    driver.step(0.0)
    assert order == [0, 1, 2, 3, 4] * 3


def test_deadlines_far_away_are_known_exactly() -> None:
    async def main() -> None:
        await trio.sleep(400 * 24 * 3600)

    driver = TrioDriver(main, now=1_800_000_000.0)
    driver.step(1_800_000_000.0)
    assert driver.next_deadline == 1_800_000_000.0 + 400 * 24 * 3600
    driver.close()


def test_waiting_until_all_others_are_blocked_takes_no_workflow_time() -> None:
    log: list[str] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await trio.testing.wait_all_tasks_blocked(0.5)
            log.append("woken")

    async def other() -> None:
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        log.append("blocked")
        await trio.sleep(100)

    driver = TrioDriver(main, now=0.0)
    driver.step(0.0)
    assert log == ["blocked", "woken"]
    driver.close()


def test_calls_through_the_trio_token_wake_the_run() -> None:
    log: list[float] = []

    async def main() -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(lambda: log.append(trio.current_time()))
        await trio.sleep(1)

    driver = TrioDriver(main, now=7.0)
    driver.step(7.0)
    assert log == [7.0]
    driver.close()


def test_a_crash_of_the_loop_is_reported_and_the_surroundings_are_put_back() -> None:
    async def crash() -> None:
        raise ValueError("in a system task")

    async def main() -> None:
        trio.lowlevel.spawn_system_task(crash)
        await trio.sleep_forever()

    driver = TrioDriver(main, now=0.0)
    with pytest.raises(trio.TrioInternalError):
        driver.step(0.0)
    assert driver.finished
    assert not trio.lowlevel.in_trio_run()
    driver.close()


# --- garbage ----------------------------------------------------------------------------------------------------------


def test_garbage_is_not_collected_while_a_run_is_stepped() -> None:
    collecting = []

    async def main() -> None:
        collecting.append(gc.isenabled())

    assert gc.isenabled()
    TrioDriver(main, now=0.0).step(0.0)
    assert collecting == [False]
    assert gc.isenabled()


def test_a_driver_that_is_forgotten_cannot_wipe_the_context_of_the_run_being_stepped() -> None:
    def forget() -> None:
        driver = TrioDriver(trio.sleep_forever, now=0.0)
        driver.step(0.0)

    before = set(_trio_driver._live)
    forget()
    (forgotten,) = _trio_driver._live - before

    async def main() -> str:
        gc.collect()
        await trio.lowlevel.checkpoint()
        return "undisturbed"

    driver = TrioDriver(main, now=0.0)
    driver.step(0.0)
    assert driver.main_outcome == outcome.Value("undisturbed")
    forgotten.close()


def test_closing_ends_every_task_in_its_own_context_and_refuses_what_they_await() -> None:
    log: list[str] = []

    async def child(name: str) -> None:
        marker.set(name)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()
        finally:
            log.append(f"{marker.get()} leaves")
            await trio.sleep(1)
            log.append("slept")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, "a")
            nursery.start_soon(child, "b")

    driver = TrioDriver(main, now=0.0)
    driver.step(0.0)
    driver.close()
    assert sorted(log) == ["a leaves", "b leaves"]
    assert driver.finished


def test_closing_ends_the_tasks_that_are_started_on_the_way_out() -> None:
    log: list[str] = []

    async def undo() -> None:
        log.append("undone")

    async def main() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
                    nursery.start_soon(undo)
                    inner.start_soon(undo)
                    log.append("started")

    driver = TrioDriver(main, now=0.0)
    driver.step(0.0)
    driver.close()
    gc.collect()  # what was left lying about would warn now, which is an error here
    assert log == ["started"]


def test_closing_ends_async_generators_that_nobody_iterates_any_more() -> None:
    log: list[str] = []

    async def numbers() -> Any:
        try:
            yield 1
        finally:
            log.append("generator left")
            await trio.sleep(1)
            log.append("slept")

    async def main() -> None:
        generator = numbers()
        await anext(generator)
        await trio.sleep_forever()

    driver = TrioDriver(main, now=0.0)
    driver.step(0.0)
    driver.close()
    gc.collect()
    assert log == ["generator left"]


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_abandoned_async_generators_are_finalized_in_the_order_of_their_creation() -> None:
    log: list[Any] = []

    async def numbers(name: int) -> Any:
        try:
            yield name
        finally:
            log.append(name)

    async def main() -> None:
        kept = [numbers(number) for number in range(20)]
        for generator in kept:
            await anext(generator)
        dropped = numbers(100)
        await anext(dropped)
        del dropped
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        log.append("end of main")
        everything.extend(kept)

    everything: list[Any] = []
    driver = TrioDriver(main, now=0.0)
    driver.step(0.0)
    assert driver.finished
    assert log == [100, "end of main", *range(20)]


def test_closing_twice_or_before_the_first_step_is_fine() -> None:
    driver = TrioDriver(trio.sleep_forever, now=0.0)
    driver.close()
    driver.close()
