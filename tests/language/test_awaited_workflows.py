"""A workflow that waits for the end of another one which it did not start."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio

from durablefuture_trio import activity, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import (
    ApplicationError,
    WorkflowCancelledError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durablefuture_trio.history.events import ExternalRequested, ExternalResolved, WatcherAdded
from durablefuture_trio.history.options import RetryPolicy
from tests._support.language import Play


@dataclass
class Receipt:
    number: int


@activity
async def double(number: int) -> int:
    return 2 * number


@workflow.signal
def go(number: int) -> None: ...


@workflow
async def shop(end: str = "") -> Receipt:
    number = await workflow.signal_channel(go).receive()
    if end == "fail":
        raise ApplicationError("sold out", type="SoldOut", non_retryable=True)
    return Receipt(await double(number))


@workflow
async def waiter(other: str, run_id: str | None) -> list[str]:
    """What it is told of the other, in words."""
    try:
        receipt = await workflow.handle(other, run_id).result(Receipt)
    except WorkflowError as error:
        told = [type(error).__name__, str(error), error.workflow_id, getattr(error, "reason", "")]
        return told if error.__cause__ is None else [*told, type(error.__cause__).__name__, str(error.__cause__)]
    return [str(receipt)]


# --- the ends ---------------------------------------------------------------------------------------------------------


def test_a_workflow_waits_for_another_that_is_open(play: Play) -> None:
    async def scene(client: Client) -> list[str]:
        other = await client.start(shop, id="other")
        handle = await client.start(waiter, "other", None, id="w")
        await play.recorded("other", WatcherAdded)
        await other.signal(go, 4)
        return await handle.result()

    played = play(scene, shop, waiter, double)
    assert played.result == ["Receipt(number=8)"]
    assert played.kinds("w") == ["WorkflowStarted", "ExternalRequested", "ExternalResolved", "WorkflowCompleted"]
    assert len(played.events("other", WatcherAdded)) == 1


def test_a_workflow_waits_for_another_that_has_closed_before(play: Play) -> None:
    async def scene(client: Client) -> list[str]:
        other = await client.start(shop, id="other")
        await other.signal(go, 4)
        await other.result()
        return await client.run(waiter, "other", other.run_id, id="w")

    played = play(scene, shop, waiter, double)
    assert played.result == ["Receipt(number=8)"]
    assert played.events("other", WatcherAdded) == []


def test_nobody_has_no_end(play: Play) -> None:
    assert play.run(waiter, args=("nobody", None)).result[0] == "WorkflowNotFoundError"


@pytest.mark.parametrize("when", ["open", "closed"])
@pytest.mark.parametrize(
    ("end", "told"),
    [
        (
            "fail",
            [
                "WorkflowFailedError",
                "workflow 'other' failed: SoldOut: sold out",
                "other",
                "",
                "ApplicationError",
                "sold out",
            ],
        ),
        ("cancel", ["WorkflowCancelledError", "workflow 'other' was cancelled: enough", "other", "enough"]),
        ("terminate", ["WorkflowTerminatedError", "workflow 'other' was terminated: enough", "other", "enough"]),
        (
            "time out",
            ["WorkflowTimedOutError", "workflow 'other' was still open at its execution deadline", "other", ""],
        ),
    ],
)
def test_every_end_without_a_result_is_an_error_of_its_own(play: Play, when: str, end: str, told: list[str]) -> None:
    async def scene(client: Client) -> list[str]:
        timeout = 300 if end == "time out" else None
        other = await client.start(shop, end, id="other", execution_timeout=timeout)
        handle = None
        if when == "open":
            handle = await client.start(waiter, "other", other.run_id, id="w")
            await play.recorded("other", WatcherAdded)
        match end:
            case "fail":
                await other.signal(go, 1)
            case "cancel":
                await other.cancel("enough")
            case "terminate":
                await other.terminate("enough")
        await play.closed("other")
        return await client.run(waiter, "other", None, id="w") if handle is None else await handle.result()

    assert play(scene, shop, waiter, double, times=2).result == told


# --- runs that go on in another one -----------------------------------------------------------------------------------


def test_runs_that_continue_the_other_are_waited_for(play: Play) -> None:
    @workflow
    async def round_after_round(left: int) -> Receipt:
        number = await workflow.signal_channel(go).receive()
        if left:
            workflow.continue_as_new(left - 1)
        return Receipt(number)

    async def scene(client: Client) -> list[str]:
        other = await client.start(round_after_round, 2, id="other")
        handle = await client.start(waiter, "other", other.run_id, id="w")
        await play.recorded("other", WatcherAdded)
        for number in range(3):
            await other.signal(go, number)
        return await handle.result()

    played = play(scene, round_after_round, waiter)
    assert played.result == ["Receipt(number=2)"]
    assert len([run for run in played.runs if run.workflow_id == "other"]) == 3
    assert len(played.events("w", ExternalResolved)) == 1


def test_a_workflow_that_is_tried_again_has_not_failed_yet(play: Play) -> None:
    @workflow
    async def second_time_lucky() -> Receipt:
        await workflow.signal_channel(go).receive()
        if workflow.info().attempt == 1:
            raise ApplicationError("not yet")
        return Receipt(workflow.info().attempt)

    async def scene(client: Client) -> list[str]:
        policy = RetryPolicy(initial_interval=1.0, maximum_attempts=3)
        other = await client.start(second_time_lucky, id="other", retry_policy=policy)
        handle = await client.start(waiter, "other", None, id="w")
        await play.recorded("other", WatcherAdded)
        await other.signal(go, 1)
        await play.until(lambda: len([run for run in play.stage.runs() if run.workflow_id == "other"]) == 2)
        await other.signal(go, 2)
        return await handle.result()

    assert play(scene, second_time_lucky, waiter).result == ["Receipt(number=2)"]


def test_whoever_waits_for_a_run_that_is_replaced_is_told_of_its_termination(play: Play) -> None:
    async def scene(client: Client) -> list[str]:
        await client.start(shop, id="other")
        handle = await client.start(waiter, "other", None, id="w")
        await play.recorded("other", WatcherAdded)
        again = await client.start(shop, id="other", id_conflict_policy="terminate_existing")
        told = await handle.result()
        await again.signal(go, 1)
        await again.result()
        return told

    words = "replaced by a new run of workflow id 'other'"
    told = ["WorkflowTerminatedError", f"workflow 'other' was terminated: {words}", "other", words]
    assert play(scene, shop, waiter, double).result == told


def test_an_end_is_told_although_the_id_is_used_again_at_once(play: Play) -> None:
    async def scene(client: Client) -> list[list[str]]:
        handles = []
        for number in range(3):
            other = await client.start(shop, id="other")
            handles.append(await client.start(waiter, "other", other.run_id, id=f"w{number}"))
            await play.recorded("other", WatcherAdded)
            await other.signal(go, number)
            await other.result()
        return [await handle.result() for handle in handles]

    assert play(scene, shop, waiter, double).result == [[f"Receipt(number={2 * number})"] for number in range(3)]


# --- who waits --------------------------------------------------------------------------------------------------------


def test_a_wait_can_be_given_up_and_begun_again(play: Play) -> None:
    @workflow
    async def impatient() -> list[object]:
        with trio.move_on_after(50) as first:
            await workflow.handle("other")
        receipt = await workflow.handle("other").result(Receipt)
        return [first.cancelled_caught, receipt.number]

    async def scene(client: Client) -> list[object]:
        other = await client.start(shop, id="other")
        handle = await client.start(impatient, id="w")
        await play.recorded("other", WatcherAdded, 2)
        await other.signal(go, 3)
        return await handle.result()

    played = play(scene, shop, impatient, double)
    assert played.result == [True, 6]
    assert len(played.events("w", ExternalRequested)) == 2


def test_many_wait_for_one_and_each_is_told_once(play: Play) -> None:
    async def scene(client: Client) -> list[list[str]]:
        other = await client.start(shop, id="other")
        handles = [await client.start(waiter, "other", None, id=f"w{number}") for number in range(8)]
        await play.recorded("other", WatcherAdded, len(handles))
        await other.signal(go, 1)
        return [await handle.result() for handle in handles]

    played = play(scene, shop, waiter, double)
    assert played.result == [["Receipt(number=2)"]] * 8
    assert all(len(played.events(f"w{number}", ExternalResolved)) == 1 for number in range(8))


def test_a_child_and_a_stranger_wait_for_the_same_end(play: Play) -> None:
    @workflow
    async def parent() -> list[int]:
        child = workflow.start_child(shop, id="other")
        await child.started()
        stranger = workflow.start_child(waiter, "other", None, id="stranger")
        receipt = await child
        told: list[str] = await stranger
        return [receipt.number, len(told)]

    async def scene(client: Client) -> list[int]:
        handle = await client.start(parent, id="w")
        await play.recorded("other", WatcherAdded)
        await client.handle("other").signal(go, 5)
        return await handle.result()

    assert play(scene, parent, shop, waiter, double).result == [10, 1]


def test_a_waiting_workflow_and_its_target_may_both_be_killed(play: Play) -> None:
    async def scene(client: Client) -> list[str]:
        other = await client.start(shop, id="other")
        handle = await client.start(waiter, "other", None, id="w")
        await play.recorded("w", ExternalRequested)
        await play.restart()
        await play.recorded("other", WatcherAdded)
        await play.restart()
        await other.signal(go, 4)
        await play.closed("other")
        await play.restart()
        return await handle.result()

    played = play(scene, shop, waiter, double)
    assert played.result == ["Receipt(number=8)"]
    assert len(played.events("other", WatcherAdded)) == 1


def test_errors_of_others_can_be_told_apart(play: Play) -> None:
    @workflow
    async def careful(other: str) -> str:
        try:
            await workflow.handle(other)
        except WorkflowNotFoundError:
            return "nobody"
        except WorkflowFailedError as error:
            cause = error.cause
            assert isinstance(cause, ApplicationError)
            return cause.type
        except (WorkflowCancelledError, WorkflowTerminatedError, WorkflowTimedOutError) as error:
            return type(error).__name__
        return "well"

    async def scene(client: Client) -> list[str]:
        other = await client.start(shop, "fail", id="other")
        await other.signal(go, 1)
        await play.closed("other")
        return [await client.run(careful, name, id=f"w-{name}") for name in ("other", "nobody")]

    assert play(scene, shop, careful, double).result == ["SoldOut", "nobody"]
