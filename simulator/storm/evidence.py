"""What a storm has left behind, for the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.client import Client
from durablefuture_trio.ports.broker import Broker, Stored
from durablefuture_trio.protocol.projection import Status
from durablefuture_trio.protocol.subjects import Subjects
from simulator.oracle import Evidence, Ran, Run, Told
from simulator.storm.application import DEFINITIONS
from simulator.storm.plan import Plan
from simulator.storm.remains import remains
from simulator.storm.witnesses import read_witnesses

_STATUS: dict[str, Status] = {
    "WorkflowCompleted": "completed",
    "WorkflowFailed": "failed",
    "WorkflowTerminated": "terminated",
    "WorkflowTimedOut": "timed_out",
}


async def gather(directory: Path, plan: Plan, told: Sequence[Told], broker: Broker, subjects: Subjects) -> Evidence:
    """Read all of it.

    Raises:
        BrokerError: the streams cannot be read now.
    """
    histories: list[Stored] = []
    for shard in range(subjects.shards):
        histories.extend([stored async for stored in broker.scan(subjects.history_stream(shard), ">")])
    ran = [
        Ran(item.workflow_id, item.run_id, item.activity_id, item.attempt)
        for item in read_witnesses(directory)
        if item.what == "begin"
    ]
    return Evidence(
        registry=Registry.of(DEFINITIONS),
        histories=histories,
        ran=ran,
        told=list(told),
        expected={item.workflow_id: item.expected for item in plan.assignments},
        left=await left_in_streams(broker, subjects),
    )


async def left_in_streams(broker: Broker, subjects: Subjects) -> list[str]:
    """What nobody should own any more, and consumers that are too many."""
    found = await remains(broker, subjects)
    for shard in range(subjects.shards):
        consumers = await broker.consumers(subjects.inbox_stream(shard))
        if len(consumers) > 1:
            found.append(f"{subjects.inbox_stream(shard)}: {len(consumers)} consumers")
    return found


async def listing_flaws(client: Client, runs: list[Run]) -> list[str]:
    """Where the listing says something else than the histories."""
    latest = {run.workflow_id: run for run in runs}  # the oldest first: the last one stays
    shown: Counter[str] = Counter()
    found: list[str] = []
    async for item in client.list():
        shown[item.workflow_id] += 1
        run = latest.get(item.workflow_id)
        status = None if run is None else _STATUS.get(type(run.terminal).__name__, "running")
        if run is None or (item.run_id, item.status) != (run.run_id, status):
            told = None if run is None else run.run_id
            found.append(f"{item.workflow_id}: listed as {item.run_id} {item.status}, is {told} {status}")
    found += [f"{workflow_id}: not listed" for workflow_id in latest.keys() - shown.keys()]
    found += [f"{workflow_id}: listed {count} times" for workflow_id, count in shown.items() if count > 1]
    return found
