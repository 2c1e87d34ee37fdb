"""The frames between a supervisor and its children, over a socketpair.

A frame is a 4-byte big-endian length and a MessagePack struct; several frames may share one write. The child's first
frame up is `Ready` (or `Refused`), in answer to the supervisor's `Hello`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine.attempts import ActivityKey, AttemptCompleted, AttemptFailed, RunActivity
from durablefuture_trio.engine.commands import Command
from durablefuture_trio.history.events import Stimulus

__all__ = [
    "FRAME_VERSION",
    "MAX_FRAME_BYTES",
    "Activate",
    "Activated",
    "ActivityKey",
    "AttemptCompleted",
    "AttemptFailed",
    "AttemptStarted",
    "BlockKind",
    "Blocked",
    "Bye",
    "CancelAttempt",
    "Evict",
    "Evicted",
    "Hello",
    "LoadRun",
    "Loaded",
    "LogLine",
    "Missing",
    "Queried",
    "Query",
    "Ready",
    "Refused",
    "RunActivity",
    "SandboxDown",
    "SandboxUp",
    "ValidateUpdate",
    "WorkerDown",
    "WorkerUp",
]

FRAME_VERSION = 1
MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A longer frame is a broken peer; the largest real one holds one chunk of history or one payload."""


class Hello(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Down, first: who you are and what to import.

    Attributes:
        version: `FRAME_VERSION` of the parent.
        name: name of the child for logs and histories, e.g. ``"m0/default-1"``.
        modules: names of modules whose ``@workflow`` and ``@activity`` definitions are to be registered.
        sys_path: the parent's import path.
        pickled: cloudpickled tuple of definitions that cannot be imported (``__main__``, ``<locals>``); b"" for none.
        settings: the child's own settings as builtins (`SandboxSettings` or `PoolSettings`).
    """

    version: int
    name: str
    modules: tuple[str, ...]
    sys_path: tuple[str, ...]
    pickled: bytes = b""
    settings: dict[str, str | int | float | bool | None] = {}


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Up, first: usable from now on.

    Attributes:
        version: `FRAME_VERSION` of the child.
        code_hash: digest of the registered definitions' source.
        workflows, activities: the registered names.
    """

    version: int
    pid: int
    code_hash: str
    workflows: tuple[str, ...]
    activities: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Up, instead of Ready: the modules cannot be used. ``problems`` holds one line for each thing to mend."""

    problems: tuple[str, ...]


class Bye(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Down, last: finish what runs and exit."""


# --- replay processes -------------------------------------------------------------------------------------------------


class LoadRun(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Down: replay this history (in chunks, in order) and keep the run cached. Answered after the last chunk.

    Attributes:
        exchange: pairs the answer with the question.
        run_id: the run.
        commits: bodies of consecutive commits, as stored.
        first: this chunk is the first (drop whatever is cached of the run).
        last: no more chunks follow.
        patches: the patches whose markers are anywhere in the history (with the first chunk).
        keep: keep the run although it has closed: a query follows.
    """

    exchange: int
    run_id: str
    commits: tuple[bytes, ...]
    first: bool = False
    last: bool = False
    patches: tuple[str, ...] = ()
    keep: bool = False


class Activate(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Down: apply one stimulus. ``activation`` is its number among the stimuli of the run, from 1 (WorkflowStarted: a
    fresh run); a child that has not applied exactly the ones before answers `Missing` and drops what it has."""

    exchange: int
    run_id: str
    activation: int
    stimulus: Stimulus


class Query(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Down: answer a query from what the cached run holds, without changing it. Answered by `Queried` or `Missing`.
    ``activation``: how many stimuli the run must have applied."""

    exchange: int
    run_id: str
    activation: int
    name: str
    arguments: Payload


class ValidateUpdate(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Down: ask the validator of an update, without changing the run. Answered by `Queried` or `Missing`: no failure
    means that the update may be accepted (also when there is no handler for it yet)."""

    exchange: int
    run_id: str
    activation: int
    name: str
    arguments: Payload


class Queried(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Up: the answer to a query or a validation. ``failure``: what it raised."""

    exchange: int
    run_id: str
    result: Payload | None = None
    failure: Failure | None = None


class Evict(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Down: forget the run. Not answered."""

    run_id: str


class Loaded(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Up: the history is replayed. ``unmatched`` are the commands an unfinished commit still lacks, in order."""

    exchange: int
    run_id: str
    unmatched: tuple[Command, ...]
    wake_at: float | None


class Activated(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Up: nothing can run any more. ``commands`` in the order they were asked for, cancels last and sorted by call."""

    exchange: int
    run_id: str
    commands: tuple[Command, ...]
    wake_at: float | None


BlockKind = Literal[
    "nondeterminism", "sandbox_violation", "deadlock", "unknown_workflow", "undecodable", "crashed", "history"
]


class Blocked(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Up (or made by the supervisor, for a child that died): the run cannot go on with this code.

    Attributes:
        kind: why.
        message: what happened and what to do, for people.
        recorded, produced, source: both sides of a nondeterminism and the line that asked.
        stack: where a deadlocked activation was.
    """

    exchange: int
    run_id: str
    kind: BlockKind
    message: str
    recorded: str = ""
    produced: str = ""
    source: str = ""
    stack: str = ""


class Missing(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Up: the run is not cached (or at another activation): load it first."""

    exchange: int
    run_id: str


class Evicted(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Up, unasked: the cache was full and this run was dropped."""

    run_id: str


class LogLine(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Up, unasked: something user code logged, or a child has to say."""

    level: str
    logger: str
    message: str
    run_id: str = ""


# --- activity processes -----------------------------------------------------------------------------------------------


class CancelAttempt(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Down: the result of this attempt is no longer wanted."""

    key: ActivityKey


class AttemptStarted(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Up: the attempt runs (it may have waited for a thread)."""

    key: ActivityKey
    started_at: float


SandboxDown: TypeAlias = Hello | LoadRun | Activate | Query | ValidateUpdate | Evict | Bye
SandboxUp: TypeAlias = Ready | Refused | Loaded | Activated | Blocked | Missing | Queried | Evicted | LogLine
WorkerDown: TypeAlias = Hello | RunActivity | CancelAttempt | Bye
WorkerUp: TypeAlias = Ready | Refused | AttemptStarted | AttemptCompleted | AttemptFailed | LogLine
