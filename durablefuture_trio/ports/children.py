"""What the owner of a shard needs of child processes: runs to activate, attempts to run.

Everything here is synchronous and never blocks: questions are handed over, answers come back by callback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from durablefuture_trio.engine.attempts import ActivityKey, AttemptOutcome, RunActivity
from durablefuture_trio.history.events import Stimulus
from durablefuture_trio.ports.frames import Activated, Blocked, Loaded, Missing, Queried, Query, ValidateUpdate

__all__ = ["ActivityPool", "AttemptOutcome", "ReplayAnswer", "ReplayPool"]

ReplayAnswer: TypeAlias = Activated | Loaded | Blocked | Missing | Queried


class ReplayPool(Protocol):
    """Sandboxed processes that hold cached runs. A run is pinned to one process by its id; questions about one run are
    answered in order. A process that dies or is killed for a deadlock answers what it owed with `Blocked` or `Missing`.
    """

    @property
    def code_hash(self) -> str:
        """Digest of the code the processes run."""
        ...

    def cached(self, run_id: str) -> bool:
        """Whether a process is believed to hold the run."""
        ...

    def activate(
        self, run_id: str, activation: int, stimulus: Stimulus, on_answer: Callable[[ReplayAnswer], None]
    ) -> None:
        """Apply one stimulus; `on_answer` gets Activated, Blocked or Missing."""
        ...

    def load(
        self,
        run_id: str,
        commits: tuple[bytes, ...],
        *,
        first: bool,
        last: bool,
        patches: tuple[str, ...] = (),
        keep: bool = False,
        on_answer: Callable[[ReplayAnswer], None] | None = None,
    ) -> None:
        """Replay a chunk of history; with the last chunk `on_answer` gets Loaded or Blocked. `patches` and `keep` are
        those of `LoadRun`, with the first chunk."""
        ...

    def ask(self, question: Query | ValidateUpdate, on_answer: Callable[[ReplayAnswer], None]) -> None:
        """Ask a run something that does not change it (the exchange number is put in here); `on_answer` gets Queried,
        Missing or Blocked."""
        ...

    def evict(self, run_id: str) -> None:
        """Forget the run; answers still owed for it are not delivered any more."""
        ...


class ActivityPool(Protocol):
    """The activity processes of one supervisor, all queues of it."""

    def serves(self, task_queue: str) -> bool:
        """Whether attempts of this queue can be run here."""
        ...

    def dispatch(
        self, attempt: RunActivity, task_queue: str, on_outcome: Callable[[AttemptOutcome, str], None]
    ) -> None:
        """Run one attempt when a slot is free. `on_outcome` is called once with the outcome and the worker's name;
        a crash of its process is an `AttemptFailed` with reason ``crashed`` (it ran alone) or ``lost`` (it did not)."""
        ...

    def cancel(self, key: ActivityKey) -> None:
        """Ask a running or waiting attempt to end; unknown keys are ignored. Its outcome is still reported."""
        ...
