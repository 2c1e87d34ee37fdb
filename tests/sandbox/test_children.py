"""What workflow code sees of child workflows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import trio

from durablefuture_trio import (
    ActivityError,
    ChildWorkflow,
    ChildWorkflowError,
    LimitExceededError,
    PayloadError,
    RetryPolicy,
    WorkflowCancelledError,
    activity,
    durable_map,
    gather,
    workflow,
)
from durablefuture_trio.engine.commands import (
    CancelChild,
    Command,
    CompleteWorkflow,
    FailWorkflow,
    StartChild,
)
from durablefuture_trio.errors import WorkflowAlreadyStartedError
from durablefuture_trio.history.events import ChildEnd, ChildInitiated, ChildStarted
from durablefuture_trio.ports.frames import Blocked
from durablefuture_trio.sandbox import _calls
from tests._support.sandbox import START
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


# --- awaiting ---------------------------------------------------------------------------------------------------------


def test_a_workflow_that_is_awaited_runs_as_a_child_and_gives_its_result() -> None:
    @workflow
    async def main() -> list[Any]:
        result = await ship("p1")
        return [type(result) is tuple, *result]

    story = run_of(main)
    start = child_in(story.start())
    assert (start.call, start.workflow, start.arguments.data) == (1, "ship", b'["p1",1.0]')
    assert start.workflow_id == "wf-1/run-1-1"
    assert start.parent_close == "terminate"
    assert start.source.startswith(f"{__file__}:")
    assert story.child_started(1) == []
    replays(story)
    story.child_completed(1, ["p1", 2.5])
    assert result_of(story) == [True, "p1", 2.5]


def test_children_share_the_numbers_of_calls_with_activities() -> None:
    @workflow
    async def main() -> None:
        await gather(work.submit("a"), ship.submit("p"), work.submit("b"))

    story = run_of(main)
    assert names_of(story.start()) == ["Schedule 1", "StartChild 2", "Schedule 3"]
    assert isinstance(story.events[2], ChildInitiated)
    assert story.events[2].workflow_id == "wf-1/run-1-2"


@pytest.mark.parametrize(
    ("how", "words"),
    [("failed", "failed: no"), ("cancelled", "was cancelled: no"), ("terminated", "was terminated: no"),
     ("timed_out", "timed out: no")],
)  # fmt: skip
def test_a_child_that_ends_without_a_result_raises_a_child_workflow_error(how: ChildEnd, words: str) -> None:
    @workflow
    async def main() -> list[Any]:
        try:
            await ship("p")
        except ChildWorkflowError as error:
            return [str(error), error.workflow, error.workflow_id, error.reason, str(error.cause)]
        return []

    story = run_of(main)
    story.start()
    story.child_started(1)
    story.child_failed(1, how=how)
    child_id = "wf-1/run-1-1"
    assert result_of(story) == [f"child workflow 'ship' ({child_id}) {words}", "ship", child_id, how, "no"]


def test_the_cause_of_a_cancelled_child_knows_its_id_and_reason() -> None:
    @workflow
    async def main() -> list[Any]:
        try:
            await ship("p")
        except ChildWorkflowError as error:
            cause = error.cause
            assert isinstance(cause, WorkflowCancelledError)
            return [cause.workflow_id, cause.run_id, cause.reason]
        return []

    story = run_of(main)
    story.start()
    story.child_started(1)
    story.child_failed(1, "not today", how="cancelled", error="WorkflowCancelledError")
    assert result_of(story) == ["wf-1/run-1-1", "child-run", "not today"]


def test_a_child_that_cannot_be_started_says_so() -> None:
    @workflow
    async def main() -> list[Any]:
        try:
            await ship("p")
        except ChildWorkflowError as error:
            return [error.reason, type(error.cause).__name__, str(error)]
        return []

    story = run_of(main)
    story.start()
    story.child_start_failed(1, "the id is in use")
    assert result_of(story) == [
        "not_started",
        "WorkflowAlreadyStartedError",
        "child workflow 'ship' (wf-1/run-1-1) could not be started: the id is in use",
    ]


def test_an_unhandled_failure_of_a_child_fails_the_parent_with_the_whole_chain() -> None:
    @workflow
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ship, "p")

    story = run_of(main)
    story.start()
    story.child_started(1)
    story.child_failed(1, "address unknown")
    failure = failure_of(story)
    assert (failure.type, failure.info["reason"]) == ("ChildWorkflowError", "failed")
    assert (failure.cause.type, failure.cause.message) == ("ValueError", "address unknown")


def test_a_cancelled_wait_cancels_the_child_and_waits_for_its_end() -> None:
    @workflow
    async def main() -> str:
        with trio.move_on_after(10) as scope:
            await ship("p")
        return f"{scope.cancelled_caught} at {trio.current_time() - START:g}"

    story = run_of(main)
    story.start()
    story.child_started(1)
    (cancel,) = story.fire()
    assert isinstance(cancel, CancelChild)
    assert cancel.call == 1
    replays(story)
    story.child_failed(1, how="cancelled", after=5)
    assert result_of(story) == "True at 15"


def test_a_result_or_a_failure_of_a_child_that_was_cancelled_is_still_given() -> None:
    @workflow
    async def main() -> list[Any]:
        log: list[Any] = []
        with trio.move_on_after(10):
            log.append(await ship("late"))
        with trio.move_on_after(10):
            try:
                await ship("fails")
            except ChildWorkflowError as error:
                log.append(error.reason)
        return log

    story = run_of(main)
    story.start()
    story.fire()
    story.child_completed(1, ["late", 1])
    story.fire()
    story.child_failed(2)
    assert result_of(story) == [["late", 1], "failed"]


def test_a_child_that_is_cancelled_before_it_has_started_is_cancelled_after_its_start() -> None:
    @workflow
    async def main() -> bool:
        with trio.move_on_after(10) as scope:
            await ship("p")
        return scope.cancelled_caught

    for end in ("started", "start_failed"):
        story = run_of(main)
        story.start()
        assert names_of(story.fire()) == ["CancelChild 1"]
        if end == "started":
            assert story.child_started(1) == []
            story.child_failed(1, how="cancelled")
        else:
            story.child_start_failed(1)
        assert result_of(story) is True


def test_a_child_that_is_made_and_cancelled_in_one_activation_leaves_no_trace() -> None:
    @workflow
    async def main() -> list[Any]:
        with trio.CancelScope() as scope:
            scope.cancel()
            await ship("never")
        child = ship.submit("never")
        child.cancel()
        reasons = []
        for wait in (child.started, lambda: _awaited(child)):
            try:
                await wait()
            except ChildWorkflowError as error:
                reasons.append(error.reason)
        return [*reasons, await work("once")]

    story = run_of(main)
    assert names_of(story.start()) == ["Schedule 3"]
    story.complete(3, "done")
    assert result_of(story) == ["cancelled", "cancelled", "done"]


async def _awaited(child: ChildWorkflow[Any]) -> Any:
    return await child


def test_cancels_of_activities_and_children_are_sorted_together() -> None:
    @workflow
    async def main() -> None:
        with trio.move_on_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(work, str(number))
                    nursery.start_soon(ship, str(number))

    story = run_of(main)
    story.start()
    expected = [f"{'Cancel' if call % 2 else 'CancelChild'} {call}" for call in range(1, 9)]
    assert names_of(story.fire()) == expected


def test_an_outcome_of_a_child_this_code_never_started_blocks_the_run() -> None:
    @workflow
    async def main() -> None:
        await trio.sleep_forever()

    story = run_of(main)
    story.start()
    answer = story.ask(ChildStarted(id=2, at=START, call=7, run_id="r"))
    assert isinstance(answer, Blocked)
    assert answer.kind == "nondeterminism"
    assert "child call 7" in answer.message


def test_a_result_that_cannot_be_rebuilt_blocks_the_run() -> None:
    @workflow
    async def main() -> None:
        await ship("p")

    story = run_of(main)
    story.start()
    story.child_started(1)
    with pytest.raises(AssertionError) as caught:
        story.child_completed(1, "not a tuple")
    assert caught.value.args[0].kind == "undecodable"
    assert "child workflow 'ship'" in caught.value.args[0].message


# --- start_child ------------------------------------------------------------------------------------------------------


def test_start_child_takes_options_and_gives_a_future_with_an_id() -> None:
    @workflow
    async def main() -> list[Any]:
        child = workflow.start_child(
            ship,
            "p",
            2.0,
            id="parcel-7",
            parent_close="abandon",
            execution_timeout=timedelta(minutes=1),
            retry_policy=RetryPolicy(maximum_attempts=2),
            memo={"colour": "red"},
        )
        run_id = await child.started()
        return [child.id, child.done(), run_id, await child]

    story = run_of(main)
    start = child_in(story.start())
    assert (start.workflow_id, start.parent_close, start.execution_timeout) == ("parcel-7", "abandon", 60)
    assert start.retry_policy == RetryPolicy(maximum_attempts=2)
    assert start.memo is not None
    assert start.memo.data == b'{"colour":"red"}'
    story.child_started(1, "run-of-child")
    replays(story)
    story.child_completed(1, ["p", 2])
    assert result_of(story) == ["parcel-7", False, "run-of-child", ["p", 2]]


def test_children_can_be_named_or_classes() -> None:
    @workflow
    async def main() -> list[Any]:
        by_class = workflow.start_child(Packing, 3)
        by_name = workflow.start_child("elsewhere", 1, "two", result_type=tuple[int, str])
        results = await gather(by_class, by_name)
        return [results[0], type(results[1]) is tuple, *results[1]]

    story = run_of(main)
    starts = [(command.workflow, command.arguments.data) for command in story.start()]  # type: ignore[union-attr]
    assert starts == [("packing", b"[3]"), ("elsewhere", b'[1,"two"]')]
    story.child_completed(1, 3)
    story.child_completed(2, [1, "two"])
    assert result_of(story) == [3, True, 1, "two"]


def test_wrong_children_are_refused_at_the_call() -> None:
    @workflow
    async def main() -> list[str]:
        problems = []
        start: Any = workflow.start_child
        for wrong in (
            lambda: start(ship),
            lambda: start(ship, 5),
            lambda: start(work, "x"),
            lambda: start(len, "x"),
            lambda: start(""),
            lambda: start(ship, "p", id=""),
            lambda: start(ship, "p", parent_close="keep"),
            lambda: start(ship, "p", execution_timeout=0),
            lambda: start(ship, "p", retry_policy=3),
            lambda: start(ship, "p", timeout=3),
            lambda: start("name", object()),
        ):
            try:
                wrong()
            except (TypeError, ValueError, PayloadError) as error:
                problems.append(str(error))
        return problems

    story = run_of(main)
    assert names_of(story.start()) == ["Complete "]
    expected = [
        "missing argument 'parcel'", "do not fit workflow ship(parcel, weight)", "is an activity", "is no workflow",
        "name of a workflow", "non-empty string", "parent_close is one of", "execution_timeout must be above",
        "must be a RetryPolicy", "unknown option 'timeout'", "object",
    ]  # fmt: skip
    problems = result_of(story)
    assert len(problems) == len(expected)
    for problem, words in zip(problems, expected, strict=True):
        assert words in problem


def test_a_child_whose_start_fails_says_so_to_who_waits_for_its_start() -> None:
    @workflow
    async def main() -> list[str]:
        child = ship.submit("p")
        log = []
        for wait in (child.started, child.wait, child.started):
            try:
                await wait()
            except ChildWorkflowError as error:
                log.append(error.cause.workflow_id if isinstance(error.cause, WorkflowAlreadyStartedError) else "")
        return log

    story = run_of(main)
    story.start()
    story.child_start_failed(1)
    assert result_of(story) == ["wf-1/run-1-1"] * 2


def test_a_cancelled_child_future_is_done_when_the_child_has_ended() -> None:
    @workflow
    async def main() -> list[Any]:
        child = ship.submit("p")
        await child.started()
        child.cancel()
        done = child.done()
        try:
            await child
        except ChildWorkflowError as error:
            return [done, error.reason]
        return []

    story = run_of(main)
    story.start()
    assert names_of(story.child_started(1)) == ["CancelChild 1"]
    story.child_failed(1, how="cancelled")
    assert result_of(story) == [False, "cancelled"]


def test_open_children_do_not_hold_up_the_end_of_the_run() -> None:
    @workflow
    async def main() -> str:
        await workflow.start_child(ship, "p", parent_close="abandon").started()
        return "end"

    story = run_of(main)
    story.start()
    assert names_of(story.child_started(1)) == ["Complete "]


def test_durable_map_starts_children_too() -> None:
    @workflow
    async def main() -> list[str]:
        return [parcel for parcel, _ in await durable_map(ship, ["a", "b", "c"], concurrency=2)]

    story = run_of(main)
    assert names_of(story.start()) == ["StartChild 1", "StartChild 2"]
    assert names_of(story.child_completed(2, ["b", 1])) == ["StartChild 3"]
    story.child_completed(3, ["c", 1])
    story.child_completed(1, ["a", 1])
    assert result_of(story) == ["a", "b", "c"]


def test_more_pending_children_than_allowed_are_refused_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _calls.MAX_PENDING_CHILDREN == 2_000
    monkeypatch.setattr(_calls, "MAX_PENDING_CHILDREN", 2)

    @workflow
    async def main() -> str:
        for _ in range(2):
            ship.submit("p")
        try:
            ship.submit("p")
        except LimitExceededError as error:
            return error.message
        return ""

    story = run_of(main)
    story.start()
    assert "already waits for 2 child workflows, and 2 is the limit" in result_of(story)


def test_a_default_id_that_would_be_too_long_is_refused_with_what_to_do() -> None:
    @workflow
    async def main() -> str:
        try:
            ship.submit("p")
        except ValueError as error:
            return str(error)
        return ""

    story = run_of(main)
    story.workflow_id = "x" * 505
    story.start()
    assert "give the child an id" in result_of(story)


def test_workflows_are_not_called_outside_of_workflows() -> None:
    for call in (lambda: ship("p"), lambda: ship.submit("p")):
        with pytest.raises(RuntimeError, match=r"client\.run\(ship"):
            call()
    for helper in (lambda: workflow.start_child(ship, "p"), lambda: workflow.handle("x")):
        with pytest.raises(RuntimeError, match="only in the code of a running workflow"):
            helper()


def test_a_failure_of_an_activity_and_one_of_a_child_can_be_told_apart() -> None:
    @workflow
    async def main() -> list[str]:
        log = []
        for future in (work.submit("a"), ship.submit("p")):
            try:
                await future
            except ActivityError as error:
                log.append(error.activity)
            except ChildWorkflowError as error:
                log.append(error.workflow)
        return log

    story = run_of(main)
    story.start()
    story.fail(1)
    story.child_failed(2)
    assert result_of(story) == ["work", "ship"]
    assert isinstance(story.commands[-1], CompleteWorkflow)
    assert not any(isinstance(command, FailWorkflow) for command in story.commands)
