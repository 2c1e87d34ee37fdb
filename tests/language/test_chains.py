"""Runs that go on in others: continued as new, tried again, begun later, ended by their deadline."""

from __future__ import annotations

import pytest
import trio

from durablefuture_trio import RetryPolicy, activity, activity_options, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import (
    ApplicationError,
    RequestFailedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowTimedOutError,
)
from durablefuture_trio.history.events import (
    CancelRequested,
    SignalReceived,
    UpdateAccepted,
    UpdateCompleted,
    WorkflowStarted,
)
from tests._support.language import Performance, Play


@activity
async def double(number: int) -> int:
    return 2 * number


@workflow.signal
def add(number: int) -> None: ...


def runs_of(played: Performance[object], workflow_id: str = "w") -> int:
    return len([run for run in played.runs if run.workflow_id == workflow_id])


# --- continue_as_new --------------------------------------------------------------------------------------------------


def test_result_follows_a_chain_to_its_end(play: Play) -> None:
    @workflow
    async def countdown(number: int, total: int = 0) -> int:
        total += await double(number)
        if number:
            workflow.continue_as_new(number - 1, total)
        return total

    async def scene(client: Client) -> list[int]:
        handle = await client.start(countdown, 4, id="w")
        return [await handle.result(), await client.handle("w", countdown).result()]

    played = play(scene, countdown, double)
    assert played.result == [20, 20]
    assert runs_of(played) == 5
    assert [started.arguments.data for run in played.runs for started in run.events[:1]][-1] == b"[0,20]"


def test_run_follows_a_chain_too(play: Play) -> None:
    @workflow
    async def flow(number: int) -> int:
        if number < 3:
            workflow.continue_as_new(number + 1)
        return number

    assert play.run(flow, args=(0,)).result == 3


def test_it_works_inside_nurseries_and_cancels_what_runs_beside(play: Play) -> None:
    @workflow
    async def flow(again: bool) -> str:
        async def leave() -> None:
            await trio.sleep(5)
            workflow.continue_as_new(False)

        if again:
            async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
                nursery.start_soon(trio.sleep_forever)
                inner.start_soon(leave)
        return "new"

    played = play.run(flow, args=(True,))
    assert (played.result, runs_of(played)) == ("new", 2)


def test_a_failure_beside_it_wins(play: Play) -> None:
    @workflow
    async def flow() -> None:
        now = trio.Event()

        async def leave() -> None:
            await now.wait()
            workflow.continue_as_new()

        async def fail() -> None:
            await now.wait()
            raise ValueError("real")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            nursery.start_soon(fail)
            await trio.sleep(1)
            now.set()

    async def scene(client: Client) -> str:
        with pytest.raises(WorkflowFailedError) as caught:
            await client.run(flow, id="w")
        return str(caught.value.cause)

    assert play(scene, flow).result == "real"


def test_a_handler_may_continue_as_new(play: Play) -> None:
    @workflow
    async def flow(total: int) -> int:
        @add.handler
        def on_add(number: int) -> None:
            workflow.continue_as_new(total + number)

        await workflow.wait_until(lambda: total >= 3)
        return total

    async def scene(client: Client) -> int:
        handle = await client.start(flow, 0, id="w")
        for _ in range(3):
            await handle.signal(add, 1)
        return await handle.result()

    played = play(scene, flow)
    assert (played.result, runs_of(played)) == (3, 4)


def test_it_may_go_on_as_another_workflow(play: Play) -> None:
    @workflow
    async def second(words: str) -> str:
        return f"second {words}"

    @workflow
    async def flow() -> str:
        workflow.continue_as_new("run", workflow=second)

    async def scene(client: Client) -> str:
        return await client.run(flow, id="w")

    assert play(scene, flow, second).result == "second run"


def test_signals_that_were_not_taken_go_to_the_next_run_in_order(play: Play) -> None:
    @workflow
    async def flow(got: list[int]) -> list[int]:
        channel = workflow.signal_channel(add)
        got.append(await channel.receive())
        await double(1)
        if len(got) < 6:
            workflow.continue_as_new(got)
        return got

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, [], id="w")
        for number in range(6):
            await handle.signal(add, number)
        return await handle.result()

    played = play(scene, flow, double)
    assert played.result == [0, 1, 2, 3, 4, 5]
    assert runs_of(played) == 6
    assert sum(isinstance(event, SignalReceived) for run in played.runs for event in run.events) == 6


def test_a_signal_that_comes_around_the_change_is_never_lost(play: Play) -> None:
    @workflow
    async def flow(got: list[int]) -> list[int]:
        @add.handler
        def on_add(number: int) -> None:
            got.append(number)

        await double(1)
        if len(got) < 25:
            workflow.continue_as_new(got)
        return got

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, [], id="w")
        for number in range(25):
            await handle.signal(add, number)
            await trio.sleep(0.003)
        return await handle.result()

    played = play(scene, flow, double, times=3)
    assert played.result == list(range(25))


def test_a_cancel_goes_to_the_next_run(play: Play) -> None:
    @workflow
    async def flow(number: int) -> str:
        try:
            await trio.sleep(1000)
        except trio.Cancelled:
            if number < 2:
                workflow.continue_as_new(number + 1)  # it has something to bring to its end first
            raise
        return "slept"

    async def scene(client: Client) -> str:
        handle = await client.start(flow, 0, id="w")
        await handle.cancel("all of you")
        with pytest.raises(WorkflowCancelledError) as caught:
            await handle.result()
        return caught.value.reason

    played = play(scene, flow)
    assert played.result == "all of you"
    assert runs_of(played) == 3
    assert sum(isinstance(event, CancelRequested) for run in played.runs for event in run.events) == 1


def test_an_update_without_a_handler_is_completed_by_the_next_run(play: Play) -> None:
    @workflow
    async def flow(has_handler: bool) -> str:
        if not has_handler:
            await workflow.signal_channel(add).receive()
            workflow.continue_as_new(True)
        done = False

        @workflow.update
        async def late(number: int) -> int:
            nonlocal done
            done = True
            return await double(number)

        await workflow.wait_until(lambda: done)
        return "done"

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, False, id="w")
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await handle.update("late", 4, update_id="one"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await play.recorded("w", UpdateAccepted)
            await handle.signal(add, 1)
        answers.append(await handle.result())
        return answers

    played = play(scene, flow, double)
    assert played.result == [8, "done"]
    assert sum(isinstance(event, UpdateCompleted) for run in played.runs for event in run.events) == 1


def test_the_deadline_of_a_chain_stays_where_it_was(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await trio.sleep(10)
        workflow.continue_as_new()

    async def scene(client: Client) -> float:
        handle = await client.start(flow, id="w", execution_timeout=35)
        with pytest.raises(WorkflowTimedOutError):
            await handle.result()
        return 0.0

    played = play(scene, flow)
    first, last = played.runs[0].events[0], played.runs[-1].events[-1]
    assert runs_of(played) in (3, 4)  # a kill may delay a timer
    assert 0 <= last.at - first.execution_deadline <= 10


def test_a_chain_is_one_start_for_the_reuse_of_its_id(play: Play) -> None:
    @workflow
    async def flow(number: int) -> int:
        await double(number)
        if number:
            workflow.continue_as_new(number - 1)
        return number

    async def scene(client: Client) -> list[str]:
        first = await client.start(flow, 3, id="w", request_id="one start")
        again = await client.start(flow, 3, id="w", request_id="one start")
        assert await first.result() == await again.result() == 0
        third = await client.start(flow, 3, id="w", request_id="one start")
        return [str(first.run_id == again.run_id == third.run_id)]

    played = play(scene, flow, double)
    assert played.result == ["True"]
    assert runs_of(played) == 4


def test_info_names_the_run_and_a_query_finds_the_latest(play: Play) -> None:
    @workflow
    async def flow(number: int) -> int:
        @workflow.query
        def which() -> int:
            return number

        if number < 2:
            workflow.continue_as_new(number + 1)
        return await workflow.signal_channel(add).receive()

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, 0, id="w")
        await play.until(lambda: len([run for run in play.stage.runs() if run.workflow_id == "w"]) == 3)
        answer = await handle.query("which")
        await handle.signal(add, 9)
        return [answer, await handle.result()]

    assert play(scene, flow).result == [2, 9]


def test_a_late_result_of_the_run_before_is_not_taken_for_one_of_the_next(play: Play) -> None:
    """Calls are numbered anew in each run: the first of both has the number 1."""
    gate = play.gate()

    @activity
    async def held(words: str) -> str:
        if words == "old":
            with trio.CancelScope(shield=True):
                await gate.passed()
        else:
            await trio.sleep(20)
        return words

    @workflow
    async def flow(words: str) -> str:
        if words == "old":
            with activity_options(abandon_on_cancel=True), trio.move_on_after(5):
                await held("old")
            workflow.continue_as_new("new")
        return await held("new")

    async def scene(client: Client) -> str:
        handle = await client.start(flow, "old", id="w")
        await play.until(lambda: len(play.stage.runs()) == 2)
        await play.began("held")
        gate.open()
        return await handle.result()

    assert play(scene, flow, held).result == "new"


# --- workflow retries -------------------------------------------------------------------------------------------------


def test_a_workflow_with_a_retry_policy_is_tried_again(play: Play) -> None:
    @workflow
    async def flow() -> int:
        attempt = workflow.info().attempt
        await double(attempt)
        if attempt < 3:
            raise ValueError(f"attempt {attempt}")
        return attempt

    async def scene(client: Client) -> int:
        return await client.run(flow, id="w", retry_policy=RetryPolicy(initial_interval=10, maximum_attempts=5))

    played = play(scene, flow, double)
    assert played.result == 3
    starts = [run.events[0] for run in played.runs]
    assert [started.attempt for started in starts] == [1, 2, 3]
    ends = [run.events[-1].at for run in played.runs]
    assert 10 <= starts[1].not_before - ends[0] <= 11
    assert 20 <= starts[2].not_before - ends[1] <= 21


def test_the_last_failure_is_told_when_the_attempts_are_spent(play: Play) -> None:
    @workflow
    async def flow() -> None:
        raise ValueError(f"attempt {workflow.info().attempt}")

    async def scene(client: Client) -> str:
        with pytest.raises(WorkflowFailedError) as caught:
            await client.run(flow, id="w", retry_policy=RetryPolicy(initial_interval=1, maximum_attempts=3))
        return str(caught.value.cause)

    played = play(scene, flow)
    assert played.result == "attempt 3"
    assert runs_of(played) == 3


def test_a_failure_that_is_not_retryable_ends_the_chain(play: Play) -> None:
    @workflow
    async def flow(how: str) -> None:
        if how == "type":
            raise KeyError("no such customer")
        raise ApplicationError("no", non_retryable=True)

    async def scene(client: Client) -> int:
        policy = RetryPolicy(initial_interval=1, non_retryable_error_types=("KeyError",))
        for how in ("type", "flag"):
            with pytest.raises(WorkflowFailedError):
                await client.run(flow, how, id=how, retry_policy=policy)
        return 2

    assert len(play(scene, flow).runs) == 2


def test_a_workflow_without_a_policy_is_not_tried_again(play: Play) -> None:
    @workflow
    async def flow() -> None:
        raise ValueError("once")

    async def scene(client: Client) -> int:
        with pytest.raises(WorkflowFailedError):
            await client.run(flow, id="w")
        return 1

    assert runs_of(play(scene, flow)) == 1


def test_a_cancelled_run_is_not_tried_again(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await trio.sleep_forever()

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w", retry_policy=RetryPolicy())
        await handle.cancel("no more")
        with pytest.raises(WorkflowCancelledError):
            await handle.result()
        return "cancelled"

    assert runs_of(play(scene, flow)) == 1


def test_a_signal_in_the_backoff_of_a_retry_is_the_next_attempts(play: Play) -> None:
    @workflow
    async def flow() -> int:
        if workflow.info().attempt == 1:
            raise ValueError("first")
        return await workflow.signal_channel(add).receive()

    async def scene(client: Client) -> int:
        handle = await client.start(flow, id="w", retry_policy=RetryPolicy(initial_interval=60))
        await play.until(lambda: len(play.stage.runs()) == 2)
        await handle.signal(add, 5)
        return await handle.result()

    assert play(scene, flow).result == 5


def test_last_result_is_what_the_run_before_returned(play: Play) -> None:
    @workflow
    async def flow() -> int:
        before = workflow.last_result(int)
        return 1 if before is None else before + 1

    async def scene(client: Client) -> list[int]:
        return [await client.run(flow, id="w") for _ in range(3)]

    assert play(scene, flow).result == [1, 2, 3]


# --- when it begins and when it has to end ----------------------------------------------------------------------------


def test_a_delayed_start_is_recorded_at_once_and_begins_later(play: Play) -> None:
    @workflow
    async def flow() -> float:
        return trio.current_time()

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w", start_delay=120)
        (started,) = play.events("w", WorkflowStarted)
        return await handle.result() >= started.not_before

    played = play(scene, flow)
    assert played.result is True
    assert played.kinds("w") == ["WorkflowStarted", "TimerFired", "WorkflowCompleted"]


def test_a_delayed_start_takes_signals_before_it_begins(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        channel = workflow.signal_channel(add)
        return [await channel.receive(), await channel.receive()]

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w", start_delay=60, start_signal=(add, (1,)))
        await handle.signal(add, 2)
        return await handle.result()

    assert play(scene, flow).result == [1, 2]


def test_an_execution_timeout_ends_a_run_without_its_code(play: Play) -> None:
    @workflow
    async def flow() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await double(1)

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w", execution_timeout=15)
        with pytest.raises(WorkflowTimedOutError):
            await handle.result()
        with pytest.raises(RequestFailedError):
            await handle.signal(add, 1)
        return "timed out"

    played = play(scene, flow, double)
    assert played.kinds("w")[-1] == "WorkflowTimedOut"
    assert played.calls("double") == 0


def test_a_timeout_is_enforced_although_nothing_ran_when_it_passed(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await trio.sleep_forever()

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w", execution_timeout=1000)
        await trio.sleep(1)
        await play.outage(5000)
        with pytest.raises(WorkflowTimedOutError):
            await handle.result()
        return "timed out"

    assert play(scene, flow, patience_s=20_000).result == "timed out"


def test_an_execution_timeout_spans_the_attempts_of_a_retry_policy(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await trio.sleep(5)
        raise ValueError("again")

    async def scene(client: Client) -> bool:
        policy = RetryPolicy(initial_interval=1, backoff_coefficient=1)
        handle = await client.start(flow, id="w", retry_policy=policy, execution_timeout=30)
        with pytest.raises((WorkflowTimedOutError, WorkflowFailedError)):  # no attempt begins that would be too late
            await handle.result()
        return True

    played = play(scene, flow)
    assert 2 <= runs_of(played) <= 6
