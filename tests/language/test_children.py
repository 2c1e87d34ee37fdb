"""Child workflows and other workflows."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio

from durablefuture_trio import ChildWorkflowError, activity, gather, workflow
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.client import Client
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.commands import CompleteWorkflow
from durablefuture_trio.errors import (
    ApplicationError,
    RequestFailedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
)
from durablefuture_trio.history.events import (
    ChildCancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildInitiated,
    ChildStarted,
    ExternalRequested,
    SignalReceived,
)
from durablefuture_trio.ports.frames import Loaded
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.language import Play
from tests._support.sandbox import Story


@dataclass
class Parcel:
    number: int
    weight: float = 1.5


@activity
async def double(number: int) -> int:
    return 2 * number


@workflow.signal
def go(number: int) -> None: ...


@workflow
async def pack(number: int) -> Parcel:
    await double(number)
    return Parcel(number)


@workflow
async def waiting() -> int:
    return await workflow.signal_channel(go).receive()


# --- results and failures ---------------------------------------------------------------------------------------------


def test_an_awaited_workflow_is_a_child_and_gives_its_typed_result(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        parcel = await pack(3)
        assert isinstance(parcel, Parcel)
        return [parcel.number, parcel.weight]

    played = play.run(flow, pack, double)
    assert played.result == [3, 1.5]
    assert played.kinds("w") == [
        "WorkflowStarted",
        "ChildInitiated",
        "ChildStarted",
        "ChildCompleted",
        "WorkflowCompleted",
    ]


def test_children_run_beside_each_other(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        return [parcel.number for parcel in await gather(*(pack.submit(number) for number in range(5)))]

    played = play.run(flow, pack, double)
    assert played.result == [0, 1, 2, 3, 4]
    assert len(played.runs) == 6


def test_children_in_a_nursery(play: Play) -> None:
    @workflow
    async def flow() -> str:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(pack, number)
        return "packed"

    assert play.run(flow, pack, double).result == "packed"


def test_a_grandchild(play: Play) -> None:
    @workflow
    async def middle(number: int) -> int:
        return (await pack(number)).number + 1

    @workflow
    async def flow() -> int:
        return await middle(5)

    played = play.run(flow, middle, pack, double)
    assert (played.result, len(played.runs)) == (6, 3)


def test_a_failed_child_raises_with_its_cause(play: Play) -> None:
    @workflow
    async def failing() -> None:
        await double(1)
        raise ApplicationError("address invalid", type="BadAddress", details=["Bob", 3])

    @workflow
    async def flow() -> list[object]:
        try:
            await failing()
        except ChildWorkflowError as error:
            cause = error.cause
            assert isinstance(cause, ApplicationError)
            return [error.reason, error.workflow, cause.type, str(cause), list(cause.details)]
        return []

    played = play.run(flow, failing, double)
    assert played.result == ["failed", "failing", "BadAddress", "address invalid", ["Bob", 3]]


def test_an_unhandled_failure_of_a_child_fails_the_parent(play: Play) -> None:
    @workflow
    async def failing() -> None:
        raise ValueError("no")

    @workflow
    async def flow() -> None:
        await failing()

    async def scene(client: Client) -> list[str]:
        with pytest.raises(WorkflowFailedError) as caught:
            await client.run(flow, id="w")
        assert isinstance(caught.value.cause, ChildWorkflowError)
        return [str(caught.value.cause.cause)]

    assert play(scene, flow, failing).result == ["no"]


def test_a_child_by_name_with_its_type(play: Play) -> None:
    @workflow
    async def flow() -> int:
        child = workflow.start_child("pack", 4, result_type=Parcel, id="the-child")
        assert child.id == "the-child"
        return (await child).number

    assert play.run(flow, pack, double).result == 4


def test_started_gives_the_run_of_the_child(play: Play) -> None:
    @workflow
    async def flow() -> str:
        child = workflow.start_child(pack, 1, id="c")
        run_id = await child.started()
        await child
        return run_id

    async def scene(client: Client) -> bool:
        run_id = await client.run(flow, id="w")
        return run_id == client_run(play, "c")

    assert play(scene, flow, pack, double).result is True


def client_run(play: Play, workflow_id: str) -> str:
    run_id: str = play.events(workflow_id)[0].run_id
    return run_id


def test_a_child_whose_id_is_in_use_cannot_be_started(play: Play) -> None:
    @workflow
    async def flow() -> list[object]:
        child = workflow.start_child(waiting, id="taken")
        try:
            await child.started()
        except ChildWorkflowError as error:
            try:
                await child
            except ChildWorkflowError as again:
                return [error.reason, again.reason]
        return []

    async def scene(client: Client) -> list[object]:
        other = await client.start(waiting, id="taken")
        result = await client.run(flow, id="w")
        await other.signal(go, 1)
        await other.result()
        return result

    played = play(scene, flow, waiting)
    assert played.result == ["not_started", "not_started"]


def test_a_child_of_an_unknown_name_blocks_itself_and_not_its_parent(play: Play) -> None:
    @workflow
    async def flow() -> str:
        with trio.move_on_after(30):
            await workflow.start_child("nobody_knows", id="c", parent_close="terminate").started()
        return "went on"

    assert play.run(flow).result == "went on"


# --- signals and cancels ----------------------------------------------------------------------------------------------


def test_a_parent_signals_its_child(play: Play) -> None:
    @workflow
    async def flow() -> int:
        child = workflow.start_child(waiting, id="c")
        await child.signal(go, 12)
        return await child

    played = play.run(flow, waiting)
    assert played.result == 12
    assert len(played.events("c", SignalReceived)) == 1


def test_signals_to_a_child_arrive_in_order_and_once(play: Play) -> None:
    @workflow
    async def counting() -> list[int]:
        channel = workflow.signal_channel(go)
        return [await channel.receive() for _ in range(8)]

    @workflow
    async def flow() -> list[int]:
        child = workflow.start_child(counting, id="c")
        for number in range(8):
            await child.signal(go, number)
        return await child

    played = play.run(flow, counting)
    assert played.result == list(range(8))
    assert len(played.events("c", SignalReceived)) == 8


def test_cancelling_the_scope_of_a_child_cancels_it_and_waits_for_its_end(play: Play) -> None:
    @workflow
    async def careful() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await double(1)

    @workflow
    async def flow() -> bool:
        with trio.move_on_after(5) as scope:
            await careful()
        return scope.cancelled_caught

    played = play.run(flow, careful, double)
    assert played.result is True
    assert played.calls("double") == 1
    assert "ChildFailed" in played.kinds("w")
    child = next(run for run in played.runs if run.workflow_id != "w")
    assert child.kinds[-1] == "WorkflowCancelled"


def test_a_result_that_a_cancelled_child_gives_anyway_is_kept(play: Play) -> None:
    @workflow
    async def stubborn() -> int:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return 7  # it ends well all the same

    @workflow
    async def flow() -> list[object]:
        got: list[object] = []
        with trio.move_on_after(5) as scope:
            got.append(await stubborn())
            await trio.lowlevel.checkpoint()
        return [*got, scope.cancelled_caught]

    assert play.run(flow, stubborn).result == [7, True]


def test_cancelling_a_submitted_child_raises_a_child_error(play: Play) -> None:
    @workflow
    async def flow() -> str:
        child = workflow.start_child(waiting, id="c")
        await child.started()
        child.cancel()
        try:
            await child
        except ChildWorkflowError as error:
            return error.reason
        return ""

    assert play.run(flow, waiting).result == "cancelled"


def test_a_child_that_is_started_and_cancelled_at_once_never_exists(play: Play) -> None:
    @workflow
    async def flow() -> str:
        child = workflow.start_child(waiting, id="c")
        child.cancel()
        try:
            await child
        except ChildWorkflowError as error:
            return error.reason
        return ""

    played = play.run(flow, waiting)
    assert played.result == "cancelled"
    assert [run.workflow_id for run in played.runs] == ["w"]
    assert played.kinds("w") == ["WorkflowStarted", "WorkflowCompleted"]


def test_a_cancel_before_the_child_has_started_is_ordered_after_its_start(play: Play) -> None:
    @workflow
    async def flow() -> str:
        child = workflow.start_child(waiting, id="c")
        with trio.move_on_after(0):
            await child.started()  # initiated in this step, cancelled in the next
        await trio.sleep(0.000001)
        child.cancel()
        try:
            await child
        except ChildWorkflowError as error:
            return error.reason
        return ""

    played = play.run(flow, waiting)
    assert played.result == "cancelled"
    assert played.kinds("c")[-1] == "WorkflowCancelled"


def test_a_child_that_is_terminated_says_so(play: Play) -> None:
    @workflow
    async def flow() -> str:
        try:
            await workflow.start_child(waiting, id="c")
        except ChildWorkflowError as error:
            return error.reason
        return ""

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await play.recorded("w", ChildStarted)
        await client.handle("c").terminate("enough")
        return await handle.result()

    assert play(scene, flow, waiting).result == "terminated"


def test_a_child_that_times_out_says_so(play: Play) -> None:
    @workflow
    async def flow() -> str:
        try:
            await workflow.start_child(waiting, id="c", execution_timeout=20)
        except ChildWorkflowError as error:
            return error.reason
        return ""

    assert play.run(flow, waiting).result == "timed_out"


# --- close policies ---------------------------------------------------------------------------------------------------

ENDS = ("complete", "fail", "cancel", "terminate")


@workflow
async def parent(how: str, policy: str) -> None:
    child = workflow.start_child(waiting, id="c", parent_close=policy)
    await child.started()
    number = await workflow.signal_channel("end", type=int).receive()
    if how == "fail":
        raise ValueError(str(number))


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize(
    ("policy", "last"),
    [("terminate", "WorkflowTerminated"), ("cancel", "WorkflowCancelled"), ("abandon", "WorkflowCompleted")],
)
def test_what_becomes_of_an_open_child_is_what_its_policy_says(play: Play, how: str, policy: str, last: str) -> None:
    async def scene(client: Client) -> list[str]:
        handle = await client.start(parent, how, policy, id="w")
        await play.recorded("w", ChildStarted)
        match how:
            case "cancel":
                await handle.cancel()
            case "terminate":
                await handle.terminate()
            case _:
                await handle.signal("end", 1)
        ended = type(await play.closed("w")).__name__
        if policy == "abandon":
            await trio.sleep(5)
            await client.handle("c").signal(go, 3)
            assert await client.handle("c", waiting).result() == 3
        return [ended, type(await play.closed("c")).__name__]

    played = play(scene, parent, waiting, times=2)
    ended = {"complete": "Completed", "fail": "Failed", "cancel": "Cancelled", "terminate": "Terminated"}[how]
    assert played.result == [f"Workflow{ended}", last]


@pytest.mark.parametrize(
    ("policy", "last"),
    [("terminate", "WorkflowTerminated"), ("cancel", "WorkflowCancelled"), ("abandon", "WorkflowCompleted")],
)
def test_a_run_that_continues_as_new_closes_its_children_by_their_policy(play: Play, policy: str, last: str) -> None:
    @workflow
    async def flow(policy: str, again: bool) -> str:
        if again:
            await workflow.start_child(waiting, id="c", parent_close=policy).started()
            workflow.continue_as_new(policy, False)
        return "second run"

    async def scene(client: Client) -> list[str]:
        result = await client.run(flow, policy, True, id="w")
        if policy == "abandon":
            await client.handle("c").signal(go, 1)
        return [result, type(await play.closed("c")).__name__]

    assert play(scene, flow, waiting, times=2).result == ["second run", last]


# --- the way between the two ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_event", ["ChildInitiated", "ChildStarted"])
def test_a_parent_killed_around_the_start_of_its_child_neither_loses_nor_doubles_it(play: Play, at_event: str) -> None:
    @workflow
    async def flow() -> int:
        return (await workflow.start_child(pack, 9, id="c")).number

    async def scene(client: Client) -> int:
        handle = await client.start(flow, id="w")
        kind = ChildInitiated if at_event == "ChildInitiated" else ChildStarted
        await play.recorded("w", kind)
        await play.restart()
        return await handle.result()

    played = play(scene, flow, pack, double)
    assert played.result == 9
    assert len([run for run in played.runs if run.workflow_id == "c"]) == 1
    assert len(played.events("w", ChildCompleted)) == 1


def test_many_children_of_many_parents_are_each_there_once(play: Play) -> None:
    @workflow
    async def flow(number: int) -> int:
        parcels = await gather(*(pack.submit(10 * number + child) for child in range(5)))
        return sum(parcel.number for parcel in parcels)

    async def scene(client: Client) -> list[int]:
        handles = [await client.start(flow, number, id=f"w{number}") for number in range(5)]
        return [await handle.result() for handle in handles]

    played = play(scene, flow, pack, double)
    assert played.result == [50 * number + 10 for number in range(5)]
    assert len(played.runs) == 30


def test_a_child_that_continues_as_new_gives_its_last_result_to_its_parent(play: Play) -> None:
    @workflow
    async def countdown(number: int) -> str:
        await double(number)
        if number:
            workflow.continue_as_new(number - 1)
        return "lift off"

    @workflow
    async def flow() -> str:
        return await workflow.start_child(countdown, 3, id="c")

    played = play.run(flow, countdown, double)
    assert played.result == "lift off"
    assert len([run for run in played.runs if run.workflow_id == "c"]) == 4
    assert len(played.events("w", ChildCompleted)) == 1


# --- any workflow by its id -------------------------------------------------------------------------------------------


def test_a_workflow_signals_any_other_by_its_id(play: Play) -> None:
    @workflow
    async def flow(to: str) -> str:
        await workflow.handle(to).signal(go, 4)
        return "sent"

    async def scene(client: Client) -> list[object]:
        other = await client.start(waiting, id="other")
        sent = await client.run(flow, "other", id="w")
        return [sent, await other.result()]

    played = play(scene, flow, waiting)
    assert played.result == ["sent", 4]
    assert len(played.events("other", SignalReceived)) == 1
    assert len(played.events("w", ExternalRequested)) == 1


def test_a_workflow_signals_itself(play: Play) -> None:
    @workflow
    async def flow() -> int:
        await workflow.handle(workflow.info().workflow_id).signal(go, 6)
        return await workflow.signal_channel(go).receive()

    assert play.run(flow).result == 6


def test_a_signal_to_nobody_raises_in_the_workflow(play: Play) -> None:
    @workflow
    async def flow() -> str:
        try:
            await workflow.handle("nobody").signal(go, 1)
        except WorkflowNotFoundError as error:
            return error.workflow_id
        return ""

    assert play.run(flow).result == "nobody"


def test_a_workflow_cancels_another(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await workflow.handle("other").cancel("not needed")

    async def scene(client: Client) -> str:
        other = await client.start(waiting, id="other")
        await client.run(flow, id="w")
        with pytest.raises(WorkflowCancelledError) as caught:
            await other.result()
        return caught.value.reason

    assert play(scene, flow, waiting).result == "not needed"


def test_two_workflows_play_ping_pong(play: Play) -> None:
    @workflow
    async def player(other: str, serves: bool) -> list[int]:
        balls = workflow.signal_channel(go)
        seen: list[int] = []
        if serves:
            await workflow.handle(other).signal(go, 0)
        while len(seen) < 5:
            ball = await balls.receive()
            seen.append(ball)
            if ball < 9:
                await workflow.handle(other).signal(go, ball + 1)
        return seen

    async def scene(client: Client) -> list[list[int]]:
        right = await client.start(player, "left", False, id="right")
        left = await client.start(player, "right", True, id="left")
        return [await right.result(), await left.result()]

    assert play(scene, player).result == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_a_parent_that_is_terminated_while_its_child_ends_loses_nothing(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await workflow.start_child(pack, 1, id="c")

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        await play.recorded("w", ChildInitiated)
        await handle.terminate("race")
        with pytest.raises(WorkflowTerminatedError):
            await handle.result()
        return True

    played = play(scene, flow, pack, double)
    assert len([run for run in played.runs if run.workflow_id == "c"]) <= 1


def test_a_child_cancel_is_recorded_once(play: Play) -> None:
    @workflow
    async def flow() -> str:
        child = workflow.start_child(waiting, id="c")
        await child.started()
        for _ in range(3):
            child.cancel()
            await trio.lowlevel.checkpoint()
        await child.wait()
        return "ended"

    played = play.run(flow, waiting)
    assert len(played.events("w", ChildCancelRequested)) == 1


def test_a_parent_and_a_child_that_have_both_ended_leave_each_other_alone(play: Play) -> None:
    """Each owed the other a word: loaded anew for a message that came late, they told each other again and again."""

    async def scene(client: Client) -> str:
        handle = await client.start(parent, "complete", "terminate", id="w")
        await play.recorded("w", ChildStarted)
        await handle.signal("end", 1)
        last = type(await play.closed("c")).__name__
        await play.restart()
        for workflow_id in ("w", "c"):
            with pytest.raises(RequestFailedError):
                await client.handle(workflow_id).signal(go, 1)
        return last

    assert play(scene, parent, waiting).result == "WorkflowTerminated"


def test_the_end_of_a_child_that_is_heard_of_before_its_start_names_its_run() -> None:
    """The word of the start may take longer, or be lost with its sender, who does not repeat it after the end."""

    @workflow
    async def flow() -> list[str]:
        child = workflow.start_child(waiting, id="c")
        run_id = await child.started()
        try:
            await child
        except ChildWorkflowError as error:
            return [run_id, error.reason]
        return [run_id]

    host = ReplayHost(Registry.of([flow, waiting]).workflows)
    story = Story(host, "flow")
    story.start()
    failure = Failure(type="ValueError", message="no")
    story.apply(ChildFailed(id=story.next_id, at=story.at, call=1, how="failed", failure=failure, run_id="run-c"))
    (completed,) = story.commands
    assert isinstance(completed, CompleteWorkflow)
    assert completed.result.data == b'["run-c","failed"]'
    assert isinstance(story.replay(ReplayHost(Registry.of([flow, waiting]).workflows)), Loaded)
