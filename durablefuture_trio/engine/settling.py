"""Settling: what of a run may be acknowledged, what has to be armed first, and what listings have to show.

The only place that acknowledges. Nothing here decides what happens in a run; it only makes sure that somebody will
always be woken for it: by an unacknowledged inbox message (an anchor), or by a stored schedule.
"""

from __future__ import annotations

from collections.abc import Callable

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.anchors import Anchors
from durablefuture_trio.engine.decide import needed_wake
from durablefuture_trio.history.state import RunState

PARK_AFTER_S = 1.0
"""A run that sleeps less than this stays anchored: arming a schedule costs a commit of its own."""

PROJECT_AFTER_S = 0.2
"""The listing record of a fresh run is written after this; a run that ends sooner needs only its last one."""

PROJECT_RETRY_S = 1.0

TOO_EARLY_S = 60.0
"""A schedule that fires this much before it is needed is neutralised."""


def earliest(*times: float | None) -> float | None:
    """The first of some times, of which some may not be."""
    return min((time for time in times if time is not None), default=None)


class Settling:
    """The settling of one workflow id.

    Attributes:
        anchors: the inbox messages held.
        armed: schedules known to be stored, number of the commit that armed it to due time.
    """

    def __init__(self, outputs: Callable[[out.Output], None], armed: dict[int, float]) -> None:
        self._out = outputs
        self.anchors = Anchors()
        self.armed = armed
        self._arming: int | None = None
        self._spent: set[int] = set()
        self._shown = ""
        self._shown_seq = 0
        self._is_writing = False
        self._write_at: float | None = None
        self._retry_at: float | None = None
        self._next_write: float | None = None
        self._wake: float | None = None

    # --- notifications -----------------------------------------------------------------------------------------------

    def fired(self, n: int) -> None:
        """The schedule armed by commit `n` has fired. Its subject is never used again: the server purges it late."""
        self.armed.pop(n, None)
        self._spent.add(n)

    def armed_at(self, n: int, due: float) -> None:
        """A schedule is stored."""
        if self._arming == n:
            self._arming = None
        if n not in self._spent:
            self.armed[n] = due

    def arm_failed(self, n: int) -> None:
        """It is unknown whether the schedule is stored; it will be armed again."""
        if self._arming == n:
            self._arming = None

    def projected(self, status_key: str, seq: int) -> None:
        """The listing record is written (or a newer one stands)."""
        self._is_writing = False
        self._shown = status_key
        self._shown_seq = seq

    def projection_failed(self, now: float) -> None:
        """The listing record could not be written; it will be tried again."""
        self._is_writing = False
        self._retry_at = now + PROJECT_RETRY_S

    def outdate(self, write_at: float | None = None) -> None:
        """The listing record has to be written, whatever it may show; there is no hurry before `write_at`."""
        self._shown = ""
        self._write_at = write_at

    def woken(self) -> None:
        """The time asked for has come."""
        self._wake = None

    @property
    def is_idle(self) -> bool:
        """Nothing is held, under way or awaited."""
        return not (self.anchors or self._is_writing or self._arming is not None or self._wake is not None)

    # --- settling ----------------------------------------------------------------------------------------------------

    def busy(self, wake: float | None) -> None:
        """Something of the run is under way: one message stays to anchor it."""
        self._release(keep=1)
        self._set_wake(wake)

    def without_run(self) -> None:
        """The id has no run: what is consumed was declined."""
        self._release(keep=0)
        self._set_wake(None)

    def closed(self, state: RunState, now: float) -> None:
        """The run has closed: once listings show it, nothing is owed any more."""
        is_shown = self._show(state, now, is_live=False, blocked="", revision=0)
        for n in list(self.armed):
            self._neutralise(n)
        self._release(keep=0 if is_shown else 1)
        self._set_wake(self._next_write)

    def blocked(self, state: RunState, now: float, *, words: str, revision: int, retry_at: float) -> None:
        """The run is blocked: one message stays, so that whoever owns it next tries again."""
        self._show(state, now, is_live=False, blocked=words, revision=revision)
        self._release(keep=1)
        self._set_wake(earliest(needed_wake(state, sandbox=False), retry_at, self._next_write))

    def running(self, state: RunState, now: float, *, is_live: bool, revision: int) -> None:
        """Nothing is under way in the owner. Unless attempts run here, or a short timer does, the run is parked."""
        is_shown = self._show(state, now, is_live=is_live, blocked="", revision=revision)
        needed = needed_wake(state)
        is_short = needed is not None and needed - now <= PARK_AFTER_S
        if is_live or is_short or state.tip_n in self._spent:
            self._release(keep=1)
            self._set_wake(earliest(needed, self._next_write))
        else:
            self._park(state, needed, is_shown)

    def _park(self, state: RunState, needed: float | None, is_shown: bool) -> None:
        if not self.anchors:
            self._set_wake(None)
            return
        # One that fires much too early is replaced: only what is stored before it is neutralised wakes the run.
        if needed is not None and not any(needed - TOO_EARLY_S <= due <= needed for due in self.armed.values()):
            if self._arming is None:
                self._arming = state.tip_n
                self._out(out.Arm(state.run_id, state.tip_n, needed))
            self._release(keep=1)
            return
        if not is_shown:
            self._release(keep=1)
            self._set_wake(self._next_write)
            return
        for n, due in list(self.armed.items()):
            if needed is None or due < needed - TOO_EARLY_S:
                self._neutralise(n)
        self._release(keep=0)
        self._set_wake(None)

    def _show(self, state: RunState, now: float, *, is_live: bool, blocked: str, revision: int) -> bool:
        """Have the listing record written if it is out of date; True if it is not."""
        terminal = state.terminal
        status = type(terminal).__name__ if terminal is not None else "blocked" if blocked else "running"
        key = f"{state.run_id}/{status}/{blocked}"
        self._next_write = None
        if key == self._shown:
            return True
        if self._is_writing:
            return False
        not_before = self._write_at if is_live else self._retry_at
        if not_before is not None and now < not_before:
            self._next_write = not_before
            return False
        self._is_writing = True
        self._out(out.Project(state, key, blocked, revision, self._shown_seq))
        return False

    def _neutralise(self, n: int) -> None:
        del self.armed[n]
        self._out(out.Neutralise(n))

    def _release(self, *, keep: int) -> None:
        for handle in self.anchors.release(keep):
            self._out(out.Ack(handle))

    def _set_wake(self, when: float | None) -> None:
        if when != self._wake:
            self._wake = when
            self._out(out.WakeAt(when))
