"""The processes of a round: supervisors that are started again whenever they end, and their nats-server."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import trio

from durablefuture_trio._ids import new_id
from durablefuture_trio.client._connect import find_server
from durablefuture_trio.nats_bridge import ConnectOptions
from simulator.storm.client_process import ClientProcess
from simulator.storm.nats_server import NatsServer, nats_server
from simulator.storm.plan import Plan
from simulator.storm.processes import (
    MARKER_VARIABLE,
    NotInTime,
    RestartableProcess,
    SupervisorProcess,
    command_line,
    eventually,
    kill_marked,
    marked_processes,
)
from simulator.storm.trace import Trace
from simulator.storm.witnesses import DIRECTORY_VARIABLE

NAMESPACE = "storm"
_TRACEBACK = b"Traceback (most recent call last)"
DRAIN_TIMEOUT_S = 5.0
STOP_WITHIN_S = 30.0
SERVER_BACK_WITHIN_S = 30.0

ADMITTED_EXITS = frozenset({0, -signal.SIGKILL, -signal.SIGTERM, 69, 70, 75})
"""Stopped as asked, killed, stopped before Python could listen to signals, no server for a while, children killed again
and again, cut off while draining."""

_CONFIG = """\
[supervisor]
namespace = "{namespace}"
modules = ["simulator.storm.application"]
state_dir = "{home}/state"
drain_timeout = {drain_timeout}
shutdown_grace = 1.0
lease_s = {plan.lease_s}
[nats]
shards = {plan.shards}
{nats}
[sandbox]
processes = {plan.replays}
cached_workflows = {plan.cached_workflows}
[[activity_pool]]
processes = {plan.workers}
concurrency = {plan.concurrency}
grace_period = 0.5
[log]
level = "info"
"""


class Installation:
    """What a round disturbs.

    Attributes:
        server: the nats-server, unless a supervisor embeds it.
        client: the clients in a process of their own.
        exits: with which codes supervisors have ended, how often.
        marker: what every process of the round has inherited.
    """

    def __init__(self, directory: Path, plan: Plan, trace: Trace, server: NatsServer | None) -> None:
        self.plan = plan
        self.server = server
        self.exits: Counter[int] = Counter()
        self.marker = new_id()
        self._trace = trace
        self._keeping: trio.CancelScope | None = None
        environment = {MARKER_VARIABLE: self.marker, DIRECTORY_VARIABLE: str(directory)}
        self.supervisors: list[SupervisorProcess] = [
            SupervisorProcess(self._configured(directory / f"S{number}"), environment)
            for number in range(plan.supervisors)
        ]
        home = directory / "clients"
        home.mkdir()
        self.client = ClientProcess(home, self.supervisors[0].config, plan, NAMESPACE, environment)

    def _configured(self, home: Path) -> Path:
        home.mkdir()
        nats = f'url = "{self.server.url}"' if self.server is not None else f'[nats.embedded]\ndata_dir = "{home}/data"'
        config = home / "supervisor.toml"
        text = _CONFIG.format(namespace=NAMESPACE, home=home, plan=self.plan, nats=nats, drain_timeout=DRAIN_TIMEOUT_S)
        config.write_text(text)
        return config

    @property
    def connect_options(self) -> ConnectOptions:
        """How clients get there."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("DURABLEFUTURE_")}
        return find_server(None, self.supervisors[0].config, environ).options

    @property
    def running(self) -> list[SupervisorProcess]:
        return [supervisor for supervisor in self.supervisors if supervisor.is_running]

    # --- started again whenever they end ---

    async def keep(self) -> None:
        """Start every process that ends, again and again; it may take a while. Until `leave_alone`."""
        with trio.CancelScope() as self._keeping:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep, self.client, Counter())
                for supervisor in self.supervisors:
                    nursery.start_soon(self._keep, supervisor, self.exits)

    async def _keep(self, process: RestartableProcess, exits: Counter[int]) -> None:
        rng = Random(f"keeper of {process.name} {self.plan.seed}")
        while True:
            code = await process.until_exited()
            exits[code] += 1
            self._trace.note("exited", f"{process.name} with code {code}")
            if process is self.client and code == 0:
                return  # they know all they wanted to know
            # Now at once, now after others have taken over.
            await trio.sleep(rng.choice((0.0, 0.0, 0.3, 1.0, 2.0 * self.plan.lease_s)))
            self._trace.note("started", process.name)
            process.spawn()

    def leave_alone(self) -> None:
        """Nobody is started again from now on."""
        if self._keeping is not None:
            self._keeping.cancel()

    async def start(self) -> None:
        """Start all that do not run, and wait until they are ready.

        Raises:
            NotInTime: one is not.
        """
        if self.server is not None and not self.server.is_running:
            await self.start_server()
        for supervisor in self.supervisors:
            if not supervisor.is_running:
                supervisor.spawn()
        for supervisor in self.supervisors:
            await supervisor.until_ready()
        if not self.client.is_running:
            self.client.spawn()

    async def start_server(self) -> None:
        """On its port, which others may use for a moment.

        Raises:
            trio.TooSlowError: it does not start.
        """
        assert self.server is not None
        with trio.fail_after(SERVER_BACK_WITHIN_S):
            while True:
                try:
                    await self.server.start()
                    return
                except RuntimeError as error:
                    self._trace.note("server does not start", str(error))
                    self.server.kill_now()
                await trio.sleep(0.5)

    # --- the end ---

    def kill_everything(self) -> None:
        """SIGKILL to all processes but the shared server."""
        kill_marked(self.marker)

    async def stop(self) -> list[str]:
        """End all supervisors in good order; returns what did not go well."""
        found: list[str] = []
        for supervisor in self.running:
            supervisor.send_signal(signal.SIGTERM)
        for supervisor in self.supervisors:
            name = supervisor.name
            with trio.move_on_after(STOP_WITHIN_S) as scope:
                code = await supervisor.until_exited()
                if code != 0:
                    found.append(f"{name} ended with code {code} when nothing ran any more: see {supervisor.log_file}")
            if scope.cancelled_caught:
                found.append(f"{name} did not stop within {STOP_WITHIN_S:g} s")
        return found

    def logged_defects(self) -> list[str]:
        """Errors that a process of the product did not expect: those have their traceback in its log."""
        homes = {process.config.parent for process in (*self.supervisors, self.client)}
        logs = sorted(log for home in homes for log in home.glob("*.log"))
        return [f"a defect is logged in {log}" for log in logs if _TRACEBACK in log.read_bytes()]

    async def left_behind(self) -> list[str]:
        """Processes that still live although their supervisors do not."""
        try:
            await eventually(lambda: not marked_processes(self.marker), "all processes are gone", within_s=5.0)
        except NotInTime:
            return [f"process {pid} was left behind: {command_line(pid)}" for pid in marked_processes(self.marker)]
        return []


@asynccontextmanager
async def open_installation(directory: Path, plan: Plan, trace: Trace) -> AsyncIterator[Installation]:
    """Everything is running when this is entered, and gone when it is left, whatever happened."""
    if plan.embedded:
        async with _installed(Installation(directory, plan, trace, None)) as installation:
            yield installation
        return
    home = directory / "nats"
    home.mkdir()
    async with nats_server(directory=home) as server, _installed(Installation(directory, plan, trace, server)) as it:
        yield it


@asynccontextmanager
async def _installed(installation: Installation) -> AsyncIterator[Installation]:
    try:
        await installation.start()
        yield installation
    finally:
        # Once more for those that were just being started by processes killed the first time.
        while marked_processes(installation.marker):
            installation.kill_everything()
            time.sleep(0.01)  # noqa: ASYNC251 - nothing else may come between
        for process in (*installation.supervisors, installation.client):
            process.kill_now()
