"""Signals, updates and cancels: what is sent, what the answers mean, what is made of a lost one."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from durablefuture_trio.authoring import activity, workflow
from durablefuture_trio.client import WorkflowHandle
from durablefuture_trio.codec import decode_arguments, encode_arguments, encode_value, failure_of
from durablefuture_trio.engine.requests import Answer, CancelRequest, SignalRequest, StartRequest, UpdateRequest
from durablefuture_trio.errors import (
    ApplicationError,
    PayloadError,
    RequestFailedError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowNotFoundError,
)
from durablefuture_trio.history.events import (
    CancelRequested,
    CarriedUpdate,
    ContinuedAsNew,
    RequestRecord,
    SignalReceived,
    UpdateAccepted,
    UpdateCompleted,
    UpdateRecord,
    WorkflowFailed,
    WorkflowStarted,
    WorkflowTerminated,
)
from durablefuture_trio.memory_broker import AppendFate
from tests._support.scripted_owner import completed, nothing_arrives, started
from tests.client.conftest import World

REQUEST = StartRequest(workflow_id="order-1", workflow="order", arguments=encode_arguments(("Bob",)))
NO_ARGUMENTS = encode_arguments(())


@workflow.signal
def approve(approver: str, level: int = 1) -> None:
    pass


@workflow.update(name="set-quantity")
async def set_quantity(quantity: int) -> float:
    return float(quantity)


@workflow.query
def state() -> str:
    return ""


@workflow
class Basket:
    async def run(self) -> None:
        pass

    @workflow.signal
    def add(self, item: str) -> None:
        pass

    @workflow.update
    def count(self) -> int:
        return 0


@activity
async def charge(amount: float) -> None:
    pass


async def begin_run(world: World, run_id: str = "run-1") -> WorkflowHandle[Any]:
    """An open run, and a handle on it."""
    await world.owner.commit("order-1", run_id, started(REQUEST, run_id, f"request of {run_id}"))
    return world.client.handle("order-1", run_id=run_id)


async def in_background(
    nursery: trio.Nursery, call: Callable[[], Awaitable[Any]], *, within: float = math.inf
) -> list[Any]:
    """What the call came to: a value, or an error."""
    outcomes: list[Any] = []

    async def run() -> None:
        with trio.fail_after(within):
            try:
                outcomes.append(await call())
            except (RequestFailedError, WorkflowNotFoundError, UpdateFailedError, UpdateRejectedError) as error:
                outcomes.append(error)

    nursery.start_soon(run)
    return outcomes


def continued(
    run_id: str, next_run_id: str, event_id: int = 2, **carried: Any
) -> tuple[ContinuedAsNew, WorkflowStarted]:
    """The events of the commit in which `run_id` goes on as `next_run_id`."""
    end = ContinuedAsNew(id=event_id, at=101.0, next_run_id=next_run_id, workflow="order", arguments=REQUEST.arguments)
    begin = WorkflowStarted(
        id=1,
        at=101.0,
        workflow_id="order-1",
        run_id=next_run_id,
        workflow="order",
        arguments=REQUEST.arguments,
        first_run_id="run-1",
        continued_from=run_id,
        **carried,
    )
    return end, begin


# --- signals ----------------------------------------------------------------------------------------------------------


async def test_a_signal_returns_when_it_is_recorded(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.signal(approve, "Ann", request_id="mine"))
        message, request = await world.owner.request_of(SignalRequest)
        assert (request.workflow_id, request.run_id, request.name) == ("order-1", "run-1", "approve")
        assert decode_arguments(request.arguments, (str, int)) == ("Ann", 1)
        assert message.request_id == "mine"
        assert outcomes == []
        world.owner.answer(message, "applied", "run-1")
    assert outcomes == [None]


async def test_a_method_of_a_workflow_class_is_a_reference_without_its_self(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        await in_background(nursery, lambda: handle.signal(Basket.add, "tea"))
        message, request = await world.owner.request_of(SignalRequest)
        assert (request.name, decode_arguments(request.arguments, (str,))) == ("add", ("tea",))
        world.owner.answer(message, "applied")


async def test_a_signal_by_name_takes_any_arguments(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        await in_background(nursery, lambda: handle.signal("anything", 1, "two"))
        message, request = await world.owner.request_of(SignalRequest)
        assert (request.name, decode_arguments(request.arguments, (Any, Any))) == ("anything", (1, "two"))
        world.owner.answer(message, "applied")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda handle: handle.signal(approve), TypeError, "missing argument 'approver'"),
        (lambda handle: handle.signal(approve, "Ann", 1, 2), TypeError, "takes 1 to 2 arguments"),
        (lambda handle: handle.signal(approve, 5), PayloadError, r"do not fit signal approve\(approver, level\)"),
        (lambda handle: handle.signal("approve", object()), PayloadError, "object"),
        (lambda handle: handle.signal(""), TypeError, "must not be empty"),
        (lambda handle: handle.signal(set_quantity, 2), TypeError, r"set-quantity .* send it with update\(\)"),
        (lambda handle: handle.update(approve, "Ann"), TypeError, r"approve .* send it with signal\(\)"),
        (lambda handle: handle.query(approve, "Ann"), TypeError, r"approve .* send it with signal\(\)"),
        (lambda handle: handle.signal(state), TypeError, r"state .* send it with query\(\)"),
        (lambda handle: handle.signal(charge, 1.0), TypeError, r"no signal: give what @workflow\.signal"),
        (lambda handle: handle.signal(Basket), TypeError, "no signal"),
        (lambda handle: handle.update(print), TypeError, "no update"),
        (lambda handle: handle.update(set_quantity, 2, update_id=""), ValueError, "update id"),
        (lambda handle: handle.update(set_quantity, 2, update_id="x" * 600), ValueError, "update id"),
    ],
)
async def test_what_cannot_be_sent_is_refused_before_anything_is(
    world: World, call: Callable[[WorkflowHandle[Any]], Awaitable[Any]], error: type[Exception], words: str
) -> None:
    handle = await begin_run(world)
    with pytest.raises(error, match=words):
        await call(handle)
    assert world.published() == []


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ("closed", RequestFailedError, "signal 'approve' was not delivered to workflow 'order-1': run-1 is closed"),
        ("not_found", WorkflowNotFoundError, "signal 'approve' was not delivered to workflow 'order-1': run-1 is"),
        ("limit", RequestFailedError, "not delivered"),
        ("undecodable", RequestFailedError, "not delivered"),
    ],
)
async def test_a_refused_signal_says_that_it_was_not_delivered(
    world: World, answer: str, error: type[Exception], words: str
) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.signal(approve, "Ann"))
        message, _ = await world.owner.request_of(SignalRequest)
        world.owner.answer(message, answer, "run-1", "run-1 is closed")
    assert type(outcomes[0]) is error
    assert words in str(outcomes[0])


async def test_h10_without_a_run_whichever_is_open_is_meant(world: World) -> None:
    await begin_run(world)
    handle = world.client.handle("order-1")
    for call, kind in (
        (lambda: handle.signal(approve, "Ann"), SignalRequest),
        (lambda: handle.update(set_quantity, 2), UpdateRequest),
        (handle.cancel, CancelRequest),
    ):
        async with trio.open_nursery() as nursery:
            await in_background(nursery, call)
            message, request = await world.owner.request_of(kind)
            assert request.run_id == ""
            world.owner.answer(message, "applied", "run-1", result=encode_value(2.0))


async def test_h10_a_workflow_id_without_any_run_is_sent_nothing(world: World) -> None:
    """No history could remember that it was refused: a copy on its way would reach a run that begins meanwhile."""
    handle = world.client.handle("nobody")
    for call in (lambda: handle.signal(approve, "Ann"), lambda: handle.update(set_quantity, 1), handle.cancel):
        with pytest.raises(WorkflowNotFoundError, match="'nobody' is not known"), trio.fail_after(60):
            await call()
    assert world.published() == []


async def test_a_closed_workflow_without_a_run_named_is_refused_and_not_asked_again(world: World) -> None:
    await begin_run(world)
    handle = world.client.handle("order-1")
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.signal(approve, "Ann"))
        message, _ = await world.owner.request_of(SignalRequest)
        await world.owner.close("order-1", "run-1", completed(1))
        world.owner.answer(message, "closed", "run-1", "run run-1 of workflow id 'order-1' is closed")
    assert isinstance(outcomes[0], RequestFailedError)
    await nothing_arrives(world.owner, 60)


async def test_a_request_to_a_run_that_has_continued_as_new_goes_to_the_run_that_continues_it(world: World) -> None:
    await begin_run(world)
    await world.owner.commit("order-1", "run-2", *continued("run-1", "run-2"))
    handle = world.client.handle("order-1", run_id="run-2")
    await world.owner.commit("order-1", "run-3", *continued("run-2", "run-3"))
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.signal(approve, "Ann", request_id="mine"))
        message, request = await world.owner.request_of(SignalRequest)
        assert (request.run_id, message.request_id) == ("run-2", "mine")
        world.owner.answer(message, "closed", "run-3", "run run-2 is not the latest")
        message, request = await world.owner.request_of(SignalRequest)
        assert (request.run_id, message.request_id) == ("run-3", "mine run-3")
        world.owner.answer(message, "applied", "run-3")
    assert outcomes == [None]


async def test_a_termination_follows_the_run_too(world: World) -> None:
    await begin_run(world)
    handle = world.client.handle("order-1")
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, handle.terminate)
        message, request = await world.owner.terminate_request()
        assert request.run_id == "run-1"
        await world.owner.commit("order-1", "run-2", *continued("run-1", "run-2"))
        world.owner.answer(message, "closed", "run-2", "run run-1 is not the latest")
        message, request = await world.owner.terminate_request()
        assert request.run_id == "run-2"
        world.owner.answer(message, "applied", "run-2")
    assert outcomes == [None]


async def test_a_run_that_another_one_of_its_id_has_followed_by_itself_is_closed(world: World) -> None:
    handle = await begin_run(world)
    await world.owner.close("order-1", "run-1", completed(1))
    await begin_run(world, "run-2")
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.signal(approve, "Ann"))
        message, _ = await world.owner.request_of(SignalRequest)
        world.owner.answer(message, "closed", "run-2", "run run-1 is not the latest")
    assert "run-1 is not the latest" in str(outcomes[0])


async def test_h20_a_lost_answer_to_a_signal_or_a_cancel_is_found_in_the_history(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        signalled = await in_background(nursery, lambda: handle.signal(approve, "Ann"), within=4)
        message, request = await world.owner.request_of(SignalRequest)
        await world.owner.commit(
            "order-1",
            "run-1",
            SignalReceived(id=2, at=100.5, name="approve", arguments=request.arguments, request_id=message.request_id),
        )
        cancelled = await in_background(nursery, handle.cancel, within=4)
        message, _ = await world.owner.request_of(CancelRequest)
        await world.owner.commit("order-1", "run-1", CancelRequested(id=3, at=100.5, request_id=message.request_id))
    assert (signalled, cancelled) == ([None], [None])


async def test_h20_a_lost_answer_to_a_signal_is_found_in_what_a_later_run_carries(world: World) -> None:
    await begin_run(world)
    handle = world.client.handle("order-1")
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.signal(approve, "Ann", request_id="mine"), within=4)
        await world.owner.request_of(SignalRequest)
        carried = (RequestRecord("mine", "applied", "run-1"),)
        await world.owner.commit("order-1", "run-2", *continued("run-1", "run-2", carried=carried))
    assert outcomes == [None]


async def test_h20_a_signal_of_unknown_fate_is_sent_again_under_its_request_id(world: World) -> None:
    handle = await begin_run(world)
    world.faults.next_append(AppendFate(lands_after=None, answered=False))
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.signal(approve, "Ann", request_id="mine"))
        message, _ = await world.owner.request_of(SignalRequest)
        assert message.request_id == "mine"
        world.owner.answer(message, "applied", "run-1")
    assert outcomes == [None]


async def test_cancel_sends_its_reason(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.cancel("changed my mind"))
        message, request = await world.owner.request_of(CancelRequest)
        assert (request.run_id, request.reason) == ("run-1", "changed my mind")
        world.owner.answer(message, "applied", "run-1")
    assert outcomes == [None]


async def test_a_cancel_of_a_closed_workflow_says_so(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, handle.cancel)
        message, _ = await world.owner.request_of(CancelRequest)
        await world.owner.close("order-1", "run-1", completed(1))
        world.owner.answer(message, "closed", "run-1", "run run-1 is closed")
    assert "the cancel was not delivered to workflow 'order-1': run run-1 is closed" in str(outcomes[0])


# --- updates ----------------------------------------------------------------------------------------------------------


def accepted(update_id: str, request_id: str = "", event_id: int = 2) -> UpdateAccepted:
    return UpdateAccepted(
        id=event_id,
        at=100.5,
        update_id=update_id,
        name="set-quantity",
        arguments=encode_arguments((2,)),
        request_id=request_id,
    )


async def test_an_update_returns_what_its_handler_returned(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2, update_id="u"))
        message, request = await world.owner.request_of(UpdateRequest)
        assert (request.name, request.update_id, request.run_id) == ("set-quantity", "u", "run-1")
        assert decode_arguments(request.arguments, (int,)) == (2,)
        world.owner.answer(message, "applied", "run-1", result=encode_value(2))
    assert outcomes == [2.0]
    assert isinstance(outcomes[0], float)


async def test_an_update_that_returns_nothing_has_a_result_all_the_same(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update("touch"), within=1)
        message, _ = await world.owner.request_of(UpdateRequest)
        world.owner.answer(message, "applied", "run-1", result=encode_value(None))
    assert outcomes == [None]


async def test_each_update_without_an_id_gets_a_fresh_one(world: World) -> None:
    handle = await begin_run(world)
    seen = set()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            await in_background(nursery, lambda: handle.update(set_quantity, 2))
            message, request = await world.owner.request_of(UpdateRequest)
            seen.add(request.update_id)
            world.owner.answer(message, "applied", "run-1", result=encode_value(2))
    assert len(seen) == 2


async def test_what_the_validator_raised_is_the_cause_of_the_rejection(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, -1))
        message, _ = await world.owner.request_of(UpdateRequest)
        world.owner.answer(message, "rejected", "run-1", failure=failure_of(ValueError("must be positive")))
    (error,) = outcomes
    assert isinstance(error, UpdateRejectedError)
    assert str(error) == "update 'set-quantity' of workflow 'order-1' was rejected: ValueError: must be positive"
    assert isinstance(error.cause, ApplicationError)
    assert error.cause.type == "ValueError"
    assert error.__cause__ is error.cause


async def test_an_update_refused_when_its_handler_came_is_a_rejection_too(world: World) -> None:
    handle = await begin_run(world)
    rejected = UpdateRejectedError("refused", cause=ValueError("must be positive"))
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, -1))
        message, _ = await world.owner.request_of(UpdateRequest)
        world.owner.answer(message, "failed", "run-1", failure=failure_of(rejected))
    (error,) = outcomes
    assert isinstance(error, UpdateRejectedError)
    assert "rejected: ValueError: must be positive" in str(error)
    assert isinstance(error.cause, ApplicationError)


async def test_what_the_handler_raised_is_the_cause_of_the_failure(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2, update_id="u"))
        message, _ = await world.owner.request_of(UpdateRequest)
        failure = failure_of(ApplicationError("none left", type="SoldOut"))
        world.owner.answer(message, "failed", "run-1", failure=failure)
    (error,) = outcomes
    assert isinstance(error, UpdateFailedError)
    assert str(error) == "update 'set-quantity' of workflow 'order-1' failed: SoldOut: none left"
    assert (error.update_id, error.run_id, error.workflow_id) == ("u", "run-1", "order-1")
    assert isinstance(error.cause, ApplicationError)


async def test_a_result_of_another_type_is_an_error_that_says_where(world: World) -> None:
    handle = await begin_run(world)

    async def update() -> None:
        with pytest.raises(PayloadError):
            await handle.update(set_quantity, 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(update)
        message, _ = await world.owner.request_of(UpdateRequest)
        world.owner.answer(message, "applied", "run-1", result=encode_value("two"))


async def test_a_closed_workflow_was_not_updated(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2))
        message, _ = await world.owner.request_of(UpdateRequest)
        await world.owner.close("order-1", "run-1", completed(1))
        world.owner.answer(message, "closed", "run-1", "run run-1 is closed")
    assert type(outcomes[0]) is RequestFailedError
    assert "update 'set-quantity' was not delivered" in str(outcomes[0])


async def test_everybody_who_asks_for_one_update_gets_the_same_answer(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = [
            await in_background(nursery, lambda: handle.update(set_quantity, 2, update_id="u"), within=20)
            for _ in range(3)
        ]
        requests = [await world.owner.request_of(UpdateRequest) for _ in range(3)]
        # Calls of their own, which may meet different runs, about one update.
        assert len({message.request_id for message, _ in requests}) == 3
        await world.owner.commit("order-1", "run-1", accepted("u", requests[0][0].request_id))
        await trio.sleep(1)
        done = UpdateCompleted(id=3, at=101.0, update_id="u", result=encode_value(2.5))
        await world.owner.commit("order-1", "run-1", done)
        world.owner.answer(requests[0][0], "applied", "run-1", result=done.result)
    assert outcomes == [[2.5], [2.5], [2.5]]


async def test_an_accepted_update_is_waited_for_however_long_its_handler_takes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    handle = await begin_run(world)
    with caplog.at_level(logging.INFO, "durablefuture_trio.client"):
        async with trio.open_nursery() as nursery:
            outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2, update_id="u"))
            message, _ = await world.owner.request_of(UpdateRequest)
            await world.owner.commit("order-1", "run-1", accepted("u", message.request_id))
            await trio.sleep(3600)
            assert outcomes == []
            done = UpdateCompleted(id=3, at=101.0, update_id="u", result=encode_value(2.5))
            await world.owner.commit("order-1", "run-1", done)
            nursery.cancel_scope.deadline = trio.current_time() + 20
    assert outcomes == [2.5]
    assert "is accepted; waiting for its handler to return" in caplog.text
    assert "waiting for a supervisor" not in caplog.text
    assert len(world.published()) < 20


async def test_that_an_update_was_applied_is_not_its_outcome(world: World) -> None:
    """An owner that knows the request from before, but not its outcome, may say that and no more."""
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2, update_id="u"), within=20)
        message, _ = await world.owner.request_of(UpdateRequest)
        await world.owner.commit("order-1", "run-1", accepted("u", message.request_id))
        world.owner.answer(message, "applied", "run-1")
        await trio.sleep(1)
        assert outcomes == []
        world.owner.answer(message, "applied", "run-1", result=encode_value(2.5))
    assert outcomes == [2.5]


@pytest.mark.parametrize("in_terms", ["completed", "carried outcome", "carried and completed"])
async def test_h20_a_lost_outcome_is_found_in_the_run_or_in_those_that_continue_it(world: World, in_terms: str) -> None:
    handle = await begin_run(world)
    done = UpdateCompleted(id=3, at=101.0, update_id="u", result=encode_value(2.5))
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2, update_id="u"), within=30)
        message, request = await world.owner.request_of(UpdateRequest)
        await world.owner.commit("order-1", "run-1", accepted("u", message.request_id))
        await trio.sleep(5)
        match in_terms:
            case "completed":
                await world.owner.commit("order-1", "run-1", done)
            case "carried outcome":
                outcome = UpdateRecord("u", encode_value(2.5))
                next_run = continued("run-1", "run-2", event_id=4, update_outcomes=(outcome,))
                await world.owner.commit("order-1", "run-2", done, *next_run)
            case _:
                carried = CarriedUpdate("u", request.name, request.arguments)
                await world.owner.commit(
                    "order-1", "run-2", *continued("run-1", "run-2", event_id=3, updates=(carried,))
                )
                await trio.sleep(10)
                await world.owner.commit("order-1", "run-2", done)
    assert outcomes == [2.5]


async def test_h20_a_lost_rejection_is_found_in_the_history(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, -1), within=4)
        message, _ = await world.owner.request_of(UpdateRequest)
        refused = (RequestRecord(message.request_id, "rejected", "run-1", "must be positive"),)
        await world.owner.commit("order-1", "run-1", refused=refused)
    assert isinstance(outcomes[0], UpdateRejectedError)
    assert "must be positive" in str(outcomes[0])
    assert outcomes[0].cause is None


def failed_for_now(next_run_id: str) -> WorkflowFailed:
    return WorkflowFailed(id=3, at=101.0, failure=failure_of(ValueError("no")), next_run_id=next_run_id)


@pytest.mark.parametrize("ends", ["terminated", "tried again", "replaced", "terminated and followed"])
async def test_m4_an_accepted_update_fails_when_its_run_ends_without_having_completed_it(
    world: World, ends: str
) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2, update_id="u"), within=30)
        message, _ = await world.owner.request_of(UpdateRequest)
        await world.owner.commit("order-1", "run-1", accepted("u", message.request_id))
        await trio.sleep(5)
        end = WorkflowTerminated(id=3, at=101.0)
        match ends:
            case "terminated":
                await world.owner.close("order-1", "run-1", end)
            case "tried again":
                _, begin = continued("run-1", "run-2")
                await world.owner.commit("order-1", "run-2", failed_for_now("run-2"), begin)
            case "replaced":
                await world.owner.commit("order-1", "run-2", end, started(REQUEST, "run-2", "another"))
            case _:
                await world.owner.close("order-1", "run-1", end)
                await world.owner.commit("order-1", "run-2", started(REQUEST, "run-2", "another"))
    (error,) = outcomes
    assert isinstance(error, UpdateFailedError)
    assert "was accepted, but the run ended before its handler had returned" in str(error)
    assert error.cause is None


async def test_m4_an_update_is_followed_into_the_run_that_accepted_it_although_others_have_begun_since(
    world: World,
) -> None:
    """The client was away: all it hears is that its update was accepted, in a run before the latest one."""
    await begin_run(world)
    handle = world.client.handle("order-1")
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2, update_id="u"), within=10)
        message, _ = await world.owner.request_of(UpdateRequest)
        await world.owner.commit("order-1", "run-1", accepted("u", message.request_id))
        await world.owner.close("order-1", "run-1", WorkflowTerminated(id=3, at=101.0))
        record = RequestRecord(message.request_id, "applied", "run-1")
        await world.owner.commit("order-1", "run-2", started(REQUEST, "run-2", "another", (record,)))
        await trio.sleep(4)
        assert outcomes == []
        world.owner.answer(message, "applied", "run-1")
    (error,) = outcomes
    assert isinstance(error, UpdateFailedError)
    assert error.run_id == "run-1"


async def test_m4_the_owners_word_that_a_run_ended_is_a_failure_in_its_words(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2))
        message, _ = await world.owner.request_of(UpdateRequest)
        world.owner.answer(message, "failed", "run-1", "run run-1 ended before it completed the update")
    assert isinstance(outcomes[0], UpdateFailedError)
    assert "failed: run run-1 ended before it completed the update" in str(outcomes[0])


async def test_an_outcome_of_another_update_decides_nothing(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: handle.update(set_quantity, 2, update_id="u"))
        message, _ = await world.owner.request_of(UpdateRequest)
        other = UpdateCompleted(id=3, at=101.0, update_id="other", result=encode_value(1.0))
        await world.owner.commit("order-1", "run-1", accepted("other"), other)
        await trio.sleep(60)
        assert outcomes == []
        world.owner.answer(message, "applied", "run-1", result=encode_value(2.5))
    assert outcomes == [2.5]


def test_an_answer_without_words_still_says_something() -> None:
    from durablefuture_trio.client._answers import refusal

    assert "it has closed already" in str(refusal(Answer(request_id="", answer="closed"), "signal 'x'", "w"))
