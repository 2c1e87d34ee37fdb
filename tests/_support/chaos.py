"""A test's own supervisors, servers and clients; nothing of them outlives the test."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from durablefuture_trio._ids import new_id
from durablefuture_trio.client import Client, open_client
from durablefuture_trio.client._connect import find_namespace, find_server
from durablefuture_trio.client._records import HistoryEvent
from durablefuture_trio.errors import WorkflowNotFoundError
from durablefuture_trio.nats_bridge import ConnectOptions, open_broker
from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.protocol.subjects import Subjects
from tests._support.chaos_audit import check_histories, histories_of, until_quiet
from tests._support.supervisor_process import (
    MARKER_VARIABLE,
    SupervisorProcess,
    command_line,
    eventually,
    kill_marked,
    marked_processes,
    send,
)
from tests._support.witnesses import DIRECTORY_VARIABLE, Witness, gate_path, read_witnesses

NAMESPACE = "chaos"

CONFIG = """\
[supervisor]
namespace = "{namespace}"
modules = ["tests._support.chaos_app"]
state_dir = "{state_dir}"
drain_timeout = 5.0
lease_s = {lease_s}
shutdown_grace = 1.0
{nats}
[sandbox]
processes = {replays}
[[activity_pool]]
task_queue = "default"
processes = {workers}
concurrency = 50
"""


@dataclass(frozen=True)
class Connection:
    """A second connection to the server: not the supervisor's."""

    client: Client
    broker: Broker
    subjects: Subjects


class Chaos:
    """The processes, the witnesses and the gates of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.marker = new_id()
        self.supervisors: list[SupervisorProcess] = []

    def supervisor(
        self, name: str = "a", *, url: str | None = None, replays: int = 1, workers: int = 2, lease_s: float = 5.0
    ) -> SupervisorProcess:
        """A supervisor that is not started yet, with an embedded server unless `url` is given."""
        home = self.directory / name
        home.mkdir()
        nats = f'[nats]\nurl = "{url}"' if url is not None else f'[nats.embedded]\ndata_dir = "{home / "data"}"'
        config = home / "supervisor.toml"
        config.write_text(
            CONFIG.format(
                namespace=NAMESPACE,
                state_dir=home / "state",
                nats=nats,
                replays=replays,
                workers=workers,
                lease_s=lease_s,
            )
        )
        environment = {MARKER_VARIABLE: self.marker, DIRECTORY_VARIABLE: str(self.directory)}
        supervisor = SupervisorProcess(config, environment)
        self.supervisors.append(supervisor)
        return supervisor

    @asynccontextmanager
    async def connect(self, supervisor: SupervisorProcess) -> AsyncIterator[Connection]:
        """To the server that a supervisor uses."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("DURABLEFUTURE_")}
        async with self.connect_to(find_server(None, supervisor.config, environ).options) as connection:
            yield connection

    @asynccontextmanager
    async def connect_to(self, options: ConnectOptions) -> AsyncIterator[Connection]:
        async with open_broker(options) as broker:
            subjects = await find_namespace(broker, NAMESPACE)
            async with open_client(broker, subjects) as client:
                yield Connection(client, broker, subjects)

    # --- the world ---

    @property
    def witnesses(self) -> list[Witness]:
        return read_witnesses(self.directory)

    def open_gate(self, name: str) -> None:
        gate_path(self.directory, name).touch()

    async def begun(self, activity: str, *, attempt: int = 1, workflow_id: str | None = None) -> Witness:
        """Wait until an attempt runs."""

        def found() -> list[Witness]:
            return [
                item
                for item in self.witnesses
                if (item.what, item.activity, item.attempt) == ("begin", activity, attempt)
                and workflow_id in (None, item.workflow_id)
            ]

        await eventually(lambda: bool(found()), f"attempt {attempt} of {activity} runs\n{self.logs}")
        return found()[0]

    async def result(self, connection: Connection, workflow_id: str, *, within_s: float = 15.0) -> Any:
        """The result of a run whose start is stored, but perhaps not committed yet.

        Raises:
            AssertionError: it does not come in time.
        """
        handle = connection.client.handle(workflow_id)
        with trio.move_on_after(within_s):
            while True:
                try:
                    return await handle.result()
                except WorkflowNotFoundError:
                    await trio.sleep(0.02)
        raise AssertionError(f"no result of {workflow_id} within {within_s:g} s")

    async def check(self, connection: Connection, *workflow_ids: str) -> dict[str, list[HistoryEvent]]:
        """Everything that has to be true when all these runs have closed; returns their histories."""
        histories = await histories_of(connection.client, workflow_ids)
        check_histories(histories, self.witnesses)
        await until_quiet(connection.broker, connection.subjects)
        return histories

    # --- the end ---

    @property
    def logs(self) -> str:
        return "\n".join(supervisor.logs for supervisor in self.supervisors)

    @property
    def processes(self) -> list[int]:
        """Every living process of the test but its nats-servers that no supervisor embeds."""
        return marked_processes(self.marker)

    def kill_everything(self) -> None:
        """SIGKILL to every process at once: all are stopped first, so none acts on the death of another."""
        kill_marked(self.marker)

    async def close(self) -> None:
        """End what runs. Children and servers have to go by themselves when their supervisor is gone.

        Raises:
            AssertionError: a process was left behind.
        """
        for supervisor in self.supervisors:
            supervisor.kill_now()
        for pid in self.processes:
            send(pid, signal.SIGCONT)  # stopped ones would not notice
        with trio.CancelScope(shield=True):
            try:
                await eventually(lambda: not self.processes, "no process is left behind", within_s=5.0)
            except AssertionError as error:
                left = {pid: command_line(pid) for pid in self.processes}
                self.kill_everything()
                raise AssertionError(f"left behind: {left}") from error
