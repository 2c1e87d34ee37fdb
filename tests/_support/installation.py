"""What a user has: a directory with a configuration and modules, and the two commands run in it as processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import orjson
import trio

from durablefuture_trio import connect
from durablefuture_trio.client import Client, WorkflowDescription, WorkflowHandle
from simulator.supervisor import is_paranoid

REPOSITORY = Path(__file__).resolve().parents[2]

START_DEADLINE_S = 40.0
EXIT_DEADLINE_S = 40.0
POLL_S = 0.01


def clean_environment(**more: str) -> dict[str, str]:
    """This process' environment without settings of ours; the repository can be imported from. With ``PARANOID=1``
    supervisors are in paranoid mode."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DURABLEFUTURE_", "PYTEST_"))}
    if is_paranoid():
        more.setdefault("DURABLEFUTURE_SANDBOX_PARANOID", "true")
    return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **more}


async def until(condition: Callable[[], Any], what: str, *, deadline_s: float = 20.0) -> None:
    """Wait for something outside of this process.

    Raises:
        AssertionError: it has not come true in time; the message says what.
    """
    with trio.move_on_after(deadline_s):
        while not condition():  # noqa: ASYNC110 - other processes set no event
            await trio.sleep(POLL_S)
        return
    raise AssertionError(f"after {deadline_s:g} s still not: {what}")


async def until_noted(journal: Path, lines: int) -> None:
    """Wait until activities have left so many lines."""
    await until(
        lambda: journal.exists() and len(journal.read_text().splitlines()) >= lines, f"{lines} lines in {journal}"
    )


async def described(
    handle: WorkflowHandle[Any], condition: Callable[[WorkflowDescription], Any], *, deadline_s: float = 20.0
) -> WorkflowDescription:
    """The description of a workflow, once it is as wanted."""
    found = None
    with trio.move_on_after(deadline_s):
        while True:
            found = await handle.describe()
            if condition(found):
                return found
            await trio.sleep(POLL_S)
    raise AssertionError(f"after {deadline_s:g} s workflow {handle.id} is still {found}")


async def listed(
    client: Client, workflow_id: str, condition: Callable[[WorkflowDescription], Any], *, deadline_s: float = 20.0
) -> WorkflowDescription:
    """The entry of a workflow in the listing, once it is there and as wanted: the listing follows at a distance."""
    found = None
    with trio.move_on_after(deadline_s):
        while True:
            async for entry in client.list():
                if entry.workflow_id == workflow_id and condition(found := entry):
                    return entry
            await trio.sleep(POLL_S)
    raise AssertionError(f"after {deadline_s:g} s the listing still shows {found} for workflow {workflow_id}")


@dataclass
class Finished:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        """What ``--json`` printed."""
        return orjson.loads(self.stdout)


class SupervisorProcess:
    """A supervisor started as a user starts it. stderr goes to a file."""

    def __init__(self, directory: Path, log: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*_ends_with_this_process(), script("durablefuture-supervisor"), *arguments],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What this process and its children have written so far."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode("utf-8", "replace")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    async def ready(self) -> None:
        """Wait until it is usable."""
        await until(
            lambda: "supervisor is ready" in self.log or not self.is_running, "ready", deadline_s=START_DEADLINE_S
        )
        assert self.is_running, f"the supervisor ended with {self._process.returncode}:\n{self.log}"

    async def logged(self, text: str, *, deadline_s: float = 20.0) -> None:
        """Wait until the log holds `text`."""
        try:
            await until(lambda: text in self.log, f"{text!r} in the log", deadline_s=deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def exit_code(self, *, deadline_s: float = EXIT_DEADLINE_S) -> int:
        """Wait for its end."""
        await until(lambda: not self.is_running, f"the end of the supervisor; log:\n{self.log}", deadline_s=deadline_s)
        code = self._process.returncode
        assert code is not None
        return code

    async def stop(self) -> int:
        """SIGTERM, and wait."""
        self.signal(signal.SIGTERM)
        return await self.exit_code()

    async def kill(self) -> None:
        """SIGKILL, and wait until its children are gone too: they end by themselves."""
        children = descendants(self.pid)
        self.signal(signal.SIGKILL)
        await self.exit_code()
        await until(lambda: not any(is_alive(child) for child in children), "the end of the children")

    def end_now(self) -> None:
        """For the way out, whatever the state."""
        if self.is_running:
            children = descendants(self.pid)
            self._process.kill()
            self._process.wait()
            for child in children:
                _kill(child)


class Installation:
    """A directory of a user's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "supervisor.toml"
        self.log = directory / "supervisor.log"
        self._supervisors: list[SupervisorProcess] = []

    def configure(self, text: str) -> None:
        """Write the configuration."""
        self.config.write_text(dedent(text))

    def module(self, name: str, source: str) -> Path:
        """Write a module that the configuration can name."""
        path = self.directory / f"{name}.py"
        path.write_text(dedent(source))
        # The cache goes by time in seconds and size: a module that is changed at once could look unchanged.
        for cached in (self.directory / "__pycache__").glob(f"{name}.*.pyc"):
            cached.unlink()
        return path

    def supervisor(self, *arguments: str, **environment: str) -> SupervisorProcess:
        """Start a supervisor; nothing is waited for."""
        process = SupervisorProcess(
            self.directory,
            self.log,
            arguments or ("--config", self.config.name),
            clean_environment(**environment),
        )
        self._supervisors.append(process)
        return process

    async def start(self, **environment: str) -> SupervisorProcess:
        """Start a supervisor and wait until it is usable."""
        process = self.supervisor(**environment)
        await process.ready()
        return process

    async def refused(self, *arguments: str, **environment: str) -> Finished:
        """Run a supervisor that is to end by itself."""
        return await self._run("durablefuture-supervisor", arguments or ("--config", self.config.name), environment)

    async def command(self, *arguments: str, **environment: str) -> Finished:
        """Run ``durablefuture`` in the directory."""
        return await self._run("durablefuture", arguments, environment)

    async def _run(self, name: str, arguments: Sequence[str], environment: dict[str, str]) -> Finished:
        with trio.fail_after(60):
            done = await trio.run_process(
                [script(name), *arguments],
                cwd=self.directory,
                env=clean_environment(**environment),
                stdin=b"",
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client that finds the supervisor by its configuration."""
        async with connect(config=self.config) as client:
            yield client

    @property
    def running(self) -> SupervisorProcess:
        """The supervisor started last."""
        return self._supervisors[-1]

    def end_now(self) -> None:
        """End whatever still runs."""
        for process in self._supervisors:
            process.end_now()


def script(name: str) -> str:
    """The installed command."""
    return str(Path(sys.executable).parent / name)


def _ends_with_this_process() -> list[str]:
    """What to put before a command so that it does not outlive a test run that is killed. It is replaced by the command
    and changes nothing else; without it such a run leaves supervisors behind."""
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", "KILL"]


# --- processes --------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, zombies too."""
    children: dict[int, list[int]] = {}
    for other, (parent, _) in _processes().items():
        children.setdefault(parent, []).append(other)
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def zombies(pid: int) -> list[int]:
    """The zombies below `pid`."""
    table = _processes()
    return [child for child in descendants(pid) if child in table and table[child][1] == "Z"]


def _processes() -> dict[int, tuple[int, str]]:
    """Process id -> parent and state."""
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    table: dict[int, tuple[int, str]] = {}
    for line in done.stdout.splitlines():
        number, parent, state = line.split()[:3]
        table[int(number)] = (int(parent), state[0])
    return table


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return _processes().get(pid, (0, "Z"))[1] != "Z"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
