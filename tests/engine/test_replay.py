from __future__ import annotations

import pytest

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine.commands import CancelActivity, Command, CompleteWorkflow, FailWorkflow, ScheduleActivity
from durablefuture_trio.engine.replay import CommandMatcher
from durablefuture_trio.errors import NondeterminismError
from durablefuture_trio.history.events import (
    ActivityCancelRequested,
    ActivityFailed,
    ActivityScheduled,
    ActivityStarted,
    TimerFired,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowTerminated,
)
from durablefuture_trio.history.options import ActivityOptionsRecord

OPTIONS = ActivityOptionsRecord()


def schedule(call: int, name: str = "ship", arguments: bytes = b"[1]", line: int = 7) -> ScheduleActivity:
    return ScheduleActivity(
        call=call, name=name, arguments=Payload(arguments), options=OPTIONS, source=f"shop/orders.py:{line}"
    )


def scheduled(event_id: int, call: int, name: str = "ship", arguments: bytes = b"[1]") -> ActivityScheduled:
    return ActivityScheduled(
        id=event_id, at=1.0, activity_id=call, name=name, arguments=Payload(arguments), options=OPTIONS
    )


def failing(matcher: CommandMatcher, event: object) -> NondeterminismError:
    with pytest.raises(NondeterminismError) as caught:
        matcher.record(event)  # type: ignore[arg-type]
    return caught.value


def test_recorded_commands_match_the_produced_ones_in_order_across_activations() -> None:
    matcher = CommandMatcher()
    matcher.produce([schedule(1), schedule(2, "charge")])
    matcher.record(scheduled(2, 1))
    matcher.produce([CancelActivity(call=1), CompleteWorkflow(result=Payload(b"1"))])
    matcher.record(scheduled(3, 2, "charge"))
    matcher.record(ActivityCancelRequested(id=4, at=1.0, activity_id=1))
    matcher.record(WorkflowCompleted(id=5, at=1.0, result=Payload(b"1")))
    matcher.end_commit(finished=True)
    assert matcher.unmatched == ()
    assert matcher.warnings == ()


def test_stimuli_and_owner_events_are_not_matched() -> None:
    matcher = CommandMatcher()
    failure = Failure(type="E", message="m")
    for event in (
        TimerFired(id=2, at=1.0, deadline=1.0),
        ActivityStarted(id=3, at=1.0, activity_id=1, attempt=1, worker="w", started_at=1.0),
        ActivityFailed(id=4, at=1.0, activity_id=1, attempt=1, reason="error", failure=failure, retry_at=2.0),
        ActivityScheduled(id=5, at=1.0, activity_id=1, attempt=2),
        WorkflowTerminated(id=6, at=1.0),
    ):
        matcher.record(event)
    matcher.end_commit(finished=True)


def test_another_name_shows_both_sides_the_source_line_and_what_went_before() -> None:
    matcher = CommandMatcher()
    matcher.produce([schedule(1, "charge", line=3), schedule(2, "ship_express", line=4)])
    matcher.record(scheduled(2, 1, "charge"))
    error = failing(matcher, scheduled(3, 2, "ship"))
    assert error.recorded == "schedule activity 2 'ship'"
    assert error.produced == "schedule activity 2 'ship_express'"
    assert error.source == "shop/orders.py:4"
    assert "  event 2: schedule activity 1 'charge' at shop/orders.py:3\n" in error.message
    assert "- event 3: schedule activity 2 'ship'  (recorded)\n" in error.message
    assert "+ event 3: schedule activity 2 'ship_express' at shop/orders.py:4  (produced)\n" in error.message


@pytest.mark.parametrize(
    ("produced", "recorded"),
    [
        (schedule(2), scheduled(2, 1)),
        (CancelActivity(call=1), scheduled(2, 1)),
        (schedule(1), ActivityCancelRequested(id=2, at=1.0, activity_id=1)),
        (CancelActivity(call=2), ActivityCancelRequested(id=2, at=1.0, activity_id=1)),
        (FailWorkflow(failure=Failure(type="E", message="m")), WorkflowCompleted(id=2, at=1.0, result=Payload(b"1"))),
        (
            CompleteWorkflow(result=Payload(b"1")),
            WorkflowFailed(id=2, at=1.0, failure=Failure(type="E", message="m")),
        ),
    ],
    ids=["other call", "cancel for schedule", "schedule for cancel", "other cancel", "failed", "completed"],
)
def test_a_command_of_another_kind_or_number_is_refused(produced: Command, recorded: object) -> None:
    matcher = CommandMatcher()
    matcher.produce([produced])
    failing(matcher, recorded)


def test_swapped_commands_are_refused() -> None:
    matcher = CommandMatcher()
    matcher.produce([schedule(2, "ship"), schedule(1, "charge")])
    failing(matcher, scheduled(2, 1, "charge"))


def test_a_missing_command_is_refused() -> None:
    error = failing(CommandMatcher(), scheduled(2, 1))
    assert (error.recorded, error.produced) == ("schedule activity 1 'ship'", "")
    assert "+ event 2: nothing more  (produced)" in error.message


def test_an_extra_command_is_refused_at_the_end_of_a_finished_commit() -> None:
    matcher = CommandMatcher()
    matcher.produce([schedule(1), schedule(2, "gift")])
    matcher.record(scheduled(2, 1))
    with pytest.raises(NondeterminismError) as caught:
        matcher.end_commit(finished=True)
    assert (caught.value.recorded, caught.value.produced) == ("", "schedule activity 2 'gift'")
    assert "- end of the commit: nothing more  (recorded)" in caught.value.message


def test_an_unfinished_commit_leaves_its_lacking_commands_over_and_the_next_commit_may_bring_them() -> None:
    matcher = CommandMatcher()
    first, second, third = schedule(1), schedule(2), CancelActivity(call=1)
    matcher.produce([first, second])
    matcher.record(scheduled(2, 1))
    matcher.end_commit(finished=False)
    matcher.produce([third])
    matcher.end_commit(finished=False)
    assert matcher.unmatched == (second, third)
    matcher.record(scheduled(3, 2))
    matcher.record(ActivityCancelRequested(id=4, at=1.0, activity_id=1))
    matcher.end_commit(finished=True)
    assert matcher.unmatched == ()


def test_other_arguments_are_a_warning_that_shows_both() -> None:
    matcher = CommandMatcher()
    matcher.produce([schedule(1, arguments=b'["new"]')])
    matcher.record(scheduled(2, 1, arguments=b'["old"]'))
    (warning,) = matcher.warnings
    assert '["new"]' in warning
    assert '["old"]' in warning
    assert "shop/orders.py:7" in warning


def test_other_arguments_are_an_error_in_strict_mode() -> None:
    matcher = CommandMatcher(strict=True)
    matcher.produce([schedule(1, arguments=b'["new"]')])
    error = failing(matcher, scheduled(2, 1, arguments=b'["old"]'))
    assert error.recorded == "schedule activity 1 'ship' with [\"old\"]"
    assert error.produced == "schedule activity 1 'ship' with [\"new\"]"


def test_another_result_is_an_error_in_strict_mode_only() -> None:
    completed = WorkflowCompleted(id=2, at=1.0, result=Payload(b"1"))
    lenient = CommandMatcher()
    lenient.produce([CompleteWorkflow(result=Payload(b"2"))])
    lenient.record(completed)
    assert lenient.warnings == ()
    strict = CommandMatcher(strict=True)
    strict.produce([CompleteWorkflow(result=Payload(b"2"))])
    error = failing(strict, completed)
    assert (error.recorded, error.produced) == ("complete workflow with 1", "complete workflow with 2")
