"""The ``durablefuture`` command as a user runs it, over a real server; the test plays the owner."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from durablefuture_trio.codec import decode_arguments, encode_arguments, encode_value, failure_of
from durablefuture_trio.engine.requests import CancelRequest, SignalRequest, StartRequest, UpdateRequest
from durablefuture_trio.errors import ApplicationError
from durablefuture_trio.history.events import (
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    ActivityStarted,
    CallerRecord,
    CancelRequested,
    ChildInitiated,
    ChildStarted,
    ContinuedAsNew,
    SignalReceived,
    UpdateAccepted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowTerminated,
)
from durablefuture_trio.history.options import ActivityOptionsRecord
from durablefuture_trio.nats_bridge import ConnectOptions, open_broker
from durablefuture_trio.protocol.namespace import establish_namespace
from durablefuture_trio.protocol.projection import ProjectionRecord, Status
from tests._support.nats_server import NatsServer
from tests._support.scripted_owner import ScriptedOwner, completed, scripted_owner, started

COMMAND = [sys.executable, "-c", "from durablefuture_trio.cli import main; raise SystemExit(main())"]
PATIENCE_S = 60


@dataclass
class Shop:
    """A namespace on a server of its own."""

    url: str
    owner: ScriptedOwner

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``durablefuture`` to its end."""
        return await durablefuture(arguments[0], "--url", self.url, "--namespace", "shop", *arguments[1:])


async def durablefuture(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            [*COMMAND, *arguments], capture_stdout=True, capture_stderr=True, check=False, cwd=cwd
        )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
async def shop(nats: NatsServer) -> AsyncIterator[Shop]:
    async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
        subjects = await establish_namespace(broker, "shop", shards=1)
        async with scripted_owner(broker, subjects) as owner:
            yield Shop(nats.url, owner)


async def play_order(shop: Shop, workflow_id: str = "order-1") -> None:
    """A run with a crash in it, as it stands in the history."""
    request = StartRequest(workflow_id=workflow_id, workflow="order", arguments=encode_arguments(("Bob", 2)))
    options = ActivityOptionsRecord()
    crash = failure_of(RuntimeError("exit code -9"))
    await shop.owner.commit(
        workflow_id,
        "run-1",
        started(request, "run-1", "mine"),
        ActivityScheduled(
            id=2, at=100.0, activity_id=1, name="charge", arguments=encode_arguments(("Bob",)), options=options
        ),
    )
    await shop.owner.commit(
        workflow_id,
        "run-1",
        ActivityStarted(id=3, at=101.5, activity_id=1, attempt=1, worker="m0/default-0", started_at=100.1),
        ActivityFailed(id=4, at=101.5, activity_id=1, attempt=1, reason="crashed", failure=crash, retry_at=102.5),
    )


async def finish_order(shop: Shop, workflow_id: str = "order-1") -> None:
    await shop.owner.commit(
        workflow_id,
        "run-1",
        ActivityScheduled(id=5, at=102.5, activity_id=1, attempt=2),
        ActivityStarted(id=6, at=103.0, activity_id=1, attempt=2, worker="m0/default-1", started_at=102.6),
        ActivityCompleted(id=7, at=103.0, activity_id=1, attempt=2, result=encode_value({"charge_id": "c-1"})),
        WorkflowCompleted(id=8, at=103.0, result=encode_value({"charge_id": "c-1"})),
    )


async def test_start_prints_the_id_and_sends_arguments_as_json_or_text(shop: Shop) -> None:
    async with trio.open_nursery() as nursery:
        results: list[subprocess.CompletedProcess[str]] = []

        async def start() -> None:
            results.append(
                await shop.command("start", "order", "Bob", "1000.0", "true", '"7"', "--id", "order-1", "--memo", "vip")
            )

        nursery.start_soon(start)
        with trio.fail_after(PATIENCE_S):
            message, request = await shop.owner.start_request()
        assert request.workflow == "order"
        assert decode_arguments(request.arguments, (Any,) * 4) == ("Bob", 1000.0, True, "7")
        assert request.memo == encode_value("vip")
        await shop.owner.begin(message, "run-1")
    done = results[0]
    assert (done.returncode, done.stdout) == (0, "order-1\n")
    assert "run-1" in done.stderr


async def run_and_close(shop: Shop, closing: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    results: list[subprocess.CompletedProcess[str]] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            results.append(await shop.command("run", "order", *arguments))

        nursery.start_soon(run)
        with trio.fail_after(PATIENCE_S):
            message, request = await shop.owner.start_request()
            await shop.owner.begin(message, "run-1")
            await shop.owner.close(request.workflow_id, "run-1", closing)
    return results[0]


async def test_run_prints_the_result_on_stdout_and_talks_on_stderr(shop: Shop) -> None:
    done = await run_and_close(shop, completed({"tracking": "é1"}), "Bob")
    assert (done.returncode, done.stdout) == (0, '{"tracking": "é1"}\n')
    assert "running workflow" in done.stderr


async def test_a_failed_workflow_is_exit_code_1_with_its_failure(shop: Shop) -> None:
    failure = failure_of(ApplicationError("card declined", type="Declined"))
    done = await run_and_close(shop, WorkflowFailed(id=2, at=101.0, failure=failure), "--json", "--id", "order-1")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "workflow_id": "order-1",
        "run_id": "run-1",
        "status": "failed",
        "error": {"type": "Declined", "message": "card declined"},
    }
    assert "workflow 'order-1' failed: Declined: card declined" in done.stderr


async def test_result_of_a_terminated_run_says_so(shop: Shop) -> None:
    await play_order(shop)
    await shop.owner.close("order-1", "run-1", WorkflowTerminated(id=5, at=102.0, reason="wrong order"))
    done = await shop.command("result", "order-1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "terminated: wrong order" in done.stderr


async def test_history_reads_as_what_happened(shop: Shop) -> None:
    await play_order(shop)
    await finish_order(shop)
    done = await shop.command("history", "order-1")
    assert done.returncode == 0
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert rows == [
        "SEQ TIME (UTC) EVENT DETAIL",
        '1 1970-01-01 00:01:40.000 WorkflowStarted order("Bob", 2)',
        "2 1970-01-01 00:01:40.000 ActivityScheduled #1 charge attempt 1 local",
        "3 1970-01-01 00:01:41.500 ActivityStarted #1 attempt 1 on m0/default-0",
        "4 1970-01-01 00:01:41.500 ActivityFailed #1 charge attempt 1 crashed: RuntimeError: exit code -9; "
        "retry in 1.0 s",
        "5 1970-01-01 00:01:42.500 ActivityScheduled #1 charge attempt 2 local",
        "6 1970-01-01 00:01:43.000 ActivityStarted #1 attempt 2 on m0/default-1",
        '7 1970-01-01 00:01:43.000 ActivityCompleted #1 charge returned {"charge_id": "c-1"}',
        '8 1970-01-01 00:01:43.000 WorkflowCompleted returned {"charge_id": "c-1"}',
    ]


async def test_history_as_json_holds_the_decoded_values(shop: Shop) -> None:
    await play_order(shop)
    done = await shop.command("history", "order-1", "--json")
    events = json.loads(done.stdout)
    assert [(event["seq"], event["event"]) for event in events] == [
        (1, "WorkflowStarted"),
        (2, "ActivityScheduled"),
        (3, "ActivityStarted"),
        (4, "ActivityFailed"),
    ]
    assert events[0]["arguments"] == ["Bob", 2]
    assert events[3]["failure"]["message"] == "exit code -9"
    assert events[3]["retry_at"] == 102.5


async def test_show_tells_of_a_pending_retry_and_its_last_failure(shop: Shop) -> None:
    await play_order(shop)
    done = await shop.command("show", "order-1")
    assert done.returncode == 0
    assert "status    running" in done.stdout
    assert (
        "#1 charge attempt 1 backoff, next attempt at 1970-01-01 00:01:42.500, "
        "last failure crashed: RuntimeError: exit code -9" in done.stdout
    )


async def test_show_of_a_closed_run_has_its_result(shop: Shop) -> None:
    await play_order(shop)
    await finish_order(shop)
    data = json.loads((await shop.command("show", "order-1", "--json")).stdout)
    assert (data["status"], data["history_length"], data["result"]) == ("completed", 8, {"charge_id": "c-1"})
    assert data["pending_activities"] == []


async def project(shop: Shop, workflow_id: str, status: Status, started_at: float, blocked: str = "") -> None:
    await shop.owner.project(
        ProjectionRecord(
            workflow_id=workflow_id,
            run_id=f"run of {workflow_id}",
            workflow="order",
            n=1,
            status=status,
            started_at=started_at,
            blocked=blocked,
        )
    )


async def test_list_filters_limits_and_shows_the_latest_last(shop: Shop) -> None:
    await project(shop, "c", "running", 300.0)
    await project(shop, "a", "running", 100.0)
    await project(shop, "b", "blocked", 200.0, "no workflow 'order'\nis registered")
    done = await shop.command("list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ID", "a", "b", "c"]
    assert "no workflow 'order' is registered" in done.stdout
    filtered = json.loads((await shop.command("list", "--json", "--status", "running", "--limit", "1")).stdout)
    assert [(item["workflow_id"], item["status"]) for item in filtered] == [("c", "running")]
    assert json.loads((await shop.command("list", "--json", "--workflow", "other")).stdout) == []


async def test_terminate_waits_for_the_decision(shop: Shop) -> None:
    await play_order(shop)
    results: list[subprocess.CompletedProcess[str]] = []
    async with trio.open_nursery() as nursery:

        async def terminate() -> None:
            results.append(await shop.command("terminate", "order-1", "--reason", "wrong order"))

        nursery.start_soon(terminate)
        with trio.fail_after(PATIENCE_S):
            message, request = await shop.owner.terminate_request()
        assert (request.workflow_id, request.reason) == ("order-1", "wrong order")
        shop.owner.answer(message, "applied", "run-1")
    assert (results[0].returncode, results[0].stdout) == (0, "")


@asynccontextmanager
async def running(shop: Shop, *arguments: str) -> AsyncIterator[list[subprocess.CompletedProcess[str]]]:
    """The command in the background; ended when the block is left."""
    results: list[subprocess.CompletedProcess[str]] = []

    async def run() -> None:
        results.append(await shop.command(*arguments))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield results


async def test_start_takes_a_delay_and_a_first_signal(shop: Shop) -> None:
    options = ("--delay", "60", "--signal", "approve", "--signal-arg", "Ann", "--signal-arg", "2")
    async with running(shop, "start", "order", "Bob", *options) as results:
        message, request = await shop.owner.start_request()
        assert request.not_before is not None
        assert request.signal is not None
        assert request.signal.name == "approve"
        assert decode_arguments(request.signal.arguments, (Any, Any)) == ("Ann", 2)
        await shop.owner.begin(message, "run-1")
    assert results[0].returncode == 0


async def test_signal_waits_until_it_is_recorded_and_prints_nothing(shop: Shop) -> None:
    await play_order(shop)
    async with running(shop, "signal", "order-1", "approve", "Ann", "--request-id", "mine", "{}") as results:
        message, request = await shop.owner.request_of(SignalRequest)
        assert (request.name, message.request_id) == ("approve", "mine")
        assert decode_arguments(request.arguments, (Any, Any)) == ("Ann", {})
        shop.owner.answer(message, "applied", "run-1")
    assert (results[0].returncode, results[0].stdout) == (0, "")
    assert "signal approve is recorded" in results[0].stderr


async def test_a_signal_that_was_not_delivered_is_exit_code_1(shop: Shop) -> None:
    await play_order(shop)
    async with running(shop, "signal", "order-1", "approve") as results:
        message, _ = await shop.owner.request_of(SignalRequest)
        shop.owner.answer(message, "closed", "run-1", "run run-1 is closed")
    assert (results[0].returncode, results[0].stdout) == (1, "")
    assert "signal 'approve' was not delivered to workflow 'order-1': run run-1 is closed" in results[0].stderr


async def test_cancel_sends_its_reason(shop: Shop) -> None:
    await play_order(shop)
    async with running(shop, "cancel", "order-1", "--reason", "enough", "--json") as results:
        message, request = await shop.owner.request_of(CancelRequest)
        assert request.reason == "enough"
        shop.owner.answer(message, "applied", "run-1")
    assert json.loads(results[0].stdout) == {"workflow_id": "order-1", "cancel_requested": True}


async def test_update_prints_what_it_came_to(shop: Shop) -> None:
    await play_order(shop)
    async with running(shop, "update", "order-1", "set-quantity", "3", "--update-id", "u-1") as results:
        message, request = await shop.owner.request_of(UpdateRequest)
        assert (request.name, request.update_id) == ("set-quantity", "u-1")
        shop.owner.answer(message, "applied", "run-1", result=encode_value({"total": 30.0}))
    assert (results[0].returncode, results[0].stdout) == (0, '{"total": 30.0}\n')


@pytest.mark.parametrize("answer", ["rejected", "failed"])
async def test_an_update_that_came_to_nothing_is_exit_code_1_with_its_reason(shop: Shop, answer: str) -> None:
    await play_order(shop)
    async with running(
        shop, "update", "order-1", "set-quantity", "--json", "--update-id", "u-1", "--", "-3"
    ) as results:
        message, _ = await shop.owner.request_of(UpdateRequest)
        shop.owner.answer(message, answer, "run-1", failure=failure_of(ValueError("must be positive")))
    assert results[0].returncode == 1
    assert json.loads(results[0].stdout) == {
        "workflow_id": "order-1",
        "update": "set-quantity",
        "update_id": "u-1",
        "status": answer,
        "error": {"type": "ValueError", "message": "must be positive"},
    }
    assert f"update 'set-quantity' of workflow 'order-1' {'was ' if answer == 'rejected' else ''}{answer}: " in (
        results[0].stderr
    )


async def test_query_prints_the_answer(shop: Shop) -> None:
    async with shop.owner.listening() as questions, running(shop, "query", "order-1", "item", "3") as results:
        question = await questions.next()
        assert (question.workflow_id, question.name, question.run_id) == ("order-1", "item", "")
        assert decode_arguments(question.arguments, (Any,)) == (3,)
        shop.owner.answer(question, "answered", "run-1", result=encode_value(["tea", 3]))
    assert (results[0].returncode, results[0].stdout) == (0, '["tea", 3]\n')


async def test_a_failed_query_is_exit_code_1(shop: Shop) -> None:
    async with shop.owner.listening() as questions, running(shop, "query", "order-1", "item") as results:
        failure = failure_of(LookupError("no query 'item'"))
        shop.owner.answer(await questions.next(), "failed", "run-1", failure=failure)
    assert (results[0].returncode, results[0].stdout) == (1, "")
    assert "query 'item' of workflow 'order-1' failed: LookupError: no query 'item'" in results[0].stderr


async def test_result_of_a_cancelled_run_says_so(shop: Shop) -> None:
    await play_order(shop)
    await shop.owner.close("order-1", "run-1", WorkflowCancelled(id=5, at=102.0, reason="enough"))
    done = await shop.command("result", "order-1", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "cancelled"
    assert "cancelled: enough" in done.stderr


async def test_history_and_show_of_a_run_that_talks_to_others(shop: Shop) -> None:
    request = StartRequest(workflow_id="order-1", workflow="order", arguments=encode_arguments(("Bob",)))
    begin = msgspec.structs.replace(
        started(request, "run-2", ""),
        parent=CallerRecord("shop-1", "run-7", 4),
        continued_from="run-1",
        attempt=2,
        not_before=160.0,
    )
    await shop.owner.commit(
        "order-1",
        "run-2",
        begin,
        ChildInitiated(
            id=2, at=100.0, call=1, workflow_id="pay-1", workflow="pay", arguments=encode_arguments((30.0,))
        ),
        ChildStarted(id=3, at=100.0, call=1, run_id="run-p1"),
        SignalReceived(id=4, at=100.0, name="approve", arguments=encode_arguments(("Ann",))),
        UpdateAccepted(id=5, at=100.0, update_id="u-1", name="set-quantity", arguments=encode_arguments((3,))),
        CancelRequested(id=6, at=100.0, reason="enough"),
    )
    done = await shop.command("history", "order-1")
    rows = [" ".join(line.split()[3:]) for line in done.stdout.splitlines()[1:]]
    assert rows == [
        'WorkflowStarted order("Bob") attempt 2, continues run run-1, begins at 1970-01-01 00:02:40.000, '
        "child of shop-1",
        "ChildInitiated #1 pay-1: pay(30.0)",
        "ChildStarted #1 pay run run-p1",
        'SignalReceived approve("Ann")',
        "UpdateAccepted u-1 set-quantity(3)",
        "CancelRequested enough",
    ]
    shown = {" ".join(line.split()) for line in (await shop.command("show", "order-1")).stdout.splitlines()}
    assert {
        "status running",
        "begins 1970-01-01 00:02:40.000",
        "attempt 2",
        "cancelled enough",
        "parent shop-1 run run-7",
        "continues run run-1",
        "child #1 pay pay-1 run run-p1 running",
        "update set-quantity u-1 accepted 1970-01-01 00:01:40.000",
    } <= shown


async def test_show_of_a_run_that_goes_on_in_another_does_not_wait_for_that_one(shop: Shop) -> None:
    await play_order(shop)
    request = StartRequest(workflow_id="order-1", workflow="order", arguments=encode_arguments(("Bob",)))
    end = ContinuedAsNew(id=5, at=102.0, next_run_id="run-2", workflow="order", arguments=request.arguments)
    await shop.owner.commit("order-1", "run-2", end, started(request, "run-2", ""))
    done = await shop.command("show", "order-1", "--run-id", "run-1")
    shown = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert {"status continued", "goes on in run run-2"} <= shown


async def test_status_shows_shards_and_what_waits(shop: Shop) -> None:
    done = await shop.command("status")
    assert done.returncode == 0
    assert "namespace shop on nats-server 2." in done.stdout
    assert "supervisors: none" in done.stdout
    data = json.loads((await shop.command("status", "--json")).stdout)
    assert data["shards"] == [{"shard": 0, "owner": "", "epoch": 0, "renewed_at": None, "inbox": 0}]


async def test_an_unknown_workflow_is_exit_code_1(shop: Shop) -> None:
    done = await shop.command("show", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert "workflow 'nobody' is not known" in done.stderr


async def test_interrupting_a_wait_is_quiet_and_leaves_the_workflow_alone(shop: Shop) -> None:
    await play_order(shop)
    process = await trio.lowlevel.open_process(
        [*COMMAND, "run", "order", "--url", shop.url, "--namespace", "shop", "--id", "order-2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    with trio.fail_after(PATIENCE_S):
        message, _ = await shop.owner.start_request()
        await shop.owner.begin(message, "run-2")
        process.send_signal(signal.SIGINT)
        errors = b"".join([chunk async for chunk in process.stderr])
        assert await process.wait() == 130
    assert b"Traceback" not in errors
    assert b"interrupted; what was started goes on" in errors


async def test_a_reader_that_has_had_enough_ends_the_output_quietly(shop: Shop) -> None:
    for number in range(50):
        await project(shop, f"{number}-{'x' * 500}", "running", float(number))
    line = " ".join(
        f"'{part}'" for part in [*COMMAND, "list", "--url", shop.url, "--namespace", "shop", "--limit", "0"]
    )
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            ["/bin/sh", "-c", f"{line} | true"], capture_stdout=True, capture_stderr=True, check=False
        )
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "COMMAND"),
        (["fly"], 2, "invalid choice"),
        (["start"], 2, "WORKFLOW"),
        (["start", "", "--url", "nats://127.0.0.1:9"], 2, "name of the workflow is empty"),
        (["result", "a\nb", "--url", "nats://127.0.0.1:9"], 2, "control characters"),
        (["start", "order", "--execution-timeout", "-1", "--url", "nats://127.0.0.1:9"], 2, "above 0 seconds"),
        (["start", "order", "--delay", "-1", "--url", "nats://127.0.0.1:9"], 2, "--delay must be 0 seconds or more"),
        (["start", "order", "--signal-arg", "1", "--url", "nats://127.0.0.1:9"], 2, "--signal-arg needs"),
        (["signal", "order-1"], 2, "NAME"),
        (["signal", "order-1", "", "--url", "nats://127.0.0.1:9"], 2, "name of the signal is empty"),
        (["cancel", "order-1", "now"], 2, "unrecognized arguments: now"),
        (["list", "--status", "gone"], 2, "invalid choice"),
        (["list", "--limit", "-1"], 2, "negative"),
        (["list", "--config", "a", "--url", "b"], 2, "not allowed with"),
        (["list", "--config", "nowhere.toml"], 78, "nowhere.toml: no such file"),
        (["list", "--namespace", "a b", "--url", "nats://127.0.0.1:9"], 78, "namespace 'a b'"),
        (["list"], 78, "nothing says where the server is"),
        (["list", "--config", "unreachable.toml"], 69, "127.0.0.1:9"),
    ],
)
async def test_what_cannot_be_done_has_its_exit_code_and_no_traceback(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "unreachable.toml").write_text('[nats]\nurl = "nats://127.0.0.1:9"\nconnect_timeout = 0.2\n')
    done = await durablefuture(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


async def test_common_options_may_stand_on_either_side_of_the_command(shop: Shop) -> None:
    before = await durablefuture("--json", "--url", shop.url, "--namespace", "shop", "list")
    after = await durablefuture("list", "--json", "--url", shop.url, "--namespace", "shop")
    assert (before.stdout, after.stdout) == ("[]\n", "[]\n")
