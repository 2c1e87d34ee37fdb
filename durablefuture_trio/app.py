"""The composition root: the one place that plugs a broker and child processes into a supervisor."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import trio

from durablefuture_trio.authoring import definition_of
from durablefuture_trio.authoring.registry import pickle_definitions
from durablefuture_trio.client import Client, open_client
from durablefuture_trio.client._connect import connect_options
from durablefuture_trio.errors import ConfigError, DurableFutureError
from durablefuture_trio.nats_bridge import ConnectOptions, open_broker
from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.ports.children import ActivityPool, ReplayPool
from durablefuture_trio.protocol.namespace import establish_namespace
from durablefuture_trio.supervisor._clock import ServerClock
from durablefuture_trio.supervisor._embedded import run_embedded_server
from durablefuture_trio.supervisor._groups import leaves
from durablefuture_trio.supervisor._identity import member_slot
from durablefuture_trio.supervisor._ownership import Ownership
from durablefuture_trio.supervisor._shard import Shard
from durablefuture_trio.supervisor._signals import run_until_stopped
from durablefuture_trio.supervisor._tree import Children, run_children
from durablefuture_trio.supervisor._verifier import Verifiers
from durablefuture_trio.supervisor.settings import Settings, load_settings

logger = logging.getLogger("durablefuture_trio.supervisor")


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Where another composition root may put something between the parts, e.g. to stop a process at a named call."""

    broker: Callable[[Broker], Broker] = lambda broker: broker
    replay: Callable[[ReplayPool], ReplayPool] = lambda pool: pool
    activities: Callable[[ActivityPool], ActivityPool] = lambda pool: pool


class Supervisor:
    """A running supervisor.

    Attributes:
        client: a client of its namespace, on its own connection to NATS.
    """

    def __init__(
        self,
        client: Client,
        ownership: Ownership,
        children: Children,
        broker: Broker,
        verifiers: Verifiers | None = None,
    ) -> None:
        self.client = client
        self._verifiers = verifiers
        self._ownership = ownership
        self._children = children
        self._broker = broker

    async def drain(self) -> None:
        """Dispatch nothing new, wait until no activity runs here any more, and give the shards back."""
        await self._ownership.leave()
        await self._children.drain()

    def statistics(self) -> dict[str, Any]:
        """Figures of what runs here now."""
        return {
            "shards": {number: shard.statistics() for number, shard in self._ownership.shards.items()},
            "link_up": self._broker.link.up,
            **({} if self._verifiers is None else {"verified": self._verifiers.statistics()}),
        }


def run(settings: Settings, wiring: Wiring | None = None) -> int:
    """Run a supervisor in this process until a signal stops it; returns the exit code.

    Raises:
        ConfigError, BrokerUnavailableError, NamespaceError, RestartBudgetSpent: perhaps inside an exception group.
    """
    service = partial(serve, settings, wiring=wiring or Wiring())

    def started() -> None:
        logger.info("supervisor is ready (pid %d, namespace %r)", os.getpid(), settings.supervisor.namespace)

    return trio.run(partial(run_until_stopped, service, settings.supervisor.drain_timeout, on_started=started))


@asynccontextmanager
async def open_supervisor(
    config: str | os.PathLike[str] | None = None,
    *,
    workflows: Iterable[Any] = (),
    activities: Iterable[Any] = (),
    modules: Iterable[str] = (),
) -> AsyncIterator[Supervisor]:
    """The whole system inside a program: NATS, replay and activity processes; ends with the block.

        async with open_supervisor(workflows=[order], activities=[charge, ship]) as supervisor:
            receipt = await supervisor.client.run(order, "Bob", 1000.0)

    Args:
        config: a configuration file (TOML); the arguments below are added to what it names.
        workflows, activities: definitions; those of ``__main__`` or made inside a function travel to the children by
            cloudpickle, never over NATS.
        modules: names of modules to import definitions from.

    Raises:
        ConfigError, BrokerUnavailableError, NamespaceError: it cannot start. What the body raises leaves as it is.
    """
    settings = load_settings(config, check_modules=False)
    definitions = [*workflows, *activities]
    wrong = [repr(item) for item in definitions if definition_of(item) is None]
    if wrong:
        raise ConfigError([f"{item} is neither a @workflow nor an @activity" for item in wrong])
    pickled = pickle_definitions(definitions) if definitions else b""
    named = tuple(dict.fromkeys((*settings.supervisor.modules, *modules)))
    settings = msgspec.structs.replace(settings, supervisor=msgspec.structs.replace(settings.supervisor, modules=named))
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            supervisor = await nursery.start(partial(serve, settings, pickled=pickled))
            try:
                yield supervisor
                with trio.move_on_after(settings.supervisor.drain_timeout):
                    await supervisor.drain()
            except BaseException as error:
                raised = error
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # What the body raises leaves as it is, and why it cannot start too: nurseries are an implementation detail.
        why = leaves(group)
        if raised is None and len(why) == 1 and isinstance(why[0], DurableFutureError):
            raise why[0] from None
        if raised is None or len(group.exceptions) > 1 or group.exceptions[0] is not raised:
            raise
    if raised is not None:
        raise raised


async def serve(
    settings: Settings,
    *,
    pickled: bytes = b"",
    wiring: Wiring | None = None,
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a supervisor until cancelled. Started with the `Supervisor` when it owns its shards.

    Args:
        pickled: cloudpickled definitions beside those of the configured modules.

    Raises:
        ConfigError, BrokerUnavailableError, NamespaceError, RestartBudgetSpent: perhaps inside an exception group.
    """
    if "workflows" not in settings.supervisor.roles:
        raise ConfigError(
            ['supervisor.roles: a supervisor without the role "workflows" has nothing to do in this version; add it']
        )
    wires = wiring or Wiring()
    with member_slot(settings.namespace_dir) as member:
        async with trio.open_nursery() as parts:
            children, options = await _start_parts(settings, member.name, pickled, parts)
            assert children.replay is not None
            async with open_broker(options) as raw_broker:
                broker = wires.broker(raw_broker)
                subjects = await establish_namespace(
                    broker,
                    settings.supervisor.namespace,
                    shards=settings.nats.shards,
                    replicas=settings.nats.replicas,
                )
                clock = ServerClock()
                verifiers = _verifiers(children)
                new_shard = partial(
                    _new_shard,
                    broker=broker,
                    subjects=subjects,
                    replay=wires.replay(children.replay),
                    activities=wires.activities(children.activities),
                    clock=clock,
                    verifiers=verifiers,
                )
                ownership = Ownership(broker, subjects, member, clock, new_shard, lease_s=settings.supervisor.lease_s)
                async with trio.open_nursery() as owners:
                    await owners.start(ownership.run)
                    async with open_client(broker, subjects, clock=clock.now) as client:
                        task_status.started(Supervisor(client, ownership, children, broker, verifiers))
                        await trio.sleep_forever()


async def _start_parts(
    settings: Settings, member: str, pickled: bytes, parts: trio.Nursery
) -> tuple[Children, ConnectOptions]:
    """The children and the server, side by side: each takes a few tenths of a second."""
    children: list[Children] = []
    options: list[ConnectOptions] = []

    async def start_children() -> None:
        children.append(await parts.start(partial(run_children, settings, member=member, pickled=pickled)))

    async def start_server() -> None:
        if settings.nats.urls:
            options.append(connect_options(settings.nats))
            return
        server = await parts.start(run_embedded_server, settings.nats.embedded)
        options.append(
            ConnectOptions(
                urls=(server.url,),
                user=server.user,
                password=server.password,
                connect_timeout_s=settings.nats.connect_timeout,
            )
        )

    async with trio.open_nursery() as starting:
        starting.start_soon(start_children)
        starting.start_soon(start_server)
    return children[0], options[0]


def _verifiers(children: Children) -> Verifiers | None:
    """The processes of paranoid mode; None without it."""
    replay = children.replay
    if replay is None or not children.verifiers:
        return None
    same_seed, other_seed = children.verifiers
    return Verifiers(same_seed, other_seed, lambda: replay.code_hash)


def _new_shard(number: int, on_reader_lost: Callable[[], None], **plugs: Any) -> Shard:
    return Shard(number, on_reader_lost=on_reader_lost, **plugs)
