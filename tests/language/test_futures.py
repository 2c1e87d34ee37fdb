"""Durable futures and what waits for several of them."""

from __future__ import annotations

import pytest
import trio

from durablefuture_trio import (
    ActivityError,
    RetryPolicy,
    activity,
    as_completed,
    durable_map,
    first,
    gather,
    outcomes,
    workflow,
)
from durablefuture_trio.client import Client
from durablefuture_trio.errors import WorkflowFailedError
from durablefuture_trio.history.events import (
    ActivityCancelled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityScheduled,
)
from tests._support.language import Play

SINGLE = ("worker", "supervisor")
"""Who is spared where the outcome or the order of calls with one attempt counts."""


@activity
async def double(number: int) -> int:
    return 2 * number


@activity(retry_policy=RetryPolicy(maximum_attempts=1))
async def after(seconds: float, name: str = "") -> str:
    await trio.sleep(seconds)
    if name.startswith("bad"):
        raise ValueError(name)
    return name


@activity(retry_policy=RetryPolicy(maximum_attempts=1))
async def odd_only(number: int) -> int:
    if number % 2 == 0:
        raise ValueError(f"{number} is even")
    return number


@workflow.signal
def go() -> None: ...


def test_a_submitted_activity_runs_while_the_code_goes_on(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        future = after.submit(5, "tea")
        was_done = future.done()
        await trio.sleep(60)
        return [was_done, future.done(), await future]

    played = play.run(flow, after, spare=SINGLE)
    assert played.result == [False, True, "tea"]


def test_a_future_may_be_awaited_by_many_and_again(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        future = double.submit(4)
        got: list[int] = []

        async def wait() -> None:
            got.append(await future)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
        return [*got, await future]

    played = play.run(flow, double)
    assert played.result == [8, 8, 8, 8]
    assert played.calls("double") == 1


def test_futures_are_hashable_and_wait_does_not_raise(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        futures = {odd_only.submit(number): number for number in (1, 2)}
        for future in futures:
            await future.wait()
        return [number for future, number in futures.items() if future.done()]

    assert play.run(flow, odd_only, spare=SINGLE).result == [1, 2]


def test_cancelling_a_waiter_does_not_cancel_the_future(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        future = after.submit(30, "tea")
        with trio.move_on_after(5) as scope:
            await future
        return [scope.cancelled_caught, await future]

    played = play.run(flow, after, spare=SINGLE)
    assert played.result == [True, "tea"]
    assert played.events("w", ActivityCancelRequested) == []


def test_a_cancelled_future_raises_an_activity_error_and_no_cancelled(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        future = after.submit(5000, "tea")
        await trio.sleep(3)
        future.cancel()
        future.cancel()
        try:
            await future
        except ActivityError as error:
            return [error.reason, future.done()]
        return []

    played = play.run(flow, after, spare=SINGLE)
    assert played.result == ["cancelled", True]
    assert len(played.events("w", ActivityCancelRequested)) == 1


def test_outstanding_futures_are_cancelled_and_waited_for_at_the_end(play: Play) -> None:
    @workflow
    async def flow() -> str:
        for number in range(4):
            after.submit(5000 + number)
        await trio.sleep(1)
        return "done"

    played = play.run(flow, after, spare=SINGLE)
    assert played.result == "done"
    assert len(played.events("w", ActivityCancelled)) == 4
    assert played.kinds("w")[-1] == "WorkflowCompleted"


def test_outstanding_futures_are_cancelled_when_the_run_fails(play: Play) -> None:
    @workflow
    async def flow() -> str:
        after.submit(5000)
        await trio.sleep(1)
        raise ValueError("no")

    async def scene(client: Client) -> str:
        with pytest.raises(WorkflowFailedError) as caught:
            await client.run(flow, id="w")
        return str(caught.value.cause)

    played = play(scene, flow, after, spare=SINGLE)
    assert played.result == "no"
    assert len(played.events("w", ActivityCancelled)) == 1


def test_a_failed_future_that_nobody_awaits_does_no_harm(play: Play) -> None:
    @workflow
    async def flow() -> str:
        odd_only.submit(2)
        await trio.sleep(20)
        return "fine"

    assert play.run(flow, odd_only, spare=SINGLE).result == "fine"


# --- several ----------------------------------------------------------------------------------------------------------


def test_gather_gives_the_results_in_the_order_they_were_asked_in(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        return list(await gather(after.submit(9, "slow"), after.submit(1, "fast"), after.submit(5, "middle")))

    assert play.run(flow, after, spare=SINGLE).result == ["slow", "fast", "middle"]


def test_gather_of_nothing_is_an_empty_tuple(play: Play) -> None:
    @workflow
    async def flow() -> int:
        return len(await gather())

    assert play.run(flow).result == 0


def test_the_first_failure_in_gather_cancels_the_rest_and_is_raised(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        futures = [after.submit(3000, "a"), after.submit(2, "bad"), after.submit(3000, "b")]
        try:
            await gather(*futures)
        except ActivityError as error:
            return [str(error.cause), *(future.done() for future in futures)]
        return []

    played = play.run(flow, after, spare=SINGLE)
    assert played.result == ["bad", True, True, True]
    assert [event.activity_id for event in played.events("w", ActivityCancelRequested)] == [1, 3]


def test_outcomes_gives_failures_in_their_places(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        found = await outcomes(*(odd_only.submit(number) for number in range(5)))
        return [str(it.cause) if isinstance(it, ActivityError) else it for it in found]

    played = play.run(flow, odd_only, spare=SINGLE)
    assert played.result == ["0 is even", 1, "2 is even", 3, "4 is even"]


def test_first_gives_the_future_that_was_done_first(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        quotes = [after.submit(900, "slow"), after.submit(5, "quick"), after.submit(900, "never")]
        fastest = await first(*quotes)
        for quote in quotes:
            quote.cancel()
        return [quotes.index(fastest), await fastest]

    played = play.run(flow, after, spare=SINGLE)
    assert played.result == [1, "quick"]
    assert len(played.events("w", ActivityCancelled)) == 2


def test_as_completed_goes_by_the_order_in_the_history(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        futures = [after.submit(seconds, f"{seconds}") for seconds in (30, 10, 20, 0)]
        return [future.result() async for future in as_completed(futures)]

    assert play.run(flow, after, spare=SINGLE).result == ["0", "10", "20", "30"]


def test_as_completed_may_be_left_in_the_middle(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        futures = [after.submit(seconds, f"{seconds}") for seconds in (3, 1, 2000)]
        got: list[str] = []
        async for future in as_completed(futures):
            got.append(future.result())
            if len(got) == 2:
                break
        return got

    played = play.run(flow, after, spare=SINGLE)
    assert played.result == ["1", "3"]
    assert len(played.events("w", ActivityCancelled)) == 1


def test_as_completed_in_the_chosen_order_is_the_same_after_a_replay(play: Play) -> None:
    """Whatever order the outcomes come in, it is in the history."""

    @workflow
    async def flow() -> bool:
        futures = [double.submit(number) for number in range(20)]
        order = [future.result() async for future in as_completed(futures)]
        return sorted(order) == [2 * number for number in range(20)]

    played = play.run(flow, double)
    assert played.result is True


# --- durable_map ------------------------------------------------------------------------------------------------------


def test_durable_map_gives_results_in_the_order_of_the_items(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        return await durable_map(double, range(50), concurrency=7)

    played = play.run(flow, double, times=2)
    assert played.result == [2 * number for number in range(50)]
    assert played.calls("double") == 50


def test_durable_map_keeps_no_more_open_than_it_is_told(play: Play) -> None:
    @workflow
    async def flow() -> int:
        return len(await durable_map(double, range(30), concurrency=4))

    played = play.run(flow, double, times=2)
    is_open, most = 0, 0
    for event in played.events("w"):
        if isinstance(event, ActivityScheduled) and event.attempt == 1:
            is_open += 1
        elif isinstance(event, ActivityCompleted):
            is_open -= 1
        most = max(most, is_open)
    assert (played.result, most) == (30, 4)


def test_one_failure_too_many_ends_a_durable_map(play: Play) -> None:
    @workflow
    async def flow() -> str:
        try:
            await durable_map(odd_only, [1, 3, 5, 6, 7, 9], concurrency=2)
        except ActivityError as error:
            return str(error.cause)
        return ""

    assert play.run(flow, odd_only, spare=SINGLE).result == "6 is even"


@pytest.mark.parametrize(
    ("tolerate", "is_enough"), [(5, True), (4, False), (0.5, True), (0.4, False), ("all", True), (None, False)]
)
def test_durable_map_tolerates_as_many_failures_as_it_is_told(play: Play, tolerate: object, is_enough: bool) -> None:
    @workflow
    async def flow() -> int:
        try:
            found = await durable_map(odd_only, range(10), tolerate=tolerate)
        except ActivityError:
            return -1
        return sum(isinstance(item, ActivityError) for item in found)

    played = play.run(flow, odd_only, spare=SINGLE, times=1)
    assert played.result == (5 if is_enough else -1)


def test_a_cancelled_durable_map_cancels_what_is_open_and_starts_nothing_more(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        with trio.move_on_after(5) as scope:
            await durable_map(after, [1000.0 + number for number in range(20)], concurrency=3)
        return scope.cancelled_caught

    played = play.run(flow, after, spare=SINGLE)
    assert played.result is True
    assert len(played.events("w", ActivityScheduled)) == 3
    assert len(played.events("w", ActivityCancelled)) == 3


def test_a_map_of_ten_thousand_items_is_complete(play: Play) -> None:
    @workflow
    async def flow() -> int:
        return sum(await durable_map(double, range(10_000), concurrency=500))

    if play.mode == "replay":
        pytest.skip("10,000 replays of a history that grows to 30,000 events")
    played = play.run(flow, double, times=1)
    assert played.result == 2 * sum(range(10_000))
    assert played.calls("double") == 10_000


def test_a_map_over_child_workflows(play: Play) -> None:
    @workflow
    async def square(number: int) -> int:
        await double(number)
        return number * number

    @workflow
    async def flow() -> list[int]:
        return await durable_map(square, range(6), concurrency=3)

    assert play.run(flow, square, double).result == [0, 1, 4, 9, 16, 25]
