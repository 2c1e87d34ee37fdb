"""An order whose activity process is killed with SIGKILL while it ships the package.

Starts a supervisor, starts the order, kills, waits for the receipt, and prints the history with the ``durablefuture``
command. Exits with 1 when anything is not as it says. Takes about ten seconds; everything is kept in a temporary
directory.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from shop import PACE, Receipt, order

from durablefuture_trio import connect

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "supervisor.toml"
SCRIPTS = Path(sysconfig.get_path("scripts"))
SHIPPING = re.compile(r"shipping .* in process (\d+)")
PATIENCE_S = 60.0

EXPECTED = [
    "WorkflowStarted",
    "ActivityScheduled", "ActivityStarted", "ActivityCompleted",  # charge_credit_card
    "ActivityScheduled", "ActivityStarted", "ActivityFailed",  # ship_package: its process is killed
    "ActivityScheduled", "ActivityStarted", "ActivityCompleted",  # ship_package again
    "WorkflowCompleted",
]  # fmt: skip


class DemoFailed(Exception):
    """What the demo shows isn't so."""


class SupervisorProcess:
    """A running ``durablefuture-supervisor``, and what it has logged so far."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._lines: list[str] = []
        self._more = trio.Event()
        self._ended = False

    async def read_log(self) -> None:
        """Copy the supervisor's log to stdout, line by line, until it ends."""
        assert self.process.stderr is not None
        rest = b""
        async for chunk in self.process.stderr:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._lines.append(line.decode(errors="replace"))
                print(f"    {self._lines[-1]}", flush=True)
            self._tell()
        self._ended = True
        self._tell()

    async def wait_for(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """The first line of the log that the pattern is found in."""
        while True:
            more = self._more
            for line in self._lines:
                if found := pattern.search(line):
                    return found
            if self._ended:
                raise DemoFailed(f"the supervisor ended before it logged {pattern.pattern!r}")
            await more.wait()

    def _tell(self) -> None:
        self._more.set()
        self._more = trio.Event()


@asynccontextmanager
async def supervisor() -> AsyncIterator[SupervisorProcess]:
    """A supervisor that is ready; stopped with SIGTERM at the end."""
    command = [str(SCRIPTS / "durablefuture-supervisor"), "--config", str(CONFIG)]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    try:
        async with trio.open_nursery() as nursery:
            running = SupervisorProcess(process)
            nursery.start_soon(running.read_log)
            await running.wait_for(re.compile("supervisor is ready"))
            yield running
            process.terminate()
            if await process.wait() != 0:
                raise DemoFailed(f"the supervisor ended with exit code {process.returncode}")
    finally:
        if process.returncode is None:
            process.kill()


async def play() -> None:
    """The whole demo."""
    say("starting a supervisor")
    async with supervisor() as running, connect(config=CONFIG) as client:
        say("starting the order of 2 widgets for Bob")
        handle = await client.start(order, "Bob", "widget-1000", 1000.0, 2, id="order-1")

        worker = int((await running.wait_for(SHIPPING))[1])
        await trio.sleep(1.0 * PACE)
        say(f"kill -9 {worker}: the process that is shipping")
        os.kill(worker, signal.SIGKILL)

        receipt: Receipt = await handle.result()
        say(f"the order is done all the same: {receipt}")

        say("durablefuture history order-1")
        await trio.run_process([str(SCRIPTS / "durablefuture"), "--config", str(CONFIG), "history", "order-1"])
        found = [event.type for event in await handle.history()]
        if found != EXPECTED:
            raise DemoFailed(f"the history should hold {EXPECTED}, and holds {found}")
        say("stopping the supervisor")
    say("done: the card was charged once, shipping was attempted twice, nothing was lost")


def say(text: str) -> None:
    """Tell the one who watches."""
    print(f"\n==> {text}", flush=True)


async def bounded() -> None:
    """`play`, which ends one way or the other."""
    with trio.fail_after(PATIENCE_S):
        await play()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="durablefuture-demo-") as data_dir:
        # For the supervisor, the client and the command alike; it goes before what supervisor.toml says.
        os.environ["DURABLEFUTURE_NATS_EMBEDDED_DATA_DIR"] = data_dir
        try:
            trio.run(bounded)
        except* (DemoFailed, trio.TooSlowError) as group:
            print(f"\ndemo failed: {group.exceptions}", file=sys.stderr)
            return_code = 1
        else:
            return_code = 0
    return return_code


if __name__ == "__main__":
    sys.exit(main())
