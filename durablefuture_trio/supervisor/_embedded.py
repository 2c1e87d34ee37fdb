"""The embedded NATS server: one process, one data directory, as long as its supervisor lives.

What may go wrong with such a process, and where it is dealt with: two supervisors on one directory (`_data_dir_lock`),
a server that outlived a killed supervisor (`_end_orphan`; two servers would tear the store apart), a server that ends
(`_Keeper`: started again on the same port, the bridge reconnects), a port that somebody else has taken meanwhile.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from durablefuture_trio._ids import new_id
from durablefuture_trio.errors import BrokerUnavailableError, ConfigError
from durablefuture_trio.supervisor._nats_process import (
    find_nats_server,
    log_tail,
    read_ports_file,
    server_config,
    start_nats_server,
    wait_exited,
)
from durablefuture_trio.supervisor._server_file import ServerFile, read_server_file, write_server_file
from durablefuture_trio.supervisor.settings import EmbeddedSettings

logger = logging.getLogger("durablefuture_trio.supervisor.nats_server")

_CONFIG = "nats-server.conf"
_LOG = "nats-server.log"
_OUTPUT = "nats-server.out"
_PID = "nats-server.pid"
_LOCK = "supervisor.lock"

_START_DEADLINE_S = 60.0
"""Recovery of a large store takes a while."""

_STOP_GRACE_S = 10.0
_POLL_S = 0.003
_RESTARTS = 10
_RESTART_WINDOW_S = 60.0
_MAX_DELAY_S = 5.0
_LOG_BYTES = 10 * 1024 * 1024


class EmbeddedServer:
    """The running server. The address and the credentials stay the same when it is restarted, `pid` does not.

    Attributes:
        url: where it listens.
        user, password: its credentials.
        pid: its process.
        restarts: how often it had to be started again.
    """

    def __init__(self, url: str, user: str, password: str, pid: int) -> None:
        self.url = url
        self.user = user
        self.password = password
        self.pid = pid
        self.restarts = 0

    def __repr__(self) -> str:
        return f"EmbeddedServer(url={self.url!r}, pid={self.pid})"

    def restart_soon(self) -> None:
        """End the server in good order; it is started again at once. The remedy for a store that ran full."""
        _signal(self.pid, signal.SIGTERM)


async def run_embedded_server(
    settings: EmbeddedSettings, *, task_status: trio.TaskStatus[EmbeddedServer] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the server until cancelled; started (with an `EmbeddedServer`) when it takes connections.

    Raises:
        ConfigError: the directory is in use by another supervisor or cannot be used, or there is no nats-server.
        BrokerUnavailableError: the server does not start, or ends again and again.
    """
    data_dir = _absolute(settings.data_dir)
    binary = find_nats_server(settings.binary)
    with _data_dir_lock(data_dir):
        await _end_orphan(data_dir)
        await _Keeper(settings, data_dir, binary).run(task_status)


def _absolute(data_dir: str) -> Path:
    return Path(data_dir).expanduser().absolute()


@contextmanager
def _data_dir_lock(data_dir: Path) -> Iterator[None]:
    """Hold the directory for this process. The kernel lets go of the lock however the process ends."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        problem = f"[nats.embedded] data_dir {data_dir} cannot be used: {error.strerror or error}"
        raise ConfigError([f"{problem}; mend its permissions or name another directory"]) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                [
                    f"[nats.embedded] data_dir {data_dir} is in use by the supervisor with pid {holder}: stop that "
                    "one, or give this one a data_dir of its own (to share one server, set [nats] url, user and "
                    f"password to those of {data_dir / 'server.json'})"
                ]
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


# --- a server without its supervisor ----------------------------------------------------------------------------------


async def _end_orphan(data_dir: Path) -> None:
    """End the server that a killed supervisor left on this directory, if there is one.

    The lock is ours, so whatever server still runs here has nobody left. On Linux the kernel kills it with its parent,
    but only *after* it has let go of the parent's locks: even there it may live for a moment.
    """
    pid = _recorded_pid(data_dir)
    if pid is None or not _is_our_server(pid, data_dir):
        return
    logger.warning("ending the nats-server with pid %d, which a killed supervisor left in %s", pid, data_dir)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with trio.move_on_after(_STOP_GRACE_S):
            _signal(pid, number)
            _signal(pid, signal.SIGCONT)
            await _until_gone(pid, data_dir)
            return
    raise ConfigError([f"the nats-server with pid {pid} still runs in {data_dir} and cannot be ended: end it by hand"])


def _recorded_pid(data_dir: Path) -> int | None:
    try:
        return int((data_dir / _PID).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _is_our_server(pid: int, data_dir: Path) -> bool:
    """Whether the process is a server of this directory, and not one that happens to have the number now."""
    return str(data_dir / _CONFIG) in _command_line(pid)


def _command_line(pid: int) -> str:
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    shown = subprocess.run(
        ["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False, timeout=10
    )
    return shown.stdout


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        logger.debug("process %d has ended already", pid)


async def _until_gone(pid: int, data_dir: Path) -> None:
    # Not our child, so there is nothing to wait on but its command line (which is empty for a zombie).
    while _is_our_server(pid, data_dir):  # noqa: ASYNC110 - see above
        await trio.sleep(_POLL_S)


# --- keeping it running -----------------------------------------------------------------------------------------------


class _Keeper:
    def __init__(self, settings: EmbeddedSettings, data_dir: Path, binary: str) -> None:
        known = read_server_file(data_dir)
        self._settings = settings
        self._data_dir = data_dir
        self._binary = binary
        self._user = known.user if known is not None else "durablefuture"
        self._password = known.password if known is not None and known.password else new_id()
        self._port = settings.port or (known.port if known is not None else 0)
        self._server: EmbeddedServer | None = None
        self._starts: deque[float] = deque(maxlen=_RESTARTS)

    async def run(self, task_status: trio.TaskStatus[EmbeddedServer]) -> None:
        """Start the server again and again."""
        while True:
            self._spend_start()
            process = self._start()
            try:
                if await self._until_listening(process):
                    self._announce(process, task_status)
                    await wait_exited(process)
            finally:
                await self._end(process)
            if self._server is None:
                self._explain_start(process)
            else:
                self._server.restarts += 1
                logger.warning(
                    "nats-server (pid %d) ended with exit code %s; starting it again. Its log ends: %s",
                    process.pid,
                    process.returncode,
                    self._tail(1),
                )
            await trio.sleep(self._delay())

    def _spend_start(self) -> None:
        now = trio.current_time()
        if len(self._starts) == _RESTARTS and now - self._starts[0] < _RESTART_WINDOW_S:
            raise BrokerUnavailableError(
                f"the embedded nats-server ended {_RESTARTS} times within {_RESTART_WINDOW_S:g} s; the end of its log, "
                f"{self._data_dir / _LOG}:\n{self._tail(5)}"
            )
        self._starts.append(now)

    def _delay(self) -> float:
        """None after a long life, then more with each start of the last minute."""
        recent = sum(1 for start in self._starts if start > trio.current_time() - _RESTART_WINDOW_S)
        return 0.0 if recent <= 1 else min(0.05 * 2.0 ** (recent - 2), _MAX_DELAY_S)

    def _start(self) -> subprocess.Popen[bytes]:
        for leftover in self._data_dir.glob("*.ports"):
            leftover.unlink()
        config = self._data_dir / _CONFIG
        output = self._data_dir / _OUTPUT
        output.write_bytes(b"")
        descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(server_config(self._config()))
        return start_nats_server(self._binary, config, output)

    def _config(self) -> dict[str, object]:
        store: dict[str, object] = {"store_dir": str(self._data_dir)}
        if self._settings.sync != "default":
            store["sync_interval"] = self._settings.sync
        return {
            "host": self._settings.host,
            "port": self._port or -1,
            "ports_file_dir": str(self._data_dir),
            "pid_file": str(self._data_dir / _PID),
            "log_file": str(self._data_dir / _LOG),
            "logfile_size_limit": _LOG_BYTES,
            "logfile_max_num": 3,
            "max_payload": self._settings.max_payload_mb * 1024 * 1024,
            "jetstream": store,
            "authorization": {"user": self._user, "password": self._password},
        }

    async def _until_listening(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the server's ports file; False if the server ended or did not get there."""
        with trio.move_on_after(_START_DEADLINE_S):
            while process.poll() is None:
                url = read_ports_file(self._data_dir, process.pid)
                if url is not None:
                    self._port = int(url.rpartition(":")[2])
                    return True
                await trio.sleep(_POLL_S)
        return False

    def _announce(self, process: subprocess.Popen[bytes], task_status: trio.TaskStatus[EmbeddedServer]) -> None:
        host = self._settings.host if self._settings.host not in {"0.0.0.0", "::", ""} else "127.0.0.1"
        url = f"nats://{host}:{self._port}"
        self._write_file(url, process.pid)
        if self._server is None:
            self._server = EmbeddedServer(url, self._user, self._password, process.pid)
            logger.info("nats-server listens at %s, pid %d, data in %s", url, process.pid, self._data_dir)
            task_status.started(self._server)
        else:
            self._server.pid = process.pid
            logger.info("nats-server is back at %s, pid %d", url, process.pid)

    def _write_file(self, url: str, pid: int) -> None:
        write_server_file(
            self._data_dir, ServerFile(url=url, port=self._port, user=self._user, password=self._password, pid=pid)
        )

    def _explain_start(self, process: subprocess.Popen[bytes]) -> None:
        """The first start failed: with a remembered port that is taken now there is a remedy, else there is none."""
        tail = self._tail(5)
        if "address already in use" in tail:
            if self._settings.port:
                raise BrokerUnavailableError(
                    f"[nats.embedded] port {self._port} is in use by another program: end that one, or leave 'port' out"
                )
            if self._port:
                logger.warning("port %d of the embedded nats-server is taken now; it gets another one", self._port)
                self._port = 0
                return
        raise BrokerUnavailableError(
            f"the embedded nats-server ({self._binary}) did not start (exit code {process.returncode}); the end of its "
            f"log, {self._data_dir / _LOG}:\n{tail}"
        )

    def _tail(self, lines: int) -> str:
        return log_tail(self._data_dir / _OUTPUT, lines) or log_tail(self._data_dir / _LOG, lines)

    async def _end(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and SIGKILL for one that does not react; also when cancelled, or it would outlive us."""
        if process.poll() is None:
            with trio.CancelScope(shield=True):
                process.terminate()
                with trio.move_on_after(_STOP_GRACE_S):
                    await wait_exited(process)
                if process.poll() is None:
                    process.kill()
                    await wait_exited(process)
        if self._server is not None:
            self._write_file(self._server.url, 0)
