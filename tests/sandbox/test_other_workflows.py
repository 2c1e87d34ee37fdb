"""Signals and cancels that workflow code sends to other workflows, the wait for their end, and runs that continue as
new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import trio

from durablefuture_trio import (
    ApplicationError,
    PayloadError,
    RequestFailedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
    activity,
    codec,
    workflow,
)
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.commands import (
    Command,
    ContinueAsNew,
    RequestExternal,
    StartChild,
)
from durablefuture_trio.history.events import ExternalResolved
from durablefuture_trio.ports.frames import Blocked
from tests._support.sandbox import one
from tests._support.stories import failure_of, names_of, replays, result_of, run_of


@activity
async def work(word: str) -> str:
    return word


@workflow
async def ship(parcel: str, weight: float = 1.0) -> tuple[str, float]:
    return parcel, weight


@workflow(name="packing")
class Packing:
    async def run(self, box: int) -> int:
        return box


@workflow.signal
def hurry(why: str) -> None: ...


def child_in(commands: list[Command]) -> StartChild:
    (start,) = [command for command in commands if isinstance(command, StartChild)]
    return start


# --- other workflows --------------------------------------------------------------------------------------------------


def test_a_child_is_signalled_once_it_has_started() -> None:
    @workflow
    async def main() -> str:
        child = ship.submit("p")
        await child.signal(hurry, "late already")
        await child.signal("by-name", 1, 2)
        return "signalled"

    story = run_of(main)
    assert names_of(story.start()) == ["StartChild 1"]
    (request,) = story.child_started(1)
    assert isinstance(request, RequestExternal)
    assert (request.call, request.kind, request.workflow_id, request.name) == (2, "signal", "wf-1/run-1-1", "hurry")
    assert request.arguments is not None
    assert request.arguments.data == b'["late already"]'
    replays(story)
    (second,) = story.external_resolved(2)
    assert isinstance(second, RequestExternal)
    assert (second.call, second.name) == (3, "by-name")
    story.external_resolved(3)
    assert result_of(story) == "signalled"


def test_a_handle_signals_and_cancels_another_workflow() -> None:
    @workflow
    async def main() -> str:
        other = workflow.handle("order-7", run_id="r7")
        await other.signal(hurry, "please")
        await workflow.handle("order-8").cancel("sold out")
        return other.id

    story = run_of(main)
    (signal,) = story.start()
    assert isinstance(signal, RequestExternal)
    assert (signal.workflow_id, signal.run_id, signal.source.startswith(__file__)) == ("order-7", "r7", True)
    (cancel,) = story.external_resolved(1)
    assert isinstance(cancel, RequestExternal)
    assert (cancel.kind, cancel.workflow_id, cancel.run_id, cancel.reason) == ("cancel", "order-8", "", "sold out")
    replays(story)
    story.external_resolved(2)
    assert result_of(story) == "order-7"


def test_a_workflow_that_is_not_there_is_an_error_that_names_it() -> None:
    @workflow
    async def main() -> list[str]:
        try:
            await workflow.handle("order-7").cancel()
        except WorkflowNotFoundError as error:
            return [str(error), error.workflow_id]
        return []

    story = run_of(main)
    story.start()
    story.external_resolved(1, Failure(type="WorkflowNotFoundError", message="no run of order-7 is open"))
    assert result_of(story) == ["no run of order-7 is open", "order-7"]


def test_a_caller_that_is_cancelled_leaves_a_recorded_signal_to_itself() -> None:
    @workflow
    async def main() -> bool:
        with trio.move_on_after(5) as scope:
            await workflow.handle("order-7").signal("x")
        with trio.CancelScope() as at_once:
            at_once.cancel()
            await workflow.handle("order-7").signal("never sent")
        await work("next")
        return scope.cancelled_caught

    story = run_of(main)
    story.start()
    assert names_of(story.fire()) == ["Schedule 3"]
    assert story.external_resolved(1) == []
    story.complete(3, "")
    assert result_of(story) is True


def test_wrong_signals_are_refused_before_anything_is_asked() -> None:
    @workflow
    async def main() -> list[str]:
        problems = []
        other = workflow.handle("order-7")
        for signal, arguments in ((hurry, ()), (work, ("x",)), ("", ()), ("name", (object(),))):
            try:
                await other.signal(signal, *arguments)
            except (TypeError, PayloadError) as error:
                problems.append(str(error))
        try:
            workflow.handle("")
        except ValueError as error:
            problems.append(str(error))
        return problems

    story = run_of(main)
    assert names_of(story.start()) == ["Complete "]
    expected = ("missing argument 'why'", "is no signal", "name of a signal", "object", "non-empty")
    for problem, words in zip(result_of(story), expected, strict=True):
        assert words in problem


# --- the end of another workflow --------------------------------------------------------------------------------------


@dataclass
class Receipt:
    number: int


def test_a_workflow_waits_for_the_result_of_another_and_gets_it_as_the_type_it_names() -> None:
    @workflow
    async def main() -> list[object]:
        typed = await workflow.handle("order-7", run_id="r7").result(Receipt)
        plain = await workflow.handle("order-8").result()
        awaited = await workflow.handle("order-9")
        return [type(typed).__name__, typed.number, plain, awaited]

    story = run_of(main)
    (asks,) = story.start()
    assert isinstance(asks, RequestExternal)
    assert (asks.call, asks.kind, asks.workflow_id, asks.run_id) == (1, "result", "order-7", "r7")
    assert asks.source.startswith(__file__)
    story.external_resolved(1, result=codec.encode_value(Receipt(12)))
    replays(story)
    (asks,) = story.external_resolved(2, result=codec.encode_value(Receipt(13)))
    assert isinstance(asks, RequestExternal)
    assert (asks.workflow_id, asks.run_id, asks.source.startswith(__file__)) == ("order-9", "", True)
    story.external_resolved(3, result=codec.encode_value(None))
    assert result_of(story) == ["Receipt", 12, {"number": 13}, None]


ENDS: list[tuple[Failure, type[Exception], dict[str, object]]] = [
    (
        Failure(type="WorkflowFailedError", message="it failed", cause=Failure(type="Boom", message="no")),
        WorkflowFailedError,
        {},
    ),
    (
        Failure(type="WorkflowCancelledError", message="it was", info={"reason": "enough"}),
        WorkflowCancelledError,
        {"reason": "enough"},
    ),
    (
        Failure(type="WorkflowTerminatedError", message="it was", info={"reason": ""}),
        WorkflowTerminatedError,
        {"reason": ""},
    ),
    (Failure(type="WorkflowTimedOutError", message="too late"), WorkflowTimedOutError, {}),
    (Failure(type="WorkflowNotFoundError", message="nobody"), WorkflowNotFoundError, {}),
]


@pytest.mark.parametrize(("failure", "error", "attributes"), ENDS)
def test_an_end_without_a_result_is_an_error_of_its_type_with_the_ids(
    failure: Failure, error: type[Exception], attributes: dict[str, object]
) -> None:
    seen: list[Any] = []

    @workflow
    async def main() -> None:
        try:
            await workflow.handle("order-7", run_id="r7").result(int)
        except Exception as caught:
            seen.append(caught)

    story = run_of(main)
    story.start()
    story.external_resolved(1, failure)
    (caught,) = seen
    assert type(caught) is error
    assert (str(caught), caught.workflow_id, caught.run_id) == (failure.message, "order-7", "r7")
    for name, value in attributes.items():
        assert getattr(caught, name) == value
    if error is WorkflowFailedError:
        assert isinstance(caught.cause, ApplicationError)
        assert (caught.cause.type, str(caught.cause)) == ("Boom", "no")
        assert caught.__cause__ is caught.cause


def test_an_error_of_another_workflow_that_nobody_handles_keeps_its_cause() -> None:
    @workflow
    async def main() -> None:
        await workflow.handle("order-7").result()

    story = run_of(main)
    story.start()
    story.external_resolved(1, ENDS[0][0])
    failure = failure_of(story)
    assert failure.type == "WorkflowFailedError"
    assert failure.info["workflow_id"] == "order-7"
    assert failure.cause is not None
    assert failure.cause.type == "Boom"


def test_an_end_that_the_owner_refuses_to_tell_is_a_failed_request() -> None:
    @workflow
    async def main() -> str:
        try:
            await workflow.handle("order-7")
        except RequestFailedError as error:
            return str(error)
        return ""

    story = run_of(main)
    story.start()
    story.external_resolved(1, Failure(type="RequestFailedError", message="too many wait"))
    assert result_of(story) == "too many wait"


def test_a_cancelled_wait_ends_at_once_and_what_comes_later_is_ignored() -> None:
    @workflow
    async def main() -> bool:
        with trio.move_on_after(5) as scope:
            await workflow.handle("order-7").result(Receipt)
        with trio.CancelScope() as at_once:
            at_once.cancel()
            await workflow.handle("order-8").result()
        await work("next")
        return scope.cancelled_caught

    story = run_of(main)
    assert names_of(story.start()) == ["RequestExternal 1"]
    assert names_of(story.fire()) == ["Schedule 3"]
    assert story.external_resolved(1, result=codec.encode_value("no receipt")) == []
    replays(story)
    story.complete(3, "")
    assert result_of(story) is True


def test_a_result_that_does_not_fit_the_type_blocks_the_run() -> None:
    @workflow
    async def main() -> int:
        return await workflow.handle("order-7").result(int)

    story = run_of(main)
    story.start()
    answer = story.ask(ExternalResolved(id=story.next_id, at=story.at, call=1, result=codec.encode_value("many")))
    assert isinstance(answer, Blocked)
    assert answer.kind == "undecodable"
    assert "order-7" in answer.message


@pytest.mark.parametrize("run_id", [None, "run-1"])
def test_a_run_that_waits_for_itself_is_told_so(run_id: str | None) -> None:
    @workflow
    async def main(run_id: str | None) -> str:
        try:
            await workflow.handle(workflow.info().workflow_id, run_id)
        except ValueError as error:
            return str(error)
        return ""

    story = run_of(main, run_id)
    assert names_of(story.start()) == ["Complete "]
    assert "its own end" in result_of(story)


# --- continue as new --------------------------------------------------------------------------------------------------


def test_a_run_continues_as_new_with_arguments_checked_and_encoded_at_the_call() -> None:
    @workflow
    async def main(count: int, names: list[str]) -> None:
        wrong: Any = "not a number"
        for arguments in ((1,), (wrong, [])):
            try:
                workflow.continue_as_new(*arguments)
            except (TypeError, PayloadError):
                continue
        names.append("next")
        try:
            workflow.continue_as_new(count + 1, names)
        finally:
            names.append("too late")

    story = run_of(main, 1, ["first"])
    (command,) = story.start()
    assert isinstance(command, ContinueAsNew)
    assert (command.workflow, command.arguments.data) == ("main", b'[2,["first","next"]]')
    assert command.source.startswith(__file__)


def test_a_run_continues_as_another_workflow() -> None:
    @workflow
    async def main(how: str) -> None:
        if how == "class":
            workflow.continue_as_new(3, workflow=Packing)
        if how == "name":
            workflow.continue_as_new(1, 2, workflow="elsewhere")
        workflow.continue_as_new("p", workflow=ship)

    found = [one(run_of(main, how).start(), ContinueAsNew) for how in ("class", "name", "function")]
    assert [(command.workflow, command.arguments.data) for command in found] == [
        ("packing", b"[3]"),
        ("elsewhere", b"[1,2]"),
        ("ship", b'["p",1.0]'),
    ]


def test_continuing_passes_through_nurseries_cancels_siblings_and_is_no_exception() -> None:
    @workflow
    async def main() -> None:
        async def child() -> None:
            try:
                await trio.sleep(1)
                workflow.continue_as_new()
            except Exception as error:
                raise AssertionError("it is no Exception") from error

        async with trio.open_nursery() as outer:
            outer.start_soon(work, "sibling")
            async with trio.open_nursery() as inner:
                inner.start_soon(child)

    story = run_of(main)
    story.start()
    assert names_of(story.fire()) == ["Cancel 1"]
    replays(story)
    assert isinstance(story.cancelled(1)[-1], ContinueAsNew)


def test_a_run_that_continues_ends_what_it_has_submitted_first() -> None:
    @workflow
    async def main() -> None:
        work.submit("left behind")
        await trio.sleep(1)
        workflow.continue_as_new()

    story = run_of(main)
    story.start()
    assert names_of(story.fire()) == ["Cancel 1"]
    assert isinstance(story.cancelled(1)[-1], ContinueAsNew)


def test_continuing_outside_of_a_workflow_is_refused() -> None:
    with pytest.raises(RuntimeError, match="only in the code of a running workflow"):
        workflow.continue_as_new()
