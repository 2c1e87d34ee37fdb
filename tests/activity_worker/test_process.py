from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from durablefuture_trio import activity
from durablefuture_trio.authoring.registry import Registry, pickle_definitions
from durablefuture_trio.codec.payload import MAX_PAYLOAD_BYTES
from durablefuture_trio.ports.frame_codec import encode_frames
from durablefuture_trio.ports.frames import FRAME_VERSION, AttemptCompleted, Bye, Ready, Refused
from tests._support.worker_process import (
    ACTIVITIES,
    DEADLINE_S,
    WorkerProcess,
    hello,
    ready_worker,
    run_activity,
    spawn_worker,
)


async def test_the_process_says_what_it_has_registered() -> None:
    async with spawn_worker() as worker:
        await worker.send(hello())
        ready = await worker.next_answer()
        assert isinstance(ready, Ready)
        assert (ready.version, ready.pid) == (FRAME_VERSION, worker.process.pid)
        assert {"echo", "add", "wait"} <= set(ready.activities)
        assert ready.workflows == ("some_workflow",)
        assert ready.code_hash == Registry.load([ACTIVITIES]).code_hash


async def test_the_greeting_may_come_in_pieces_and_with_work_behind_it() -> None:
    async with spawn_worker() as worker:
        data = encode_frames([hello(), run_activity("add", 1)])
        for start in range(0, len(data), 100):
            await worker.send_bytes(data[start : start + 100])
            await trio.lowlevel.checkpoint()
        assert isinstance(await worker.next_answer(), Ready)
        assert isinstance(await worker.next_answer(), AttemptCompleted)


async def test_modules_that_cannot_be_used_are_refused_with_all_problems() -> None:
    async with spawn_worker() as worker:
        await worker.send(hello(["no_such_module", "no_such_other"]))
        refused = await worker.next_answer()
        assert isinstance(refused, Refused)
        assert len(refused.problems) == 2
        assert "module no_such_module is not found" in refused.problems[0]
        assert await worker.exit_code() == 78


async def test_another_version_of_the_frames_is_refused() -> None:
    async with spawn_worker() as worker:
        await worker.send(msgspec.structs.replace(hello(), version=FRAME_VERSION + 1))
        refused = await worker.next_answer()
        assert isinstance(refused, Refused)
        assert f"frame version {FRAME_VERSION + 1}" in refused.problems[0]
        assert await worker.exit_code() == 78


async def test_anything_but_a_greeting_first_is_refused() -> None:
    async with spawn_worker() as worker:
        await worker.send(Bye())
        assert await worker.next_answer() is None
        assert await worker.exit_code() == 2
        assert worker.process.stderr is not None
        assert b"the first frame was Bye, not Hello" in worker.process.stderr.read()


async def test_started_by_hand_it_says_what_to_run_instead() -> None:
    async with spawn_worker(["--help"]) as worker:
        assert await worker.exit_code() == 2
        assert worker.process.stderr is not None
        assert b"run durablefuture-supervisor instead" in worker.process.stderr.read()


async def test_definitions_sent_along_are_run() -> None:
    offset = 5

    @activity
    async def local(number: int) -> int:
        return number + offset

    async with ready_worker(hello([], pickled=pickle_definitions([local]))) as worker:
        outcome = await worker.outcome_of(run_activity("local", 1))
        assert isinstance(outcome, AttemptCompleted)
        assert outcome.result.data == b"6"


async def test_prints_go_to_standard_error_and_logs_go_up_with_the_run(worker: WorkerProcess) -> None:
    run = run_activity("shout")
    assert isinstance(await worker.outcome_of(run), AttemptCompleted)
    by_logger = {line.logger: line for line in worker.logs}
    attempt = by_logger["durablefuture_trio.activity"]
    assert (attempt.level, attempt.message, attempt.run_id) == ("WARNING", "an attempt", run.key.run_id)
    order = by_logger["shop.orders"]
    assert order.level == "ERROR"
    assert order.message.startswith("a line \\udcff\n")
    assert "ValueError: inside" in order.message
    assert len(worker.logs) == 2
    await worker.send(Bye())
    assert await worker.exit_code() == 0
    assert worker.process.stdout is not None
    assert worker.process.stderr is not None
    assert worker.process.stdout.read() == b""
    printed = worker.process.stderr.read()
    assert b"to the standard output" in printed
    assert b"to the standard error" in printed


async def test_the_log_level_is_a_setting() -> None:
    async with ready_worker(hello(log_level="error")) as worker:
        assert isinstance(await worker.outcome_of(run_activity("shout")), AttemptCompleted)
        assert {line.logger for line in worker.logs} == {"shop.orders"}


async def test_results_wait_for_a_supervisor_that_does_not_read_and_none_is_lost(worker: WorkerProcess) -> None:
    size = MAX_PAYLOAD_BYTES // 2
    runs = [run_activity("large", size, activity_id=index) for index in range(20)]
    await worker.send(*runs)
    # More than a socket takes: the child has to wait for this side, and goes on with other work meanwhile.
    await worker.send(run_activity("wait", "x", activity_id=100))
    results = set()
    while len(results) < len(runs):
        outcome = await worker.next_answer()
        assert isinstance(outcome, AttemptCompleted)
        assert outcome.result.size_bytes == size + 2
        results.add(outcome.key)
    assert results == {run.key for run in runs}


async def test_the_process_ends_when_the_supervisor_closes_the_socket(worker: WorkerProcess) -> None:
    await worker.send(run_activity("wait", "x"))
    await worker.wait_for_log("waiting x")
    worker.sock.close()
    assert await worker.exit_code() == 0


async def test_a_blocked_thread_does_not_keep_a_process_whose_supervisor_is_gone(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    await worker.send(run_activity("wait_for_file", str(tmp_path / "never")))
    await worker.wait_for_log("waiting")
    worker.sock.close()
    assert await worker.exit_code() == 1


async def test_an_interrupt_from_the_terminal_is_the_supervisors_business(worker: WorkerProcess) -> None:
    os.kill(worker.process.pid, signal.SIGINT)
    assert isinstance(await worker.outcome_of(run_activity("add", 1)), AttemptCompleted)


async def test_memory_over_the_limit_is_a_failure_of_the_attempt_that_asked_for_it() -> None:
    async with ready_worker(hello(memory_limit_mb=512)) as worker:
        outcome = await worker.failure_of(run_activity("hog"))
        assert outcome.failure.type == "MemoryError"
        assert isinstance(await worker.outcome_of(run_activity("add", 1, activity_id=2)), AttemptCompleted)


PARENT = """
import socket, subprocess, sys, time
ours, theirs = socket.socketpair()
child = subprocess.Popen(
    [sys.executable, "-m", "durablefuture_trio.activity_worker", str(theirs.fileno())], pass_fds=(theirs.fileno(),)
)
# A second holder of this end keeps the socket open when this process dies.
keeper = subprocess.Popen(["sleep", "60"], pass_fds=(ours.fileno(),))
from tests._support.worker_process import hello, run_activity
from durablefuture_trio.ports.frame_codec import encode_frames
ours.sendall(encode_frames([hello(), run_activity("wait", "x")]))
while b"waiting x" not in ours.recv(1 << 16):
    pass
print(child.pid, keeper.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end of the socket says it")
async def test_the_process_dies_with_its_supervisor_even_if_the_socket_stays_open() -> None:
    process = _start_parent()
    try:
        assert process.stdout is not None
        line = await trio.to_thread.run_sync(process.stdout.readline)
        child, keeper = map(int, line.split())
        process.kill()
        try:
            with trio.fail_after(DEADLINE_S):
                await _gone(child)
        finally:
            os.kill(keeper, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _start_parent() -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=root)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def _gone(pid: int) -> None:
    while _alive(pid):  # noqa: ASYNC110 - it is no child of this process, so there is nothing to wait for
        await trio.sleep(0.005)


async def test_an_idle_process_uses_no_cpu(worker: WorkerProcess) -> None:
    assert isinstance(await worker.outcome_of(run_activity("add", 1)), AttemptCompleted)
    before = _cpu_ticks(worker.process.pid)
    # The time of the measurement, in which nothing is waited for; a busy loop would take 30 ticks.
    await trio.sleep(0.3)
    assert _cpu_ticks(worker.process.pid) - before <= 2


def _cpu_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
