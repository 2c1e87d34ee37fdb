"""Calls that go on by themselves: what workflow code sees of one future, and what the end of the run does to it."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from durablefuture_trio import (
    ActivityError,
    DurableFuture,
    LimitExceededError,
    activity,
    activity_options,
    gather,
    workflow,
)
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.engine.commands import CompleteWorkflow, FailWorkflow, ScheduleActivity
from durablefuture_trio.ports.frames import Blocked
from durablefuture_trio.sandbox import _calls
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.sandbox import START, Story
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


# --- one future -------------------------------------------------------------------------------------------------------


def test_a_submitted_activity_is_scheduled_at_once_and_awaited_later() -> None:
    @workflow
    async def main() -> list[str]:
        future = work.submit("early")
        later = await work("later")
        return [later, await future]

    story = run_of(main)
    assert names_of(story.start()) == ["Schedule 1", "Schedule 2"]
    story.complete(1, "one")
    replays(story)
    story.complete(2, "two")
    assert result_of(story) == ["two", "one"]


def test_arguments_are_checked_and_encoded_where_submit_is_called() -> None:
    @activity
    async def store(items: list[int]) -> None: ...

    @workflow
    async def main() -> str:
        items = [1]
        future = store.submit(items)
        items.append(2)
        await future
        try:
            store.submit()
        except TypeError as error:
            return str(error)
        return ""

    story = run_of(main)
    (schedule,) = story.start()
    assert isinstance(schedule, ScheduleActivity)
    assert schedule.arguments.data == b"[[1]]"
    assert schedule.source.startswith(f"{__file__}:")
    story.complete(1)
    assert "missing argument 'items'" in result_of(story)


def test_options_of_the_scope_and_of_with_options_hold_for_submit() -> None:
    @workflow
    async def main() -> None:
        with activity_options(task_queue="gpu", start_to_close_timeout=5):
            futures = [work.submit("a"), work.with_options(task_queue="tpu").submit("b")]
        await gather(*futures, work.submit("c"))

    story = run_of(main)
    options = [command.options for command in story.start() if isinstance(command, ScheduleActivity)]
    assert [option.task_queue for option in options] == ["gpu", "tpu", "default"]
    assert [option.start_to_close_timeout for option in options] == [5, 5, 600]


def test_a_future_says_whether_it_is_done_and_gives_its_result_again_and_again() -> None:
    @workflow
    async def main() -> list[Any]:
        future = work.submit("x")
        seen: list[Any] = [future.done()]
        try:
            future.result()
        except RuntimeError as error:
            seen.append("is not done" in str(error))
        await future.wait()
        seen += [future.done(), future.result(), await future, await future]
        return seen

    story = run_of(main)
    story.start()
    story.complete(1, "done")
    assert result_of(story) == [False, True, True, "done", "done", "done"]


def test_waiting_for_a_future_that_failed_does_not_raise_but_its_result_does() -> None:
    @workflow
    async def main() -> list[Any]:
        future = work.submit("x")
        await future.wait()
        errors = []
        for _ in range(2):
            try:
                future.result()
            except ActivityError as error:
                errors.append(error)
        return [str(errors[0]), str(errors[0].__cause__), errors[0] is not errors[1]]

    story = run_of(main)
    story.start()
    story.fail(1, "declined")
    assert result_of(story) == ["activity 'work' failed after 1 attempt: declined", "declined", True]


def test_several_tasks_wait_for_one_future() -> None:
    @workflow
    async def main() -> list[str]:
        log: list[str] = []
        future = work.submit("x")

        async def wait(name: str) -> None:
            log.append(f"{name} {await future}")

        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(wait, name)
        return log

    story = run_of(main)
    story.start()
    story.complete(1, "done")
    assert result_of(story) == ["a done", "b done", "c done"]


def test_a_cancelled_waiter_does_not_cancel_the_call_the_run_owns_it() -> None:
    @workflow
    async def main() -> list[Any]:
        future = work.submit("slow")
        with trio.move_on_after(10) as scope:
            await future
        return [scope.cancelled_caught, await future]

    story = run_of(main)
    story.start()
    assert story.fire() == []
    replays(story)
    story.complete(1, "done", after=5)
    assert result_of(story) == [True, "done"]


def test_a_future_remembers_no_waiter_that_has_left() -> None:
    kept: list[DurableFuture[str]] = []

    @workflow
    async def main() -> str:
        future = work.submit("slow")
        kept.append(future)
        for _ in range(3):
            with trio.move_on_after(1):
                await future
        return await future

    story = run_of(main)
    story.start()
    for _ in range(3):
        story.fire()
    assert len(kept[0]._call._waiters or ()) == 1


def test_a_cancelled_future_sends_the_cancel_and_raises_an_activity_error_when_it_has_ended() -> None:
    @workflow
    async def main() -> list[Any]:
        future = work.submit("slow")
        await trio.sleep(10)
        future.cancel()
        future.cancel()
        done = future.done()
        try:
            await future
        except ActivityError as error:
            return [done, error.reason, error.attempts, trio.current_time() - START]
        return []

    story = run_of(main)
    story.start()
    assert names_of(story.fire()) == ["Cancel 1"]
    replays(story)
    story.cancelled(1, after=3)
    assert result_of(story) == [False, "cancelled", 1, 13]


def test_a_result_that_came_although_the_future_was_cancelled_is_its_result() -> None:
    @workflow
    async def main() -> str:
        future = work.submit("slow")
        await trio.sleep(10)
        future.cancel()
        return await future

    story = run_of(main)
    story.start()
    story.fire()
    story.complete(1, "finished all the same")
    assert result_of(story) == "finished all the same"


def test_a_future_that_is_cancelled_where_it_was_made_never_happened() -> None:
    @workflow
    async def main() -> list[Any]:
        future = work.submit("never")
        future.cancel()
        try:
            await future
        except ActivityError as error:
            return [future.done(), error.reason, error.attempts, await work("once")]
        return []

    story = run_of(main)
    assert names_of(story.start()) == ["Schedule 2"]
    story.complete(2, "x")
    assert result_of(story) == [True, "cancelled", 0, "x"]


def test_a_cancelled_future_that_may_be_abandoned_is_done_at_once() -> None:
    @workflow
    async def main() -> list[Any]:
        future = abandonable.submit("slow")
        await trio.sleep(10)
        future.cancel()
        try:
            await future
        except ActivityError as error:
            seen = [error.reason, trio.current_time() - START]
        await work("next")
        return seen

    story = run_of(main)
    story.start()
    assert names_of(story.fire()) == ["Schedule 2", "Cancel 1"]
    assert story.complete(1, "too late") == []
    story.complete(2, "")
    assert result_of(story) == ["cancelled", 10]


def test_cancelling_a_future_that_is_done_does_nothing() -> None:
    @workflow
    async def main() -> str:
        future = work.submit("x")
        await future
        future.cancel()
        return await future

    story = run_of(main)
    story.start()
    assert names_of(story.complete(1, "result")) == ["Complete "]


def test_cancels_of_futures_in_one_activation_are_sorted_by_call() -> None:
    @workflow
    async def main() -> None:
        futures = [work.submit(str(number)) for number in range(5)]
        await trio.sleep(1)
        for future in (futures[3], futures[0], futures[4]):
            future.cancel()
        await work("next")

    story = run_of(main)
    story.start()
    assert names_of(story.fire()) == ["Schedule 6", "Cancel 1", "Cancel 4", "Cancel 5"]


def test_a_set_of_futures_has_the_order_of_their_calls() -> None:
    @workflow
    async def main() -> list[str]:
        futures = {work.submit(str(number)) for number in range(7)}
        return list(await gather(*futures))

    story = run_of(main)
    story.start()
    for call in range(7, 0, -1):
        story.complete(call, f"result {call}")
    assert sorted(result_of(story)) == [f"result {call}" for call in range(1, 8)]
    assert {hash(future) for future in _futures_of_numbers(3, 5)} == {3, 5}


def _futures_of_numbers(*numbers: int) -> list[DurableFuture[Any]]:
    from durablefuture_trio.authoring._futures import DurableCall

    return [DurableFuture(DurableCall(number)) for number in numbers]


def test_a_future_of_another_run_is_refused() -> None:
    leaked: list[DurableFuture[str]] = []

    @workflow
    async def main() -> str:
        leaked.append(work.submit("x"))
        return await leaked[0]

    host = ReplayHost(Registry.of([main]).workflows)
    Story(host, "main", run_id="run-1").start()
    story = Story(host, "main", run_id="run-2")
    story.start()
    assert "belongs to another run" in failure_of(story).message


def test_submit_outside_of_a_workflow_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"work\.submit works only .* await work\(\.\.\.\)"):
        work.submit("x")


def test_a_result_that_cannot_be_rebuilt_blocks_the_run() -> None:
    @workflow
    async def main() -> int:
        return await double.submit(1)

    story = run_of(main)
    story.start()
    with pytest.raises(AssertionError) as caught:
        story.complete(1, "not a number")
    assert isinstance(caught.value.args[0], Blocked)
    assert caught.value.args[0].kind == "undecodable"


# --- the end of the run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_run_that_ends_cancels_what_is_outstanding_and_waits_for_it(how: str) -> None:
    @workflow
    async def main() -> str:
        work.submit("left behind")
        done = work.submit("done")
        await done
        if how == "raises":
            raise ValueError("no")
        return "end"

    story = run_of(main)
    story.start()
    assert names_of(story.complete(2, "")) == ["Cancel 1"]
    replays(story)
    commands = story.cancelled(1)
    assert [type(command) for command in commands] == [CompleteWorkflow if how == "returns" else FailWorkflow]


def test_the_wait_at_the_end_is_bounded() -> None:
    @workflow
    async def main() -> str:
        work.submit("never ends")
        await trio.sleep(1)
        return "end"

    story = run_of(main)
    story.start()
    story.fire()
    assert story.wake_at == START + 1 + _calls.MAX_WAIT_AT_END_S
    replays(story)
    story.fire()
    assert result_of(story) == "end"


def test_what_is_submitted_right_before_the_end_leaves_no_trace() -> None:
    @workflow
    async def main() -> str:
        work.submit("never")
        return "end"

    assert names_of(run_of(main).start()) == ["Complete "]


# --- limits -----------------------------------------------------------------------------------------------------------


def test_more_pending_calls_than_allowed_are_refused_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _calls.MAX_PENDING_ACTIVITIES == 20_000
    monkeypatch.setattr(_calls, "MAX_PENDING_ACTIVITIES", 3)

    @workflow
    async def main() -> list[Any]:
        futures = [work.submit("x") for _ in range(3)]
        seen: list[Any] = []
        for attempt in (lambda: work.submit("y"), lambda: work("y")):
            try:
                attempted: Any = attempt()
                await attempted
            except LimitExceededError as error:
                seen.append([error.limit, error.message])
        await futures[0]
        seen.append(await work("one place is free"))
        return seen

    story = run_of(main)
    assert len(story.start()) == 3
    story.complete(1, "")
    replays(story)
    assert names_of(story.complete(4, "done")) == ["Cancel 2", "Cancel 3"]
    story.cancelled(2)
    story.cancelled(3)
    refused, again, last = result_of(story)
    assert refused == again
    assert refused[0] == 3
    assert "already waits for 3 activity calls" in refused[1]
    assert last == "done"
