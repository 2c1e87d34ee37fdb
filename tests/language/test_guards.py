"""What cannot work in a workflow is refused with the name of what to use instead; what can work, works."""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import trio

from durablefuture_trio import activity, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import RequestFailedError
from tests._support.language import Play


@activity
async def double(number: int) -> int:
    return 2 * number


async def sleep_in_a_thread() -> None:
    await trio.to_thread.run_sync(time.sleep, 0)


async def run_a_process() -> None:
    await trio.run_process(["true"])


async def resolve() -> None:
    await trio.open_tcp_stream("127.0.0.1", 1)


async def open_signals() -> None:
    with trio.open_signal_receiver(2):
        await trio.lowlevel.checkpoint()


async def wait_for_a_socket() -> None:
    await trio.lowlevel.wait_readable(0)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "open": (lambda: Path("/etc/hostname").read_text(), "activity"),
    "write": (lambda: Path("never-written").write_text("w"), "activity"),
    "socket": (lambda: socket.socket().connect(("127.0.0.1", 9)), "activity"),
    "subprocess": (lambda: subprocess.run(["true"], check=False), "activity"),
    "fork": (os.fork, "activity"),
    "environment": (lambda: os.environ.__setitem__("A", "b"), "argument"),
    "thread": (lambda: threading.Thread(target=print).start(), "nursery"),
    "time.sleep": (lambda: time.sleep(1), "trio.sleep"),
    "trio.run": (lambda: trio.run(trio.sleep, 0), "await"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_touches_the_world_is_refused_by_name_and_blocks_the_run(play: Play, what: str) -> None:
    do, instead = REFUSED[what]

    @workflow
    async def flow() -> str:
        await double(1)
        try:
            do()
        except Exception:
            return "swallowed"  # in vain: the run remembers
        return "done"

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await trio.sleep(5)
        with pytest.raises(RequestFailedError) as caught:
            await handle.query("anything")
        await handle.terminate("it can never go on")
        return str(caught.value)

    words = play(scene, flow, double, times=1).result
    assert instead in words.lower()
    assert "test_guards.py" in words


@pytest.mark.parametrize("function", [sleep_in_a_thread, run_a_process, resolve, open_signals, wait_for_a_socket])
def test_the_parts_of_trio_that_reach_outside_are_refused(play: Play, function: Callable[[], object]) -> None:
    @workflow
    async def flow() -> str:
        await double(1)
        await function()
        return "done"

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await trio.sleep(5)
        with pytest.raises(RequestFailedError) as caught:
            await handle.query("anything")
        await handle.terminate("it can never go on")
        return str(caught.value)

    assert "activity" in play(scene, flow, double, times=1).result


def test_randomness_and_time_are_the_same_after_every_replay(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        def draw() -> list[object]:
            return [
                random.random(),
                random.choice(range(1000)),
                secrets.token_hex(8),
                os.urandom(8).hex(),
                str(uuid.uuid4()),
                str(workflow.uuid4()),
                workflow.random().random(),
                time.time(),
                time.monotonic(),
                time.perf_counter(),
                datetime.now(UTC).isoformat(),
                date.today().isoformat(),  # noqa: DTZ011 - what is tested
            ]

        first = draw()
        await double(hash(str(first)) % 2**40)
        await trio.sleep(3)
        second = draw()
        await double(hash(str(second)) % 2**40)
        return first != second

    assert play.run(flow, double).result is True


def test_two_runs_draw_different_numbers(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        return [str(random.random()), secrets.token_hex(8), str(workflow.uuid4())]

    async def scene(client: Client) -> int:
        drawn = [await client.run(flow) for _ in range(5)]
        return min(len({row[place] for row in drawn}) for place in range(3))

    assert play(scene, flow).result == 5


def test_what_only_reads_the_installation_is_allowed(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        import decimal
        import json

        moment = datetime.strptime("2024-02-29 12:00", "%Y-%m-%d %H:%M").replace(tzinfo=ZoneInfo("Europe/Berlin"))
        return [moment.isoformat(), json.dumps({"a": str(decimal.Decimal("1.10"))}), str(sys.maxsize > 0)]

    assert play.run(flow).result == ["2024-02-29T12:00:00+01:00", '{"a": "1.10"}', "True"]


def test_sets_of_strings_may_be_sorted_and_are_the_same_in_every_process(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        names = {f"name {number}" for number in range(20)}
        return [await double(int(name.split()[1])) for name in sorted(names)]

    assert sum(play.run(flow, double, times=2).result) == 2 * sum(range(20))
