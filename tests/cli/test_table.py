"""How values, times and events are put into words."""

from __future__ import annotations

import pytest

from durablefuture_trio.cli._client import json_or_text, parse
from durablefuture_trio.cli._table import EventWords, call_text, one_line, payload_value, plain, table, time_text
from durablefuture_trio.codec import encode_arguments, encode_value, failure_of
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.events import (
    ActivityCancelled,
    ActivityCancelRequested,
    ActivityFailed,
    ActivityScheduled,
    CallerRecord,
    CancelRequested,
    CarriedSignal,
    CarriedUpdate,
    ChildCancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildInitiated,
    ChildStarted,
    ChildStartFailed,
    ContinuedAsNew,
    Event,
    ExternalRequested,
    ExternalResolved,
    HistoryLimitExceeded,
    MarkerRecorded,
    SignalReceived,
    TimerFired,
    UpdateAccepted,
    UpdateCompleted,
    WatcherAdded,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowStarted,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from durablefuture_trio.history.options import ActivityOptionsRecord

ONE = encode_arguments((1,))
LOST = failure_of(RuntimeError("supervisor m1\nis gone"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Bob", "Bob"),
        ("1000", 1000),
        ("-2.5", -2.5),
        ("true", True),
        ("null", None),
        ('"1000"', "1000"),
        ('{"a": [1]}', {"a": [1]}),
        ("{not json", "{not json"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("", ""),
        ("007", "007"),
    ],
)
def test_an_argument_is_json_or_else_text(text: str, value: object) -> None:
    read = json_or_text(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "line",
    [
        "run order Bob -5 x --id a",
        "run --id a order Bob -5 x",
        "run order --id a Bob -5 x",
        "run order Bob --id a -5 x",
        "--json run order Bob --id a -- -5 x",
        "run order --id a -- Bob -5 x",
    ],
)
def test_options_may_stand_anywhere_among_the_arguments_of_a_workflow(line: str) -> None:
    options = parse(line.split())
    assert (options.workflow, options.arguments, options.id) == ("order", ["Bob", "-5", "x"], "a")


def test_the_arguments_of_a_message_follow_its_name() -> None:
    options = parse(["update", "w-1", "grow", "--update-id", "u", "5", "--", "--fast"])
    assert (options.id, options.name, options.arguments, options.update_id) == ("w-1", "grow", ["5", "--fast"], "u")


def test_what_follows_two_dashes_is_no_option() -> None:
    assert parse(["run", "order", "--id", "a", "--", "--json"]).arguments == ["--json"]


@pytest.mark.parametrize("line", ["run order --fast", "run order Bob --id a --fast x", "list a", "show a b"])
def test_what_is_not_known_is_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(line.split())
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            ActivityFailed(
                id=3, at=10.0, activity_id=1, attempt=2, reason="lost", failure=LOST, retry_at=10.25, free=True
            ),
            "#1 charge attempt 2 lost, not counted: RuntimeError: supervisor m1 is gone; retry in 0.2 s",
        ),
        (
            ActivityFailed(
                id=3, at=10.0, activity_id=1, attempt=5, reason="timed_out", failure=LOST, timeout="start_to_close"
            ),
            "#1 charge attempt 5 timed_out (start_to_close): RuntimeError: supervisor m1 is gone; no retry",
        ),
        (ActivityScheduled(id=3, at=10.0, activity_id=1, attempt=2, route="queue"), "#1 charge attempt 2 queue"),
        (ActivityScheduled(id=3, at=10.0, activity_id=9, attempt=2), "#9 ? attempt 2 local"),
        (ActivityCancelRequested(id=3, at=10.0, activity_id=1), "#1 charge"),
        (ActivityCancelled(id=3, at=10.0, activity_id=1, attempt=1), "#1 charge attempt 1"),
        (TimerFired(id=3, at=10.0, deadline=9.5), "deadline 1970-01-01 00:00:09.500"),
        (WorkflowFailed(id=3, at=10.0, failure=LOST), "RuntimeError: supervisor m1 is gone"),
        (WorkflowTerminated(id=3, at=10.0, reason="wrong\x1b[31m order"), "wrong [31m order"),
        (WorkflowTimedOut(id=3, at=10.0), "execution deadline passed"),
        (
            WorkflowFailed(id=3, at=10.0, failure=LOST, next_run_id="run-2"),
            "RuntimeError: supervisor m1 is gone; tried again in run run-2",
        ),
        (WorkflowCancelled(id=3, at=10.0, reason="no\nlonger"), "no longer"),
        (ContinuedAsNew(id=3, at=10.0, next_run_id="run-2", workflow="w", arguments=ONE), "run run-2: w(1)"),
        (HistoryLimitExceeded(id=3, at=10.0, limit=50), "more than 50 events"),
        (SignalReceived(id=3, at=10.0, name="approve", arguments=ONE), "approve(1)"),
        (UpdateAccepted(id=3, at=10.0, update_id="u", name="grow", arguments=ONE), "u grow(1)"),
        (UpdateCompleted(id=3, at=10.0, update_id="u", result=encode_value(5)), "u returned 5"),
        (UpdateCompleted(id=3, at=10.0, update_id="u", failure=LOST), "u RuntimeError: supervisor m1 is gone"),
        (CancelRequested(id=3, at=10.0, reason="enough"), "enough"),
        (ChildInitiated(id=3, at=10.0, call=2, workflow_id="c", workflow="pay", arguments=ONE), "#2 c: pay(1)"),
        (ChildStarted(id=3, at=10.0, call=1, run_id="run-c"), "#1 charge run run-c"),
        (ChildStartFailed(id=3, at=10.0, call=1, failure=LOST), "#1 charge RuntimeError: supervisor m1 is gone"),
        (ChildCompleted(id=3, at=10.0, call=1, result=encode_value(5)), "#1 charge returned 5"),
        (
            ChildFailed(id=3, at=10.0, call=1, how="terminated", failure=LOST),
            "#1 charge terminated: RuntimeError: supervisor m1 is gone",
        ),
        (ChildCancelRequested(id=3, at=10.0, call=1), "#1 charge"),
        (
            ExternalRequested(id=3, at=10.0, call=2, kind="signal", workflow_id="x", name="approve", arguments=ONE),
            "#2 signal x approve(1)",
        ),
        (
            ExternalRequested(id=3, at=10.0, call=2, kind="cancel", workflow_id="x", reason="enough"),
            "#2 cancel x enough",
        ),
        (ExternalResolved(id=3, at=10.0, call=1), "#1 charge sent"),
        (ExternalResolved(id=3, at=10.0, call=1, failure=LOST), "#1 charge RuntimeError: supervisor m1 is gone"),
        (ExternalRequested(id=3, at=10.0, call=2, kind="result", workflow_id="x"), "#2 result of x"),
        (ExternalResolved(id=3, at=10.0, call=1, result=encode_value(5)), "#1 charge returned 5"),
        (
            WatcherAdded(id=3, at=10.0, caller=CallerRecord("boss", "run-b", 4)),
            "call #4 of boss waits for the end",
        ),
        (MarkerRecorded(id=3, at=10.0, patch="faster", deprecated=True), "faster (deprecated)"),
        (
            WorkflowStarted(
                id=3,
                at=10.0,
                workflow_id="w",
                run_id="run-2",
                workflow="order",
                arguments=ONE,
                signals=(CarriedSignal("approve", ONE),),
                updates=(CarriedUpdate("u", "grow", ONE),),
                cancel_reason="enough",
                watchers=(CallerRecord("boss", "run-b", 4),),
            ),
            "order(1) signal approve(1), update u grow(1), 1 waiting for its end, cancelled enough",
        ),
    ],
)
def test_an_event_in_words(event: Event, words: str) -> None:
    speaker = EventWords()
    first = ActivityScheduled(
        id=2, at=9.0, activity_id=1, name="charge", arguments=encode_arguments(()), options=ActivityOptionsRecord()
    )
    assert speaker.detail(first) == "#1 charge attempt 1 local"
    assert speaker.detail(event) == words


def test_a_call_shows_its_arguments_and_cuts_them() -> None:
    assert call_text("order", encode_arguments(("Bob", 2, None))) == 'order("Bob", 2, null)'
    assert call_text("order", encode_arguments(())) == "order()"
    shown = call_text("order", encode_arguments(("x" * 5000,)))
    assert len(shown) < 140
    assert shown.endswith("…)")


def test_text_for_a_terminal_has_no_control_characters() -> None:
    assert one_line("a\x1b[2J\tb\r\n c") == "a [2J b c"


def test_a_payload_that_is_no_json_is_shown_as_base64() -> None:
    assert payload_value(Payload(b"\xff\x00", "pickle")) == {"encoding": "pickle", "base64": "/wA="}


def test_a_record_becomes_plain_values_with_payloads_decoded() -> None:
    record = ActivityScheduled(
        id=2, at=9.0, activity_id=1, name="charge", arguments=encode_arguments((1.5,)), options=ActivityOptionsRecord()
    )
    shown = plain(record)
    assert shown["arguments"] == [1.5]
    assert shown["options"]["retry_policy"]["maximum_attempts"] is None
    assert plain(encode_value({"a": 1})) == {"a": 1}


def test_columns_are_aligned_and_the_last_one_is_not_padded() -> None:
    assert table(("A", "B"), [("long", "x"), ("s", "")]) == ["A     B", "long  x", "s"]


def test_times_are_in_utc_with_milliseconds() -> None:
    assert time_text(1_700_000_000.0624) == "2023-11-14 22:13:20.062"
    assert time_text(None) == "-"
