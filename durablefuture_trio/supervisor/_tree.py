"""The child processes of a supervisor, as one service."""

from __future__ import annotations

import logging
import time

import msgspec
import trio

from durablefuture_trio.errors import ConfigError
from durablefuture_trio.ports.frames import FRAME_VERSION, Hello
from durablefuture_trio.supervisor._activity_pool import WorkerActivityPool
from durablefuture_trio.supervisor._budget import RestartBudget, RestartBudgetSpent
from durablefuture_trio.supervisor._channel import Outbox
from durablefuture_trio.supervisor._groups import only
from durablefuture_trio.supervisor._keeper import ChildSlot, keep_alive
from durablefuture_trio.supervisor._replay_pool import SandboxReplayPool
from durablefuture_trio.supervisor.settings import Settings

log = logging.getLogger("durablefuture_trio.supervisor.children")

OTHER_HASH_SEED = "1"
"""Sets of strings have another order than in the processes that run workflows."""


class Children:
    """The pools of child processes. Their processes live as long as `run_children` does.

    Attributes:
        replay: the replay processes; None when this supervisor has no workflow role.
        verifiers: in paranoid mode those that repeat what they do, one pool with the same hash seed and one with
            another; else none.
        activities: the activity processes; serves no queue when this supervisor has no activity role.
    """

    def __init__(
        self,
        replay: SandboxReplayPool | None,
        activities: WorkerActivityPool,
        verifiers: tuple[SandboxReplayPool, ...] = (),
    ) -> None:
        self.replay = replay
        self.verifiers = verifiers
        self.activities = activities

    @property
    def replay_pools(self) -> list[SandboxReplayPool]:
        """All pools of processes that replay."""
        return [*(() if self.replay is None else (self.replay,)), *self.verifiers]

    @property
    def slots(self) -> list[ChildSlot]:
        """The places of all processes."""
        return [*(slot for pool in self.replay_pools for slot in pool.slots), *self.activities.slots]

    async def drain(self) -> None:
        """Start no activity any more, and wait until none runs. The processes stay; cancel `run_children` after it."""
        await self.activities.drain()


async def run_children(
    settings: Settings,
    *,
    member: str,
    pickled: bytes = b"",
    task_status: trio.TaskStatus[Children] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the pools of child processes, for ever. Started with the `Children` when every process is ready.

    When it is cancelled idle activity processes get ``shutdown_grace`` to exit (so that what they opened is closed);
    all others are killed at once. All are reaped.

    Args:
        settings: the whole configuration.
        member: this supervisor's name, for histories and logs.
        pickled: cloudpickled tuple of definitions that cannot be imported.

    Raises:
        ConfigError: a child refused to start: what it says has to be mended.
        RestartBudgetSpent: children die too often without having had work.
    """
    children = _build(settings, member, pickled)
    outbox = Outbox()
    budget = RestartBudget()
    started_at = time.monotonic()
    trio.lowlevel.add_instrument(outbox)
    try:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as starting:
                for slot in children.slots:
                    starting.start_soon(nursery.start, keep_alive, slot, budget, outbox)
            for pool in children.replay_pools:
                nursery.start_soon(pool.watch_deadlocks)
            nursery.start_soon(children.activities.watch_deadlines)
            log.info("%d child processes are ready after %.2f s", len(children.slots), time.monotonic() - started_at)
            task_status.started(children)
    except BaseExceptionGroup as group:
        if refused := only(group, ConfigError):
            raise ConfigError(list(dict.fromkeys(line for error in refused for line in error.problems))) from None
        if spent := only(group, RestartBudgetSpent):
            raise spent[0] from None
        raise
    finally:
        trio.lowlevel.remove_instrument(outbox)


def _build(settings: Settings, member: str, pickled: bytes) -> Children:
    hello = Hello(
        version=FRAME_VERSION,
        name=member,
        modules=settings.supervisor.modules,
        sys_path=settings.import_path,
        pickled=pickled,
        settings={"log_level": settings.log.level},
    )
    start_timeout_s = settings.supervisor.start_timeout
    replay = None
    verifiers: tuple[SandboxReplayPool, ...] = ()
    if "workflows" in settings.supervisor.roles:
        replay = SandboxReplayPool(settings.sandbox, hello, start_timeout_s)
        if settings.sandbox.paranoid:
            one = msgspec.structs.replace(settings.sandbox, processes=1)
            told = msgspec.structs.replace(hello, settings={**hello.settings, "verifier": True})
            verifiers = (
                SandboxReplayPool(one, told, start_timeout_s, role="verify"),
                SandboxReplayPool(one, told, start_timeout_s, role="verify-reseeded", hash_seed=OTHER_HASH_SEED),
            )
    activities = WorkerActivityPool(
        settings.activity_pool if "activities" in settings.supervisor.roles else (),
        hello,
        member,
        start_timeout_s=start_timeout_s,
        exit_grace_s=settings.supervisor.shutdown_grace,
    )
    return Children(replay, activities, verifiers)
