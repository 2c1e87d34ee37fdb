"""Simulated clients: each is a process of its own, and writes down what it was told."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import trio

from durablefuture_trio.client import Client, open_client
from durablefuture_trio.client._connect import find_namespace
from durablefuture_trio.client._handle import WorkflowHandle
from durablefuture_trio.errors import (
    DurableFutureError,
    QueryFailedError,
    RequestFailedError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowAlreadyStartedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durablefuture_trio.history.options import RetryPolicy
from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.protocol.subjects import Subjects
from simulator.oracle import CancelTold, EndTold, QueryTold, SignalTold, StartTold, TerminateTold, Told, UpdateTold
from simulator.programs import program
from simulator.programs.behaviours import PLAIN
from simulator.programs.desk import SIGNALS, UPDATES, Order, nudge, result_of, seen
from simulator.scenario import ClientPlan, Scenario
from simulator.supervisor import NAMESPACE
from simulator.world import SimulatedProcess, World

AGAIN_S = 1.0
BETWEEN_QUERIES_S = 1.0
NO_ROOM = "no room"
TRIES = 8
"""So often those who want to talk to a workflow look whether it is there."""


class ClientProcess:
    """One client of the scenario; `repeat` is two processes, one after the other.

    Attributes:
        ended: it has done all it wanted, or was killed.
    """

    def __init__(self, world: World, plan: ClientPlan, scenario: Scenario, told: list[Told], number: int) -> None:
        self.name = f"c{number}"
        self.ended = False
        self._world = world
        self._plan = plan
        self._scenario = scenario
        self._told = told
        self._id = plan.target or f"w{plan.workflow}"
        self._request_id = f"{self.name}-{plan.action}"
        self._acts = 2 if plan.action == "repeat" or plan.again else 1
        self._process: SimulatedProcess | None = None

    def start(self) -> None:
        """Begin."""
        self._acts -= 1
        process = self._process = self._world.spawn(self.name, self._main)
        process.at_end(self._act_ended)
        if self._plan.dies_after is not None:
            self._world.scheduler.call_at(self._world.now() + self._plan.dies_after, process.kill)

    def _act_ended(self) -> None:
        self._world.trace(self.name, "ended")
        if self._acts:
            self._world.scheduler.call_at(self._world.now() + self._plan.delay, self.start)
        else:
            self.ended = True

    async def _main(self, process: SimulatedProcess) -> None:
        self._world.trace(self.name, f"{self._plan.action} {self._id}")
        broker = process.connect()
        subjects = await _namespace(broker)
        async with open_client(broker, subjects, clock=self._world.now) as client:
            match self._plan.action:
                case "run":
                    await self._run(client, "fail", "allow")
                case "use":
                    await self._run(client, "use_existing", "allow")
                case "rival":
                    await self._run(client, "fail", "reject")
                case "replace":
                    await trio.sleep(self._plan.delay)
                    await self._run(client, "terminate_existing", "allow")
                case "repeat":
                    await self._run(client, "fail", "failed_only")
                case "terminate":
                    await trio.sleep(self._plan.delay)
                    await self._terminate(client)
                case "look":
                    await trio.sleep(self._plan.delay)
                    await self._look(client)
                case "signal" | "update" | "query" | "cancel":
                    await trio.sleep(self._plan.delay)
                    await self._talk(client)

    def _tell(self, word: Told) -> None:
        # A process that was killed in the middle of this very step has told nobody.
        if self._process is not None and not self._process.is_dead:
            self._told.append(word)

    async def _run(self, client: Client, conflict: Any, reuse: Any) -> None:
        plan = self._plan
        signal_tag = f"{self._request_id}-0"
        start = partial(
            client.start,
            program,
            self._scenario.programs[self._plan.workflow].tree,
            id=self._id,
            id_conflict_policy=conflict,
            id_reuse_policy=reuse,
            execution_timeout=plan.execution_timeout,
            start_delay=plan.start_delay,
            start_signal=(nudge, (signal_tag,)) if plan.start_signal else None,
            retry_policy=None
            if plan.attempts is None
            else RetryPolicy(initial_interval=0.2, maximum_attempts=plan.attempts),
            request_id=self._request_id,
        )
        while True:
            try:
                handle = await start()
                break
            except WorkflowAlreadyStartedError:
                self._tell(StartTold(self._id, self._request_id, None, new=True))
                if plan.start_signal:
                    self._tell(SignalTold(self._id, signal_tag, applied=False))
                return
            except RequestFailedError:  # no room in the store: the same request again is never applied twice
                await trio.sleep(AGAIN_S)
        assert handle.run_id is not None
        self._tell(StartTold(self._id, self._request_id, handle.run_id, new=conflict != "use_existing"))
        if plan.start_signal:
            self._tell(SignalTold(self._id, signal_tag, applied=True))
        self._tell(EndTold(self._id, handle.run_id, await _end_of(handle)))

    async def _terminate(self, client: Client) -> None:
        request_id = f"{self.name}-terminate"
        try:
            await client.handle(self._id).terminate("it takes too long", request_id=request_id)
        except WorkflowNotFoundError:
            if not self._plan.again:  # nothing was sent, and the other process may find a run
                self._tell(TerminateTold(self._id, request_id, applied=False))
        except RequestFailedError as error:
            # The other process may mean another run: to the owner that is another request.
            if NO_ROOM not in str(error) and not self._plan.again:
                self._tell(TerminateTold(self._id, request_id, applied=False))
        else:
            self._tell(TerminateTold(self._id, request_id, applied=True))

    async def _talk(self, client: Client) -> None:
        handle = client.handle(self._id)
        for _ in range(TRIES):
            # A request to a workflow id without any run is never sent.
            with suppress(WorkflowNotFoundError):
                await self._talk_to(client, handle)
                return
            await trio.sleep(AGAIN_S)

    async def _talk_to(self, client: Client, handle: WorkflowHandle[Any]) -> None:
        for number in range(min(self._plan.count, 2) if self._plan.action == "cancel" else self._plan.count):
            match self._plan.action:
                case "signal":
                    await self._signal(handle, f"{self._request_id}-{number}")
                case "update":
                    await self._update(handle, f"{self._request_id}-{number}")
                case "query":
                    await self._query(handle)
                    await trio.sleep(BETWEEN_QUERIES_S)
                case _:
                    await self._cancel(client, handle, is_first=number == 0)

    async def _signal(self, handle: WorkflowHandle[Any], tag: str) -> None:
        try:
            await handle.signal(SIGNALS[self._plan.what], tag, request_id=tag)
        except RequestFailedError as error:
            if NO_ROOM not in str(error):
                self._tell(SignalTold(self._id, tag, applied=False))
        else:
            self._tell(SignalTold(self._id, tag, applied=True))
            await self._query(handle)

    async def _update(self, handle: WorkflowHandle[Any], update_id: str) -> None:
        tell = partial(UpdateTold, self._id, update_id, alone=not self._plan.again)
        order = Order(update_id, self._plan.way, PLAIN if self._plan.count > 1 else None)
        try:
            value = await handle.update(UPDATES[self._plan.what], order, update_id=update_id)
        except UpdateRejectedError:
            self._tell(tell("rejected"))
        except UpdateFailedError:
            self._tell(tell("failed"))
        except RequestFailedError as error:
            if NO_ROOM not in str(error):
                self._tell(tell("refused"))
        else:
            self._tell(tell("completed", value=value, wanted=result_of(order)))

    async def _query(self, handle: WorkflowHandle[Any]) -> None:
        since = len(self._told)
        # Before its code has begun a run knows no query; one whose replay process died again and again is blocked.
        with suppress(QueryFailedError, RequestFailedError):
            self._tell(QueryTold(self._id, since, await handle.query(seen)))

    async def _cancel(self, client: Client, handle: WorkflowHandle[Any], *, is_first: bool) -> None:
        if not is_first:
            await trio.sleep(self._plan.delay)
            await self._terminate(client)
            return
        try:
            await handle.cancel("nobody needs it", request_id=self._request_id)
        except RequestFailedError as error:
            if NO_ROOM not in str(error):
                self._tell(CancelTold(self._id, self._request_id, applied=False))
        else:
            self._tell(CancelTold(self._id, self._request_id, applied=True))

    async def _look(self, client: Client) -> None:
        handle = client.handle(self._id)
        with suppress(WorkflowNotFoundError):
            before = await handle.history()
            after = await handle.history()
            # The second answer may come from a replica that is behind: then it is the shorter one.
            same = min(len(before), len(after))
            if before[0].run_id == after[0].run_id and after[:same] != before[:same]:
                raise AssertionError(f"the history of {self._id} has changed: {before}, then {after}")
            await handle.describe()
        _ = [item async for item in client.list()]


async def _namespace(broker: Broker) -> Subjects:
    while True:
        try:
            return await find_namespace(broker, NAMESPACE)
        except DurableFutureError:
            await trio.sleep(AGAIN_S)


async def _end_of(handle: WorkflowHandle[Any]) -> str:
    try:
        await handle.result()
    except WorkflowFailedError:
        return "WorkflowFailed"
    except WorkflowCancelledError:
        return "WorkflowCancelled"
    except WorkflowTerminatedError:
        return "WorkflowTerminated"
    except WorkflowTimedOutError:
        return "WorkflowTimedOut"
    return "WorkflowCompleted"
