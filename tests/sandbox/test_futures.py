"""Calls that go on by themselves: futures, what waits for several of them, and maps over many items."""

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
    as_completed,
    durable_map,
    first,
    gather,
    outcomes,
    workflow,
)
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.codec import decode_value
from durablefuture_trio.engine.commands import (
    Command,
    CompleteWorkflow,
    FailWorkflow,
    ScheduleActivity,
)
from durablefuture_trio.history.events import ActivityScheduled
from durablefuture_trio.ports.frames import Blocked, Loaded
from durablefuture_trio.sandbox import _calls
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.sandbox import START, Story


@activity
async def work(word: str) -> str:
    return word


@activity
async def double(number: int) -> int:
    return number * 2


@activity(abandon_on_cancel=True)
async def abandonable(word: str) -> str:
    return word


def host_of(*definitions: Any) -> ReplayHost:
    return ReplayHost(Registry.of(definitions).workflows)


def run_of(definition: Any, *arguments: Any) -> Story:
    return Story(host_of(definition), definition.name, arguments)


def result_of(story: Story) -> Any:
    (command,) = [command for command in story.commands if isinstance(command, CompleteWorkflow | FailWorkflow)]
    assert isinstance(command, CompleteWorkflow), command
    return decode_value(command.result, Any)


def failure_of(story: Story) -> Any:
    (command,) = [command for command in story.commands if isinstance(command, FailWorkflow)]
    return command.failure


def names_of(commands: list[Command]) -> list[str]:
    return [
        f"{type(command).__name__.removesuffix('Activity').removesuffix('Workflow')} {getattr(command, 'call', '')}"
        for command in commands
    ]


def replays(story: Story) -> None:
    """The history so far replays in another host, and the run goes on there."""
    story.host.close()  # type: ignore[attr-defined] # it is a ReplayHost
    story.host = ReplayHost(story.host._workflows)  # type: ignore[attr-defined]
    answer = story.replay()
    assert isinstance(answer, Loaded), answer
    assert answer.unmatched == ()
    assert answer.wake_at == story.wake_at


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

    host = host_of(main)
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
