"""What reaches a run from outside through its inbox, and how it is answered."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.attempts import AttemptOutcome
from durablefuture_trio.history.events import RequestRecord

ConflictPolicy = Literal["fail", "use_existing", "terminate_existing"]
ReusePolicy = Literal["allow", "failed_only", "reject"]


class StartRequest(msgspec.Struct, frozen=True, tag="start", kw_only=True, omit_defaults=True):
    """Start a run.

    Attributes:
        execution_deadline: absolute Unix seconds.
        conflict: what to do when a run of this id is open.
        reuse: what to do when a run of this id has closed.
    """

    workflow_id: str
    workflow: str
    arguments: Payload
    execution_deadline: float | None = None
    memo: Payload | None = None
    conflict: ConflictPolicy = "fail"
    reuse: ReusePolicy = "allow"


class TerminateRequest(msgspec.Struct, frozen=True, tag="terminate", kw_only=True, omit_defaults=True):
    """End the open run without running its code. ``run_id`` empty: whichever is open."""

    workflow_id: str
    run_id: str = ""
    reason: str = ""


class AttemptReport(msgspec.Struct, frozen=True, tag="outcome", kw_only=True, omit_defaults=True):
    """The outcome of an attempt that ran elsewhere, e.g. on a supervisor that has lost the shard meanwhile."""

    workflow_id: str
    worker: str
    outcome: AttemptOutcome


class TimerFire(msgspec.Struct, frozen=True, tag="timer", kw_only=True, omit_defaults=True):
    """A schedule came due. Identified by the commit that armed it: the server may fire it twice."""

    workflow_id: str
    run_id: str
    n: int
    due: float


Envelope: TypeAlias = StartRequest | TerminateRequest | AttemptReport | TimerFire


class Inbound(msgspec.Struct, frozen=True, kw_only=True):
    """An inbox message as the owner gets it.

    Attributes:
        seq: its sequence in the inbox stream.
        time: when the server stored it, Unix seconds.
        handle: whatever acknowledges it; opaque here.
        request_id, reply: the client's id of the request and the address of the answer; empty for none.
    """

    seq: int
    time: float
    envelope: Envelope
    handle: object
    request_id: str = ""
    reply: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The owner's answer to a request, after the commit that decided it.

    Attributes:
        request_id: the request.
        answer: ``"applied"``, or the name of the refusal: ``"existing"`` (an open run was used), ``"already_started"``,
            ``"not_found"``, ``"closed"``, ``"undecodable"``.
        run_id: the run it was applied to, or that stands in the way.
        message: the words of a refusal.
    """

    request_id: str
    answer: str
    run_id: str = ""
    message: str = ""


def answer_of(record: RequestRecord) -> Answer:
    """The answer that a remembered decision stands for."""
    return Answer(request_id=record.request_id, answer=record.answer, run_id=record.run_id, message=record.message)
