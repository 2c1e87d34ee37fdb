"""What the parts of a run's owner share: what it knows, whom it waits for, why it is blocked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from durablefuture_trio.engine.attempts import (
    AttemptOutcome,
)
from durablefuture_trio.history.events import CallerRecord

SLOW_START_S = 0.05
"""A WorkflowStarted whose first activation takes longer is committed without it, so that the client gets its answer."""

BLOCKED_RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Waits between attempts to replay a blocked run; the last one repeats."""

MAX_QUESTIONS = 1_000
"""So many queries may wait for one run; who asks more is not answered, and asks again."""

MAX_BLOCK_CHARS = 16_000
"""A listing record has to fit into a message, whatever an exception of a user's says."""


class Knowledge(Enum):
    """What the owner knows of the id's history."""

    NONE = "none"
    LOADING = "loading"
    ASSUMED_FRESH = "assumed fresh"
    """Nothing was read: a start publishes number 1 and loads on conflict."""
    KNOWN = "known"


class Waiting(Enum):
    """Whose answer is awaited before anything else of the run can go on."""

    NOBODY = "nobody"
    ACTIVATION = "activation"
    REPLAY = "replay"
    CONFIRMATION = "confirmation"
    ANSWER = "answer"
    """To a query, or to the validation of an update."""


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run cannot go on with today's code. See `ports.frames.Blocked`."""

    kind: str
    message: str
    recorded: str = ""
    produced: str = ""
    source: str = ""
    stack: str = ""

    @property
    def words(self) -> str:
        """What people are shown: the message, and where the code was if that is known."""
        return f"{self.message}\n{self.stack}".rstrip()[:MAX_BLOCK_CHARS]


class LocalOutcome(msgspec.Struct, frozen=True):
    """The outcome of an attempt that this owner dispatched."""

    outcome: AttemptOutcome
    worker: str


class Unreachable(msgspec.Struct, frozen=True):
    """The workflow that a call sends something to has no history, and nothing was sent. Forgotten when the history is
    read again: then it is to be sent again. Until then `key`, the message's, is not sent again."""

    key: str
    caller: CallerRecord
    workflow_id: str


@dataclass(slots=True, kw_only=True)
class OwnerLimits:
    """What bounds an owner: the largest body of a history message, and the largest value in one."""

    commit_bytes: int
    payload_bytes: int
