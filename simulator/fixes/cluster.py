"""Fixes between the owners of runs and the server: shards, leases, commits, inboxes, schedules, histories, clients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from zlib import crc32

import msgspec
import trio

from durablefuture_trio.client._closing import Closings
from durablefuture_trio.client._decisions import DecisionSearch
from durablefuture_trio.client._handle import WorkflowHandle
from durablefuture_trio.client._requests import Requests
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.settling import Settling
from durablefuture_trio.memory_broker import MemoryBroker, MemoryReader
from durablefuture_trio.ports.broker import Append, AppendOutcome, Conflict, NoAnswer
from durablefuture_trio.protocol import lease
from durablefuture_trio.protocol.committing import CommitLoop, PendingCommit
from durablefuture_trio.protocol.inbox import open_inbox
from durablefuture_trio.protocol.lease import Lease, LeaseRecord, LeaseTable, _Seen
from durablefuture_trio.protocol.loading import HistoryReader, numbered
from durablefuture_trio.protocol.projection import Projection
from durablefuture_trio.protocol.schedules import Schedules
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.supervisor._caution import Caution
from durablefuture_trio.supervisor._clock import ServerClock
from durablefuture_trio.supervisor._ownership import Ownership
from durablefuture_trio.supervisor._shard import Shard
from simulator.fixes.switch import Fix, Patch, nothing, saying

Function = Callable[..., Any]

# --- inboxes ----------------------------------------------------------------------------------------------------------


def _open_under_one_name(original: Function, self: Any, epoch: int) -> Any:
    return open_inbox(self._broker, self._subjects, self.number, epoch, name_of=lambda epoch: "own")


def _see_no_gap(original: Function, self: Any, *args: Any, **others: Any) -> None:
    original(self, *args, **others)
    self._contiguous = False


def _capped(original: Function, self: Any, *args: Any, max_ack_pending: int = -1, **others: Any) -> Any:
    return original(self, *args, max_ack_pending=2, **others)


async def _without_barrier(original: Function, self: Any, epoch: int) -> None:
    async with self._open_inbox(epoch) as box:
        box.barrier = 0
        self._open_inbox = lambda epoch: _Opened(box)
        try:
            await original(self, epoch)
        finally:
            del self.__dict__["_open_inbox"]


class _Opened:
    """An inbox that somebody else closes."""

    def __init__(self, box: Any) -> None:
        self._box = box

    async def __aenter__(self) -> Any:
        return self._box

    async def __aexit__(self, *_: object) -> None:
        return None


# --- schedules --------------------------------------------------------------------------------------------------------


def _one_schedule_subject(original: Function, self: Any, workflow_id: str, n: int) -> str:
    return str(original(self, workflow_id, 0))


def _neutralise_the_only_one(original: Function, self: Any, n: int) -> None:
    """What has been armed since holds the subject."""
    if len(self.armed) > 1:
        del self.armed[n]
    else:
        original(self, n)


def _never_overdue(original: Function, self: Any, now: float) -> list[Any]:
    self._heap.clear()
    return []


async def _recover_nothing(original: Function, self: Any) -> None:
    self._heap.clear()
    for armed in self._armed.values():
        armed.clear()


# --- commits ----------------------------------------------------------------------------------------------------------


def _whoever_holds_it(original: Function, commit: PendingCommit, standing: Any) -> bool:
    return True


def _publish_or_rebuild(original: Function, self: Any, owner: Any, output: out.Publish) -> None:
    """Silence is answered by one look at the number: if it is free, it is decided once more."""
    commits = self._commits
    commit = PendingCommit(owner.workflow_id, output.n, output.commit_id, output.body)

    async def look() -> None:
        while True:
            try:
                standing = await commits._standing(commit)
                break
            except NoAnswer:
                await trio.sleep(0.25)
        if standing is not None:
            self._resolved(owner, True)
        else:
            self._later(owner, partial(_rebuild, owner, self._clock.now()))

    def answered(outcome: AppendOutcome) -> None:
        if isinstance(outcome, int):
            self._resolved(owner, True)
        elif isinstance(outcome, Conflict | NoAnswer):
            self._spawn(look)
        else:
            self._spawn(commits._resolve, commit, outcome, partial(self._resolved, owner))

    self._broker.append_soon(commits._append(commit), answered)


def _rebuild(owner: Any, now: float) -> None:
    if owner._flight is not None:
        before, owner._draft, owner._flight = owner._draft, owner._flight.draft, None
        if before is not None:
            owner._draft.events += before.events
            owner._draft.effects += before.effects
            owner._draft.inputs += before.inputs
    owner._advance(now)


def _append_without_expectation(original: Function, self: Any, commit: PendingCommit) -> Append:
    append: Append = original(self, commit)
    return msgspec.structs.replace(append, expect_last=None)


# --- reading ----------------------------------------------------------------------------------------------------------


async def _trust_every_chunk(original: Function, self: Any, workflow_id: str, start: int, stop: int) -> Any:
    prefix = self._subjects.history_prefix(workflow_id)
    stream = self._subjects.history_stream(self._subjects.shard_of(workflow_id))
    subjects = [f"{prefix}{n}" for n in range(start, stop)]
    found = [numbered(stored) for stored in await self._broker.many(stream, subjects)]
    return found or await original(self, workflow_id, start, stop)


async def _trust_every_tip(original: Function, self: Any, workflow_id: str, *, confirmed: bool = False) -> Any:
    stream = self._subjects.history_stream(self._subjects.shard_of(workflow_id))
    stored = await self._broker.last(stream, self._subjects.history_prefix(workflow_id) + "*", confirmed=confirmed)
    return None if stored is None else numbered(stored)


# --- leases -----------------------------------------------------------------------------------------------------------


async def _write_blindly(original: Function, self: Any, shard: int, record: LeaseRecord, expect: int) -> Lease:
    append = Append(subject=self._subjects.lease(shard), body=msgspec.json.encode(record))
    seq = await self._broker.append(append)
    known = self._shards.get(shard)
    self._shards[shard] = _Seen(seq, known.since if known is not None else 0.0, record)
    return Lease(shard, record.epoch, seq)


def _everybody_takes_shards(original: Function, self: Any, now: float) -> set[str]:
    own = self._subjects.member(self._member.name).rpartition(".")[2]
    return {own} | {name for name, seen in self._members.items() if now - seen.since < self._lease_s}


def _spread_by_crc(original: Function, shards: int, members: frozenset[str]) -> tuple[str, ...]:
    return tuple(max(members, key=lambda name: crc32(f"{shard}/{name}".encode())) for shard in range(shards))


def _compared_from_the_start(original: Function, self: Any, *args: Any, **others: Any) -> None:
    original(self, *args, **others)
    self._has_compared_clocks = True


def _under_the_old_epoch(original: Function, self: Any, shard: int) -> Any:
    seen = self._shards.get(shard)
    if seen is not None and seen.record is not None:
        seen.record = msgspec.structs.replace(seen.record, epoch=max(0, seen.record.epoch - 1))
    return original(self, shard)


# --- ownership in doubt -----------------------------------------------------------------------------------------------


def _drop_while_in_doubt(original: Function, self: Any, owner: Any, notification: Function) -> None:
    if self._is_active:
        original(self, owner, notification)


def _resume_with_old_anchors(original: Function, self: Any, now: float) -> None:
    self._suspended = False
    self._advance(now)


def _abandon_and_keep_quiet(original: Function, self: Any, owner: Any, outcome: Any, worker: str) -> None:
    if not self._is_abandoned:
        original(self, owner, outcome, worker)


# --- listing records --------------------------------------------------------------------------------------------------


def _listing_without_fence(original: Function, self: Any, record: Any, last_seq: int) -> Append:
    append: Append = original(self, record, last_seq)
    return msgspec.structs.replace(append, expect_last=None)


# --- clients ----------------------------------------------------------------------------------------------------------


async def _never_look(original: Function, self: Any, *args: Any) -> None:
    await trio.lowlevel.checkpoint()


async def _never_look_for_the_end(original: Function, self: Any, workflow_id: str, run_id: str) -> tuple[str, None]:
    await trio.lowlevel.checkpoint()
    return run_id, None


def _send_once(original: Function, self: Any, request: Any, request_id: str, waiting: Any) -> Callable[[], None]:
    send = original(self, request, request_id, waiting)
    sent = False

    def once() -> None:
        nonlocal sent
        if not sent:
            sent = True
            send()

    return once


def _send_under_the_workflow_id(
    original: Function, self: Any, request: Any, request_id: str, waiting: Any
) -> Callable[[], None]:
    send = original(self, request, request_id, waiting)
    append: Append = send.args[0]
    named = msgspec.structs.replace(append, message_id=request.workflow_id)
    return partial(self._broker.append_soon, named, waiting.on_outcome)


async def _whichever_run(original: Function, self: Any) -> str:
    await original(self)
    return ""


CLUSTER_FIXES: tuple[Fix, ...] = (
    Fix(
        "epoch in the consumer's name",
        "H1",
        "all owners of a shard read its inbox through a consumer of the same name",
        (Patch(Shard, "_open_inbox", _open_under_one_name),),
    ),
    Fix(
        "a schedule subject for each commit",
        "H2, H3",
        "all schedules of a workflow id share one subject",
        (
            Patch(Subjects, "schedule", _one_schedule_subject),
            Patch(Settling, "_neutralise", _neutralise_the_only_one),
        ),
    ),
    Fix(
        "commits expect their number to be free",
        "H4",
        "a commit is stored whatever holds its number",
        (Patch(CommitLoop, "_append", _append_without_expectation),),
    ),
    Fix(
        "identical bytes until the number is occupied",
        "H4",
        "after silence the number is read once, and decided again if it is free",
        (Patch(Shard, "_do_publish", _publish_or_rebuild),),
    ),
    Fix(
        "commit ids",
        "H4",
        "whoever holds the number of a commit is taken for its author",
        (Patch(CommitLoop, "is_same", _whoever_holds_it),),
    ),
    Fix(
        "a gap in the deliveries means a new epoch",
        "H6",
        "an owner takes what comes and never asks whether something is missing",
        (Patch(MemoryReader, "__init__", _see_no_gap),),
    ),
    Fix(
        "no limit of unacknowledged messages",
        "H7",
        "a consumer delivers two messages and then waits for acknowledgements",
        (Patch(MemoryBroker, "open_reader", _capped),),
    ),
    Fix(
        "all that waits is read before runs go on",
        "H10, H22",
        "a new owner lets runs go on before it has read what waited at the takeover",
        (Patch(Shard, "_read_inbox", _without_barrier),),
    ),
    Fix(
        "leases are compared and set",
        "H9",
        "a lease is written whatever stands there",
        (Patch(LeaseTable, "_write", _write_blindly),),
    ),
    Fix(
        "silence counts only while one's own link answers",
        "H9",
        "the silence of others is counted also while one's own link does not answer",
        (Patch(LeaseTable, "interrupted", nothing),),
    ),
    Fix(
        "an owner that is late suspends itself",
        "H9",
        "an owner goes on although its lease was not renewed in time",
        (Patch(Ownership, "_suspend_late", nothing),),
    ),
    Fix(
        "the epoch counts up",
        "H1, H9",
        "whoever takes a shard keeps the epoch that stands there",
        (Patch(LeaseTable, "take", _under_the_old_epoch),),
    ),
    Fix(
        "answers that come while ownership is in doubt are kept",
        "H9",
        "answers that come while ownership is in doubt are dropped",
        (Patch(Shard, "_later", _drop_while_in_doubt),),
    ),
    Fix(
        "results of a shard that is lost are handed over",
        "H9",
        "results that come after the shard was lost are dropped",
        (Patch(Shard, "_hand_over", nothing),),
    ),
    Fix(
        "members that take no shards are left out",
        "H21c",
        "shards are spread over members whose clocks are wrong, too",
        (Patch(LeaseTable, "live_members", _everybody_takes_shards),),
    ),
    Fix(
        "clocks are compared before shards are taken",
        "H21c",
        "a supervisor takes shards before it has compared its clock with the server's",
        (Patch(Ownership, "__init__", _compared_from_the_start),),
    ),
    Fix(
        "owners go by the server's clock",
        "H21",
        "owners go by the clock of their machine",
        (Patch(ServerClock, "observe", saying(0.0)),),
    ),
    Fix(
        "shards are spread evenly",
        "",
        "shards are spread by the CRC of names",
        (Patch(lease, "spread", _spread_by_crc),),
    ),
    Fix(
        "owners are cautious after deaths",
        "H15",
        "an owner loads everything at once, whoever died before",
        (Patch(Caution, "suspects", saying([])), Patch(Caution, "is_advised", saying(False))),
    ),
    Fix(
        "a history is read without gaps",
        "H16",
        "the commits that come are taken for all there are",
        (Patch(HistoryReader, "_chunk", _trust_every_chunk),),
    ),
    Fix(
        "the tip is looked for upward",
        "H16, H18",
        "the last message that a replica shows is taken for the tip",
        (Patch(HistoryReader, "tip", _trust_every_tip),),
    ),
    Fix(
        "overdue schedules are armed again",
        "H19",
        "nobody looks after schedules that did not fire",
        (Patch(Schedules, "republish_overdue", _never_overdue),),
    ),
    Fix(
        "new owners read what was armed",
        "H19",
        "a new owner does not know the schedules of those before it",
        (Patch(Schedules, "recover", _recover_nothing),),
    ),
    Fix(
        "listing records are fenced",
        "H20",
        "a listing record is written over whatever stands there",
        (Patch(Projection, "append_for", _listing_without_fence),),
    ),
    Fix(
        "who waits for a decision looks in the history",
        "H20",
        "a client waits for the answer alone",
        (Patch(DecisionSearch, "look", _never_look),),
    ),
    Fix(
        "who waits for a result looks in the history",
        "H20",
        "a client waits for the hint that the run has closed",
        (Patch(Closings, "_look", _never_look_for_the_end),),
    ),
    Fix(
        "undecided requests are sent again",
        "H20",
        "a client sends a request once",
        (Patch(Requests, "_sender", _send_once),),
    ),
    Fix(
        "the message id is no workflow id",
        "H10d",
        "requests are published under the workflow id as their message id",
        (Patch(Requests, "_sender", _send_under_the_workflow_id),),
    ),
    Fix(
        "a termination names its run",
        "H10",
        "a termination is about whichever run is open when it is decided",
        (Patch(WorkflowHandle, "_run_meant", _whichever_run),),
    ),
)
