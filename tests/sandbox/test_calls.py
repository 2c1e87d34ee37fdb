"""What workflow code sees of its activity calls."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from durablefuture_trio.authoring._activity import activity
from durablefuture_trio.authoring._runtime import current_run
from durablefuture_trio.authoring._workflow import workflow
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.codec import decode_value
from durablefuture_trio.engine.commands import CancelActivity, CompleteWorkflow, FailWorkflow, ScheduleActivity
from durablefuture_trio.errors import ActivityError
from durablefuture_trio.history.events import ActivityScheduled
from durablefuture_trio.ports.frames import Blocked
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.sandbox import START, Story


@activity
async def work(word: str) -> str:
    return word


@activity(abandon_on_cancel=True)
async def abandonable(word: str) -> str:
    return word


@activity
async def number() -> int:
    return 1


def run_of(definition: Any, *arguments: Any) -> Story:
    return Story(ReplayHost(Registry.of([definition]).workflows), definition.name, arguments)


def result_of(story: Story) -> Any:
    (command,) = [command for command in story.commands if isinstance(command, CompleteWorkflow)]
    return decode_value(command.result, Any)


def failure_of(story: Story) -> Any:
    (command,) = [command for command in story.commands if isinstance(command, FailWorkflow)]
    return command.failure


def calls_in(commands: Any) -> list[Any]:
    return [
        (type(command).__name__.removesuffix("Activity"), command.call)
        for command in commands
        if isinstance(command, ScheduleActivity | CancelActivity)
    ]


def test_arguments_are_taken_at_the_call_and_the_source_line_goes_along() -> None:
    @activity
    async def store(items: list[int]) -> None: ...

    @workflow
    async def main() -> None:
        items = [1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store, items)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            items.append(2)

    story = run_of(main)
    (schedule,) = story.start()
    assert isinstance(schedule, ScheduleActivity)
    assert schedule.arguments.data == b"[[1]]"
    assert schedule.source.startswith(f"{__file__}:")


def test_a_result_is_rebuilt_by_the_annotation_of_the_activity() -> None:
    @activity
    async def where() -> tuple[int, int]: ...

    @workflow
    async def main() -> bool:
        return type(await where()) is tuple

    story = run_of(main)
    story.start()
    story.complete(1, [1, 2])
    assert result_of(story) is True


def test_a_failed_activity_raises_an_activity_error_with_its_cause() -> None:
    @workflow
    async def main() -> list[Any]:
        try:
            await work("x")
        except ActivityError as error:
            return [error.activity, error.activity_id, error.attempts, error.reason, str(error.__cause__), str(error)]
        return []

    story = run_of(main)
    story.start()
    story.fail(1, "card declined", attempt=3)
    assert result_of(story) == [
        "work", 1, 3, "error", "card declined", "activity 'work' failed after 3 attempts: card declined",
    ]  # fmt: skip


def test_a_cancelled_call_sends_the_cancel_and_waits_for_the_outcome() -> None:
    @workflow
    async def main() -> str:
        with trio.move_on_after(10) as scope:
            await work("slow")
        return f"{scope.cancelled_caught} at {trio.current_time() - START:g}"

    story = run_of(main)
    story.start()
    assert story.wake_at == START + 10
    assert calls_in(story.fire()) == [("Cancel", 1)]
    assert story.wake_at is None
    story.cancelled(1, after=5)
    assert result_of(story) == "True at 15"


def test_a_result_that_comes_after_the_cancel_is_returned_and_cancelled_is_raised_at_the_next_checkpoint() -> None:
    @workflow
    async def main() -> list[str]:
        log = []
        with trio.move_on_after(10):
            log.append(await work("late"))
            log.append("after the call")
            await trio.lowlevel.checkpoint()
            log.append("after the checkpoint")
        return log

    story = run_of(main)
    story.start()
    story.fire()
    story.complete(1, "result", after=1)
    assert result_of(story) == ["result", "after the call"]


def test_an_error_of_the_activity_itself_after_the_cancel_is_raised() -> None:
    @workflow
    async def main() -> str:
        with trio.move_on_after(10):
            try:
                await work("late")
            except ActivityError as error:
                return error.reason
        return "cancelled"

    story = run_of(main)
    story.start()
    story.fire()
    story.fail(1, reason="error")
    assert result_of(story) == "error"


@pytest.mark.parametrize("reason", ["cancelled", "crashed", "lost", "timed_out"])
def test_an_attempt_that_ends_without_a_word_after_the_cancel_counts_as_cancelled(reason: Any) -> None:
    @workflow
    async def main() -> bool:
        with trio.move_on_after(10) as scope:
            await work("late")
        return scope.cancelled_caught

    story = run_of(main)
    story.start()
    story.fire()
    story.fail(1, reason=reason)
    assert result_of(story) is True


def test_a_call_that_was_cancelled_by_someone_else_raises_an_activity_error() -> None:
    @workflow
    async def main() -> str:
        try:
            return await work("x")
        except ActivityError as error:
            return error.reason

    story = run_of(main)
    story.start()
    story.cancelled(1)
    assert result_of(story) == "cancelled"


def test_abandon_on_cancel_returns_at_once_still_sends_the_cancel_and_ignores_the_outcome() -> None:
    @workflow
    async def main() -> float:
        with trio.move_on_after(10):
            await abandonable("slow")
        left_after = trio.current_time() - START
        await number()
        return left_after

    story = run_of(main)
    story.start()
    assert calls_in(story.fire()) == [("Schedule", 2), ("Cancel", 1)]
    assert story.complete(1, "too late") == []
    story.complete(2, 1)
    assert result_of(story) == 10


def test_a_call_that_is_made_and_cancelled_in_one_activation_leaves_no_trace() -> None:
    @workflow
    async def main() -> str:
        with trio.CancelScope() as scope:
            scope.cancel()
            await work("never")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, "never")
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        return await work("once")

    story = run_of(main)
    (schedule,) = story.start()
    assert isinstance(schedule, ScheduleActivity)
    assert schedule.arguments.data == b'["once"]'
    story.complete(schedule.call, "done")
    assert result_of(story) == "done"
    assert sum(isinstance(event, ActivityScheduled) for event in story.events) == 1


def test_cancels_of_one_activation_are_sorted_by_call_number_and_come_after_the_schedules() -> None:
    @workflow
    async def main() -> None:
        with trio.move_on_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(abandonable, "x")
        await work("next")

    story = run_of(main)
    story.start()
    assert calls_in(story.fire()) == [("Schedule", 13), *[("Cancel", call) for call in range(1, 13)]]


def test_the_end_of_the_run_is_the_last_command() -> None:
    @workflow
    async def main() -> str:
        with trio.move_on_after(10):
            await abandonable("x")
        return "end"

    story = run_of(main)
    story.start()
    assert [type(command) for command in story.fire()] == [CancelActivity, CompleteWorkflow]


def test_a_shielded_scope_runs_a_compensating_activity() -> None:
    @workflow
    async def main() -> list[str]:
        log = []
        with trio.move_on_after(10):
            try:
                await work("reserve")
            finally:
                with trio.CancelScope(shield=True):
                    log.append(await work("release"))
        return log

    story = run_of(main)
    story.start()
    story.fire()
    assert calls_in(story.cancelled(1)) == [("Schedule", 2)]
    story.complete(2, "released")
    assert result_of(story) == ["released"]


def test_any_stimulus_past_a_deadline_expires_it_in_the_same_step() -> None:
    @workflow
    async def main() -> list[str]:
        log = []

        async def timer() -> None:
            await trio.sleep(10)
            log.append(f"timer at {trio.current_time() - START:g}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(timer)
            log.append(await work("x"))
        return log

    story = run_of(main)
    story.start()
    story.complete(1, "done", after=12)
    assert sorted(result_of(story)) == ["done", "timer at 12"]


def test_a_result_that_cannot_be_rebuilt_blocks_the_run_instead_of_failing_it() -> None:
    @workflow
    async def main() -> int:
        try:
            return await number()
        except Exception:  # it must not come here
            return -1

    story = run_of(main)
    story.start()
    with pytest.raises(AssertionError) as caught:
        story.complete(1, "not a number")
    blocked = caught.value.args[0]
    assert isinstance(blocked, Blocked)
    assert blocked.kind == "undecodable"
    assert "'number'" in blocked.message
    assert blocked.source.startswith(__file__)


def test_arguments_that_cannot_be_encoded_raise_at_the_call() -> None:
    @activity
    async def take(thing: Any) -> None: ...

    @workflow
    async def main() -> None:
        await take(object())

    story = run_of(main)
    story.start()
    assert failure_of(story).type == "PayloadError"


# --- the end of a run -------------------------------------------------------------------------------------------------


def test_an_exception_in_nested_nurseries_is_recorded_as_itself() -> None:
    async def fail() -> None:
        raise ValueError("sold out")

    @workflow
    async def main() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery():
            outer.start_soon(fail)
            await trio.sleep_forever()

    story = run_of(main)
    (command,) = story.start()
    assert (failure_of(story).type, failure_of(story).message) == ("ValueError", "sold out")
    assert isinstance(command, FailWorkflow)
    assert command.source.startswith(__file__)


def test_several_exceptions_are_recorded_as_a_group() -> None:
    async def fail(word: str) -> None:
        raise ValueError(word)

    @workflow
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, "one")
            nursery.start_soon(fail, "two")

    story = run_of(main)
    story.start()
    assert [member.message for member in failure_of(story).members] == ["one", "two"]


def test_a_result_that_cannot_be_recorded_fails_the_run() -> None:
    @workflow
    async def main() -> Any:
        return object()

    story = run_of(main)
    story.start()
    assert failure_of(story).type == "PayloadError"
    assert "the result of workflow 'main' cannot be recorded" in failure_of(story).message


def test_system_exit_fails_the_run_and_not_the_process() -> None:
    @workflow
    async def main() -> None:
        raise SystemExit(3)

    story = run_of(main)
    story.start()
    assert failure_of(story).type == "SystemExit"


def test_a_cancelled_that_was_kept_and_raised_later_fails_the_run_with_an_explanation() -> None:
    @workflow
    async def main() -> None:
        kept: BaseException | None = None
        with trio.move_on_after(0):
            try:
                await trio.sleep(1)
            except trio.Cancelled as error:
                kept = error
        assert kept is not None
        raise kept

    story = run_of(main)
    story.start()
    assert failure_of(story).type == "RuntimeError"
    assert "the scope that it belongs to was closed before" in failure_of(story).message


def test_the_exception_of_an_unprintable_class_fails_the_run_all_the_same() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @workflow
    async def main() -> None:
        raise Unprintable

    story = run_of(main)
    story.start()
    assert failure_of(story).type == "Unprintable"


# --- the runtime ------------------------------------------------------------------------------------------------------


def test_time_chance_and_info_are_functions_of_the_history() -> None:
    @workflow
    async def main() -> list[Any]:
        await trio.sleep(5)
        run = current_run.get()
        assert run is not None
        info = run.info
        return [
            run.now() - START, run.random().random(), str(run.uuid4()), run.replaying(),
            info.workflow_id, info.run_id, info.workflow, info.started_at, info.history_length,
        ]  # fmt: skip

    first, again, other = run_of(main), run_of(main), run_of(main)
    other.run_id = "run-2"
    results = []
    for story in (first, again, other):
        story.start()
        story.fire(late=0.5)
        results.append(result_of(story))
    assert results[0] == results[1]
    assert results[0][0] == 5.5
    assert results[0][3:] == [False, "wf-1", "run-1", "main", START, 2]
    assert results[0][1:3] != results[2][1:3]


def test_code_knows_when_history_is_repeated() -> None:
    seen = []

    @workflow
    async def main() -> None:
        run = current_run.get()
        assert run is not None
        seen.append(run.replaying())
        await work("x")
        seen.append(run.replaying())

    story = run_of(main)
    story.start()
    story.replay()
    story.complete(1, "")
    assert seen == [False, True, False]
