"""Random kills of random processes, with a diary."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from tests._support.chaos import Chaos
from tests._support.nats_server import NatsServer
from tests._support.supervisor_process import SupervisorProcess, send

logger = logging.getLogger("tests.chaos.killer")

PAUSE_S = (0.05, 1.0)
"""Between two deeds."""

LONGEST_STOP_S = 3.0


class Killer:
    """Does something to one of the processes again and again, and starts supervisors and the server again.

    Attributes:
        diary: what was done, and when.
        exit_codes: of the supervisors that had to be started again.

    Args:
        server: the nats-server, when no supervisor embeds it.
    """

    def __init__(self, chaos: Chaos, chance: random.Random, server: NatsServer | None = None) -> None:
        self.diary: list[str] = []
        self.deeds: Counter[str] = Counter()
        self.exit_codes: Counter[int | None] = Counter()
        self._chaos = chaos
        self._chance = chance
        self._server = server
        self._began_at = time.monotonic()
        self._methods: dict[str, tuple[int, Callable[[], Awaitable[str]]]] = {
            "kill replay": (4, self._kill_replay),
            "kill worker": (5, self._kill_worker),
            "kill supervisor": (3, self._kill_supervisor),
            "kill server": (2, self._kill_server),
            "kill everything": (1, self._kill_everything),
            "stop replay": (2, lambda: self._stop_one([pid for each in self._running for pid in each.replay_pids])),
            "stop worker": (2, lambda: self._stop_one([pid for each in self._running for pid in each.worker_pids])),
            "stop supervisor": (2, lambda: self._stop_one([each.pid for each in self._running])),
            "stop server": (2, lambda: self._stop_one(self._server_pids)),
        }

    async def run(self, seconds: float) -> None:
        """For this long."""
        names = list(self._methods)
        weights = [self._methods[name][0] for name in names]
        async with trio.open_nursery() as stopped:
            self._stopped = stopped
            ends_at = trio.current_time() + seconds
            while trio.current_time() < ends_at:
                await trio.sleep(self._chance.uniform(*PAUSE_S))
                name = self._chance.choices(names, weights)[0]
                self._note(name, await self._methods[name][1]())
                self.deeds[name] += 1
                # Half of the time what comes next may meet a supervisor that is just starting.
                await self._mend(wait=self._chance.random() < 0.5)
        await self._mend(wait=True)

    async def _mend(self, *, wait: bool) -> None:
        """Start again what does not run."""
        if self._server is not None and not self._server.is_running:
            await self._server.start()
        for supervisor in self._chaos.supervisors:
            if not supervisor.is_running:
                self._note("start", f"{supervisor.config.parent.name}, exit code {supervisor.returncode}")
                self.exit_codes[supervisor.returncode] += 1
                supervisor.spawn()
            if wait:
                await supervisor.until_ready()

    def _note(self, what: str, to: str) -> None:
        self.diary.append(f"{time.monotonic() - self._began_at:7.2f} {what}: {to}")

    @property
    def _running(self) -> list[SupervisorProcess]:
        return [supervisor for supervisor in self._chaos.supervisors if supervisor.is_running]

    @property
    def _server_pids(self) -> list[int]:
        if self._server is not None:
            return [self._server.pid]
        return [pid for supervisor in self._running if (pid := supervisor.server_pid) is not None]

    def _kill_one(self, pids: list[int]) -> str:
        if not pids:
            return "nobody"
        pid = self._chance.choice(pids)
        return f"{pid}" if send(pid, signal.SIGKILL) else f"{pid}, which was gone"

    async def _kill_replay(self) -> str:
        return self._kill_one([pid for each in self._running for pid in each.replay_pids])

    async def _kill_worker(self) -> str:
        return self._kill_one([pid for each in self._running for pid in each.worker_pids])

    async def _kill_supervisor(self) -> str:
        supervisor = self._chance.choice(self._chaos.supervisors)
        await supervisor.kill()
        await self._linger(1.0)
        return supervisor.config.parent.name

    async def _kill_server(self) -> str:
        if self._server is None:
            return self._kill_one(self._server_pids)
        pid = self._server.pid
        await self._server.kill()
        await self._linger(1.0)
        return f"{pid}"

    async def _kill_everything(self) -> str:
        self._chaos.kill_everything()
        for supervisor in self._chaos.supervisors:
            await supervisor.kill()
        if self._server is not None:
            await self._server.kill()
        return "at once"

    async def _stop_one(self, pids: list[int]) -> str:
        if not pids:
            return "nobody"
        pid = self._chance.choice(pids)
        seconds = self._chance.uniform(0.0, LONGEST_STOP_S)
        send(pid, signal.SIGSTOP)
        # Others are killed meanwhile.
        self._stopped.start_soon(self._go_on, pid, seconds)
        return f"{pid} for {seconds:.2f} s"

    async def _go_on(self, pid: int, seconds: float) -> None:
        await trio.sleep(seconds)  # how long it is stopped is part of the deed
        send(pid, signal.SIGCONT)

    async def _linger(self, longest_s: float) -> None:
        await trio.sleep(self._chance.uniform(0.0, longest_s))  # how long it is away is part of the deed
