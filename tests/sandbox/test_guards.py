"""What workflow code may not do, and what it sees instead of the world."""

# Workflow code in here does on purpose what must not be done.
# ruff: noqa: ASYNC105, SIM115, PLW1510, PLW0108, DTZ007

from __future__ import annotations

import builtins
import importlib
import linecache
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trio

from durablefuture_trio.authoring._workflow import workflow
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.codec import decode_value
from durablefuture_trio.engine.commands import CompleteWorkflow
from durablefuture_trio.ports.frames import Activated, Blocked, Missing
from durablefuture_trio.sandbox import _guards
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.sandbox import START, Story

HERE = Path(__file__)


def answer_of(function: Callable[[], Any], *, run_id: str = "run-1") -> Activated | Blocked:
    """Run a function as the body of a workflow."""

    @workflow
    async def main() -> Any:
        value = function()
        return await value if hasattr(value, "__await__") else value

    host = ReplayHost(Registry.of([main]).workflows)
    story = Story(host, "main", run_id=run_id)
    answer = story.ask(story.started())
    host.close()
    assert not isinstance(answer, Missing)
    return answer


def value_of(function: Callable[[], Any], *, run_id: str = "run-1") -> Any:
    answer = answer_of(function, run_id=run_id)
    assert isinstance(answer, Activated), answer
    (command,) = answer.commands
    assert isinstance(command, CompleteWorkflow), command
    return decode_value(command.result, Any)


async def in_a_trio_thread() -> None:
    await trio.to_thread.run_sync(time.time)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "open": (lambda: open("/etc/hostname"), "read and write files in an activity"),
    "write a source file": (lambda: open("/tmp/never.py", "w"), "read and write files in an activity"),
    "Path.write_text": (lambda: Path("/tmp/never").write_text("x"), "read and write files in an activity"),
    "os.open": (lambda: os.open("/tmp/never.py", os.O_CREAT | os.O_RDWR), "read and write files in an activity"),
    "os.listdir": (lambda: os.listdir("."), "read and write files in an activity"),
    "os.remove": (lambda: os.remove("/tmp/never"), "read and write files in an activity"),
    "tempfile": (tempfile.mkdtemp, "read and write files in an activity"),
    "trio.open_file": (lambda: trio.open_file("/etc/hostname"), "read and write files in an activity"),
    "trio.Path": (lambda: trio.Path("/etc/hostname").read_text(), "worker thread"),
    "socket": (socket.socket, "talk to the network in an activity"),
    "gethostname": (socket.gethostname, "talk to the network in an activity"),
    "trio.open_tcp_stream": (lambda: trio.open_tcp_stream("localhost", 80), "talk to the network in an activity"),
    "trio.socket": (lambda: trio.socket.socket(), "talk to the network in an activity"),
    "wait_readable": (lambda: trio.lowlevel.wait_readable(0), "do it in an activity"),
    "subprocess": (lambda: subprocess.run(["true"]), "start and signal processes in an activity"),
    "os.system": (lambda: os.system("true"), "start and signal processes in an activity"),
    "os.fork": (os.fork, "start and signal processes in an activity"),
    "trio.run_process": (lambda: trio.run_process(["true"]), "start and signal processes in an activity"),
    "os.environ": (lambda: os.environ.__setitem__("A", "B"), "pass values as arguments"),
    "a thread": (lambda: threading.Thread(target=print).start(), "nursery.start_soon"),
    "trio.to_thread": (in_a_trio_thread, "nursery.start_soon"),
    "time.sleep": (lambda: time.sleep(0), "await trio.sleep(...)"),
    "trio.run": (lambda: trio.run(trio.sleep, 0), "`await` the function"),
    "input": (lambda: builtins.input(), "ask for input in an activity"),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_the_world_is_refused_and_the_message_names_what_to_use_instead(what: str) -> None:
    function, instead = REFUSED[what]
    answer = answer_of(function)
    assert isinstance(answer, Blocked)
    assert answer.kind == "sandbox_violation"
    assert instead in answer.message
    assert not Path("/tmp/never").exists()
    assert not Path("/tmp/never.py").exists()


def test_a_refusal_names_the_line_of_workflow_code() -> None:
    answer = answer_of(lambda: open("/etc/hostname"))
    assert isinstance(answer, Blocked)
    assert f"open('/etc/hostname') at {__file__}:" in answer.message
    assert answer.source.startswith(f"{__file__}:")


def test_a_refusal_that_user_code_swallows_blocks_the_run_all_the_same() -> None:
    def careless() -> str:
        try:
            return Path("/etc/hostname").read_text()
        except Exception:
            return "unknown"

    answer = answer_of(careless)
    assert isinstance(answer, Blocked)
    assert answer.kind == "sandbox_violation"


def test_outside_of_workflows_nothing_is_refused(tmp_path: Path) -> None:
    _guards.install_guards()
    (tmp_path / "file").write_text("x")
    time.sleep(0)
    thread = threading.Thread(target=time.time)
    thread.start()
    thread.join()
    assert trio.run(trio.to_thread.run_sync, os.getpid) == os.getpid()
    assert os.urandom(8) != os.urandom(8)
    assert time.monotonic() < START
    assert random.Random().random() != random.Random().random()


def test_another_thread_is_left_alone_while_a_workflow_runs() -> None:
    inside, done = threading.Event(), threading.Event()
    problems: list[BaseException] = []

    def other() -> None:
        inside.wait(10)
        try:
            Path(__file__).stat()
            with open("/etc/hostname"):
                pass
            assert time.monotonic() < START
        except BaseException as error:
            problems.append(error)
        done.set()

    def body() -> bool:
        inside.set()
        return done.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert value_of(body) is True
    finally:
        thread.join()
    assert problems == []


# --- what ordinary code needs -----------------------------------------------------------------------------------------


def test_time_zones_parsing_of_times_and_tracebacks_work() -> None:
    def body() -> list[str]:
        ZoneInfo.clear_cache()
        linecache.clearcache()
        moment = datetime(2027, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
        try:
            raise ValueError("shown with its source line")
        except ValueError:
            text = traceback.format_exc()
        return [moment.isoformat(), str(datetime.strptime("2027-01-02 UTC", "%Y-%m-%d %Z").year), text]

    berlin, year, text = value_of(body)
    assert (berlin, year) == ("2027-07-01T12:00:00+02:00", "2027")
    assert 'raise ValueError("shown with its source line")' in text


def test_a_module_that_is_imported_late_may_read_files_and_does_not_use_up_the_runs_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_module.py").write_text(
        "import random, uuid\n"
        f"with open({str(tmp_path / 'data.txt')!r}) as file: TEXT = file.read()\n"
        "DRAWN = random.random(), random.Random().random(), uuid.uuid4()\n"
    )
    (tmp_path / "data.txt").write_text("data")
    monkeypatch.syspath_prepend(tmp_path)

    def body() -> list[Any]:
        module = importlib.import_module("late_module")
        import late_module

        assert late_module is module
        return [module.TEXT, random.random(), str(uuid.uuid4())]

    try:
        first = value_of(body)
        again = value_of(body)
    finally:
        del sys.modules["late_module"]
    assert first == again
    assert first[0] == "data"


# --- what it sees -----------------------------------------------------------------------------------------------------


def test_every_clock_shows_workflow_time() -> None:
    def body() -> list[Any]:
        return [
            time.time(), time.time_ns() / 1e9, time.monotonic(), time.perf_counter(), time.monotonic_ns() / 1e9,
            time.process_time(), time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_REALTIME),
            datetime.now(UTC).timestamp(), datetime.fromtimestamp(time.time(), UTC).timestamp(), trio.current_time(),
            time.mktime(time.localtime()), float(time.strftime("%s")),
        ]  # fmt: skip

    assert value_of(body) == [START] * 13
    assert time.time() < START


@pytest.mark.parametrize(
    "draw",
    [
        random.random, lambda: random.randint(0, 10**9), lambda: random.sample(range(100), 5),
        lambda: os.urandom(8).hex(), lambda: str(uuid.uuid4()), lambda: str(uuid.uuid1()), lambda: secrets.token_hex(8),
        lambda: secrets.randbelow(10**9), lambda: random.Random().random(), lambda: random.SystemRandom().random(),
        lambda: random.gauss(0, 1), lambda: os.getrandom(8).hex(),
    ],
    ids=[
        "random", "randint", "sample", "urandom", "uuid4", "uuid1", "token_hex", "randbelow", "Random", "SystemRandom",
        "gauss", "getrandom",
    ],
)  # fmt: skip
def test_chance_is_a_function_of_the_run(draw: Callable[[], Any]) -> None:
    # Looked up by name, as code does that was imported after the guards were put in place.
    def body() -> list[Any]:
        name = getattr(draw, "__name__", "")
        function = getattr(random, name) if name == "random" else draw
        return [function(), function()]

    first = value_of(body)
    assert first[0] != first[1]
    assert value_of(body) == first
    assert value_of(body, run_id="run-2") != first
