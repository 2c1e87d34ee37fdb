"""The clocks behind the memory broker."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.memory_broker import TrioScheduler, VirtualScheduler, open_trio_scheduler


def test_virtual_calls_are_made_in_the_order_of_their_times_and_then_of_asking() -> None:
    scheduler = VirtualScheduler(100.0)
    made: list[tuple[str, float]] = []
    for name, when in (("c", 105.0), ("a", 101.0), ("b", 101.0), ("now", 100.0), ("past", 5.0)):
        scheduler.call_at(when, lambda name=name: made.append((name, scheduler.now())))  # type: ignore[misc]
    scheduler.run_for(3.0)
    assert made == [("now", 100.0), ("past", 100.0), ("a", 101.0), ("b", 101.0)]
    assert scheduler.now() == 103.0
    assert scheduler.next_due == 105.0
    assert scheduler.run_next()
    assert made[-1] == ("c", 105.0)
    assert not scheduler.run_next()
    assert scheduler.next_due is None


def test_virtual_calls_may_ask_for_further_calls() -> None:
    scheduler = VirtualScheduler(0.0)
    made: list[float] = []

    def again() -> None:
        made.append(scheduler.now())
        if len(made) < 5:
            scheduler.call_at(scheduler.now() + 1.0, again)

    scheduler.call_at(0.0, again)
    assert made == []
    scheduler.run_until(10.0)
    assert made == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert scheduler.now() == 10.0


async def test_trio_calls_are_made_at_their_times(autojump_clock: MockClock) -> None:
    made: list[tuple[str, float]] = []
    async with open_trio_scheduler(1_000_000.0) as scheduler:
        assert scheduler.now() == 1_000_000.0

        def call(name: str) -> None:
            made.append((name, round(scheduler.now() - 1_000_000.0, 6)))

        for name, after in (("late", 7.0), ("soon", 2.0), ("same", 2.0), ("now", 0.0), ("past", -3.0)):
            scheduler.call_at(scheduler.now() + after, partial(call, name))
        assert made == []
        await trio.sleep(3)
        scheduler.call_at(scheduler.now() + 1.0, partial(call, "earlier than what it waits for"))
        await trio.sleep(10)
    assert made == [
        ("now", 0.0),
        ("past", 0.0),
        ("soon", 2.0),
        ("same", 2.0),
        ("earlier than what it waits for", 4.0),
        ("late", 7.0),
    ]


async def test_trio_calls_are_never_made_from_within_the_asking(autojump_clock: MockClock) -> None:
    async with open_trio_scheduler() as scheduler:
        made: list[int] = []

        def outer() -> None:
            scheduler.call_at(scheduler.now(), lambda: made.append(2))
            made.append(1)

        scheduler.call_at(scheduler.now(), outer)
        await trio.sleep(1)
        assert made == [1, 2]


async def test_calls_that_keep_asking_do_not_hold_the_loop() -> None:
    async with open_trio_scheduler() as scheduler:
        calls = 0

        def again() -> None:
            nonlocal calls
            calls += 1
            scheduler.call_at(scheduler.now(), again)

        again()
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        assert calls > 10


@pytest.mark.parametrize("start", [0.0, 1_700_000_000.123456, 1e9 / 3])
async def test_odd_times_do_not_keep_a_clock_that_stands_still_from_jumping(
    autojump_clock: MockClock, start: float
) -> None:
    async with open_trio_scheduler(start) as scheduler:
        made: list[float] = []
        for n in range(200):
            scheduler.call_at(start + n / 7, lambda: made.append(scheduler.now()))
        with trio.fail_after(100):
            await trio.sleep(50)
        assert len(made) == 200


async def test_an_exception_of_a_call_ends_the_scheduler(autojump_clock: MockClock) -> None:
    def fail() -> None:
        raise RuntimeError("of the call")

    async def wait_for_it() -> None:
        async with open_trio_scheduler() as scheduler:
            scheduler.call_at(scheduler.now() + 1.0, fail)
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await wait_for_it()
    assert caught.group_contains(RuntimeError, match="of the call")


async def test_a_trio_scheduler_may_be_made_before_it_runs(autojump_clock: MockClock) -> None:
    scheduler = TrioScheduler()
    made: list[int] = []
    scheduler.call_at(scheduler.now() + 1.0, lambda: made.append(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        await trio.sleep(2)
        assert made == [1]
        nursery.cancel_scope.cancel()
