from __future__ import annotations

import time
from pathlib import Path

import pytest

from durablefuture_trio.codec import decode_value, exception_of
from durablefuture_trio.codec.payload import MAX_PAYLOAD_BYTES, Payload
from durablefuture_trio.errors import ApplicationError
from durablefuture_trio.ports.frames import ActivityKey, AttemptCompleted, AttemptFailed, Bye, CancelAttempt
from tests._support.worker_activities import Item
from tests._support.worker_process import RUN_ID, WorkerProcess, hello, ready_worker, run_activity


async def test_an_async_activity_gets_typed_arguments_and_its_result_comes_back(worker: WorkerProcess) -> None:
    before = time.time()
    outcome = await worker.outcome_of(run_activity("echo", Item("a", 1)))
    assert isinstance(outcome, AttemptCompleted)
    assert decode_value(outcome.result, Item) == Item("a", 2)
    assert before <= outcome.started_at <= time.time()


async def test_a_plain_function_runs_in_a_thread_and_knows_its_attempt(worker: WorkerProcess) -> None:
    outcome = await worker.outcome_of(run_activity("in_thread", Item("a"), activity_id=9))
    assert isinstance(outcome, AttemptCompleted)
    assert outcome.result.data == f'["a",false,"{RUN_ID}/9"]'.encode()


async def test_missing_trailing_arguments_are_filled_with_todays_defaults(worker: WorkerProcess) -> None:
    outcome = await worker.outcome_of(run_activity("add", 1))
    assert isinstance(outcome, AttemptCompleted)
    assert outcome.result.data == b"11"


async def test_an_activity_knows_ids_attempt_and_the_nearer_deadline(worker: WorkerProcess) -> None:
    run = run_activity("info", activity_id=3, attempt=2, start_to_close=100.0, deadline=time.time() + 50)
    outcome = await worker.outcome_of(run)
    assert isinstance(outcome, AttemptCompleted)
    info = decode_value(outcome.result, dict)
    assert abs(info.pop("deadline") - run.deadline) < 0.001  # type: ignore[operator]
    assert info == {
        "activity": "info",
        "workflow_id": "order-7",
        "run_id": RUN_ID,
        "activity_id": 3,
        "attempt": 2,
        "idempotency_key": f"{RUN_ID}/3",
    }


async def test_without_limits_there_is_no_deadline(worker: WorkerProcess) -> None:
    outcome = await worker.outcome_of(run_activity("info"))
    assert isinstance(outcome, AttemptCompleted)
    assert decode_value(outcome.result, dict)["deadline"] is None


async def test_many_attempts_run_at_once_and_each_gets_its_own_result(worker: WorkerProcess) -> None:
    runs = [run_activity("add", index, 1, activity_id=index) for index in range(1, 201)]
    waits = [run_activity("wait", str(index), activity_id=1000 + index) for index in range(50)]
    await worker.send(*waits, *runs)
    results: dict[ActivityKey, bytes] = {}
    while len(results) < len(runs):
        outcome = await worker.next_answer()
        assert isinstance(outcome, AttemptCompleted)
        results[outcome.key] = outcome.result.data
    assert results == {run.key: b"%d" % (run.key.activity_id + 1) for run in runs}


async def test_a_failure_keeps_type_message_cause_details_and_lines(worker: WorkerProcess) -> None:
    outcome = await worker.failure_of(run_activity("fail"))
    assert (outcome.reason, outcome.timeout) == ("error", None)
    error = exception_of(outcome.failure)
    assert isinstance(error, ApplicationError)
    assert (error.type, error.message, error.details, error.non_retryable) == ("CardDeclined", "no money", (5,), True)
    assert "worker_activities.py" in error.traceback_text
    assert outcome.failure.cause is not None
    assert outcome.failure.cause.type == "KeyError"


async def test_a_failure_inside_a_nursery_is_known_by_its_own_type(worker: WorkerProcess) -> None:
    outcome = await worker.failure_of(run_activity("fail_in_nursery"))
    assert outcome.failure.type == "CardDeclined"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("leave", "SystemExit"), ("leave_from_thread", "SystemExit"), ("interrupt", "KeyboardInterrupt")],
)
async def test_attempts_to_leave_the_process_are_failures(worker: WorkerProcess, name: str, kind: str) -> None:
    outcome = await worker.failure_of(run_activity(name))
    assert (outcome.reason, outcome.failure.type) == ("error", kind)
    assert isinstance(await worker.outcome_of(run_activity("add", 1, activity_id=2)), AttemptCompleted)


async def test_an_unknown_activity_is_a_retryable_failure_that_names_the_known_ones(worker: WorkerProcess) -> None:
    outcome = await worker.failure_of(run_activity("ecko", Item("a")))
    assert (outcome.reason, outcome.failure.type) == ("error", "UnknownActivityError")
    assert not outcome.failure.non_retryable
    assert "'ecko'" in outcome.failure.message
    assert "echo" in outcome.failure.message


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("echo", Payload(b'[{"name":5}]'), "$[0].name: expected text, found an integer 5"),
        ("echo", Payload(b"[]"), "activity echo needs 1 arguments (item), but the call recorded 0"),
        ("add", Payload(b"[1,2,3]"), "expected at most 2 arguments, found 3"),
        ("add", Payload(b"{"), "the payload is not json"),
        ("add", Payload(b"[1]", "pickle"), "encoded as 'pickle'"),
    ],
)
async def test_arguments_that_cannot_be_decoded_are_a_failure_without_retry(
    worker: WorkerProcess, name: str, payload: Payload, message: str
) -> None:
    outcome = await worker.failure_of(run_activity(name, payload=payload))
    assert (outcome.reason, outcome.failure.type, outcome.failure.non_retryable) == ("error", "PayloadError", True)
    assert message in outcome.failure.message


async def test_a_result_that_cannot_be_encoded_is_a_failure_without_retry(worker: WorkerProcess) -> None:
    outcome = await worker.failure_of(run_activity("not_encodable"))
    assert (outcome.failure.type, outcome.failure.non_retryable) == ("PayloadError", True)


async def test_a_result_over_the_limit_is_a_failure_without_retry(worker: WorkerProcess) -> None:
    within = await worker.outcome_of(run_activity("large", MAX_PAYLOAD_BYTES - 2))
    assert isinstance(within, AttemptCompleted)
    assert within.result.size_bytes == MAX_PAYLOAD_BYTES
    outcome = await worker.failure_of(run_activity("large", MAX_PAYLOAD_BYTES))
    assert (outcome.failure.type, outcome.failure.non_retryable) == ("PayloadError", True)
    assert str(MAX_PAYLOAD_BYTES) in outcome.failure.message


async def test_a_plain_function_that_returns_a_coroutine_is_a_failure(worker: WorkerProcess) -> None:
    outcome = await worker.failure_of(run_activity("forgotten_await"))
    assert outcome.failure.type == "TypeError"
    assert "appears to be asynchronous" in outcome.failure.message


# --- timeouts and cancels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wait", "wait_in_thread"])
async def test_an_attempt_over_its_start_to_close_timeout_is_ended(worker: WorkerProcess, name: str) -> None:
    outcome = await worker.failure_of(run_activity(name, "x", start_to_close=0.05, deadline=time.time() + 60))
    assert (outcome.reason, outcome.timeout) == ("timed_out", "start_to_close")
    assert outcome.failure.type == "TimeoutError"
    assert "start_to_close_timeout of 0.05 s" in outcome.failure.message


async def test_an_attempt_over_the_deadline_of_its_call_names_that_limit(worker: WorkerProcess) -> None:
    run = run_activity("wait", "x", start_to_close=60.0, deadline=time.time() + 0.05, timeout="schedule_to_close")
    outcome = await worker.failure_of(run)
    assert (outcome.reason, outcome.timeout) == ("timed_out", "schedule_to_close")
    assert "schedule_to_close_timeout" in outcome.failure.message


async def test_an_attempt_that_comes_after_its_deadline_does_not_run(worker: WorkerProcess) -> None:
    run = run_activity("add", 1, deadline=time.time() - 1, timeout="schedule_to_start")
    outcome = await worker.failure_of(run)
    assert (outcome.reason, outcome.timeout) == ("timed_out", "schedule_to_start")


@pytest.mark.parametrize("name", ["wait", "wait_in_thread"])
async def test_a_cancelled_attempt_ends_and_says_so(worker: WorkerProcess, name: str) -> None:
    run = run_activity(name, "x", start_to_close=600.0)
    await worker.send(run)
    await worker.wait_for_log("waiting x")
    await worker.cancel(run)
    outcome = await worker.next_answer()
    assert isinstance(outcome, AttemptFailed)
    assert (outcome.key, outcome.reason, outcome.timeout) == (run.key, "cancelled", None)


async def test_a_cancel_in_the_same_write_as_the_attempt_keeps_it_from_running(worker: WorkerProcess) -> None:
    run = run_activity("wait", "x")
    await worker.send(run, CancelAttempt(key=run.key))
    outcome = await worker.next_answer()
    assert outcome.reason == "cancelled"
    assert not any("waiting" in line.message for line in worker.logs)


async def test_a_result_that_comes_in_spite_of_a_cancel_is_a_result(worker: WorkerProcess) -> None:
    run = run_activity("insist", "x")
    await worker.send(run)
    await worker.wait_for_log("waiting x")
    await worker.cancel(run)
    outcome = await worker.next_answer()
    assert isinstance(outcome, AttemptCompleted)
    assert outcome.result.data == b'"x anyway"'


async def test_an_error_while_cleaning_up_after_a_cancel_is_an_error(worker: WorkerProcess) -> None:
    run = run_activity("fail_when_cancelled", "x")
    await worker.send(run)
    await worker.wait_for_log("waiting x")
    await worker.cancel(run)
    outcome = await worker.next_answer()
    assert isinstance(outcome, AttemptFailed)
    assert (outcome.reason, outcome.failure.message) == ("error", "could not clean up")


async def test_a_thread_that_is_deaf_to_the_cancel_is_waited_for_and_its_result_kept(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    run = run_activity("wait_for_file", str(tmp_path / "go"), start_to_close=0.01)
    await worker.send(run)
    await worker.wait_for_log("waiting")
    await worker.cancel(run)
    assert isinstance(await _answer_of(worker, run_activity("add", 1, activity_id=2)), AttemptCompleted)
    (tmp_path / "go").touch()
    outcome = await worker.next_answer()
    assert isinstance(outcome, AttemptCompleted)
    assert outcome.key == run.key


async def _answer_of(worker: WorkerProcess, run: object) -> object:
    await worker.send(run)  # type: ignore[arg-type]
    return await worker.next_answer()


async def test_cancels_of_unknown_and_finished_attempts_are_ignored(worker: WorkerProcess) -> None:
    run = run_activity("add", 1)
    assert isinstance(await worker.outcome_of(run), AttemptCompleted)
    await worker.send(CancelAttempt(key=run.key), CancelAttempt(key=ActivityKey("b" * 32, 1, 1)))
    assert isinstance(await worker.outcome_of(run_activity("add", 1, activity_id=2)), AttemptCompleted)


async def test_no_more_plain_functions_run_at_once_than_configured(tmp_path: Path) -> None:
    async with ready_worker(hello(concurrency=2)) as worker:
        paths = [tmp_path / str(index) for index in range(3)]
        runs = [run_activity("wait_for_file", str(path), activity_id=index) for index, path in enumerate(paths)]
        await worker.send(*runs)
        started = {(await worker.wait_for_log("waiting")).message.split()[1] for _ in range(2)}
        assert isinstance(await _answer_of(worker, run_activity("add", 1, activity_id=9)), AttemptCompleted)
        [last] = {str(path) for path in paths} - started
        assert not any(last in line.message for line in worker.logs)
        for path in paths:
            path.touch()
        assert {(await worker.next_answer()).key for _ in runs} == {run.key for run in runs}


async def test_bye_lets_running_attempts_finish_and_then_ends_the_process(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    run = run_activity("wait_for_file", str(tmp_path / "go"))
    await worker.send(run)
    await worker.wait_for_log("waiting")
    await worker.send(Bye())
    assert isinstance(await _answer_of(worker, run_activity("add", 1, activity_id=2)), AttemptCompleted)
    (tmp_path / "go").touch()
    outcome = await worker.next_answer()
    assert isinstance(outcome, AttemptCompleted)
    assert outcome.key == run.key
    assert await worker.next_answer() is None
    assert await worker.exit_code() == 0
