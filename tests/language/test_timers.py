"""Timers: deadlines of Trio that survive everything, for any time and in any number."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
import trio

from durablefuture_trio import activity, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import RequestFailedError
from durablefuture_trio.history.events import ActivityCompleted, TimerFired, WorkflowStarted
from tests._support.language import Play

YEAR_S = 365 * 86400.0


@activity
async def double(number: int) -> int:
    return 2 * number


@workflow.signal
def go(number: int) -> None: ...


def test_a_year_passes_between_two_lines(play: Play) -> None:
    @workflow
    async def flow() -> int:
        number = await double(1)
        await trio.sleep(YEAR_S)
        return number + await double(2)

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        await play.recorded("w", ActivityCompleted)
        await play.outage(YEAR_S - 100)
        assert len(play.events("w", ActivityCompleted)) == 1
        result = await handle.result()
        (started,), (fired,) = play.events("w", WorkflowStarted), play.events("w", TimerFired)
        return [result, YEAR_S <= fired.at - started.at < YEAR_S + 500]

    assert play(scene, flow, double, patience_s=2 * YEAR_S).result == [6, True]


def test_a_timer_that_came_due_while_nothing_ran_fires_at_once(play: Play) -> None:
    @workflow
    async def flow() -> float:
        began = trio.current_time()
        await trio.sleep(100)
        return trio.current_time() - began

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        await trio.sleep(1)
        await play.outage(10 * YEAR_S)
        return await handle.result() >= 10 * YEAR_S - 100

    assert play(scene, flow, patience_s=20 * YEAR_S).result is True


def test_two_thousand_timers_of_one_run_fire_none_too_early(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        woken: list[int] = []
        began = trio.current_time()

        async def nap(number: int) -> None:
            await trio.sleep(5 + number * 0.01)
            assert trio.current_time() >= began + 5 + number * 0.01
            woken.append(number)

        async with trio.open_nursery() as nursery:
            for number in reversed(range(2000)):
                nursery.start_soon(nap, number)
        return sorted(woken) == list(range(2000))

    if play.mode == "replay":
        pytest.skip("2,000 replays of a history that grows to 2,000 events")
    played = play.run(flow, times=1)
    assert played.result is True


def test_timers_of_one_instant_are_one_activation(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        woken: list[int] = []
        at = trio.current_time() + 10

        async def nap(number: int) -> None:
            await trio.sleep_until(at)
            woken.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(2000):
                nursery.start_soon(nap, number)
        return [len(woken), int(woken == sorted(woken))]

    played = play.run(flow, times=2)
    assert played.result == [2000, 1]
    assert len(played.events("w", TimerFired)) == 1


@pytest.mark.parametrize("offset_ms", [-1, 0, 1])
def test_a_timer_and_a_signal_at_the_same_instant_go_one_way(play: Play, offset_ms: int) -> None:
    @workflow
    async def flow() -> str:
        with trio.move_on_after(10):
            await workflow.signal_channel(go).receive()
            return "signal"
        return "timer"

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        (started,) = play.events("w")
        await trio.sleep_until(started.at + 10 + offset_ms / 1000)
        try:
            await handle.signal(go, 1)
        except RequestFailedError:
            assert await handle.result() == "timer"
        return await handle.result() in ("timer", "signal")

    assert play(scene, flow).result is True


def test_a_signal_just_before_a_deadline_expires_it_not(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        with trio.move_on_after(20) as scope:
            number = await workflow.signal_channel(go).receive()
        return [scope.cancelled_caught, number]

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        await trio.sleep(5)
        await handle.signal(go, 3)
        return await handle.result()

    assert play(scene, flow).result == [False, 3]


def test_a_deadline_and_a_signal_that_both_waited_for_a_supervisor_go_one_way(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        got = 0
        with trio.move_on_after(20) as scope:
            got = await workflow.signal_channel(go).receive()
        return scope.cancelled_caught is (got == 0)

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        play.stage.dark(True)
        await trio.sleep(100)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(RequestFailedError):
                    await handle.signal(go, 1)

            nursery.start_soon(send)
            await trio.sleep(1)
            play.stage.dark(False)
        return await handle.result()

    assert play(scene, flow).result is True


def test_the_sleep_of_a_parked_run_may_be_changed_in_its_code(play: Play) -> None:
    @workflow(name="flow")
    async def long() -> str:
        await double(1)
        await trio.sleep(50_000)
        return "long"

    @workflow(name="flow")
    async def short() -> str:
        await double(1)
        await trio.sleep(60)
        return "short"

    async def scene(client: Client) -> str:
        handle = await client.start("flow", id="w", result_type=str)
        await play.recorded("w", ActivityCompleted)
        await trio.sleep(10)
        await play.deploy(short, double)
        # Deadlines are no events: the new code's counts as soon as something wakes the run.
        await handle.signal("wake up")
        return await handle.result()

    assert play(scene, long, double).result == "short"


def test_a_sleep_that_was_made_longer_is_longer(play: Play) -> None:
    @workflow(name="flow")
    async def short() -> float:
        began = trio.current_time()
        await trio.sleep(20)
        return trio.current_time() - began

    @workflow(name="flow")
    async def long() -> float:
        began = trio.current_time()
        await trio.sleep(300)
        return trio.current_time() - began

    async def scene(client: Client) -> bool:
        handle = await client.start("flow", id="w", result_type=float)
        await trio.sleep(5)
        await play.deploy(long)
        return await handle.result() >= 300

    assert play(scene, short).result is True


def test_workflow_time_stands_still_within_a_step_and_never_goes_back(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        times = [trio.current_time()]
        for number in range(5):
            before = trio.current_time()
            assert abs(datetime.now(UTC) - workflow.now()) <= timedelta(microseconds=1)  # one of them truncates
            assert trio.current_time() == before
            await double(number)
            times.append(trio.current_time())
            await trio.sleep(1.5)
            times.append(trio.current_time())
        return times == sorted(times) and times[-1] - times[0] >= 7.5

    assert play.run(flow, double).result is True


def test_sleep_until_a_time_that_has_passed_returns_at_once(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        began = trio.current_time()
        await trio.sleep_until(began - 1000)
        return trio.current_time() == began

    played = play.run(flow)
    assert played.result is True
    assert played.kinds("w") == ["WorkflowStarted", "WorkflowCompleted"]


def test_a_deadline_in_the_past_cancels_the_first_checkpoint(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        with trio.move_on_at(trio.current_time() - 1) as scope:
            await double(1)
        return scope.cancelled_caught

    played = play.run(flow, double)
    assert played.result is True
    assert played.calls("double") == 0


def test_very_short_and_very_long_sleeps_stand_beside_each_other(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        woken: list[str] = []

        async def nap(name: str, seconds: float) -> None:
            await trio.sleep(seconds)
            woken.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(nap, "a millisecond", 0.001)
            nursery.start_soon(nap, "a minute", 60)
            nursery.start_soon(nap, "a second", 1)
            nursery.start_soon(nap, "for ever", math.inf)
            await workflow.wait_until(lambda: len(woken) == 3)
            nursery.cancel_scope.cancel()
        return woken

    assert play.run(flow).result == ["a millisecond", "a second", "a minute"]


def test_a_loop_of_sleeps_makes_one_event_each(play: Play) -> None:
    @workflow
    async def flow() -> int:
        for _ in range(20):
            await trio.sleep(timedelta(seconds=30).total_seconds())
        return 20

    played = play.run(flow)
    assert played.kinds("w") == ["WorkflowStarted", *["TimerFired"] * 20, "WorkflowCompleted"]


def test_asyncio_is_not_what_sleeps_here(play: Play) -> None:
    @workflow
    async def flow() -> str:
        try:
            await asyncio.sleep(1)
        except Exception as error:
            return type(error).__name__
        return "slept"

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        with trio.move_on_after(5):
            return await handle.result() != "slept"
        await handle.terminate("blocked, as it should be")
        return True

    assert play(scene, flow).result is True
