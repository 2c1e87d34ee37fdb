"""What a storm does to processes: SIGKILL, SIGSTOP and SIGCONT, SIGTERM, at moments and to victims from a seed."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import trio

from simulator.storm.installation import Installation
from simulator.storm.processes import MARKER_VARIABLE, SupervisorProcess
from simulator.storm.trace import Trace

MEAN_PAUSE_S = 0.6
"""Between two disturbances."""

STOPS_S = ((0.1, 1.0), (1.0, 4.0), (4.0, 12.0))
"""How long something is stopped: shorter than most limits, about as long, longer than a lease."""

SERVER_DOWN_S = ((0.0, 0.1), (0.1, 2.0), (2.0, 8.0))


class Disturber:
    """Does something to one of the processes again and again. `Installation.keep` starts again what has ended."""

    def __init__(self, installation: Installation, trace: Trace) -> None:
        self._installation = installation
        self._trace = trace
        self._rng = Random(f"disturbances {installation.plan.seed}")
        self._server_is_up = True
        self._kinds: dict[str, tuple[int, Callable[[], Awaitable[str | None]]]] = {
            "kill replay process": (4, lambda: self._kill(self._replays())),
            "kill activity process": (5, lambda: self._kill(self._workers())),
            "kill supervisor": (3, self._kill_supervisor),
            "kill supervisor and all it started": (2, self._kill_tree),
            "kill server": (2, self._kill_server),
            "kill everything": (1, self._kill_everything),
            "terminate supervisor": (2, self._terminate_supervisor),
            "stop replay process": (2, lambda: self._stop(self._replays())),
            "stop activity process": (2, lambda: self._stop(self._workers())),
            "stop supervisor": (4, lambda: self._stop([it.pid for it in self._installation.running])),
            "kill client": (2, self._kill_client),
            "stop client": (1, lambda: self._stop([self._installation.client.pid] if self._client_runs else [])),
            "stop server": (2, lambda: self._stop(self._servers())),
        }

    async def run(self, seconds: float) -> None:
        """For this long. What was stopped runs again when this returns."""
        names = list(self._kinds)
        weights = [weight for weight, _ in self._kinds.values()]
        async with trio.open_nursery() as self._lasting:
            with trio.move_on_after(seconds):
                while True:
                    await trio.sleep(min(self._rng.expovariate(1 / MEAN_PAUSE_S), 5.0))
                    name = self._rng.choices(names, weights)[0]
                    victim = await self._kinds[name][1]()
                    if victim is not None:
                        self._trace.disturbed(name, victim)
            self._lasting.cancel_scope.cancel()
        if self._installation.server is not None and not self._installation.server.is_running:
            await self._installation.start_server()

    # --- who ---

    def _replays(self) -> list[int]:
        return [pid for supervisor in self._installation.running for pid in supervisor.replay_pids]

    def _workers(self) -> list[int]:
        return [pid for supervisor in self._installation.running for pid in supervisor.worker_pids]

    def _servers(self) -> list[int]:
        server = self._installation.server
        if server is not None:
            return [server.pid] if self._server_is_up else []
        return [pid for supervisor in self._installation.running if (pid := supervisor.server_pid) is not None]

    def _supervisor(self) -> SupervisorProcess | None:
        running = self._installation.running
        return self._rng.choice(running) if running else None

    # --- what; each returns to whom, None: nobody was there ---

    async def _kill(self, pids: list[int]) -> str | None:
        pid = self._rng.choice(pids) if pids else None
        return str(pid) if pid is not None and self._send(pid, signal.SIGKILL) else None

    async def _kill_supervisor(self) -> str | None:
        supervisor = self._supervisor()
        if supervisor is None:
            return None
        supervisor.send_signal(signal.SIGKILL)
        return supervisor.name

    @property
    def _client_runs(self) -> bool:
        return self._installation.client.is_running

    async def _kill_client(self) -> str | None:
        if not self._client_runs:
            return None
        self._installation.client.send_signal(signal.SIGKILL)
        return self._installation.client.name

    async def _kill_tree(self) -> str | None:
        supervisor = self._supervisor()
        if supervisor is None:
            return None
        pids = [*supervisor.replay_pids, *supervisor.worker_pids]
        if supervisor.server_pid is not None:
            pids.append(supervisor.server_pid)
        supervisor.send_signal(signal.SIGSTOP)  # or it would act on the death of the others
        for pid in pids:
            self._send(pid, signal.SIGKILL)
        supervisor.send_signal(signal.SIGKILL)
        return supervisor.name

    async def _kill_server(self) -> str | None:
        server = self._installation.server
        if server is None:
            return await self._kill(self._servers())
        if not self._server_is_up:
            return None
        self._server_is_up = False
        pid = server.pid
        await server.kill()
        self._lasting.start_soon(self._bring_back_server, self._rng.uniform(*self._rng.choice(SERVER_DOWN_S)))
        return str(pid)

    async def _bring_back_server(self, after_s: float) -> None:
        await trio.sleep(after_s)
        with trio.CancelScope(shield=True):
            await self._installation.start_server()
        self._server_is_up = True

    async def _kill_everything(self) -> str | None:
        self._installation.kill_everything()
        await self._kill_server()
        return "at once"

    async def _terminate_supervisor(self) -> str | None:
        supervisor = self._supervisor()
        if supervisor is None:
            return None
        supervisor.send_signal(signal.SIGTERM)
        if self._rng.random() < 0.3:
            self._lasting.start_soon(self._terminate_again, supervisor.pid, self._rng.uniform(0, 3))
        return supervisor.name

    async def _terminate_again(self, pid: int, after_s: float) -> None:
        await trio.sleep(after_s)
        if any(supervisor.pid == pid for supervisor in self._installation.running):
            os.kill(pid, signal.SIGTERM)

    async def _stop(self, pids: list[int]) -> str | None:
        if not pids:
            return None
        pid, seconds = self._rng.choice(pids), self._rng.uniform(*self._rng.choice(STOPS_S))
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        self._lasting.start_soon(self._stopped, descriptor, seconds)
        return f"{pid} for {seconds:.2f} s"

    async def _stopped(self, descriptor: int, seconds: float) -> None:
        """By a descriptor: when the process has died meanwhile its id may be another's."""
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
            await trio.sleep(seconds)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            os.close(descriptor)

    def _send(self, pid: int, number: signal.Signals) -> bool:
        """A signal to a process that is still one of ours; False if it is not."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            marked = f"{MARKER_VARIABLE}={self._installation.marker}".encode()
            if marked not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return False
            signal.pidfd_send_signal(descriptor, number)
        except (FileNotFoundError, ProcessLookupError):
            return False
        finally:
            os.close(descriptor)
        return True
