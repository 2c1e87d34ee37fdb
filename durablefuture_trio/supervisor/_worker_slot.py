"""The place of one activity process, and the attempts that run in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.attempts import (
    ActivityKey,
    AttemptCompleted,
    AttemptFailed,
    AttemptOutcome,
    RunActivity,
)
from durablefuture_trio.history.events import FailureReason, TimeoutKind
from durablefuture_trio.ports.frames import (
    FRAME_VERSION,
    AttemptStarted,
    CancelAttempt,
    Hello,
    Ready,
    WorkerUp,
)
from durablefuture_trio.supervisor._children import Child, ChildSpec, Ended
from durablefuture_trio.supervisor.settings import ActivityPoolSettings

if TYPE_CHECKING:
    from durablefuture_trio.supervisor._activity_pool import TaskQueuePool, WorkerActivityPool

log = logging.getLogger("durablefuture_trio.supervisor.activities")

_MODULE = "durablefuture_trio.activity_worker"

OnOutcome: TypeAlias = Callable[[AttemptOutcome, str], None]


class Attempt:
    """An attempt that was dispatched and has no outcome yet."""

    __slots__ = ("alone", "cancelled_at", "on_outcome", "queue", "run", "sent_at", "slot", "started_at", "verdict")

    def __init__(self, run: RunActivity, queue: TaskQueuePool, on_outcome: OnOutcome, *, alone: bool) -> None:
        self.run = run
        self.queue = queue
        self.on_outcome = on_outcome
        self.alone = alone
        self.slot: WorkerSlot | None = None  # None: it waits
        self.sent_at = 0.0
        self.started_at = 0.0  # 0.0: its worker has not said so
        self.cancelled_at: float | None = None  # monotonic
        self.verdict: Literal["timed_out", "cancelled"] | None = None  # why its process is being killed

    def expired(self, now: float) -> bool:
        return self.run.deadline is not None and now >= self.run.deadline

    def limit(self) -> tuple[float, TimeoutKind] | None:
        """When, in Unix seconds, and by which of its limits the attempt has to be over."""
        run = self.run
        limits: list[tuple[float, TimeoutKind]] = []
        if run.start_to_close is not None:
            limits.append(((self.started_at or self.sent_at) + run.start_to_close, "start_to_close"))
        if run.deadline is not None:
            limits.append((run.deadline, run.timeout or "schedule_to_close"))
        return min(limits) if limits else None


def failed(
    run: RunActivity,
    started_at: float,
    reason: FailureReason,
    kind: str,
    message: str,
    *,
    timeout: TimeoutKind | None = None,
) -> AttemptFailed:
    """The outcome of an attempt whose worker cannot report it."""
    failure = Failure(type=kind, message=message)
    return AttemptFailed(key=run.key, started_at=started_at, reason=reason, failure=failure, timeout=timeout)


class WorkerSlot:
    """The place of one activity process (a `_keeper.ChildSlot`).

    Attributes:
        running: the attempts in the process.
        reserved: the next attempt here has to be alone: nothing else is started.
    """

    def __init__(
        self,
        pool: WorkerActivityPool,
        settings: ActivityPoolSettings,
        hello: Hello,
        name: str,
        member: str,
        *,
        start_timeout_s: float,
        exit_grace_s: float,
    ) -> None:
        self.name = name
        self.task_queue = settings.task_queue
        self.exit_grace_s = exit_grace_s
        self.child: Child | None = None
        self.running: dict[ActivityKey, Attempt] = {}
        self.reserved = False
        self._worker = ""
        self._pool = pool
        self._settings = settings
        self._hello = hello
        self._member = member
        self._start_timeout_s = start_timeout_s
        self._killed = False

    @property
    def idle(self) -> bool:
        return not self.running

    @property
    def free_places(self) -> int:
        if self.child is None or self.reserved:
            return 0
        return self._settings.concurrency - len(self.running)

    # --- attempts ---

    def start(self, attempt: Attempt) -> None:
        """Run the attempt in this process."""
        assert self.child is not None
        attempt.slot = self
        attempt.sent_at = time.time()
        self.running[attempt.run.key] = attempt
        self.child.send(attempt.run)

    def cancel(self, attempt: Attempt) -> None:
        """Tell the process; if it does not heed that, it is killed after the grace period."""
        if attempt.cancelled_at is None and self.child is not None:
            attempt.cancelled_at = time.monotonic()
            self.child.send(CancelAttempt(key=attempt.run.key))

    def sweep(self, now: float, monotonic_now: float) -> None:
        """Kill the process when one of its attempts is over a limit and the grace period."""
        if self._killed or self.child is None:
            return
        grace_s = self._settings.grace_period
        for attempt in self.running.values():
            limit = attempt.limit()
            if limit is not None and now > limit[0] + grace_s:
                attempt.verdict = "timed_out"
            elif attempt.cancelled_at is not None and monotonic_now > attempt.cancelled_at + grace_s:
                attempt.verdict = "cancelled"
            if attempt.verdict is not None:
                self._killed = True
        if self._killed:
            culprits = [attempt.run.name for attempt in self.running.values() if attempt.verdict]
            log.warning(
                "%s (pid %d) is killed: %s did not end within the grace period of %g s",
                self.name,
                self.child.pid,
                ", ".join(culprits),
                grace_s,
            )
            self.child.kill()

    # --- the child ---

    def next_child(self) -> ChildSpec:
        settings: dict[str, str | int | float | bool | None] = {
            "concurrency": self._settings.concurrency,
            "grace_period": self._settings.grace_period,
            "memory_limit_mb": self._settings.memory_limit_mb,
            "task_queue": self.task_queue,
        }
        return ChildSpec(
            module=_MODULE,
            hello=msgspec.structs.replace(
                self._hello, version=FRAME_VERSION, name=self.name, settings={**self._hello.settings, **settings}
            ),
            up_type=WorkerUp,
            start_timeout_s=self._start_timeout_s,
        )

    def child_ready(self, child: Child, ready: Ready) -> None:
        self.child = child
        self._killed = False
        self._worker = f"{self._member}/{ready.pid}"
        self._pool.place_freed(self)

    def handle(self, frame: WorkerUp) -> None:
        match frame:
            case AttemptCompleted() | AttemptFailed():
                attempt = self.running.get(frame.key)
                if attempt is None:
                    log.error("%s reported %s, which it does not run", self.name, frame.key)
                    return
                if attempt.alone:
                    self._pool.acquit(attempt)
                self._pool.finished(attempt, frame, self._worker)
            case AttemptStarted():
                if (attempt := self.running.get(frame.key)) is not None:
                    attempt.started_at = frame.started_at
            case _:
                log.error("%s sent an unexpected %s", self.name, type(frame).__name__)

    def child_ended(self, child: Child, ended: Ended) -> None:
        self.child = None
        attempts = list(self.running.values())
        if not ended.was_ready or not attempts:
            return
        culprit_known = any(attempt.verdict for attempt in attempts)
        if not culprit_known and len(attempts) > 1:
            self._pool.suspect(attempts)
        for attempt in attempts:
            outcome = self._outcome(attempt, child, ended, alone=len(attempts) == 1, culprit_known=culprit_known)
            self._pool.finished(attempt, outcome, self._worker)
        self.reserved = False

    def _outcome(
        self, attempt: Attempt, child: Child, ended: Ended, *, alone: bool, culprit_known: bool
    ) -> AttemptFailed:
        run, started_at = attempt.run, attempt.started_at or attempt.sent_at
        grace_s = self._settings.grace_period
        if attempt.verdict == "timed_out":
            limit = attempt.limit()
            text = (
                f"the attempt was over its time and did not end within the grace period of {grace_s:g} s; "
                f"its process (pid {child.pid}) was killed"
            )
            return failed(run, started_at, "timed_out", "TimeoutError", text, timeout=limit[1] if limit else None)
        if attempt.verdict == "cancelled":
            text = (
                f"the attempt was cancelled and did not end within the grace period of {grace_s:g} s; "
                f"its process (pid {child.pid}) was killed"
            )
            return failed(run, started_at, "cancelled", "Cancelled", text)
        if alone and not culprit_known:
            self._pool.convict(attempt)
            text = f"the activity process (pid {child.pid}) {ended.status} while it ran this attempt alone"
            return failed(run, started_at, "crashed", "ProcessCrashed", text)
        text = (
            f"the activity process (pid {child.pid}) {ended.status} while it ran this attempt and others; "
            "this attempt is not counted"
        )
        return failed(run, started_at, "lost", "ProcessLost", text)
