"""Cancellation: it is Trio's, level-triggered; what was asked for is told, what came anyway is kept."""

from __future__ import annotations

import pytest
import trio

from durablefuture_trio import ActivityError, activity, activity_options, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import (
    RequestFailedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowNotFoundError,
)
from durablefuture_trio.history.events import (
    ActivityCancelled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityScheduled,
    CancelRequested,
    TimerFired,
    WorkflowCancelled,
)
from tests._support.language import Play


@activity
async def double(number: int) -> int:
    return 2 * number


@activity
async def slowly(number: int, seconds: float = 900.0) -> int:
    await trio.sleep(seconds)
    return number


@activity
async def refund(customer: str) -> str:
    return f"refunded {customer}"


@workflow.signal
def go() -> None: ...


async def cancelled_reason(client: Client, workflow_id: str = "w") -> str:
    with pytest.raises(WorkflowCancelledError) as caught:
        await client.handle(workflow_id).result()
    return caught.value.reason


# --- of the run -------------------------------------------------------------------------------------------------------


def test_a_cancel_ends_a_sleeping_run_with_its_reason(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await trio.sleep(500)

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await handle.cancel("changed my mind")
        return await cancelled_reason(client)

    played = play(scene, flow)
    assert played.result == "changed my mind"
    assert played.kinds("w") == ["WorkflowStarted", "CancelRequested", "WorkflowCancelled"]


def test_a_cancel_reaches_every_task_of_the_run(play: Play) -> None:
    @workflow
    async def flow() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(slowly, number)
            nursery.start_soon(trio.sleep_forever)

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await play.began("slowly", 4)
        await handle.cancel("stop")
        return await cancelled_reason(client)

    played = play(scene, flow, slowly)
    assert played.result == "stop"
    assert [event.activity_id for event in played.events("w", ActivityCancelRequested)] == [1, 2, 3, 4]
    assert len(played.events("w", ActivityCancelled)) == 4


def test_a_cancel_before_the_code_begins_is_there_from_its_beginning(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await double(1)

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w", start_delay=60)
        await handle.cancel("early")
        return await cancelled_reason(client)

    played = play(scene, flow, double)
    assert played.result == "early"
    assert played.events("w", ActivityScheduled) == []


def test_a_cancel_while_no_supervisor_runs_is_carried_out_later(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await trio.sleep(5000)

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        play.stage.dark(True)
        await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle.cancel, "in the dark")
            await trio.sleep(20)
            play.stage.dark(False)
        return await cancelled_reason(client)

    assert play(scene, flow).result == "in the dark"


def test_compensation_under_a_shield_is_carried_out(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await double(1)
        try:
            await slowly(1)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
                await refund("Bob")
            raise

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await play.began("slowly")
        await handle.cancel("no")
        return await cancelled_reason(client)

    played = play(scene, flow, double, slowly, refund)
    assert played.result == "no"
    assert played.calls("refund") == 1
    assert len(played.events("w", ActivityCompleted)) == 2


def test_a_finally_block_compensates_too(play: Play) -> None:
    @workflow
    async def flow() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 100):
                await refund("Ann")

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await handle.cancel("no")
        return await cancelled_reason(client)

    assert play(scene, flow, refund).calls("refund") == 1


def test_a_run_that_returns_after_a_cancel_has_completed(play: Play) -> None:
    @workflow
    async def flow() -> str:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return f"ended: {workflow.cancel_reason()}"  # swallowing it is a decision here

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await handle.cancel("please")
        return await handle.result()

    played = play(scene, flow)
    assert played.result == "ended: please"
    assert played.kinds("w")[-1] == "WorkflowCompleted"


def test_a_run_that_raises_after_a_cancel_has_failed(play: Play) -> None:
    @workflow
    async def flow() -> str:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("cleaning up failed")

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await handle.cancel("please")
        with pytest.raises(WorkflowFailedError) as caught:
            await handle.result()
        return str(caught.value.cause)

    assert play(scene, flow).result == "cleaning up failed"


def test_a_cancelled_run_stays_cancelled_at_every_checkpoint(play: Play) -> None:
    @workflow
    async def flow() -> int:
        times = 0
        for _ in range(3):
            try:
                await double(1)
                await trio.sleep(100)
            except trio.Cancelled:
                times += 1
        return times

    async def scene(client: Client) -> int:
        handle = await client.start(flow, id="w")
        await handle.cancel()
        return await handle.result()

    played = play(scene, flow, double)
    assert played.result == 3


def test_a_second_cancel_changes_nothing(play: Play) -> None:
    @workflow
    async def flow() -> str | None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await workflow.signal_channel(go).receive()
            return workflow.cancel_reason()

    async def scene(client: Client) -> str | None:
        handle = await client.start(flow, id="w")
        await handle.cancel("first")
        await handle.cancel("second")
        await handle.signal(go)
        return await handle.result()

    assert play(scene, flow).result == "first"


def test_a_repeated_request_id_is_one_cancel(play: Play) -> None:
    @workflow
    async def flow() -> None:
        with trio.CancelScope(shield=True):
            await workflow.signal_channel(go).receive()
        await trio.lowlevel.checkpoint()

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        for _ in range(3):
            await handle.cancel("once", request_id="the same")
        await handle.signal(go)
        return await cancelled_reason(client)

    played = play(scene, flow)
    assert len(played.events("w", CancelRequested)) == 1


def test_a_cancel_of_a_closed_or_unknown_run_is_refused(play: Play) -> None:
    @workflow
    async def flow() -> None: ...

    async def scene(client: Client) -> list[str]:
        await client.run(flow, id="w")
        seen = []
        for workflow_id in ("w", "nobody"):
            try:
                await client.handle(workflow_id).cancel()
            except (RequestFailedError, WorkflowNotFoundError) as error:
                seen.append(type(error).__name__)
        return seen

    assert play(scene, flow).result == ["RequestFailedError", "WorkflowNotFoundError"]


def test_a_cancel_ends_handlers_as_well(play: Play) -> None:
    @workflow
    async def flow() -> None:
        @go.handler
        async def on_go() -> None:
            try:
                await slowly(1)
            finally:
                with trio.CancelScope(shield=True):
                    await refund("handler")

        await trio.sleep_forever()

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await handle.signal(go)
        await play.began("slowly")
        await handle.cancel("all of it")
        return await cancelled_reason(client)

    played = play(scene, flow, slowly, refund)
    assert played.result == "all of it"
    assert played.calls("refund") == 1


def test_a_cancel_and_a_signal_are_applied_in_the_order_they_came_in(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        seen: list[str] = []

        @go.handler
        def on_go() -> None:
            seen.append(f"signal, cancelled: {workflow.cancel_reason() is not None}")

        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await workflow.wait_until(lambda: len(seen) == 2)
        return seen

    async def scene(client: Client) -> list[str]:
        handle = await client.start(flow, id="w")
        await handle.signal(go)
        await handle.cancel()
        await handle.signal(go)
        return await handle.result()

    assert play(scene, flow).result == ["signal, cancelled: False", "signal, cancelled: True"]


# --- of an activity ---------------------------------------------------------------------------------------------------


def test_a_cancelled_activity_is_waited_for(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        with trio.move_on_after(10) as scope:
            await slowly(1)
        return ["cancelled" if scope.cancelled_caught else "finished"]

    played = play.run(flow, slowly)
    assert played.result == ["cancelled"]
    kinds = played.kinds("w")
    assert kinds.index("ActivityCancelRequested") < kinds.index("ActivityCancelled") < kinds.index("WorkflowCompleted")


def test_a_result_that_came_before_the_cancel_arrived_is_kept(play: Play) -> None:
    gate = play.gate()

    @activity
    async def held() -> int:
        with trio.CancelScope(shield=True):  # it does not listen
            await gate.passed()
        return 7

    @workflow
    async def flow() -> list[object]:
        seen: list[object] = []
        with trio.move_on_after(10) as scope:
            seen.append(await held())
            seen.append("not cancelled yet")
            await trio.lowlevel.checkpoint()
            seen.append("not reached")
        return [*seen, scope.cancelled_caught]

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        await play.recorded("w", ActivityCancelRequested)
        gate.open()
        return await handle.result()

    played = play(scene, flow, held, spare=("worker", "supervisor"))
    assert played.result == [7, "not cancelled yet", True]


def test_abandon_on_cancel_does_not_wait(play: Play) -> None:
    gate = play.gate()

    @activity
    async def held() -> None:
        with trio.CancelScope(shield=True):
            await gate.passed()

    @workflow
    async def flow() -> bool:
        with activity_options(abandon_on_cancel=True), trio.move_on_after(10) as scope:
            await held()
        return scope.cancelled_caught

    async def scene(client: Client) -> bool:
        result = await client.run(flow, id="w")
        gate.open()
        return result

    played = play(scene, flow, held)
    assert played.result is True


def test_an_activity_that_is_made_and_cancelled_at_once_is_never_asked_for(play: Play) -> None:
    @workflow
    async def flow() -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slowly, 1)
            nursery.start_soon(slowly, 2)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        return await double(3)

    played = play.run(flow, slowly, double)
    assert played.kinds("w") == ["WorkflowStarted", "ActivityScheduled", "ActivityCompleted", "WorkflowCompleted"]
    assert played.events("w", ActivityScheduled)[0].name == "double"


def test_a_submitted_activity_that_is_cancelled_at_once_is_never_asked_for(play: Play) -> None:
    @workflow
    async def flow() -> str:
        future = slowly.submit(1)
        future.cancel()
        try:
            await future
        except ActivityError as error:
            return error.reason
        return "finished"

    played = play.run(flow, slowly)
    assert played.result == "cancelled"
    assert played.kinds("w") == ["WorkflowStarted", "WorkflowCompleted"]


def test_cancels_of_one_step_stand_in_the_order_of_their_calls(play: Play) -> None:
    @workflow
    async def flow() -> None:
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(slowly, number)

    played = play.run(flow, slowly, times=2)
    assert [event.activity_id for event in played.events("w", ActivityCancelRequested)] == list(range(1, 41))


# --- races ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [0, 5, 9, 10, 11, 15, 30])
def test_a_cancel_that_races_with_a_completion_ends_the_run_one_way(play: Play, delay_ms: int) -> None:
    @workflow
    async def flow() -> int:
        return await double(4)

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        await trio.sleep(delay_ms / 1000)
        try:
            await handle.cancel("race")
            was_taken = True
        except RequestFailedError:
            was_taken = False
        last = await play.closed("w")
        if isinstance(last, WorkflowCancelled):
            assert was_taken
            assert await cancelled_reason(client) == "race"
        else:
            assert await handle.result() == 8
        return True

    assert play(scene, flow, double).result is True


@pytest.mark.parametrize("offset_ms", [-20, -1, 0, 1, 20])
def test_a_cancel_that_races_with_a_timer_ends_the_run_one_way(play: Play, offset_ms: int) -> None:
    @workflow
    async def flow() -> str:
        await trio.sleep(10)
        return "slept"

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        (started,) = play.events("w")
        await trio.sleep_until(started.at + 10 + offset_ms / 1000)
        try:
            await handle.cancel("race")
        except RequestFailedError:
            assert await handle.result() == "slept"
        else:
            last = await play.closed("w")
            assert isinstance(last, WorkflowCancelled) or await handle.result() == "slept"
        return True

    assert play(scene, flow).result is True


@pytest.mark.parametrize("delay_ms", [0, 3, 10, 12, 20, 40])
def test_a_cancel_that_races_with_a_child_ends_both_one_way(play: Play, delay_ms: int) -> None:
    @workflow
    async def child() -> int:
        return await double(4)

    @workflow
    async def flow() -> int:
        return await workflow.start_child(child, id="c")

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        await trio.sleep(delay_ms / 1000)
        try:
            await handle.cancel("race")
        except RequestFailedError:
            assert await handle.result() == 8
        last = await play.closed("w")
        if isinstance(last, WorkflowCancelled):
            assert await cancelled_reason(client) == "race"
        else:
            assert await handle.result() == 8
        return True

    played = play(scene, flow, child, double, times=2)
    assert played.result is True
    assert len([run for run in played.runs if run.workflow_id == "c"]) <= 1


def test_a_timeout_and_the_result_it_waits_for_at_the_same_instant(play: Play) -> None:
    @workflow
    async def flow() -> list[bool]:
        began = trio.current_time()
        with trio.move_on_after(7) as scope:
            await slowly(1, 6.99)  # and a hundredth for the attempt itself
        return [scope.cancelled_caught, trio.current_time() >= began + 6.9]

    async def scene(client: Client) -> bool:
        caught, is_late = await client.run(flow, id="w")
        completed = bool(play.events("w", ActivityCompleted))
        # Whoever came first decides; when it was the result, the scope was left in time.
        return is_late and (caught or completed)

    assert play(scene, flow, slowly).result is True


def test_cancel_signal_and_result_in_one_batch_are_one_activation_each(play: Play) -> None:
    gate = play.gate()

    @activity
    async def held() -> int:
        with trio.CancelScope(shield=True):
            await gate.passed()
        return 1

    @workflow
    async def flow() -> int:
        seen: list[object] = []

        @go.handler
        def on_go() -> None:
            seen.append("signal")

        try:
            seen.append(await held())
            await trio.sleep_forever()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await workflow.wait_until(lambda: seen.count("signal") == 5)
        return seen.count("signal")

    async def scene(client: Client) -> int:
        handle = await client.start(flow, id="w")
        await play.began("held")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle.cancel, "one")
            for _ in range(5):
                nursery.start_soon(handle.signal, go)
            gate.open()
        return await handle.result()

    played = play(scene, flow, held, spare=("worker", "supervisor"))
    assert played.result == 5
    stimuli = [kind for kind in played.kinds("w") if kind in ("SignalReceived", "CancelRequested")]
    assert len(stimuli) == 6
    # One activation for each of what came, and not one more for what it led to.
    assert len(played.events("w", TimerFired)) == 0
    assert len(played.kinds("w")) <= 12


def test_many_cancelled_tasks_take_a_bounded_number_of_activations(play: Play) -> None:
    @workflow
    async def flow() -> int:
        ended = 0

        async def task(number: int) -> None:
            nonlocal ended
            try:
                await slowly(number)
            finally:
                ended += 1

        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(task, number)
        return ended

    played = play.run(flow, slowly, times=2)
    assert played.result == 30
    stimuli = [it for it in played.events("w") if isinstance(it, ActivityCancelled | ActivityCompleted | TimerFired)]
    assert len(stimuli) == 31  # the timer, and each activity's end


def test_terminate_ends_a_run_that_shields_itself(play: Play) -> None:
    @workflow
    async def flow() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await handle.cancel("please")
        await trio.sleep(5)
        assert not play.events("w", WorkflowCancelled)
        await handle.terminate("now")
        return type(await play.closed("w")).__name__

    assert play(scene, flow).result == "WorkflowTerminated"
