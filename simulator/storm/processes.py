"""Real processes: programs that can be started again and again, supervisors among them, and a look at others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from durablefuture_trio.supervisor._nats_process import _die_with_parent, wait_exited

REPOSITORY = Path(__file__).resolve().parents[2]

MARKER_VARIABLE = "CHAOS_MARKER"
"""Environment variable that all processes of a test or storm inherit: so none of them can get lost."""

READY_DEADLINE_S = 30.0
LOOK_S = 0.005
"""Other processes can only be looked at."""


class NotInTime(AssertionError):
    """Something that had to happen in another process did not."""


async def eventually(condition: Callable[[], bool], words: str, *, within_s: float = READY_DEADLINE_S) -> None:
    """Wait until a condition outside of this process holds.

    Raises:
        NotInTime: it does not, in time.
    """
    with trio.move_on_after(within_s):
        while not condition():  # noqa: ASYNC110 - see LOOK_S
            await trio.sleep(LOOK_S)
        return
    raise NotInTime(f"not within {within_s:g} s: {words}")


class RestartableProcess:
    """A program in a process of its own; `spawn` it again as often as you like. Each start logs to a file of its own.

    Args:
        config: its configuration file; the logs are written beside it.
        environment: variables over those of this process.
    """

    def __init__(self, config: Path, environment: dict[str, str]) -> None:
        self.config = config
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def name(self) -> str:
        """That of its directory."""
        return self.config.parent.name

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """As in `subprocess`; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def log_file(self) -> Path:
        return self.config.with_suffix(f".{self._starts}.log")

    @property
    def log(self) -> str:
        """What the process that was started last has logged."""
        return self.log_file.read_text(errors="replace")

    @property
    def logs(self) -> str:
        """What all of them have logged."""
        files = (self.config.with_suffix(f".{number}.log") for number in range(1, self._starts + 1))
        return "".join(f"--- {file.name}\n{file.read_text(errors='replace')}" for file in files)

    def command(self) -> list[str]:
        """What is executed."""
        raise NotImplementedError

    def spawn(self) -> None:
        """Start it. Forks in this thread: its parent-death signal is tied to it."""
        assert not self.is_running
        self._starts += 1
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=REPOSITORY,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - one call into libc that is bound already
            )

    async def until_exited(self) -> int:
        """Wait until it has ended; returns its exit code."""
        assert self._process is not None, f"{self.name} was never started"
        return await wait_exited(self._process)

    def pause(self) -> None:
        """SIGSTOP: alive, and silent. Its children and its server run on."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.send_signal(signal.SIGCONT)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> int:
        """SIGTERM; returns its exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        process = self._process
        assert process is not None
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        with trio.fail_after(READY_DEADLINE_S):
            return await wait_exited(process)

    def kill_now(self) -> None:
        """For the way out, whatever the state."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class SupervisorProcess(RestartableProcess):
    """A supervisor."""

    def command(self) -> list[str]:
        program = "import sys; from durablefuture_trio.cli import supervisor_main; sys.exit(supervisor_main())"
        return [sys.executable, "-X", "faulthandler", "-c", program, "--config", str(self.config)]

    async def until_ready(self) -> None:
        """Wait until it is ready.

        Raises:
            NotInTime: it is not, or has ended.
        """
        await self.until(lambda: "supervisor is ready" in self.log)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, as long as the supervisor runs.

        Raises:
            NotInTime: it does not, or the supervisor has ended.
        """

        def holds() -> bool:
            if not self.is_running:
                raise NotInTime(f"the supervisor has ended with code {self.returncode}:\n{self.log}")
            return condition()

        await eventually(holds, "the supervisor is ready")

    def children(self, module: str) -> list[int]:
        """Its child processes that run a module, e.g. ``durablefuture_trio.sandbox``; the oldest first."""
        return sorted(pid for pid in child_pids(self.pid) if f"-m {module} " in command_line(pid))

    @property
    def replay_pids(self) -> list[int]:
        return self.children("durablefuture_trio.sandbox")

    @property
    def worker_pids(self) -> list[int]:
        return self.children("durablefuture_trio.activity_worker")

    @property
    def server_pid(self) -> int | None:
        """Its embedded nats-server, if it runs."""
        return next((pid for pid in child_pids(self.pid) if "nats-server" in command_line(pid)), None)


def child_pids(pid: int) -> list[int]:
    """The children of a process; empty when it is gone."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.extend(int(child) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found


def command_line(pid: int) -> str:
    """The command line of a process, words with spaces between; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def state_of(pid: int) -> str:
    """The state of a process: ``"R"``, ``"S"``, ``"T"`` (stopped), ``"Z"``; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False if the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def marked_processes(marker: str) -> list[int]:
    """All living processes that inherited a marker, however deep, and whoever their parent is now."""
    wanted = f"{MARKER_VARIABLE}={marker}".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if wanted in environment and state_of(int(entry.name)) not in ("", "Z"):
            found.append(int(entry.name))
    return found


def kill_marked(marker: str) -> None:
    """SIGKILL to every marked process at once: all are stopped first, so none acts on the death of another."""
    pids = marked_processes(marker)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            send(pid, number)


async def until_gone(pids: Iterable[int]) -> None:
    """Wait until none of these processes lives.

    Raises:
        NotInTime: one does, for too long.
    """
    waiting = list(pids)
    await eventually(lambda: all(state_of(pid) in ("", "Z") for pid in waiting), f"{waiting} are gone")
