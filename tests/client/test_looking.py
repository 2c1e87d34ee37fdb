"""Terminating, describing, listing, and the state of the namespace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio

from durablefuture_trio.client import WorkflowDescription
from durablefuture_trio.codec import encode_arguments, encode_value, failure_of
from durablefuture_trio.engine.requests import StartRequest
from durablefuture_trio.errors import HistoryError, RequestFailedError, WorkflowNotFoundError
from durablefuture_trio.history.events import (
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    CallerRecord,
    CancelRequested,
    ChildCancelRequested,
    ChildCompleted,
    ChildInitiated,
    ChildStarted,
    ContinuedAsNew,
    UpdateAccepted,
    UpdateCompleted,
    WorkflowCancelled,
    WorkflowTerminated,
)
from durablefuture_trio.history.options import ActivityOptionsRecord
from durablefuture_trio.memory_broker import ReadFate
from durablefuture_trio.ports.broker import Append
from durablefuture_trio.protocol.lease import LeaseRecord, MemberRecord
from durablefuture_trio.protocol.projection import ProjectionRecord, Status
from tests._support.scripted_owner import completed, started
from tests.client.conftest import World

REQUEST = StartRequest(
    workflow_id="order-1",
    workflow="order",
    arguments=encode_arguments(("Bob",)),
    execution_deadline=500.0,
    memo=encode_value("vip"),
)


def scheduled(event_id: int, activity_id: int, name: str) -> ActivityScheduled:
    return ActivityScheduled(
        id=event_id,
        at=100.0 + event_id,
        activity_id=activity_id,
        name=name,
        arguments=encode_arguments(()),
        options=ActivityOptionsRecord(task_queue="gpu"),
    )


def record(
    workflow_id: str, status: Status, *, workflow: str = "order", n: int = 1, blocked: str = ""
) -> ProjectionRecord:
    return ProjectionRecord(
        workflow_id=workflow_id,
        run_id="run-1",
        workflow=workflow,
        n=n,
        status=status,
        started_at=100.0,
        blocked=blocked,
    )


# --- terminate --------------------------------------------------------------------------------------------------------


async def terminate_in_background(
    world: World, nursery: trio.Nursery, call: Callable[[], Awaitable[None]]
) -> list[BaseException | None]:
    outcomes: list[BaseException | None] = []

    async def terminate() -> None:
        try:
            await call()
        except (WorkflowNotFoundError, RequestFailedError) as error:
            outcomes.append(error)
        else:
            outcomes.append(None)

    nursery.start_soon(terminate)
    return outcomes


async def test_terminate_names_the_run_of_the_handle_and_the_reason(world: World) -> None:
    handle = world.client.handle("order-1", run_id="run-1")
    async with trio.open_nursery() as nursery:
        outcomes = await terminate_in_background(world, nursery, lambda: handle.terminate("wrong order"))
        message, request = await world.owner.terminate_request()
        assert (request.workflow_id, request.run_id, request.reason) == ("order-1", "run-1", "wrong order")
        world.owner.answer(message, "applied", "run-1")
    assert outcomes == [None]


@pytest.mark.parametrize(
    ("answer", "error"),
    [("not_found", WorkflowNotFoundError), ("closed", RequestFailedError), ("undecodable", RequestFailedError)],
)
async def test_a_refused_termination_is_an_error_in_the_owners_words(
    world: World, answer: str, error: type[Exception]
) -> None:
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    async with trio.open_nursery() as nursery:
        outcomes = await terminate_in_background(world, nursery, world.client.handle("order-1").terminate)
        message, _ = await world.owner.terminate_request()
        world.owner.answer(message, answer, "run-1", "in other words")
    assert type(outcomes[0]) is error
    assert "in other words" in str(outcomes[0])


async def test_h10_a_termination_of_the_latest_run_names_it(world: World) -> None:
    """Of two copies about "the latest" one could be refused, the other applied to a run that began in between."""
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    async with trio.open_nursery() as nursery:
        outcomes = await terminate_in_background(world, nursery, world.client.handle("order-1").terminate)
        message, request = await world.owner.terminate_request()
        assert request.run_id == "run-1"
        world.owner.answer(message, "applied", "run-1")
    assert outcomes == [None]


async def test_terminating_what_was_never_started_sends_nothing(world: World) -> None:
    with pytest.raises(WorkflowNotFoundError, match="nobody"):
        await world.client.handle("nobody").terminate()


async def test_h20_a_lost_answer_to_a_termination_is_found_in_the_history(world: World) -> None:
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    async with trio.open_nursery() as nursery:
        outcomes = await terminate_in_background(world, nursery, world.client.handle("order-1").terminate)
        message, _ = await world.owner.terminate_request()
        terminated = WorkflowTerminated(id=2, at=101.0, request_id=message.request_id)
        await world.owner.close("order-1", "run-1", terminated)
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert outcomes == [None]


# --- describe and history ---------------------------------------------------------------------------------------------


async def test_a_description_tells_what_is_pending_and_why(world: World) -> None:
    declined = failure_of(ValueError("declined"))
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    await world.owner.commit(
        "order-1", "run-1", scheduled(2, 1, "charge"), scheduled(3, 2, "ship"), scheduled(4, 3, "pack"),
        scheduled(5, 4, "notify"),
    )  # fmt: skip
    await world.owner.commit(
        "order-1",
        "run-1",
        ActivityFailed(id=6, at=107.0, activity_id=1, attempt=1, reason="error", failure=declined, retry_at=109.0),
        ActivityCompleted(id=7, at=107.0, activity_id=2, attempt=1, result=encode_value(None)),
        ActivityCancelRequested(id=8, at=107.0, activity_id=3),
    )
    description = await world.client.handle("order-1").describe()
    assert (description.status, description.workflow, description.run_id) == ("running", "order", "run-1")
    assert (description.started_at, description.closed_at, description.execution_deadline) == (100.0, None, 500.0)
    assert description.history_length == 8
    assert description.memo == encode_value("vip")
    charge, pack, notify = description.pending_activities
    assert (charge.activity, charge.phase, charge.attempt, charge.retry_at) == ("charge", "backoff", 1, 109.0)
    assert (charge.last_failure, charge.last_failure_reason) == ("ValueError: declined", "error")
    assert (pack.activity, pack.phase) == ("pack", "cancelling")
    assert (notify.phase, notify.task_queue, notify.scheduled_at, notify.last_failure) == (
        "scheduled",
        "gpu",
        105.0,
        "",
    )


async def test_a_description_tells_of_children_updates_and_a_cancel(world: World) -> None:
    parent = CallerRecord("shop-1", "run-7", 4)
    first = msgspec.structs.replace(
        started(REQUEST, "run-2", "first"), parent=parent, attempt=2, continued_from="run-1", not_before=160.0
    )

    def initiated(event_id: int, call: int) -> ChildInitiated:
        return ChildInitiated(
            id=event_id,
            at=100.0 + event_id,
            call=call,
            workflow_id=f"pay-{call}",
            workflow="payment",
            arguments=encode_arguments(()),
        )

    await world.owner.commit(
        "order-1", "run-2", first, initiated(2, 1), initiated(3, 2), initiated(4, 3), initiated(5, 4)
    )
    await world.owner.commit(
        "order-1",
        "run-2",
        ChildStarted(id=6, at=106.0, call=1, run_id="run-p1"),
        ChildStarted(id=7, at=106.0, call=3, run_id="run-p3"),
        ChildStarted(id=8, at=106.0, call=4, run_id="run-p4"),
        ChildCompleted(id=9, at=106.0, call=4, result=encode_value(None)),
        ChildCancelRequested(id=10, at=106.0, call=3),
        UpdateAccepted(id=11, at=107.0, update_id="u-1", name="rename", arguments=encode_arguments(())),
        UpdateAccepted(id=12, at=107.0, update_id="u-2", name="rename", arguments=encode_arguments(())),
        UpdateCompleted(id=13, at=107.0, update_id="u-1", result=encode_value(None)),
        CancelRequested(id=14, at=108.0, reason="enough"),
    )
    description = await world.client.handle("order-1").describe()
    assert [(child.workflow_id, child.run_id, child.phase) for child in description.pending_children] == [
        ("pay-1", "run-p1", "running"),
        ("pay-2", "", "starting"),
        ("pay-3", "run-p3", "cancelling"),
    ]
    assert [(child.call, child.workflow, child.initiated_at) for child in description.pending_children][1] == (
        2,
        "payment",
        103.0,
    )
    (update,) = description.pending_updates
    assert (update.update_id, update.update, update.accepted_at) == ("u-2", "rename", 107.0)
    assert (description.is_cancelled, description.cancel_reason) == (True, "enough")
    assert (description.parent_workflow_id, description.parent_run_id) == ("shop-1", "run-7")
    assert (description.attempt, description.continued_from, description.not_before) == (2, "run-1", 160.0)
    assert description.continued_in == ""


async def test_a_closed_run_has_nothing_pending_and_names_the_run_that_continues_it(world: World) -> None:
    update = UpdateAccepted(id=2, at=100.5, update_id="u", name="rename", arguments=encode_arguments(()))
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"), update)
    end = ContinuedAsNew(id=3, at=101.0, next_run_id="run-2", workflow="order", arguments=REQUEST.arguments)
    await world.owner.commit("order-1", "run-2", end, started(REQUEST, "run-2", ""))
    description = await world.client.handle("order-1", run_id="run-1").describe()
    assert (description.status, description.continued_in) == ("continued", "run-2")
    assert (description.pending_updates, description.pending_children) == ((), ())


async def test_a_cancelled_run_is_described_as_such(world: World) -> None:
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    await world.owner.close("order-1", "run-1", WorkflowCancelled(id=2, at=101.0))
    assert (await world.client.handle("order-1").describe()).status == "cancelled"


async def test_a_description_says_why_a_run_is_blocked(world: World) -> None:
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    await world.owner.project(record("order-1", "blocked", blocked="no workflow 'order' is registered"))
    description = await world.client.handle("order-1").describe()
    assert (description.status, description.blocked) == ("blocked", "no workflow 'order' is registered")


async def test_a_closed_run_is_not_blocked_whatever_a_stale_record_says(world: World) -> None:
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    await world.owner.close("order-1", "run-1", completed(1))
    await world.owner.project(record("order-1", "blocked", blocked="once"))
    description = await world.client.handle("order-1").describe()
    assert (description.status, description.blocked, description.closed_at) == ("completed", "", 101.0)


async def test_the_record_of_a_later_run_does_not_color_an_earlier_one(world: World) -> None:
    await world.owner.commit("order-1", "run-0", started(REQUEST, "run-0", "first"))
    await world.owner.project(record("order-1", "blocked", blocked="the other run"))
    description = await world.client.handle("order-1", run_id="run-0").describe()
    assert (description.status, description.blocked) == ("running", "")


async def test_a_history_names_event_numbers_and_the_commits_they_came_in(world: World) -> None:
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"), scheduled(2, 1, "charge"))
    await world.owner.close("order-1", "run-1", completed(1, event_id=3))
    events = await world.client.handle("order-1").history()
    assert [(event.n, event.id, event.type) for event in events] == [
        (1, 1, "WorkflowStarted"),
        (1, 2, "ActivityScheduled"),
        (2, 3, "WorkflowCompleted"),
    ]
    assert events[1].at == 102.0


async def test_a_history_longer_than_one_read_is_whole(world: World) -> None:
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    for event_id in range(2, 1203):
        await world.owner.commit("order-1", "run-1", scheduled(event_id, event_id, "charge"))
    events = await world.client.handle("order-1").history()
    assert [event.id for event in events] == list(range(1, 1203))


async def test_a_hole_in_a_history_is_an_error_that_names_it(world: World) -> None:
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    await world.owner.commit("order-1", "run-1", scheduled(2, 1, "charge"))
    await world.owner.close("order-1", "run-1", completed(1, event_id=3))
    stream = world.subjects.history_stream(0)
    hole = await world.owner_broker.last(stream, world.subjects.history("order-1", 2))
    assert hole is not None
    await world.owner_broker.delete(stream, hole.seq)
    with pytest.raises(HistoryError, match=r"has no commit 2"):
        await world.client.handle("order-1").history()


# --- list and status --------------------------------------------------------------------------------------------------


async def listed(world: World, **filters: object) -> list[WorkflowDescription]:
    return [item async for item in world.client.list(**filters)]  # type: ignore[arg-type]


async def test_a_listing_filters_by_status_and_workflow(world: World) -> None:
    await world.owner.project(record("a", "running"))
    await world.owner.project(record("b", "failed", workflow="billing"))
    await world.owner.project(record("c", "timed_out"))
    assert [item.workflow_id for item in await listed(world)] == ["a", "b", "c"]
    assert [item.workflow_id for item in await listed(world, status="failed")] == ["b"]
    assert [item.workflow_id for item in await listed(world, status=("running", "timed_out"))] == ["a", "c"]
    assert [item.workflow_id for item in await listed(world, workflow="billing")] == ["b"]


async def test_a_listing_shows_a_workflow_once_although_it_changes_meanwhile(world: World) -> None:
    for number in range(300):
        await world.owner.project(record(f"w-{number}", "running"))
    shown: list[str] = []
    async for item in world.client.list():
        shown.append(item.workflow_id)
        if item.workflow_id == "w-5":
            await world.owner.project(record("w-3", "completed", n=2))
            await world.owner.project(record("w-299", "completed", n=2))
    assert sorted(shown) == sorted(f"w-{number}" for number in range(300))


async def test_a_listing_goes_on_where_it_broke_off(world: World) -> None:
    for number in range(600):
        await world.owner.project(record(f"w-{number}", "running"))
    shown = []
    async for item in world.client.list():
        shown.append(item.workflow_id)
        if len(shown) == 100:
            world.faults.next_read(ReadFate(answered=False))
    assert shown == [f"w-{number}" for number in range(600)]


async def test_an_unreadable_listing_record_is_left_out_and_reported(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.owner.project(record("a", "running"))
    await world.owner_broker.append(Append(subject=world.subjects.projection("b"), body=b"\xff"))
    assert [item.workflow_id for item in await listed(world)] == ["a"]
    assert world.subjects.projection("b") in caplog.text


async def test_the_status_names_owners_members_and_what_waits(world: World) -> None:
    lease = LeaseRecord(epoch=3, owner="host-m0")
    member = MemberRecord(name="host-m0", incarnation="i", beat=1)
    await world.owner_broker.append(Append(subject=world.subjects.lease(0), body=msgspec.json.encode(lease)))
    await world.owner_broker.append(Append(subject=world.subjects.member("host-m0"), body=msgspec.json.encode(member)))
    await world.owner_broker.append(Append(subject=world.subjects.dead_letter(0), body=b"?"))
    await world.owner_broker.append(Append(subject=world.subjects.inbox("x", "start"), body=b""))
    status = await world.client.status()
    assert (status.namespace, status.tasks, status.dead_letters) == ("shop", 0, 1)
    assert [(shard.shard, shard.owner, shard.epoch, shard.inbox) for shard in status.shards] == [(0, "host-m0", 3, 1)]
    assert [member.name for member in status.members] == ["host-m0"]
