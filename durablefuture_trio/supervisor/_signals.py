"""SIGTERM and SIGINT: the first one drains, then stops; the second one stops at once."""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from durablefuture_trio.supervisor._exit import ExitCode

log = logging.getLogger("durablefuture_trio.supervisor")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Drainable(Protocol):
    """What a service gives with ``task_status.started()``."""

    async def drain(self) -> None:
        """Take nothing new, and return when what runs is finished and handed on."""
        ...


async def run_until_stopped(
    service: Callable[..., Awaitable[None]],
    drain_timeout_s: float,
    *,
    on_started: Callable[[], None] = lambda: None,
) -> ExitCode:
    """Run `service` until it ends or a signal stops it. Has to run in the main thread.

    Args:
        service: started with ``nursery.start``; gives a `Drainable` when it is usable.
        drain_timeout_s: how long draining may take.
        on_started: called when the service is usable.

    Returns:
        OK, or DRAIN_DEADLINE_PASSED when work was cut off: the time was over, or a second signal came.
    """
    stopping = _Stopping(drain_timeout_s)
    async with trio.open_nursery() as nursery:
        # Listening before anything is started, so that a signal meets no default handler in between.
        await nursery.start(stopping.listen, nursery.cancel_scope)

        async def serve(task_status: trio.TaskStatus[Drainable]) -> None:
            await service(task_status=task_status)
            nursery.cancel_scope.cancel()

        stopping.drainable = await nursery.start(serve)
        on_started()
    return stopping.code


class _Stopping:
    def __init__(self, drain_timeout_s: float) -> None:
        self.drainable: Drainable | None = None  # None: nothing to drain yet
        self.code = ExitCode.OK
        self._drain_timeout_s = drain_timeout_s

    async def listen(
        self, everything: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            task_status.started()
            name = signal.Signals(await anext(signals)).name
            if self.drainable is None:
                log.info("%s while starting: stopping", name)
                everything.cancel()
                return
            log.info("%s: finishing what runs (for up to %g s), then stopping", name, self._drain_timeout_s)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain, self.drainable, everything)
                name = signal.Signals(await anext(signals)).name
                log.warning("%s again: stopping at once; what runs is cut off and will be done again", name)
                self.code = ExitCode.DRAIN_DEADLINE_PASSED
                everything.cancel()

    async def _drain(self, drainable: Drainable, everything: trio.CancelScope) -> None:
        with trio.move_on_after(self._drain_timeout_s) as draining:
            await drainable.drain()
        if draining.cancelled_caught:
            log.warning(
                "not everything was finished within %g s; it is cut off and will be done again", self._drain_timeout_s
            )
            self.code = ExitCode.DRAIN_DEADLINE_PASSED
        everything.cancel()
