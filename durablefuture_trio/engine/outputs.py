"""What the owner of a run asks of the world. Plain records: the shell carries them out and notifies the owner."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.attempts import ActivityKey, RunActivity
from durablefuture_trio.engine.requests import Answer, Envelope
from durablefuture_trio.history.events import Stimulus, Terminal
from durablefuture_trio.history.state import RunState


class Load(msgspec.Struct, frozen=True):
    """Read and fold the latest run of the id; answer with `RunOwner.loaded` or `load_failed`."""


class Confirm(msgspec.Struct, frozen=True):
    """Ask the leader whether `tip_n` is the tip; answer with `RunOwner.confirmed`."""

    tip_n: int


class Activate(msgspec.Struct, frozen=True):
    """Apply one stimulus in the sandbox; answer with `RunOwner.activated`, `missing` or `blocked`, and this token."""

    token: int
    run_id: str
    activation: int
    stimulus: Stimulus


class Replay(msgspec.Struct, frozen=True):
    """Load the committed history into the sandbox; answer with `RunOwner.replayed` or `blocked`, and this token."""

    token: int
    run_id: str
    first_n: int
    tip_n: int
    patches: tuple[str, ...] = ()
    keep: bool = False


class Verify(msgspec.Struct, frozen=True):
    """Replay this stored and finished history in another process; answer with `RunOwner.doubted` if that goes
    differently, else not at all.

    Attributes:
        wake_at: the deadline for which the sandbox waits after it.
        is_closed: it is the whole history of a run that has closed.
    """

    run_id: str
    first_n: int
    tip_n: int
    patches: tuple[str, ...] = ()
    wake_at: float | None = None
    is_closed: bool = False


class Ask(msgspec.Struct, frozen=True):
    """Ask the sandbox something that changes nothing; answer with `RunOwner.answered` or `missing`, and this token."""

    token: int
    run_id: str
    activation: int
    kind: Literal["query", "validate"]
    name: str
    arguments: Payload


class Send(msgspec.Struct, frozen=True):
    """Put a message into the inbox of another workflow; answer with `RunOwner.sent` once it is stored."""

    key: str
    letter: Envelope
    request_id: str


class Evict(msgspec.Struct, frozen=True):
    """The sandbox's copy of the run is not to be used any more."""

    run_id: str


class Publish(msgspec.Struct, frozen=True):
    """Publish this commit until its number is occupied; answer with `RunOwner.committed` or `commit_lost`."""

    n: int
    commit_id: str
    body: bytes


class Dispatch(msgspec.Struct, frozen=True):
    """Run an attempt here; answer with `RunOwner.outcome`."""

    attempt: RunActivity
    task_queue: str


class CancelAttempt(msgspec.Struct, frozen=True):
    """Ask a running attempt to end."""

    key: ActivityKey


class Arm(msgspec.Struct, frozen=True):
    """Have the server wake the run at `due`; answer with `RunOwner.armed_at` once that is stored."""

    run_id: str
    n: int
    due: float


class Neutralise(msgspec.Struct, frozen=True):
    """The schedule armed by commit `n` is not needed any more. Best effort: its fire would be harmless."""

    n: int


class Project(msgspec.Struct, frozen=True):
    """Write the listing record of this state; answer with `RunOwner.projected`.

    Attributes:
        last_seq: sequence of the record written last, as far as known; 0: none.
    """

    state: RunState
    status_key: str
    blocked: str
    revision: int
    last_seq: int


class Reply(msgspec.Struct, frozen=True):
    """Answer a client."""

    address: str
    answer: Answer


class Closed(msgspec.Struct, frozen=True):
    """Tell whoever waits that the run has closed."""

    run_id: str
    n: int
    terminal: Terminal


class Ack(msgspec.Struct, frozen=True):
    """Acknowledge an inbox message."""

    handle: object


class WakeAt(msgspec.Struct, frozen=True):
    """Call `RunOwner.wake` at this time (None: no need); replaces what was asked before."""

    when: float | None


class Report(msgspec.Struct, frozen=True):
    """Something an operator should know."""

    level: str
    message: str


Output: TypeAlias = (
    Load
    | Confirm
    | Activate
    | Replay
    | Verify
    | Ask
    | Send
    | Evict
    | Publish
    | Dispatch
    | CancelAttempt
    | Arm
    | Neutralise
    | Project
    | Reply
    | Closed
    | Ack
    | WakeAt
    | Report
)
