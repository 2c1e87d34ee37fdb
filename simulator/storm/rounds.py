"""One round: everything is started, disturbed for a while, restarted, and judged when all is quiet."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from durablefuture_trio.client import Client, open_client
from durablefuture_trio.client._connect import find_namespace
from durablefuture_trio.nats_bridge import open_broker
from durablefuture_trio.ports.broker import Broker, BrokerError
from durablefuture_trio.protocol.subjects import Subjects
from simulator.oracle import Evidence, Run, judge
from simulator.programs import outcome_of
from simulator.storm.clients import Visitor
from simulator.storm.disturbances import Disturber
from simulator.storm.evidence import gather, left_in_streams, listing_flaws
from simulator.storm.installation import ADMITTED_EXITS, NAMESPACE, Installation, open_installation
from simulator.storm.plan import Plan
from simulator.storm.processes import NotInTime
from simulator.storm.trace import Trace
from simulator.storm.words import Words, all_told

FINISH_WITHIN_S = 150.0
"""After the last disturbance every client has to know its end. Half of it was taken by programs whose attempts kill
the one process in which all others run."""

QUIET_WITHIN_S = 60.0
"""After that nothing may be left in the queues."""

CONNECTIONS = 2


@dataclass
class RoundReport:
    """What came of a round.

    Attributes:
        seed: of this round.
        plan: what it consisted of, in words.
        workflow_ids, runs, attempts: how many there were; `attempts` are those that really began.
        told: how many words clients were given.
        disturbances: how often each kind was done.
        exits: with which codes supervisors ended, how often.
        finished_after_s, quiet_after_s: from the last disturbance to the last end of a run, and until nothing was left
            in the queues.
        anomalies: broken promises, in words.
    """

    seed: str
    plan: str
    seconds: float
    workflow_ids: int = 0
    runs: int = 0
    attempts: int = 0
    told: int = 0
    disturbances: dict[str, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    finished_after_s: float = 0.0
    quiet_after_s: float = 0.0
    anomalies: list[str] = field(default_factory=list)


@dataclass
class Observed:
    """A round that is over, and what the oracle is given."""

    report: RoundReport
    evidence: Evidence | None


async def run_round(plan: Plan, directory: Path) -> Observed:
    """Live through a round.

    Args:
        directory: an empty one; logs, the trace and the witnesses are found there afterwards.
    """
    report = RoundReport(plan.seed, str(plan), plan.seconds, workflow_ids=len(plan.assignments))
    trace = Trace(directory / "trace.jsonl")
    log = logging.FileHandler(directory / "clients.log", encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("durablefuture_trio").addHandler(log)
    trace.note("plan", str(plan))
    observed = Observed(report, None)
    try:
        async with open_installation(directory, plan, trace) as installation:
            await _Round(plan, directory, trace, installation, observed).run()
    except NotInTime as error:
        report.anomalies.append(str(error))
    finally:
        report.disturbances = dict(trace.counts.most_common())
        for anomaly in report.anomalies:
            trace.note("anomaly", anomaly)
        trace.close()
        logging.getLogger("durablefuture_trio").removeHandler(log)
        log.close()
    return observed


class _Round:
    def __init__(
        self, plan: Plan, directory: Path, trace: Trace, installation: Installation, observed: Observed
    ) -> None:
        self._plan = plan
        self._directory = directory
        self._trace = trace
        self._installation = installation
        self._observed = observed
        self._report = observed.report
        self._words = Words()
        self._visitors: list[Visitor] = []
        self._calm_at = 0.0

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(self._connection()) for _ in range(CONNECTIONS)]
            await self._live([client for client, _, _ in clients])
            _, broker, subjects = clients[0]
            await self._until_quiet(broker, subjects)
            words = [self._words, Words(self._installation.client.words_file)]
            self._report.anomalies += [error for each in words for error in each.errors]
            self._observed.evidence = evidence = await gather(
                self._directory, self._plan, all_told(words), broker, subjects
            )
            self._report.attempts, self._report.told = len(evidence.ran), len(evidence.told)
            runs = await trio.to_thread.run_sync(self._judge, evidence)
            self._report.anomalies += await listing_flaws(clients[0][0], runs)
        self._installation.leave_alone()
        self._report.anomalies += await self._installation.stop()
        self._report.anomalies += await self._installation.left_behind()
        self._report.anomalies += self._installation.logged_defects()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[Client, Broker, Subjects]]:
        async with open_broker(self._installation.connect_options) as broker:
            subjects = await find_namespace(broker, NAMESPACE)
            async with open_client(broker, subjects) as client:
                yield client, broker, subjects

    async def _live(self, clients: list[Client]) -> None:
        """Clients and disturbances, until every client knows its end."""
        async with trio.open_nursery() as nursery:
            for assignment in self._plan.assignments:
                if not assignment.apart:
                    visitor = Visitor(assignment, clients, self._words)
                    self._visitors.append(visitor)
                    nursery.start_soon(visitor.run)
            await self._disturb()
            nursery.cancel_scope.deadline = trio.current_time() + FINISH_WITHIN_S
            if (code := await self._installation.client.until_exited()) != 0:
                log = self._installation.client.log_file
                self._report.anomalies.append(f"clients in a process of their own ended with code {code}: see {log}")
        self._report.finished_after_s = round(trio.current_time() - self._calm_at, 2)
        if nursery.cancel_scope.cancelled_caught:
            late = f"after {FINISH_WITHIN_S:g} s a client still waits"
            self._report.anomalies += [f"{late} for {it.doing}" for it in self._visitors if it.doing]
            if self._installation.client.is_running:
                self._report.anomalies.append(
                    f"{late} in a process of its own: see {self._installation.client.log_file}"
                )

    async def _disturb(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._installation.keep)
            await Disturber(self._installation, self._trace).run(self._plan.seconds)
            self._installation.leave_alone()
        await self._restart()
        self._calm_at = trio.current_time()
        for code, count in sorted(self._installation.exits.items()):
            self._report.exits[_words_of(code)] = count
            if code not in ADMITTED_EXITS:
                self._report.anomalies.append(f"supervisors ended {count} times with {_words_of(code)}")

    async def _restart(self) -> None:
        """Everything once more: what lost acknowledgements left behind is read by new owners."""
        how = Random(f"restart {self._plan.seed}").choice(("killed", "stopped"))
        self._trace.note("calm", f"all are {how}, and started again")
        if how == "killed":
            self._installation.kill_everything()
            for process in (*self._installation.supervisors, self._installation.client):
                await process.until_exited()
        else:
            for supervisor in self._installation.running:
                supervisor.send_signal(signal.SIGTERM)
            for supervisor in self._installation.supervisors:
                with trio.fail_after(60):
                    await supervisor.until_exited()
        await self._installation.start()

    async def _until_quiet(self, broker: Broker, subjects: Subjects) -> None:
        with trio.move_on_after(QUIET_WITHIN_S):
            while True:
                try:
                    if not await left_in_streams(broker, subjects):
                        break
                except BrokerError as error:
                    self._trace.note("cannot read", repr(error))
                await trio.sleep(0.1)
        self._report.quiet_after_s = round(trio.current_time() - self._calm_at, 2)

    def _judge(self, evidence: Evidence) -> list[Run]:
        verdict = judge(evidence, outcome_of=outcome_of)
        self._report.runs = len(verdict.runs)
        self._report.anomalies += verdict.anomalies
        return verdict.runs


def _words_of(code: int) -> str:
    return f"code {code}" if code >= 0 else signal.Signals(-code).name


def say(text: str) -> None:
    """To whoever watches; results go to stdout."""
    print(text, file=sys.stderr, flush=True)
