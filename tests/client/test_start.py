"""Starting workflows: what is sent, what is answered, what is made of a lost answer."""

from __future__ import annotations

import logging
import math
import time
from datetime import timedelta
from typing import Unpack

import pytest
import trio

from durablefuture_trio.authoring import activity, workflow
from durablefuture_trio.client import StartOptions, WorkflowHandle
from durablefuture_trio.codec import decode_arguments, decode_value
from durablefuture_trio.engine.requests import StartRequest
from durablefuture_trio.errors import (
    PayloadError,
    RequestFailedError,
    WorkflowAlreadyStartedError,
)
from durablefuture_trio.history.events import RequestRecord, SignalReceived, WorkflowTerminated
from durablefuture_trio.history.options import RetryPolicy
from durablefuture_trio.memory_broker import AppendFate
from tests._support.scripted_owner import completed, nothing_arrives, started
from tests.client.conftest import World


@workflow
async def order(customer: str, quantity: int = 1) -> str:
    return f"{customer} {quantity}"


@workflow.signal
def approve(approver: str, level: int = 1) -> None:
    pass


@workflow(name="billing")
class Billing:
    async def run(self, amount: float) -> bytes:
        return str(amount).encode()


@activity
async def charge(amount: float) -> None:
    pass


async def start_in_background(
    world: World, nursery: trio.Nursery, *, within: float = math.inf, **options: Unpack[StartOptions]
) -> list[WorkflowHandle[str]]:
    handles: list[WorkflowHandle[str]] = []

    async def start() -> None:
        with trio.fail_after(within):
            handles.append(await world.client.start(order, "Bob", **options))

    nursery.start_soon(start)
    return handles


async def test_a_start_returns_the_run_that_the_owner_recorded(world: World) -> None:
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, id="order-1")
        message, request = await world.owner.start_request()
        assert (request.workflow_id, request.workflow) == ("order-1", "order")
        assert (request.conflict, request.reuse) == ("fail", "allow")
        await world.owner.begin(message, "run-1")
    assert (handles[0].id, handles[0].run_id) == ("order-1", "run-1")


async def test_arguments_are_sent_by_position_with_defaults_filled_in(world: World) -> None:
    async with trio.open_nursery() as nursery:
        await start_in_background(world, nursery)
        message, request = await world.owner.start_request()
        assert decode_arguments(request.arguments, (str, int)) == ("Bob", 1)
        await world.owner.begin(message, "run-1")


async def test_a_start_without_an_id_gets_a_fresh_one(world: World) -> None:
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery)
        handles_2 = await start_in_background(world, nursery)
        for run_id in ("run-1", "run-2"):
            message, _ = await world.owner.start_request()
            await world.owner.begin(message, run_id)
    assert handles[0].id != handles_2[0].id


async def test_the_options_travel_with_the_request(world: World) -> None:
    async with trio.open_nursery() as nursery:
        await start_in_background(
            world,
            nursery,
            id="order-1",
            id_conflict_policy="terminate_existing",
            id_reuse_policy="failed_only",
            execution_timeout=timedelta(hours=1),
            memo={"vip": True},
            request_id="mine",
        )
        message, request = await world.owner.start_request()
        assert (request.conflict, request.reuse) == ("terminate_existing", "failed_only")
        assert request.memo is not None
        assert decode_value(request.memo, dict[str, bool]) == {"vip": True}
        assert request.execution_deadline is not None
        assert message.request_id == "mine"
        await world.owner.begin(message, "run-1")


async def test_a_delayed_start_says_when_its_code_may_begin_and_the_timeout_counts_from_then(world: World) -> None:
    before = time.time()
    async with trio.open_nursery() as nursery:
        await start_in_background(
            world, nursery, id="order-1", start_delay=timedelta(hours=1), execution_timeout=60, request_id="mine"
        )
        message, request = await world.owner.start_request()
        assert request.not_before is not None
        assert request.execution_deadline is not None
        assert 3600 <= request.not_before - before <= 3660
        assert request.execution_deadline == pytest.approx(request.not_before + 60)
        await world.owner.begin(message, "run-1")


async def test_a_start_carries_its_first_signal_and_its_retry_policy(world: World) -> None:
    policy = RetryPolicy(maximum_attempts=3)
    async with trio.open_nursery() as nursery:
        await start_in_background(
            world,
            nursery,
            id="order-1",
            id_conflict_policy="use_existing",
            start_signal=(approve, ("Ann",)),
            retry_policy=policy,
        )
        message, request = await world.owner.start_request()
        assert request.signal is not None
        assert request.signal.name == "approve"
        assert decode_arguments(request.signal.arguments, (str, int)) == ("Ann", 1)
        assert (request.retry_policy, request.not_before, request.conflict) == (policy, None, "use_existing")
        await world.owner.begin(message, "run-1")


async def test_h20_a_lost_answer_to_a_start_that_signalled_the_open_run_is_found_in_its_history(world: World) -> None:
    request = StartRequest(workflow_id="order-1", workflow="order", arguments=completed([]).result)
    await world.owner.commit("order-1", "run-0", started(request, "run-0", "first"))
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(
            world,
            nursery,
            within=4.0,
            id="order-1",
            id_conflict_policy="use_existing",
            start_signal=("approve", ()),
            request_id="mine",
        )
        _, request = await world.owner.start_request()
        assert request.signal is not None
        signal = SignalReceived(id=2, at=100.5, name="approve", arguments=request.signal.arguments, request_id="mine")
        await world.owner.commit("order-1", "run-0", signal)
    assert handles[0].run_id == "run-0"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start_signal": "approve"}, "a signal and a tuple of its arguments"),
        ({"start_signal": (approve, "Ann")}, "a signal and a tuple of its arguments"),
        ({"start_signal": (order, ("Ann",))}, "is no signal"),
        ({"start_signal": (approve, ())}, "missing argument 'approver'"),
        ({"retry_policy": 3}, "must be a RetryPolicy"),
    ],
)
async def test_an_option_of_another_type_is_refused_before_anything_is_sent(
    world: World, options: dict[str, object], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        await world.client.start(order, "Bob", **options)  # type: ignore[call-overload]
    assert world.published() == []


async def test_a_decorated_class_is_started_by_its_name(world: World) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: world.client.start(Billing, 2.5, id="bill"))
        message, request = await world.owner.start_request()
        assert request.workflow == "billing"
        assert decode_arguments(request.arguments, (float,)) == (2.5,)
        await world.owner.begin(message, "run-1")


async def test_a_workflow_can_be_started_by_name_alone(world: World) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: world.client.start("anything", 1, "two", id="x"))
        message, request = await world.owner.start_request()
        assert request.workflow == "anything"
        await world.owner.begin(message, "run-1")


@pytest.mark.parametrize("args", [(), ("Bob", 2, 3)])
async def test_wrong_arity_is_refused_before_anything_is_sent(world: World, args: tuple[object, ...]) -> None:
    with pytest.raises(TypeError):
        await world.client.start(order, *args, id="order-1")  # type: ignore[arg-type]
    assert world.published() == []


@pytest.mark.parametrize("wf", [charge, len, object(), ""])
async def test_what_is_no_workflow_is_refused_before_anything_is_sent(world: World, wf: object) -> None:
    with pytest.raises(TypeError):
        await world.client.start(wf, 1.0)  # type: ignore[call-overload]
    assert world.published() == []


async def test_an_unknown_option_is_refused_and_the_known_ones_are_named(world: World) -> None:
    with pytest.raises(TypeError, match=r"unknown option quantity .*id_conflict_policy"):
        await world.client.start(order, "Bob", quantity=3)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "options",
    [
        {"id_conflict_policy": "maybe"},
        {"id_reuse_policy": "maybe"},
        {"execution_timeout": 0},
        {"start_delay": -1},
        {"start_delay": math.inf},
        {"start_delay": math.nan},
        {"id": "a\nb"},
        {"id": ""},
    ],
)
async def test_an_option_that_cannot_be_used_is_refused_before_anything_is_sent(
    world: World, options: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[0]):
        await world.client.start(order, "Bob", **options)  # type: ignore[call-overload]
    assert world.published() == []


async def test_an_argument_that_cannot_be_encoded_is_refused_before_anything_is_sent(world: World) -> None:
    with pytest.raises(PayloadError):
        await world.client.start("order", object())
    assert world.published() == []


async def test_arguments_over_the_limit_are_refused_with_size_and_limit(world: World) -> None:
    with pytest.raises(PayloadError, match=r"limit of a payload is 2097152 bytes"):
        await world.client.start("order", "x" * (2 * 1024 * 1024))
    assert world.published() == []


async def test_a_message_larger_than_the_server_takes_is_refused(world: World) -> None:
    world.server.limits = type(world.server.limits)(max_payload_bytes=4096, server_version="2.15.1")
    with pytest.raises(PayloadError, match=r"start of workflow 'big' is too large: .* 4096 bytes"):
        await world.client.start("order", "x" * 5000, id="big")


async def test_a_full_store_is_said_and_nothing_is_stored(world: World) -> None:
    world.server.full = True
    with pytest.raises(RequestFailedError, match=r"no room left .* Nothing was stored"):
        await world.client.start(order, "Bob", id="order-1")
    world.server.full = False
    await nothing_arrives(world.owner, 60)


async def test_an_id_in_use_is_refused_in_the_owners_words(world: World) -> None:
    async def start() -> None:
        with pytest.raises(WorkflowAlreadyStartedError, match=r"has an open run run-0\. Use another id") as caught:
            await world.client.start(order, "Bob", id="order-1")
        assert (caught.value.workflow_id, caught.value.run_id) == ("order-1", "run-0")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        message, _ = await world.owner.start_request()
        world.owner.answer(message, "already_started", "run-0", "workflow id 'order-1' has an open run run-0")


async def test_use_existing_gives_a_handle_on_the_open_run(world: World) -> None:
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, id="order-1", id_conflict_policy="use_existing")
        message, _ = await world.owner.start_request()
        world.owner.answer(message, "existing", "run-0")
    assert handles[0].run_id == "run-0"


async def test_any_other_answer_is_an_error_with_its_words(world: World) -> None:
    async def start() -> None:
        with pytest.raises(RequestFailedError, match="cannot read this"):
            await world.client.start(order, "Bob", id="order-1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        message, _ = await world.owner.start_request()
        world.owner.answer(message, "undecodable", words="cannot read this")


async def test_h10_two_starts_of_one_id_are_two_messages_however_close(world: World) -> None:
    async with trio.open_nursery() as nursery:
        await start_in_background(world, nursery, id="order-1")
        first, _ = await world.owner.start_request()
        await world.owner.begin(first, "run-1")
        await world.owner.close("order-1", "run-1", completed("done"))
        await start_in_background(world, nursery, id="order-1")
        with trio.fail_after(1):
            second, _ = await world.owner.start_request()
        assert first.request_id != second.request_id
        await world.owner.begin(second, "run-2")


async def test_h10_a_publish_of_unknown_outcome_is_repeated_under_the_same_request_id(world: World) -> None:
    world.faults.next_append(AppendFate(lands_after=None, answered=False))
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, id="order-1", request_id="mine")
        message, _ = await world.owner.start_request()
        assert message.request_id == "mine"
        await world.owner.begin(message, "run-1")
    assert handles[0].run_id == "run-1"


async def test_h20_a_repetition_reaches_the_owner_although_the_first_was_stored(world: World) -> None:
    world.faults.next_append(AppendFate(answered=False))
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, id="order-1", request_id="mine")
        await world.owner.start_request()
        message, _ = await world.owner.start_request()
        assert message.request_id == "mine"
        world.owner.answer(message, "applied", "run-1")
    assert handles[0].run_id == "run-1"


async def test_h20_a_lost_answer_to_a_start_is_found_in_the_history(world: World) -> None:
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, within=4.0, id="order-1")
        message, _ = await world.owner.start_request()
        await world.owner.begin(message, "run-1", answer=False)
    assert handles[0].run_id == "run-1"


async def test_h20_a_lost_answer_is_found_in_what_a_later_run_carries(world: World) -> None:
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, within=4.0, id="order-1", request_id="mine")
        _, request = await world.owner.start_request()
        carried = (RequestRecord("mine", "applied", "run-1"),)
        await world.owner.commit("order-1", "run-9", started(request, "run-9", "other", carried))
    assert handles[0].run_id == "run-1"


async def test_h20_a_lost_refusal_is_found_in_the_history(world: World) -> None:
    async def start() -> None:
        with pytest.raises(WorkflowAlreadyStartedError, match="taken"), trio.fail_after(5):
            await world.client.start(order, "Bob", id="order-1", request_id="mine")

    request = StartRequest(workflow_id="order-1", workflow="order", arguments=completed([]).result)
    await world.owner.commit("order-1", "run-0", started(request, "run-0", "first"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await world.owner.start_request()
        refused = (RequestRecord("mine", "already_started", "run-0", "taken"),)
        await world.owner.commit("order-1", "run-0", refused=refused)


async def test_h20_a_lost_refusal_that_is_in_no_history_is_asked_for_again(world: World) -> None:
    async def start() -> None:
        with pytest.raises(WorkflowAlreadyStartedError):
            await world.client.start(order, "Bob", id="order-1", id_reuse_policy="reject", request_id="mine")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await world.owner.start_request()
        with trio.fail_after(15):
            message, _ = await world.owner.start_request()
        assert message.request_id == "mine"
        world.owner.answer(message, "already_started", "run-0", "used before")


async def test_an_undecided_request_is_repeated_ever_more_slowly(world: World) -> None:
    async with trio.open_nursery() as nursery:
        await start_in_background(world, nursery, id="order-1")
        await trio.sleep(3600)
        nursery.cancel_scope.cancel()
    assert len(world.published()) < 20


async def test_terminate_existing_counts_as_the_new_run_not_as_the_terminated_one(world: World) -> None:
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, within=4.0, id="order-1", request_id="mine")
        _, request = await world.owner.start_request()
        await world.owner.commit("order-1", "run-0", started(request, "run-0", "first"))
        terminated = WorkflowTerminated(id=2, at=100.5, reason="replaced", request_id="mine")
        await world.owner.commit("order-1", "run-1", terminated, started(request, "run-1", "mine"))
    assert handles[0].run_id == "run-1"


async def test_without_a_supervisor_the_start_is_stored_and_the_wait_is_explained(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "durablefuture_trio.client"):
        async with trio.open_nursery() as nursery:
            handles = await start_in_background(world, nursery, id="order-1")
            await trio.sleep(6)
            assert world.published() == [world.subjects.inbox("order-1", "start")]
            (record,) = caplog.records
            assert "start of workflow 'order-1' is stored" in record.message
            assert "waiting for a supervisor of namespace 'shop'" in record.message
            message, _ = await world.owner.start_request()
            await world.owner.begin(message, "run-1")
    assert handles[0].run_id == "run-1"


async def test_with_the_link_down_the_start_waits_and_goes_out_when_it_is_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.broker.link.drop()
    with caplog.at_level(logging.WARNING, "durablefuture_trio.client"):
        async with trio.open_nursery() as nursery:
            handles = await start_in_background(world, nursery, id="order-1")
            await trio.sleep(30)
            assert "not known to be stored yet" in caplog.text
            world.broker.link.restore()
            with trio.fail_after(5):
                message, _ = await world.owner.start_request()
            await world.owner.begin(message, "run-1")
    assert handles[0].run_id == "run-1"


async def test_cancelling_a_start_leaves_nothing_behind_in_the_client(world: World) -> None:
    with trio.move_on_after(1):
        await world.client.start(order, "Bob", id="order-1", request_id="mine")
    message, _ = await world.owner.start_request()
    await world.owner.begin(message, "run-1")
    # The same request again, as a program would that was interrupted: answered from what was recorded.
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, id="order-1", request_id="mine")
        again, _ = await world.owner.start_request()
        world.owner.answer(again, "applied", "run-1")
    assert handles[0].run_id == "run-1"


async def test_a_request_id_may_be_any_text(world: World) -> None:
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, id="order-1", request_id="a b.c*>é")
        message, _ = await world.owner.start_request()
        await world.owner.begin(message, "run-1")
    assert handles[0].run_id == "run-1"


async def test_an_unreadable_answer_is_reported_and_harmless(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        handles = await start_in_background(world, nursery, id="order-1")
        message, _ = await world.owner.start_request()
        world.owner_broker.tell(message.reply, b"\xff")
        await trio.sleep(0.1)
        await world.owner.begin(message, "run-1")
    assert handles[0].run_id == "run-1"
    assert "cannot be read" in caplog.text
