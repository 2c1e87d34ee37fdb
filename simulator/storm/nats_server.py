"""A real nats-server on a free port of loopback: own store, ends with its process at the latest."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from durablefuture_trio.supervisor._nats_process import (
    find_nats_server,
    log_tail,
    read_ports_file,
    server_config,
    start_nats_server,
    wait_exited,
)

_START_DEADLINE_S = 20


class NatsServer:
    """One server. The first start takes a free port; later ones keep it, and the store."""

    def __init__(self, directory: Path, config: dict[str, Any], user: str | None, password: str | None) -> None:
        self.directory = directory
        self.user = user
        self.password = password
        self.port = -1
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def log(self) -> str:
        return (self.directory / "server.log").read_text(errors="replace")

    async def start(self, **changes: Any) -> None:
        """Start, or start again on the same port and store; `changes` alter the configuration from now on."""
        assert self._process is None, "the server is running"
        self._config.update(changes)
        config = self.directory / "server.conf"
        config.write_text(server_config({**self._config, "port": self.port}))
        self._process = start_nats_server(find_nats_server(), config, self.directory / "server.log")
        with trio.fail_after(_START_DEADLINE_S):
            while (url := read_ports_file(self.directory, self.pid)) is None:
                if self._process.poll() is not None:
                    raise RuntimeError(f"nats-server ended at once: {log_tail(self.directory / 'server.log')}")
                await trio.sleep(0.002)
        self.port = int(url.rpartition(":")[2])

    async def stop(self) -> None:
        """End in good order."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL: nothing is flushed."""
        await self._end(signal.SIGKILL)

    async def restart(self, **changes: Any) -> None:
        """Stop (if it runs) and start."""
        if self._process is not None:
            await self.stop()
        await self.start(**changes)

    def pause(self) -> None:
        """SIGSTOP: alive, and silent. Returns when every thread has stopped: on a busy machine one may still answer."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not all(_is_stopped(task) for task in _tasks(self.pid)):
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        assert process is not None, "the server is not running"
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        await wait_exited(process)
        (self.directory / f"nats-server_{process.pid}.ports").unlink(missing_ok=True)

    def kill_now(self) -> None:
        """For the way out, whatever the state."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@asynccontextmanager
async def nats_server(
    *,
    sync: str = "always",
    user: str | None = None,
    password: str | None = None,
    jetstream: bool = True,
    max_payload: int = 8 * 1024 * 1024,
    max_file_store: int | None = None,
    directory: Path | None = None,
) -> AsyncIterator[NatsServer]:
    """Run a server.

    Args:
        directory: where it keeps its files; default: a directory that goes with it.
        sync: ``"always"``, ``"default"`` or a duration: JetStream's ``sync_interval``.
        user, password: credentials to ask for.
        jetstream: whether it has JetStream.
        max_payload: largest message, bytes.
        max_file_store: size of the store, bytes.
    """
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="durablefuture-nats-")))
        config: dict[str, Any] = {"host": "127.0.0.1", "ports_file_dir": str(directory), "max_payload": max_payload}
        if jetstream:
            store: dict[str, Any] = {"store_dir": str(directory / "store")}
            if sync != "default":
                store["sync_interval"] = sync
            if max_file_store is not None:
                store["max_file_store"] = max_file_store
            config["jetstream"] = store
        if user is not None:
            config["authorization"] = {"user": user, "password": password}
        server = NatsServer(directory, config, user, password)
        try:
            await server.start()
            yield server
        finally:
            server.kill_now()


def _tasks(pid: int) -> list[Path]:
    tasks = Path(f"/proc/{pid}/task")
    return list(tasks.iterdir()) if tasks.is_dir() else []


def _is_stopped(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] in "tTZX"
    except OSError:  # the thread has ended
        return True
