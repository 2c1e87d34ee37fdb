"""Everything of Trio that needs no input or output works in workflows, and survives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar

import pytest
import trio

from durablefuture_trio import ActivityError, ApplicationError, RetryPolicy, activity, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import WorkflowFailedError
from tests._support.language import Play


@activity
async def double(number: int) -> int:
    return 2 * number


@activity
async def slowly(number: int, seconds: float) -> int:
    await trio.sleep(seconds)
    return number


@activity(retry_policy=RetryPolicy(maximum_attempts=1))
async def break_down(words: str) -> None:
    raise ValueError(words)


ALIVE = ("worker", "supervisor")
"""Who is spared where a call has one attempt: a lost one is its last."""


# --- nurseries --------------------------------------------------------------------------------------------------------


def test_a_nursery_waits_for_its_tasks(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        results = [0] * 5

        async def step(index: int) -> None:
            results[index] = await double(index)

        async with trio.open_nursery() as nursery:
            for index in range(5):
                nursery.start_soon(step, index)
        return results

    played = play.run(flow, double)
    assert played.result == [0, 2, 4, 6, 8]
    assert played.calls("double") == 5


def test_an_activity_is_started_in_a_nursery_as_any_async_function(play: Play) -> None:
    @workflow
    async def flow() -> str:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(double, number)
        return "done"

    played = play.run(flow, double)
    assert (played.result, played.calls("double")) == ("done", 3)


def test_a_task_may_start_tasks_in_the_nursery_of_another(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        seen: list[int] = []

        async def grow(nursery: trio.Nursery, depth: int) -> None:
            seen.append(await double(depth))
            if depth:
                nursery.start_soon(grow, nursery, depth - 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(grow, nursery, 3)
        return seen

    assert play.run(flow, double).result == [6, 4, 2, 0]


def test_nursery_start_waits_until_the_task_says_it_has_started(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        seen: list[object] = []

        async def service(first: int, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started(await double(first))
            seen.append(await double(10))

        async with trio.open_nursery() as nursery:
            seen.append(await nursery.start(service, 4))
            seen.append("started")
        return seen

    assert play.run(flow, double).result == [8, "started", 20]


def test_a_task_that_ends_before_it_has_started_fails_the_start(play: Play) -> None:
    @workflow
    async def flow() -> str:
        async def service(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            await double(1)

        words = "started"
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(service)
        except* RuntimeError as group:
            words = str(group.exceptions[0])
        return words

    assert "child exited without calling" in play.run(flow, double).result


def test_a_failure_in_one_task_cancels_the_others_and_their_activities(play: Play) -> None:
    @workflow
    async def flow() -> str:
        words = "not reached"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slowly, 1, 500.0)
                nursery.start_soon(slowly, 2, 500.0)
                await trio.sleep(2)
                nursery.start_soon(break_down, "no flour")
        except* ActivityError as group:
            words = str(group.exceptions[0].cause)
        return words

    played = play.run(flow, slowly, break_down, spare=ALIVE)
    assert played.result == "no flour"
    assert played.kinds("w").count("ActivityCancelRequested") == 2
    assert played.kinds("w").count("ActivityCancelled") == 2


def test_several_failures_come_as_a_group_and_except_star_sorts_them(play: Play) -> None:
    @workflow
    async def flow() -> list[list[str]]:
        now = trio.Event()

        async def fail(error: Exception) -> None:
            await now.wait()
            raise error

        values: list[str] = []
        others: list[str] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, ValueError("a"))
                nursery.start_soon(fail, KeyError("b"))
                nursery.start_soon(fail, ValueError("c"))
                await trio.sleep(1)
                now.set()
        except* ValueError as group:
            values += [str(error) for error in group.exceptions]
        except* KeyError as group:
            others += [str(error) for error in group.exceptions]
        return [values, others]

    assert play.run(flow).result == [["a", "c"], ["'b'"]]


def test_a_group_of_one_leaves_the_workflow_as_that_one(play: Play) -> None:
    @workflow
    async def flow() -> None:
        async with trio.open_nursery(), trio.open_nursery() as inner:
            inner.start_soon(break_down, "alone")

    async def scene(client: Client) -> tuple[str, str]:
        with pytest.raises(WorkflowFailedError) as caught:
            await client.run(flow, id="w")
        cause = caught.value.cause
        assert isinstance(cause, ActivityError)
        return type(cause).__name__, str(cause.cause)

    assert play(scene, flow, break_down, spare=ALIVE).result == ("ActivityError", "alone")


def test_a_group_of_several_leaves_the_workflow_as_a_group(play: Play) -> None:
    @workflow
    async def flow() -> None:
        now = trio.Event()

        async def fail(words: str) -> None:
            await now.wait()
            raise ApplicationError(words)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, "one")
            nursery.start_soon(fail, "two")
            await trio.sleep(1)
            now.set()

    async def scene(client: Client) -> list[str]:
        with pytest.raises(WorkflowFailedError) as caught:
            await client.run(flow, id="w")
        cause = caught.value.cause
        assert isinstance(cause, BaseExceptionGroup)
        return sorted(str(error) for error in cause.exceptions)

    assert play(scene, flow).result == ["one", "two"]


# --- cancel scopes ----------------------------------------------------------------------------------------------------


def test_nested_scopes_end_at_their_own_deadlines(play: Play) -> None:
    @workflow
    async def flow() -> list[bool]:
        began = trio.current_time()
        with trio.move_on_after(30) as outer:
            with trio.move_on_after(10) as inner:
                await trio.sleep_forever()
            first = trio.current_time() - began
            await trio.sleep_forever()
        assert inner.cancelled_caught
        assert outer.cancelled_caught
        return [first >= 10, trio.current_time() - began >= 30]

    assert play.run(flow).result == [True, True]


def test_the_earlier_of_two_nested_deadlines_counts(play: Play) -> None:
    @workflow
    async def flow() -> list[bool]:
        with trio.move_on_after(5) as outer, trio.move_on_after(50) as inner:
            await trio.sleep(20)
        return [outer.cancelled_caught, inner.cancelled_caught]

    assert play.run(flow).result == [True, False]


def test_fail_after_raises_too_slow(play: Play) -> None:
    @workflow
    async def flow() -> str:
        try:
            with trio.fail_after(3):
                await slowly(1, 600.0)
        except trio.TooSlowError:
            return "too slow"
        return "in time"

    played = play.run(flow, slowly)
    assert played.result == "too slow"
    assert played.kinds("w").count("ActivityCancelled") == 1


def test_a_deadline_may_be_put_off_while_a_task_waits(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        began = trio.current_time()
        scope = trio.CancelScope(deadline=began + 10)

        async def put_off() -> None:
            await trio.sleep(5)
            scope.deadline = began + 25

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_off)
            with scope:
                await trio.sleep_forever()
        return 25 <= trio.current_time() - began < 500

    assert play.run(flow).result is True


def test_a_deadline_may_be_brought_forward_while_a_task_waits(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        began = trio.current_time()
        scope = trio.CancelScope(deadline=began + 1000)

        async def bring_forward() -> None:
            await trio.sleep(2)
            scope.deadline = began + 7

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring_forward)
            with scope:
                await trio.sleep_forever()
        return 7 <= trio.current_time() - began < 500

    assert play.run(flow).result is True


def test_a_deadline_may_be_taken_away(play: Play) -> None:
    @workflow
    async def flow() -> int:
        with trio.move_on_after(5) as scope:
            scope.deadline = float("inf")
            return await slowly(3, 20.0)
        return 0

    assert play.run(flow, slowly).result == 3


def test_a_shielded_scope_lets_an_activity_finish(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        seen: list[int] = []
        with trio.move_on_after(5) as scope:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    seen.append(await double(21))
                    await trio.sleep(10)
                    seen.append(await double(22))
        assert scope.cancelled_caught
        return seen

    assert play.run(flow, double).result == [42, 44]


def test_a_shield_with_a_deadline_ends_at_it(play: Play) -> None:
    @workflow
    async def flow() -> list[bool]:
        began = trio.current_time()
        with trio.move_on_after(5):
            with trio.CancelScope(shield=True, deadline=began + 8):
                await trio.sleep_forever()
            return [8 <= trio.current_time() - began < 500]
        return [False]

    assert play.run(flow).result == [True]


def test_cancelled_is_raised_at_every_checkpoint_of_a_cancelled_scope(play: Play) -> None:
    @workflow
    async def flow() -> int:
        times = 0
        with trio.CancelScope() as scope:
            scope.cancel()
            for _ in range(3):
                try:
                    await double(1)
                except trio.Cancelled:
                    times += 1
            await trio.lowlevel.checkpoint()
        return times

    played = play.run(flow, double)
    assert played.result == 3
    assert played.kinds("w") == ["WorkflowStarted", "WorkflowCompleted"]  # made and cancelled at once: never asked for


def test_sleeping_for_no_time_is_a_checkpoint_and_leaves_no_trace(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        seen: list[str] = []

        async def note(name: str) -> None:
            for _ in range(2):
                seen.append(name)
                await trio.sleep(0)  # noqa: ASYNC115 - it is what is tested

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, "a")
            nursery.start_soon(note, "b")
        return seen

    played = play.run(flow)
    assert played.result == ["a", "b", "a", "b"]
    assert played.kinds("w") == ["WorkflowStarted", "WorkflowCompleted"]


# --- synchronisation --------------------------------------------------------------------------------------------------


def test_an_event_wakes_all_who_wait(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        ready = trio.Event()
        woken: list[int] = []

        async def wait(number: int) -> None:
            await ready.wait()
            woken.append(await double(number))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(wait, number)
            await double(100)
            ready.set()
        return sorted(woken)

    assert play.run(flow, double).result == [0, 2, 4, 6]


def test_a_lock_is_held_over_an_activity_and_taken_in_order(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        lock, inside, order = trio.Lock(), 0, []

        async def worker(number: int) -> None:
            nonlocal inside
            async with lock:
                inside += 1
                assert inside == 1
                order.append(number)
                await double(number)
                inside -= 1

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(worker, number)
        return order

    played = play.run(flow, double)
    assert played.result == [0, 1, 2, 3, 4]
    kinds = played.kinds("w")
    assert kinds == ["WorkflowStarted", *["ActivityScheduled", "ActivityCompleted"] * 5, "WorkflowCompleted"]


def test_a_condition_wakes_as_many_as_it_is_told(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        condition, stock, seen = trio.Condition(), 0, []

        async def take(name: str) -> None:
            nonlocal stock
            async with condition:
                while stock == 0:
                    await condition.wait()
                stock -= 1
                seen.append(name)

        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(take, name)
            for _ in range(3):
                await double(1)
                async with condition:
                    stock += 1
                    condition.notify()
        return seen

    assert play.run(flow, double).result == ["a", "b", "c"]


def test_a_semaphore_bounds_how_many_activities_are_open(play: Play) -> None:
    @workflow
    async def flow() -> int:
        semaphore, open_now, most = trio.Semaphore(2), 0, 0

        async def worker(number: int) -> None:
            nonlocal open_now, most
            async with semaphore:
                open_now += 1
                most = max(most, open_now)
                await double(number)
                open_now -= 1

        async with trio.open_nursery() as nursery:
            for number in range(7):
                nursery.start_soon(worker, number)
        return most

    played = play.run(flow, double)
    assert (played.result, played.calls("double")) == (2, 7)


def test_a_capacity_limiter_bounds_them_too_and_can_be_widened(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        limiter, most = trio.CapacityLimiter(1), []

        async def worker(number: int) -> None:
            async with limiter:
                most.append(int(limiter.borrowed_tokens))
                await double(number)
                limiter.total_tokens = 3

        async with trio.open_nursery() as nursery:
            for number in range(7):
                nursery.start_soon(worker, number)
        return [most[0], max(most)]

    assert play.run(flow, double).result == [1, 3]


def test_memory_channels_connect_tasks(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        send, receive = trio.open_memory_channel[int](2)
        got: list[int] = []

        async def produce() -> None:
            async with send:
                for number in range(6):
                    await send.send(await double(number))

        async def consume(channel: trio.MemoryReceiveChannel[int]) -> None:
            async with channel:
                async for number in channel:
                    got.append(number)
                    await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            async with receive:
                for _ in range(2):
                    nursery.start_soon(consume, receive.clone())
        return got

    assert play.run(flow, double).result == [0, 2, 4, 6, 8, 10]


def test_a_channel_without_room_holds_its_sender_up(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        send, receive = trio.open_memory_channel[int](0)
        seen: list[str] = []

        async def produce() -> None:
            async with send:
                for number in range(2):
                    await send.send(number)
                    seen.append(f"sent {number}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            await trio.sleep(5)
            seen.append("looking")
            async for number in receive:
                seen.append(f"got {number}")
                await trio.sleep(1)
        return seen

    assert play.run(flow).result[0] == "looking"


def test_async_generators_may_call_activities(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        async def pages() -> AsyncIterator[int]:
            for page in range(4):
                yield await double(page)

        return [page async for page in pages()]

    assert play.run(flow, double).result == [0, 2, 4, 6]


def test_a_generator_that_is_left_early_cleans_up_durably(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        seen: list[int] = []

        async def pages() -> AsyncIterator[int]:
            try:
                for page in range(100):
                    yield page
            finally:
                seen.append(await double(50))

        async with aclosing(pages()) as some:
            async for page in some:
                if page == 2:
                    break
                seen.append(page)
        return seen

    assert play.run(flow, double).result == [0, 1, 100]


def test_async_context_managers_clean_up_durably_after_a_failure(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        seen: list[int] = []

        @asynccontextmanager
        async def reservation() -> AsyncIterator[int]:
            number = await double(5)
            try:
                yield number
            finally:
                seen.append(await double(number))

        try:
            async with reservation() as number:
                seen.append(number)
                raise KeyError
        except KeyError:
            return seen

    assert play.run(flow, double).result == [10, 20]


def test_context_variables_belong_to_tasks(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        who = ContextVar("who", default="nobody")
        seen: list[str] = []

        async def task(name: str) -> None:
            seen.append(who.get())
            who.set(name)
            await double(1)
            seen.append(who.get())

        who.set("main")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task, "a")
            nursery.start_soon(task, "b")
        return [*seen[:2], *sorted(seen[2:]), who.get()]

    assert play.run(flow, double).result == ["main", "main", "a", "b", "main"]


def test_a_recursive_program_of_many_tasks_gives_its_sum(play: Play) -> None:
    @workflow
    async def flow(depth: int) -> int:
        async def tree(depth: int, into: list[int]) -> None:
            if depth == 0:
                into.append(await double(1))
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tree, depth - 1, into)
                nursery.start_soon(tree, depth - 1, into)

        leaves: list[int] = []
        await tree(depth, leaves)
        return sum(leaves)

    assert play.run(flow, double, args=(5,), times=2).result == 64
