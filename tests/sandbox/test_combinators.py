"""Waiting for several futures: all, the first, each as it comes; and maps over many items."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from durablefuture_trio import (
    ActivityError,
    activity,
    as_completed,
    durable_map,
    first,
    gather,
    outcomes,
    workflow,
)
from durablefuture_trio.engine.commands import Command, ScheduleActivity
from durablefuture_trio.history.events import ActivityScheduled
from tests._support.sandbox import START
from tests._support.stories import failure_of, names_of, replays, result_of, run_of


@activity
async def work(word: str) -> str:
    return word


@activity
async def double(number: int) -> int:
    return number * 2


@activity(abandon_on_cancel=True)
async def abandonable(word: str) -> str:
    return word


# --- gather and outcomes ----------------------------------------------------------------------------------------------


def test_gather_gives_the_results_in_the_order_of_the_futures() -> None:
    @workflow
    async def main() -> list[Any]:
        one, two = work.submit("a"), double.submit(4)
        return list(await gather(one, two, one))

    story = run_of(main)
    story.start()
    story.complete(2, 8)
    replays(story)
    story.complete(1, "A")
    assert result_of(story) == ["A", 8, "A"]


def test_gather_of_nothing_is_empty() -> None:
    @workflow
    async def main() -> list[Any]:
        return [list(await gather()), list(await outcomes())]

    story = run_of(main)
    story.start()
    assert result_of(story) == [[], []]


def test_the_first_failure_in_gather_cancels_the_others_and_is_raised_when_they_have_ended() -> None:
    @workflow
    async def main() -> list[Any]:
        futures = [work.submit(str(number)) for number in range(4)]
        try:
            await gather(*futures)
        except ActivityError as error:
            return [error.activity_id, error.reason, [future.done() for future in futures]]
        return []

    story = run_of(main)
    story.start()
    story.complete(1, "")
    assert names_of(story.fail(3)) == ["Cancel 2", "Cancel 4"]
    replays(story)
    assert story.cancelled(4) == []
    story.fail(2, "another failure")
    assert result_of(story) == [3, "error", [True] * 4]


def test_gather_of_futures_that_have_failed_already_raises_the_earliest_failure() -> None:
    @workflow
    async def main() -> int:
        futures = [work.submit(str(number)) for number in range(3)]
        await outcomes(*futures)
        try:
            await gather(*futures)
        except ActivityError as error:
            return error.activity_id
        return 0

    story = run_of(main)
    story.start()
    story.complete(1, "")
    story.fail(3)
    story.fail(2)
    assert result_of(story) == 3


def test_a_task_that_is_cancelled_in_gather_stops_waiting_and_the_calls_go_on() -> None:
    @workflow
    async def main() -> list[str]:
        futures = [work.submit(str(number)) for number in range(2)]
        with trio.move_on_after(5):
            await gather(*futures)
        return list(await gather(*futures))

    story = run_of(main)
    story.start()
    assert story.fire() == []
    story.complete(1, "a")
    story.complete(2, "b")
    assert result_of(story) == ["a", "b"]


def test_outcomes_has_the_exceptions_in_their_places_and_cancels_nothing() -> None:
    @workflow
    async def main() -> list[str]:
        futures = [work.submit(str(number)) for number in range(3)]
        return [
            f"{found.reason} {found.activity_id}" if isinstance(found, ActivityError) else str(found)
            for found in await outcomes(*futures)
        ]

    story = run_of(main)
    story.start()
    assert story.fail(2) == []
    story.complete(3, "three")
    story.cancelled(1)
    assert result_of(story) == ["cancelled 1", "error 2", "three"]


def test_what_is_no_future_is_refused() -> None:
    @workflow
    async def main() -> list[str]:
        problems = []
        coroutine: Any = work("x")
        for call in (gather, outcomes, first):
            try:
                await call(coroutine)
            except TypeError as error:
                problems.append(str(error))
        coroutine.close()
        return problems

    story = run_of(main)
    story.start()
    assert len(result_of(story)) == 3
    assert "is no DurableFuture: make one with `act.submit(...)`" in result_of(story)[0]


# --- the first, and each as it comes ----------------------------------------------------------------------------------


def test_first_gives_the_future_that_is_done_first_and_the_others_go_on() -> None:
    @workflow
    async def main() -> list[str]:
        futures = [work.submit(str(number)) for number in range(3)]
        winner = await first(*futures)
        again = await first(*futures)
        return [await winner, str(futures.index(winner)), str(again is winner), *await gather(*futures)]

    story = run_of(main)
    story.start()
    assert story.complete(2, "second") == []
    replays(story)
    story.complete(1, "first")
    story.complete(3, "third")
    assert result_of(story) == ["second", "1", "True", "first", "second", "third"]


def test_first_gives_a_future_that_failed_too_and_needs_one_at_all() -> None:
    @workflow
    async def main() -> list[Any]:
        winner = await first(work.submit("a"))
        try:
            await first()
        except ValueError as error:
            return [winner.done(), str(error)]
        return []

    story = run_of(main)
    story.start()
    story.fail(1)
    assert result_of(story) == [True, "first() needs at least one future to wait for"]


def test_as_completed_gives_the_futures_in_the_order_of_their_outcomes() -> None:
    @workflow
    async def main() -> list[str]:
        futures = [work.submit(str(number)) for number in range(5)]
        await futures[3].wait()
        log = []
        async for future in as_completed(futures):
            log.append(str(futures.index(future)))
            if len(log) == 3:
                await trio.sleep(10)
        return log

    story = run_of(main)
    story.start()
    for call in (2, 4, 1):
        story.complete(call, "")
    replays(story)
    story.fail(5)
    story.complete(3, "")
    story.fire()
    assert result_of(story) == ["1", "3", "0", "4", "2"]


def test_as_completed_may_be_left_in_the_middle_and_gone_on_with() -> None:
    @workflow
    async def main() -> list[str]:
        waiting = as_completed([work.submit("a"), work.submit("b")])
        log = []
        async for future in waiting:
            log.append(await future)
            break
        with trio.move_on_after(1):
            await anext(waiting)
        return [*log, *[await future async for future in waiting]]

    story = run_of(main)
    story.start()
    story.complete(2, "b")
    story.fire()
    story.complete(1, "a")
    assert result_of(story) == ["b", "a"]


def test_two_tasks_cannot_share_one_as_completed() -> None:
    @workflow
    async def main() -> None:
        waiting = as_completed([work.submit("a"), work.submit("b")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting.__anext__)
            nursery.start_soon(waiting.__anext__)

    story = run_of(main)
    story.start()
    assert "another task is already waiting" in failure_of(story).message


# --- maps -------------------------------------------------------------------------------------------------------------


def open_after(commands: list[Command], opened: set[int]) -> set[int]:
    opened |= {command.call for command in commands if isinstance(command, ScheduleActivity)}
    return opened


def test_a_map_keeps_so_many_calls_open_and_gives_the_results_in_order() -> None:
    @workflow
    async def main() -> list[int]:
        return await durable_map(double, range(7), concurrency=3)

    story = run_of(main)
    opened = open_after(story.start(), set())
    widths = [len(opened)]
    while opened:
        call = max(opened)
        opened.discard(call)
        open_after(story.complete(call, (call - 1) * 2), opened)
        widths.append(len(opened))
        if opened:
            replays(story)
    assert widths == [3, 3, 3, 3, 3, 2, 1, 0]
    assert result_of(story) == [0, 2, 4, 6, 8, 10, 12]


def test_the_first_failure_ends_a_map_unless_told_otherwise() -> None:
    @workflow
    async def main() -> list[int]:
        return await durable_map(double, range(5), concurrency=3)

    story = run_of(main)
    story.start()
    assert names_of(story.fail(2, "bad item")) == ["Cancel 1", "Cancel 3"]
    assert story.cancelled(3) == []
    story.complete(1, 0)
    assert (failure_of(story).type, failure_of(story).cause.message) == ("ActivityError", "bad item")
    assert sum(isinstance(event, ActivityScheduled) for event in story.events) == 3


@pytest.mark.parametrize(("tolerate", "allowed"), [(2, 2), (0.3, 3), (0.29, 2), ("all", 10), (0, 0)])
def test_a_map_tolerates_a_number_a_fraction_or_all_failures(tolerate: Any, allowed: int) -> None:
    @workflow
    async def main() -> list[Any]:
        found = await durable_map(double, range(10), concurrency=10, tolerate=tolerate)
        return ["failed" if isinstance(one, ActivityError) else one for one in found]

    for failures in {allowed, min(allowed + 1, 10)}:
        story = run_of(main)
        story.start()
        for call in range(1, failures + 1):
            story.fail(call)
        for call in range(failures + 1, 11):
            if failures <= allowed:
                story.complete(call, call)
            else:
                story.cancelled(call)
        if failures <= allowed:
            assert result_of(story) == ["failed"] * failures + list(range(failures + 1, 11))
        else:
            assert failure_of(story).info["activity_id"] == allowed + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency must be an integer of at least 1"),
        ({"tolerate": -1}, "must not be negative"),
        ({"tolerate": 1.5}, "between 0 and 1"),
        ({"tolerate": "some"}, "must be a number of failures"),
    ],
)
async def test_a_map_refuses_numbers_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        await durable_map(double, [1], **options)


async def test_a_map_outside_of_a_workflow_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="call the activity for each item"):
        await durable_map(double, [1])


def test_a_map_that_is_cancelled_cancels_its_calls_and_waits_for_them() -> None:
    @workflow
    async def main() -> float:
        with trio.move_on_after(5):
            await durable_map(double, range(5), concurrency=2)
        return trio.current_time() - START

    story = run_of(main)
    story.start()
    assert names_of(story.fire()) == ["Cancel 1", "Cancel 2"]
    replays(story)
    story.complete(1, 1, after=1)
    story.cancelled(2, after=1)
    assert result_of(story) == 7


def test_a_map_of_no_items_is_empty() -> None:
    @workflow
    async def main() -> list[int]:
        return await durable_map(double, [])

    story = run_of(main)
    story.start()
    assert result_of(story) == []


def test_ten_thousand_items_need_no_task_each() -> None:
    @workflow
    async def main() -> int:
        return sum(await durable_map(double, range(10_000), concurrency=1000))

    story = run_of(main)
    opened = sorted(open_after(story.start(), set()))
    assert len(opened) == 1000
    run = story.host._runs["run-1"]  # type: ignore[attr-defined] # it is a ReplayHost
    tasks = len(run._driver._runner.tasks)
    for call in range(1, 10_001):
        story.complete(call, 1)
    assert result_of(story) == 10_000
    assert tasks < 10
