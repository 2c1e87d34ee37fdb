"""The listing record of a workflow id: a view that can be rebuilt from the history, and never runs ahead of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.events import (
    ContinuedAsNew,
    HistoryLimitExceeded,
    Terminal,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from durablefuture_trio.history.state import RunState
from durablefuture_trio.ports.broker import Append, Broker, Conflict
from durablefuture_trio.protocol.subjects import Subjects

Status = Literal["running", "blocked", "completed", "failed", "cancelled", "continued", "terminated", "timed_out"]

_STATUS: dict[type, Status] = {
    WorkflowCompleted: "completed",
    WorkflowFailed: "failed",
    WorkflowTerminated: "terminated",
    WorkflowTimedOut: "timed_out",
    WorkflowCancelled: "cancelled",
    ContinuedAsNew: "continued",
    HistoryLimitExceeded: "failed",
}

MAX_TERMINAL_BYTES = 64 * 1024
"""A larger terminal event is left out of the record; readers find it in the history."""


class ProjectionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a listing shows of the latest run of a workflow id.

    Attributes:
        n: the commit it was made from; never lowered.
        revision: orders records of one commit (a run that is blocked and healed writes no commit in between).
        closed_at: Unix seconds, of a closed run.
        terminal: the event that closed the run, if it is small.
        blocked: why the run cannot go on, of a blocked run.
    """

    workflow_id: str
    run_id: str
    workflow: str
    n: int
    status: Status
    started_at: float
    revision: int = 0
    closed_at: float | None = None
    terminal: Terminal | None = None
    memo: Payload | None = None
    blocked: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ProjectionRecord)


def status_of(terminal: Terminal) -> Status:
    """The word for how a run ended."""
    return _STATUS[type(terminal)]


def project(state: RunState, *, blocked: str = "", revision: int = 0) -> ProjectionRecord:
    """The record of a state."""
    terminal = state.terminal
    status: Status = "blocked" if blocked else "running"
    return ProjectionRecord(
        workflow_id=state.workflow_id,
        run_id=state.run_id,
        workflow=state.started.workflow,
        n=state.tip_n,
        status=status if terminal is None else status_of(terminal),
        started_at=state.started.at,
        revision=revision,
        closed_at=None if terminal is None else terminal.at,
        terminal=terminal,
        memo=state.started.memo,
        blocked=blocked if terminal is None else "",
    )


def encode_record(record: ProjectionRecord) -> bytes:
    """Bytes of a record, without its terminal event if that is large."""
    body = _encoder.encode(record)
    if len(body) > MAX_TERMINAL_BYTES and record.terminal is not None:
        body = _encoder.encode(msgspec.structs.replace(record, terminal=None))
    return body


def decode_record(body: bytes) -> ProjectionRecord:
    """Read a record. Raises msgspec.MsgspecError."""
    return _decoder.decode(body)


async def standing_record(broker: Broker, subjects: Subjects, workflow_id: str) -> ProjectionRecord | None:
    """The record of a workflow id; None if there is none (yet), or none that can be read.

    Raises:
        BrokerError: as the server says.
    """
    stored = await broker.last(subjects.projection_stream, subjects.projection(workflow_id))
    if stored is None:
        return None
    try:
        return decode_record(stored.body)
    except msgspec.MsgspecError:
        # It can be rebuilt from the history, and adds only why a run is blocked.
        return None


class Projection:
    """Writes listing records: a compare-and-set on the record's sequence, and never a lower `n` over a higher one."""

    def __init__(self, broker: Broker, subjects: Subjects) -> None:
        self._broker = broker
        self._subjects = subjects

    def append_for(self, record: ProjectionRecord, last_seq: int) -> Append:
        """The publish of a record over the one with sequence `last_seq` (0: none)."""
        return Append(
            subject=self._subjects.projection(record.workflow_id), body=encode_record(record), expect_last=last_seq
        )

    async def write(self, record: ProjectionRecord, *, last_seq: int = 0) -> int:
        """Write, reading what is there after each conflict; returns the sequence of the record that now stands.

        Raises:
            BrokerError: as the server says (NoAnswer: unknown; writing again is harmless).
        """
        while True:
            try:
                return await self._broker.append(self.append_for(record, last_seq))
            except Conflict:
                standing = await self._broker.last(
                    self._subjects.projection_stream, self._subjects.projection(record.workflow_id), confirmed=True
                )
                last_seq = 0 if standing is None else standing.seq
                if standing is not None and not self.supersedes(record, standing.body):
                    return last_seq

    async def mark_damaged(self, workflow_id: str, message: str) -> None:
        """Show in listings that a run's history cannot be read. Without a standing record there is nothing to show.

        Raises:
            BrokerError: as the server says.
        """
        subject = self._subjects.projection(workflow_id)
        standing = await self._broker.last(self._subjects.projection_stream, subject, confirmed=True)
        if standing is None:
            return
        try:
            record = decode_record(standing.body)
        except msgspec.MsgspecError:
            return
        if record.closed_at is None and record.blocked != message:
            marked = msgspec.structs.replace(record, status="blocked", blocked=message, revision=record.revision + 1)
            await self.write(marked, last_seq=standing.seq)

    async def mark_doubted(self, workflow_id: str, run_id: str, tip_n: int, message: str) -> bool:
        """Show in listings that a run has closed (with commit `tip_n`) on a way that a replay does not take. False: its
        last record is not written yet.

        Raises:
            BrokerError: as the server says.
        """
        subject = self._subjects.projection(workflow_id)
        standing = await self._broker.last(self._subjects.projection_stream, subject, confirmed=True)
        try:
            record = None if standing is None else decode_record(standing.body)
        except msgspec.MsgspecError:
            return True
        if standing is None or record is None or record.n < tip_n:
            return False
        if record.run_id == run_id and record.blocked != message:
            marked = msgspec.structs.replace(record, blocked=message, revision=record.revision + 1)
            await self.write(marked, last_seq=standing.seq)
        return True

    @staticmethod
    def supersedes(record: ProjectionRecord, standing: bytes) -> bool:
        """Whether `record` is newer than the standing one (which may be unreadable: then it is replaced)."""
        try:
            other = decode_record(standing)
        except msgspec.MsgspecError:
            return True
        return (record.n, record.revision) > (other.n, other.revision)
